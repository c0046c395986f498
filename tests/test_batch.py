"""A batch as a form holds it: to YAML and back, turns that move with their branches, and what it will take."""

from __future__ import annotations

import json
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import nights
import pytest
from conftest import make_pictures
from hypothesis import given
from hypothesis import strategies as st

from core import script as scripts
from core import strict_yaml
from core.inputs import find_inputs
from core.jobs import claims, estimate
from core.jobs.database import connect
from core.script import Script
from core.script_problems import Origin
from core.script_text import write
from kontext_tui import batch
from kontext_tui.batch import Form, TurnForm
from kontext_tui.estimates import told

TRICKY = (
    "no", "Yes", "~", "null", "1984", "1e5", "16:9", "012", "0x1F", "1_000", "2026-01-01", ".5", "-", "- a", "...",
    "---", "a: b", "a #b", "#", "[x]", "{stem}.jpg", "*a", "&a", "!t", "|", ">", "'q'", '"q"', "%", "@", "`", "? x",
    "two\nlines", "a\n\n  b: c\n# d", "tab\tin", " lead", "trail ", "é 写真 🌅", "\u202eabc", "\x07", "\x85",
    "\ufeff", "\u2028", "3 cats", "12 # x", "=", "<<", "a\r\nb", "~/x", "~x", "./y/", "..", "a'b", "C:\\x",
)  # fmt: skip
text = st.one_of(st.sampled_from(TRICKY), st.text(max_size=30), st.text("ab:#-~./ {}'\"\n\t0159_", max_size=12))
number = st.one_of(st.just(""), st.integers(-3, 2**63).map(str), st.floats().map(str), text)
turns = st.builds(
    TurnForm, prompt=text, start=st.one_of(st.just(""), st.integers(0, 6).map(str), text), seed=number, steps=number,
    guidance=number, context_refresh=number,
)  # fmt: skip
forms = st.builds(
    Form,
    inputs=st.lists(text, max_size=3).map(tuple),
    output=text,
    model=st.one_of(st.just("kontext-tiny"), text),
    precision=st.sampled_from(["auto", "bf16", "fp8", "fp4", "fp4-svd"]),
    runtime=st.sampled_from(["auto", "torch", "onnx", "tensorrt"]),
    output_size=st.sampled_from(["input", "model"]),
    seed=number,
    steps=number,
    guidance=number,
    context_refresh=number,
    turns=st.lists(turns, min_size=1, max_size=6).map(tuple),
)
valid_numbers = {
    "seed": st.integers(0, 2**63 - 1),
    "steps": st.integers(1, 1000),
    "context_refresh": st.integers(1, 100),
}
plain_text = text.filter(lambda value: value.strip() and "\0" not in value)


@st.composite
def valid_forms(draw):
    """Forms without a mistake, so that the round trip is tried on scripts and not on refusals."""

    def numbers():
        found = {key: draw(st.one_of(st.just(""), each.map(str))) for key, each in valid_numbers.items()}
        guidance = draw(st.one_of(st.just(""), st.floats(0, 100).map(repr)))
        return {**found, "guidance": guidance}

    path = plain_text.filter(lambda value: not value.startswith("~"))
    prompt = plain_text
    made = [
        TurnForm(draw(prompt), draw(st.one_of(st.just(""), st.integers(0, number).map(str))), **numbers())
        for number in range(draw(st.integers(1, 6)))
    ]
    output = draw(path.filter(lambda value: not {"{", "}", "."} & set(value)))
    return replace(
        draw(forms), inputs=tuple(draw(st.lists(path, min_size=1, max_size=3))), output=output, model=draw(path),
        turns=tuple(made), **numbers(),
    )  # fmt: skip


no_nul = text.filter(lambda value: "\0" not in value)


@given(st.lists(no_nul, min_size=1), st.dictionaries(st.sampled_from(["prompt", "seed"]), no_nul, min_size=1))
def test_any_text_written_as_yaml_is_read_as_that_text(items, mapping):
    data = {"one": items[0], "many": items, "turns": [mapping, mapping], "last": 1.5}
    assert strict_yaml.load(write(data), "x").data == data


@given(forms)
def test_a_form_is_refused_or_read_never_crashed_on(tmp_path_factory, form):
    checked = batch.check(form, Path("/somewhere"))
    assert (checked.script is None) == bool(checked.problems)
    assert all(message and "\n" not in message for _, message in checked.problems)


@given(valid_forms())
def test_a_form_saved_as_yaml_loads_as_the_same_script(tmp_path_factory, form):
    """The values given to the script itself, without any YAML, are what the file says."""
    home = tmp_path_factory.getbasetemp().resolve()
    meant = Script.model_validate(batch.values(form), context=Origin(folder=home))
    checked = batch.check(form, home)
    assert checked.script is not None, checked.problems
    assert checked.script.dump() == meant.dump()
    for folder in (home, home / "scripts {x} é"):  # beside the pictures, and elsewhere
        folder.mkdir(exist_ok=True)
        file = folder / "batch.yaml"
        file.write_text(batch.save_text(form, file, home), "utf-8", newline="")
        saved = scripts.load(file)
        assert saved.dump() == meant.dump()
        again = batch.from_script(saved, home)
        assert batch.check(again, home).script.dump() == meant.dump()
        assert batch.from_state(json.loads(json.dumps(batch.to_state(again)))) == again


def test_a_script_reads_as_a_person_would_have_written_it(tmp_path):
    form = Form(
        inputs=("photos/",),
        model="kontext-tiny",
        seed="7",
        turns=(
            TurnForm("Make it a sunset"),
            TurnForm("Remove all the people in this image", seed="11", steps="20"),
            TurnForm('Replace the sign\'s text: "OPEN" becomes "CLOSED".\nKeep everything else.', start="1"),
            TurnForm("no"),
        ),
    )
    assert batch.save_text(form, tmp_path / "x.yaml", tmp_path) == (
        "input: photos/\n"
        "output: edited\n"
        "model: kontext-tiny\n"
        "seed: 7\n"
        "turns:\n"
        "  - Make it a sunset\n"
        "  - prompt: Remove all the people in this image\n"
        "    seed: 11\n"
        "    steps: 20\n"
        "  - prompt: |-\n"
        '      Replace the sign\'s text: "OPEN" becomes "CLOSED".\n'
        "      Keep everything else.\n"
        "    from: 1\n"
        '  - "no"\n'
    )


def test_every_mistake_is_told_in_the_scripts_words_beside_its_field():
    form = Form(
        inputs=(), output="x.gif", steps="many", turns=(TurnForm(""), TurnForm("a", start="2", seed="-1", steps="0"))
    )
    problems = dict(batch.check(form, Path("/x")).problems)
    assert list(problems) == ["input", "output", "steps", "turns.0", "turns.1.seed", "turns.1.steps", "turns.1.from"]
    assert problems["steps"] == "steps must be a whole number from 1 to 1000, found 'many'"
    assert problems["turns.1.from"] == "turn 2: from must be 0 (the input) to 1, found 2"
    assert problems["input"].startswith("input is missing")


def starts(form: Form) -> list[tuple[str, str]]:
    return [(turn.prompt, turn.start) for turn in form.turns]


def test_branches_stay_with_their_turns_when_turns_move_come_and_go():
    form = Form(turns=(TurnForm("a"), TurnForm("b"), TurnForm("c", start="1"), TurnForm("d", start="2")))
    assert starts(batch.add_turn(form, 0)) == [("a", ""), ("", ""), ("b", ""), ("c", "1"), ("d", "3")]
    assert starts(batch.move_turn(form, 1, 1)) == [("a", ""), ("c", "1"), ("b", ""), ("d", "3")]
    assert batch.move_turn(form, 0, -1) == form
    assert starts(batch.remove_turn(form, 1)) == [("a", ""), ("c", "1"), ("d", "1")]  # b came from a
    assert starts(batch.remove_turn(form, 0)) == [("b", ""), ("c", "0"), ("d", "1")]
    assert starts(batch.copy_turn(form, 1)) == [("a", ""), ("b", ""), ("b", "1"), ("c", "1"), ("d", "2")]
    assert batch.remove_turn(Form(turns=(TurnForm("a"),)), 0).turns == (TurnForm(),)


@given(forms, st.integers(0, 5), st.sampled_from(["add", "copy", "remove", "up", "down"]))
def test_no_change_of_turns_loses_another_turn(form, at, how):
    index = at % len(form.turns)
    changed = {
        "add": batch.add_turn,
        "copy": batch.copy_turn,
        "remove": batch.remove_turn,
        "up": lambda form, index: batch.move_turn(form, index, -1),
        "down": lambda form, index: batch.move_turn(form, index, 1),
    }[how](form, index)
    before = sorted(turn.prompt for at, turn in enumerate(form.turns) if at != index)
    kept = sorted(turn.prompt for turn in changed.turns)
    for prompt in before:
        kept.remove(prompt)
    expected = {"add": 2, "copy": 2, "remove": 1 if len(form.turns) == 1 else 0, "up": 1, "down": 1}[how]
    assert len(kept) == expected


@pytest.fixture
def script(tmp_path: Path) -> Path:
    make_pictures(tmp_path / "photos", 3)
    path = tmp_path / "x.yaml"
    path.write_text(
        "input: photos\nmodel: kontext-tiny\nsteps: 5\nturns:\n  - Make it a sunset\n  - prompt: b\n    steps: 10\n"
    )
    return path


@pytest.mark.parametrize("name", ["photos", "a [b]?", "sur\udcffrogate", "\udcff[x]*", "-x", "~x", "new\nline"])
def test_a_folder_that_is_picked_is_found_whatever_its_name(tmp_path, name):
    make_pictures(tmp_path / "at" / name / "below", 2)
    text = batch.picked(tmp_path / "at" / name, tmp_path)
    checked = batch.check(Form(inputs=(text,), model="kontext-tiny", turns=(TurnForm("a"),)), tmp_path)
    assert [found.path.parent for found in find_inputs(checked.script)] == [tmp_path / "at" / name / "below"] * 2


class TestEstimate:
    def test_what_was_never_measured_is_unknown(self, script, tmp_path):
        prospect = estimate.look(scripts.load(script))
        assert (prospect.pictures, prospect.turns, prospect.steps) == (3, 6, 45)
        assert prospect.weight_bytes > 20 << 20
        with closing(connect(tmp_path / "jobs.db")) as conn:
            found = estimate.measured(conn, prospect)
        assert found is None
        lines = told(prospect, found)
        assert lines[0] == "3 pictures, 2 turns each: 45 steps"
        assert lines[1].startswith("time unknown")
        assert "the weights alone" in lines[2]

    def test_turns_made_here_tell_the_time_of_their_own_kind_alone(self, script, tmp_path):
        with closing(connect(tmp_path / "jobs.db")) as conn:
            nights.add(conn, tmp_path, ["a.jpg", "b.jpg"])
            nights.work(conn, claims.register_worker(conn, "cpu", "0"), step_ms=400.0)
            prospect = estimate.look(scripts.load(script))
            assert estimate.measured(conn, prospect) is None  # those were fp8
            conn.execute("UPDATE turns SET precision = 'fp32', peak_bytes = 700000000")
            found = estimate.measured(conn, prospect)
            assert found == estimate.Measured(1, pytest.approx(0.4), 700_000_000)
            faster = estimate.look(scripts.load(script, {"context_refresh": 4}))
            assert estimate.measured(conn, faster) is None  # steps of another kind
            conn.execute("UPDATE turns SET context_refresh = 4")
            assert estimate.measured(conn, faster) == found
            assert estimate.measured(conn, prospect) is None
            conn.execute("UPDATE turns SET context_refresh = 1")
            other = estimate.look(scripts.load(script, {"model": "kontext-dev"}))
            assert estimate.measured(conn, other) is None
            assert "kontext-dev is not on this machine" in told(other, None)[-1]
        assert told(prospect, found)[1].startswith("about 18s for one worker (400 ms a step, from 1 turn made here")

    def test_a_search_can_be_ended(self, script, tmp_path):
        class EnoughError(Exception):
            pass

        def stop(folder: Path) -> None:
            raise EnoughError(folder)

        with pytest.raises(EnoughError, match="photos"):
            estimate.look(scripts.load(script), stop)
