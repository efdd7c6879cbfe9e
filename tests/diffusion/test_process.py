"""The process and its reversals between any two times, and the variance of a reverse step."""

from __future__ import annotations

import math

import pytest
import torch

from carrara.diffusion import (
    Cosine,
    CosineBetas,
    Given,
    Learned,
    LearnedLogSNR,
    Linear,
    LinearBetas,
    LinearVP,
    Posterior,
    Process,
    ScaledLinearBetas,
    Schedule,
    Sigmoid,
    SigmoidBetas,
    Transition,
    VarianceExploding,
)
from carrara.types import Estimate

SCHEDULES: list[Schedule] = [
    LinearBetas(),
    ScaledLinearBetas(zero_terminal=True),
    CosineBetas(),
    SigmoidBetas(),
    Cosine(),
    Linear(),
    VarianceExploding(),
    Sigmoid(),
    LinearVP(),
    LearnedLogSNR(),
]
EACH = pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
TIMES = [(1.0, 0.999), (1.0, 0.5), (0.7, 0.3), (0.2, 0.001), (0.5, 0.0), (0.001, 0.0)]


@EACH
@pytest.mark.parametrize("t, s", TIMES)
def test_transitions_compose(schedule: Schedule, t: float, s: float) -> None:
    """q(x_t | x_s) after q(x_s | x) is q(x_t | x)."""
    process, x = Process(schedule), torch.ones(1, dtype=torch.float64)
    at_s = process.marginal(x, s)
    after = process.transition(at_s.mean, s, t)
    a, v = process.step(s, t)
    at_t = process.marginal(x, t)
    torch.testing.assert_close(after.mean, at_t.mean, rtol=1e-13, atol=1e-15)
    assert a**2 * at_s.var + v == pytest.approx(at_t.var, rel=1e-13)
    assert v > 0 and after.var == v


@EACH
@pytest.mark.parametrize("t, s", TIMES)
def test_posterior_is_bayes(schedule: Schedule, t: float, s: float) -> None:
    """q(x_s | x_t, x) is the product of q(x_t | x_s) and q(x_s | x), normalised."""
    process = Process(schedule)
    x, x_t = torch.tensor([0.7, -0.4], dtype=torch.float64), torch.tensor([0.2, 1.5], dtype=torch.float64)
    found = process.posterior(x, x_t, t, s)
    if s == 0:
        torch.testing.assert_close(found.mean, x, rtol=0, atol=1e-15)
        assert found.var == 0
        return
    prior, (a, v) = process.marginal(x, s), process.step(s, t)
    precision = 1 / prior.var + a**2 / v
    assert found.var == pytest.approx(1 / precision, rel=1e-9)
    torch.testing.assert_close(found.mean, (prior.mean / prior.var + a * x_t / v) / precision, rtol=1e-9, atol=1e-12)


@EACH
def test_rows_have_their_own_times(schedule: Schedule) -> None:
    process = Process(schedule)
    x = torch.randn(6, 2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x_t = x.flip(0)
    t, s = (torch.tensor(column, dtype=torch.float64) for column in zip(*TIMES, strict=True))
    estimate = Estimate(x, x.sigmoid())
    together = [
        process.marginal(x, t),
        process.transition(x, s, t),
        process.posterior(x, x_t, t, s),
        *(process.reverse(estimate, x_t, t, s, v) for v in (Posterior(), Transition(), Learned())),
    ]
    for i, (t_i, s_i) in enumerate(TIMES):
        x_i, x_ti, one = x[i : i + 1], x_t[i : i + 1], Estimate(x[i : i + 1], x.sigmoid()[i : i + 1])
        alone = [
            process.marginal(x_i, t_i),
            process.transition(x_i, s_i, t_i),
            process.posterior(x_i, x_ti, t_i, s_i),
            *(process.reverse(one, x_ti, t_i, s_i, v) for v in (Posterior(), Transition(), Learned())),
        ]
        for a, b in zip(together, alone, strict=True):
            torch.testing.assert_close(a.mean[i : i + 1], b.mean, rtol=1e-14, atol=0)
            var = torch.as_tensor(b.var, dtype=torch.float64).broadcast_to(x_i.shape)
            torch.testing.assert_close(a.var[i : i + 1].broadcast_to(x_i.shape), var, rtol=1e-12, atol=1e-30)  # type: ignore[index]


@EACH
def test_learned_variance_is_log_linear_between_the_bounds(schedule: Schedule) -> None:
    process, x = Process(schedule), torch.zeros(1, 1, dtype=torch.float64)
    t, s = 0.5, 0.499
    low, high = process.posterior_var(t, s), process.step(s, t)[1]
    assert low < high

    def var(mix: float) -> float:
        return process.reverse(Estimate(x, x + mix), x, t, s, Learned()).var.item()  # type: ignore[union-attr]

    assert var(0) == pytest.approx(low, rel=1e-12)
    assert var(1) == pytest.approx(high, rel=1e-12)
    assert var(0.5) == pytest.approx(math.sqrt(low * high), rel=1e-12)
    assert var(-0.3) < low and var(1.3) > high  # unclamped
    one = torch.tensor([t], dtype=torch.float64)
    rows = process.reverse(Estimate(x, x + 0.5), x, one, one - 0.001, Learned())
    assert rows.var.item() == pytest.approx(math.sqrt(low * high), rel=1e-9)  # type: ignore[union-attr]


def test_variances() -> None:
    process, x = Process(LinearBetas()), torch.zeros(2, 3)
    estimate = Estimate(x)
    assert process.reverse(estimate, x, 0.5, 0.499, Posterior()).var == process.posterior_var(0.5, 0.499)
    assert process.reverse(estimate, x, 0.5, 0.499, Transition()).var == process.step(0.499, 0.5)[1]
    assert process.reverse(estimate, x, 0.5, 0.499, Given(lambda t, s: t - s)).var == 0.5 - 0.499
    with pytest.raises(ValueError, match="learned_variance"):
        process.reverse(estimate, x, 0.5, 0.499, Learned())


def test_diffuse_adds_noise_at_the_smallest_level() -> None:
    """The noise's own size survives float32 pictures of any range: Var(x_t - alpha x) = sigma^2 at the first entry."""
    process = Process(ScaledLinearBetas())
    noise = torch.randn(4096, generator=torch.Generator().manual_seed(0))
    x = torch.linspace(-1, 1, 4096)
    alpha, sigma = process.schedule(1 / 1000)
    found = process.diffuse(x, 1 / 1000, noise)
    assert found.dtype == torch.float32
    assert ((found.double() - alpha * x.double()) / sigma - noise.double()).abs().max() < 1e-5
