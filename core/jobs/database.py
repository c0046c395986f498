"""Opening `jobs.db`: one door for every command, and a plain reason when it stays shut.

WAL with FULL sync: a commit that returned survives a power cut, at no cost that shows beside an edit.
Transactions are always explicit and IMMEDIATE: a deferred one that reads and then writes fails at once with
SQLITE_BUSY_SNAPSHOT, whatever the busy timeout.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from core.errors import DatabaseError
from core.jobs.filesystem import network_file_system

APPLICATION_ID = 0x4B_54_55_49  # "KTUI", in the file's header: tells our queue from any other SQLite file
VERSION = 1
"""How many steps of `core.jobs.schema` this program knows; kept in the file as `user_version`."""
BUSY_SECONDS = float(os.environ.get("KONTEXT_TUI_BUSY_SECONDS", "15"))
"""How long a write waits for other programs' writes before it gives up."""


class Connection(sqlite3.Connection):
    """A connection to the queue. on_busy: called each time a transaction has waited `BUSY_SECONDS` for other
    programs' writes; it returns to wait on. None gives up."""

    on_busy: Callable[[], None] | None = None


def connect(path: Path, *, create: bool = True) -> Connection:
    """Open the queue at `path`, making or upgrading it first where needed.

    It never copies the write-ahead log into the file while it works (`checkpoint` does): one process does that, the
    supervisor. Who closes the file last still does.

    Raises DatabaseError for a folder, a file that is no database or another program's, a newer schema, a missing
    file with `create=False`, and a lock that outlasts `BUSY_SECONDS`; the file is left as it was.
    """
    _check_path(path, create=create)
    kind = network_file_system(path)
    if kind:
        raise DatabaseError(
            f"{path} lies on a network disk ({kind}), where SQLite can damage it; "
            "give --db a path on a local disk (the pictures may stay where they are)"
        )
    try:
        conn = _open(path)
        try:
            _prepare(conn, path)
        except BaseException:
            conn.close()
            raise
    except sqlite3.Error as error:
        raise DatabaseError(_reason(path, error)) from error
    return conn


@contextmanager
def transaction(conn: sqlite3.Connection) -> Iterator[sqlite3.Connection]:
    """A write transaction: taken at once, committed at the end, rolled back on any exception."""
    _begin(conn)
    try:
        yield conn
    except BaseException:
        with suppress(sqlite3.Error):  # a full disk has rolled back already
            conn.execute("ROLLBACK")
        raise
    conn.execute("COMMIT")


def _begin(conn: sqlite3.Connection) -> None:
    while True:
        try:
            conn.execute("BEGIN IMMEDIATE")
            return
        except sqlite3.OperationalError as error:
            on_busy = getattr(conn, "on_busy", None)
            if on_busy is None or not is_busy(error):
                raise
            on_busy()


def is_busy(error: sqlite3.Error) -> bool:
    """Whether another program's write was waited for in vain."""
    return error.sqlite_errorcode & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


def checkpoint(conn: sqlite3.Connection) -> None:
    """Copy the write-ahead log into the file as far as readers allow, never waiting for anyone.

    One process of a queue does this: two at once are what SQLite's WAL-reset bug (3.7.0 to 3.51.2) needs.
    """
    conn.execute("PRAGMA wal_checkpoint(PASSIVE)")


@contextmanager
def snapshot(conn: sqlite3.Connection) -> Iterator[sqlite3.Connection]:
    """A read transaction: every query in it sees the same moment."""
    conn.execute("BEGIN")
    try:
        yield conn
    finally:
        conn.execute("ROLLBACK")


def path_to_db(path: str | os.PathLike[str]) -> str | bytes:
    """A path as SQLite can keep it: text, or the file system's bytes where those are not UTF-8."""
    text = os.fspath(path)
    try:
        text.encode()
    except UnicodeEncodeError:
        return os.fsencode(text)
    return text


def path_from_db(value: str | bytes) -> str:
    """The inverse of `path_to_db`."""
    return value if isinstance(value, str) else os.fsdecode(value)


def _check_path(path: Path, *, create: bool) -> None:
    if path.is_dir():
        raise DatabaseError(f"{path} is a folder; give --db the path of a file, such as {path / 'jobs.db'}")
    if path.exists():
        if not path.is_file():
            raise DatabaseError(f"{path} is not a regular file; give --db the path of a jobs.db")
        return
    if not create:
        raise DatabaseError(f"{path} does not exist: no queue here yet; `kontext-tui add` or `run` makes one")
    if not path.parent.is_dir():
        raise DatabaseError(f"{path.parent} does not exist; make that folder or give --db another path")


def _open(path: Path) -> Connection:
    conn = sqlite3.connect(
        path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False, factory=Connection
    )
    conn.row_factory = sqlite3.Row
    conn.execute("PRAGMA wal_autocheckpoint = 0")
    conn.execute("PRAGMA foreign_keys = ON")
    conn.execute("PRAGMA synchronous = FULL")
    conn.execute(f"PRAGMA journal_size_limit = {64 << 20}")
    return conn


def _prepare(conn: sqlite3.Connection, path: Path) -> None:
    """Check whose file it is before anything is written, then bring its schema up to `VERSION`."""
    version, owner, empty = _header(conn)
    if version > VERSION and owner == APPLICATION_ID:
        raise DatabaseError(
            f"{path} has schema version {version}; this kontext-tui knows up to {VERSION}. "
            "Update kontext-tui; the file was not touched"
        )
    if owner != APPLICATION_ID:
        if version or owner or not empty:
            raise DatabaseError(f"{path} is a database of another program; give --db another path")
        _migrate(conn)
    elif version < VERSION:
        with suppress(FileExistsError):  # the first copy stays, whoever comes second
            copy_to(conn, path.with_name(f"{path.name}.before-version-{VERSION}"))
        _migrate(conn)
    if conn.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
        conn.execute("PRAGMA journal_mode = WAL")


def _header(conn: sqlite3.Connection) -> tuple[int, int, bool]:
    """Schema version, application id, and whether there are no tables: of one moment, as others may be making it."""
    conn.execute("BEGIN")
    try:
        version = conn.execute("PRAGMA user_version").fetchone()[0]
        owner = conn.execute("PRAGMA application_id").fetchone()[0]
        return version, owner, conn.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchone() is None
    finally:
        conn.execute("COMMIT")


def _migrate(conn: sqlite3.Connection) -> None:
    from sqlite_utils import Database  # 0.2 s: only a new or an old file needs it

    from core.jobs.schema import steps

    # WAL first: it cannot be switched inside a transaction.
    conn.execute("PRAGMA journal_mode = WAL")
    with transaction(conn):  # two programs that start at once: the second finds nothing left to do
        steps.apply(Database(conn, execute_plugins=False))
        conn.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        conn.execute(f"PRAGMA user_version = {VERSION}")


def copy_to(conn: sqlite3.Connection, target: Path, *, whole: bool = False) -> None:
    """A copy of a queue that may be at work, under its name in one step; FileExistsError where it is taken.

    whole: look through the copy first, DatabaseError where it is damaged.
    """
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        with closing(sqlite3.connect(part)) as copy:
            conn.backup(copy)
            copy.execute("PRAGMA journal_mode = DELETE")  # one file, nothing beside it
            if whole and (found := damage(copy)):
                raise DatabaseError(
                    f"the queue is damaged ({found}): no copy was made; an older backup is to be used"
                )
        with part.open("rb") as written:
            os.fsync(written.fileno())
        os.link(part, target)
    finally:
        part.unlink(missing_ok=True)


def damage(conn: sqlite3.Connection) -> str:
    """What is wrong with a database file, the first few findings in one line; empty where it is whole."""
    try:
        found = [str(row[0]) for row in conn.execute("PRAGMA integrity_check(3)")]
    except sqlite3.DatabaseError as error:
        found = [str(error)]
    return "" if found == ["ok"] else "; ".join(line for each in found for line in each.splitlines()[:3])


def _reason(path: Path, error: sqlite3.Error) -> str:
    text = str(error)
    if "not a database" in text:
        return f"{path} is not a database; give --db another path, or move the file away"
    if "malformed" in text:
        return f"{path} is damaged ({text}); keep the file and restore a backup beside it"
    if "locked" in text or "busy" in text:
        return f"{path} is locked by another program for over {BUSY_SECONDS:.0f} s; close it and try again"
    if "readonly" in text or "unable to open" in text:
        return f"{path} cannot be written ({text}); check the folder's permissions or give --db another path"
    return f"{path}: {text}"
