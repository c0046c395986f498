"""safe_text: foreign text reaches a terminal as text only."""

from __future__ import annotations

import unicodedata

from hypothesis import given
from hypothesis import strategies as st
from rich.text import Text

from kontext_tui.text import safe_text


@given(st.text(st.characters(codec=None, exclude_categories=[]), max_size=200))
def test_nothing_that_a_terminal_acts_upon_comes_through(text):
    shown = safe_text(text)
    shown.encode()  # no lone surrogate
    assert not any(unicodedata.category(c) in ("Cc", "Cs") for c in shown)
    assert not set(shown) & set("\u200b\u200e\u202a\u202e\u2066\u2069\ufeff")
    assert Text(shown).plain == shown


def test_plain_text_is_left_alone():
    for text in ("Füchse über dem See", "写真 3.jpg", "[/] [red]", "emoji 🎈", "ε = 1"):
        assert safe_text(text) == text


def test_escapes_can_be_read_and_long_text_ends_in_an_ellipsis():
    assert safe_text("a\x1b[2J\nb\udcff\u202e") == "a\\x1b[2J\\nb\\xff\\u202e"
    assert safe_text("x" * 50, 10) == "x" * 9 + "…"
