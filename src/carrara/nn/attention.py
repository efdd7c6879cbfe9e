"""Multi-head attention (Vaswani et al. 2017), once for all networks: self- and cross-attention, masked or not.

    Attention(Q, K, V) = softmax(Q K^T / sqrt(d)) V

The projections of one source are one matrix product, the rest is torch's fused `scaled_dot_product_attention`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from carrara.nn.layers import initialise, norm, zero

__all__ = ["Attention", "SpatialAttention"]


class _HeadRms(nn.Module):
    """Each head's vector divided by its root mean square, times a learned gain: (..., d) to the same."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight.to(x.dtype), 1e-6)


class Attention(nn.Module):
    """Attention over sequences, (B, N, width) to the same; the output projection is the caller's to zero.

    `context` is the width of the sequence attended to; None attends to x itself. `qk_norm` divides queries and keys by
    their root mean square a head, which keeps the logits bounded (Henry et al. 2020, Esser et al. 2024).
    """

    def __init__(self, width: int, *, heads: int, context: int | None = None, qk_norm: bool = False) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"a width of {width} does not divide into {heads} heads; choose heads that divide it")
        self.heads = heads
        if context is None:
            self.qkv = nn.Linear(width, 3 * width)
        else:
            self.q = nn.Linear(width, width)
            self.kv = nn.Linear(context, 2 * width)
        self.q_norm = _HeadRms(width // heads) if qk_norm else nn.Identity()
        self.k_norm = _HeadRms(width // heads) if qk_norm else nn.Identity()
        self.out = nn.Linear(width, width)
        self.cross = context is not None
        initialise(self)

    def forward(self, x: Tensor, context: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """Attend from x (B, N, width) to context (B, L, context); mask (B, L) is true where that is allowed.

        A row with no position to attend to gets the output projection of zero: its padding never matters.
        """
        if self.cross and context is not None:
            q, k, v = self._split(self.q(x), 1) + self._split(self.kv(context), 2)
        else:
            q, k, v = self._split(self.qkv(x), 3)
        q, k = self.q_norm(q), self.k_norm(k)
        if mask is None:
            h = F.scaled_dot_product_attention(q, k, v)
        else:
            some = mask.any(1)[:, None, None, None]  # softmax over nothing is NaN: attend to all, then drop the result
            h = F.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None, :] | ~some)
            h = torch.where(some, h, 0.0)
        return self.out(h.transpose(1, 2).flatten(2))

    def _split(self, x: Tensor, parts: int) -> tuple[Tensor, ...]:
        """(B, N, parts * width) to `parts` tensors of (B, heads, N, width / heads)."""
        return x.unflatten(2, (parts, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)


class SpatialAttention(nn.Module):
    """x + Attention(group norm(x)) over the pixels of a feature map, zero at the start.

    With `context` given the pixels attend to a sequence (B, L, context), otherwise to one another.
    """

    def __init__(
        self, channels: int, *, heads: int, context: int | None = None, groups: int = 32, eps: float = 1e-6
    ) -> None:
        super().__init__()
        self.norm = norm("group", channels, groups=groups, eps=eps)
        self.attention = Attention(channels, heads=heads, context=context)
        zero(self.attention.out)

    def forward(self, x: Tensor, context: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """(B, C, H, W) to the same."""
        pixels = self.norm(x).flatten(2).transpose(1, 2)
        h = self.attention(pixels, context, mask)
        return x + h.transpose(1, 2).unflatten(2, x.shape[2:])
