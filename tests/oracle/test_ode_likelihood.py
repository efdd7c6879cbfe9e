"""The flow's likelihood against densities that are known, for every schedule and parameterization."""

from __future__ import annotations

import itertools
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
    Epsilon,
    EveryAxis,
    Flow,
    GaussianProbes,
    IntegerStep,
    Karras,
    Linear,
    LinearBetas,
    LogSigma,
    NormalNoise,
    Process,
    Rademacher,
    ScaledLinearBetas,
    ScaledTime,
    UniformNoise,
    V,
    VarianceExploding,
    ode_log_prob,
)
from carrara.diffusion.ode_likelihood import Probes
from carrara.errors import NonFiniteError
from carrara.oracle import Mixture
from carrara.rng import Rng
from carrara.types import Condition, Estimate

SCHEDULES = {
    "LinearBetas": LinearBetas(),
    "ScaledLinearBetas, zero terminal": ScaledLinearBetas(zero_terminal=True),
    "CosineBetas": CosineBetas(),
    "Cosine": Cosine(),
    "Linear": Linear(),
    "VarianceExploding": VarianceExploding(),
}
DATA = Mixture(
    [0.3, 0.7], [[-0.8, 0.2], [0.5, -0.1]], covariances=[[[0.09, 0.03], [0.03, 0.05]], [[0.2, 0], [0, 0.02]]]
)
ROWS = Rng.seeds(range(6))


def exact(found: Any, x: Tensor, process: Process) -> tuple[Tensor, Tensor]:
    """What the flow found with the data's own density at t_max in the place of the prior, and what is right."""
    schedule = process.schedule
    alpha, _ = schedule(schedule.t_min)
    known = DATA.log_prob_t(alpha * x, schedule.t_min, process) + found.dimensions * math.log(alpha)
    return DATA.log_prob_t(found.noise, schedule.t_max, process) + found.change.mean(1), known


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_density_of_a_mixture(schedule: Any) -> None:
    """To 1e-8 nats, from a tolerance of 1e-10 a step and the exact trace."""
    process, x = Process(schedule), DATA.sample(ROWS)
    found = ode_log_prob(DATA.denoiser(process), x, rng=ROWS, probes=EveryAxis(), tolerance=1e-10)
    torch.testing.assert_close(*exact(found, x, process), rtol=0, atol=1e-8)


def test_the_priors_part_is_stated() -> None:
    """What differs from the data's density is the prior, and `prior_kl` says how much it leaves out: sigma_max 80."""
    process, x = Process(VarianceExploding()), DATA.sample(Rng.seeds(range(64)))
    found = ode_log_prob(DATA.denoiser(process), x, rng=Rng.seeds(range(64)), probes=EveryAxis(), tolerance=1e-8)
    ours, known = exact(found, x, process)
    gap = found.log_prob - known
    torch.testing.assert_close(gap, found.prior - DATA.log_prob_t(found.noise, 1.0, process), rtol=0, atol=1e-6)
    assert 1e-4 < gap.abs().max() < 1e-2 and gap.mean().abs() < 1e-3
    assert 0 < found.prior_kl.max() < 5e-4
    torch.testing.assert_close(ours, known, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "parameterization, level",
    [
        (Epsilon(), IntegerStep(1000)),
        (X0(), IntegerStep(1000)),
        (V(), ScaledTime(1.0)),
        (Flow(), LogSigma()),
        (Karras(0.5), LogSigma()),
    ],
    ids=["Epsilon", "X0", "V", "Flow", "Karras"],
)
def test_every_parameterization(parameterization: Any, level: Any) -> None:
    process, x = Process(LinearBetas()), DATA.sample(ROWS)
    denoiser = Denoiser(DATA.network(process, parameterization, level), process, parameterization, level)
    found = ode_log_prob(denoiser, x, rng=ROWS, probes=EveryAxis(), tolerance=1e-8)
    torch.testing.assert_close(*exact(found, x, process), rtol=0, atol=1e-6)


def test_the_tolerance_is_kept() -> None:
    process, x = Process(Linear()), DATA.sample(ROWS)
    errors, calls = [], []
    for tolerance in (1e-3, 1e-5, 1e-7):
        found = ode_log_prob(DATA.denoiser(process), x, rng=ROWS, probes=EveryAxis(), tolerance=tolerance)
        ours, known = exact(found, x, process)
        errors.append((ours - known).abs().max().item())
        calls.append(found.evaluations.max().item())
    assert all(error < 100 * tolerance for error, tolerance in zip(errors, (1e-3, 1e-5, 1e-7), strict=True))
    assert calls == sorted(calls) and calls[1] < 300


def test_rows_do_not_know_each_other() -> None:
    process, x = Process(Cosine()), DATA.sample(ROWS)
    together = ode_log_prob(DATA.denoiser(process), x, rng=ROWS, probes=Rademacher(3))
    for i in range(len(x)):
        alone = ode_log_prob(DATA.denoiser(process), x[i : i + 1], rng=Rng.seeds([i]), probes=Rademacher(3))
        torch.testing.assert_close(alone.change[0], together.change[i], rtol=0, atol=1e-12)
        assert alone.evaluations[0] == together.evaluations[i]


class _All(Probes):
    """All 2^d sign vectors."""

    def __call__(self, x: Tensor, rng: Rng) -> Tensor:
        signs = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=x[0].numel())), dtype=x.dtype)
        return signs.view(-1, 1, *x.shape[1:]).expand(-1, *x.shape)


@pytest.mark.parametrize("d", [2, 8])
def test_signs_are_without_bias(d: int) -> None:
    """The mean over all sign vectors is the exact trace, on the very same path: enumerated, no statistics."""
    g = torch.Generator().manual_seed(d)
    roots = 0.4 * torch.randn(2, d, d, generator=g, dtype=torch.float64)
    data = Mixture([0.5, 0.5], torch.randn(2, d, generator=g), covariances=roots @ roots.mT)
    process, x = Process(Linear()), data.sample(Rng.seeds([0]))
    every, axes = (
        ode_log_prob(data.denoiser(process), x, rng=Rng.seeds([0]), probes=p, tolerance=1e-2, end=0.2)
        for p in (_All(), EveryAxis())
    )
    torch.testing.assert_close(every.log_prob, axes.log_prob, rtol=0, atol=1e-10)
    assert every.change.std(1) > 0.01  # a single one is off


@pytest.mark.parametrize("probes", [Rademacher(1), GaussianProbes(1)], ids=["signs", "normal"])
def test_probes(probes: Any) -> None:
    """E[v v^T] = I, each row from its own stream."""
    v = probes(torch.zeros(4000, 3, dtype=torch.float64), Rng.seeds(range(4000)))[0]
    products = (v[:, :, None] * v[:, None]).mean(0)
    assert (products - torch.eye(3)).abs().max() < 6 * math.sqrt(2 / 4000)
    assert torch.equal(probes(torch.zeros(1, 3, dtype=torch.float64), Rng.seeds([7]))[0], v[7:8])


def test_standard_error_of_probes() -> None:
    """Within five standard errors of the exact trace, and the error is what the probes' spread says."""
    g = torch.Generator().manual_seed(0)
    roots = 0.4 * torch.randn(1, 4, 4, generator=g, dtype=torch.float64)
    data, process = Mixture([1.0], torch.zeros(1, 4), covariances=roots @ roots.mT), Process(Linear())
    x, rng = data.sample(Rng.seeds([0])), Rng.seeds([0])
    right = ode_log_prob(data.denoiser(process), x, rng=rng, probes=EveryAxis(), end=0.05, tolerance=1e-3)
    for probes in (Rademacher(50), GaussianProbes(50)):
        found = ode_log_prob(data.denoiser(process), x, rng=rng, probes=probes, end=0.05, tolerance=1e-3)
        assert (found.log_prob - right.log_prob).abs() < 5 * found.std_error
    assert bool(ode_log_prob(data.denoiser(process), x, rng=rng, end=0.01).std_error.isnan())


class _Uniform:
    """The optimal denoiser of values that are uniform on [-edge, edge], independently."""

    def __init__(self, process: Process, edge: float) -> None:
        self.process, self.edge = process, edge

    def __call__(self, x_t: Tensor, t: Any, condition: Condition = Condition()) -> Estimate:  # noqa: B008
        alpha, sigma = (s[:, None] for s in self.process.schedule(t))
        centre, std = x_t / alpha, sigma / alpha
        a, b = (-self.edge - centre) / std, (self.edge - centre) / std
        a, b = torch.where(a + b > 0, -b, a), torch.where(a + b > 0, -a, b)  # by symmetry: the nearer edge is above
        turned = (-self.edge - centre) / std != a
        log_cdf = torch.special.log_ndtr
        log_z = log_cdf(b) + torch.log(-torch.expm1(log_cdf(a) - log_cdf(b)))
        shift = (torch.exp(-(a**2) / 2 - log_z) - torch.exp(-(b**2) / 2 - log_z)) / math.sqrt(2 * math.pi)
        return Estimate(centre + std * torch.where(turned, -shift, shift))


@pytest.mark.parametrize("levels", [4, 256])
def test_uniform_data_has_all_its_bits(levels: int) -> None:
    """Uniform 8-bit data: 8.000 bits a dimension, by the flow through dequantised values."""
    process = Process(VarianceExploding(2000.0))  # the prior is right to 1e-7
    x = torch.randint(1, levels - 1, (8, 2), generator=torch.Generator().manual_seed(0)) / ((levels - 1) / 2) - 1.0
    denoiser = _Uniform(process, 1 + 1 / (levels - 1))
    data = UniformNoise()(process, x.double(), Rng.seeds(range(8)), levels)
    assert ((data.x - x).abs() <= 1 / (levels - 1)).all()
    end = process.schedule.time(2 * math.log(60 * (levels - 1) / 2))
    found = ode_log_prob(denoiser, data.x, rng=Rng.seeds(range(8)), probes=EveryAxis(), tolerance=1e-6, end=end)
    bits = found.bits_per_dim(data.cost)
    torch.testing.assert_close(bits, torch.full_like(bits, math.log2(levels)), rtol=0, atol=5e-5)


class _Levels:
    """E[x | x_t] of values that are on any of some levels, with equal probability."""

    def __init__(self, process: Process, levels: Tensor) -> None:
        self.process, self.levels = process, levels

    def __call__(self, x_t: Tensor, t: Any, condition: Condition) -> Estimate:
        alpha, sigma = (value.view(-1, 1, 1) for value in self.process.schedule(t))
        shares = torch.softmax(-((x_t[..., None] - alpha * self.levels) ** 2) / (2 * sigma**2), -1)
        return Estimate((shares * self.levels).sum(-1))


@pytest.mark.parametrize("levels", [4, 256])
def test_normal_noise_costs_nothing(levels: int) -> None:
    """p(x + u) P(x | x + u) = P(x) q(u | x) for every draw: discrete data has its exact bits, row by row."""
    process = Process(VarianceExploding(2000.0))
    values = torch.linspace(-1, 1, levels, dtype=torch.float64)
    x = values[torch.randint(levels, (8, 2), generator=torch.Generator().manual_seed(0))]
    data = NormalNoise()(process, x, Rng.seeds(range(8)), levels)
    denoiser = _Levels(process, values)
    found = ode_log_prob(denoiser, data.x, rng=Rng.seeds(range(8)), probes=EveryAxis(), tolerance=1e-6, end=data.end)
    bits = found.bits_per_dim(data.cost)
    torch.testing.assert_close(bits, torch.full_like(bits, math.log2(levels)), rtol=0, atol=5e-5)


def test_uniform_noise_costs_a_quarter_of_a_bit_where_data_stands_still() -> None:
    """One value alone is N(x, 1/12 bin^2) to the flow at its end: 0.2546 bits on average, and known row by row."""
    process, x, width = Process(VarianceExploding(2000.0)), torch.zeros(4096, 1, dtype=torch.float64), 2 / 254
    data = UniformNoise()(process, x, Rng.seeds(range(4096)), levels=255)
    found = ode_log_prob(
        _Levels(process, torch.zeros(1, dtype=torch.float64)),
        data.x,
        rng=Rng.seeds(range(4096)),
        probes=EveryAxis(),
        tolerance=1e-8,
        end=data.end,
    )
    known = 6 * (data.x[:, 0] / width) ** 2 / math.log(2) + math.log2(math.sqrt(2 * math.pi / 12))
    torch.testing.assert_close(found.bits_per_dim(data.cost), known, rtol=0, atol=5e-5)
    assert known.mean().item() == pytest.approx(math.log2(2 * math.pi * math.e / 12) / 2, abs=0.05)


def test_single_precision_and_networks() -> None:
    """A float32 network: close to float64, parameters untouched, no gradient left behind."""
    process = Process(Linear())

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.line = nn.Linear(2, 2)

        def forward(self, x: Tensor, level: Tensor, condition: Condition) -> Tensor:
            return self.line(x).tanh()

    torch.manual_seed(0)
    denoiser = Denoiser(Net(), process, Flow(), ScaledTime())
    x = DATA.sample(ROWS)
    with torch.no_grad():
        single = ode_log_prob(denoiser, x.float(), rng=ROWS, probes=EveryAxis(), end=1e-3)
    double = ode_log_prob(denoiser.double(), x, rng=ROWS, probes=EveryAxis(), end=1e-3)
    assert single.noise.dtype == torch.float32 and not single.noise.requires_grad
    torch.testing.assert_close(single.log_prob, double.log_prob, rtol=0, atol=2e-4)
    assert all(p.grad is None for p in denoiser.parameters())


def test_what_is_refused() -> None:
    process, x = Process(Linear()), DATA.sample(ROWS)
    denoiser = DATA.denoiser(process)
    with pytest.raises(ValueError, match=r"end = 1.0; expected a time in"):
        ode_log_prob(denoiser, x, rng=ROWS, end=1.0)
    with pytest.raises(ValueError, match="tolerance = 0"):
        ode_log_prob(denoiser, x, rng=ROWS, tolerance=0.0)
    with pytest.raises(ValueError, match="between levels"):
        UniformNoise()(process, x, ROWS)
    with pytest.raises(ValueError, match="between levels"):
        NormalNoise()(process, x, ROWS)
    broken = lambda x_t, t, condition: Estimate(x_t * math.nan)
    broken.process = process
    with pytest.raises(NonFiniteError, match="not finite"):
        ode_log_prob(broken, x, rng=ROWS)
