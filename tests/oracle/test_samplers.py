"""What is promised of every sampler in the table: rows on their own, keyed randomness, precision, clear refusals."""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from carrara.config import build, describe
from carrara.diffusion import (
    X0,
    Churn,
    ClassifierFree,
    Cosine,
    Denoiser,
    Epsilon,
    Flow,
    Karras,
    Linear,
    LinearBetas,
    Process,
    SamplingSettings,
    ScaledLinearBetas,
    ScaledTime,
    Schedule,
    V,
    VarianceExploding,
    adams,
    alpha_coordinate,
    ancestral,
    bh1,
    ddim,
    dopri,
    dpmpp_2m_sde,
    dpmpp_2s,
    dpmpp_3m,
    euler_ancestral,
    guide,
    heun,
    predictor_corrector,
    total_coordinate,
    uniform,
    unipc,
)
from carrara.diffusion.parameterization import Parameterization
from carrara.rng import Rng
from carrara.run import finish
from carrara.store.kinds import TABLES, kinds
from carrara.types import Condition
from oracle.samplers import CASES

SCHEDULES: list[Schedule] = [LinearBetas(), Linear(), VarianceExploding(5.0)]


class Rational(nn.Module):
    """Smooth, different at every time and condition, and elementwise in operations that every row rounds alike."""

    def forward(self, x: Tensor, level: Tensor, condition: Condition) -> Tensor:
        shape = (-1, *[1] * (x.ndim - 1))
        shift = 0.0 if condition.vector is None else condition.vector[:, 0].to(x.dtype).view(shape)
        return (x + shift) / (1 + (x - shift) * (x - shift)) * (0.5 + level.to(x.dtype).view(shape) / 2000)


def denoiser(schedule: Schedule) -> Denoiser:
    return Denoiser(Rational(), Process(schedule), V(), ScaledTime())


def pictures(
    sampler: Any, schedule: Schedule, seeds: list[int], steps: int = 6, dtype: torch.dtype = torch.float64
) -> Tensor:
    made, rng = denoiser(schedule), Rng.seeds(seeds)
    x = made.process.prior_std(1.0) * rng.fork("prior").normal((2, 3, 3)).to(dtype)
    # each row has a condition of its own
    vector = torch.tensor([[math.sin(seed)] for seed in seeds], dtype=torch.float64)
    sampling = sampler(made.process, x, uniform(schedule, steps=steps), rng=rng.fork("steps"))
    condition, null = Condition(vector=vector), Condition(vector=torch.zeros_like(vector))
    return finish(guide(sampling, ClassifierFree(1.5, start=0.9, end=0.1), made, condition, null))


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda schedule: type(schedule).__name__)
@pytest.mark.parametrize("sampler", CASES)
def test_a_row_does_not_depend_on_its_batch(sampler: str, schedule: Schedule) -> None:
    """Every row of eight, every number, bit for bit."""
    seeds = [3, 0, 7, 11, 5, 2**40, 1, 8]
    together = pictures(CASES[sampler].sampler, schedule, seeds)
    assert bool(together.isfinite().all()) and together.std() > 0.05
    for i, seed in enumerate(seeds):
        assert torch.equal(pictures(CASES[sampler].sampler, schedule, [seed])[0], together[i]), i


@pytest.mark.parametrize("sampler", CASES)
def test_nothing_is_drawn_elsewhere(sampler: str) -> None:
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    first = pictures(CASES[sampler].sampler, Linear(), [0, 1])
    assert torch.equal(torch.get_rng_state(), torch_state)
    np.testing.assert_array_equal(np.random.get_state()[1], numpy_state)
    torch.rand(3)
    assert torch.equal(pictures(CASES[sampler].sampler, Linear(), [0, 1]), first)


@pytest.mark.parametrize("sampler", CASES)
def test_precision(sampler: str) -> None:
    """State in x's own type; float32 loses no more than float32 does."""
    process, times = Process(LinearBetas()), uniform(LinearBetas(), steps=8)
    ends = []
    for dtype in (torch.float32, torch.float64):
        x = Rng.seeds([0, 1]).normal((2, 3, 3)).to(dtype)
        sampling = CASES[sampler].sampler(process, x, times, rng=Rng.seeds([0, 1], "steps"))
        query = next(sampling)
        made = denoiser(process.schedule)
        try:
            while True:
                assert query.x.dtype == dtype and query.x.shape == x.shape
                query = sampling.send(made(query.x, query.t))
        except StopIteration as finished:
            ends.append(finished.value)
        assert ends[-1].dtype == dtype
    # steps of `dopri` may be chosen otherwise, within its tolerance
    assert (ends[0] - ends[1]).abs().max() < 2e-5 * ends[1].abs().max()


@pytest.mark.parametrize("schedule", [*SCHEDULES, Cosine(), ScaledLinearBetas(zero_terminal=True)], ids=str)
@pytest.mark.parametrize("parameterization", [Epsilon(), X0(), V(), Flow(), Karras(0.7)], ids=str)
def test_a_shared_time_changes_no_bit(parameterization: Parameterization, schedule: Schedule) -> None:
    """Coefficients of a time that all rows share are floats, others tensors; stacking requests must not tell."""
    if isinstance(parameterization, Epsilon) and schedule(1.0)[0] == 0:
        return
    made = Denoiser(Rational(), Process(schedule), parameterization, ScaledTime())
    t = torch.cat(
        [torch.arange(1, 1001, dtype=torch.float64) / 1000, torch.tensor([schedule.t_max], dtype=torch.float64)]
    )
    for dtype in (torch.float64, torch.float32):
        x = Rng.samples(0, range(len(t))).normal((3,)).to(dtype)
        with torch.no_grad():
            together = made(x, t).mean
            alone = torch.cat([made(x[i : i + 1], t[i : i + 1]).mean for i in range(len(t))])
            assert torch.equal(together, alone)
            assert torch.equal(made(x[:5], 0.5).mean, torch.cat([made(x[i : i + 1], 0.5).mean for i in range(5)]))


def test_every_kind_is_in_the_table() -> None:
    """Every one of the mathematics, that is; what foreign schedulers do besides has its own tests of parity."""
    registered = {kinds().resolve("sampler", name) for name in TABLES["sampler"]}
    functions = {case.sampler.func for case in CASES.values()}
    assert {each for each in registered if each.__module__.startswith("carrara.diffusion.")} == functions


@pytest.mark.parametrize(
    "sampler",
    [
        functools.partial(heun, churn=Churn(40.0, 1.003, 0.05, 50.0), coordinate=alpha_coordinate),
        functools.partial(heun, churn=Churn(40.0)),
        functools.partial(unipc, order=3, corrector=False, b=bh1),
        functools.partial(adams, order=2, coordinate=total_coordinate),
        functools.partial(dopri, rtol=1e-3, atol=1e-4, most=700),
        functools.partial(dpmpp_2m_sde, eta=0.5),
    ],
    ids=lambda sampler: sampler.func.__name__,
)
def test_settings_can_be_written_down(sampler: Any) -> None:
    """Told to a file and read back, a sampler does the same."""
    table = describe(SamplingSettings(sampler), kinds())
    again = build(SamplingSettings, table, kinds())
    assert describe(again, kinds()) == table and again.sampler.func is sampler.func
    assert torch.equal(pictures(again.sampler, LinearBetas(), [0, 1]), pictures(sampler, LinearBetas(), [0, 1]))


@pytest.mark.parametrize(
    "sampler, settings, words",
    [
        (ddim, {"eta": -0.1}, r"eta = -0.1; expected a share"),
        (euler_ancestral, {"eta": 1.1}, r"eta = 1.1; expected a share"),
        (dpmpp_2s, {"eta": -1.0}, r"eta = -1.0; expected 0 for the ODE"),
        (dpmpp_3m, {"eta": math.inf}, r"eta = inf; expected 0 for the ODE"),
        (dpmpp_2m_sde, {"eta": math.nan}, r"eta = nan"),
        (unipc, {"order": 4}, r"order = 4; expected 1, 2 or 3"),
        (adams, {"order": 0}, r"order = 0; expected 1 to 4"),
        (predictor_corrector, {"snr": 0.0}, r"snr = 0.0"),
        (predictor_corrector, {"corrections": -1}, r"corrections = -1"),
        (dopri, {"rtol": 0.0}, r"rtol = 0.0"),
        (heun, {"coordinate": alpha_coordinate}, r"use total_coordinate"),
    ],
)
def test_refusals(sampler: Any, settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        next(sampler(Process(Linear()), torch.zeros(1, 1), (1.0, 0.5, 0.0), rng=Rng.seeds([0]), **settings))


def test_churn_refuses() -> None:
    for wrong in ({"amount": -1.0}, {"noise": -1.0}, {"sigma_min": 2.0, "sigma_max": 1.0}, {"sigma_min": -1.0}):
        with pytest.raises(ValueError, match="churn"):
            Churn(**wrong)


def test_neutral_settings_are_the_plain_method() -> None:
    """Bit for bit: no churn, no noise, the same under its other name."""
    for one, other in (
        (functools.partial(heun, churn=Churn(0.0, 2.0)), heun),
        (functools.partial(dpmpp_2m_sde, eta=0.0), CASES["dpmpp_2m"].sampler),
        (functools.partial(CASES["dpmpp_sde"].sampler, eta=0.0), dpmpp_2s),
        (functools.partial(CASES["dpmpp_3m_sde"].sampler, eta=0.0), dpmpp_3m),
        (functools.partial(euler_ancestral, eta=0.0), ddim),
        (functools.partial(adams, order=1, coordinate=total_coordinate), functools.partial(adams, order=1)),
    ):
        assert torch.equal(pictures(one, Linear(), [0, 1]), pictures(other, Linear(), [0, 1]))
    # the same number by another formula
    for one, other in ((functools.partial(ddim, eta=1.0), ancestral), (functools.partial(adams, order=1), ddim)):
        torch.testing.assert_close(
            pictures(one, LinearBetas(), [0, 1]), pictures(other, LinearBetas(), [0, 1]), rtol=0, atol=1e-12
        )
