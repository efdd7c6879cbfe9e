r"""Vector quantisation: every place of an encoding becomes one of K tokens, and a token becomes a vector again.

    z (B, C, h, w)  ->  indices (B, h, w) in [0, K)  ->  e_indices (B, C, h, w)

The rounding has no gradient, so the decoder's is handed to the encoder as it is (straight through): z + sg(e - z).

`VectorQuantizer` learns its codebook (van den Oord et al. 2017): a code is the running mean of the encodings that are
nearest to it (appendix A.1, with N a code's running count in units of the mean count, n that of one step),

    N <- d N + (1 - d) n,      e <- e + (1 - d) n / N (mean of its encodings - e),

which is their m / N without the sum m. What pulls the encodings to their codes is the commitment, c |z - sg(e)|^2.
A code that is hardly used any more is put where an encoding of this step lies, drawn with a probability proportional
to its squared distance from its own code, as k-means++ seeds (Arthur & Vassilvitskii 2007). This also makes the
codebook in the first place: in the first step nearly every code is unused.

`FSQ` rounds each of a few bounded channels to one of L_i levels (Mentzer et al. 2023): the codebook is a grid, so there
is nothing to learn, to collapse or to commit to; K is the product of the levels.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from carrara.config import Configured
from carrara.nn.layers import check_channels, check_counts
from carrara.rng import Rng

__all__ = ["FSQ", "Quantized", "Quantizer", "Seen", "VectorQuantizer"]

_CHUNK = 2**14  # encodings that are compared with all codes at a time
_GRACE = 3.0  # times the least usage is what a revived code begins with: about a hundred steps to prove itself


class Quantized(NamedTuple):
    """What becomes of an encoding."""

    z: Tensor  # (B, C, h, w) the codes, with the gradient passed straight through
    indices: Tensor  # (B, h, w) int64
    loss: Tensor  # (B,) what the encoder pays for its distance from the codes


class Seen(NamedTuple):
    """What a quantizer learns from some rows; sums and further rows of all rows of a step say all there is."""

    counts: Tensor  # (K,) float64: how often each code was used
    sums: Tensor  # (K, C) float64: of the encodings that used it
    offers: Tensor  # (M, 1 + C) float64: encodings to put unused codes at, each after its place in the queue

    @staticmethod
    def all(parts: Sequence[Seen]) -> Seen:
        """Everything that was seen in several parts of a step; ValueError for none."""
        if not parts:
            raise ValueError("nothing was seen in this step; observe every row before learning")
        counts, sums, offers = zip(*parts, strict=True)
        return Seen(torch.stack(counts).sum(0), torch.stack(sums).sum(0), torch.cat(offers))


class Quantizer(Configured, nn.Module, ABC):
    """What both kinds share; `usage` (K,) is how often each code was used of late, in units of the mean of all."""

    vocabulary: int  # K
    channels: int  # C, of the encoding
    usage: Tensor

    def __init__(self, vocabulary: int, channels: int, decay: float) -> None:
        super().__init__()
        if vocabulary < 2:
            raise ValueError(f"a vocabulary of {vocabulary} says nothing; give at least 2 codes")
        check_counts(channels=channels)
        if not 0 <= decay < 1:
            raise ValueError(f"decay = {decay}; give the share of the running mean that a step keeps, in [0, 1)")
        self.vocabulary, self.channels, self._decay = vocabulary, channels, decay
        self.register_buffer("usage", torch.zeros(vocabulary))

    @abstractmethod
    def forward(self, z: Tensor) -> Quantized:
        """Quantise z (B, C, h, w)."""

    @abstractmethod
    def embed(self, indices: Tensor) -> Tensor:
        """The vectors (B, C, h, w) of tokens (B, h, w) int64."""

    @torch.no_grad()
    def observe(self, z: Tensor, indices: Tensor, rng: Rng) -> Seen:
        """What there is to learn from these rows; `rng` has one stream a row, which nothing else draws from."""
        counts = torch.bincount(indices.flatten(), minlength=self.vocabulary).double()
        return Seen(counts, counts.new_zeros(self.vocabulary, 0), counts.new_zeros(0, 1))

    @torch.no_grad()
    def learn(self, seen: Seen) -> None:
        """Takes in all that was seen in a step, by all processes."""
        share = seen.counts.to(self.usage.device) * (self.vocabulary / seen.counts.sum().clamp(min=1).item())
        self.usage.copy_(self._decay * self.usage.double() + (1 - self._decay) * share)

    @property
    def perplexity(self) -> Tensor:
        """exp(entropy) of the codes' shares of late, from 1 (one code for everything) to K (all alike)."""
        share = self.usage.double() / self.usage.double().sum().clamp(min=1e-12)
        return torch.special.entr(share).sum().exp()


class VectorQuantizer(Quantizer):
    """A learned codebook.

    vocabulary: K, codes. channels: C, numbers a code; few (8 to 32) keep all codes within reach.
    decay: d, of the running means, a step. commitment: c, its weight in the loss. revive: a code used less often than
    this share of the mean is put elsewhere; 0 leaves the dead where they are.
    """

    codebook: Tensor

    def __init__(
        self,
        *,
        vocabulary: int = 512,
        channels: int = 16,
        decay: float = 0.99,
        commitment: float = 0.25,
        revive: float = 0.03,
    ) -> None:
        super().__init__(vocabulary, channels, decay)
        if commitment < 0 or not 0 <= revive < 1:
            raise ValueError(f"commitment = {commitment} and revive = {revive}; give 0 or more, and a share in [0, 1)")
        self._commitment, self._revive = commitment, revive
        # spread as little as untrained encodings are: the first step puts nearly all of them elsewhere
        self.register_buffer("codebook", torch.randn(vocabulary, channels) / math.sqrt(channels))

    def forward(self, z: Tensor) -> Quantized:
        """Each place's nearest code. Computed in float32 whatever z's dtype, also under autocast."""
        check_channels(z, self.channels, "z")
        indices = self._nearest(z)
        codes = self.embed(indices)
        loss = self._commitment * (z.float() - codes).square().flatten(1).mean(1)
        return Quantized(z + (codes.to(z.dtype) - z).detach(), indices, loss)

    @torch.no_grad()
    def _nearest(self, z: Tensor) -> Tensor:
        with torch.autocast(z.device.type, enabled=False):
            norms = self.codebook.square().sum(1)
            places = z.float().movedim(1, -1)
            found = [
                torch.addmm(norms, part, self.codebook.T, alpha=-2).argmin(1)
                for part in places.reshape(-1, self.channels).split(_CHUNK)
            ]
        return torch.cat(found).view(places.shape[:-1])

    def embed(self, indices: Tensor) -> Tensor:
        """The vectors (B, C, h, w) of tokens (B, h, w) int64, float32."""
        return F.embedding(indices, self.codebook).movedim(-1, 1)

    @torch.no_grad()
    def observe(self, z: Tensor, indices: Tensor, rng: Rng) -> Seen:
        """Each code's uses and the sum of their encodings; encodings to put unused codes at, if there are such codes.

        An encoding's place in the queue is an exponential draw over its squared distance D^2 to its code. The first in
        the queue are a draw without replacement with probabilities proportional to D^2 (Efraimidis & Spirakis 2006),
        which does not depend on how the rows are cut into parts.
        """
        flat, codes = z.movedim(1, -1).reshape(-1, self.channels).double(), indices.flatten()
        counts = torch.bincount(codes, minlength=self.vocabulary).double()
        sums = flat.new_zeros(self.vocabulary, self.channels).index_add_(0, codes, flat)
        unused = int((self.usage < self._revive).sum())
        if not unused:
            return Seen(counts, sums, flat.new_zeros(0, 1 + self.channels))
        far = (flat - self.codebook.double()[codes]).square().sum(1)
        draws = -torch.log1p(-rng.uniform(indices.shape[1:]).flatten().to(far.device))
        queue = (draws / far).view(len(z), -1)
        first = queue.topk(min(unused, queue.shape[1]), largest=False, sorted=False)
        vectors = flat.view(len(z), -1, self.channels).gather(1, first.indices[..., None].expand(-1, -1, self.channels))
        offers = torch.cat((first.values[..., None], vectors), -1).flatten(0, 1)
        return Seen(counts, sums, offers[offers[:, 0].isfinite()])

    @torch.no_grad()
    def learn(self, seen: Seen) -> None:
        """Moves the codes to the running means of what used them, and the unused ones to the first in the queue."""
        before = self.usage < self._revive
        super().learn(seen)
        counts, sums, offers = (tensor.to(self.codebook.device) for tensor in seen)
        share = counts * (self.vocabulary / counts.sum().clamp(min=1))
        weight = (1 - self._decay) * share / self.usage.double().clamp(min=1e-30)
        mean = sums / counts.clamp(min=1)[:, None]
        moved = self.codebook.double()
        moved = moved + torch.where(counts > 0, weight.clamp(max=1), 0.0)[:, None] * (mean - moved)
        # only those that were unused before this step, too: it is for so many that encodings were offered
        unused = (before & (self.usage < self._revive)).nonzero().flatten()
        first = offers[offers[:, 0].argsort(stable=True)][: len(unused), 1:]
        moved[unused[: len(first)]] = first
        self.usage[unused[: len(first)]] = _GRACE * self._revive
        self.codebook.copy_(moved)


class FSQ(Quantizer):
    """A grid: channel i is rounded to one of `levels[i]` values evenly spaced in [-1, 1].

    (8, 8, 8) are 512 codes, (8, 5, 5, 5) 1,000, (8, 8, 6, 5) 1,920, (7, 5, 5, 5, 5) 4,375 (Mentzer et al. 2023).
    """

    _base: Tensor
    _levels: Tensor

    def __init__(self, *, levels: tuple[int, ...] = (8, 8, 8)) -> None:
        if not levels or min(levels) < 2:
            raise ValueError(f"levels = {levels}; give at least 2 levels a channel, such as [8, 8, 8]")
        super().__init__(math.prod(levels), len(levels), 0.99)
        # an index is a number whose digits are the channels' levels, the first one the lowest
        self.register_buffer("_base", torch.tensor((1, *levels[:-1])).cumprod(0), persistent=False)
        self.register_buffer("_levels", torch.tensor(levels), persistent=False)

    def forward(self, z: Tensor) -> Quantized:
        """Each place's cell of the grid. Computed in float32 whatever z's dtype, and symmetric about z = 0."""
        check_channels(z, self.channels, "z")
        top = (self._levels - 1) / 2  # levels lie at -top, -top + 1, ..., top
        bounded = torch.tanh(z.float().movedim(1, -1)) * top
        levels = (bounded + top).round()
        indices = (levels.long() * self._base).sum(-1)
        rounded = (bounded + (levels - top - bounded).detach()) / top
        return Quantized(rounded.movedim(-1, 1).to(z.dtype), indices, z.new_zeros(len(z), dtype=torch.float32))

    def embed(self, indices: Tensor) -> Tensor:
        """The vectors (B, C, h, w) of tokens (B, h, w) int64, float32."""
        levels = indices[..., None] // self._base % self._levels
        return (2 * levels / (self._levels - 1) - 1).movedim(-1, 1)
