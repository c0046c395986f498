"""Measure a model on held-out scenes with exact targets: `python -m examples.tiny.evaluate MODEL OUT`.

OUT gets figures.json and contact sheets. Every figure stands beside three others: the input left as it was, the
result of another prompt, and the target through the VAE, which no edit can beat.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from core.edit.loading import Model
from examples.tiny import bank, figures
from examples.tiny.bank import Index, Pixels
from examples.tiny.compose import Pairs, compose
from examples.tiny.edits import WEIGHTS
from examples.tiny.heldout import PHRASINGS
from examples.tiny.model import open_model, through_vae
from examples.tiny.plans import SIZES, Plan, Recipe, draft_pair, make_plan, plan_drafts, plan_kinds
from examples.tiny.sheets import contact_sheet
from examples.tiny.words import articles, capital, plural

OBJECTS = ("add", "remove", "replace", "recolour")
SHOWN = 6
"""Edits of each kind on the contact sheet."""
CHAIN = ("leave it as it is",) * 5


class Examiner:
    """A model, the held-out half of the bank, and how edits are made."""

    def __init__(self, folder: Path, out: Path, args: argparse.Namespace) -> None:
        self.device = torch.device(args.device or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.set_float32_matmul_precision("high")
        self.model: Model = open_model(folder, self.device)
        self.index: Index = bank.read_index()
        self.pixels: Pixels = bank.read_pixels(self.index, self.device)
        self.folder, self.out, self.args = folder, out, args
        out.mkdir(parents=True, exist_ok=True)

    def rng(self, *names: object) -> random.Random:
        return random.Random("/".join(str(name) for name in (self.args.seed, *names)))

    def edit(self, image: Tensor, prompts: Sequence[str]) -> Tensor:
        return figures.edit(self.model, image, prompts, steps=self.args.steps, seed=self.args.seed)

    def pairs(self, kind: str, count: int, size: str = "1:1") -> tuple[Plan, Pairs]:
        plan = plan_kinds(
            self.index, [kind] * count, SIZES[size], self.rng(kind, size), held_out=True,
            people=0 if self.args.plain else 0.1,
        )  # fmt: skip
        return plan, compose(self.pixels, plan, things=True)

    def prompts(self, plan: Plan) -> tuple[str, ...]:
        return plan.plain_prompts if self.args.plain else plan.prompts

    def score(self, plan: Plan, pairs: Pairs, prompts: Sequence[str]) -> tuple[dict[str, float], Tensor]:
        """Figures of one set of pairs, and the results."""
        result = self.edit(pairs.source, prompts)
        return {"n": len(prompts), **score(result, plan, pairs)}, result

    def sheet(self, name: str, rows: list[tuple[list[Tensor], str]], columns: int = 3, height: int = 128) -> None:
        contact_sheet(rows, columns=columns, height=height).save(self.out / f"{name}.jpg", quality=88)


def score(result: Tensor, plan: Plan, pairs: Pairs, through: Tensor | None = None) -> dict[str, float]:
    """ok, every (all of a compound's or a removal's parts ok), PSNR inside and outside of the change.

    through: the targets as the VAE gives them back. Where that is not ok itself, as with the colours of a nearly grey
    picture, no edit can be: `possible` is the share of the others, `ok_possible` how many of them are ok.
    """
    source, target, mask = pairs.source, pairs.target, pairs.mask
    assert pairs.things is not None
    inside = mask if bool(mask.any()) else torch.ones_like(mask)
    found = {"psnr": _mean(figures.psnr(result, target, inside))}
    if bool(mask.any()):
        ok = figures.undone(result, source, target, mask) < figures.LEFT_UNDONE
        found["ok"] = _mean(ok)
        found["every"] = _mean(ok & figures.all_done(result, source, target, mask, pairs.things))
        if through is not None:
            able = figures.undone(through, source, target, mask) < figures.LEFT_UNDONE
            found["possible"] = _mean(able)
            found["ok_possible"] = _mean(ok[able]) if bool(able.any()) else 0.0
    beyond = figures.outside(mask)
    kept = beyond.mean((1, 2, 3)) > 0.05
    if bool(kept.any()):
        found["outside"] = _mean(figures.psnr(result, target, beyond)[kept])
    if set(plan.kinds) == {"recolour"}:
        wanted = torch.from_numpy(plan.wanted).to(result.device)
        found["colour"] = _mean(figures.colour_found(result, source, pairs.things.any(1, keepdim=True)) == wanted)
    return found


def measure_kinds(exam: Examiner) -> dict[str, Any]:
    """Every kind, beside copying the input, another prompt and the VAE alone."""
    found: dict[str, Any] = {}
    rows: list[tuple[list[Tensor], str]] = []
    for kind in exam.args.kinds:
        plan, pairs = exam.pairs(kind, exam.args.each)
        prompts = exam.prompts(plan)
        through = torch.cat([through_vae(exam.model, part) for part in pairs.target.split(figures.AT_ONCE)])
        result = exam.edit(pairs.source, prompts)
        figure = {"n": len(prompts), **score(result, plan, pairs, through)}
        inside = pairs.mask if bool(pairs.mask.any()) else torch.ones_like(pairs.mask)
        others = make_plan(
            exam.index, Recipe(held_out=True, plain_words=1.0), exam.args.seed, 7, len(prompts)
        ).prompts
        figure |= {
            "copy": _mean(figures.psnr(pairs.source, pairs.target, inside)),
            "wrong": _mean(figures.psnr(exam.edit(pairs.source, others), pairs.target, inside)),
            "vae": _mean(figures.psnr(through, pairs.target, inside)),
        }
        if kind.startswith("remove") and (filled := figures.inpainted(pairs.source, pairs.mask)) is not None:
            done = figures.undone(filled, pairs.source, pairs.target, pairs.mask) < figures.LEFT_UNDONE
            figure["inpainted"] = _mean(done)
        found[kind] = _rounded(figure)
        print(kind, json.dumps(found[kind]), flush=True)
        shown = zip(pairs.source, result, pairs.target, prompts, strict=True)
        rows += [([a, b, c], f"{kind}: {prompt}") for a, b, c, prompt in shown][:SHOWN]
    exam.sheet("kinds", rows)
    return found


def measure_phrases(exam: Examiner) -> dict[str, Any]:
    """Phrasings that no template contains: ok, beside ok for the training phrasings of the same pairs."""
    each: list[dict[str, Any]] = []
    rows: list[tuple[list[Tensor], str]] = []
    for number, (kind, phrasing) in enumerate(PHRASINGS):
        rng = exam.rng("phrasing", number)
        drafts = [
            draft_pair(exam.index, kind, SIZES["1:1"], rng, held_out=True) for _ in range(exam.args.phrase_each)
        ]
        plan = plan_drafts(drafts, [kind] * len(drafts), rng, rough=False)
        pairs = compose(exam.pixels, plan, things=True)
        prompts = [in_words(phrasing, draft.orders[-1].slots) for draft in drafts]
        unseen, result = exam.score(plan, pairs, prompts)
        known, _ = exam.score(plan, pairs, plan.prompts)
        good = (
            (unseen["ok"], known["ok"]) if "ok" in unseen else (float(unseen["psnr"] > 32), float(known["psnr"] > 32))
        )
        each.append({"kind": kind, "phrasing": phrasing, "ok": round(good[0], 3), "known": round(good[1], 3)})
        print(json.dumps(each[-1]), flush=True)
        rows.append(([pairs.source[0], result[0], pairs.target[0]], f"{kind}: {prompts[0]}"))
    exam.sheet("phrases", rows)
    mean, known = (sum(entry[name] for entry in each) / len(each) for name in ("ok", "known"))
    kept = sum(entry["ok"] >= 0.7 * entry["known"] for entry in each)
    return {"ok": round(mean, 3), "known": round(known, 3), "share": round(mean / max(known, 1e-6), 3),
            "phrasings_that_keep_70_percent": kept, "phrasings": len(each), "each": each}  # fmt: skip


def measure_drift(exam: Examiner) -> dict[str, Any]:
    """Five turns that change nothing, beside the VAE alone as often, and three that come back: PSNR to the input."""
    _, pairs = exam.pairs("add", exam.args.drift_each)
    image, found, strips = pairs.source, [], [[picture] for picture in pairs.source]
    through, alone = pairs.source, []
    for prompt in CHAIN:
        image = exam.edit(image, [capital(prompt)] * len(image))
        found.append(round(_mean(figures.psnr(image, pairs.source)), 2))
        through = through_vae(exam.model, through)
        alone.append(round(_mean(figures.psnr(through, pairs.source)), 2))
        for strip, picture in zip(strips, image, strict=True):
            strip.append(picture)
    caption = "input, then five turns of: Leave it as it is"
    exam.sheet("nothing", [(strip, caption) for strip in strips[:SHOWN]], columns=1)
    rng = exam.rng("chain")
    drafts = [draft_pair(exam.index, "add", SIZES["1:1"], rng, held_out=True) for _ in range(exam.args.drift_each)]
    chain_plan = plan_drafts(drafts, ["add"] * len(drafts), rng, rough=False)
    start = compose(exam.pixels, chain_plan).source
    nouns = [draft.orders[0].slots.x for draft in drafts]
    colours = [rng.choice(list(bank.COLOURS)[:7]) for _ in drafts]
    first = exam.edit(start, chain_plan.plain_prompts)
    second = exam.edit(first, [f"Make the {noun} {colour}" for noun, colour in zip(nouns, colours, strict=True)])
    third = exam.edit(second, [f"Remove the {noun}" for noun in nouns])
    steps = zip(start, first, second, third, chain_plan.plain_prompts, colours, strict=True)
    rows = [([*pictures], f"{prompt}; make it {colour}; remove it") for *pictures, prompt, colour in steps]
    exam.sheet("chain", rows[:12], columns=2)
    return {"nothing": found, "vae": alone, "add_recolour_remove": round(_mean(figures.psnr(third, start)), 2)}


def measure_aspects(exam: Examiner) -> dict[str, Any]:
    """The edits of things at every size."""
    found: dict[str, Any] = {}
    for size in SIZES:
        rows: list[tuple[list[Tensor], str]] = []
        for kind in (*OBJECTS, "remove people", "bw"):
            plan, pairs = exam.pairs(kind, exam.args.aspect_each, size)
            figure, result = exam.score(plan, pairs, exam.prompts(plan))
            found.setdefault(size, {})[kind] = _rounded(figure)
            shown = zip(pairs.source, result, pairs.target, exam.prompts(plan), strict=True)
            rows += [([a, b, c], f"{kind}: {prompt}") for a, b, c, prompt in shown][:3]
        print(size, json.dumps({kind: figure["ok"] for kind, figure in found[size].items()}), flush=True)
        exam.sheet(f"size-{size.replace(':', 'x')}", rows, columns=2)
    return found


def measure_speed(exam: Examiner) -> dict[str, Any]:
    """Seconds an edit by the editor itself, float32 on two threads of the CPU; the first, a warm-up, left out."""
    from core.edit.editor import edit
    from core.edit.runtimes.torch_runtime import TorchRuntime
    from examples.tiny.sheets import to_image

    torch.set_num_threads(2)
    model = open_model(exam.folder, torch.device("cpu"))
    runtime = TorchRuntime(model.transformer)
    plan, pairs = exam.pairs("add", 6)
    seconds = []
    for picture, prompt in zip(pairs.source, plan.prompts, strict=True):
        start = time.perf_counter()
        edit(model, runtime, to_image(picture), prompt, seed=7, steps=exam.args.steps, guidance=model.spec.guidance)
        seconds.append(time.perf_counter() - start)
    size = sum(file.stat().st_size for file in exam.folder.rglob("*") if file.is_file())
    return {"seconds": [round(each, 2) for each in seconds[1:]], "mean": round(sum(seconds[1:]) / 5, 2),
            "folder_mb": round(size / 1e6, 1)}  # fmt: skip


def measure_precisions(exam: Examiner) -> dict[str, Any]:
    """The project's own `quantize` and `compare`, on held-out pairs; needs `kontext-tui[quant]`."""
    folder = exam.out / "pairs"
    write_pairs(exam, folder)
    command = [sys.executable, "-m", "kontext_tui"]
    model = ["--model", str(exam.folder.resolve()), "--quiet"]
    for precision in ("fp8", "fp4", "fp4-svd"):
        subprocess.run([*command, "quantize", *model, "--precision", precision], check=True)
    sheet = ["--pairs", str(folder), "--sheet", str(exam.out / "precisions.png"), "--json"]
    done = subprocess.run([*command, "compare", *model, *sheet], check=True, capture_output=True, text=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def write_pairs(exam: Examiner, folder: Path) -> None:
    """Held-out pairs as pictures, prompts and targets, the way `kontext-tui compare --pairs` reads them."""
    from examples.tiny.sheets import to_image

    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for kind in (*OBJECTS, "remove people", "background plain", "bw", "night"):
        plan, pairs = exam.pairs(kind, 2)
        for number, prompt in enumerate(plan.plain_prompts):
            name = f"{kind.replace(' ', '-')}-{number}"
            to_image(pairs.source[number]).save(folder / f"{name}.png")
            to_image(pairs.target[number]).save(folder / f"{name}-target.png")
            lines.append(json.dumps({"image": f"{name}.png", "prompt": prompt, "target": f"{name}-target.png"}))
    (folder / "pairs.jsonl").write_text("\n".join(lines) + "\n")


def in_words(phrasing: str, slots: Any) -> str:
    """A held-out phrasing with its slots filled."""
    article = {name: "an" if articles(f"a {noun}").startswith("an ") else "a" for name, noun in
               (("a", slots.x), ("a_y", slots.y))}  # fmt: skip
    return capital(
        phrasing.format(x=slots.x, xs=plural(slots.x), y=slots.y, c=slots.c, s=slots.s, p=slots.p, **article)
    )


def _mean(values: Tensor) -> float:
    return float(values.float().mean())


def _rounded(figure: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 3) for name, value in figure.items()}


PARTS: dict[str, Callable[[Examiner], dict[str, Any]]] = {
    "kinds": measure_kinds, "phrases": measure_phrases, "drift": measure_drift, "aspects": measure_aspects,
    "speed": measure_speed, "precisions": measure_precisions,
}  # fmt: skip


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("model", type=Path, help="a diffusers folder")
    parser.add_argument("out", type=Path, help="folder for figures.json and the sheets")
    parser.add_argument(
        "--only", nargs="+", default=["kinds", "phrases", "drift", "aspects", "speed"], choices=list(PARTS)
    )
    parser.add_argument("--kinds", nargs="+", default=list(WEIGHTS), choices=list(WEIGHTS), metavar="KIND")
    parser.add_argument("--each", type=int, default=96, help="pairs of each kind")
    parser.add_argument("--phrase-each", type=int, default=12, help="pairs of each held-out phrasing")
    parser.add_argument("--drift-each", type=int, default=24, help="pictures that go through five turns")
    parser.add_argument("--aspect-each", type=int, default=48, help="pairs of each kind and size")
    parser.add_argument(
        "--plain", action="store_true", help="plainest words and no people, as the first release was measured"
    )
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--seed", type=int, default=1234)
    parser.add_argument("--device", default=None)
    args = parser.parse_args(argv)
    exam = Examiner(args.model, args.out, args)
    file = args.out / "figures.json"
    found: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    for part in args.only:
        start = time.monotonic()
        found[part] = PARTS[part](exam)
        file.write_text(json.dumps(found, indent=1))
        print(f"{part}: {time.monotonic() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main()
