"""The one door through which foreign text (file names, prompts, metadata) reaches a terminal."""

from __future__ import annotations

import re
import unicodedata

# C0, DEL and C1 controls; bidirectional overrides and isolates; zero-width and invisible marks; lone surrogates
# (how Python shows bytes of a file name that are not UTF-8); private use and tags that terminals may act upon.
_UNSAFE = re.compile(
    "[\x00-\x1f\x7f-\x9f\u00ad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ud800-\udfff\ufeff\ufff9-\ufffb"
    "\U000e0000-\U000e007f]"
)


def safe_text(text: str, limit: int | None = None) -> str:
    """`text` as one line that a terminal only prints: whatever it might act upon is shown as an escape.

    limit: the most characters to return; a longer text ends in an ellipsis.
    """
    shown = _UNSAFE.sub(_escape, unicodedata.normalize("NFC", text))
    if limit is not None and len(shown) > limit:
        shown = shown[: max(limit - 1, 0)] + "…"
    return shown


def _escape(match: re.Match[str]) -> str:
    code = ord(match.group())
    named = {0x09: "\\t", 0x0A: "\\n", 0x0D: "\\r"}.get(code)
    if named:
        return named
    if 0xDC80 <= code <= 0xDCFF:  # a byte of an undecodable file name
        return f"\\x{code - 0xDC00:02x}"
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
