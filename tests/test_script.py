"""The edit script: what it means, and what it says to whoever wrote it wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from core.errors import ExitCode, ScriptError
from core.script import Script, Turn, json_schema, load, parse
from core.strict_yaml import MAX_BYTES

FOLDER = Path("/home/ana/trip")
HEAD = "input: photos/\nturns:\n"
EXAMPLE = """\
input: photos/
output: edited/
model: kontext-dev
precision: fp8
seed: 7
steps: 28
guidance: 2.5
turns:
  - Make it a sunset
  - prompt: Remove all the people in this image
    seed: 11
    steps: 20
  - prompt: Make it a watercolour painting
    from: 1
"""


def script(text: str | bytes, **overrides: object) -> Script:
    return parse(text, file="e.yaml", folder=FOLDER, overrides=overrides)


def complaints(text: str | bytes, **overrides: object) -> list[str]:
    with pytest.raises(ScriptError) as caught:
        script(text, **overrides)
    return str(caught.value).splitlines()


def test_the_example_is_read_as_typed_data() -> None:
    found = script(EXAMPLE)
    assert found.input == ("/home/ana/trip/photos/",)
    assert (found.model, found.precision, found.runtime) == ("kontext-dev", "fp8", "auto")
    assert (found.seed, found.steps, found.guidance) == (7, 28, 2.5)
    sunset, people, watercolour = found.turns
    assert sunset.prompt == "Make it a sunset"
    assert (people.seed, people.steps, people.guidance) == (11, 20, None)
    assert watercolour.prompt == "Make it a watercolour painting"


def test_a_turn_starts_from_the_previous_one_unless_it_names_another() -> None:
    assert [turn.from_turn for turn in script(EXAMPLE).turns] == [0, 1, 1]


def test_turns_know_their_numbers() -> None:
    assert [turn.number for turn in script(EXAMPLE).turns] == [1, 2, 3]


def test_a_turn_may_look_at_its_picture_more_or_less_often_than_the_script_says() -> None:
    turns = "  - a\n  - prompt: b\n    context_refresh: 1\n"
    found = script(HEAD.replace("turns:", "context_refresh: 4\nturns:") + turns)
    assert [found.refresh_of(turn) for turn in found.turns] == [4, 1]
    assert found.most_refresh == 4
    assert script(HEAD + "  - x\n").most_refresh == 1
    assert complaints(f"{HEAD}  - prompt: x\n    context_refresh: 0\n") == [
        "e.yaml:4:22: turn 1: context_refresh must be a whole number from 1 (exact) to 100, found 0"
    ]


def test_what_is_left_out_takes_its_default() -> None:
    found = script(HEAD + "  - x\n")
    assert found.output == "/home/ana/trip/edited"
    assert (found.model, found.precision, found.output_size) == ("kontext-dev", "auto", "input")
    assert (found.seed, found.steps, found.guidance) == (None, None, None)


@pytest.mark.parametrize(
    ("written", "prompt"),
    [
        ("  - 16:9 crop", "16:9 crop"),
        ("  - 16:9", "16:9"),
        ("  - 2026-01-01", "2026-01-01"),
        ('  - "no"', "no"),
        ("  - 'null'", "null"),
        ("  - |\n    Two\n    lines\n", "Two\nlines"),
        ('  - "  padded  "', "padded"),
        ("  - Zürich in 日本 with 🌅", "Zürich in 日本 with 🌅"),
        ("  - " + "x" * 4000, "x" * 4000),
    ],
)
def test_prompts_are_the_text_that_was_written(written: str, prompt: str) -> None:
    assert script(HEAD + written).turns[0].prompt == prompt


@pytest.mark.parametrize(
    ("word", "place"),
    [(w, "3:5") for w in ("no", "Yes", "on", "OFF", "y", "true", "null", "~", "12", "1e3", "012", ".5", ".nan")],
)
def test_a_prompt_that_yaml_would_not_leave_text_must_be_quoted(word: str, place: str) -> None:
    assert complaints(f"{HEAD}  - {word}\n") == [f'e.yaml:{place}: turn 1 must be text: write it in quotes: "{word}"']


def test_a_wrong_script_ends_the_command_with_code_2() -> None:
    assert ScriptError([]).exit_code is ExitCode.USAGE


WRONG_TURNS = [
    ("  - prompt: no", "3:13", 'turn 1: prompt must be text: write it in quotes: "no"'),
    ("  -", "3:4", "turn 1 has no value"),
    ("  - prompt:", "3:12", "turn 1: prompt has no value"),
    ("  - ''", "3:5", "turn 1: prompt must be text of 1 to 4,000 characters, found ''"),
    ('  - " \\t "', "3:5", "turn 1: prompt must be text"),
    ("  - " + "x" * 4001, "3:5", "(4,001 characters)"),
    ("  - [a, b]", "3:5", "turn 1 must be a prompt, or keys such as prompt and steps, found a list of 2"),
    ("  - prompt: [a]", "3:13", "turn 1: prompt must be text of 1 to 4,000 characters, found a list of 1"),
    ("  - x\n  - steps: 3", "4:5", "turn 2: prompt is missing"),
    ("  - promt: x", "3:5", "turn 1: unknown key 'promt': did you mean `prompt`?"),
    ("  - {prompt: x, stpes: 3}", "3:17", "did you mean `steps`?"),
    ("  - {prompt: x, model: y}", "3:17", "turn 1: `model` belongs at the top of the script"),
    ("  - {prompt: x, number: 4}", "3:17", "turn 1: unknown key 'number'"),
    ("  - Make it red: like a rose", "3:5", "put the whole prompt in quotes"),
    ("  - {prompt: x, steps: -1}", "3:24", "turn 1: steps must be a whole number from 1 to 1000, found -1"),
    ("  - {prompt: x, steps: 28.0}", "3:24", "found 28.0"),
    ("  - {prompt: x, steps: '28'}", "3:24", "found '28'"),
    ("  - {prompt: x, steps: yes}", "3:24", "found 'yes'"),
    ("  - {prompt: x, seed: -1}", "3:23", "seed must be a whole number from 0"),
    ("  - {prompt: x, guidance: .nan}", "3:27", "guidance must be a number from 0 to 100, found .nan"),
    ("  - {prompt: x, guidance: 1e999}", "3:27", "found 1e999"),
    ("  - {prompt: x, from: 1}", "3:23", "turn 1: from must be 0 (the input), found 1"),
    ("  - x\n  - x\n  - {prompt: x, from: 7}", "5:23", "turn 3: from must be 0 (the input) to 2, found 7"),
    ("  - {prompt: x, from: -1}", "3:23", "found -1"),
    ("  - {prompt: x, from: input}", "3:23", "from must be the number of an earlier turn"),
    ("  x", "3:3", "turns must be a list of 1 to 100 turns"),
    ("  []", "3:3", "turns must be a list of 1 to 100 turns, each a prompt on a line that starts with `- `"),
    ("", "2:7", "turns has no value"),
    ("  - x\n" * 101, "3:3", "found a list of 101"),
]


@pytest.mark.parametrize(("turns", "place", "words"), WRONG_TURNS)
def test_a_wrong_turn_is_named_where_it_stands(turns: str, place: str, words: str) -> None:
    [complaint] = complaints(HEAD + turns)
    assert complaint.startswith(f"e.yaml:{place}: ")
    assert words in complaint


WRONG_KEYS = [
    ("steps: 0", "1:8", "steps must be a whole number from 1 to 1000, found 0"),
    ("steps: true", "1:8", "found true"),
    ("steps: 1001", "1:8", "found 1001"),
    ("steps:", "1:7", "steps has no value: write one, or remove the line"),
    ("seed: 9223372036854775808", "1:7", "to 9223372036854775807, found 9223372036854775808"),
    ("seed: " + "9" * 5000, "1:7", "found 9999"),
    ("guidance: 101", "1:11", "guidance must be a number from 0 to 100"),
    ("guidance: -.inf", "1:11", "found -.inf"),
    ("precision: fp9", "1:12", "precision must be auto, bf16, fp8, fp4 or fp4-svd, found 'fp9'"),
    ("runtime: no", "1:10", "runtime must be auto, torch, onnx or tensorrt"),
    ("output_size: 3", "1:14", "output_size must be input or model"),
    ("output: 2024", "1:9", 'output must be text: write it in quotes: "2024"'),
    ("output: [a]", "1:9", "found a list of 1"),
    ("output: ' '", "1:9", "output must be a folder, or a file name such as {stem}.png"),
    ("output: a.gif", "1:9", "output cannot be a .gif file"),
    ("output: '{name}.png'", "1:9", "output cannot hold {name}: the only placeholder is {stem}"),
    ("output: out/{stem}", "1:9", "output with {stem} is a file name: end it in one of .png"),
    ("model: off", "1:8", 'model must be text: write it in quotes: "off"'),
    ("prompt: x", "1:1", "`prompt` belongs in a turn, below `turns`"),
    ("percision: fp8", "1:1", "unknown key 'percision': did you mean `precision`?"),
    ("folder: x", "1:1", "unknown key 'folder': the keys are input, output"),
    ("_origin: x", "1:1", "unknown key '_origin'"),
    ('"\\e[31m": x', "1:1", r"unknown key '\x1b[31m'"),
]


@pytest.mark.parametrize(("line", "place", "words"), WRONG_KEYS)
def test_a_wrong_key_is_named_where_it_stands(line: str, place: str, words: str) -> None:
    [complaint] = complaints(f"{line}\n{HEAD}  - x\n")
    assert complaint.startswith(f"e.yaml:{place}: ")
    assert words in complaint


@pytest.mark.parametrize(
    ("line", "place", "words"),
    [
        ("input: 3", "1:8", 'write it in quotes: "3"'),
        ("input: []", "1:8", "found a list of 0"),
        ("input: {a: b}", "1:8", "found keys and values"),
        ("input: [a, '']", "1:12", "input must be a file, a folder, a glob or a list of them, found ''"),
        ("input: [a, no]", "1:12", 'write it in quotes: "no"'),
        ("steps: 3", "1:1", "input is missing"),
    ],
)
def test_a_wrong_input_is_named_where_it_stands(line: str, place: str, words: str) -> None:
    [complaint] = complaints(f"{line}\nturns: [x]\n")
    assert complaint.startswith(f"e.yaml:{place}: ")
    assert words in complaint


def test_all_problems_come_at_once_in_the_order_of_the_file() -> None:
    text = "turns:\n  - no\n  - {prompt: x, from: 9, steps: 0}\nsteps: -1\nprecision: big\nmodle: x\n"
    assert [line.split(": ")[0] for line in complaints(text)] == [
        "e.yaml:1:1",
        "e.yaml:2:5",
        "e.yaml:3:23",
        "e.yaml:3:33",
        "e.yaml:4:8",
        "e.yaml:5:12",
        "e.yaml:6:1",
    ]


def test_a_misspelt_key_is_not_also_missing() -> None:
    assert complaints("input: a\nturn: [x]\n") == ["e.yaml:2:1: unknown key 'turn': did you mean `turns`?"]


def test_no_message_speaks_of_the_machinery() -> None:
    texts = [HEAD + turns for turns, _, _ in WRONG_TURNS]
    texts += [f"{line}\n{HEAD}  - x\n" for line, _, _ in WRONG_KEYS]
    for text in texts:
        said = " ".join(complaints(text)).lower()
        assert not [word for word in ("pydantic", "validation", "input should", "none", "dict") if word in said]


class TestPaths:
    def test_count_from_the_script(self) -> None:
        found = script("input: [a.jpg, ../b, /c/*.png]\noutput: out/\nmodel: ./mine\nturns: [x]\n")
        assert found.input == ("/home/ana/trip/a.jpg", "/home/ana/trip/../b", "/c/*.png")
        assert found.output == "/home/ana/trip/out/"
        assert found.model == "/home/ana/trip/./mine"

    def test_start_at_home_with_a_tilde(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HOME", str(tmp_path))
        assert script("input: ~/photos\nturns: [x]\n").input == (f"{tmp_path}/photos",)

    def test_at_nobodys_home_are_left_alone(self) -> None:
        assert script("input: ~no-such-user/x\nturns: [x]\n").input == ("/home/ana/trip/~no-such-user/x",)

    def test_on_the_command_line_count_from_the_current_folder(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        found = script(HEAD + "  - x", input=["a", Path("b")], output=Path("out"), model="./mine")
        assert found.input == (f"{tmp_path}/a", f"{tmp_path}/b")
        assert (found.output, found.model) == (f"{tmp_path}/out", f"{tmp_path}/./mine")

    def test_with_undecodable_bytes_survive(self) -> None:
        assert script(HEAD + "  - x", input="/p/\udcff.png").input == ("/p/\udcff.png",)

    @pytest.mark.parametrize(
        ("output", "folder", "name"),
        [
            ("edited", "edited", "{stem}.png"),
            ("v1.2/", "v1.2", "{stem}.png"),
            ("odd.png/", "odd.png", "{stem}.png"),
            ("out/{stem}.JPG", "out", "{stem}.JPG"),
            ("{stem}/{stem}-night.webp", ".", "{stem}/{stem}-night.webp"),
            ("out/one.jpeg", "out", "one.jpeg"),
        ],
    )
    def test_of_results_are_a_folder_and_a_name(self, output: str, folder: str, name: str) -> None:
        found = script(f"output: '{output}'\n{HEAD}  - x\n")
        assert (found.output_folder, found.output_name) == (FOLDER / folder, name)

    def test_may_have_braces_above_the_script(self) -> None:
        found = parse("input: a\nturns: [x]\n", file="e.yaml", folder=Path("/p/{old}"))
        assert found.output_folder == Path("/p/{old}/edited")


class TestOverrides:
    def test_replace_the_scripts_values(self) -> None:
        found = script(EXAMPLE, steps=4, precision="bf16", turns=["Make it snow"])
        assert (found.steps, found.precision, found.seed) == (4, "bf16", 7)
        assert [turn.prompt for turn in found.turns] == ["Make it snow"]

    def test_of_none_are_not_given(self) -> None:
        assert script(EXAMPLE, steps=None) == script(EXAMPLE)

    def test_leave_a_turns_own_values(self) -> None:
        assert script(EXAMPLE, steps=4).turns[1].steps == 20

    def test_give_what_the_script_leaves_out(self) -> None:
        assert script("turns: [x]\n", input="/a").input == ("/a",)

    def test_heal_what_they_replace(self) -> None:
        assert script("steps: -1\nturns: no\ninput: a\n", steps=4, turns=["x"]).steps == 4

    def test_are_blamed_by_their_option(self) -> None:
        assert complaints(EXAMPLE, steps=0, output_size="huge", guidance=float("nan")) == [
            "--steps: steps must be a whole number from 1 to 1000, found 0",
            "--guidance: guidance must be a number from 0 to 100, found nan",
            "--output-size: output_size must be input or model, found 'huge'",
        ]

    def test_without_a_script_are_enough(self) -> None:
        assert script("{}", input="/a", turns=["no"]).turns[0].prompt == "no"


class TestLoad:
    def test_reads_a_file_beside_its_pictures(self, tmp_path: Path) -> None:
        (tmp_path / "e.yaml").write_text(EXAMPLE)
        found = load(tmp_path / "e.yaml")
        assert found.folder == tmp_path.resolve()
        assert found.input == (f"{tmp_path.resolve()}/photos/",)

    def test_blames_the_file_by_the_name_it_was_given(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "e.yaml").write_text("input: a\n")
        monkeypatch.chdir(tmp_path)
        with pytest.raises(ScriptError, match=r"^e\.yaml:1:1: turns is missing"):
            load(Path("e.yaml"))

    @pytest.mark.parametrize(
        ("name", "words"),
        [("none.yaml", "No such file"), (".", "Is a directory"), ("a\0b", "not a file name")],
    )
    def test_refuses_what_cannot_be_read(self, tmp_path: Path, name: str, words: str) -> None:
        with pytest.raises(ScriptError, match=f"cannot be read: {words}"):
            load(tmp_path / name)

    def test_never_waits_for_a_pipe(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "pipe.yaml")
        with pytest.raises(ScriptError, match="named pipe"):
            load(tmp_path / "pipe.yaml")

    def test_names_a_missing_input_with_the_other_mistakes(self, tmp_path: Path) -> None:
        (tmp_path / "e.yaml").write_text("input: [nowhere/, 'a*.png']\nsteps: 0\nturns: [add fog]\n")
        with pytest.raises(ScriptError) as caught:
            load(tmp_path / "e.yaml")
        assert [(each.line, each.column) for each in caught.value.problems] == [(1, 9), (2, 8)]

    def test_refuses_an_endless_file(self) -> None:
        with pytest.raises(ScriptError, match="larger than 1 MiB"):
            load(Path("/dev/zero"))


class TestData:
    def test_cannot_be_changed(self) -> None:
        with pytest.raises(ValueError, match="frozen"):
            script(EXAMPLE).steps = 3

    def test_goes_through_json_and_back(self) -> None:
        found = script(EXAMPLE)
        assert Script(**json.loads(json.dumps(found.dump()))).dump() == found.dump()

    def test_can_be_made_in_code(self) -> None:
        made = Script(input=("/a",), turns=(Turn(prompt="x"), Turn(prompt="y")))
        assert [(turn.number, turn.from_turn) for turn in made.turns] == [(1, 0), (2, 1)]

    def test_blames_a_value_long_after_parsing(self) -> None:
        problem = script("turns: [x]\ninput:\n  - a\n  - b\n").problem("is gone", "input", 1)
        assert str(problem) == "e.yaml:4:5: is gone"


class TestSchema:
    accepts = jsonschema.Draft202012Validator(json_schema()).is_valid

    def test_is_a_schema(self) -> None:
        jsonschema.Draft202012Validator.check_schema(json_schema())

    @pytest.mark.parametrize(
        "text",
        [
            EXAMPLE,
            "input: [a, b]\nturns: [x]\n",
            "input: a\nguidance: 3\noutput: '{stem}.png'\nturns: [{prompt: x, from: 0}]\n",
        ],
    )
    def test_accepts_what_parse_accepts(self, text: str) -> None:
        script(text)
        assert self.accepts(yaml.safe_load(text))

    @pytest.mark.parametrize(
        "data",
        [
            {},
            {"input": "a"},
            {"input": [], "turns": ["x"]},
            {"input": "a", "turns": []},
            {"input": "a", "turns": "x"},
            {"input": "a", "turns": ["x"] * 101},
            {"input": "a", "turns": [" "]},
            {"input": "a", "turns": [False]},
            {"input": "a", "turns": [{}]},
            {"input": "a", "turns": [{"prompt": "x", "\0number": 1}]},
            {"input": "a", "turns": [{"prompt": "x", "from": -1}]},
            {"input": "a", "turns": [{"prompt": "x" * 4001}]},
            {"input": "a", "turns": ["x"], "steps": None},
            {"input": "a", "turns": ["x"], "steps": 0},
            {"input": "a", "turns": ["x"], "seed": 2**63},
            {"input": "a", "turns": ["x"], "guidance": 101},
            {"input": "a", "turns": ["x"], "precision": "fp9"},
            {"input": "a", "turns": ["x"], "stpes": 3},
        ],
    )
    def test_refuses_what_parse_refuses(self, data: dict[str, Any]) -> None:
        complaints(json.dumps(data))
        assert not self.accepts(data)

    def test_explains_every_key(self) -> None:
        schema = json_schema()
        for keys in (schema["properties"], schema["$defs"]["Turn"]["properties"]):
            assert all(key["description"].endswith(".") for key in keys.values())


def test_docs_name_every_key_and_no_other() -> None:
    text = (Path(__file__).parents[1] / "docs" / "script.md").read_text()
    rows = [line.split("|")[1] for line in text.splitlines() if line.startswith("| `")]
    written = {key.strip(" `") for row in rows for key in row.split(",")}
    schema = json_schema()
    assert written == {*schema["properties"], *schema["$defs"]["Turn"]["properties"]}


def test_the_script_of_the_docs_is_right() -> None:
    text = (Path(__file__).parents[1] / "docs" / "script.md").read_text()
    assert len(script(text.split("```yaml\n")[1].split("```")[0]).turns) == 3


def test_importing_stays_light() -> None:
    code = "import sys, core.inputs, core.script; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "numpy", "PIL", "diffusers", "textual"} & set(loaded)


def parses_or_complains(text: str | bytes) -> None:
    try:
        found = script(text)
    except ScriptError as error:
        json.dumps(str(error))
    else:
        assert Script(**found.dump()).dump() == found.dump()


@settings(deadline=5_000)
@given(st.binary(max_size=400))
def test_any_bytes_parse_or_raise_a_script_error(data: bytes) -> None:
    parses_or_complains(data)


@settings(deadline=5_000, max_examples=400)
@given(st.data())
def test_mutated_scripts_parse_or_raise_a_script_error(data: st.DataObject) -> None:
    text = EXAMPLE
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(text)))
        cut = data.draw(st.integers(0, 8))
        put = data.draw(st.text(max_size=4) | st.sampled_from([": ", "- ", "[", "{", "'", '"', "\n", "\\U00110000"]))
        text = text[:at] + put + text[at + cut :]
    parses_or_complains(text)


YAML_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)


@settings(deadline=5_000)
@given(st.dictionaries(st.sampled_from(sorted(Script.model_fields)), YAML_VALUES))
def test_any_values_parse_or_raise_a_script_error(values: dict[str, object]) -> None:
    parses_or_complains(yaml.safe_dump(values, allow_unicode=True))
    parses_or_complains(json.dumps(values))


@settings(deadline=5_000)
@given(st.dictionaries(st.sampled_from([*Script.model_fields, "other"]), YAML_VALUES))
def test_any_overrides_parse_or_raise_a_script_error(values: dict[str, object]) -> None:
    try:
        script(EXAMPLE, **values)
    except ScriptError as error:
        assert {problem.file[:2] for problem in error.problems} == {"--"}  # noqa: PT017


def test_twenty_thousand_wrong_turns_are_told_in_time() -> None:
    lines = complaints("input: a\nturns:\n" + "- \n" * 19_000)
    assert len(lines) >= 19_000


def test_a_mebibyte_of_prompt_is_refused_in_one_line() -> None:
    [line] = complaints(HEAD + "  - " + "x" * (MAX_BYTES - 100))
    assert len(line) < 200
