"""Train kontext-tiny's VAE: `python -m examples.tiny.vae RUN --minutes 3`. Rarely needed: `train` keeps what it has.

Crops of the same pictures that `train` composites, L1 + 2 MSE + 3e-4 KL, and 0.2 LPIPS (VGG) where the package
`lpips` is installed. Writes RUN/model, which `train --start RUN/model --from-scratch` goes on from: a new VAE means
new latents. With `--settle` the decoder alone learns, so that what it draws is encoded to what it was drawn from: a
picture that goes through it turn after turn changes less, and the transformer's latents stay what they were.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from examples.tiny import bank, figures
from examples.tiny.compose import compose
from examples.tiny.model import SHIPPED, copy_model, open_model, save_part
from examples.tiny.muon import Muon
from examples.tiny.plans import Recipe, make_plan
from examples.tiny.train import Log

CROP = 128  # pixels
MIX, KL, LEARNED, AGAIN = 2.0, 3e-4, 0.2, 2.0
RATES = {"muon": 2e-3, "adamw": 1.5e-3}
USES = 6  # steps with the same pictures
TRIPS = 5  # through the VAE, for the figures at the end
Distance = Callable[[Tensor, Tensor], Tensor]


class Kernels:
    """Muon for convolutions: it takes matrices, so each kernel is also one, [out, in * height * width]."""

    def __init__(self, kernels: list[nn.Parameter]) -> None:
        self.kernels = kernels
        self.matrices = [nn.Parameter(kernel.detach().flatten(1)) for kernel in kernels]  # the same memory
        self.optimizer = Muon(self.matrices, lr=RATES["muon"], weight_decay=0, momentum=0.95)

    def step(self, rate: float) -> None:
        for matrix, kernel in zip(self.matrices, self.kernels, strict=True):
            matrix.grad = None if kernel.grad is None else kernel.grad.flatten(1)
        self.optimizer.param_groups[0]["lr"] = rate * RATES["muon"]
        self.optimizer.step()


class VaeTrainer:
    """A VAE (diffusers' AutoencoderKL) and its optimizers. settle: its decoder alone learns."""

    def __init__(self, vae: nn.Module, learned: Distance | None, *, settle: bool = False) -> None:
        self.vae, self.learned, self.settle = vae.requires_grad_(not settle).train(), learned, settle
        if settle:
            vae.decoder.requires_grad_(True)  # type: ignore[operator,union-attr]
        learning = [p for p in vae.parameters() if p.requires_grad]
        kernels = [p for p in learning if p.ndim == 4 and min(p.shape[:2]) >= 16]
        chosen = {id(p) for p in kernels}
        self.rest = [p for p in learning if id(p) not in chosen]
        self.muon = Kernels(kernels)
        self.adamw = torch.optim.AdamW(self.rest, lr=RATES["adamw"], betas=(0.9, 0.98), weight_decay=0)

    def take(self, image: Tensor, rate: float) -> float:
        """One step on crops [N, 3, CROP, CROP] in -1..1; their PSNR in dB before it."""
        posterior = self.vae.encode(image).latent_dist  # type: ignore[operator]
        latents = posterior.mode() if self.settle else posterior.sample()
        result = self.vae.decode(latents).sample  # type: ignore[operator]
        square = ((result - image) ** 2).mean()
        loss = (result - image).abs().mean() + MIX * square
        if self.settle:
            second = self.vae.encode(result.clamp(-1, 1)).latent_dist.mode()  # type: ignore[operator]
            result2 = self.vae.decode(second).sample  # type: ignore[operator]
            loss = loss + (result2 - image).abs().mean() + MIX * ((result2 - image) ** 2).mean()
            loss = loss + AGAIN * ((second - latents) ** 2).mean() / latents.var()
        else:
            loss = loss + KL * 0.5 * (posterior.mean**2 + posterior.var - 1 - posterior.logvar).mean()
        if self.learned is not None:
            few = slice(0, max(1, len(image) // 3))
            loss = loss + LEARNED * self.learned(result[few], image[few]).mean()
        self.vae.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.rest, 1.0)
        self.muon.step(rate)
        self.adamw.param_groups[0]["lr"] = rate * RATES["adamw"]
        self.adamw.step()
        return 10 * math.log10(4 / float(square.detach()))


@torch.no_grad()
def latent_scale(vae: nn.Module, image: Tensor) -> tuple[float, float]:
    """(shift, scaling) that give latents of these pictures mean 0 and variance 1."""
    latents = vae.encode(image).latent_dist.mode()  # type: ignore[operator]
    return round(float(latents.mean()), 4), round(1 / float(latents.std()), 4)


def learned_distance(device: torch.device) -> Distance | None:
    """LPIPS with VGG, where it is installed."""
    try:
        import lpips
    except ImportError:
        return None
    distance: Distance = lpips.LPIPS(net="vgg", verbose=False).to(device).requires_grad_(False)
    return distance


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--start", type=Path, default=SHIPPED)
    parser.add_argument("--from-scratch", action="store_true", help="fresh weights of the start's shape")
    parser.add_argument("--settle", action="store_true", help="the decoder alone, for pictures of many turns")
    parser.add_argument("--rate", type=float, default=1.0, help="of the learning rates; 0.2 with --settle")
    parser.add_argument("--minutes", type=float, default=3)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--device", default=None)
    args = parser.parse_args(argv)
    device = torch.device(args.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    index = bank.read_index()
    pixels, log, model = bank.read_pixels(index, device), Log(args.run / "log.jsonl"), open_model(args.start, device)
    torch.manual_seed(args.seed)
    vae = type(model.vae).from_config(model.vae.config).to(device) if args.from_scratch else model.vae
    trainer, recipe = VaeTrainer(vae, learned_distance(device), settle=args.settle), Recipe(sizes={"1:1": 1.0})
    start, step, pictures = time.monotonic(), 0, torch.empty(0)
    while (done := (time.monotonic() - start) / (60 * args.minutes)) < 1:
        if step % USES == 0:
            pairs = compose(pixels, make_plan(index, recipe, args.seed, step // USES, args.batch))
            pictures = torch.cat([pairs.source, pairs.target]) * 2 - 1
        rows = torch.randint(len(pictures), (args.batch,), device=device)
        x, y = (8 * int(n) for n in torch.randint((256 - CROP) // 8 + 1, (2,)))
        rate = args.rate * min(1.0, (step + 1) / 100) * min(1.0, (1 - done) / 0.75)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            psnr = trainer.take(pictures[rows, :, y : y + CROP, x : x + CROP], rate)
        step += 1
        if step % 100 == 0:
            log.write(step=step, psnr=round(psnr, 2))
    vae.eval().requires_grad_(False)
    if not args.settle:
        shift, scaling = latent_scale(vae, pictures[:64])
        vae.register_to_config(shift_factor=shift, scaling_factor=scaling)
    copy_model(args.start, args.run / "model", leave={"vae"})
    save_part(vae.cpu(), args.run / "model" / "vae")
    unseen = make_plan(index, Recipe(sizes={"1:1": 1.0}, held_out=True), args.seed, 0, args.batch)
    held = compose(pixels, unseen).source.cpu()
    through, trips = held, []
    with torch.no_grad():
        for _ in range(TRIPS):
            through = figures.in_levels(vae.float()(through * 2 - 1).sample / 2 + 0.5)
            trips.append(round(float(figures.psnr(through, held).mean()), 2))
    log.write(step=step, held_out_psnr=trips)


if __name__ == "__main__":
    main()
