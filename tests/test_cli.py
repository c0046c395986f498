"""The commands as a person types them, without a model: what they print, where, and with which exit code."""

from __future__ import annotations

import json
import os
import resource
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, make_pictures, rows

from kontext_tui.__main__ import main

GOOD = "input: photos\noutput: edited\nmodel: kontext-tiny\nturns:\n  - make it night\n"


@pytest.fixture
def cli(tmp_path, monkeypatch, capsys):
    """Runs a command in a folder with three pictures and a script; returns (exit code, stdout, stderr)."""
    make_pictures(tmp_path / "photos", 3)
    (tmp_path / "edits.yaml").write_text(GOOD)
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["kontext-tui", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit_:
            main()
        out, err = capsys.readouterr()
        return int(exit_.value.code or 0), out, err

    return run


def test_help_is_quick_and_loads_nothing_heavy():
    code = (
        "import sys; sys.argv = ['kontext-tui', '--help']\n"
        "from kontext_tui.__main__ import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'textual', 'transformers', 'diffusers', 'tensorrt', 'numpy', 'sqlite_utils'}\n"
        "print(heavy & set(sys.modules), file=sys.stderr)"
    )
    spent = []
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        spent.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert done.stderr.strip() == "set()"
    assert "run" in done.stdout
    assert min(spent) < 0.3  # of a processor: what else the machine does at the time is not ours


def test_every_command_has_help(cli):
    from kontext_tui.cli import app

    for command in app.registered_commands:
        code, out, _ = cli(command.name, "--help")
        assert code == 0
        assert len(out.split("\n\n")[1].strip()) > 20, command.name


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"", "empty"),
        (b"\x00\x01\x02", "cannot stand in a script"),
        (b"a: &x 1\nb: *x\n" + GOOD.encode(), "anchor"),
        (GOOD.replace("output", "ouptut").encode(), "did you mean `output`"),
        (GOOD.replace("make it night", "no").encode(), '"no"'),
        (GOOD.encode() + b"guidance: .nan\n", "guidance"),
        (GOOD.encode() + b"steps: -4\n", "steps"),
        (GOOD.encode() + b"seed: seven\n", "seed"),
        (GOOD.replace("photos", "nowhere").encode(), "does not exist"),
        (GOOD.encode().split(b"turns")[0], "turns"),
        (GOOD.encode() + b"  - prompt: add fog\n    from: 7\n", "from"),
        (GOOD.encode() + b"model: kontext-tiny\n", "model"),
        (GOOD.encode() + b"x" * (10 << 20), "large"),
        (b"input: !!python/object/apply:os.system [true]\n", "tag"),
    ],
)
@pytest.mark.parametrize("command", ["run", "add"])
def test_a_wrong_script_is_one_line_a_problem_and_exit_code_2(cli, tmp_path, command, text, words):
    (tmp_path / "wrong.yaml").write_bytes(text)
    code, out, err = cli(command, "wrong.yaml")
    assert (code, out) == (2, "")
    assert "wrong.yaml" in err
    assert "Traceback" not in err
    assert words.lower() in err.lower()
    assert not (tmp_path / "jobs.db").exists() or rows(tmp_path / "jobs.db", "SELECT * FROM jobs") == []


def test_all_problems_of_a_script_come_at_once_with_their_places(cli, tmp_path):
    (tmp_path / "wrong.yaml").write_text("inptu: photos\nsteps: 0\nturns:\n  - add fog\n  - {prompt: x, from: 9}\n")
    code, _, err = cli("run", "wrong.yaml")
    assert code == 2
    places = [line.split("wrong.yaml:")[1].split(" ")[0] for line in err.splitlines() if "wrong.yaml:" in line]
    assert len(places) >= 3
    assert places == sorted(places)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--precision", "fp9"], 2, "fp9"),
        (["--precision", "fp8"], 4, "fp8"),
        (["--runtime", "tensorrt"], 4, "TensorRT engine"),
        (["--model", "nothing-here"], 4, "nothing-here"),
        (["--model", "kontext-dev"], 4, "kontext-dev"),
        (["--steps", "0"], 2, "steps"),
        (["--steps", "many"], 2, "steps"),
        (["--seed", "-1"], 2, "seed"),
        (["--input", "nothing"], 2, "does not exist"),
        (["--output", "x.gif"], 2, ".gif"),
        (["--db", "photos"], 3, "is a folder"),
        (["--db", "edits.yaml"], 3, "not a database"),
        (["--db", "no/such/jobs.db"], 3, "does not exist"),
    ],
)
def test_a_wrong_option_says_which_and_what_to_do(cli, arguments, code, words):
    got, out, err = cli("run", "edits.yaml", *arguments)
    assert (got, out) == (code, "")
    assert words in err
    assert "Traceback" not in err


def test_an_output_folder_that_cannot_be_is_said_before_anything_is_queued(cli, tmp_path):
    (tmp_path / "edited").write_text("a file in the way")
    code, _, err = cli("add", "edits.yaml")
    assert code == 2
    assert "file is in the way" in err
    assert rows(tmp_path / "jobs.db", "SELECT * FROM jobs") == []


def test_a_newer_queue_is_refused_untouched(cli, tmp_path):
    assert cli("add", "edits.yaml")[0] == 0
    conn = sqlite3.connect(tmp_path / "jobs.db")
    conn.execute("PRAGMA user_version = 999")
    conn.close()
    before = (tmp_path / "jobs.db").read_bytes()
    for command in (["add", "edits.yaml"], ["status"], ["list"], ["show", 1], ["work", "--drain"]):
        code, _, err = cli(*command)
        assert code == 3
        assert "999" in err
    assert (tmp_path / "jobs.db").read_bytes() == before


def test_another_programs_database_is_refused_untouched(cli, tmp_path):
    conn = sqlite3.connect(tmp_path / "photos.db")
    conn.execute("CREATE TABLE albums (name)")
    conn.commit()
    conn.close()
    before = (tmp_path / "photos.db").read_bytes()
    code, _, err = cli("add", "edits.yaml", "--db", "photos.db")
    assert code == 3
    assert "another program" in err
    assert (tmp_path / "photos.db").read_bytes() == before


def test_a_damaged_queue_is_a_line_and_exit_code_3(cli, tmp_path):
    assert cli("add", "edits.yaml")[0] == 0
    data = bytearray((tmp_path / "jobs.db").read_bytes())
    data[4096:] = os.urandom(len(data) - 4096)
    (tmp_path / "jobs.db").write_bytes(data)
    for command in ("list", "add"):
        code, _, err = cli(command, *(["edits.yaml"] if command == "add" else []))
        assert code == 3
        assert "Traceback" not in err
    assert cli("doctor")[0] == 1
    assert (tmp_path / "jobs.db").read_bytes()[4096:8192] == bytes(data[4096:8192])


def test_add_list_show_status_cancel_retry(cli):
    assert cli("add", "edits.yaml")[1].strip() == "3 queued"
    assert cli("add", "edits.yaml")[1].strip() == "0 queued, 3 in the queue already"
    assert "queued  3" in cli("status")[1]
    listed = cli("list", "--json")[1].splitlines()
    assert [json.loads(line)["job"] for line in listed] == [3, 2, 1]
    shown = json.loads(cli("show", 1, "--json")[1])
    assert set(shown) >= {"job", "input", "state", "output", "error", "turns", "story"}
    assert set(shown["turns"][0]) >= {"turn", "prompt", "seed", "steps", "step_ms", "seconds", "output", "reused"}
    assert "make it night" in cli("show", 1)[1]
    assert cli("cancel", 1)[:2] == (0, "job 1: cancelled\n")
    assert cli("cancel", 1)[0] == 1
    assert "queued again" in cli("retry", "--cancelled")[1]
    assert cli("cancel")[0] == 2
    code, _, err = cli("show", 99)
    assert code == 2
    assert "no job 99" in err


def test_the_queue_is_where_the_option_or_the_environment_says(cli, tmp_path, monkeypatch):
    monkeypatch.setenv("KONTEXT_TUI_DB", str(tmp_path / "other.db"))
    cli("add", "edits.yaml")
    assert (tmp_path / "other.db").exists()
    assert not (tmp_path / "jobs.db").exists()
    places = json.loads(cli("locate", "--json")[1])
    assert places["database"] == str(tmp_path / "other.db")
    assert set(places) == {"database", "config", "artifacts", "models"}
    assert (Path(places["models"]["kontext-tiny"]) / "model_index.json").is_file()
    assert cli("status", "--db", "none.db")[0] == 3


def test_the_schema_accepts_the_examples(cli):
    import jsonschema
    import yaml

    schema = json.loads(cli("schema")[1])
    for path in sorted((ROOT / "examples").glob("*.yaml")):
        jsonschema.validate(yaml.safe_load(path.read_text()), schema)


def test_hostile_names_and_prompts_are_only_ever_text(cli, tmp_path):
    evil = "a\x1b]0;owned\x07\x1b[2J[red]\u202eb"
    make_pictures(tmp_path / "evil", 1)
    (tmp_path / "evil" / "picture-0.png").rename(tmp_path / "evil" / f"{evil}.png")
    os.rename(  # noqa: PTH104 - bytes
        b"photos/picture-0.png", b"evil/\xff\xfe.png"
    )
    script = {"input": "evil", "model": "kontext-tiny", "turns": ["say \u202e hello [/] \u200b \u009b2J"]}
    (tmp_path / "evil.yaml").write_text(json.dumps(script), encoding="utf-8")
    assert cli("add", "evil.yaml")[0] == 0
    for command in (["list"], ["show", 1], ["show", 2], ["status"]):
        code, out, err = cli(*command)
        assert code == 0
        shown = out + err
        assert not any((ord(c) < 32 and c != "\n") or 0x7F <= ord(c) < 0xA0 or c in "\u202e\u200b" for c in shown)
    names = {json.loads(line)["input"].rsplit("/", 1)[1] for line in cli("list", "--json")[1].splitlines()}
    assert names == {f"{evil}.png", os.fsdecode(b"\xff\xfe.png")}


def test_doctor_names_what_needs_mending(cli, tmp_path):
    (tmp_path / "jobs.db").write_bytes(b"not a database at all, but long enough to look like one" * 40)
    code, out, _ = cli("doctor")
    assert code == 1
    assert any(line.startswith("!!") and "not a database" in line for line in out.splitlines())
    (tmp_path / "jobs.db").unlink()
    code, out, _ = cli("doctor", "--json")
    assert code == 0
    assert {"torch", "SQLite", "kontext-tiny", "queue"} <= {check["name"] for check in json.loads(out)}
