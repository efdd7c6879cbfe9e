"""The diffusion transformer (Peebles & Xie 2022): a picture as a sequence of patches, told the level by modulation.

    c        = embedding(level) + map(vector) + embeddings(numbers)
    h       += gate_1(c) * SelfAttention((1 + scale_1(c)) * norm(h) + shift_1(c))
    h       += gate_2(c) * CrossAttention((1 + scale_2(c)) * norm(h) + shift_2(c), tokens)        with a context
    h       += gate_3(c) * FeedForward((1 + scale_3(c)) * norm(h) + shift_3(c))

All shifts, scales and gates start at zero ("adaLN-zero"): every block starts as the identity and the output as zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from carrara.config import Configured
from carrara.nn.attention import Attention
from carrara.nn.embed import Conditioning, Embedding, Sinusoidal, position_grid
from carrara.nn.layers import Activation, feed_forward, initialise, zero
from carrara.types import Condition

__all__ = ["DiT", "DiTStem", "PatchTransformer", "modulate"]

_LEVEL = Sinusoidal(cosine_first=True)
_NO_CONDITION = Condition()


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """(1 + scale) * x + shift."""
    return torch.addcmul(shift, x, 1 + scale)


class _Block(nn.Module):
    """Self-attention, cross-attention when there is a context, feed-forward; each modulated, gated and added."""

    def __init__(
        self,
        width: int,
        *,
        heads: int,
        context: int | None,
        qk_norm: bool,
        ratio: float,
        activation: Activation,
        dropout: float,
    ) -> None:
        super().__init__()
        self.attention = Attention(width, heads=heads, qk_norm=qk_norm)
        self.cross = None if context is None else Attention(width, heads=heads, context=context, qk_norm=qk_norm)
        self.feed_forward = feed_forward(width, ratio, activation)
        self.norm = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.dropout = nn.Dropout(dropout)
        self.modulation = nn.Linear(width, (6 if context is None else 9) * width)
        initialise(self.feed_forward)
        zero(self.modulation)

    def forward(self, h: Tensor, c: Tensor, tokens: Tensor | None, mask: Tensor | None) -> Tensor:
        """One block over h (B, N, width), c (B, 1, width) through its SiLU, tokens (B, L, context), mask (B, L)."""
        m = self.modulation(c).chunk(6 if self.cross is None else 9, dim=-1)
        h = torch.addcmul(h, m[2], self.dropout(self.attention(modulate(self.norm(h), m[0], m[1]))))
        if self.cross is not None:
            h = torch.addcmul(h, m[8], self.dropout(self.cross(modulate(self.norm(h), m[6], m[7]), tokens, mask)))
        return torch.addcmul(h, m[5], self.dropout(self.feed_forward(modulate(self.norm(h), m[3], m[4]))))


class DiTStem(nn.Module):
    """How a DiT begins: patches of x with all that joins it, at their places, and the vector that modulates."""

    embed: Conditioning
    inward: nn.Linear
    positions: nn.Parameter | None
    patch: int
    grid: tuple[int, int]

    def begin(
        self, x: Tensor, level: Tensor, condition: Condition, hint: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """The patches (B, N, width) with `hint` added, the vector (B, 1, width) through its SiLU, and the tokens."""
        h, c, tokens = self.patches(x, level, condition)
        h = h + self._places(x.shape[2] // self.patch, x.shape[3] // self.patch, h)
        return h if hint is None else h + hint, F.silu(c)[:, None], tokens

    def patches(self, x: Tensor, level: Tensor, condition: Condition) -> tuple[Tensor, Tensor, Tensor | None]:
        """The patches (B, N, width) without their places, the vector (B, width), and the tokens."""
        if x.shape[2] % self.patch or x.shape[3] % self.patch:
            raise ValueError(
                f"x of {x.shape[2]} x {x.shape[3]} does not divide into patches of {self.patch}; "
                f"give it multiples of {self.patch}"
            )
        x, c, tokens = self.embed(x, level, condition)
        return self.inward(F.pixel_unshuffle(x, self.patch).flatten(2).transpose(1, 2)), c, tokens

    def _places(self, height: int, width: int, h: Tensor) -> Tensor:
        """The positions of a grid, (height * width, width of h), in h's dtype."""
        if self.positions is None:
            return position_grid(height, width, h.shape[2], trained=self.grid, device=h.device).to(h.dtype)
        if (height, width) != self.grid:
            raise ValueError(
                f"x has {height} x {width} patches and the learned positions are for {self.grid[0]} x {self.grid[1]}; "
                'give that size, or build the network with positions="sincos"'
            )
        return self.positions.to(h.dtype)


class PatchTransformer(DiTStem):
    """A transformer that begins and ends as a DiT does, whatever its blocks."""

    norm: nn.LayerNorm
    modulation: nn.Linear
    outward: nn.Linear

    def make_begin(self, size: int | tuple[int, int], patch: int, width: int) -> None:
        """The sizes; ValueError where they do not fit."""
        if width % 4:
            raise ValueError(f"a width of {width} has no quarter for the position waves; choose a multiple of 4")
        height, breadth = (size, size) if isinstance(size, int) else size
        if height % patch or breadth % patch:
            raise ValueError(f"size {height} x {breadth} does not divide into patches of {patch}; choose another patch")
        self.patch, self.grid = patch, (height // patch, breadth // patch)

    def make_end(self, out_channels: int, width: int) -> None:
        """What follows the blocks: nothing comes out of it at first."""
        self.norm = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.modulation = zero(nn.Linear(width, 2 * width))
        self.outward = zero(nn.Linear(width, out_channels * self.patch**2))
        initialise(self.inward)

    def end(self, h: Tensor, c: Tensor, x: Tensor) -> Tensor:
        """The patches h (B, N, width), modulated by c (B, 1, width), as a picture of x's size and dtype."""
        return self.unpatch(modulate(self.norm(h), *self.modulation(c).chunk(2, dim=-1)), x)

    def unpatch(self, h: Tensor, x: Tensor) -> Tensor:
        """The normed patches h (B, N, width) through the last linear map, as a picture of x's size and dtype."""
        h = self.outward(h)
        size = (x.shape[2] // self.patch, x.shape[3] // self.patch)
        return F.pixel_shuffle(h.transpose(1, 2).unflatten(2, size), self.patch).to(x.dtype)


class DiT(Configured, PatchTransformer):
    """A transformer over patches, for pixels or latents.

    in_channels, out_channels: of x and of the output; out_channels is 2C when the variance is learned.
    size: height and width trained at, or one number for both; with positions = "sincos" any size that `patch` divides
    can be given, the positions being stretched over it, with "learned" only this one.
    patch: pixels a side of a token. width, depth, heads: of the transformer; heads must divide width.
    context: width of `condition.tokens`, None without. vector: width of `condition.vector`, None without.
    image_channels: of `condition.image`, which joins x, and controls: of each of `condition.controls`, which do, too.
    numbers: names in `condition.numbers`. adapters: widths of `condition.adapters`.
    qk_norm: bound the attention logits. ratio: hidden width of the feed-forward networks over `width`.
    activation: "silu", "gelu" (exact) or "gelu-tanh". embedding: how the level becomes waves; features: how many.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        out_channels: int,
        size: int | tuple[int, int],
        patch: int = 2,
        width: int = 384,
        depth: int = 12,
        heads: int = 6,
        context: int | None = None,
        vector: int | None = None,
        image_channels: int = 0,
        numbers: tuple[str, ...] = (),
        controls: dict[str, int] | None = None,
        adapters: dict[str, int] | None = None,
        qk_norm: bool = False,
        ratio: float = 4.0,
        activation: Activation = "gelu",
        positions: Literal["sincos", "learned"] = "sincos",
        dropout: float = 0.0,
        embedding: Embedding = _LEVEL,
        features: int = 256,
    ) -> None:
        super().__init__()
        self.make_begin(size, patch, width)
        self.embed = Conditioning(
            width=width,
            features=features,
            embedding=embedding,
            in_channels=in_channels,
            context=context,
            vector=vector,
            image_channels=image_channels,
            numbers=numbers,
            controls=controls,
            adapters=adapters,
        )
        self.inward = nn.Linear(self.embed.channels * patch**2, width)
        learned = torch.randn(self.grid[0] * self.grid[1], width) * 0.02
        self.positions = nn.Parameter(learned) if positions == "learned" else None
        self.blocks = nn.ModuleList(
            _Block(
                width,
                heads=heads,
                context=context,
                qk_norm=qk_norm,
                ratio=ratio,
                activation=activation,
                dropout=dropout,
            )
            for _ in range(depth)
        )
        self.make_end(out_channels, width)

    def forward(
        self, x: Tensor, level: Tensor, condition: Condition = _NO_CONDITION, added: Sequence[Tensor] = ()
    ) -> Tensor:
        """F(x, level, condition): x (B, in_channels, H, W) and level (B,) to (B, out_channels, H, W).

        `added` (B, N, width) each joins what the first blocks make, one a block. Returns x's dtype. Raises ValueError
        for sizes, channels and parts of the condition that do not fit.
        """
        h, c, tokens = self.begin(x, level, condition)
        for i, block in enumerate(self.blocks):
            h = block(h, c, tokens, condition.mask)
            if i < len(added):
                h = h + added[i]
        return self.end(h, c, x)
