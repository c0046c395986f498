"""Slow calls that may never return, such as reads of a drive that is gone: they keep no one from closing the app."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

T = TypeVar("T")


async def in_daemon(call: Callable[[], T]) -> T:
    """What `call()` returns or raises, from a thread of its own that ends with the process."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(set_it: Callable[[object], None], value: object) -> None:
        if not future.done():  # given up meanwhile
            set_it(value)

    def run() -> None:
        try:
            found: tuple[Callable[..., None], object] = (future.set_result, call())
        except BaseException as error:
            found = (future.set_exception, error)
        with suppress(RuntimeError):  # the app is closed
            loop.call_soon_threadsafe(settle, *found)

    threading.Thread(target=run, daemon=True).start()
    return await future
