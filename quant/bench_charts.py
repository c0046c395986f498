"""Charts of a benchmark as PNG files, drawn with Pillow alone: bars with their numbers beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

SCALE = 2
"""Pixels a unit below: sharp on dense screens."""
WIDTH, LABEL, ROW, BAR, MARGIN = 900, 210, 30, 18, 24
INK, DIM, PAPER = "#1c1f24", "#6b7280", "#ffffff"
PALETTE = ("#0f766e", "#e09f3e", "#5b5f97", "#9e2a2b", "#7fb069", "#8d99ae")
PEER = "#b8bcc4"


@dataclass(frozen=True)
class Bar:
    """A bar of parts, by name; `text` stands behind it."""

    label: str
    parts: Mapping[str, float]
    text: str
    dim: bool = False
    """In grey: somebody else's figure."""


def draw(title: str, subtitle: str, bars: Sequence[Bar]) -> Image.Image:
    """Horizontal bars to one scale; a legend where they have several parts."""
    names = list(dict.fromkeys(name for bar in bars for name in bar.parts))
    colours = dict(zip(names, PALETTE * 3, strict=False))
    legend = ROW if len(names) > 1 else 0
    height = MARGIN * 2 + 50 + legend + ROW * len(bars)
    image = Image.new("RGB", (WIDTH * SCALE, height * SCALE), PAPER)
    pen = ImageDraw.Draw(image)
    # The longest that leaves every bar's text its place.
    room = WIDTH - LABEL - 2 * MARGIN - 8
    unit = min((room - _long(bar.text, 13)) / (sum(bar.parts.values()) or 1) for bar in bars)
    _write(pen, MARGIN, MARGIN, title, 18, INK)
    _write(pen, MARGIN, MARGIN + 24, subtitle, 12, DIM)
    y = MARGIN + 50
    if legend:
        x = float(MARGIN + LABEL)
        for name in names:
            _box(pen, x, y + 4, 12, 12, colours[name])
            x += 18 + _write(pen, x + 18, y + 2, name, 12, DIM) + 16
        y += legend
    for bar in bars:
        _write(pen, MARGIN, y + 3, _cut(bar.label, LABEL - 10, 13), 13, DIM if bar.dim else INK)
        x = float(MARGIN + LABEL)
        for name, value in bar.parts.items():
            width = value * unit
            _box(pen, x, y, width, BAR, PEER if bar.dim else colours[name])
            x += width
        _write(pen, x + 8, y + 3, bar.text, 13, DIM if bar.dim else INK)
        y += ROW
    return image


def charts(report: Mapping[str, Any]) -> dict[str, list[Bar]]:
    """What there is to draw of a report, by title; the terminal shows the same."""
    rows, found = report["rows"], {}
    steps = []
    for row in rows:
        steps.append(_ms(_name(row), row["ms"]))
        for refresh, ms in row.get("context_refresh", {}).get("average_ms", {}).items():
            steps.append(Bar(f"{_name(row)}, refresh {refresh}", {"ms": ms}, f"{ms:,.0f} ms on average"))
    steps += [_ms(peer["name"], peer["ms"], dim=True) for peer in report["peers"]]
    if report["published_beside"]:
        for gpu, figures in report["published"].items():
            steps += [
                Bar(f"{gpu}, {precision}", {"ms": ms}, f"{ms} ms, published", dim=True)
                for precision, ms in figures.items()
            ]
    found["Milliseconds a step"] = steps
    found["Where a whole edit's time goes"] = [
        Bar(_name(row), row["modules"], f"{sum(row['modules'].values()):.2f} s, "
            f"transformer {row['modules']['transformer'] / sum(row['modules'].values()):.1%}")
        for row in rows
    ]  # fmt: skip
    found["Where a step's time goes"] = [
        Bar(_name(row), row["kernels"], f"{sum(row['kernels'].values()):,.0f} ms") for row in rows if "kernels" in row
    ]
    found["Memory"] = [bar for row in rows for bar in _memory(row)]
    return {title: bars for title, bars in found.items() if bars}


def save(report: Mapping[str, Any], folder: Path) -> list[Path]:
    """A PNG for each chart; returns the files."""
    folder.mkdir(parents=True, exist_ok=True)
    subtitle = ", ".join(str(part) for part in (report["model"], report["machine"].get("gpu")
                         or report["machine"]["machine"], report["machine"]["date"]))  # fmt: skip
    files = []
    for title, bars in charts(report).items():
        files.append(folder / f"{title.lower().replace(' ', '-').replace(chr(39), '')}.png")
        draw(title, subtitle, bars).save(files[-1])
    return files


def _ms(label: str, ms: Mapping[str, float], *, dim: bool = False) -> Bar:
    return Bar(label, {"ms": ms["median"]}, f"{ms['median']:,.1f} ms ({ms['p10']:,.0f} to {ms['p90']:,.0f})", dim)


def _memory(row: Mapping[str, Any]) -> list[Bar]:
    def gib(count: float) -> float:
        return count / 2**30

    weights, rest = gib(row["weights_bytes"]), gib(row["pipeline_bytes"] - row["weights_bytes"])
    parts, text = {"transformer": weights, "rest of the pipeline": rest}, f"{weights:.2f} + {rest:.2f} GiB of weights"
    if row["edit_peak_bytes"]:
        parts["at work, at most"] = max(0.0, gib(row["edit_peak_bytes"]) - weights - rest)
        text = f"{weights:.2f} GiB, {gib(row['edit_peak_bytes']):.2f} with all at work"
    return [Bar(_name(row), parts, text)]


def _name(row: Mapping[str, Any]) -> str:
    return f"{row['precision']} {row['runtime']}" + (", emulated" if row["emulated"] else "")


def _font(size: int) -> Any:
    return ImageFont.load_default(size=size * SCALE)


def _write(pen: ImageDraw.ImageDraw, x: float, y: float, text: str, size: int, colour: str) -> float:
    pen.text((x * SCALE, y * SCALE), text, fill=colour, font=_font(size))
    return _long(text, size)


def _long(text: str, size: int) -> float:
    return float(_font(size).getlength(text)) / SCALE


def _cut(text: str, width: float, size: int) -> str:
    while text and _long(text, size) > width:
        text = text[:-2].rstrip("…") + "…"
    return text


def _box(pen: ImageDraw.ImageDraw, x: float, y: float, width: float, height: float, colour: str) -> None:
    right = max(x + width, x + 1)
    pen.rectangle((x * SCALE, y * SCALE, right * SCALE - 1, (y + height) * SCALE - 1), fill=colour)
