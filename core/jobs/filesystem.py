"""Which kind of disk a path lies on: SQLite's WAL needs shared memory, which network file systems do not give."""

from __future__ import annotations

import os
import re
from pathlib import Path

MOUNTS = Path("/proc/self/mounts")
NETWORK = re.compile(
    r"nfs\d?|cifs|smb\d?|smbfs|fuse\.sshfs|fuse\.rclone|fuse\.s3fs|lustre|gpfs|ceph|glusterfs|afs|beegfs"
)


def network_file_system(path: Path, mounts: str | None = None) -> str | None:
    """The type of the network file system that holds `path`, None for a local disk or where that cannot be told.

    mounts: the table of mounts, as /proc/self/mounts gives it (proc(5), fstab(5)).
    """
    if mounts is None:
        try:
            mounts = MOUNTS.read_text(errors="replace")
        except OSError:  # not Linux
            return None
    real = Path(os.path.realpath(path))
    best, kind = -1, ""
    for line in mounts.splitlines():
        _, place, type_, *_ = line.split(" ")
        folder = Path(re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), place))
        if real.is_relative_to(folder) and len(folder.parts) >= best:
            best, kind = len(folder.parts), type_
    return kind if NETWORK.fullmatch(kind) else None
