"""Randomness for many rows at once. Carrara's own gives each row a stream of its own, which costs some 10 us a draw."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from carrara.rng import Rng


class Stream:
    """One generator for a whole batch, with as much of Rng as samplers and losses ask for."""

    def __init__(self, rows: int, seed: int, scale: float = 1.0) -> None:
        self.rows, self.scale, self.generator = rows, scale, torch.Generator().manual_seed(seed)

    def fork(self, *name: object) -> Rng:
        return cast(Rng, self)

    def normal(self, shape: Any, dtype: torch.dtype = torch.float64) -> Tensor:
        return self.scale * torch.randn(self.rows, *shape, generator=self.generator, dtype=dtype)

    def normal_like(self, x: Tensor) -> Tensor:
        return self.normal(x.shape[1:], x.dtype)

    def uniform(self) -> Tensor:
        return torch.rand(self.rows, generator=self.generator, dtype=torch.float64)


def stream(rows: int, seed: int, scale: float = 1.0) -> Rng:
    """A Stream, for whom a Rng is expected."""
    return cast(Rng, Stream(rows, seed, scale))
