"""Samplers as they are run to be measured: which there are, of which kind, and how often each asks.

What is counted are evaluations of E[x | x_t], not strides: a budget buys the longest grid that does not exceed it. The
samplers are those of the table of kinds, other packages' included; a sampler is stochastic if other random numbers lead
it elsewhere, and adaptive if a grid of twice as many strides asks no more. So one that is added there is measured too.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from carrara.diffusion.guidance import Guidance, Plain, guide
from carrara.diffusion.process import Process
from carrara.diffusion.schedule import Cosine, Schedule, Tabulated
from carrara.diffusion.times import Times, uniform
from carrara.oracle import Mixture, Oracle
from carrara.rng import Rng, Word
from carrara.run import finish
from carrara.store import kinds
from carrara.types import Condition, Estimate, Sampling

__all__ = ["Grid", "Problem", "Walk", "evaluations", "kind_of", "longest", "samplers"]

Walk = Callable[..., Sampling]
"""A sampler, called as walk(process, x, times, rng=rng)."""

Grid = Callable[..., Times]
"""A grid of so many strides, called as grid(schedule, steps=n)."""


@dataclass(frozen=True, eq=False)
class Problem:
    """What is to be solved: x from noise at t = 1, by a denoiser with its guidance and conditions."""

    process: Process
    denoiser: Callable[..., Any]
    x: Tensor  # (B, ...)
    guidance: Guidance = field(default_factory=Plain)
    condition: Condition = field(default_factory=Condition)
    null: Condition = field(default_factory=Condition)

    @classmethod
    def exact(cls, data: Oracle, schedule: Schedule, rows: int, *words: Word) -> Problem:
        """Data that is known, from the noise that the words name, in float64."""
        process = Process(schedule)
        x = process.prior_std() * Rng.seeds(range(rows), *words).normal(data.shape).double()
        return cls(process, lambda x_t, t, condition: Estimate(data.mean(x_t, t, process)), x)

    def solve(self, walk: Walk, times: Times, *words: Word) -> tuple[Tensor, int]:
        """x at the end of a grid, and the evaluations that it took; the words name the random numbers."""
        counted = _Counted(walk(self.process, self.x, times, rng=Rng.seeds(range(len(self.x)), *words)))
        rounds = guide(counted.walk(), self.guidance, self.denoiser, self.condition, self.null)
        return finish(rounds), counted.count


class _Counted:
    """A sampling, and how often it has asked."""

    def __init__(self, sampling: Sampling) -> None:
        self.sampling = sampling
        self.count = 0

    def walk(self) -> Sampling:
        try:
            query = next(self.sampling)
            while True:
                self.count += 1
                query = self.sampling.send((yield query))
        except StopIteration as finished:
            x: Tensor = finished.value
            return x


def samplers() -> dict[str, Walk]:
    """Every sampler of this environment, by its kind."""
    table = kinds()
    return {name: table.resolve("sampler", name) for name in table.names("sampler")}


@functools.cache
def kind_of(walk: Walk) -> str:
    """What a trial on a small problem finds: "deterministic", "stochastic" or "adaptive"."""
    problem = Problem.exact(Mixture.gaussian([0.0, 0.5], 0.5), Cosine(), 2, "trial")
    (first, count), (second, _) = (problem.solve(walk, uniform(Cosine(), steps=4), word) for word in "ab")
    if not torch.equal(first, second):
        return "stochastic"
    return "adaptive" if problem.solve(walk, uniform(Cosine(), steps=8), "a")[1] <= count else "deterministic"


@functools.lru_cache(maxsize=4096)
def evaluations(walk: Walk, schedule: Schedule, times: Times) -> int:
    """How often a sampler that is not adaptive asks on a grid: found with answers that cost nothing."""
    process, x = Process(schedule), torch.zeros(1, 1, dtype=torch.float64)
    counted = _Counted(walk(process, x, times, rng=Rng.seeds([0])))
    finish(guide(counted.walk(), Plain(), lambda x_t, t, condition: Estimate(torch.full_like(x_t, 0.5))))
    return counted.count


def longest(walk: Walk, schedule: Schedule, grid: Grid, budget: int) -> Times | None:
    """The longest grid whose evaluations are within the budget; None where those of one stride are not."""
    most = schedule.steps if isinstance(schedule, Tabulated) else budget  # a table has no longer grid
    for strides in range(min(budget, most), 0, -1):
        times = grid(schedule, steps=strides)
        if evaluations(walk, schedule, times) <= budget:
            return times
    return None
