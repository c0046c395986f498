"""The app in a browser: what Chromium shows and does, who is turned away, and what is said of what cannot be."""

from __future__ import annotations

import asyncio
import io
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import browser
import nights
import psutil
import pyte
import pytest
from conftest import ROOT, rows
from PIL import Image

from core.jobs import claims
from core.jobs.database import connect

aiohttp = pytest.importorskip("aiohttp", reason="the extra is not installed: pip install 'kontext-tui[web]'")
pytest.importorskip("textual_serve", reason="the extra is not installed: pip install 'kontext-tui[web]'")


@pytest.fixture
def database(tmp_path: Path) -> Path:
    path = tmp_path / "jobs.db"
    with closing(connect(path)) as conn:
        nights.add(conn, tmp_path, [f"IMG_{index:04}.jpg" for index in range(30)])
        nights.work(conn, claims.register_worker(conn, "cpu", "0"))
        conn.execute("UPDATE workers SET stopped_at = 1")
        output = tmp_path / "result.png"
        image = Image.new("RGB", (200, 150), (255, 0, 0))
        image.paste((0, 255, 0), (100, 0, 200, 150))
        image.save(output)
        conn.execute("UPDATE turns SET output_path = ?, output_sha256 = NULL WHERE state = 'done'", (str(output),))
        conn.execute("UPDATE jobs SET input_path = ?", (str(output),))
    return path


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "kontext_tui", "web", *map(str, arguments)]


@asynccontextmanager
async def served(database: Path) -> Any:
    """The server's process and the address it printed."""
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        *command("--port", 0, "--db", database), cwd=ROOT, stdout=pipe, stderr=pipe
    )
    try:
        address = (await asyncio.wait_for(process.stdout.readline(), 30)).decode().strip()
        assert address.startswith("http://127.0.0.1:"), (await process.stderr.read()).decode()
        yield process, address
    finally:
        if process.returncode is None:
            process.terminate()
        await asyncio.wait_for(process.wait(), 30)


async def until(condition: Callable[[], Any], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "what was waited for never came"
        await asyncio.sleep(0.05)


class TestInChromium:
    pytestmark = pytest.mark.skipif(
        browser.find() is None, reason="no Chromium on this machine: apt-get install chromium"
    )

    async def test_the_app_is_seen_and_used(self, database, tmp_path):
        async with served(database) as (server, address), browser.page(tmp_path / "profile") as page:
            await page.go(address)

            def text() -> str:
                screen = pyte.Screen(200, 60)
                pyte.ByteStream(screen).feed(bytes(page.received))
                return "\n".join(line.rstrip() for line in screen.display)

            await until(lambda: "IMG_0001.jpg" in text() and "1 Queue" in text())
            assert "word=" not in await page.ask("location.href")
            await page.click(600, 500)
            await page.press("p")
            await until(lambda: rows(database, "SELECT value FROM settings WHERE key = 'paused'") == [("by hand",)])
            await until(lambda: "paused: by hand" in text())
            await page.press("2")
            await until(lambda: "▀" in text() or "▄" in text())  # pictures are half blocks
            await asyncio.sleep(0.5)
            picture = Image.open(io.BytesIO(await page.picture())).convert("RGB")
            if kept := os.environ.get("KONTEXT_TUI_KEEP_SCREENSHOT"):
                picture.save(kept)
            counted = {colour: count for count, colour in picture.getcolors(1 << 24)}
            assert len(counted) > 50  # letters with their smooth edges
            red = sum(count for (r, g, b), count in counted.items() if r > 200 and g < 60 and b < 60)
            green = sum(count for (r, g, b), count in counted.items() if g > 200 and r < 60 and b < 60)
            assert min(red, green) > 5_000  # the result, in its colours
            assert page.errors == []
            assert {url.split("/")[2] for url in page.requests if url.startswith("http")} == {address.split("/")[2]}
            children = psutil.Process(server.pid).children(recursive=True)
            assert children
        await until(lambda: not any(child.is_running() and child.status() != "zombie" for child in children))

    async def test_a_page_of_another_site_gets_nowhere(self, database, tmp_path):
        """Its script may open a socket to this machine: only the server can turn it away."""
        other = await asyncio.start_server(_say_hello, "127.0.0.1", 0)
        async with other, served(database) as (_, address), browser.page(tmp_path / "profile") as page:
            await page.go(address)
            await until(lambda: b"IMG_0001" in page.received)
            own = address.split("/")[2]
            await page.go(f"http://127.0.0.1:{other.sockets[0].getsockname()[1]}/")
            await until(lambda: any(url.endswith("/") and own not in url for url in page.requests))
            await asyncio.sleep(0.5)
            opened = await page.ask(
                f"new Promise(done => {{ const s = new WebSocket('ws://{own}/ws');"
                " s.onopen = () => done('open'); s.onerror = () => done('refused') })"
            )
            assert opened == "refused"


async def _say_hello(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello")
    await writer.drain()
    writer.close()


class TestTheDoor:
    async def test_only_who_knows_the_word_and_asks_this_machine_gets_in(self, database):
        async with served(database) as (_, address):
            root = address.split("?")[0]
            own = root.split("/")[2]
            async with aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar()) as session:

                async def status(url: str, **headers: str) -> int:
                    async with session.get(url, headers=headers, allow_redirects=False) as answer:
                        return answer.status

                assert await status(root) == 403
                assert await status(root + "?word=guessed") == 403
                assert await status(root + "?word=%00%ff") == 403
                assert await status(root + "static/js/textual.js") == 403
                assert await status(root + "ws") == 403
                assert await status(address, Host="evil.example:80") == 403  # a name that points to 127.0.0.1
                assert await status(address, Origin="http://evil.example") == 403
                assert await status(address, Origin="null") == 403
                async with session.get(address, allow_redirects=False) as answer:
                    assert answer.status == 302
                    cookie = answer.headers["Set-Cookie"]
                    assert "HttpOnly" in cookie
                kept = cookie.split(";")[0]
                async with session.get(root, headers={"Cookie": kept}) as answer:
                    assert answer.status == 200
                    page = await answer.text()
                    assert "frame-ancestors 'none'" in answer.headers["Content-Security-Policy"]
                assert f"ws://{own}/ws" in page
                assert "googleapis" not in page
                assert await status(root, Cookie=kept, Origin="http://evil.example") == 403
                assert await status(root, Cookie=kept, Host="evil.example") == 403
                assert await status(root.replace("127.0.0.1", "localhost"), Cookie=kept) == 302

    async def test_it_listens_on_this_machine_alone(self, database):
        async with served(database) as (process, address):
            port = int(address.split(":")[2].split("/")[0])
            found = [each for each in psutil.Process(process.pid).net_connections("inet") if each.status == "LISTEN"]
            assert [(each.laddr.ip, each.laddr.port) for each in found] == [("127.0.0.1", port)]

    async def test_an_app_ends_with_its_server_however_that_ends(self, database):
        jar = aiohttp.CookieJar(unsafe=True)  # which keeps those of addresses too
        async with served(database) as (process, address), aiohttp.ClientSession(cookie_jar=jar) as session:
            root = address.split("?")[0]
            async with session.get(address) as answer:
                assert answer.status == 200
            async with session.ws_connect(f"{root}ws?width=100&height=30") as tab:
                received = b""
                while b"IMG_0001" not in received:
                    received += (await asyncio.wait_for(tab.receive(), 30)).data
                apps = psutil.Process(process.pid).children(recursive=True)
                assert apps
                process.send_signal(signal.SIGKILL)
                await until(lambda: not any(each.is_running() and each.status() != "zombie" for each in apps))


@pytest.mark.parametrize(
    ("given", "code", "words"),
    [
        (["--host", "0.0.0.0"], 2, "--host 0.0.0.0 is refused"),
        (["--host", "192.168.1.2"], 2, "`ssh -L 8000:127.0.0.1:8000` brings it to you"),
        (["--db", "no/such.db"], 3, "no/such.db does not exist"),
    ],
)
async def test_what_cannot_be_served_is_one_line(tmp_path, given, code, words):
    found, text = await said(tmp_path, *given)
    assert found == code
    assert words in text


async def test_a_port_in_use_is_one_line(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        connect(tmp_path / "jobs.db").close()
        code, text = await said(tmp_path, "--port", port)
    assert code == 2
    assert text == f"kontext-tui: port {port} is in use: name another with --port, or 0 for any that is free\n"


async def test_a_missing_extra_is_one_line(tmp_path):
    connect(tmp_path / "jobs.db").close()
    (tmp_path / "hide.py").write_text(
        "import importlib.util as u, sys\n"
        "find = u.find_spec\n"
        "u.find_spec = lambda name, *rest: None if name == 'textual_serve' else find(name, *rest)\n"
        "from kontext_tui.__main__ import main\n"
        "sys.argv = ['kontext-tui', 'web']\n"
        "main()\n"
    )
    pipe = asyncio.subprocess.PIPE
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "hide.py", cwd=tmp_path, stdout=pipe, stderr=pipe, env=env
    )
    out, error = await asyncio.wait_for(process.communicate(), 30)
    assert process.returncode == 4
    assert out == b""
    assert error == (b"kontext-tui: the app in a browser needs textual-serve: pip install 'kontext-tui[web]'\n")


async def said(folder: Path, *arguments: object) -> tuple[int, str]:
    """Exit code and stderr of `web` with these arguments."""
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        *command(*arguments), cwd=folder, stdout=pipe, stderr=pipe, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    out, error = await asyncio.wait_for(process.communicate(), 30)
    assert out == b""
    return process.returncode, error.decode()
