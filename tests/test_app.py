"""The app's shell: modes, help, quitting, errors as toasts, the state that survives, and what it never imports."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from conftest import ROOT
from watching import toasts, until

from core.errors import UsageError
from core.jobs import claims
from core.jobs.database import connect
from kontext_tui import settings as config
from kontext_tui.app import KontextApp
from kontext_tui.settings import Settings


@pytest.fixture
def database(tmp_path: Path) -> Path:
    path = tmp_path / "jobs.db"
    connect(path).close()
    return path


def app_over(database: Path, **given: object) -> KontextApp:
    return KontextApp(database, Settings(**{"theme": "kontext", **given}))  # type: ignore[arg-type]


async def test_quitting_says_how_many_workers_go_on(database):
    with closing(connect(database)) as conn:
        claims.register_worker(conn, "cpu", "0")
    app = app_over(database)
    async with app.run_test() as pilot:
        await pilot.press("q")
    assert app.return_value == "workers go on: 1 (cpu)"


async def test_help_names_the_keys_and_escape_leaves_it(database):
    app = app_over(database)
    async with app.run_test() as pilot:
        await pilot.press("question_mark")
        await until(pilot, lambda: "Leave; workers go on" in str(getattr(app.screen, "keys", "")))
        await pilot.press("escape")
        await until(pilot, lambda: not app.screen.is_modal)


async def test_an_error_that_a_user_can_mend_is_a_toast_and_the_app_goes_on(database):
    def refuse(conn):
        raise UsageError("no such [bold]thing[/] \x1b[31m")

    app = app_over(database)
    async with app.run_test(notifications=True) as pilot:
        app.run_worker(app.write(refuse))
        await until(pilot, lambda: toasts(app) == ["no such [bold]thing[/] \\x1b[31m"])
        assert app.is_running


async def test_a_commit_of_another_process_is_told_to_the_screen(database):
    app = app_over(database)
    seen = []
    async with app.run_test(message_hook=lambda message: seen.append(type(message).__name__)) as pilot:
        await until(pilot, lambda: app.feed._version is not None)  # what was there before is known
        seen.clear()
        with closing(connect(database)) as conn:
            claims.register_worker(conn, "cpu", "0")
        await until(pilot, lambda: "Changed" in seen)


async def test_a_locked_database_is_waited_for_and_the_loop_stays_live(database):
    app = app_over(database)
    with closing(connect(database)) as other:
        async with app.run_test(notifications=True) as pilot:
            other.execute("BEGIN EXCLUSIVE")
            writing = asyncio.ensure_future(app.write(claims.register_worker, "cpu", "0"))
            began = asyncio.get_running_loop().time()
            await pilot.press("question_mark")
            assert asyncio.get_running_loop().time() - began < 2
            assert not writing.done()
            other.execute("COMMIT")
            assert await writing == 1


async def test_the_state_is_kept_for_each_queue(database, tmp_path):
    app = app_over(database)
    async with app.run_test():
        app.state["thing"] = "kept \udcff"
    assert config.load_state(database)["thing"] == "kept \udcff"
    assert config.load_state(tmp_path / "other.db") == {}
    config.state_file().write_text("{broken")
    assert config.load_state(database) == {}


def test_a_wrong_configuration_is_told_whole(tmp_path):
    path = tmp_path / "config.toml"
    path.write_text('them = "x"\nworkers = "yes"\nimages = "ascii"\ntheme = "nordd"\n[keys]\n"queue.cancel" = 3\n')
    with pytest.raises(UsageError) as caught:
        config.load(path)
    told = str(caught.value).splitlines()
    assert len(told) == 5
    assert "did you mean 'theme'?" in told[0]
    assert "did you mean 'nord'?" in told[3]
    path.write_text('theme = "nord"\nworkers = true\n[keys]\n"queue.cancel" = "x"\n')
    assert config.load(path) == Settings(theme="nord", workers=True, keys={"queue.cancel": "x"})
    assert config.load(tmp_path / "none.toml") == Settings()


def test_without_a_terminal_the_bare_command_prints_its_help():
    done = subprocess.run([sys.executable, "-m", "kontext_tui"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0
    assert "Usage: kontext-tui" in done.stdout


def test_torch_is_never_in_the_apps_process(database):
    code = (
        "import asyncio, sys\n"
        "from pathlib import Path\n"
        "from kontext_tui.app import KontextApp\n"
        "from kontext_tui.settings import Settings\n"
        "async def main():\n"
        "    app = KontextApp(Path(sys.argv[1]), Settings())\n"
        "    async with app.run_test() as pilot:\n"
        "        for mode in app.MODES:\n"
        "            app.action_mode(mode)\n"
        "            await pilot.pause(0.3)\n"
        "asyncio.run(main())\n"
        "print(sorted({'torch', 'diffusers', 'transformers', 'tensorrt', 'onnx'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(database)], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr
