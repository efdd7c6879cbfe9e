"""Distances of sets: exact where they are known, equal to published implementations, unbiased, and honest intervals."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.linalg
import torch
from scipy import stats

from carrara.evaluate.distances import Statistics, cmmd, frechet, frechet_of, kid, kid_interval, repeated


def features(n: int, d: int, seed: int = 0, shift: float = 0.0) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    mixed = rng.normal(size=(n, d)) @ np.random.default_rng(99).normal(size=(d, d)) / math.sqrt(d)
    return torch.from_numpy((mixed + shift).astype(np.float32))


# --- Frechet ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("d", [1, 3, 40])
def test_the_distance_of_known_normals(d: int) -> None:
    """Commuting covariances: |m - m'|^2 + sum (s - s')^2."""
    rng = np.random.default_rng(d)
    basis = torch.from_numpy(np.linalg.qr(rng.normal(size=(d, d)))[0])
    s, other = (torch.from_numpy(rng.uniform(0.1, 3, d)) for _ in range(2))
    m, m2 = (torch.from_numpy(rng.normal(size=d)) for _ in range(2))
    a = Statistics(100, m, (basis * s**2) @ basis.T)
    b = Statistics(100, m2, (basis * other**2) @ basis.T)
    exact = (m - m2).square().sum() + (s - other).square().sum()
    assert frechet(a, b) == pytest.approx(exact.item(), rel=1e-10)


def test_two_dimensions_by_hand() -> None:
    """tr (A B)^1/2 of 2 x 2 matrices is sqrt(tr AB + 2 sqrt(det AB))."""
    a = torch.tensor([[2.0, 0.7], [0.7, 1.0]], dtype=torch.float64)
    b = torch.tensor([[1.0, -0.5], [-0.5, 3.0]], dtype=torch.float64)
    overlap = math.sqrt((a @ b).trace().item() + 2 * math.sqrt(torch.linalg.det(a @ b).item()))
    zero = torch.zeros(2, dtype=torch.float64)
    expected = a.trace().item() + b.trace().item() - 2 * overlap
    assert frechet(Statistics(9, zero, a), Statistics(9, zero, b)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("n, d", [(200, 16), (20, 48)])
def test_a_set_against_itself(n: int, d: int) -> None:
    """0, with fewer pictures than dimensions, too."""
    stats_ = Statistics.of(features(n, d))
    assert frechet(stats_, stats_) < 1e-6 * stats_.covariance.trace().item()


@pytest.mark.parametrize("n, d", [(300, 24), (20, 48)])
def test_against_scipys_root(n: int, d: int) -> None:
    """The published formula, with the root of a matrix that is not symmetric."""
    x, y = features(n, d).double().numpy(), features(n + 7, d, 1, 0.2).double().numpy()
    root = scipy.linalg.sqrtm(np.cov(x.T) @ np.cov(y.T)).real
    expected = ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(np.cov(x.T) + np.cov(y.T) - 2 * root)
    found = frechet(Statistics.of(torch.from_numpy(x)), Statistics.of(torch.from_numpy(y)))
    assert found == pytest.approx(expected, rel=1e-5)
    assert found == pytest.approx(frechet(Statistics.of(torch.from_numpy(y)), Statistics.of(torch.from_numpy(x))))


class _Flat(torch.nn.Module):
    """Features that are the pictures themselves, for implementations that bring a network of their own."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1).float()


@pytest.mark.filterwarnings("ignore")
def test_torchmetrics() -> None:
    fid = pytest.importorskip("torchmetrics.image.fid")
    x, y = (torch.randint(0, 256, (90, 3, 4, 4), dtype=torch.uint8) for _ in range(2))
    other = fid.FrechetInceptionDistance(feature=_Flat(), input_img_size=(3, 4, 4))
    other.set_dtype(torch.float64)
    other.update(x, real=True)
    other.update(y, real=False)
    found = frechet(Statistics.of(x.flatten(1)), Statistics.of(y.flatten(1)))
    assert found == pytest.approx(other.compute().item(), rel=1e-4)


@pytest.mark.parametrize("n, m", [(9, 14), (70, 9), (300, 200)])
def test_both_ways_agree(n: int, m: int) -> None:
    """By covariances, and for few pictures by the rows."""
    x, y = features(n, 40), features(m, 40, 1, 0.3)
    assert frechet_of(x, y) == pytest.approx(frechet(Statistics.of(x), Statistics.of(y)), rel=1e-6)
    assert frechet_of(x, x) < 1e-6


def test_refusals() -> None:
    with pytest.raises(ValueError, match="at least two rows"):
        Statistics.of(features(1, 4))
    with pytest.raises(ValueError, match="the same network's"):
        frechet(Statistics.of(features(9, 4)), Statistics.of(features(9, 5)))
    with pytest.raises(ValueError, match="two rows or more"):
        kid(features(9, 4), features(9, 5))
    with pytest.raises(ValueError, match="at least four"):
        kid_interval(features(3, 4), features(9, 4))


# --- KID --------------------------------------------------------------------------------------------------------------


def test_kid_by_hand() -> None:
    """Written out over all pairs."""
    x, y = features(7, 5).double(), features(4, 5, 1, 0.5).double()

    def k(a: torch.Tensor, b: torch.Tensor) -> float:
        return float((a @ b / 5 + 1) ** 3)

    of_x = sum(k(x[i], x[j]) for i in range(7) for j in range(7) if i != j) / 42
    of_y = sum(k(y[i], y[j]) for i in range(4) for j in range(4) if i != j) / 12
    cross = sum(k(a, b) for a in x for b in y) / 28
    assert kid(x, y) == pytest.approx(of_x + of_y - 2 * cross, rel=1e-12)


@pytest.mark.filterwarnings("ignore")
def test_kid_of_torchmetrics() -> None:
    module = pytest.importorskip("torchmetrics.image.kid")
    x, y = (torch.randint(0, 256, (40, 3, 2, 2), dtype=torch.uint8) for _ in range(2))
    other = module.KernelInceptionDistance(feature=_Flat(), subset_size=40, subsets=1)
    other.update(x, real=True)
    other.update(y, real=False)
    assert kid(x.flatten(1), y.flatten(1)) == pytest.approx(other.compute()[0].item(), rel=1e-3)


def test_kid_has_no_bias() -> None:
    """Two coins in two dimensions: the mean over every possible draw is the exact distance, for any sample size."""
    places = torch.tensor([[0.0, 1.0], [2.0, -1.0]], dtype=torch.float64)
    p, q = 0.3, 0.6
    kernel = (places @ places.T / 2 + 1) ** 3
    weight = torch.tensor([1 - p, p], dtype=torch.float64) - torch.tensor([1 - q, q], dtype=torch.float64)
    exact = float(weight @ kernel @ weight)
    draws = [(a, b, c) for a in (0, 1) for b in (0, 1) for c in (0, 1)]

    def chance(draw: tuple[int, ...], share: float) -> float:
        return math.prod(share if one else 1 - share for one in draw)

    mean = math.fsum(chance(d, p) * chance(e, q) * kid(places[list(d)], places[list(e)]) for d in draws for e in draws)
    assert mean == pytest.approx(exact, rel=1e-10)


def test_the_interval_holds_the_truth() -> None:
    """Of draws of two known distributions, about 95 % of the intervals: between 85 and 100 of 100."""
    d, n, held = 4, 60, 0
    shift = torch.full((d,), 0.8, dtype=torch.float64)
    rng = np.random.default_rng(5)
    large = [torch.from_numpy(rng.normal(size=(4000, d))) for _ in range(2)]
    exact = kid(large[0], large[1] + shift)
    for _ in range(100):
        x, y = (torch.from_numpy(rng.normal(size=(n, d))) for _ in range(2))
        found = kid_interval(x, y + shift)
        assert found.low < found.value < found.high
        held += found.low < exact < found.high
    assert 85 <= held <= 100


def test_the_interval_is_repeatable_and_shrinks() -> None:
    x, y = features(400, 8), features(300, 8, 1)
    assert kid_interval(x, y, seed=3) == kid_interval(x, y, seed=3)
    assert kid_interval(x, y).value == pytest.approx(kid(x, y))
    small, large = kid_interval(x[:40], y[:40]), kid_interval(x, y)
    assert large.high - large.low < 0.7 * (small.high - small.low)


# --- CMMD -------------------------------------------------------------------------------------------------------------


def test_cmmd_as_published() -> None:
    """Its released code: sigma 10, scale 1000, unit vectors, means over all pairs with the diagonal."""
    x, y = features(30, 12).double(), features(21, 12, 1, 0.3).double()
    a, b = (v.numpy() / np.linalg.norm(v.numpy(), axis=1, keepdims=True) for v in (x, y))
    gamma = 1 / (2 * 10**2)

    def k(u: np.ndarray, v: np.ndarray) -> float:
        squares = (u**2).sum(1)[:, None] + (v**2).sum(1)[None] - 2 * u @ v.T
        return float(np.exp(-gamma * squares).mean())

    assert cmmd(x, y) == pytest.approx(1000 * (k(a, a) + k(b, b) - 2 * k(a, b)), rel=1e-6)
    assert cmmd(x, x) == pytest.approx(0, abs=1e-9)
    assert cmmd(x, 3 * y) == pytest.approx(cmmd(x, y))


# --- repeats ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [2, 5, 10, 11, 40])
def test_students_interval(n: int) -> None:
    values = np.random.default_rng(n).normal(3, 2, n)
    found = repeated(values.tolist())
    low, high = stats.t.interval(0.95, n - 1, values.mean(), stats.sem(values))
    assert found is not None
    assert found == pytest.approx((values.mean(), low, high), abs=2e-4)


def test_one_value_has_no_interval() -> None:
    assert repeated([1.0]) is None
