"""What the pretrained text encoders share: self-attention with a bias, activations by name, pooling, distances.

    softmax(s Q K^T + bias) V,   s = 1/sqrt(d) but for T5, whose bias by distance is learned at s = 1

Their padding is at the end and is never attended to, so that it changes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["ACTIVATIONS", "Activation", "BiasedAttention", "DistanceBias", "check_ids", "mean_of", "only_real"]

Activation = Literal["gelu", "gelu-tanh", "quick-gelu", "relu", "silu"]

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu-tanh": lambda x: F.gelu(x, approximate="tanh"),
    "quick-gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "relu": F.relu,
    "silu": F.silu,
}


class BiasedAttention(nn.Module):
    """Self-attention of (B, L, width); `head` is the width of a head where it is not width / heads."""

    def __init__(
        self, width: int, *, heads: int, head: int | None = None, bias: bool = True, scaled: bool = True
    ) -> None:
        super().__init__()
        if head is None and width % heads:
            raise ValueError(f"a width of {width} does not divide into {heads} heads; choose heads that divide it")
        inner = heads * (head or width // heads)
        self.heads = heads
        self.scale = None if scaled else 1.0
        self.qkv = nn.Linear(width, 3 * inner, bias=bias)
        self.out = nn.Linear(inner, width, bias=bias)

    def forward(self, h: Tensor, allowed: Tensor) -> Tensor:
        """`allowed` (B or 1, heads or 1, L, L): bool, true where a row may look; or what is added to the logits."""
        q, k, v = self.qkv(h).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        if allowed.is_floating_point():
            allowed = allowed.to(q.dtype)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=allowed, scale=self.scale)
        return self.out(mixed.transpose(1, 2).flatten(2))


class DistanceBias(nn.Module):
    """A learned number a head for how far, and on which side, another token is (Raffel et al. 2020).

    Half of the buckets are for each side; of those the first half for distances one by one, the others grow
    logarithmically up to `distance`, beyond which all is one.
    """

    def __init__(self, heads: int, *, buckets: int, distance: int = 128) -> None:
        super().__init__()
        self.table = nn.Embedding(buckets, heads)
        self.distance = distance

    def forward(self, mask: Tensor) -> Tensor:
        """(B, heads, L, L) for a mask (B, L): the bias, and minus infinity where there is nothing to look at."""
        places = torch.arange(mask.shape[1], device=mask.device)
        bias = self.table(self._buckets(places[None] - places[:, None])).permute(2, 0, 1)
        return bias.masked_fill(~mask[:, None, None], -math.inf)

    def _buckets(self, offset: Tensor) -> Tensor:
        side = self.table.num_embeddings // 2
        exact = side // 2
        far = offset.abs()
        growing = torch.log(far.clamp(min=1).float() / exact) / math.log(self.distance / exact) * (side - exact)
        beyond = (exact + growing.long()).clamp(max=side - 1)
        return torch.where(far < exact, far, beyond) + side * (offset > 0)


def check_ids(ids: Tensor, mask: Tensor, longest: int | None = None) -> None:
    """Raises ValueError for ids that are not (B, L) with L at most `longest`, or a mask of another shape."""
    if ids.ndim != 2 or (longest is not None and ids.shape[1] > longest):
        most = "" if longest is None else f" with L at most {longest}"
        raise ValueError(f"ids have shape {tuple(ids.shape)} and this network reads (B, L){most}; cut the sequence")
    if mask.shape != ids.shape:
        raise ValueError(f"mask has shape {tuple(mask.shape)} and ids {tuple(ids.shape)}; they must be the same")


def only_real(tokens: Tensor, mask: Tensor) -> Tensor:
    """The tokens (B, L, D) with zeros where the mask (B, L) is false."""
    return tokens * mask[:, :, None].to(tokens.dtype)


def mean_of(tokens: Tensor, mask: Tensor) -> Tensor:
    """The mean (B, D) over the tokens (B, L, D) where the mask (B, L) is true; zero where it never is."""
    return only_real(tokens, mask).sum(1) / mask.sum(1, keepdim=True).clamp(min=1).to(tokens.dtype)
