"""The app in a real terminal: hostile text, few colours, a small window, tmux, and a process that is killed."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import nights
import pytest
from conftest import ROOT, make_pictures, rows
from terminal import XTERM, Terminal, app_command
from test_queue import enqueue
from test_terminal_text import EVIL

from core.jobs import claims, control, review
from core.jobs.database import connect
from core.jobs.queue import NewTurn
from core.jobs.results import Pick
from core.jobs.review import Change

OURS = re.compile(
    rb"\x1b(?:"
    rb"\[[0-9;:]*[mHJKABCDG]"  # colours, the cursor's place, wiping
    rb"|\[\?(?:25|1000|1002|1003|1004|1006|1015|1016|1049|2004|2026|2048|7)[hl]"  # what a full screen switches
    rb"|\[\?(?:2026|2048)\$p"  # asking for synchronized output and in-band resizes
    rb"|\[[>=<]\d*(?:;\d+)?u|\[\?u"  # Kitty's keys
    rb"|[78]|\]22;[a-z-]*(?:\x1b\\|\x07)|P\$q|\[c|_Gi=31,s=1,v=1,a=q,t=d,f=24;AAAA\x1b\\|\[>\d*q|\[\?\d+n|\[\d*n|\[14t|\[16t"
    rb")"
)
"""Every sequence that Textual itself writes."""
COLOURS = re.compile(rb"\x1b\[([0-9;:]*)m")


def environment(**given: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "COLORTERM", "TMUX")}
    return {**kept, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", **given}


@contextmanager
def app(
    folder: Path, *, size: tuple[int, int] = (120, 40), term: str = "xterm-256color", **env: str
) -> Iterator[Terminal]:
    given = environment(**{"COLORTERM": "truecolor", **env})
    terminal = Terminal(app_command(), size=size, folder=folder, env=given, term=term, answers=XTERM)
    try:
        yield terminal
    finally:
        terminal.close()


def colours(output: bytes) -> tuple[set[int], set[int], set[tuple[int, ...]]]:
    """The colours that were asked for: of 16 by code, of 256 by number, of all by red, green and blue."""
    few: set[int] = set()
    middle: set[int] = set()
    many: set[tuple[int, ...]] = set()
    for found in COLOURS.findall(output):
        codes = iter([int(part or 0) for part in re.split(rb"[;:]", found)])
        for code in codes:
            if code in (38, 48):
                if next(codes) == 5:
                    middle.add(next(codes))
                else:
                    many.add((next(codes), next(codes), next(codes)))
            elif 30 <= code <= 37 or 40 <= code <= 47 or 90 <= code <= 107:
                few.add(code)
    return few, middle, many


def is_grey(colour: tuple[int, ...]) -> bool:
    return max(colour) - min(colour) <= 2


def press(terminal: Terminal, keys: str, seconds: float = 0.4) -> None:
    """Send keys, and read for a while whatever they lead to."""
    terminal.send(keys)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        terminal.read(0.1)


def leave(terminal: Terminal) -> None:
    terminal.send("q")
    assert terminal.wait() == 0
    assert terminal.cooked()


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    """A queue of names and prompts that want to be obeyed: waiting, at work, dead, done and redone."""
    make_pictures(tmp_path / "photos", 2)
    os.rename(tmp_path / "photos" / "picture-0.png", tmp_path / "photos" / f"{EVIL}.png")  # noqa: PTH104
    subprocess_env = environment(KONTEXT_TEST_LOG=str(tmp_path / "log"))
    with closing(connect(tmp_path / "jobs.db")) as conn:
        enqueue(conn, tmp_path, turns=[EVIL], seed=3)
        worker = [sys.executable, ROOT / "tests" / "fast_worker.py", tmp_path / "jobs.db", tmp_path / "log"]
        subprocess.run(worker, check=True, env=subprocess_env)
        review.redo(conn, Pick(1, 1), Change(prompt=EVIL + "!"))
        nights.add(conn, tmp_path, [EVIL, *nights.HOSTILE], (NewTurn(1, 0, EVIL, 7, 28, 2.5),))
        worker_id = claims.register_worker(conn, EVIL, "0")
        claims.fail_job(conn, claims.claim(conn, worker_id), "input", EVIL)
        nights.work(conn, worker_id, stop_at=3)
        control.pause(conn, EVIL)
    return tmp_path


def foreign(output: bytes) -> str:
    """What is left of the output when all that Textual writes by itself is taken away."""
    return OURS.sub(b"", output).decode("utf-8", "replace")


def test_hostile_text_is_only_text_on_every_screen(hostile):
    with app(hostile, size=(140, 45)) as terminal:
        terminal.wait_for("owned")
        for keys in ("jjjj", "?", "\x1b", "\r", "\x1b", "/owned", "\r", "*", "h", "h", "\x1b", "\x1b", "e", "\x1b"):
            press(terminal, keys)
        terminal.send("2")
        terminal.wait_for("undecided")
        for key in (*"ll  ddi", "\x1b", "e", "\x1b", "b", "\x1b", *"aE", "\x1b", "?", "\x1b"):
            press(terminal, key)
        leave(terminal)
        text = foreign(bytes(terminal.output))
    odd = text.find("\x1b")
    assert odd < 0, ascii(text[max(0, odd - 60) : odd + 60])
    assert "owned" in text
    assert "[@click=app.quit]" in text  # it was there, and no markup was taken for markup
    assert not set(text) & {"\x07", "\x9b", "\u202e", "\u200b", "\udcff", "\x00", "\x08"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A queue with a job at work, one that is done, and some that wait."""
    with closing(connect(tmp_path / "jobs.db")) as conn:
        nights.add(conn, tmp_path, [f"IMG_{index:04}.jpg" for index in range(9)])
        worker = claims.register_worker(conn, "cpu", "0")
        nights.work(conn, worker)
        nights.work(conn, worker, stop_at=5)
    return tmp_path


@pytest.mark.parametrize(
    ("term", "env", "kind"),
    [
        ("xterm-256color", {}, "many"),
        ("xterm-256color", {"COLORTERM": ""}, "middle"),
        ("xterm-16color", {"COLORTERM": ""}, "few"),
        ("linux", {"COLORTERM": ""}, "few"),
        ("xterm-256color", {"NO_COLOR": "1"}, "grey"),
    ],
)
def test_as_many_colours_as_the_terminal_has(folder, term, env, kind):
    with app(folder, term=term, **env) as terminal:
        terminal.wait_for("IMG_0001.jpg")
        press(terminal, "jj?")
        press(terminal, "\x1b")
        terminal.wait_for("turn 1/1")
        leave(terminal)
        few, middle, many = colours(bytes(terminal.output))
    assert (bool(few), bool(middle), bool(many)) == (kind == "few", kind == "middle", kind in ("many", "grey"))
    assert all(map(is_grey, many)) == (kind != "many")


def test_everything_has_its_place_in_80_columns_and_24_lines(folder):
    with app(folder, size=(80, 24)) as terminal:
        terminal.wait_for("IMG_0008.jpg")
        terminal.wait_for("5/28")
        for part in ("1 Queue", "2 Review", "running 1", "cpu", "p50 430", "Filter", "? Help"):
            terminal.wait_for(part)
        terminal.send("\r")
        terminal.wait_for("esc closes")
        terminal.send("\x1b")
        terminal.wait_for("Filter")
        terminal.send("2")
        terminal.wait_for("1.1 IMG_0000.jpg")
        terminal.wait_for("a Accept")
        leave(terminal)


def test_killed_it_loses_nothing_and_opens_again_where_others_have_written(folder):
    with app(folder) as terminal:
        terminal.wait_for("IMG_0001.jpg")
        terminal.send("jh")
        terminal.wait_for("held 1")
        with closing(connect(folder / "jobs.db")) as conn:
            control.cancel(conn, [5])
            nights.add(conn, folder, ["late.jpg"])
        terminal.wait_for("late.jpg")  # what another process wrote, seen without a key
        terminal.wait_for("cancelled 1")
        terminal.send("/late")
        os.kill(terminal.pid, signal.SIGKILL)
        assert terminal.wait() == -signal.SIGKILL
    states = "SELECT state, count(*) FROM jobs GROUP BY state ORDER BY state"
    expected = [("cancelled", 1), ("done", 1), ("held", 1), ("queued", 6), ("running", 1)]
    assert rows(folder / "jobs.db", states) == expected
    assert rows(folder / "jobs.db", "PRAGMA integrity_check") == [("ok",)]
    with app(folder) as terminal:
        terminal.wait_for("late.jpg")
        terminal.wait_for("held 1")
        leave(terminal)
    assert rows(folder / "jobs.db", states) == expected


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_leaves_the_terminal_as_it_was(folder, number):
    with app(folder) as terminal:
        terminal.wait_for("IMG_0001.jpg")
        os.kill(terminal.pid, number)
        assert terminal.wait() == 0
        assert terminal.cooked()
        assert b"\x1b[?1049l" in terminal.output


@pytest.mark.skipif(shutil.which("tmux") is None, reason="tmux is not installed")
def test_under_tmux_with_keys_and_mouse_and_another_size(folder):
    socket = folder / "tmux"

    def tmux(*words: str) -> str:
        command = ["tmux", "-S", str(socket), "-f", "/dev/null", *words]
        return subprocess.run(command, capture_output=True, text=True, check=True, env=environment()).stdout

    def wait_for(what: str) -> str:
        end = time.monotonic() + 30
        while what not in (text := tmux("capture-pane", "-p", "-t", "app")):
            assert time.monotonic() < end, f"{what!r} never came; the screen:\n{text}"
            time.sleep(0.1)
        return text

    start = f"cd {folder} && {sys.executable} -m kontext_tui; echo closed; sleep 60"
    tmux("new-session", "-d", "-s", "app", "-x", "120", "-y", "40", start)
    try:
        wait_for("IMG_0008.jpg")
        tmux("send-keys", "-t", "app", "j", "h")
        wait_for("held 1")
        tmux("send-keys", "-t", "app", "-l", "\x1b[<0;23;1M\x1b[<0;23;1m")  # a click on 2 Review
        wait_for("1.1 IMG_0000.jpg")
        tmux("send-keys", "-t", "app", "1")
        tmux("resize-window", "-t", "app", "-x", "80", "-y", "24")
        text = wait_for("p50 430")
        assert max(map(len, text.splitlines())) <= 80
        tmux("send-keys", "-t", "app", "q")
        wait_for("closed")
    finally:
        tmux("kill-server")
    assert rows(folder / "jobs.db", "SELECT count(*) FROM jobs WHERE state = 'held'") == [(1,)]
