"""Keyed randomness: every draw is a pure function of what it is for, and of nothing else.

A stream is named by words (a seed, a purpose, a sample's number, a step); its n-th draw depends on those words and on
n alone. So a picture does not depend on its batch mates, on the device count, on workers or on a resume.
Keys are hashed with BLAKE2b to 128 bits and drive numpy's counter-based Philox generator (Salmon et al. 2011).
"""

from __future__ import annotations

import hashlib
import operator
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

__all__ = ["Rng", "keyed", "permutation"]

Word = int | str


def keyed(*words: Word) -> np.random.Generator:
    """A numpy generator for the stream named by `words`; equal words give equal draws on every machine.

    Integers of any type (numpy's, say) count by their value. Raises TypeError for words that are neither str nor int.
    """
    text = "\x1f".join(f"str:{word}" if isinstance(word, str) else f"int:{operator.index(word)}" for word in words)
    digest = hashlib.blake2b(text.encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=np.frombuffer(digest, dtype="<u8")))


def permutation(n: int, *words: Word) -> np.ndarray:
    """The order of n things that the words name: int64 (n,)."""
    return keyed(*words, "permutation").permutation(n)


class Rng:
    """A row of independent streams: each method draws once for every row, from that row's stream alone."""

    def __init__(self, rows: Sequence[tuple[Word, ...]]) -> None:
        self._rows = [tuple(row) for row in rows]
        self._draws = 0

    @classmethod
    def seeds(cls, seeds: Sequence[int], *stream: Word) -> Rng:
        """One stream a seed: what sampling uses. Row i depends on seed i alone."""
        return cls([(int(seed), *stream) for seed in seeds])

    @classmethod
    def samples(cls, seed: int, samples: Sequence[int], *stream: Word) -> Rng:
        """One stream a training sample, named by its number in the run: what training uses."""
        return cls([(int(seed), *stream, int(sample)) for sample in samples])

    def __len__(self) -> int:
        return len(self._rows)

    def fork(self, *words: Word) -> Rng:
        """New streams of the same rows, independent of what is drawn here."""
        return Rng([(*row, *words) for row in self._rows])

    def rows(self, index: slice) -> Rng:
        """The same streams for some of the rows, from here on."""
        chosen = Rng(self._rows[index])
        chosen._draws = self._draws
        return chosen

    def _generators(self) -> list[np.random.Generator]:
        self._draws += 1
        return [keyed(*row, self._draws) for row in self._rows]

    def normal(self, shape: Sequence[int]) -> Tensor:
        """Standard normal (B, *shape), float32."""
        draws = [g.standard_normal(tuple(shape), dtype=np.float32) for g in self._generators()]
        return torch.from_numpy(np.stack(draws))

    def normal_like(self, x: Tensor) -> Tensor:
        """Standard normal noise with x's shape, type and device; x has one row a stream."""
        if len(x) != len(self):
            raise ValueError(f"x has {len(x)} rows and this rng has {len(self)} streams; give it one stream a row")
        return self.normal(x.shape[1:]).to(x.device, x.dtype)

    def uniform(self, shape: Sequence[int] = ()) -> Tensor:
        """Uniform on [0, 1), (B, *shape), float64."""
        return torch.from_numpy(np.stack([g.random(tuple(shape)) for g in self._generators()]))

    def integers(self, high: int, shape: Sequence[int] = ()) -> Tensor:
        """Uniform integers below `high`, (B, *shape), int64."""
        return torch.from_numpy(np.stack([g.integers(high, size=tuple(shape)) for g in self._generators()]))
