"""PixArt's transformer (Chen et al. 2023, 2024): a DiT that reads words, whose blocks share one modulation.

    m  =  map(SiLU(c)),   c = embedding(level) + embedding(height, width, aspect ratio)
    h +=  gate_1 * SelfAttention((1 + scale_1) * norm(h) + shift_1)       where (shift, scale, gate)_1, _2 = m + offsets
    h +=  CrossAttention(h, tokens)
    h +=  gate_2 * FeedForward((1 + scale_2) * norm(h) + shift_2)

Each block has only its offsets of its own ("adaLN-single"), which spares a quarter of a DiT's parameters. The sizes are
read by PixArt-Alpha of 1024 pixels alone.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from carrara.config import Configured
from carrara.nn.attention import Attention
from carrara.nn.dit import PatchTransformer, modulate
from carrara.nn.embed import Conditioning, Reader, Sinusoidal, check_numbers, place_waves
from carrara.nn.layers import feed_forward, initialise, zero
from carrara.types import Condition

__all__ = ["PixArt"]

_WAVES = Sinusoidal(cosine_first=True)
_FEATURES = 256
_SIZES = ("height", "width", "aspect_ratio")
_NO_CONDITION = Condition()


class _Block(nn.Module):
    """Self-attention, cross-attention, feed-forward; the first and the last are modulated and gated."""

    def __init__(self, width: int, *, heads: int, ratio: float) -> None:
        super().__init__()
        self.attention = Attention(width, heads=heads)
        self.cross = Attention(width, heads=heads, context=width)
        self.feed_forward = feed_forward(width, ratio, "gelu-tanh")
        self.norm = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.offsets = nn.Parameter(torch.zeros(6, width))
        initialise(self.feed_forward)
        zero(self.cross.out)

    def forward(self, h: Tensor, m: Tensor, tokens: Tensor, mask: Tensor | None) -> Tensor:
        """The next h (B, N, width), of m (B, 6, width), tokens (B, L, width) and mask (B, L), true where to look."""
        n = (m + self.offsets).chunk(6, dim=1)
        h = torch.addcmul(h, n[2], self.attention(modulate(self.norm(h), n[0], n[1])))
        h = h + self.cross(h, tokens, mask)
        return torch.addcmul(h, n[5], self.feed_forward(modulate(self.norm(h), n[3], n[4])))


class _Sizes(nn.Module):
    """The numbers of `_SIZES` as one vector (B, width), a third each; height and width are read alike."""

    def __init__(self, width: int) -> None:
        super().__init__()
        if width % 3:
            raise ValueError(f"a width of {width} has no third for each of {_SIZES}; choose a multiple of 12")
        self.length, self.aspect = (Reader(_WAVES, _FEATURES, width // 3) for _ in range(2))
        initialise(self)

    def forward(self, condition: Condition, rows: int) -> Tensor:
        check_numbers(condition.numbers, _SIZES, rows)
        height, width, aspect = (condition.numbers[name] for name in _SIZES)
        return torch.cat((self.length(height), self.length(width), self.aspect(aspect)), 1)


class PixArt(Configured, PatchTransformer):
    """A transformer over patches that attend to words, for latents.

    in_channels, out_channels: of x and of the output; out_channels is 2C when the variance is learned.
    size: height and width trained at, or one number for both; any that `patch` divides can be given, over which the
    places of this one are stretched. spread: by which number those are divided.
    context: width of `condition.tokens`, which there have to be. width, depth, heads: of the transformer.
    sizes: it reads `condition.numbers`: "height" and "width" in pixels of the picture, and "aspect_ratio", the one over
    the other. ratio: hidden width of the feed-forward networks over `width`.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        out_channels: int,
        size: int | tuple[int, int],
        context: int,
        patch: int = 2,
        width: int = 1152,
        depth: int = 28,
        heads: int = 16,
        sizes: bool = False,
        spread: float = 1.0,
        ratio: float = 4.0,
    ) -> None:
        super().__init__()
        self.make_begin(size, patch, width)
        if spread <= 0:
            raise ValueError(f"spread = {spread}; give a number above 0")
        self.spread = spread
        self.embed = Conditioning(
            width=width,
            features=_FEATURES,
            embedding=_WAVES,
            in_channels=in_channels,
            context=context,
            token_norm=False,
        )
        self.sizes = _Sizes(width) if sizes else None
        self.inward = nn.Linear(in_channels * patch**2, width)
        self.words = nn.Sequential(nn.Linear(context, width), nn.GELU("tanh"), nn.Linear(width, width))
        self.modulation = zero(nn.Linear(width, 6 * width))
        self.blocks = nn.ModuleList(_Block(width, heads=heads, ratio=ratio) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.offsets = nn.Parameter(torch.zeros(2, width))
        self.outward = zero(nn.Linear(width, out_channels * patch**2))
        initialise(self.inward)
        initialise(self.words)

    def forward(self, x: Tensor, level: Tensor, condition: Condition = _NO_CONDITION) -> Tensor:
        """F(x, level, condition): x (B, in_channels, H, W) and level (B,) to (B, out_channels, H, W).

        Returns x's dtype. Raises ValueError for sizes, channels and parts of the condition that do not fit.
        """
        told = condition if self.sizes is None else replace(condition, numbers={})
        h, c, tokens = self.patches(x, level, told)
        if self.sizes is not None:
            c = c + self.sizes(condition, len(x))
        h = h + self._stretched(x.shape[2] // self.patch, x.shape[3] // self.patch, h)
        m, tokens = self.modulation(F.silu(c)).unflatten(1, (6, -1)), self.words(tokens)
        for block in self.blocks:
            h = block(h, m, tokens, condition.mask)
        return self.unpatch(modulate(self.norm(h), *(c[:, None] + self.offsets).chunk(2, dim=1)), x)

    def _stretched(self, height: int, width: int, h: Tensor) -> Tensor:
        """The places of `size` over height x width patches, (height * width, width of h), in h's dtype."""
        rows, columns = (
            torch.arange(count, dtype=torch.float32, device=h.device) / (count / trained) / self.spread
            for count, trained in zip((height, width), self.grid, strict=True)
        )
        return place_waves(rows, columns, h.shape[2]).to(h.dtype)
