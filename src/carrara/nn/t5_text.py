"""T5's encoder (Raffel et al. 2020): a pre-norm transformer without biases, in which distance is a bias on the logits.

    h = words;   h += SelfAttention(rms(h));   h += FeedForward(rms(h));   tokens = rms(h)

FeedForward is W2 act(W1 h), or from version 1.1 on W2 (act(W1 h) * W3 h). UMT5 has a table of distances in every layer,
the others one for all. The vector for the whole is the mean of the tokens, of unit length where `unit` says so
(Ni et al. 2021).
"""

from __future__ import annotations

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

__all__ = ["T5TextEncoder"]


class _Rms(nn.Module):
    """x over its root mean square, times a learned gain."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


class _Block(nn.Module):
    """h + attention(rms(h)), then h + feed_forward(rms(h))."""

    def __init__(
        self, width: int, *, heads: int, head: int, hidden: int, activation: Activation, gated: bool, eps: float
    ) -> None:
        super().__init__()
        self.norm1 = _Rms(width, eps)
        self.attention = BiasedAttention(width, heads=heads, head=head, bias=False, scaled=False)
        self.norm2 = _Rms(width, eps)
        self.hidden = nn.Linear(width, hidden, bias=False)
        self.gate = nn.Linear(width, hidden, bias=False) if gated else None
        self.back = nn.Linear(hidden, width, bias=False)
        self._activation = ACTIVATIONS[activation]

    def forward(self, h: Tensor, bias: Tensor) -> Tensor:
        h = h + self.attention(self.norm1(h), bias)
        x = self.norm2(h)
        inner = self._activation(self.hidden(x))
        return h + self.back(inner if self.gate is None else inner * self.gate(x))


class T5TextEncoder(Configured, nn.Module):
    """Token ids to a sequence of vectors and their mean.

    vocabulary: number of ids. width, depth, heads, head (a head's width), hidden: of the transformer. gated: whether
    the feed-forward is. buckets, distance: of the table of distances. shared: one such table for all layers.
    """

    def __init__(
        self,
        *,
        vocabulary: int,
        width: int,
        depth: int,
        heads: int,
        head: int,
        hidden: int,
        activation: Activation = "relu",
        gated: bool = False,
        buckets: int = 32,
        distance: int = 128,
        shared: bool = True,
        eps: float = 1e-6,
        unit: bool = False,
    ) -> None:
        super().__init__()
        self.words = nn.Embedding(vocabulary, width)
        self.distances = nn.ModuleList(
            DistanceBias(heads, buckets=buckets, distance=distance) for _ in range(1 if shared else depth)
        )
        self.blocks = nn.ModuleList(
            _Block(width, heads=heads, head=head, hidden=hidden, activation=activation, gated=gated, eps=eps)
            for _ in range(depth)
        )
        self.norm = _Rms(width, eps)
        self.unit = unit

    def forward(self, ids: Tensor, mask: Tensor, *, padding: bool = False) -> tuple[Tensor, Tensor]:
        """Read ids (B, L) int64 with mask (B, L), true for real tokens: tokens (B, L, width), their mean (B, width).

        Tokens of padding are not attended to and come out as zeros, but with `padding` are tokens like any other. Each
        row has at least one real token.
        """
        check_ids(ids, mask)
        mask = torch.ones_like(mask) if padding else mask
        biases = [table(mask) for table in self.distances]
        h = self.words(ids)
        for number, block in enumerate(self.blocks):
            h = block(h, biases[number % len(biases)])
        tokens = self.norm(h)
        mean = mean_of(tokens, mask)
        return only_real(tokens, mask), F.normalize(mean, dim=-1) if self.unit else mean
