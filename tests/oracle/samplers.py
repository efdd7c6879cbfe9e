"""The table of samplers: a line each, and every test in this folder that is about samplers covers it."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from carrara.diffusion import (
    Churn,
    Posterior,
    Transition,
    adams,
    ancestral,
    bh1,
    ddim,
    dopri,
    dpmpp_2m,
    dpmpp_2m_sde,
    dpmpp_2s,
    dpmpp_3m,
    dpmpp_3m_sde,
    dpmpp_sde,
    euler_ancestral,
    heun,
    lcm,
    plms,
    pndm,
    predictor_corrector,
    unipc,
)
from oracle import exact

Count = Callable[[exact.Scales, tuple[float, ...]], int]


# How often each asks, on any grid


def one(scales: exact.Scales, times: tuple[float, ...]) -> int:
    return len(times) - 1


def noisy_ends(scales: exact.Scales, times: tuple[float, ...]) -> int:
    return sum(scales(s)[1] > 0 for s in times[1:])


def two_but_last(scales: exact.Scales, times: tuple[float, ...]) -> int:
    return one(scales, times) + noisy_ends(scales, times)


def two_within(scales: exact.Scales, times: tuple[float, ...]) -> int:
    return one(scales, times) + sum(math.isfinite(scales.lam(s) - scales.lam(t)) for t, s in pairwise(times))


def one_more(scales: exact.Scales, times: tuple[float, ...]) -> int:
    return one(scales, times) + (scales(times[1])[1] > 0)


def nine_more(scales: exact.Scales, times: tuple[float, ...]) -> int:
    return one(scales, times) + 3 * noisy_ends(scales, times[:4])


@dataclass(frozen=True)
class Case:
    """A sampler with its settings; what it is by the papers; how often it asks; and, for the ODE, how exact it is.

    `order` is that of the global error; `begun` is as much of it as the first strides, of lower order, leave on grids
    where they are not shorter than others, and `rough` what is left on strides that alternate 1 : 3. `local` is the
    order of the error of one stride, after others that were each twice as long.
    """

    sampler: Any
    exact: Callable[[exact.Data, exact.Scales, tuple[float, ...]], exact.Vector] | None
    evaluations: Count | None = one
    order: int | None = None
    begun: int | None = None
    rough: int | None = None
    local: int | None = None
    point: bool = True  # whether data at one point comes out exactly, at every time


def _(function: Any, **settings: Any) -> Any:
    return functools.partial(function, **settings)


EDM = Churn(amount=40.0, noise=1.003, sigma_min=0.05, sigma_max=50.0)
EDMS = {"S_churn": 40.0, "S_noise": 1.003, "S_tmin": 0.05, "S_tmax": 50.0}
CASES: dict[str, Case] = {
    "ancestral, posterior": Case(_(ancestral, variance=Posterior()), _(exact.ancestral, largest=False)),
    "ancestral, transition": Case(_(ancestral, variance=Transition()), _(exact.ancestral, largest=True), point=False),
    "ddim 0": Case(_(ddim), _(exact.ddim, eta=0.0), order=1, local=2),
    "ddim 0.5": Case(_(ddim, eta=0.5), _(exact.ddim, eta=0.5)),
    "ddim 1": Case(_(ddim, eta=1.0), _(exact.ddim, eta=1.0)),
    "euler_ancestral": Case(_(euler_ancestral), _(exact.euler_ancestral, eta=1.0)),
    "euler_ancestral 0.5": Case(_(euler_ancestral, eta=0.5), _(exact.euler_ancestral, eta=0.5)),
    "lcm": Case(_(lcm), exact.lcm),
    "heun": Case(_(heun), exact.heun, two_but_last, order=2, local=3),
    "heun, churn": Case(_(heun, churn=EDM), _(exact.heun, **EDMS), two_but_last, point=False),  # too noisy on purpose
    "heun, churn everywhere": Case(_(heun, churn=Churn(7.0)), _(exact.heun, S_churn=7.0), two_but_last),
    "predictor_corrector": Case(_(predictor_corrector), None, two_but_last),  # not affine: a test of its own
    "dpmpp_2s": Case(_(dpmpp_2s), exact.dpmpp_2s, two_within, order=2, local=3),
    "dpmpp_sde": Case(_(dpmpp_sde), _(exact.dpmpp_2s, eta=1.0), two_within),
    "dpmpp_sde 0.5": Case(_(dpmpp_sde, eta=0.5), _(exact.dpmpp_2s, eta=0.5), two_within),
    "dpmpp_2m": Case(_(dpmpp_2m), exact.dpmpp_2m, order=2, local=3),
    "dpmpp_2m_sde": Case(_(dpmpp_2m_sde), _(exact.dpmpp_2m, eta=1.0)),
    "dpmpp_2m_sde 0.5": Case(_(dpmpp_2m_sde, eta=0.5), _(exact.dpmpp_2m, eta=0.5)),
    "dpmpp_3m": Case(_(dpmpp_3m), exact.dpmpp_3m, order=3, begun=2, local=4),
    "dpmpp_3m_sde": Case(_(dpmpp_3m_sde), _(exact.dpmpp_3m, eta=1.0)),
    "dpmpp_3m_sde 0.5": Case(_(dpmpp_3m_sde, eta=0.5), _(exact.dpmpp_3m, eta=0.5)),
    "unipc 1": Case(_(unipc, order=1), _(exact.unipc, p=1), order=2, local=2),
    "unipc 2": Case(_(unipc), _(exact.unipc, p=2), order=3, local=3),
    "unipc 2, bh1": Case(_(unipc, b=bh1), _(exact.unipc, p=2, B=lambda h: h), order=3, local=3),
    "unipc 3": Case(_(unipc, order=3), _(exact.unipc, p=3), order=4, local=4),
    "unip 2": Case(_(unipc, corrector=False), _(exact.unipc, p=2, corrector=False), order=2, local=3),
    "unip 3": Case(_(unipc, order=3, corrector=False), _(exact.unipc, p=3, corrector=False), order=3, begun=2, local=4),
    "adams 1": Case(_(adams, order=1), _(exact.adams, order=1), order=1, local=2),
    "adams 2": Case(_(adams, order=2), _(exact.adams, order=2), order=2, local=3),
    "adams 3": Case(_(adams, order=3), _(exact.adams, order=3), order=3, begun=2, local=4),
    "adams 4": Case(_(adams), _(exact.adams, order=4), order=4, begun=2, local=5),
    "plms": Case(_(plms), _(exact.pndm, runge_kutta=False), one_more, order=2, rough=1),
    "pndm": Case(_(pndm), _(exact.pndm, runge_kutta=True), nine_more, order=2, rough=1),
    "dopri": Case(_(dopri), None, None),  # adaptive: see test_dopri.py
}
