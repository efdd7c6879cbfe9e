"""Keyed randomness: every draw is a pure function of what it is for, and of nothing else.

A stream is named by words (a seed, a purpose, a sample's number, a step); its n-th draw depends on those words and on
n alone. So a picture does not depend on its batch mates, on the device count, on workers or on a resume.
Keys are hashed with BLAKE2b to 128 bits and drive numpy's counter-based Philox generator (Salmon et al. 2011).
"""

from __future__ import annotations

import hashlib
import math
import operator
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.random.bit_generator import ISeedSequence
from torch import Tensor

__all__ = ["Rng", "keyed", "permutation"]

Word = int | str

_GOLDEN = 0x9E3779B97F4A7C15  # 2^64 over the golden ratio


class _Key(ISeedSequence):
    """A key as it is. Philox(key=...) takes four times as long, since it asks the system for entropy first."""

    def __init__(self, digest: bytes) -> None:
        self._digest = digest

    def generate_state(self, n_words: int, dtype: Any = np.uint32) -> np.ndarray:
        return np.frombuffer(self._digest, dtype="<u8").astype(np.uint64)


def keyed(*words: Word) -> np.random.Generator:
    """A numpy generator for the stream named by `words`; equal words give equal draws on every machine.

    Integers of any type (numpy's, say) count by their value. Raises TypeError for words that are neither str nor int.
    """
    text = "\x1f".join(f"str:{word}" if isinstance(word, str) else f"int:{operator.index(word)}" for word in words)
    digest = hashlib.blake2b(text.encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(_Key(digest)))  # type: ignore[arg-type]


def permutation(n: int, *words: Word) -> np.ndarray:
    """The order of n things that the words name: int64 (n,)."""
    return keyed(*words, "permutation").permutation(n)


class Rng:
    """A row of independent streams: each method draws once for every row, from that row's stream alone.

    One word of a row is its number: the sample's number in training, the seed in sampling, otherwise the last integer.
    """

    def __init__(self, rows: Sequence[tuple[Word, ...]], *, place: int | None = None) -> None:
        self._rows = [tuple(row) for row in rows]
        self._place = place  # of the number among the words
        self._draws = 0

    @classmethod
    def seeds(cls, seeds: Sequence[int], *stream: Word) -> Rng:
        """One stream a seed: what sampling uses. Row i depends on seed i alone."""
        return cls([(int(seed), *stream) for seed in seeds], place=0)

    @classmethod
    def samples(cls, seed: int, samples: Sequence[int], *stream: Word) -> Rng:
        """One stream a training sample, named by its number in the run: what training uses."""
        return cls([(int(seed), *stream, int(sample)) for sample in samples], place=1 + len(stream))

    def __len__(self) -> int:
        return len(self._rows)

    def fork(self, *words: Word) -> Rng:
        """New streams of the same rows, independent of what is drawn here."""
        forked = Rng([(*row, *words) for row in self._rows], place=self._place)
        if self._place is None and self._rows:  # a forked integer is not the row's number
            forked._place = self._number(self._rows[0])
        return forked

    def rows(self, index: slice) -> Rng:
        """The same streams for some of the rows, from here on."""
        chosen = Rng(self._rows[index], place=self._place)
        chosen._draws = self._draws
        return chosen

    def _number(self, row: tuple[Word, ...]) -> int:
        """Where the row's number is among its words."""
        if self._place is not None:
            return self._place
        places = [place for place, word in enumerate(row) if not isinstance(word, str)]
        if not places:
            raise ValueError(f"the stream {row} has no number; give it one, as Rng.samples and Rng.seeds do")
        return places[-1]

    def numbers(self) -> tuple[int, ...]:
        """Each row's number: the global sample number in training, whatever the stream was forked into since."""
        return tuple(operator.index(row[self._number(row)]) for row in self._rows)  # type: ignore[arg-type]

    def _generators(self) -> list[np.random.Generator]:
        self._draws += 1
        return [keyed(*row, self._draws) for row in self._rows]

    def normal(self, shape: Sequence[int]) -> Tensor:
        """Standard normal (B, *shape), float32."""
        draws = np.empty((len(self), math.prod(shape)), dtype=np.float32)
        for row, generator in zip(draws, self._generators(), strict=True):
            generator.standard_normal(out=row, dtype=np.float32)
        return torch.from_numpy(draws.reshape(len(self), *shape))

    def normal_like(self, x: Tensor) -> Tensor:
        """Standard normal noise with x's shape, type and device; x has one row a stream."""
        if len(x) != len(self):
            raise ValueError(f"x has {len(x)} rows and this rng has {len(self)} streams; give it one stream a row")
        return self.normal(x.shape[1:]).to(x.device, x.dtype)

    def uniform(self, shape: Sequence[int] = ()) -> Tensor:
        """Uniform on [0, 1), (B, *shape), float64."""
        return torch.from_numpy(np.stack([g.random(tuple(shape)) for g in self._generators()]))

    def spread(self) -> Tensor:
        """Uniform on [0, 1), (B,) float64, and evenly spread over consecutive numbers of rows.

        Row n's draw is n steps of the golden ratio beyond a start that the row's other words name: a function of its
        own stream alone, and uniform in expectation over seeds. (A Weyl sequence, in 64-bit integers.)
        """
        self._draws += 1
        starts: dict[tuple[Word, ...], int] = {}
        shares = []
        for row, number in zip(self._rows, self.numbers(), strict=True):
            place = self._number(row)
            others = (*row[:place], *row[place + 1 :])
            if others not in starts:
                starts[others] = int(keyed(*others, "spread", self._draws).integers(2**64, dtype=np.uint64))
            shares.append((starts[others] + number * _GOLDEN) % 2**64 >> 11)
        return torch.tensor(shares, dtype=torch.float64) / 2**53

    def integers(self, high: int, shape: Sequence[int] = ()) -> Tensor:
        """Uniform integers below `high`, (B, *shape), int64."""
        return torch.from_numpy(np.stack([g.integers(high, size=tuple(shape)) for g in self._generators()]))
