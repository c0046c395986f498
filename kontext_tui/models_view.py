"""What the screen of models shows, as lines: the list, one entry in full, and the task that is at work."""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from textual.content import Content

from core.edit.inventory import Inventory, Made, Model
from core.edit.models import MODELS
from core.edit.runtimes import PRECISIONS
from kontext_tui import comparison
from kontext_tui.figures import bar, short_path, short_time, size
from kontext_tui.tasks import Task
from kontext_tui.text import safe_text

KINDS = {"checkpoint": "checkpoint", "onnx": "ONNX graph", "engine": "engine"}
GLYPHS = {"ok": ("✓", "$success"), "broken": ("✗", "$error"), "refused": ("✗", "$error"), "old": ("↻", "$warning"),
          "unverified": ("?", "$warning")}  # fmt: skip
WORDS = {"ok": "", "broken": "broken", "refused": "refused", "old": "outdated", "unverified": "not verified"}
STATES = {"there": ("✓", "$success"), "half": ("✗", "$error"), "missing": ("–", "$foreground 50%")}
OUTCOMES = {"done": ("✓", "$success"), "failed": ("✗", "bold $error"), "cancelled": ("–", "$warning")}
DIM = "$foreground 60%"
_COMPARED = {0: "precision", 2: "PSNR", 4: "SSIM", 5: "FLIP", 8: "ms", 9: "weights"}
"""Of the columns of a comparison, those there is room for, by short names."""


@dataclass(frozen=True)
class Entry:
    """A line of the list. `made`: an artifact; without one, the line is a model's or a precision's."""

    model: str
    precision: str | None = None
    made: Made | None = None

    @property
    def key(self) -> str:
        """What names it from one look to the next."""
        return self.made.artifact.key if self.made else f"{self.model}/{self.precision or ''}"


def entries(found: Inventory) -> list[Entry]:
    """Each model, below it its precisions, below each of them what was made; at the end what belongs nowhere."""
    lines = []
    for model in found.models:
        lines.append(Entry(model.name))
        for precision in PRECISIONS:
            made = [each for kind in KINDS for each in found.of(model.name, precision, kind)]
            if made or model.state == "there":
                lines.append(Entry(model.name, precision))
            lines += [Entry(model.name, precision, each) for each in made]
    return [*lines, *(Entry(each.model or "", each.precision, each) for each in found.strays())]


def line(entry: Entry, found: Inventory, width: int) -> Content:
    """An entry as one line of so many cells."""
    if entry.made is not None:
        return _made_line(entry.made)
    if entry.precision is None:
        return _model_line(next(model for model in found.models if model.name == entry.model), width)
    parts = [(f"   {entry.precision:<10}", "bold")]
    for kind, name in KINDS.items():
        made = found.of(entry.model, entry.precision, kind)
        if kind == "checkpoint" and entry.precision == "bf16":
            parts.append(("the model itself  ", DIM))
            continue
        glyphs = [GLYPHS[each.standing] for each in made] or [("–", "$foreground 40%")]
        parts += [(f"{name} ", DIM if made else "$foreground 40%"), *glyphs, ("   ", "")]
    return Content.assemble(*parts)


def _model_line(model: Model, width: int) -> Content:
    glyph, style = STATES[model.state]
    about = [size(model.bytes)] if model.bytes else []
    place = _place(model) if model.folder else safe_text(model.reason or "")
    name = safe_text(short_path(model.name) if model.folder and "/" in model.name else model.name, 40)
    head = Content.assemble(
        (f" {name:<14}", "bold $primary"), " ", (f"{glyph} {model.state}", style), "  ", *about, "  " if about else ""
    )
    room = max(8, width - head.cell_length - 1)
    cut = place if len(place) <= room else "…" + place[len(place) - room + 1 :] if model.folder else place
    return Content.assemble(head, (safe_text(cut, room), DIM))


def _place(model: Model) -> str:
    known = MODELS.get(model.name)
    return "comes with kontext-tui" if known and known.folder else safe_text(short_path(model.folder or ""))


def _made_line(made: Made) -> Content:
    glyph, style = GLYPHS[made.standing]
    artifact, parts = made.artifact, made.artifact.parts
    seconds = artifact.manifest.get("seconds")
    target = f"{parts.get('sm', '?')} {parts.get('flavour', '?')}" if artifact.kind == "engine" and parts else ""
    took = f"took {short_time(float(seconds))}" if seconds is not None else ""
    cells = [
        (f"     {safe_text(KINDS.get(artifact.kind, artifact.kind), 10):<11}", ""),
        (f"{size(artifact.size) if artifact.manifest else '':>9}  ", ""),
        (f"{_age(made):>6}  ", DIM),
        (f"{took:<11}", DIM),
        (f"{safe_text(target, 19):<19} ", ""),
        (f"{glyph} ", style),
        (_word(made), style),
    ]
    return Content.assemble(*cells)


def _word(made: Made) -> str:
    return "verified" if made.artifact.kind == "engine" and made.standing == "ok" else WORDS[made.standing]


def describe(entry: Entry, found: Inventory) -> Content:
    """One entry in full."""
    if entry.made is not None:
        return _describe_made(entry.made)
    model = next(each for each in found.models if each.name == entry.model)
    lines = [_title(model.name, *STATES[model.state], model.state)]
    if model.folder is not None:
        lines.append(_fact("path", short_path(model.folder)))
    if model.bytes:
        lines.append(_fact("size", size(model.bytes)))
    if model.reason:
        lines.append(Content.styled(safe_text(model.reason), "$warning"))
    lines.append(Content(""))
    if entry.precision is not None and not found.of(entry.model, entry.precision):
        lines += _advice(entry.precision)
    outcome = found.comparisons.get(model.name)
    if outcome is None:
        lines.append(Content.styled("never compared: p measures what each precision costs", DIM))
    else:
        lines += _compared(outcome)
    return Content("\n").join(lines)


def _advice(precision: str) -> list[Content]:
    first = "e writes its ONNX graph" if precision == "bf16" else f"z quantizes the model to {precision}"
    return [
        Content.styled(f"nothing in {precision} yet: {first}, b builds an engine and what it needs", DIM),
        Content(""),
    ]


def _describe_made(made: Made) -> Content:
    artifact, parts = made.artifact, made.artifact.parts
    kind = KINDS.get(artifact.kind, artifact.kind)
    glyph, style = GLYPHS[made.standing]
    lines = [_title(f"{kind} {made.model or '?'} {made.precision or '?'}", glyph, style, _word(made))]
    if made.reason:
        lines.append(Content.styled(safe_text(made.reason), style))
    for verdict in made.verdicts:
        where = f"{safe_text(verdict.gpu, 40)}, driver {safe_text(verdict.driver, 20)}"
        lines.append(Content.styled(f"{'verified' if verdict.passed else 'refused'} on {where}: {verdict}", style))
    lines.append(Content(""))
    created = str(artifact.manifest.get("created", ""))[:19].replace("T", " ")
    seconds = artifact.manifest.get("seconds")
    took = f", in {short_time(float(seconds))}" if seconds is not None else ""
    about: dict[str, Any] = {
        "key": artifact.key[:12],
        "size": size(artifact.size) if artifact.manifest else None,
        "made": f"{created} UTC{took}" if created else None,
        "GPU": parts.get("sm"),
        "flavour": f"{parts['flavour']} {parts.get('version', '')}" if "flavour" in parts else None,
        "tokens": parts.get("profile"),
        "recipe": parts.get("recipe"),
        "pairs": parts.get("calibration"),
        "path": short_path(artifact.folder),
    }  # fmt: skip
    lines += [_fact(name, str(value)) for name, value in about.items() if value]
    versions = artifact.manifest.get("versions")
    if isinstance(versions, dict):
        told = ", ".join(f"{name} {number}" for name, number in versions.items())
        lines.append(_fact("by", told))
    lines += [_fact(name, text) for name, text in _counts(artifact.facts)]
    return Content("\n").join(lines)


def _counts(facts: dict[str, Any]) -> list[tuple[str, str]]:
    """What runs in which precision, where a graph's facts say."""
    return [
        (word, ", ".join(f"{count} {name}" for name, count in sorted(facts[key].items())))
        for key, word in (("gemms", "linears"), ("bmms", "attention"))
        if isinstance(facts.get(key), dict)
    ]


def _compared(outcome: Any) -> list[Content]:
    created, steps = safe_text(str(outcome.get("created", ""))[:10]), outcome.get("steps")
    heading = f"compared {created} over {outcome.get('edits')} edits of {steps} steps, medians"
    rows = comparison.table(outcome["precisions"])
    columns = [[name, *(safe_text(row[index], 12) for row in rows)] for index, name in _COMPARED.items()]
    widths = [max(map(len, column)) for column in columns]
    lines = [Content.styled(heading, DIM)]
    for number, cells in enumerate(zip(*columns, strict=True)):
        told = "  ".join(
            cell.ljust(width) if index == 0 else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(cells, widths, strict=True))
        )
        lines.append(Content.styled(told, "bold" if number == 0 else ""))
    return lines


def told(task: Task, width: int, key: str) -> list[Content]:
    """The task at work, or what became of the last one: two lines. key: what cancels it."""
    command, count = task.command, len(task.commands)
    took = short_time((task.ended or time.time()) - task.began)
    if task.outcome is not None:
        glyph, style = OUTCOMES[task.outcome]
        why = {"done": task.said, "failed": " ".join(task.errors), "cancelled": "nothing half is kept"}[task.outcome]
        return [
            Content.assemble(
                (f"{glyph} ", style), (safe_text(command.title), "bold"), (f"  {task.outcome}, {took}", DIM)
            ),
            Content.styled(safe_text(why, 2 * width), style if task.outcome == "failed" else ""),
        ]
    part = f"  {task.at + 1} of {count}" if count > 1 else ""
    hint = f"stopping; {key} again ends it at once" if task.stops else f"{took}  {key} cancels"
    head = Content.assemble(("▶ ", "$accent"), (safe_text(command.title, 50), "bold"), (part, DIM))
    first = Content.assemble(head, " " * max(2, width - head.cell_length - len(hint)), (hint, DIM))
    return [first, _progress(task, width)]


def _progress(task: Task, width: int) -> Content:
    counted = f" {task.done:.0f}/{task.total:.0f}" if task.total > 1 else ""
    # A title that says the same again is no news.
    what = "" if task.what.startswith("building") else safe_text(task.what, 44)
    words = f"{what or safe_text(task.said, 44) or 'starting'}{counted}"
    if not task.total:
        return Content.styled(words, DIM)
    share = min(task.done / task.total, 1.0)
    full, rest = bar(share, max(10, width - len(words) - 8))
    return Content.assemble((full, "$accent"), (rest, "$foreground 30%"), f" {share:>4.0%}  ", (words, DIM))


def _title(name: str, glyph: str, style: str, word: str) -> Content:
    return Content.assemble((safe_text(name), "bold $primary"), "  ", (f"{glyph} {word}", style))


def _fact(name: str, value: str) -> Content:
    return Content.assemble((f"{name:<8}", DIM), safe_text(value))


def _age(made: Made) -> str:
    try:
        then = datetime.fromisoformat(str(made.artifact.manifest["created"])).timestamp()
    except (KeyError, ValueError):
        return ""
    return short_time(max(0.0, time.time() - then))
