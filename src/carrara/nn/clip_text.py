"""CLIP's text tower (Radford et al. 2021): a pre-norm transformer in which every token sees the ones before it.

    h = words + positions;   h += SelfAttention(norm(h));   h += FeedForward(norm(h));   vector = norm(h)[last] P

The last token of a prompt is its end mark, which has seen all of it: its state, projected, is the vector for the whole.
Stable Diffusion reads the tokens of the last layer or, "clip skip", of an earlier one: normed in its first and second
version, as they are in SDXL.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from carrara.config import Configured
from carrara.nn.pretrained_text import ACTIVATIONS, Activation, BiasedAttention, check_ids, only_real

__all__ = ["CLIPTextTower"]


class _Block(nn.Module):
    """h + attention(norm(h)), then h + feed_forward(norm(h))."""

    def __init__(self, width: int, *, heads: int, hidden: int, activation: Activation, eps: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=eps)
        self.attention = BiasedAttention(width, heads=heads)
        self.norm2 = nn.LayerNorm(width, eps=eps)
        self.hidden = nn.Linear(width, hidden)
        self.back = nn.Linear(hidden, width)
        self._activation = ACTIVATIONS[activation]

    def forward(self, h: Tensor, allowed: Tensor) -> Tensor:
        h = h + self.attention(self.norm1(h), allowed)
        return h + self.back(self._activation(self.hidden(self.norm2(h))))


class CLIPTextTower(Configured, nn.Module):
    """Token ids to a sequence of vectors and one vector for the whole.

    vocabulary: number of ids. width, depth, heads, hidden: of the transformer. length: the longest sequence.
    pooled: width of the projected vector for the whole, None for one that is not projected. skip: layers at the end
    that the tokens do not go through. normed: whether the last norm is applied to them.
    """

    def __init__(
        self,
        *,
        vocabulary: int,
        width: int,
        depth: int,
        heads: int,
        hidden: int,
        length: int = 77,
        pooled: int | None = None,
        activation: Activation = "quick-gelu",
        eps: float = 1e-5,
        skip: int = 0,
        normed: bool = True,
    ) -> None:
        super().__init__()
        if not 0 <= skip < depth:
            raise ValueError(f"skip = {skip}, and there are {depth} layers; give 0 to {depth - 1}")
        self.words = nn.Embedding(vocabulary, width)
        self.positions = nn.Parameter(torch.randn(length, width) * 0.01)
        self.blocks = nn.ModuleList(
            _Block(width, heads=heads, hidden=hidden, activation=activation, eps=eps) for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width, eps=eps)
        self.projection = nn.Linear(width, pooled, bias=False) if pooled else nn.Identity()
        self.read, self.normed = depth - skip, normed

    @property
    def skips(self) -> int:
        """How many further layers the tokens can skip."""
        return self.read - 1

    def forward(
        self, ids: Tensor, mask: Tensor, skip: Tensor | None = None, *, padding: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Read ids (B, L) int64 with mask (B, L), true for real tokens: tokens (B, L, width), vector (B, pooled).

        Real tokens come first. Tokens of padding come out as zeros, but with `padding` as what the network makes of
        them. skip (B,) int64: further layers that a row's tokens do not go through, at most `skips`; the vector is that
        of the last one always. Raises ValueError for sequences over `length`.
        """
        check_ids(ids, mask, len(self.positions))
        before = torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool, device=ids.device).tril()
        h = tokens = self.words(ids) + self.positions[: ids.shape[1]]
        last = torch.full((len(ids), 1, 1), self.read, device=ids.device)
        last = last if skip is None else last - skip[:, None, None]
        for number, block in enumerate(self.blocks, start=1):
            h = block(h, before[None, None])
            tokens = torch.where(last == number, h, tokens)
        end = h[torch.arange(len(h), device=h.device), mask.sum(1) - 1]
        tokens = self.norm(tokens) if self.normed else tokens
        return tokens if padding else only_real(tokens, mask), self.projection(self.norm(end))
