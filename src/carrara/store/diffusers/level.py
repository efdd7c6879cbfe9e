"""Levels that say whole numbers: a foreign sampler may tell its network a step that is not quite where x_t is.

Some schedulers choose noise levels between the entries of their table and tell the network the nearest entry, others
the one below. The process is at t all the same; only what the network hears is rounded.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from carrara.diffusion.parameterization import IntegerStep, Level
from carrara.diffusion.process import Process

__all__ = ["Rounded", "Truncated"]

# A time is a quotient in float64, and so misses its step by an ulp or two.
_SLACK = 1e-6


@dataclass(frozen=True)
class Rounded(Level):
    """The nearest whole number; halves go to the even one."""

    inner: Level = field(default_factory=IntegerStep)

    def __call__(self, process: Process, t: Tensor) -> Tensor:
        return self.inner(process, t).round()

    def check(self, process: Process) -> None:
        self.inner.check(process)


@dataclass(frozen=True)
class Truncated(Level):
    """The whole number below; what misses a whole number by less than 1e-6 is that number."""

    inner: Level = field(default_factory=IntegerStep)

    def __call__(self, process: Process, t: Tensor) -> Tensor:
        return (self.inner(process, t) + _SLACK).floor()

    def check(self, process: Process) -> None:
        self.inner.check(process)
