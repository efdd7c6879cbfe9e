"""BERT and its kin (Devlin et al. 2018), on which sentence encoders stand: post-norm, and every token sees all.

    h = norm(words + positions);   h = norm(h + SelfAttention(h));   h = norm(h + FeedForward(h))

MPNet (Song et al. 2020) adds a bias by distance to the logits. A sentence's vector is the mean of its tokens or its
first one, of unit length where `unit` says so (Reimers & Gurevych 2019).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from carrara.config import Configured
from carrara.nn.pretrained_text import (
    ACTIVATIONS,
    Activation,
    BiasedAttention,
    DistanceBias,
    check_ids,
    mean_of,
    only_real,
)

__all__ = ["BertTextEncoder", "Pooling"]

Pooling = Literal["first", "mean"]


class _Block(nn.Module):
    """norm(h + attention(h)), then norm(h + feed_forward(h))."""

    def __init__(self, width: int, *, heads: int, hidden: int, activation: Activation, eps: float) -> None:
        super().__init__()
        self.attention = BiasedAttention(width, heads=heads)
        self.norm1 = nn.LayerNorm(width, eps=eps)
        self.hidden = nn.Linear(width, hidden)
        self.back = nn.Linear(hidden, width)
        self.norm2 = nn.LayerNorm(width, eps=eps)
        self._activation = ACTIVATIONS[activation]

    def forward(self, h: Tensor, allowed: Tensor) -> Tensor:
        h = self.norm1(h + self.attention(h, allowed))
        return self.norm2(h + self.back(self._activation(self.hidden(h))))


class BertTextEncoder(Configured, nn.Module):
    """Token ids to a sequence of vectors and one vector for the whole.

    vocabulary: number of ids. width, depth, heads, hidden: of the transformer. length: the longest sequence.
    buckets: of the bias by distance, None for none. pooling: which tokens are the vector. unit: it has length 1.
    """

    def __init__(
        self,
        *,
        vocabulary: int,
        width: int,
        depth: int,
        heads: int,
        hidden: int,
        length: int = 512,
        activation: Activation = "gelu",
        eps: float = 1e-12,
        buckets: int | None = None,
        pooling: Pooling = "mean",
        unit: bool = False,
    ) -> None:
        super().__init__()
        self.words = nn.Embedding(vocabulary, width)
        self.positions = nn.Parameter(torch.randn(length, width) * 0.02)
        self.norm = nn.LayerNorm(width, eps=eps)
        self.distances = DistanceBias(heads, buckets=buckets) if buckets else None
        self.blocks = nn.ModuleList(
            _Block(width, heads=heads, hidden=hidden, activation=activation, eps=eps) for _ in range(depth)
        )
        self.pooling, self.unit = pooling, unit

    def forward(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Read ids (B, L) int64 with mask (B, L), true for real tokens: tokens (B, L, width), vector (B, width).

        Tokens of padding come out as zeros. Each row has at least one real token. Raises ValueError for sequences over
        `length`.
        """
        check_ids(ids, mask, len(self.positions))
        allowed = mask[:, None, None] if self.distances is None else self.distances(mask)
        h = self.norm(self.words(ids) + self.positions[: ids.shape[1]])
        for block in self.blocks:
            h = block(h, allowed)
        vector = h[:, 0] if self.pooling == "first" else mean_of(h, mask)
        return only_real(h, mask), F.normalize(vector, dim=-1) if self.unit else vector
