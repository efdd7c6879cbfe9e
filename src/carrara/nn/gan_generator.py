"""The generating network of a GAN after R3GAN (Huang et al. 2024): noise and a condition to z, in one pass.

    style = M(noise, E c)                          a map of two layers
    h     = basis * (S style)                      a learned picture a channel, at the coarsest size
    h     = blocks(h, style), doubled, blocks(h, style), ...
    z     = 1x1 convolution of h

Residual bottlenecks without normalisation (`carrara.nn.bottleneck`), bilinear doubling, no noise but the first. The
style also scales and shifts what is inside every block, which a caption of many words needs and R3GAN, told a class at
most, has not. At chosen resolutions the pixels may attend to the condition's tokens as well.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from carrara.config import Configured
from carrara.nn.attention import Attention
from carrara.nn.bottleneck import Bottleneck, Resize, gained, halvings, pooled, usual_widths
from carrara.nn.layers import check_counts, dtype_of, zero
from carrara.types import Condition

__all__ = ["ConvGenerator"]


class _CrossAttention(nn.Module):
    """x + Attention(pixels, tokens), zero at the start; queries and keys are of unit size, so no norm is needed."""

    def __init__(self, channels: int, context: int, heads: int) -> None:
        super().__init__()
        self.token_norm = nn.LayerNorm(context)
        self.attention = Attention(channels, heads=heads, context=context, qk_norm=True)
        zero(self.attention.out)

    def forward(self, x: Tensor, condition: Condition) -> Tensor:
        tokens = condition.tokens
        if tokens is None:
            raise ValueError("condition.tokens is missing, and this generator attends to it; give it that part")
        pixels = x.flatten(2).transpose(1, 2)
        h = self.attention(pixels, self.token_norm(tokens.to(dtype_of(self))), condition.mask)
        return x + h.transpose(1, 2).unflatten(2, x.shape[2:])


class ConvGenerator(Configured, nn.Module):
    """Noise (B, noise) and a condition to z (B, out_channels, *size).

    size: of z, (height, width) or one number. context, vector: widths of the condition's tokens and vector; without a
    vector the mean of the tokens is read. noise: numbers that a picture is drawn from. style: width of the vector that
    modulates. widths: channels at each resolution, coarsest first, each twice the size of the one before; none: as
    `usual_widths` says. blocks: at each resolution. attention: resolutions, numbered from 0, at which the pixels attend
    to the tokens. expansion, group: see `Bottleneck`.
    """

    def __init__(
        self,
        *,
        out_channels: int,
        size: int | tuple[int, int],
        context: int | None = None,
        vector: int | None = None,
        noise: int = 64,
        style: int = 256,
        widths: tuple[int, ...] = (),
        blocks: int = 2,
        attention: tuple[int, ...] = (),
        heads: int = 4,
        expansion: int = 2,
        group: int = 16,
    ) -> None:
        super().__init__()
        height, width = (size, size) if isinstance(size, int) else size
        widths = widths or usual_widths((height, width))
        check_counts(
            noise=noise, style=style, widths=widths, blocks=blocks, heads=heads, expansion=expansion, group=group
        )
        if len(widths) - 1 > halvings((height, width)):
            raise ValueError(
                f"{len(widths)} widths need a size that can be halved {len(widths) - 1} times down to 4 or more, and "
                f"{height} x {width} can be {halvings((height, width))} times; give fewer widths"
            )
        if not set(attention) <= set(range(len(widths))):
            raise ValueError(f"attention={attention} names resolutions, and there are {len(widths)}, numbered from 0")
        if attention and context is None:
            raise ValueError(f"attention={attention} is to tokens, and the text encoder gives none; leave it out")
        self.noise, self.size, self.read = noise, (height, width), context if vector is None else vector
        told = style if self.read else 0
        self.embed = nn.Linear(self.read, style) if self.read else None
        self.map1, self.map2 = nn.Linear(noise + told, style), nn.Linear(style, style)
        down = 2 ** (len(widths) - 1)
        self.basis = nn.Parameter(torch.randn(widths[0], height // down, width // down))
        self.stem = nn.Linear(style, widths[0])
        stages, resizes, attentions = [], [], nn.ModuleDict()
        for i, here in enumerate(widths):
            if i:
                resizes.append(Resize(widths[i - 1], here, up=True))
            if i in attention and context is not None:
                attentions[str(i)] = _CrossAttention(here, context, heads)
            total = blocks * len(widths)
            stages.append(
                nn.ModuleList(
                    Bottleneck(here, blocks=total, expansion=expansion, group=group, style=style) for _ in range(blocks)
                )
            )
        self.stages, self.resizes, self.attentions = nn.ModuleList(stages), nn.ModuleList(resizes), attentions
        self.outward = nn.Conv2d(widths[-1], out_channels, 1)
        for layer in (self.embed, self.map1, self.map2, self.stem, self.outward):
            if layer is not None:
                gained(layer)

    def forward(self, noise: Tensor, condition: Condition) -> Tensor:
        """z in the dtype of the noise (B, noise). Raises ValueError for noise or a condition of another width."""
        if noise.ndim != 2 or noise.shape[1] != self.noise:
            raise ValueError(f"noise has shape {tuple(noise.shape)} and this generator draws from (B, {self.noise})")
        told = pooled(condition, self.read, len(noise))
        dtype = dtype_of(self)
        read = noise.to(dtype)
        if self.embed is not None and told is not None:
            read = torch.cat((read, self.embed(told.to(dtype)).to(dtype)), 1)
        style = F.leaky_relu(self.map2(F.leaky_relu(self.map1(read), 0.2)), 0.2)
        h = self.basis * self.stem(style)[:, :, None, None]
        for i, stage in enumerate(self.stages):
            if i:
                h = self.resizes[i - 1](h)
            if str(i) in self.attentions:
                h = self.attentions[str(i)](h, condition)
            for block in cast(nn.ModuleList, stage):
                h = block(h, style)
        return self.outward(h).to(noise.dtype)
