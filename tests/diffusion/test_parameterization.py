"""Parameterizations: five ways to say one thing, equal in what they estimate, sample and teach."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from carrara.diffusion import (
    X0,
    Cosine,
    CosineBetas,
    Denoiser,
    DenoisingLoss,
    Epsilon,
    Flow,
    IntegerStep,
    Karras,
    LearnedLogSNR,
    Linear,
    LinearBetas,
    LinearVP,
    LogSigma,
    MinSNR,
    Plain,
    Process,
    ScaledLinearBetas,
    ScaledTime,
    Schedule,
    Sigmoid,
    SigmoidBetas,
    Steps,
    Uniform,
    Unit,
    V,
    VarianceExploding,
    ddim,
    guide,
    uniform,
)
from carrara.diffusion.parameterization import Parameterization
from carrara.rng import Rng
from carrara.run import finish
from carrara.types import Condition

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
PARAMETERIZATIONS: list[Parameterization] = [Epsilon(), X0(), V(), Flow(), Karras(0.5), Karras(1.3)]


def fits(parameterization: Parameterization, schedule: Schedule) -> bool:
    return not isinstance(parameterization, Epsilon) or schedule(1.0)[0] > 1e-6


PAIRS = [(s, p) for s in SCHEDULES for p in PARAMETERIZATIONS if fits(p, s)]
EACH = pytest.mark.parametrize("schedule, parameterization", PAIRS, ids=str)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@EACH
def test_the_target_is_the_data(schedule: Schedule, parameterization: Parameterization) -> None:
    """skip x_t + out F* = x, to rounding: of x itself, or of what Epsilon divides by alpha."""
    process = Process(schedule)
    t = torch.cat([torch.linspace(schedule.t_min, schedule.t_max, 64, dtype=torch.float64), torch.ones(1)])
    x, noise = normal(65, 2, 3, 3), normal(65, 2, 3, 3, seed=1)
    alpha, sigma = schedule(t)
    found = parameterization(alpha, sigma)
    x_t = process.diffuse(x, t, noise)
    estimate = found.estimate(x_t, found.target(x, noise))
    # the intermediate is x_t times skip, as large as sigma/alpha for Epsilon
    size = (1 + (sigma / alpha.clamp(min=1e-12) if isinstance(parameterization, Epsilon) else sigma)).view(-1, 1, 1, 1)
    assert ((estimate - x).abs() / size).max() < 1e-12


@EACH
def test_output_inverts_estimate(schedule: Schedule, parameterization: Parameterization) -> None:
    t = torch.linspace(schedule.t_min, schedule.t_max, 9, dtype=torch.float64)
    found = parameterization(*schedule(t))
    x_t, F = normal(9, 4), normal(9, 4, seed=1)
    torch.testing.assert_close(found.output(x_t, found.estimate(x_t, F)), F, rtol=1e-6, atol=1e-6)


@EACH
def test_floats_and_tensors_agree(schedule: Schedule, parameterization: Parameterization) -> None:
    for t in (schedule.t_min, 0.5, schedule.t_max):
        one = parameterization(*schedule(t))
        rows = parameterization(*schedule(torch.tensor([t, t], dtype=torch.float64)))
        for a, b in zip(one, rows, strict=True):
            assert a == pytest.approx(torch.as_tensor(b).flatten()[0].item(), rel=1e-14)


def test_karras_inputs_and_targets_have_unit_variance() -> None:
    for schedule in SCHEDULES:
        alpha, sigma = schedule(torch.linspace(schedule.t_min, schedule.t_max, 33, dtype=torch.float64))
        for d in (0.3, 0.5, 2.0):
            c = Karras(d)(alpha, sigma)
            ones = torch.ones_like(alpha)
            torch.testing.assert_close(c.scale**2 * (alpha**2 * d**2 + sigma**2), ones)
            torch.testing.assert_close(c.of_x**2 * d**2 + c.of_noise**2, ones)


def test_targets_in_the_papers_words() -> None:
    x, noise = normal(1, 5), normal(1, 5, seed=1)
    alpha, sigma = Cosine()(0.3)
    torch.testing.assert_close(Epsilon()(alpha, sigma).target(x, noise), noise)
    torch.testing.assert_close(X0()(alpha, sigma).target(x, noise), x)
    torch.testing.assert_close(V()(alpha, sigma).target(x, noise), alpha * noise - sigma * x)
    torch.testing.assert_close(Flow()(alpha, sigma).target(x, noise), noise - x)
    s, d = 3.0, 0.5  # Karras et al. 2022, table 1
    c = Karras(d)(1.0, s)
    assert c.skip == pytest.approx(d**2 / (s**2 + d**2))
    assert c.out == pytest.approx(s * d / math.sqrt(s**2 + d**2))
    assert c.scale == pytest.approx(1 / math.sqrt(s**2 + d**2))
    torch.testing.assert_close(c.target(x, noise), (x - c.skip * (x + s * noise)) / c.out)


@pytest.mark.parametrize("schedule", [Linear(), Cosine(), LinearBetas(zero_terminal=True)], ids=str)
def test_epsilon_is_refused_where_alpha_reaches_zero(schedule: Schedule) -> None:
    with pytest.raises(ValueError, match="use V, X0 or Flow"):
        Denoiser(nn.Identity(), Process(schedule), Epsilon(), ScaledTime())
    Denoiser(nn.Identity(), Process(schedule), V(), ScaledTime())


class _Reading(nn.Module):
    """The raw F of a parameterization, from one network `mean` that says E[x | x_t] of everything."""

    def __init__(self, mean: nn.Module, process: Process, parameterization: Parameterization) -> None:
        super().__init__()
        self.mean, self.process, self.parameterization = mean, process, parameterization

    def forward(self, x: Tensor, level: Tensor, condition: Condition) -> Tensor:
        t = level.double() / 1024
        c = self.parameterization(*self.process.schedule(t))
        x_t = x / torch.as_tensor(c.scale, dtype=torch.float64).view(-1, 1)
        return c.output(x_t, self.mean(x_t))


def _denoisers(schedule: Schedule, parameterizations: list[Parameterization]) -> tuple[nn.Module, list[Denoiser]]:
    torch.manual_seed(0)
    mean = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 4)).double()
    process = Process(schedule)
    # a level that float32 holds exactly: times are multiples of 1/1024
    return mean, [
        Denoiser(_Reading(mean, process, p), process, p, ScaledTime(1024.0))
        for p in parameterizations
        if fits(p, schedule)
    ]


@pytest.mark.parametrize(
    "schedule", [LinearBetas(steps=1024), CosineBetas(1024), Cosine(), Linear(), VarianceExploding()], ids=str
)
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_equal_denoisers_take_equal_steps(schedule: Schedule, eta: float) -> None:
    _, denoisers = _denoisers(schedule, PARAMETERIZATIONS)
    x = normal(3, 4) * denoisers[0].process.prior_std()
    found = []
    for denoiser in denoisers:
        times = uniform(schedule, steps=16)
        sampling = ddim(denoiser.process, x, times, eta=eta, rng=Rng.seeds(range(3)))
        found.append(finish(guide(sampling, Plain(), denoiser)))
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=0, atol=1e-10)


def _gradients(schedule: Schedule, weight: Any, parameterizations: list[Parameterization]) -> list[Tensor]:
    mean, denoisers = _denoisers(schedule, parameterizations)
    x, noise = normal(8, 4), normal(8, 4, seed=1)
    t = torch.arange(1, 9, dtype=torch.float64) * 113 / 1024
    found = []
    for denoiser in denoisers:
        loss = DenoisingLoss(Uniform(), weight).at(denoiser, x, Condition(), noise, t).sum()
        found.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(mean.parameters()))]))
    return found


@pytest.mark.parametrize("schedule", [LinearBetas(steps=1024), Cosine(), Linear()], ids=str)
@pytest.mark.parametrize("gamma", [0.5, 5.0])
def test_min_snr_teaches_every_parameterization_the_same(schedule: Schedule, gamma: float) -> None:
    """The weight is min(SNR, gamma) on |x - x_hat|^2, so the gradients of one x_hat are equal."""
    found = _gradients(schedule, MinSNR(gamma), PARAMETERIZATIONS)
    assert len(found) >= 5
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-8, atol=1e-12)
    plain = _gradients(schedule, Unit(), PARAMETERIZATIONS)
    assert not torch.allclose(plain[0], plain[1], rtol=1e-2)


def test_min_snr_closed_forms() -> None:
    """Hang et al. 2023: min(SNR, g) for x, / SNR for the noise, / (SNR + 1) for v."""
    process, t = Process(LinearBetas()), torch.arange(1, 1001, dtype=torch.float64) / 1000
    alpha, sigma = process.schedule(t)
    snr = (alpha / sigma) ** 2
    least = snr.clamp(max=5.0)
    torch.testing.assert_close(MinSNR(5.0)(process, X0(), t), least)
    torch.testing.assert_close(MinSNR(5.0)(process, Epsilon(), t), least / snr)
    torch.testing.assert_close(MinSNR(5.0)(process, V(), t), least / (snr + 1))
    zero = Process(ScaledLinearBetas(zero_terminal=True))
    assert bool(MinSNR(5.0)(zero, V(), t).isfinite().all())


def test_levels() -> None:
    process = Process(LinearBetas())
    t = torch.arange(1, 1001, dtype=torch.float64) / 1000
    assert torch.equal(IntegerStep(1000)(process, t).float(), torch.arange(1000).float())
    alpha, sigma = process.schedule(t)
    torch.testing.assert_close(LogSigma()(process, t), torch.log(sigma / alpha) / 4)
    ends = LogSigma()(Process(Linear()), torch.tensor([0.0, 1.0], dtype=torch.float64))
    assert bool(ends.isfinite().all())
    assert torch.equal(ScaledTime(2.0)(process, t), 2 * t)


@pytest.mark.parametrize("parameterization", [V(), X0(), Flow(), Karras()], ids=str)
def test_zero_terminal_tables_are_learned_to_their_end(parameterization: Parameterization) -> None:
    """Samplers begin at t = 1, so training draws it, and loss and gradient are finite there."""
    schedule = LinearBetas(steps=4, first=0.1, last=0.5, zero_terminal=True)
    t = Steps(4)(Process(schedule), Rng.samples(0, range(64)))
    assert set(t.tolist()) == {0.25, 0.5, 0.75, 1.0}
    network = nn.Linear(4, 4).double()

    class F(nn.Module):
        def forward(self, x: Tensor, level: Tensor, condition: Condition) -> Tensor:
            return network(x)

    for weight in (Unit(), MinSNR()):
        denoiser = Denoiser(F(), Process(schedule), parameterization, ScaledTime())
        loss = DenoisingLoss(Steps(4), weight).at(denoiser, normal(64, 4), Condition(), normal(64, 4, seed=1), t)
        assert bool(loss.isfinite().all())
        assert bool(torch.autograd.grad(loss.sum(), network.weight)[0].isfinite().all())
