"""Multi-head attention (Vaswani et al. 2017), once for all networks: self- and cross-attention, masked or not.

    Attention(Q, K, V) = softmax(Q K^T / sqrt(d)) V

The projections of one source are one matrix product. The rest is torch's fused `scaled_dot_product_attention`, or, for
short sequences in bfloat16 on a CPU, the formula itself: there the fused kernel trains up to twelve times slower.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from carrara.nn.layers import initialise, norm, zero

__all__ = ["Attention", "HeadRms", "SpatialAttention", "attend", "attend_causal"]

_SHORT = 256 * 256  # queries times keys: up to here the plain formula wins in bfloat16 on a CPU, far above it loses


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """softmax(q k^T / sqrt(d)) v for q (B, heads, N, d), k and v (B, heads, L, d), and mask (B, L), true where allowed.

    A row whose mask is false throughout gets zeros.
    """
    if mask is None:
        return _weigh(q, k, v, None)
    some = mask.any(1)[:, None, None, None]  # softmax over nothing is NaN: attend to all, then drop the result
    return torch.where(some, _weigh(q, k, v, mask[:, None, None, :] | ~some), 0.0)


def attend_causal(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """As `attend`, where the N queries are the last of the L positions and see themselves and what is before them."""
    queries, keys = q.shape[2], k.shape[2]
    if queries == 1:
        return _weigh(q, k, v, None)
    return _weigh(q, k, v, torch.ones(queries, keys, dtype=torch.bool, device=q.device).tril(keys - queries))


def _weigh(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor | None) -> Tensor:
    if q.device.type != "cpu" or q.dtype != torch.bfloat16 or q.shape[2] * k.shape[2] > _SHORT:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=allowed)
    logits = (q * q.shape[3] ** -0.5) @ k.mT
    if allowed is not None:
        logits = logits.masked_fill(~allowed, -math.inf)
    return logits.softmax(-1, dtype=torch.float32).to(v.dtype) @ v


class HeadRms(nn.Module):
    """Each head's vector divided by its root mean square, times a learned gain: (..., d) to the same."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """x with each vector of the last axis normalised."""
        return F.rms_norm(x, self.weight.shape, self.weight.to(x.dtype), 1e-6)


class Attention(nn.Module):
    """Attention over sequences, (B, N, width) to the same; the output projection is the caller's to zero.

    `context` is the width of the sequence attended to; None attends to x itself. `qk_norm` divides queries and keys by
    their root mean square a head, which keeps the logits bounded (Henry et al. 2020, Esser et al. 2024). `bias`: of
    queries, keys and values; the output projection always has one.
    """

    def __init__(
        self, width: int, *, heads: int, context: int | None = None, qk_norm: bool = False, bias: bool = True
    ) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"a width of {width} does not divide into {heads} heads; choose heads that divide it")
        self.heads = heads
        if context is None:
            self.qkv = nn.Linear(width, 3 * width, bias=bias)
        else:
            self.q = nn.Linear(width, width, bias=bias)
            self.kv = nn.Linear(context, 2 * width, bias=bias)
        self.q_norm = HeadRms(width // heads) if qk_norm else nn.Identity()
        self.k_norm = HeadRms(width // heads) if qk_norm else nn.Identity()
        self.out = nn.Linear(width, width)
        self.cross = context is not None
        initialise(self)

    def forward(self, x: Tensor, context: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """Attend from x (B, N, width) to context (B, L, context); mask (B, L) is true where that is allowed.

        A row with no position to attend to gets the output projection of zero: its padding never matters.
        """
        if self.cross and context is not None:
            q, (k, v) = self.queries(x), self.keys_values(context)
        else:
            q, k, v = self.project(x)
        return self.merge(attend(q, k, v, mask))

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of x (B, N, width) for attention to itself, (B, heads, N, d) each."""
        q, k, v = self._split(self.qkv(x), 3)
        return self.q_norm(q), self.k_norm(k), v

    def queries(self, x: Tensor) -> Tensor:
        """Queries (B, heads, N, d) of x (B, N, width) for attention to a context."""
        return self.q_norm(self._split(self.q(x), 1)[0])

    def keys_values(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values (B, heads, L, d) of a context (B, L, context)."""
        k, v = self._split(self.kv(context), 2)
        return self.k_norm(k), v

    def merge(self, h: Tensor) -> Tensor:
        """What the heads found (B, heads, N, d), through the output projection: (B, N, width)."""
        return self.out(h.transpose(1, 2).flatten(2))

    def _split(self, x: Tensor, parts: int) -> tuple[Tensor, ...]:
        """(B, N, parts * width) to `parts` tensors of (B, heads, N, width / heads)."""
        return x.unflatten(2, (parts, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)


class SpatialAttention(nn.Module):
    """x + Attention(group norm(x)) over the pixels of a feature map, zero at the start.

    With `context` given the pixels attend to a sequence (B, L, context), otherwise to one another.
    """

    def __init__(
        self,
        channels: int,
        *,
        heads: int,
        context: int | None = None,
        groups: int = 32,
        group_width: int = 4,
        eps: float = 1e-6,
    ) -> None:
        super().__init__()
        self.norm = norm("group", channels, groups=groups, group_width=group_width, eps=eps)
        self.attention = Attention(channels, heads=heads, context=context)
        zero(self.attention.out)

    def forward(self, x: Tensor, context: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """(B, C, H, W) to the same."""
        pixels = self.norm(x).flatten(2).transpose(1, 2)
        h = self.attention(pixels, context, mask)
        return x + h.transpose(1, 2).unflatten(2, x.shape[2:])
