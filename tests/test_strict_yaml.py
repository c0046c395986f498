"""YAML as the edit script allows it: plain data with places, and every trap refused by name."""

from __future__ import annotations

import math
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.errors import ScriptError
from core.strict_yaml import MAX_BYTES, load, resolve


def refusal(text: str | bytes) -> str:
    with pytest.raises(ScriptError) as caught:
        load(text, "f.yaml")
    return str(caught.value)


def test_every_value_and_key_has_its_place() -> None:
    document = load("a: 1\nb:\n  - x\n  - {c: 'y'}\n", "f.yaml")
    assert document.data == {"a": 1, "b": ["x", {"c": "y"}]}
    assert document.places == {
        (): (1, 1),
        ("a",): (1, 4),
        ("b",): (3, 3),
        ("b", 0): (3, 5),
        ("b", 1): (4, 5),
        ("b", 1, "c"): (4, 9),
    }
    assert document.keys == {("a",): (1, 1), ("b",): (2, 1), ("b", 1, "c"): (4, 6)}


def test_unquoted_text_is_kept_as_written() -> None:
    document = load("a: 1e3\nb: no\nc: 'no'\nd:\n", "f.yaml")
    assert document.unquoted == {("a",): "1e3", ("b",): "no", ("d",): ""}


@pytest.mark.parametrize(
    "word", ["no", "Yes", "on", "OFF", "16:9", "1_000", "2026-01-01", "0x1F", "0o17", "<<", "=", "1e", "."]
)
def test_yaml_1_1_traps_are_text(word: str) -> None:
    assert resolve(word) == word


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("", None),
        ("~", None),
        ("null", None),
        ("true", True),
        ("False", False),
        ("012", 12),
        ("-7", -7),
        (".5", 0.5),
        ("1e3", 1000.0),
        ("-.inf", -math.inf),
        ("9" * 5000, math.inf),
    ],
)
def test_core_schema_values(word: str, value: object) -> None:
    resolved = resolve(word)
    assert resolved == value
    assert type(resolved) is type(value)


def test_nan_is_a_number() -> None:
    assert isinstance(found := resolve(".nan"), float)
    assert math.isnan(found)


def test_keys_are_always_text() -> None:
    assert load("on: 1\n2: 3\nnull: 4\n", "f.yaml").data == {"on": 1, "2": 3, "null": 4}


def test_json_is_read_with_its_surrogate_pairs() -> None:
    assert load(r'{"a": "\ud83d\ude00"}', "f.yaml").data == {"a": "😀"}


def test_a_byte_order_mark_moves_no_column() -> None:
    assert load("\ufeffa: 1".encode(), "f.yaml").places["a",] == (1, 4)


@pytest.mark.parametrize(
    ("text", "place", "words"),
    [
        ("a: &x 1", "1:4", "`&x` is an anchor"),
        ("a:\n  - *x", "2:5", "`*x` is an alias"),
        ("a: !!python/object:os.system x", "1:4", "tag"),
        ("a: !!str x", "1:4", "tag"),
        ("a: ! x", "1:4", "tag"),
        ("a: !x!y z", "1:4", "tag"),
        ("b: 1\n<<: {a: 1}", "2:1", "merges"),
        ("a: 1\n---\nb: 2", "2:1", "second document"),
        ("? [a, b]\n: c", "1:3", "single word"),
        ("a: " + "[" * 5000, "1:35", "32 deep"),
        ("a: [" + "1," * 30_000, "1:40001", "20,000 values"),
        (r'a: "\0"', "1:4", "not text"),
        (r'a: "\ud83d"', "1:4", "surrogate"),
        (r'a: "\U00110000"', "1:7", "out of range"),
        ("%YAML 1." + "9" * 5000, "1:9", "out of range"),
        ("a: \x07", "1:4", "U+0007"),
        ("a: 1\nb: \x00", "2:4", "U+0000"),
        ("a: x\u2028y", "1:5", "U+2028"),
        (b"a: 1\nb: \xff", "2:4", "UTF-8"),
        ("a: 1".encode("utf-16"), "1:1", "UTF-8"),
        ("a: \ud800", "1:4", "UTF-8"),
        ("- a", "1:1", "a list"),
        ("a", "1:1", "a single value"),
    ],
)
def test_traps_are_refused_where_they_stand(text: str | bytes, place: str, words: str) -> None:
    message = refusal(text)
    assert message.startswith(f"f.yaml:{place}: ")
    assert words in message


@pytest.mark.parametrize(
    ("text", "place", "words"),
    [
        ("a:\n\t- b", "2:1", "a tab"),
        ("a:\n- b: x\n\tc: 3", "3:1", "a tab"),
        ("a: b: c", "1:5", "a colon"),
        ('a:\n- "Open" sign', "2:10", "text after a closing quote"),
        ("a:\n - x\n b: 1", "3:2", "wrong indentation"),
        ("a: 'b\nc: d\n", "1:4", "never closed"),
        ("a: [1, 2\n", "2:1", "`]`"),
        ("a: {b: 2\n", "2:1", "`}`"),
        ("steps 3\na: 1", "2:2", "a colon"),
        ("a: 1\nsteps 3\n", "2:1", "needs a colon"),
        ("a: - b", "1:4", "its own line"),
        ("a: *bold* x", "1:4", "`*` starts an alias"),
        ("a: & x", "1:4", "`&` starts an anchor"),
        ("a: @x", "1:4", "put the text in quotes"),
        ("a: | x\n b", "1:6", "next line"),
        (r'a: "C:\photos"', "1:8", "backslash"),
        (r'a: "\xZZ"', "1:7", "backslash"),
        ("a: {stem}.png", "1:10", "quote it all"),
    ],
)
def test_syntax_errors_say_in_one_line_what_to_do(text: str, place: str, words: str) -> None:
    message = refusal(text)
    assert message.startswith(f"f.yaml:{place}: ")
    assert words in message
    assert "\n" not in message


@pytest.mark.parametrize("text", ["", "# only a comment\n", "---\n", "~", "\ufeff"])
def test_an_empty_file_is_refused(text: str) -> None:
    assert refusal(text).startswith("f.yaml:1:1: the file is empty")


def test_a_file_over_a_mebibyte_is_refused() -> None:
    assert "larger than 1 MiB" in refusal(b"#" * (MAX_BYTES + 1))


def test_all_refusals_come_at_once_in_the_order_of_the_file() -> None:
    lines = refusal("a: 1\na: 2\nb: {c: &x 1, c: 2}\n<<: *x\na: 3\n").splitlines()
    assert [line.split(": ")[0] for line in lines] == [
        "f.yaml:2:1",
        "f.yaml:3:8",
        "f.yaml:3:14",
        "f.yaml:4:1",
        "f.yaml:4:5",
        "f.yaml:5:1",
    ]
    assert "`a` is given twice, first in line 1" in lines[0]


@pytest.mark.parametrize(
    "start", ["a: 1\n", "a: [", "- ", "? ", "{a: ", "[", "'", "a: |\n", "&a ", "a: *b\n", "%TAG ! x\n"]
)
def test_a_hostile_mebibyte_ends_in_time(start: str) -> None:
    """Quadratic or recursive work on any of these would take minutes or the stack; they take seconds."""
    text = start * (MAX_BYTES // len(start))
    started = time.monotonic()
    with pytest.raises(ScriptError):
        load(text, "f.yaml")
    assert time.monotonic() - started < 30


@settings(deadline=5_000)
@given(st.binary(max_size=300) | st.text(max_size=300) | st.text("ab:-[]{}'\"\\ \n\t#&*!|>%@?,~.0<", max_size=60))
def test_anything_loads_or_is_refused(text: str | bytes) -> None:
    try:
        document = load(text, "f.yaml")
    except ScriptError:
        return
    assert set(document.keys) < set(document.places)
