"""Look at the training data: `python -m examples.tiny.data SHEET.png` draws pairs of every kind with their words."""

from __future__ import annotations

import argparse
import random
from pathlib import Path

from examples.tiny import bank
from examples.tiny.compose import compose
from examples.tiny.edits import WEIGHTS
from examples.tiny.plans import SIZES, plan_kinds
from examples.tiny.sheets import contact_sheet


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sheet", type=Path, help="where to write the picture: .png or .jpg")
    parser.add_argument("--kinds", nargs="*", default=list(WEIGHTS), choices=list(WEIGHTS), metavar="KIND")
    parser.add_argument("--each", type=int, default=4, help="pairs of each kind")
    parser.add_argument("--size", default="1:1", choices=list(SIZES))
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--held-out", action="store_true", help="draw from the held-out half of the bank")
    parser.add_argument("--columns", type=int, default=4)
    args = parser.parse_args()
    index = bank.read_index()
    pixels = bank.read_pixels(index, "cpu")
    kinds = [kind for kind in args.kinds for _ in range(args.each)]
    rows = []
    for start in range(0, len(kinds), 16):
        rng = random.Random(f"{args.seed}/{start}")
        plan = plan_kinds(index, kinds[start : start + 16], SIZES[args.size], rng, held_out=args.held_out)
        pairs = compose(pixels, plan)
        rows += [
            ([before, after], f"{kind}: {prompt}")
            for before, after, kind, prompt in zip(pairs.source, pairs.target, plan.kinds, plan.prompts, strict=True)
        ]
    contact_sheet(rows, columns=args.columns, height=128).save(args.sheet)


if __name__ == "__main__":
    main()
