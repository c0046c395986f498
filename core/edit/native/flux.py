"""FLUX's transformer as one function of rows: fused products, fused passes between them, attention in FP8.

The numbers are those of diffusers' `FluxTransformer2DModel` with the same weights. Text, noise and context tokens are
rows of one tensor, in this order, from the first block to the last; a step that reuses the context leaves its rows
out and appends the kept keys and values (`core.edit.context` says when that is allowed).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from core.edit.native import blocks
from core.edit.native.blocks import Double, Single, Stream
from core.edit.native.modulation import Modulations, round_rows
from core.edit.native.rounding import Attention, Rounding
from core.edit.native.weights import FP8, Matrix, Room, Unsupported, check
from core.edit.quantized import AttentionProcessor, AttentionScales, QuantLinear, hadamard_matrices
from core.edit.sampling import Conditioning

MOST_KNOWN = 64
"""Timesteps whose modulations are kept, 2 MB each at full size; those of longer edits are made step by step."""


@dataclass
class Prepared:
    """What stays the same over the steps of an edit: rows [tokens, width] of context and text, the timesteps [steps],
    what modulates each of them [steps, columns], and the angles [text + noise + context, dim / 2] of all tokens."""

    context: Tensor
    text: Tensor
    timesteps: Tensor
    modulations: Tensor
    cos: Tensor
    sin: Tensor
    known: bool
    """Whether all timesteps of the edit are among these; if not, `Flux.prepare_step` comes before each step."""

    def tensors(self) -> list[Tensor]:
        return [self.context, self.text, self.timesteps, self.modulations, self.cos, self.sin]


@dataclass
class Kept:
    """Keys and values [attentions, 2, context tokens, heads, dim], E4M3 where attention is."""

    rows: Tensor

    @property
    def bytes(self) -> int:
        return self.rows.numel() * self.rows.element_size()


class Flux:
    """A transformer's weights, fused. The given one is emptied of its blocks as they are taken over."""

    def __init__(self, transformer: Any, ops: ModuleType, *, fp8_attention: bool) -> None:
        """ops: `plain` or `kernels`. Raises `weights.Unsupported`, with the transformer as it was."""
        self.shell, self.ops, self.room = transformer, ops, Room()
        self.fp8_attention = fp8_attention
        config = transformer.config
        self.heads, self.dim = int(config.num_attention_heads), int(config.attention_head_dim)
        self.width = self.heads * self.dim
        self.dtype: torch.dtype = transformer.x_embedder.weight.dtype
        self.device: torch.device = transformer.x_embedder.weight.device
        doubles, singles = transformer.transformer_blocks, transformer.single_transformer_blocks
        for block in (*doubles, *singles):
            for linears in _sharing(block):
                check(linears)
            if self._scales(block.attn) is not None and not all(isinstance(o, QuantLinear) for o in _outs(block)):
                raise Unsupported("attention is quantized and the product after it is not")
        self.doubles: list[Double] = []
        self.singles: list[Single] = []
        for index, block in enumerate(doubles):
            self.doubles.append(self._double(block))
            doubles[index] = nn.Identity()
        for index, block in enumerate(singles):
            self.singles.append(self._single(block))
            singles[index] = nn.Identity()
        self.modulations = Modulations(list(self._modulating()), transformer.norm_out.linear)
        transformer.transformer_blocks, transformer.single_transformer_blocks = nn.ModuleList(), nn.ModuleList()

    # ---------------------------------------------------------------- taking weights over

    def _matrix(self, *linears: Any, after_attention: tuple[int, Tensor | None] | None = None) -> Matrix:
        return Matrix(linears, self.ops.unpack_fp4, self.room, after_attention=after_attention)

    def _scales(self, attn: Any) -> AttentionScales | None:
        """Where attention can be FP8 and the checkpoint has scales for it."""
        processor = attn.processor
        return processor.scales if self.fp8_attention and isinstance(processor, AttentionProcessor) else None

    def _attention(self, scales: AttentionScales | None, *outs: Matrix) -> Attention:
        """outs: what the output is multiplied by next; the coarsest of their scales serves all."""
        if scales is None:
            return Attention()
        steps = [out.attention_step for out in outs if out.attention_step is not None]
        mixes = None
        if scales.hadamard:
            mixes = torch.stack(hadamard_matrices(self.dim)).to(self.device, torch.bfloat16)
        step = torch.stack(steps).amax()
        return Attention(torch.stack([scales.q, scales.k, scales.v]).float(), mixes, step, step.reciprocal())

    def _stream(self, values: Tensor | None, norm: Any, qkv: tuple[Any, ...], norms: tuple[Any, Any], out: Any,
                feed: Any) -> Stream:  # fmt: skip
        return Stream(
            modulation=self._matrix(norm.linear),
            qkv=self._matrix(*qkv),
            norms=torch.stack([each.weight.detach() for each in norms]),
            out=self._matrix(out, after_attention=(self.width, values)),
            up=self._matrix(feed.net[0].proj),
            down=self._matrix(feed.net[2]),
        )

    def _double(self, block: Any) -> Double:
        attn = block.attn
        scales = self._scales(attn)
        values = None if scales is None else scales.v
        of_image, of_text = _sharing(block)
        to_image, to_text = _outs(block)
        norms = (attn.norm_added_q, attn.norm_added_k)
        text = self._stream(values, block.norm1_context, of_text, norms, to_text, block.ff_context)
        image = self._stream(values, block.norm1, of_image, (attn.norm_q, attn.norm_k), to_image, block.ff)
        return Double(text, image, self._attention(scales, text.out, image.out))

    def _single(self, block: Any) -> Single:
        attn = block.attn
        scales = self._scales(attn)
        out = self._matrix(block.proj_out, after_attention=(self.width, None if scales is None else scales.v))
        return Single(
            modulation=self._matrix(block.norm.linear),
            into=self._matrix(*_sharing(block)[0]),
            norms=torch.stack([attn.norm_q.weight.detach(), attn.norm_k.weight.detach()]),
            out=out,
            attention=self._attention(scales, out),
        )

    def _modulating(self) -> Iterator[Matrix]:
        for double in self.doubles:
            yield from (double.text.modulation, double.image.modulation)
        for single in self.singles:
            yield single.modulation

    def matrices(self) -> Iterator[Matrix]:
        yield from self._modulating()
        for double in self.doubles:
            for stream in (double.text, double.image):
                yield from (stream.qkv, stream.out, stream.up, stream.down)
        for single in self.singles:
            yield from (single.into, single.out)

    @property
    def bytes(self) -> int:
        """Of all weights, and the room to unpack one into."""
        shell = (*self.shell.parameters(), *self.shell.buffers())
        outside = sum(t.numel() * t.element_size() for t in shell)
        return int(outside) + self.room.bytes + sum(matrix.bytes for matrix in self.matrices())

    # ---------------------------------------------------------------- a step

    @torch.inference_mode()
    def prepare(self, conditioning: Conditioning) -> Prepared:
        """Raises ValueError for a batch: rows are of one edit."""
        if len(conditioning.context) != 1:
            raise ValueError(f"a step here is of one edit, not of {len(conditioning.context)}")
        cos, sin = self.shell.pos_embed(torch.cat([conditioning.text_ids, conditioning.image_ids]))
        timesteps = conditioning.timesteps
        known = timesteps is not None and len(timesteps) <= MOST_KNOWN
        if timesteps is None or not known:
            timesteps = conditioning.context.new_zeros(1)
        return Prepared(
            context=self.shell.x_embedder(conditioning.context[0]),
            text=self.shell.context_embedder(conditioning.prompt[0]),
            timesteps=timesteps.clone(),  # written over by the next edit
            modulations=self._modulate(timesteps, conditioning),
            cos=cos[:, ::2].float().contiguous(),
            sin=sin[:, ::2].float().contiguous(),
            known=known,
        )

    @torch.inference_mode()
    def prepare_step(self, prepared: Prepared, conditioning: Conditioning, timestep: Tensor) -> None:
        """timestep [1]: the only one that `prepared` is for, from now on."""
        prepared.timesteps.copy_(timestep)
        prepared.modulations.copy_(self._modulate(timestep, conditioning))

    def keep(self, context_tokens: int) -> Kept:
        """Room for the keys and values of an edit's context."""
        count = len(self.doubles) + len(self.singles)
        attentions: list[Attention] = [double.attention for double in self.doubles] + [
            single.attention for single in self.singles
        ]
        low = all(attention.steps is not None for attention in attentions)
        shape = (count, 2, context_tokens, self.heads, self.dim)
        return Kept(torch.empty(shape, dtype=FP8 if low else self.dtype, device=self.device))

    @torch.inference_mode()
    def velocity(
        self, prepared: Prepared, latents: Tensor, timestep: Tensor, kept: Kept | None = None, *, full: bool = True
    ) -> Tensor:
        """latents [noise tokens, channels], timestep [1] = sigma x 1000 -> [noise tokens, channels].

        NaN for a timestep that `prepared` does not have.
        """
        same = prepared.timesteps == timestep
        row = prepared.modulations.index_select(0, same.int().argmax(0, keepdim=True))[0]
        mods = self.modulations.of(torch.where(same.any(), row, torch.nan))
        noise = self.shell.x_embedder(latents)
        parts = [prepared.text, noise, prepared.context] if full else [prepared.text, noise]
        step = blocks.Step(self.ops, torch.cat(parts), prepared.cos, prepared.sin, len(prepared.text))
        of_noise = slice(len(prepared.text), len(prepared.text) + len(noise))
        step.reuse = not full
        for index, double in enumerate(self.doubles):
            step.kept = None if kept is None else kept.rows[index]
            blocks.double(step, double, mods[2 * index], mods[2 * index + 1])
        for index, single in enumerate(self.singles, len(self.doubles)):
            step.kept = None if kept is None else kept.rows[index]
            last = index + 1 == len(self.doubles) + len(self.singles)
            mod = mods[len(self.doubles) + index]
            blocks.single(step, single, mod, of_noise if last else None)  # nobody asks for the rest of the last
        scale, shift = mods[-1].chunk(2)
        result: Tensor = self.shell.proj_out(step.modulated(of_noise, shift, scale, Rounding()))
        return result

    def alone(self, ops: ModuleType | None = None) -> dict[str, Callable[..., tuple[Tensor, Tensor]]]:
        """Each block by its name in the checkpoint, called as diffusers calls its own: to see what it loses alone.

        ops: in place of the step's own.
        """

        def called(block: Double | Single) -> Callable[..., tuple[Tensor, Tensor]]:
            def call(
                *, hidden_states: Tensor, encoder_hidden_states: Tensor, temb: Tensor,
                image_rotary_emb: tuple[Tensor, Tensor], **_: Any,
            ) -> tuple[Tensor, Tensor]:  # fmt: skip
                h = torch.cat([encoder_hidden_states[0], hidden_states[0]])
                cos, sin = (angles[:, ::2].float().contiguous() for angles in image_rotary_emb)
                step = blocks.Step(ops or self.ops, h, cos, sin, encoder_hidden_states.shape[1])

                def by(matrix: Matrix) -> Tensor:
                    return matrix(round_rows(step.ops, F.silu(temb), matrix.rounding))[0]

                if isinstance(block, Double):
                    blocks.double(step, block, by(block.text.modulation), by(block.image.modulation))
                else:
                    blocks.single(step, block, by(block.modulation))
                for rows, y, gate in step.pending:
                    h[rows] += y * gate
                return h[None, : step.text_tokens], h[None, step.text_tokens :]

            return call

        named = {f"transformer_blocks.{index}": called(block) for index, block in enumerate(self.doubles)}
        return named | {f"single_transformer_blocks.{i}": called(block) for i, block in enumerate(self.singles)}

    def _modulate(self, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """[timesteps, columns]; the time as diffusers embeds it, through the activations' dtype in thousandths."""
        time = (timesteps / 1000).to(self.dtype) * 1000
        embed = self.shell.time_text_embed
        if conditioning.guidance is None:
            emb = embed(time, conditioning.pooled)
        else:
            emb = embed(time, conditioning.guidance.to(self.dtype) * 1000, conditioning.pooled)
        return self.modulations.table(self.ops, emb)


def _is_double(block: Any) -> bool:
    return hasattr(block, "ff")


def _sharing(block: Any) -> list[tuple[Any, ...]]:
    """Linears of diffusers' block that see the same input."""
    attn = block.attn
    if not _is_double(block):
        return [(attn.to_q, attn.to_k, attn.to_v, block.proj_mlp)]
    return [(attn.to_q, attn.to_k, attn.to_v), (attn.add_q_proj, attn.add_k_proj, attn.add_v_proj)]


def _outs(block: Any) -> list[Any]:
    """Linears that see attention's output."""
    return [block.attn.to_out[0], block.attn.to_add_out] if _is_double(block) else [block.proj_out]
