"""A bidirectional pre-norm transformer over token ids: the network of text encoders (Devlin et al. 2018; CLIP's tower).

    h = word embeddings + positions;   h += SelfAttention(norm(h));   h += FeedForward(norm(h))

Every position sees every real token and no padding, so padding never changes anything.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from carrara.config import Configured
from carrara.nn.attention import Attention
from carrara.nn.layers import feed_forward, initialise

__all__ = ["TextTransformer"]


class _Block(nn.Module):
    """h + attention(norm(h)), then h + feed_forward(norm(h))."""

    def __init__(
        self, width: int, *, heads: int, ratio: float, activation: Literal["silu", "gelu"], dropout: float
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = Attention(width, heads=heads)
        self.norm2 = nn.LayerNorm(width)
        self.feed_forward = feed_forward(width, ratio, activation)
        self.dropout = nn.Dropout(dropout)

    def forward(self, h: Tensor, mask: Tensor | None) -> Tensor:
        h = h + self.dropout(self.attention(self.norm1(h), mask=mask))
        return h + self.dropout(self.feed_forward(self.norm2(h)))


class TextTransformer(Configured, nn.Module):
    """Token ids to a sequence of vectors and one vector for the whole.

    vocabulary: number of ids. width, depth, heads: of the transformer. length: the longest sequence.
    pooled: width of the vector for the whole, None for `width`. ratio: hidden width of feed-forward over `width`.
    """

    def __init__(
        self,
        *,
        vocabulary: int,
        width: int = 256,
        depth: int = 4,
        heads: int = 4,
        length: int = 64,
        pooled: int | None = None,
        ratio: float = 4.0,
        activation: Literal["silu", "gelu"] = "gelu",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.words = nn.Embedding(vocabulary, width)
        self.positions = nn.Parameter(torch.randn(length, width) * 0.01)
        self.blocks = nn.ModuleList(
            _Block(width, heads=heads, ratio=ratio, activation=activation, dropout=dropout) for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width)
        self.projection = nn.Linear(width, pooled or width)
        initialise(self)
        nn.init.normal_(self.words.weight, std=0.02)
        self._shrink_residuals(depth)

    def _shrink_residuals(self, depth: int) -> None:
        """Divide what each branch adds by sqrt(2 depth), so the sum starts at one layer's size (GPT-2)."""
        with torch.no_grad():
            for name, parameter in self.blocks.named_parameters():
                if name.endswith(("attention.out.weight", "feed_forward.2.weight")):
                    parameter.div_((2 * depth) ** 0.5)

    def forward(self, ids: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Read ids (B, L) int64 with mask (B, L), true for real tokens: tokens (B, L, width) and pooled (B, pooled).

        Without a mask all tokens are real. Tokens of padding come out as zeros; pooled is a linear map of the mean over
        the real ones, and of zero for a row that has none. Raises ValueError for sequences over `length`.
        """
        if ids.ndim != 2 or ids.shape[1] > len(self.positions):
            raise ValueError(
                f"ids have shape {tuple(ids.shape)} and this network reads (B, L) with L at most "
                f"{len(self.positions)}; cut the sequence or build it with a greater `length`"
            )
        if mask is not None and mask.shape != ids.shape:
            raise ValueError(f"mask has shape {tuple(mask.shape)} and ids {tuple(ids.shape)}; they must be the same")
        h = self.words(ids) + self.positions[: ids.shape[1]]
        for block in self.blocks:
            h = block(h, mask)
        h = self.norm(h)
        if mask is None:
            return h, self.projection(h.mean(1))
        real = mask[:, :, None].to(h.dtype)
        h = h * real
        mean = h.sum(1) / real.sum(1).clamp(min=1.0)
        return h, self.projection(mean)
