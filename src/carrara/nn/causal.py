r"""A causal transformer over a picture's tokens in raster order, told a condition (Radford et al. 2019).

    h_n = word(token_{n-1}) + place_n + map(vector),   word(token_{-1}) = a learned start
    h  += CausalSelfAttention(norm(h));   h += CrossAttention(norm(h), tokens);   h += FeedForward(norm(h))
    logits_n = head(norm(h_n)),                        of token n, given all before it

What is read a second time need not be computed a second time: with a `Cache` each call is given only the tokens that
are new, and appends their keys and values to those of the calls before. The keys and values of the condition's tokens
are computed in the first call. Cached or not, the logits are the same.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from carrara.config import Configured
from carrara.nn.attention import Attention, attend, attend_causal
from carrara.nn.embed import check_part
from carrara.nn.layers import check_counts, dtype_of, feed_forward, initialise
from carrara.types import Condition

__all__ = ["Cache", "CausalTransformer"]

_NO_CONDITION = Condition()


class _Memory:
    """One block's keys and values of the places read so far, and of the condition's tokens."""

    def __init__(self, places: int) -> None:
        self._places = places
        self.length = 0
        self._found: tuple[Tensor, Tensor] | None = None
        self.context: tuple[Tensor, Tensor] | None = None

    def append(self, *new: Tensor) -> tuple[Tensor, Tensor]:
        """All keys and values (B, heads, length, d) with the new ones."""
        if self._found is None:
            k, v = (x.new_empty(*x.shape[:2], self._places, x.shape[3]) for x in new)
            self._found = k, v
        begin, self.length = self.length, self.length + new[0].shape[2]
        for old, x in zip(self._found, new, strict=True):
            old[:, :, begin : self.length] = x
        k, v = (x[:, :, : self.length] for x in self._found)
        return k, v


class Cache:
    """What has been read of one batch of sequences: it belongs to one request, and grows by each call."""

    def __init__(self, depth: int, places: int) -> None:
        self.blocks = tuple(_Memory(places) for _ in range(depth))

    @property
    def length(self) -> int:
        """How many places have been read, the start included."""
        return self.blocks[0].length


class _Block(nn.Module):
    """Causal self-attention, cross-attention when there is a context, feed-forward: each of the norm, and added."""

    def __init__(
        self, width: int, *, heads: int, context: int | None, ratio: float, activation: Literal["silu", "gelu"],
        qk_norm: bool, dropout: float,
    ) -> None:  # fmt: skip
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = Attention(width, heads=heads, qk_norm=qk_norm)
        self.norm2 = None if context is None else nn.LayerNorm(width)
        self.cross = None if context is None else Attention(width, heads=heads, context=context, qk_norm=qk_norm)
        self.norm3 = nn.LayerNorm(width)
        self.feed_forward = feed_forward(width, ratio, activation)
        self.dropout = nn.Dropout(dropout)

    def forward(self, h: Tensor, tokens: Tensor | None, mask: Tensor | None, memory: _Memory | None) -> Tensor:
        """One block over h (B, N, width), which with a memory follows what that has read."""
        q, k, v = self.attention.project(self.norm1(h))
        if memory is not None:
            k, v = memory.append(k, v)
        h = h + self.dropout(self.attention.merge(attend_causal(q, k, v)))
        if self.cross is not None and self.norm2 is not None and tokens is not None:
            found = memory.context if memory is not None else None
            if found is None:
                found = self.cross.keys_values(tokens)
            if memory is not None:
                memory.context = found
            h = h + self.dropout(self.cross.merge(attend(self.cross.queries(self.norm2(h)), *found, mask)))
        return h + self.dropout(self.feed_forward(self.norm3(h)))


class CausalTransformer(Configured, nn.Module):
    """Tokens of a picture, in raster order, to the logits of each next one.

    vocabulary: number of different tokens. size: rows and columns of a picture's tokens, or one number for both.
    width, depth, heads: of the transformer; heads must divide width. context: width of `condition.tokens`, None
    without. vector: width of `condition.vector`, None without. ratio: hidden width of the feed-forward networks over
    `width`. qk_norm: bound the attention logits. dropout: share of what each branch adds that training leaves out.
    """

    def __init__(
        self,
        *,
        vocabulary: int,
        size: int | tuple[int, int],
        width: int = 256,
        depth: int = 6,
        heads: int = 4,
        context: int | None = None,
        vector: int | None = None,
        ratio: float = 4.0,
        activation: Literal["silu", "gelu"] = "gelu",
        qk_norm: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        rows, columns = (size, size) if isinstance(size, int) else size
        check_counts(vocabulary=vocabulary, size=(rows, columns), width=width, depth=depth, heads=heads)
        if not width * ratio >= 1:
            raise ValueError(f"ratio={ratio} leaves nothing of a width of {width}; give a number above 0, such as 4")
        self.length = rows * columns
        self.read, self.told = context, vector
        self.words = nn.Embedding(vocabulary, width)
        self.begin = nn.Parameter(torch.randn(width) * 0.02)
        self.places = nn.Parameter(torch.randn(self.length, width) * 0.02)
        self.vector = None if vector is None else nn.Linear(vector, width)
        self.token_norm = None if context is None else nn.LayerNorm(context)
        self.blocks = nn.ModuleList(
            _Block(
                width,
                heads=heads,
                context=context,
                ratio=ratio,
                activation=activation,
                qk_norm=qk_norm,
                dropout=dropout,
            )
            for _ in range(depth)
        )
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary)
        initialise(self)
        for layer in (self.words, self.head):
            nn.init.normal_(layer.weight, std=0.02)
        self._shrink_residuals(depth)

    def _shrink_residuals(self, depth: int) -> None:
        """Divide what each branch adds by sqrt(2 depth), so that the sum starts at one layer's size (GPT-2)."""
        with torch.no_grad():
            for name, parameter in self.blocks.named_parameters():
                if name.endswith(("attention.out.weight", "cross.out.weight", "feed_forward.2.weight")):
                    parameter.div_((2 * depth) ** 0.5)

    def cache(self) -> Cache:
        """An empty cache, for one batch of sequences."""
        return Cache(len(self.blocks), self.length)

    def forward(self, tokens: Tensor, condition: Condition = _NO_CONDITION, cache: Cache | None = None) -> Tensor:
        """Logits of the token after each place that is read, float32.

        tokens (B, n) int64 are a sequence's first: the start is read before them, and the logits are (B, n + 1,
        vocabulary). With a cache that has read before, they are the next ones: the logits are (B, n, vocabulary), and
        the condition is the one of the first call. Raises ValueError for more tokens than have a successor and for
        parts of the condition that do not fit.
        """
        done = 0 if cache is None else cache.length
        self._check(tokens, condition, done)
        h = self.words(tokens)
        if not done:
            h = torch.cat((self.begin.expand(len(tokens), 1, -1).to(h.dtype), h), 1)
        h = h + self.places[done : done + h.shape[1]]
        dtype = dtype_of(self)
        if self.vector is not None and condition.vector is not None:
            h = h + self.vector(condition.vector.to(dtype))[:, None]
        context = condition.tokens
        if self.token_norm is not None and context is not None:
            context = self.token_norm(context.to(dtype))
        h = self.dropout(h)
        for number, block in enumerate(self.blocks):
            h = block(h, context, condition.mask, None if cache is None else cache.blocks[number])
        return self.head(self.norm(h)).float()

    def _check(self, tokens: Tensor, condition: Condition, done: int) -> None:
        most = self.length - max(done, 1)
        if tokens.ndim != 2 or tokens.shape[1] > most or (done and not tokens.shape[1]):
            raise ValueError(
                f"tokens have shape {tuple(tokens.shape)} after {done} places; this network reads (B, n) with n at "
                f"most {most}, since a picture has {self.length} tokens and the last one has no successor"
            )
        rows = len(tokens)
        check_part("tokens", condition.tokens, self.read, "context", axis=2, ndim=3, rows=rows)
        check_part("vector", condition.vector, self.told, "vector", axis=1, ndim=2, rows=rows)
        if condition.image is not None or condition.numbers or condition.controls or condition.adapters:
            raise ValueError(
                "this network reads condition.tokens and condition.vector alone; drop image, numbers, controls and "
                "adapters"
            )
