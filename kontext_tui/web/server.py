"""Serves the app to a browser on this machine, and to nobody else.

Every tab is an app process of its own. Whoever reaches the page could use the queue as its owner, so it takes three
things to reach it: a connection from this machine; the server's own name in `Host` and `Origin`, so that no page of
another site can ask a browser here to open it; and a word that is made anew at each start, so that other accounts of
this machine cannot.
"""

from __future__ import annotations

import errno
import hmac
import logging
import os
import secrets
import shlex
import socket
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from aiohttp import web
from textual_serve.server import Server

from core.errors import UsageError

HOST = "127.0.0.1"
CLOSING_SECONDS = 3.0
"""How long the tabs' apps have to end once the server does."""

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def serve(database: Path | None, port: int, ready: Callable[[str], None]) -> None:
    """Serve until a signal ends it; `ready` is told the address. Raises UsageError where the port cannot be had."""
    with _listen(port) as listening:
        port = listening.getsockname()[1]
        command = [sys.executable, "-m", "kontext_tui", "tui"]
        if database is not None:
            command += ["--db", str(database.absolute())]
        # exec, so that no shell stands between an app and its server
        server = LocalServer(f"exec {shlex.join(command)}", port, ready)
        logging.basicConfig(level=logging.ERROR, format="kontext-tui: %(message)s")
        web.run_app(
            server.application(), sock=listening, print=lambda *words: None, access_log=None,
            shutdown_timeout=CLOSING_SECONDS,
        )  # fmt: skip


def _listen(port: int) -> socket.socket:
    found = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        found.bind((HOST, port))
        found.listen(16)
    except OSError as error:
        found.close()
        if error.errno == errno.EADDRINUSE:
            raise UsageError(f"port {port} is in use: name another with --port, or 0 for any that is free") from None
        raise UsageError(f"port {port} cannot be had: {os.strerror(error.errno or 0).lower()}") from None
    return found


class LocalServer(Server):
    """textual-serve's server behind a door."""

    def __init__(self, command: str, port: int, ready: Callable[[str], None]) -> None:
        page = Path(__file__).parent
        super().__init__(
            command, HOST, port, title="kontext-tui", public_url=f"http://{HOST}:{port}", templates_path=page
        )
        self.ready = ready
        self.word = secrets.token_urlsafe(24)
        self.names = {f"{name}:{port}" for name in (HOST, "localhost")}
        self.cookie = f"kontext-tui-{port}"  # cookies know no ports: two servers must not share one

    @property
    def address(self) -> str:
        return f"{self.public_url}/?word={self.word}"

    async def application(self) -> web.Application:
        app = await self._make_app()
        app.middlewares.append(self._door)
        return app

    async def on_startup(self, app: web.Application) -> None:
        """textual-serve greets here, on stdout; that is for the address alone."""
        self.ready(self.address)

    @web.middleware
    async def _door(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        origin = request.headers.get("Origin")
        if request.host not in self.names or origin not in (None, *(f"http://{name}" for name in self.names)):
            raise web.HTTPForbidden(text="kontext-tui serves this machine's own browser alone\n")
        if request.host != f"{HOST}:{self.port}":  # one name, so that the page and its socket are of one origin
            raise web.HTTPFound(f"{self.public_url}{request.path_qs}")
        given = request.query.get("word")
        if given is not None and request.path == "/" and self._knows(given):
            response = web.HTTPFound(self.public_url + "/")  # the word stays out of the browser's history
            response.set_cookie(self.cookie, self.word, httponly=True, samesite="Lax")
            raise response
        if not self._knows(request.cookies.get(self.cookie, "")):
            raise web.HTTPForbidden(text="open the address that `kontext-tui web` printed\n")
        return await handler(request)

    def _knows(self, word: str) -> bool:
        return hmac.compare_digest(word.encode("utf-8", "replace"), self.word.encode())

    async def handle_index(self, request: web.Request) -> Any:
        response = await super().handle_index(request)
        response.headers["Cache-Control"] = "no-store"
        response.headers["Content-Security-Policy"] = (
            "default-src 'self'; style-src 'self' 'unsafe-inline'; script-src 'self' 'unsafe-inline'; "
            f"img-src 'self' data:; connect-src 'self' ws://{HOST}:{self.port}; frame-ancestors 'none'"
        )
        return response
