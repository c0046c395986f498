"""Whole words for the T5 tokenizer: `grow` appends pieces, so that every old id keeps its meaning.

The first vocabulary was learned from few phrases and spells "people" letter by letter. Words that no template holds
still become pieces, down to single letters.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from examples.tiny import phrases
from examples.tiny.bank import COLOURS, SCENES, Index
from examples.tiny.words import articles, capital, plural

SCORE = -6.0
"""Log probability of a new piece: above any spelling of it in two or more pieces, below words that had one."""
UNUSED = -9.0
"""A word below this score loses to its own spelling."""
METASPACE = "▁"  # how a tokenizer marks the start of a word


def known_words(index: Index) -> list[str]:
    """Every word that a training prompt can hold, sorted; no held-out phrasing adds to them."""
    every = [*phrases.FRAMES, *phrases.JOINS, *phrases.FILLER, *phrases.PERSON, *phrases.OBJECT, *COLOURS, *SCENES]
    for group in (phrases.EDITS, phrases.EFFECTS, phrases.PLACES, phrases.ROWS, phrases.NUMBERS, phrases.NAMES):
        every += [text for texts in group.values() for text in texts]
    every += phrases.BRITISH.values()
    names = [noun.name for noun in index.nouns] + [name for names in phrases.NAMES.values() for name in names]
    every += names + [plural(name) for name in names] + [articles("a apple")]
    return sorted({word for text in every for word in re.findall(r"[a-z]+", re.sub(r"\{.*?\}", " ", text))})


def grow(tokenizer_file: Path, words: list[str]) -> int:
    """Append the words a Unigram tokenizer.json does not know, and their capitals; how many pieces it now has."""
    content = json.loads(tokenizer_file.read_text())
    vocabulary: list[list[object]] = content["model"]["vocab"]
    known = {str(entry[0]): entry for entry in vocabulary}
    for word in words:
        for piece in (METASPACE + word, METASPACE + capital(word)):
            if len(word) > 1 and piece not in known:
                vocabulary.append([piece, SCORE])
            elif len(word) > 1 and float(str(known[piece][1])) < UNUSED:
                known[piece][1] = SCORE
    tokenizer_file.write_text(json.dumps(content, ensure_ascii=False))
    return len(vocabulary)
