"""A screen of the app as an SVG file that looks the same everywhere.

Rich's own export writes half blocks as text, which leaves gaps between them in most fonts: a photograph falls to
pieces. Here all backgrounds and half blocks are one small picture, a pixel each, and lines and bars are drawn.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

from rich.cells import cell_len
from rich.color import Color
from rich.style import Style
from rich.terminal_theme import DIMMED_MONOKAI

if TYPE_CHECKING:
    from textual.app import App
    from textual.strip import Strip

Rgb = tuple[int, int, int]
WIDTH, HEIGHT = 8.4, 18.0
"""Of a cell, in pixels."""
SIZE = 14
FONTS = "'Fira Code','JetBrains Mono',Menlo,Consolas,'DejaVu Sans Mono','Liberation Mono',monospace"
MARGIN, BAR = 10, 30
"""Pixels around the screen, and the height of the window's bar above it."""

# Left, top, right and bottom of what is filled, in eighths of a cell.
BLOCKS = {
    **{glyph: (0, 8 - eighths, 8, 8) for eighths, glyph in enumerate("▁▂▃▄▅▆▇█", 1)},
    **{glyph: (0, 0, eighths, 8) for eighths, glyph in enumerate("▏▎▍▌▋▊▉", 1)},
    "▔": (0, 0, 8, 1), "▐": (4, 0, 8, 8), "▕": (7, 0, 8, 8),
}  # fmt: skip
# Strokes in units of half a cell, from its left upper corner.
LINES = {
    "─": "M0 1H2", "━": "M0 1H2", "│": "M1 0V2", "╭": "M2 1Q1 1 1 2", "╮": "M0 1Q1 1 1 2", "╰": "M2 1Q1 1 1 0",
    "╯": "M0 1Q1 1 1 0", "┌": "M2 1H1V2", "┐": "M0 1H1V2", "└": "M2 1H1V0", "┘": "M0 1H1V0",
}  # fmt: skip
_HEAVY = "━"


@dataclass(frozen=True)
class Run:
    """Cells of one row in one style, from the left."""

    x: int
    y: int
    text: str
    colour: Rgb
    style: Style


def svg(app: App[Any], title: str) -> str:
    """What the app shows now, under a window's bar with this title."""
    return draw(app.screen._compositor.render_strips(), title)


def draw(strips: Sequence[Strip], title: str) -> str:
    """Strips of equal width as SVG."""
    from PIL import Image

    columns, rows = max(strip.cell_length for strip in strips), len(strips)
    pixels = Image.new("RGB", (columns, 2 * rows))
    runs = list(_runs(strips, pixels))
    stream = io.BytesIO()
    pixels.save(stream, "PNG", optimize=True)
    picture = base64.b64encode(stream.getvalue()).decode()
    width, height = columns * WIDTH, rows * HEIGHT
    whole = (width + 2 * MARGIN, height + BAR + MARGIN)
    ground = _hex(pixels.getpixel((0, 0)))  # type: ignore[arg-type]
    dots = "".join(
        f'<circle cx="{18 + 18 * n}" cy="15" r="5.5" fill="{fill}"/>'
        for n, fill in enumerate(("#e0605a", "#e3b341", "#57b560"))
    )
    # One pixel high and wide where the next begins: no seam shows however it is scaled.
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {whole[0]:.1f} {whole[1]:.1f}" '
            f'font-family="{FONTS}" font-size="{SIZE}">',
            f'<rect width="100%" height="100%" rx="9" fill="{ground}"/>',
            f'<rect x=".5" y=".5" width="{whole[0] - 1:.1f}" height="{whole[1] - 1:.1f}" rx="9" fill="none" '
            'stroke="#fff" stroke-opacity=".25"/>',
            dots,
            f'<text x="50%" y="20" fill="#9aa3b5" text-anchor="middle">{escape(title)}</text>',
            f'<g transform="translate({MARGIN} {BAR})">',
            f'<image width="{width:.1f}" height="{height:.1f}" preserveAspectRatio="none" '
            f'style="image-rendering:pixelated" href="data:image/png;base64,{picture}"/>',
            *(_text(run) for run in runs),
            "</g></svg>\n",
        ]
    )


def _runs(strips: Sequence[Strip], pixels: Any) -> Iterator[Run]:
    """What is drawn over the pixels; these are filled on the way."""
    paint = pixels.load()
    for y, strip in enumerate(strips):
        x = 0
        for segment in strip:
            style = segment.style or Style.null()
            front, back = _colours(style)
            for glyph in segment.text:
                for cell in range(x, x + cell_len(glyph)):
                    paint[cell, 2 * y] = front if glyph in "▀█" else back
                    paint[cell, 2 * y + 1] = front if glyph in "▄█" else back
                x += cell_len(glyph)
            left = x - segment.cell_length
            yield from _pieces(left, y, segment.text, front, style)


def _pieces(x: int, y: int, text: str, colour: Rgb, style: Style) -> Iterator[Run]:
    """Words and drawn glyphs apart; spaces and half blocks need nothing."""
    word, begun = "", x
    for glyph in (*text, "\0"):
        drawn = glyph in BLOCKS or glyph in LINES
        if drawn or glyph in "▀▄█\0" or (glyph == " " and (not word or word.endswith(" "))):
            if word.strip():
                yield Run(begun, y, word.rstrip(), colour, style)
            word = ""
            if drawn and glyph not in "▄█":
                yield Run(x, y, glyph, colour, style)
        else:
            begun = begun if word else x
            word += glyph
        x += cell_len(glyph) if glyph != "\0" else 0


def _text(run: Run) -> str:
    x, y, fill = run.x * WIDTH, run.y * HEIGHT, _hex(run.colour)
    if block := BLOCKS.get(run.text):
        left, top, right, bottom = block
        return (
            f'<rect x="{x + left * WIDTH / 8:.2f}" y="{y + top * HEIGHT / 8:.2f}" '
            f'width="{(right - left) * WIDTH / 8:.2f}" height="{(bottom - top) * HEIGHT / 8:.2f}" fill="{fill}"/>'
        )
    if line := LINES.get(run.text):
        width = 2.4 if run.text == _HEAVY else 1.1
        return (
            f'<path transform="translate({x:.2f} {y:.2f}) scale({WIDTH / 2} {HEIGHT / 2})" d="{line}" fill="none" '
            f'stroke="{fill}" stroke-width="{width}" vector-effect="non-scaling-stroke"/>'
        )
    look = "".join(
        f' {name}="{value}"'
        for on, name, value in (
            (run.style.bold, "font-weight", "bold"),
            (run.style.italic, "font-style", "italic"),
            (run.style.underline, "text-decoration", "underline"),
        )
        if on
    )
    length = cell_len(run.text) * WIDTH
    return (
        f'<text x="{x:.1f}" y="{y + 0.74 * HEIGHT:.1f}" textLength="{length:.1f}" lengthAdjust="spacingAndGlyphs" '
        f'fill="{fill}" xml:space="preserve"{look}>{escape(run.text)}</text>'
    )


def _colours(style: Style) -> tuple[Rgb, Rgb]:
    """In front and behind."""
    front, back = _rgb(style.color, front=True), _rgb(style.bgcolor, front=False)
    if style.reverse:
        front, back = back, front
    if style.dim:
        front = (front[0] + back[0]) // 2, (front[1] + back[1]) // 2, (front[2] + back[2]) // 2
    return front, back


def _rgb(colour: Color | None, *, front: bool) -> Rgb:
    found = (colour or Color.default()).get_truecolor(DIMMED_MONOKAI, foreground=front)
    return found.red, found.green, found.blue


def _hex(colour: Rgb) -> str:
    return "#{:02x}{:02x}{:02x}".format(*colour)
