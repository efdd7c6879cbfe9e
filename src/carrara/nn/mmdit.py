"""The diffusion transformer with joint attention (MM-DiT, Esser et al. 2024): words and patches as one sequence.

Each of the two has weights of its own, and both attend to both. With c = embedding(level) + map(vector) + ..., for the
patches h and the words w alike:

    h, w  +=  gate_1(c) * Attention over (h, w) of (1 + scale_1(c)) * norm + shift_1(c)
    h, w  +=  gate_2(c) * FeedForward((1 + scale_2(c)) * norm + shift_2(c))

So the words change from block to block with what is seen, which cross-attention leaves as they are. The last block
makes none. Shifts, scales and gates start at zero. Positions, patches and the modulation are those of `DiT`.
"""

from __future__ import annotations

from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from carrara.config import Configured
from carrara.nn.attention import Attention, attend
from carrara.nn.dit import PatchTransformer, modulate
from carrara.nn.embed import Conditioning, Embedding, Sinusoidal
from carrara.nn.layers import feed_forward, initialise, zero
from carrara.types import Condition

__all__ = ["MMDiT"]

_LEVEL = Sinusoidal(cosine_first=True)
_NO_CONDITION = Condition()


class _Stream(nn.Module):
    """What patches, or words, have of their own in a block; `last`: only what the others attend to."""

    def __init__(
        self, width: int, *, heads: int, qk_norm: bool, ratio: float, activation: Literal["silu", "gelu"], last: bool
    ) -> None:
        super().__init__()
        self.attention = Attention(width, heads=heads, qk_norm=qk_norm)
        self.norm = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.modulation = zero(nn.Linear(width, (2 if last else 6) * width))
        self.feed_forward = None if last else feed_forward(width, ratio, activation)
        if self.feed_forward is None:
            self.attention.q_norm, self.attention.out = nn.Identity(), cast(nn.Linear, nn.Identity())  # has no answer
        else:
            initialise(self.feed_forward)

    def ask(self, x: Tensor, c: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, Tensor, Tensor]]:
        """The block's modulations, and queries, keys and values."""
        m = self.modulation(c).chunk(2 if self.feed_forward is None else 6, dim=-1)
        return m, self.attention.project(modulate(self.norm(x), m[0], m[1]))

    def answer(self, x: Tensor, m: tuple[Tensor, ...], found: Tensor) -> Tensor:
        """x with what the heads found (B, heads, N, d), and then with its feed-forward."""
        if self.feed_forward is None:
            return x
        x = torch.addcmul(x, m[2], self.attention.merge(found))
        return torch.addcmul(x, m[5], self.feed_forward(modulate(self.norm(x), m[3], m[4])))


class _JointBlock(nn.Module):
    """Patches and words attend to one another, then each goes through a network of its own."""

    def __init__(
        self, width: int, *, heads: int, qk_norm: bool, ratio: float, activation: Literal["silu", "gelu"], last: bool
    ) -> None:
        super().__init__()
        options = {"heads": heads, "qk_norm": qk_norm, "ratio": ratio, "activation": activation}
        self.patches = _Stream(width, **options, last=False)  # type: ignore[arg-type]
        self.words = _Stream(width, **options, last=last)  # type: ignore[arg-type]

    def forward(self, h: Tensor, w: Tensor, c: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """h (B, N, width), w (B, L, width), c (B, 1, width) through its SiLU; mask (B, N + L), true where to look."""
        m, mine = self.patches.ask(h, c)
        n, theirs = self.words.ask(w, c)
        q, k, v = (torch.cat(pair, 2) for pair in zip(mine, theirs, strict=True))
        found = attend(q, k, v, mask)
        return self.patches.answer(h, m, found[:, :, : h.shape[1]]), self.words.answer(w, n, found[:, :, h.shape[1] :])


class MMDiT(Configured, PatchTransformer):
    """A transformer over patches and words, for pixels or latents; its parameters are those of `DiT`.

    context: width of `condition.tokens`, which there have to be.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        out_channels: int,
        size: int | tuple[int, int],
        context: int,
        patch: int = 2,
        width: int = 384,
        depth: int = 12,
        heads: int = 6,
        vector: int | None = None,
        image_channels: int = 0,
        numbers: tuple[str, ...] = (),
        controls: dict[str, int] | None = None,
        adapters: dict[str, int] | None = None,
        qk_norm: bool = True,
        ratio: float = 4.0,
        activation: Literal["silu", "gelu"] = "gelu",
        embedding: Embedding = _LEVEL,
        features: int = 256,
    ) -> None:
        super().__init__()
        self.make_begin(size, patch, width)
        self.positions = None
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
        self.words = nn.Linear(context, width)
        self.blocks = nn.ModuleList(
            _JointBlock(
                width, heads=heads, qk_norm=qk_norm, ratio=ratio, activation=activation, last=number == depth - 1
            )
            for number in range(depth)
        )
        self.make_end(out_channels, width)
        initialise(self.words)

    def forward(self, x: Tensor, level: Tensor, condition: Condition = _NO_CONDITION) -> Tensor:
        """F(x, level, condition): x (B, in_channels, H, W) and level (B,) to (B, out_channels, H, W).

        Returns x's dtype. Raises ValueError for sizes, channels and parts of the condition that do not fit.
        """
        h, c, tokens = self.begin(x, level, condition)
        w, mask = self.words(tokens), condition.mask
        if mask is not None:
            mask = F.pad(mask, (h.shape[1], 0), value=True)
        for block in self.blocks:
            h, w = block(h, w, c, mask)
        return self.end(h, c, x)
