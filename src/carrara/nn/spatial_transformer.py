"""The transformer between a UNet's residual blocks (Rombach et al. 2022): pixels attend to one another and to a text.

    h = W_in norm(x)
    h = h + SelfAttention(LayerNorm(h));  h = h + Attention(LayerNorm(h), tokens);  h = h + FeedForward(LayerNorm(h))
    x + W_out h

The feed-forward multiplies one half of its hidden features by the GELU of the other (GEGLU, Shazeer 2020).
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from carrara.nn.attention import Attention
from carrara.nn.layers import initialise, norm, zero

__all__ = ["SpatialTransformer"]

_EPS = 1e-6  # of the group norm, whatever that of the residual blocks is
_WIDER = 4  # the feed-forward's hidden features


class _Block(nn.Module):
    """One round of self-attention, attention to the tokens, and the feed-forward, each added to its input."""

    def __init__(self, width: int, *, heads: int, context: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = Attention(width, heads=heads, bias=False)
        self.norm2 = nn.LayerNorm(width)
        self.cross = Attention(width, heads=heads, context=context, bias=False)
        self.norm3 = nn.LayerNorm(width)
        self.hidden = nn.Linear(width, 2 * _WIDER * width)
        self.back = nn.Linear(_WIDER * width, width)
        initialise(self)

    def forward(self, h: Tensor, tokens: Tensor, mask: Tensor | None) -> Tensor:
        h = h + self.attention(self.norm1(h))
        h = h + self.cross(self.norm2(h), tokens, mask)
        wide, gate = self.hidden(self.norm3(h)).chunk(2, 2)
        return h + self.back(wide * F.gelu(gate))


class SpatialTransformer(nn.Module):
    """x + a transformer of it, over the pixels of a feature map; zero at the start.

    depth: rounds. context: width of the tokens attended to.
    """

    def __init__(
        self, channels: int, *, depth: int, heads: int, context: int, groups: int = 32, group_width: int = 4
    ) -> None:
        super().__init__()
        self.norm = norm("group", channels, groups=groups, group_width=group_width, eps=_EPS)
        self.into = nn.Linear(channels, channels)
        self.blocks = nn.ModuleList(_Block(channels, heads=heads, context=context) for _ in range(depth))
        self.out = zero(nn.Linear(channels, channels))
        initialise(self.into)

    def forward(self, x: Tensor, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, C, H, W), tokens (B, L, context) and mask (B, L), true where a token counts, to (B, C, H, W)."""
        h = self.into(self.norm(x).flatten(2).transpose(1, 2))
        for block in self.blocks:
            h = block(h, tokens, mask)
        return x + self.out(h).transpose(1, 2).unflatten(2, x.shape[2:])
