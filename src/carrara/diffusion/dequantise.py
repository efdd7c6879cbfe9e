r"""Continuous data out of grey levels, for a density that only continuous data have.

Noise u ~ q(u | x) is added, and for every q (Theis et al. 2016; Ho et al. 2019, "Flow++", section 3.1)

    -log P(x) <= E[ -log p(x + u) + cost ],     cost = log q(u | x) - log P(x | x + u)

    UniformNoise    within the level's own bin: P(x | x + u) = 1 and cost = -log(bin width), what published figures have
    NormalNoise     the diffusion's own at `resolving_time`: what the model was trained to see there

A model of grey levels keeps isolated values as narrow peaks, black paper for instance. Uniform noise is nowhere near as
narrow, and costs at least log(2 pi e / 12) / 2 nats there, 0.25 bits; normal noise does not (Zheng et al. 2023, section
4.2, with a truncated normal).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from carrara.diffusion.likelihood import check_levels, level_log_prob, resolving_time
from carrara.diffusion.process import Process
from carrara.diffusion.schedule import Schedule
from carrara.rng import Rng

__all__ = ["Dequantisation", "Dequantised", "NormalNoise", "UniformNoise"]


class Dequantised(NamedTuple):
    """Data made continuous."""

    x: Tensor  # (B, ...)
    cost: Tensor  # (B,) nats, float64
    end: float  # the time at which a flow takes it up


class Dequantisation(ABC):
    """What is added to grey levels."""

    words: ClassVar[str]  # what it is, for people

    @abstractmethod
    def end(self, schedule: Schedule, levels: int = 256) -> float:
        """Where the diffusion's noise is as wide as this one's; at least t_min."""

    @abstractmethod
    def __call__(self, process: Process, x: Tensor, rng: Rng, levels: int = 256) -> Dequantised:
        """x (B, ...) on `levels` equal grey levels in [-1, 1]; ValueError for values between them."""


@dataclass(frozen=True)
class UniformNoise(Dequantisation):
    """Every value uniform in its own bin."""

    words = "uniform noise within a level's bin"

    def end(self, schedule: Schedule, levels: int = 256) -> float:
        return schedule.time(-2 * math.log(_width(levels) / math.sqrt(12)))

    def __call__(self, process: Process, x: Tensor, rng: Rng, levels: int = 256) -> Dequantised:
        check_levels(x, levels)
        noise = ((rng.uniform(x.shape[1:]) - 0.5) * _width(levels)).to(x.device, x.dtype)
        cost = torch.full((len(x),), -x[0].numel() * math.log(_width(levels)), dtype=torch.float64, device=x.device)
        return Dequantised(x + noise, cost, self.end(process.schedule, levels))


@dataclass(frozen=True)
class NormalNoise(Dequantisation):
    """The diffusion's own, so narrow that levels can still be told apart."""

    words = "normal noise, as the diffusion has it"

    def end(self, schedule: Schedule, levels: int = 256) -> float:
        return resolving_time(schedule, levels)

    def __call__(self, process: Process, x: Tensor, rng: Rng, levels: int = 256) -> Dequantised:
        check_levels(x, levels)
        end, noise = self.end(process.schedule, levels), rng.normal_like(x)
        alpha, sigma = process.schedule(end)
        x_t = process.diffuse(x, end, noise)
        log_q = -(noise.double() ** 2) / 2 - math.log(math.sqrt(2 * math.pi) * sigma / alpha)
        cost = log_q - level_log_prob(process, x.double(), x_t.double(), end, levels)
        return Dequantised(x_t / alpha, cost.flatten(1).sum(1), end)


def _width(levels: int) -> float:
    return 2 / (levels - 1)
