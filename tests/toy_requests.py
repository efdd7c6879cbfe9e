"""Requests for the drivers: guided samplings by a network of plain arithmetic."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from carrara.diffusion import (
    ClassifierFree,
    Denoiser,
    Flow,
    Linear,
    Process,
    ScaledTime,
    ddim,
    dpmpp_2m,
    guide,
    heun,
    uniform,
)
from carrara.rng import Rng
from carrara.types import Condition, Rounds


class Elementwise(nn.Module):
    """A network of plain arithmetic, so that a row's bits do not depend on the rows beside it; counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[int] = []

    def forward(self, x: Tensor, level: Tensor, condition: Condition) -> Tensor:
        self.rows.append(len(x))
        assert condition.tokens is not None and condition.mask is not None
        told = (condition.tokens * condition.mask[..., None]).sum(1)  # padding counts for nothing
        wave = x * (told[:, :1, None, None] + level.double().view(-1, 1, 1, 1) / 1000)
        return wave / (1 + wave * wave) - x / 2


def tokens(rows: int, length: int, seed: int) -> Condition:
    # eighths: sums of them are exact in any order, and so with any padding
    values = torch.randint(-8, 8, (rows, length, 3), generator=torch.Generator().manual_seed(seed)).double() / 8
    return Condition(tokens=values, mask=torch.ones(rows, length, dtype=torch.bool))


def request(
    denoiser: Denoiser, sampler: Any, steps: int, scale: float, seeds: Sequence[int], *, length: int, size: int = 4
) -> Rounds:
    """A guided sampling under a condition of its own length, and a null condition of length 1."""
    rng = Rng.seeds(seeds)
    x = rng.fork("prior").normal((2, size, size)).double()
    times = uniform(denoiser.process.schedule, steps=steps)
    sampling = sampler(denoiser.process, x, times, rng=rng.fork("steps"))
    condition, null = tokens(len(seeds), length, seeds[0]), tokens(len(seeds), 1, 0)
    return guide(sampling, ClassifierFree(scale), denoiser, condition, null)


def new_denoiser() -> Denoiser:
    return Denoiser(Elementwise(), Process(Linear()), Flow(), ScaledTime())


def requests(denoiser: Denoiser) -> dict[str, Rounds]:
    return {
        "guided ddim": request(denoiser, functools.partial(ddim, eta=0.5), 10, 3.0, [5, 6], length=4),
        "heun": request(denoiser, heun, 7, 1.0, [0], length=2),
        "dpmpp_2m": request(denoiser, dpmpp_2m, 25, 1.5, [7, 8, 9], length=7),
    }


EVALUATIONS = {"guided ddim": 10, "heun": 13, "dpmpp_2m": 25}
STRIDES = {"guided ddim": 10, "heun": 7, "dpmpp_2m": 25}
