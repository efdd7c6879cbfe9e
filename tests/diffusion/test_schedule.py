"""Schedules: monotone, exact at their entries, invertible, the same for floats and tensors, and strict about times."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

from carrara.diffusion import (
    Cosine,
    CosineBetas,
    GivenBetas,
    Linear,
    LinearBetas,
    LinearVP,
    Process,
    ScaledLinearBetas,
    Schedule,
    Sigmoid,
    SigmoidBetas,
    Tabulated,
    VarianceExploding,
)

TABLES: list[Tabulated] = [
    LinearBetas(),
    LinearBetas(zero_terminal=True),
    ScaledLinearBetas(),
    ScaledLinearBetas(zero_terminal=True),
    CosineBetas(),
    CosineBetas(zero_terminal=True),
    CosineBetas(steps=37),
    GivenBetas((0.1, 0.2, 0.5, 1.0)),
    GivenBetas((0.1, 0.2, 0.3, 0.5), zero_terminal=True),
    SigmoidBetas(),
    SigmoidBetas(zero_terminal=True),
    LinearBetas(steps=2, first=0.1, last=0.3),
]
CONTINUOUS: list[Schedule] = [
    Cosine(),
    Linear(),
    VarianceExploding(),
    VarianceExploding(0.5),
    Sigmoid(),
    Sigmoid(0.0, 3.0, 0.7),
    Sigmoid(-9.0, 5.0, 0.5),
    LinearVP(),
    LinearVP(5.0, 5.0),
]
ALL: list[Schedule] = [*TABLES, *CONTINUOUS]


def _given_betas(zero_terminal: bool = False) -> GivenBetas:
    return GivenBetas(tuple(torch.linspace(1e-4, 0.03, 1000).tolist()), zero_terminal)


def inside(schedule: Schedule, count: int = 501) -> torch.Tensor:
    return torch.linspace(schedule.t_min, schedule.t_max, count, dtype=torch.float64)


@pytest.mark.parametrize("schedule", ALL, ids=str)
def test_monotone(schedule: Schedule) -> None:
    t = inside(schedule)
    alpha, sigma = schedule(t)
    logsnr = schedule.logsnr(t)
    assert bool(logsnr.isfinite().all())
    assert bool((logsnr.diff() < 0).all())
    assert bool((alpha.diff() <= 0).all()) and bool((sigma.diff() > 0).all())


@pytest.mark.parametrize("schedule", ALL, ids=str)
def test_ends(schedule: Schedule) -> None:
    assert schedule(0.0) == (1.0, 0.0)
    assert schedule.logsnr(0.0) == math.inf
    assert 0 < schedule.t_min < schedule.t_max <= 1
    if not isinstance(schedule, VarianceExploding | Linear):
        alpha, sigma = schedule(inside(schedule))
        torch.testing.assert_close(alpha**2 + sigma**2, torch.ones_like(alpha), rtol=0, atol=1e-15)


@pytest.mark.parametrize("schedule", ALL, ids=str)
def test_inverse(schedule: Schedule) -> None:
    t = inside(schedule)
    torch.testing.assert_close(schedule.time(schedule.logsnr(t)), t, rtol=0, atol=1e-9)
    for logsnr in (-1e9, -math.inf):
        assert schedule.time(logsnr) == schedule.t_max
    for logsnr in (1e9, math.inf):
        assert schedule.time(logsnr) == schedule.t_min


@pytest.mark.parametrize("schedule", ALL, ids=str)
def test_floats_and_tensors_are_equal_bit_for_bit(schedule: Schedule) -> None:
    t = torch.cat([inside(schedule, 203), torch.tensor([0.0, 1.0], dtype=torch.float64)])
    alpha, sigma = schedule(t)
    logsnr, inverse = schedule.logsnr(t), schedule.time(schedule.logsnr(t))
    for i, one in enumerate(t.tolist()):
        assert schedule(one) == (alpha[i].item(), sigma[i].item())
        assert schedule.logsnr(one) == logsnr[i].item()
        assert schedule.time(logsnr[i].item()) == inverse[i].item()
    square, single = t[:204].view(2, 3, 34), t[5]
    assert torch.equal(schedule(square)[0].flatten(), alpha[:204]) and schedule(single)[0].shape == ()


def test_float64_whatever_comes_in() -> None:
    alpha, sigma = LinearBetas()(torch.tensor([0.5, 1.0], dtype=torch.float32))
    assert alpha.dtype == sigma.dtype == torch.float64
    assert LinearBetas().time(torch.tensor([0.0], dtype=torch.float32)).dtype == torch.float64


def test_entries_are_exact_for_every_length() -> None:
    """(1/T) T < 1 in float64 for 216 values of T up to 2000: entries are found by their index all the same."""
    snapped = 0
    for T in range(1, 2001):
        schedule = GivenBetas((0.01,) * T)
        t = torch.arange(1, T + 1, dtype=torch.float64) / T
        alpha, sigma = schedule(t)
        log_bar = math.log(0.99) * torch.arange(1, T + 1, dtype=torch.float64)
        torch.testing.assert_close(alpha, (log_bar / 2).exp(), rtol=1e-12, atol=0)
        torch.testing.assert_close(sigma, (1 - log_bar.exp()).sqrt(), rtol=1e-12, atol=0)
        assert schedule(1 / T) == (alpha[0].item(), sigma[0].item())
        snapped += (1 / T) * T < 1
    assert snapped > 100


@pytest.mark.parametrize("T", [7, 49, 1000, 2000])
def test_refuses_times_before_the_first_entry(T: int) -> None:
    schedule = LinearBetas(steps=T, first=1e-4, last=0.02)
    for t in (0.5 / T, 1e-6, 0.999 / T):
        with pytest.raises(ValueError, match="before the table's first entry"):
            schedule(t)
        with pytest.raises(ValueError, match="before the table's first entry"):
            schedule(torch.tensor([1.0, t], dtype=torch.float64))
    assert schedule(1.5 / T)[0] < schedule(1 / T)[0]


@pytest.mark.parametrize("schedule", ALL, ids=str)
@pytest.mark.parametrize("t", [-0.1, 1.0000001, math.nan])
def test_refuses_times_outside(schedule: Schedule, t: float) -> None:
    with pytest.raises(ValueError, match=r"in \[0, 1\]"):
        schedule(t)
    with pytest.raises(ValueError, match=r"in \[0, 1\]"):
        schedule(torch.tensor([0.5, t]))


def test_ddpm_values() -> None:
    """The table of the paper: beta_1 = 1e-4, beta_1000 = 0.02, and KL(q(x_T | x) || N(0, 1)) near 1e-5 bits a dim."""
    schedule = LinearBetas()
    alpha, sigma = schedule(1 / 1000)
    assert sigma**2 == pytest.approx(1e-4, rel=1e-12)
    alpha, sigma = schedule(1.0)
    assert alpha**2 == pytest.approx(4.0358e-5, rel=1e-4)
    # E x^2 = 1/4 for a picture: (alpha^2/4 + sigma^2 - 1 - log sigma^2) / 2 nats
    assert (alpha**2 / 4 + sigma**2 - 1 - math.log(sigma**2)) / 2 / math.log(2) == pytest.approx(1e-5, rel=0.3)


def test_between_entries_the_logsnr_is_linear() -> None:
    schedule = LinearBetas()
    low, high = schedule.logsnr(0.25), schedule.logsnr(0.251)
    assert schedule.logsnr(0.25025) == pytest.approx(0.75 * low + 0.25 * high, abs=1e-10)


@pytest.mark.parametrize("cls", [LinearBetas, ScaledLinearBetas, CosineBetas, SigmoidBetas, _given_betas])
def test_zero_terminal(cls: Callable[..., Tabulated]) -> None:
    plain, zero = cls(), cls(zero_terminal=True)
    assert zero(1.0) == (0.0, 1.0)
    assert plain(1.0)[0] > 0
    assert zero.t_max == 1 - 1 / 1000 and plain.t_max == 1.0
    assert zero(1 / 1000)[0] == pytest.approx(plain(1 / 1000)[0], rel=1e-12)  # the first entry stays
    assert zero.logsnr(1.0) == -math.inf
    assert math.isfinite(zero.logsnr(zero.t_max))
    betas = zero.betas()
    assert betas[-1] == 1 and bool((betas > 0).all())
    # the table is that of the final betas, not of those before rescaling
    bar = torch.cumprod(1 - betas, 0)
    alpha, _ = zero(torch.arange(1, 1001, dtype=torch.float64) / 1000)
    torch.testing.assert_close(alpha**2, bar, rtol=1e-11, atol=1e-18)


def test_bad_tables_are_refused() -> None:
    for wrong in (
        lambda: LinearBetas(steps=0),
        lambda: LinearBetas(steps=1, zero_terminal=True),
        lambda: LinearBetas(first=0.02, last=1e-4),
        lambda: ScaledLinearBetas(first=0.0),
        lambda: CosineBetas(largest=1.0),
        lambda: GivenBetas(()),
        lambda: GivenBetas((0.1, 1.2)),
        lambda: GivenBetas((0.1, 1.0, 0.1)),
        lambda: GivenBetas((0.1, 1.0), zero_terminal=True),
        lambda: GivenBetas((0.1,), zero_terminal=True),
        lambda: SigmoidBetas(first=0.3, last=0.2),
        lambda: Sigmoid(1.0, 1.0),
        lambda: Sigmoid(tau=0.0),
        lambda: Sigmoid(tau=0.01),
        lambda: LinearVP(0.0, 1.0),
        lambda: LinearVP(2.0, 1.0),
        lambda: VarianceExploding(0.0),
    ):
        with pytest.raises(ValueError):
            wrong()


def test_prior_std() -> None:
    assert Process(LinearBetas()).prior_std() == 1
    assert Process(Linear()).prior_std() == 1
    assert Process(VarianceExploding(80.0)).prior_std() == 80
    assert Process(VarianceExploding(80.0)).prior_std(0.5) == 40


def test_can_be_made_under_another_default_device() -> None:
    """As when a network is built on the meta device, to be filled afterwards."""
    with torch.device("meta"):
        for schedule in (
            LinearBetas(steps=11),
            CosineBetas(steps=11, zero_terminal=True),
            GivenBetas((0.1, 0.2)),
            Cosine(),
        ):
            assert schedule(1.0)[1] > 0.1
            assert schedule.time(0.0) > 0


def test_sigmoid_is_the_papers() -> None:
    """Chen 2023, algorithm 1, in its own words; and alpha near t = 1 keeps digits that these words lose."""
    t = torch.linspace(0, 1, 101, dtype=torch.float64)
    for start, end, tau in ((-3.0, 3.0, 1.0), (0.0, 3.0, 0.7), (-1.0, 2.0, 0.3)):
        v = torch.sigmoid((t * (end - start) + start) / tau)
        low, high = torch.sigmoid(torch.tensor([start / tau, end / tau], dtype=torch.float64))
        alpha, _ = Sigmoid(start, end, tau)(t)
        torch.testing.assert_close(alpha**2, (high - v) / (high - low), rtol=0, atol=1e-14)


def test_sigmoid_betas_are_the_known_table() -> None:
    x = torch.linspace(-6, 6, 1000, dtype=torch.float64)
    torch.testing.assert_close(SigmoidBetas().betas(), torch.sigmoid(x) * (0.02 - 1e-4) + 1e-4, rtol=1e-14, atol=0)


def test_linear_vp_solves_its_equation() -> None:
    """dx = -beta(t)/2 x dt + sqrt(beta(t)) dW: d log alpha / dt = -beta/2, and it is the limit of DDPM's table."""
    schedule = LinearVP()
    t = torch.linspace(0.01, 0.99, 50, dtype=torch.float64)
    h = 1e-6
    rate = (schedule(t + h)[0].log() - schedule(t - h)[0].log()) / (2 * h)
    torch.testing.assert_close(rate, -(0.1 + t * 19.9) / 2, rtol=1e-6, atol=0)
    fine = LinearBetas(steps=100_000, first=0.1 / 1e5, last=20 / 1e5)
    torch.testing.assert_close(schedule(t)[0], fine(t)[0], rtol=2e-3, atol=0)


@pytest.mark.parametrize("schedule", ALL, ids=str)
def test_slope(schedule: Schedule) -> None:
    """The slope of the log-SNR, by its difference quotient within each piece of a table."""
    t = inside(schedule, 60)[1:-1]
    if isinstance(schedule, Tabulated):  # between entries
        t = ((t * schedule.steps).floor().clamp(1, schedule.steps * schedule.t_max - 1) + 0.37) / schedule.steps
    h = 1e-7 * t
    expected = (schedule.logsnr(t + h) - schedule.logsnr(t - h)) / (2 * h)
    torch.testing.assert_close(schedule.slope(t), expected, rtol=1e-5, atol=0)
    assert bool((schedule.slope(t) < 0).all())
    assert schedule.slope(t[:1]).shape == (1,)


def test_slopes_in_closed_form() -> None:
    t = torch.linspace(0.05, 0.95, 19, dtype=torch.float64)
    torch.testing.assert_close(Linear().slope(t), -2 / (t * (1 - t)), rtol=1e-12, atol=0)
    torch.testing.assert_close(Cosine().slope(t), -2 * math.pi / torch.sin(math.pi * t), rtol=1e-12, atol=0)
    torch.testing.assert_close(VarianceExploding().slope(t), -2 / t, rtol=1e-12, atol=0)
    ends = torch.tensor([1 / 1000, 1.0], dtype=torch.float64)
    assert bool(LinearBetas().slope(ends).isfinite().all())
    assert bool(LinearBetas(zero_terminal=True).slope(ends).isfinite().all())
