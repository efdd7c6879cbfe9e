"""The oracle against itself: its denoiser is the derivative of its density, and every network says the same."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from carrara.diffusion import (
    X0,
    Cosine,
    Denoiser,
    DenoisingLoss,
    Epsilon,
    Flow,
    IntegerStep,
    Karras,
    Linear,
    LinearBetas,
    LogSigma,
    Plain,
    Process,
    ScaledTime,
    Steps,
    V,
    VarianceExploding,
    guide,
    heun,
    karras,
)
from carrara.diffusion.parameterization import Level
from carrara.oracle import FiniteData, Mixture
from carrara.rng import Rng
from carrara.run import finish
from carrara.types import Condition


def mixture() -> Mixture:
    """Three normals in three dimensions, one of them flat."""
    g = torch.Generator().manual_seed(0)
    roots = torch.randn(3, 3, 3, generator=g, dtype=torch.float64) * 0.3
    roots[2, :, 0] = 0
    return Mixture([0.2, 0.5, 0.3], torch.randn(3, 3, generator=g), covariances=roots @ roots.mT)


ROUND = Mixture([1.0, 2.0], [[-0.5, 0.2, 0.1], [0.4, -0.3, 0.8]], stds=[0.3, 0.6])
POINTS = FiniteData(torch.randn(6, 3, generator=torch.Generator().manual_seed(1)), [1, 2, 3, 1, 1, 2])
DATA = {"mixture": mixture(), "round": ROUND, "points": POINTS}
PROCESSES = {
    "table": Process(LinearBetas()),
    "cosine": Process(Cosine()),
    "flow": Process(Linear()),
    "VE": Process(VarianceExploding(10.0)),
}
TIMES = torch.tensor([0.1, 0.35, 0.6, 0.9], dtype=torch.float64)


def rows(data: Mixture | FiniteData, process: Process) -> Tensor:
    rng = Rng.seeds(range(4))
    x = data.sample(rng)
    return process.diffuse(x, TIMES, rng.normal_like(x))


def derivative(function: object, x: Tensor, h: float) -> Tensor:
    """Central differences of a (B,) function: (B, D); error h^4."""
    out = torch.zeros_like(x)
    for i in range(x.shape[1]):
        e = torch.zeros_like(x)
        e[:, i] = 1
        near, far = (function(x + k * h * e) - function(x - k * h * e) for k in (1, 2))  # type: ignore[operator]
        out[:, i] = (8 * near - far) / (12 * h)
    return out


@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
@pytest.mark.parametrize("data", DATA.values(), ids=DATA)
def test_denoiser_is_the_derivative_of_the_density(data: Mixture | FiniteData, process: Process) -> None:
    """E[x | x_t] = (x_t + sigma^2 grad log q(x_t)) / alpha (Tweedie), with the gradient by differences."""
    x_t = rows(data, process)
    alpha, sigma = (scale[:, None] for scale in process.schedule(TIMES))
    score = derivative(lambda x: data.log_prob_t(x, TIMES, process), x_t, 1e-3)
    torch.testing.assert_close(data.score(x_t, TIMES, process), score, rtol=1e-7, atol=1e-7)
    mean = data.mean(x_t, TIMES, process)
    tweedie = (x_t + sigma**2 * data.score(x_t, TIMES, process)) / alpha
    torch.testing.assert_close(mean, tweedie, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(data.denoiser(process)(x_t, TIMES).mean, mean, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("data", DATA.values(), ids=DATA)
def test_jacobian_is_autograds(data: Mixture | FiniteData) -> None:
    process = PROCESSES["table"]
    x_t = rows(data, process)
    by_autograd = torch.autograd.functional.jacobian(lambda x: data.mean(x, TIMES, process), x_t)
    by_row = torch.stack([by_autograd[i, :, i] for i in range(4)])
    torch.testing.assert_close(data.jacobian(x_t, TIMES, process), by_row, rtol=1e-9, atol=1e-10)
    trace = data.covariance(x_t, TIMES, process).diagonal(dim1=1, dim2=2).sum(1)
    torch.testing.assert_close(data.variance(x_t, TIMES, process), trace, rtol=1e-11, atol=1e-12)


def test_density_integrates_to_one() -> None:
    data = Mixture([0.3, 0.7], [[-1.0], [0.5]], stds=[0.2, 0.4])
    x = torch.linspace(-6, 6, 20001, dtype=torch.float64)[:, None]
    assert torch.trapezoid(data.log_prob(x).exp(), x[:, 0]).item() == pytest.approx(1, abs=1e-12)
    noisy = data.log_prob_t(x * 3, 0.7, PROCESSES["flow"]).exp()
    assert torch.trapezoid(noisy, 3 * x[:, 0]).item() == pytest.approx(1, abs=1e-12)


def test_one_normal_in_closed_form() -> None:
    """Var[x | x_t] = q^2 sigma^2 / (alpha^2 q^2 + sigma^2) a dimension, at every x_t: so the floor has no spread."""
    process, data = PROCESSES["table"], Mixture.gaussian(torch.zeros(2, 2), 0.6)
    alpha, sigma = process.schedule(0.4)
    floor = data.floor(process, 0.4, Rng.seeds(range(5)))
    expected = 4 * 0.36 * sigma**2 / (alpha**2 * 0.36 + sigma**2)
    torch.testing.assert_close(floor, torch.full((5,), expected, dtype=torch.float64), rtol=1e-13, atol=0)


def test_floor_is_the_denoisers_own_error() -> None:
    """E|x - E[x | x_t]|^2 = E tr Cov[x | x_t]; means over the same draws, within six standard errors."""
    process, data, t = PROCESSES["flow"], mixture(), 0.5
    rng = Rng.seeds(range(4000))
    x = data.sample(rng.fork("data"))
    x_t = process.diffuse(x, t, rng.fork("noise").normal_like(x))
    gap = (x - data.mean(x_t, t, process)).square().sum(1) - data.floor(process, t, rng)
    assert gap.mean().abs() < 6 * gap.std() / math.sqrt(len(gap))


def test_samples_have_the_datas_moments() -> None:
    data, n = mixture(), 20000
    x = data.sample(Rng.seeds(range(n)))
    weights = data.weights / data.weights.sum()
    mean = (weights[:, None] * data.means).sum(0)
    away = data.means - mean
    cov = (weights[:, None, None] * (data.covariances + away[:, :, None] * away[:, None])).sum(0)
    assert ((x.mean(0) - mean).abs() < 6 * (cov.diagonal() / n).sqrt()).all()
    products = (x - mean)[:, :, None] * (x - mean)[:, None]
    assert ((products.mean(0) - cov).abs() < 6 * products.std(0) / math.sqrt(n)).all()
    assert torch.equal(data.sample(Rng.seeds([7])), x[7:8])  # a row depends on its own stream alone


def test_points_are_the_limit_of_narrow_normals() -> None:
    process = PROCESSES["flow"]
    narrow = Mixture(POINTS.weights, POINTS.points, stds=[1e-9] * 6)
    x_t = rows(POINTS, process)
    for name in ("mean", "score", "covariance", "variance", "log_prob_t", "responsibilities"):
        ours, limit = (getattr(data, name)(x_t, TIMES, process) for data in (POINTS, narrow))
        torch.testing.assert_close(ours, limit, rtol=1e-9, atol=1e-12)
    assert set(map(tuple, POINTS.sample(Rng.seeds(range(200))).tolist())) == set(map(tuple, POINTS.points.tolist()))


PARAMETERIZATIONS = {"epsilon": Epsilon(), "x0": X0(), "v": V(), "flow": Flow(), "karras": Karras(0.5)}
LEVELS = {"integer": IntegerStep(1000), "time": ScaledTime(1000.0), "log sigma": LogSigma()}


@pytest.mark.parametrize(
    "process, name",
    [(p, n) for p in PROCESSES for n in PARAMETERIZATIONS if n != "epsilon" or p not in ("cosine", "flow")],
)
@pytest.mark.parametrize("level", LEVELS.values(), ids=LEVELS)
def test_a_network_in_every_parameterization(name: str, level: Level, process: Any) -> None:
    """Denoiser(F) is the optimal denoiser, whatever F is taken to say and however it is told the time."""
    data, process, parameterization = ROUND, PROCESSES[process], PARAMETERIZATIONS[name]
    denoiser = Denoiser(data.network(process, parameterization, level), process, parameterization, level)
    x_t = rows(data, process)
    found, expected = denoiser(x_t, TIMES).mean, data.mean(x_t, TIMES, process)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    single = denoiser(x_t.float(), TIMES).mean
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), expected, rtol=1e-4, atol=1e-4)


def test_rows_of_any_shape_and_training() -> None:
    """The same data as pictures; the loss of the optimal network is the floor."""
    process, flat = PROCESSES["table"], Mixture.gaussian([0.1] * 12, 0.5)
    pictures = Mixture.gaussian(torch.full((3, 2, 2), 0.1, dtype=torch.float64), 0.5)
    x_t = torch.randn(4, 3, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = pictures.denoiser(process)(x_t, TIMES).mean
    assert torch.equal(found.flatten(1), flat.denoiser(process)(x_t.flatten(1), TIMES).mean)
    assert torch.equal(flat.mean(x_t, TIMES, process), found)
    rng = Rng.seeds(range(2000))
    x = pictures.sample(rng.fork("x"))
    loss = DenoisingLoss(Steps(1000))(pictures.denoiser(process), x, Condition(), rng)
    floor = pictures.variance(process.diffuse(x, 0.5, x), Steps(1000)(process, rng.fork("time")), process) / 12
    assert (loss - floor).mean().abs() < 6 * (loss - floor).std() / math.sqrt(2000)


def test_a_sampler_ends_where_the_data_is() -> None:
    process = PROCESSES["VE"]
    x = 10 * Rng.seeds(range(64)).normal((3,)).double()
    times = karras(process.schedule, steps=40, sigma_min=0.01)
    found = finish(guide(heun(process, x, times, rng=Rng.seeds(range(64))), Plain(), POINTS.denoiser(process)))
    assert torch.cdist(found, POINTS.points).min(1).values.max() < 1e-6


def test_wrong_data_is_refused() -> None:
    with pytest.raises(ValueError, match="and not both"):
        Mixture([1.0], [[0.0]])
    with pytest.raises(ValueError, match=r"stds of shape \(1,\); 2 means of 1 numbers expect \(2,\)"):
        Mixture([1.0, 1.0], [[0.0], [1.0]], stds=[1.0])
    with pytest.raises(ValueError, match="expected positive ones"):
        Mixture([1.0, 0.0], [[0.0], [1.0]], stds=[1.0, 1.0])
    with pytest.raises(ValueError, match="negative eigenvalue -1"):
        Mixture([1.0], [[0.0, 0.0]], covariances=[[[1.0, 0.0], [0.0, -1.0]]])
    with pytest.raises(ValueError, match="not symmetric"):
        Mixture([1.0], [[0.0, 0.0]], covariances=[[[1.0, 0.5], [0.0, 1.0]]])
    with pytest.raises(ValueError, match=r"stds .* below 0"):
        Mixture([1.0], [[0.0]], stds=[-1.0])
    with pytest.raises(ValueError, match="give each a positive one"):
        FiniteData([[0.0], [1.0]], [1.0])
    with pytest.raises(ValueError, match=r"this data has rows of \(3,\)"):
        ROUND.log_prob(torch.zeros(2, 2))
    with pytest.raises(ValueError, match="no density"):
        POINTS.log_prob(torch.zeros(1, 3))
    with pytest.raises(ValueError, match="no density"):
        mixture().log_prob(torch.zeros(1, 3))
    with pytest.raises(ValueError, match="t > 0"):
        POINTS.mean(torch.zeros(1, 3), 0.0, PROCESSES["flow"])
