"""`web`: the app in a browser on this machine."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from kontext_tui.cli import options as opt

HOSTS = ("127.0.0.1", "localhost")


def web(
    port: Annotated[int, typer.Option(min=0, max=65535, help="Where to listen; 0 takes any that is free.")] = 8000,
    host: Annotated[str, typer.Option(help="This machine: nothing else is served.")] = "127.0.0.1",
    db: opt.Db = None,
    quiet: opt.Quiet = False,
) -> None:
    """Open the app to a browser on this machine. It prints the address; Ctrl-C ends it, workers go on."""
    from importlib.util import find_spec

    from core.errors import UnavailableError, UsageError
    from kontext_tui.opening import check

    if host not in HOSTS:
        raise UsageError(
            f"--host {host} is refused: whoever reaches the app can use your files. It is served on 127.0.0.1 alone; "
            f"from elsewhere, `ssh -L {port or 8000}:127.0.0.1:{port or 8000}` brings it to you"
        )
    if find_spec("textual_serve") is None:
        raise UnavailableError("the app in a browser needs textual-serve: pip install 'kontext-tui[web]'")
    check(db)
    from kontext_tui.web.server import serve

    def ready(address: str) -> None:
        print(address, flush=True)
        if not quiet:
            print("open this address in a browser on this machine; Ctrl-C ends it, workers go on", file=sys.stderr)

    serve(db, port, ready)
