"""Train kontext-tiny: `python -m examples.tiny.train RUN --minutes 9`.

RUN is a folder: RUN/model is the model so far (a diffusers folder in BF16, the moving average of the weights),
RUN/state what training goes on from, RUN/log.jsonl the learning curve. Called again with the same RUN it goes on.

Rectified flow: the model sees (1 - t) image + t noise and the context image, and learns noise - image
(https://arxiv.org/abs/2209.03003); block matrices by Muon, the rest by AdamW.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from core.edit.loading import Model, fast_vae
from core.edit.quantized import use_own_attention
from examples.tiny import bank, checkpoint
from examples.tiny.model import (
    SHIPPED,
    image_ids,
    more_blocks,
    open_model,
    start_anew,
    trainable,
    velocity,
    with_words,
    write_model,
)
from examples.tiny.muon import Muon
from examples.tiny.plans import SIZE_WEIGHTS, Recipe
from examples.tiny.replay import KINDS, Batch, Replay, Schedule

CONTEXT_NOISE = 0.12
REPORT = 100  # steps between lines of the log


@dataclass(frozen=True)
class Rates:
    """Learning rates, the steps to reach them, and the moving average's slowness."""

    muon: float = 3e-3
    adamw: float = 1e-3
    warm_up: int = 200
    average: float = 0.9985


class Trainer:
    """Weights, their moving average and the optimizers, a step at a time. Nothing here reads a clock."""

    def __init__(self, net: nn.ModuleDict, rates: Rates, seed: int, device: torch.device) -> None:
        self.net, self.rates, self.seed, self.device = net, rates, seed, device
        matrices, rest = split_parameters(net)
        self.rest = rest
        self.optimizers: dict[str, torch.optim.Optimizer] = {
            "muon": Muon(matrices, lr=rates.muon, weight_decay=0.01, momentum=0.95),
            "adamw": torch.optim.AdamW(
                rest, lr=rates.adamw, betas=(0.9, 0.98), weight_decay=0.0, fused=device.type == "cuda"
            ),
        }
        self.average = {name: p.detach().clone() for name, p in net.named_parameters()}
        self.step = 0

    def take(self, batch: Batch, rate: float) -> tuple[Tensor, Tensor]:
        """One step at `rate` of the learning rates; the loss and the error of each sample where it must change."""
        generator = torch.Generator(self.device).manual_seed(self.seed * 1_000_003 + self.step)
        error = flow_error(self.net, batch, generator)
        loss = (error * batch.weight).sum() / batch.weight.sum()
        for optimizer in self.optimizers.values():
            optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.rest, 1.0)
        for name, optimizer in self.optimizers.items():
            for group in optimizer.param_groups:
                group["lr"] = rate * getattr(self.rates, name)
            optimizer.step()
        self.step += 1
        keep = min(self.rates.average, (1 + self.step) / (20 + self.step))
        with torch.no_grad():
            weights = [p.detach() for p in self.net.parameters()]
            torch._foreach_lerp_(list(self.average.values()), weights, 1 - keep)
            changed = (batch.weight > 1).float()
            changed += changed.sum(1, keepdim=True) == 0  # where nothing must change, everything counts
            return loss.detach(), (error.detach() * changed).sum(1) / changed.sum(1).clamp_min(1)

    def rate(self, decayed: float) -> float:
        """The share of the learning rate: warming up at first, and down to 0 as `decayed` goes from 0 to 1."""
        return min(1.0, (self.step + 1) / self.rates.warm_up) * max(0.0, 1 - decayed)


def split_parameters(net: nn.ModuleDict) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """The matrices of the transformer's blocks, modulation apart, and everything else."""
    matrices, rest = [], []
    for name, parameter in net.named_parameters():
        block = name.startswith("transformer.") and "blocks" in name and ".linear." not in name
        (matrices if block and parameter.ndim == 2 else rest).append(parameter)
    return matrices, rest


def flow_error(net: nn.ModuleDict, batch: Batch, generator: torch.Generator) -> Tensor:
    """Squared error of the velocity of each token, [N, T]."""
    device, count = batch.source.device, len(batch.source)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device=device)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, device=device)

    noisy_context = CONTEXT_NOISE * uniform(count, 1, 1) * (uniform(count, 1, 1) < 0.5)
    context = batch.source + noisy_context * normal(*batch.source.shape)
    sigma = torch.sigmoid(1.1 * normal(count) + 0.4)
    sigma = torch.where(uniform(count) < 0.12, 1 - 0.02 * uniform(count), sigma)  # the first steps decide what comes
    noise, t = normal(*batch.target.shape), sigma.view(-1, 1, 1)
    noisy = (1 - t) * batch.target + t * noise
    ids = image_ids(batch.size, like=noisy)
    with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
        found = velocity(net, noisy, context, batch.clip, batch.t5, sigma, ids)
    return ((found.float() - (noise - batch.target)) ** 2).mean(2)


def prepare_gpu(net: nn.ModuleDict, *, eager: bool) -> None:
    """Fast and safe on a GPU: TF32, no cuDNN attention (it read out of bounds on one machine), compiled blocks.

    The first size compiles for itself, the second for all others. Compiling the VAE too would take longer than it
    saves, and so would letting cuDNN try its convolutions for each size.
    """
    import torch._inductor.config as inductor

    # torch 2.11 puts no brackets around a dynamic size there: "shape is invalid" in the first backward pass.
    if hasattr(inductor.triton, "mix_order_reduction"):
        inductor.triton.mix_order_reduction = False
    torch.set_float32_matmul_precision("high")
    torch.backends.cuda.enable_cudnn_sdp(False)
    use_own_attention(net["transformer"])
    if not eager:
        net["transformer"].compile_repeated_blocks()  # type: ignore[operator]


def half_vae(model: Model) -> Model:
    """The same model with a BF16 copy of its VAE, to encode pairs with on a GPU."""
    if model.device.type != "cuda":
        return model
    vae = fast_vae(copy.deepcopy(model.vae).to(torch.bfloat16), model.device)
    return replace(model, vae=vae, dtype=torch.bfloat16)


def train(args: argparse.Namespace) -> None:
    device = torch.device(args.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    clock, log = time.monotonic(), Log(args.run / "log.jsonl")
    index = bank.read_index()
    pixels = bank.read_pixels(index, device)
    source = args.run / "start"
    if not source.exists():
        with_words(args.start, source, index)
        more_blocks(source, args.more_blocks)
    model = open_model(source, device)
    net = trainable(model)
    if args.from_scratch and not (args.run / "state").exists():
        start_anew(net, args.seed)
    blank = copy.deepcopy(net).cpu()
    trainer = Trainer(net, Rates(args.muon, args.adamw, args.warm_up, args.average), args.seed, device)
    if (args.run / "state").exists():
        tensors, info = checkpoint.load(args.run / "state")
        checkpoint.restore(tensors, net, trainer.average, trainer.optimizers)
        trainer.step = info["step"]
    if device.type == "cuda":
        prepare_gpu(net, eager=args.eager)
    recipe = Recipe(sizes=dict(args.sizes))
    schedule = Schedule(args.pairs, args.batch, args.buffer // args.pairs, args.prefill // args.pairs, args.reuse)
    replay = Replay(half_vae(model), index, pixels, recipe, args.seed, schedule, trainer.step, args.workers)
    log.write(step=trainer.step, event="start", device=_name(device), torch=torch.__version__,
              parameters=sum(p.numel() for p in net.parameters()),
              seconds=round(time.monotonic() - clock, 1))  # fmt: skip

    def save(name: str) -> None:
        write_model(source, args.run / "model", blank, trainer.average, args.shard)
        checkpoint.save(
            args.run / "state", checkpoint.flatten(net, trainer.average, trainer.optimizers),
            {"step": trainer.step, "seed": args.seed}, args.split_mib,
        )  # fmt: skip
        log.write(step=trainer.step, event=name, seconds=round(time.monotonic() - clock, 1))

    first, saved, means = trainer.step, time.monotonic(), Means(device)
    while True:
        minutes = (time.monotonic() - clock) / 60
        if minutes >= args.minutes or trainer.step - first >= args.steps:
            break
        decayed = 1 - (args.minutes - minutes) / args.decay_minutes if args.decay_minutes else 0.0
        if args.decay_steps:
            decayed = max(decayed, 1 - (first + args.steps - trainer.step) / args.decay_steps)
        generator = torch.Generator(device).manual_seed(args.seed * 1_000_003 + trainer.step + 500_000_000)
        batch = replay.batch(trainer.step, generator)
        means.add(*trainer.take(batch, trainer.rate(max(0.0, decayed))), batch.kind)
        if trainer.step % args.report == 0:
            log.write(step=trainer.step, minutes=round(minutes, 2), pairs=replay.made * args.pairs, **means.read())
        if time.monotonic() - saved > 60 * args.save_minutes:
            save("saved")
            saved = time.monotonic()
    save("done")
    if device.type == "cuda":
        log.write(step=trainer.step, event="memory", gib=round(torch.cuda.max_memory_allocated() / 2**30, 1))


class Means:
    """Sums on the device, read once in a while: a loss, and by kind the error where something must change."""

    def __init__(self, device: torch.device) -> None:
        self.loss = torch.zeros(2, device=device)
        self.kinds = torch.zeros(2, len(KINDS), device=device)
        self.samples, self.since = 0, time.monotonic()

    def add(self, loss: Tensor, errors: Tensor, kinds: Tensor) -> None:
        self.loss += torch.stack([loss, torch.ones_like(loss)])
        self.kinds.index_add_(1, kinds, torch.stack([errors, torch.ones_like(errors)]))
        self.samples += len(kinds)

    def read(self) -> dict[str, Any]:
        loss, kinds = self.loss.tolist(), self.kinds.tolist()
        seconds = time.monotonic() - self.since
        found = {
            "loss": round(loss[0] / loss[1], 4),
            "changed": {k: round(s / n, 3) for k, s, n in zip(KINDS, *kinds, strict=True) if n},
            "samples_per_second": round(self.samples / seconds),
        }
        self.loss.zero_()
        self.kinds.zero_()
        self.samples, self.since = 0, time.monotonic()
        return found


class Log:
    """One JSON object a line, in a file and on the terminal."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path

    def write(self, **values: Any) -> None:
        line = json.dumps(values)
        print(line, flush=True)
        with self.path.open("a") as stream:
            stream.write(line + "\n")


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def _sizes(text: str) -> Iterator[tuple[str, float]]:
    for entry in text.split(","):
        name, _, weight = entry.partition("=")
        if name not in SIZE_WEIGHTS:
            raise argparse.ArgumentTypeError(f"no size {name!r}: name some of {', '.join(SIZE_WEIGHTS)}")
        yield name, float(weight or 1)


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("run", type=Path, help="folder of the run; goes on where it stopped")
    parser.add_argument("--start", type=Path, default=SHIPPED, help="model to start from")
    parser.add_argument("--from-scratch", action="store_true", help="keep only the start's VAE and tokenizers")
    parser.add_argument(
        "--more-blocks",
        type=int,
        default=0,
        help="single blocks to put behind the start's: they change nothing at first",
    )
    parser.add_argument("--minutes", type=float, default=float("inf"), help="stop after this long, start-up included")
    parser.add_argument("--steps", type=float, default=float("inf"), help="stop after this many more steps")
    parser.add_argument(
        "--decay-minutes", type=float, default=0, help="learning rate down to 0 over the last minutes"
    )
    parser.add_argument("--decay-steps", type=float, default=0, help="the same over the last of --steps")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--device", default=None)
    parser.add_argument("--workers", type=int, default=6, help="processes that plan pairs ahead")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--pairs", type=int, default=256, help="pairs made at once")
    parser.add_argument("--buffer", type=int, default=32768, help="pairs kept")
    parser.add_argument("--prefill", type=int, default=8192, help="pairs made before the first step")
    parser.add_argument("--reuse", type=int, default=6, help="times that a pair is used")
    parser.add_argument("--muon", type=float, default=Rates.muon)
    parser.add_argument("--adamw", type=float, default=Rates.adamw)
    parser.add_argument("--warm-up", type=int, default=Rates.warm_up, help="steps to the full learning rates")
    parser.add_argument("--average", type=float, default=Rates.average, help="how much of the moving average stays")
    parser.add_argument(
        "--sizes", type=lambda t: list(_sizes(t)), default=list(SIZE_WEIGHTS.items()), help="1:1=3,3:2=1 ..."
    )
    parser.add_argument("--report", type=int, default=REPORT, help="steps between lines of the log")
    parser.add_argument("--eager", action="store_true", help="compile nothing (on a GPU)")
    parser.add_argument("--save-minutes", type=float, default=4)
    parser.add_argument("--split-mib", type=float, default=None, help="largest file of the state, in MiB")
    parser.add_argument("--shard", default="1GB", help="largest weights file of the model, as 15MB")
    return parser.parse_args(argv)


if __name__ == "__main__":
    train(arguments())
