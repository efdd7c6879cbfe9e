r"""How far two sets of pictures are apart, by the features of their pictures.

    Frechet     |m - m'|^2 + tr(C + C' - 2 (C^1/2 C' C^1/2)^1/2)     of two normals with the sets' means and covariances
    KID         E k(x, x~) + E k(y, y~) - 2 E k(x, y)                k(x, y) = (x.y / D + 1)^3, without bias
    CMMD        1000 times the same                                  k(x, y) = exp(-|x - y|^2 / 200) of unit vectors,
                                                                     the diagonal counted

(Heusel et al. 2017; Binkowski et al. 2018; Jayasumana et al. 2024.) All sums are in float64. The Frechet distance is
biased upwards by about D / N, and its covariance has no full rank for fewer pictures than dimensions; KID has no bias
for any number of them. Its interval is that of the delete-a-group jackknife (Shao and Wu 1989): the spread of the
estimate over random subsets of m of the n pictures, times sqrt(m / (n - m)), is its standard error.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from carrara.rng import keyed

__all__ = ["Interval", "Statistics", "cmmd", "frechet", "frechet_of", "kid", "kid_interval", "repeated"]

_SUBSETS = 100
_SUBSET = 1000  # pictures of one, at most; half of them where there are fewer than twice as many
_NORMAL = 1.959964  # 95 % of a normal distribution lie within so many standard deviations
_ROWS = 1024  # of a kernel matrix at once


class Interval(NamedTuple):
    """A number, and between which two it lies with 95 % confidence."""

    value: float
    low: float
    high: float


class Statistics(NamedTuple):
    """Mean (D,) and covariance (D, D) of n feature vectors, float64."""

    n: int
    mean: Tensor
    covariance: Tensor

    @classmethod
    def of(cls, features: Tensor) -> Statistics:
        """Of the rows of (N, D), with the covariance divided by N - 1. ValueError for fewer than two."""
        if features.ndim != 2 or len(features) < 2:
            raise ValueError(f"features have shape {tuple(features.shape)}; expected (N, D) with at least two rows")
        x = features.double()
        mean = x.mean(0)
        centred = x - mean
        return cls(len(x), mean, centred.T @ centred / (len(x) - 1))


def frechet(a: Statistics, b: Statistics) -> float:
    """The squared Frechet distance, 0 or more."""
    if a.mean.shape != b.mean.shape:
        raise ValueError(f"features of {len(a.mean)} and {len(b.mean)} dimensions; expected the same network's")
    values, vectors = torch.linalg.eigh(a.covariance)
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    overlap = torch.linalg.eigvalsh(root @ b.covariance @ root).clamp(min=0).sqrt().sum()
    apart = (a.mean - b.mean).square().sum() + a.covariance.trace() + b.covariance.trace() - 2 * overlap
    return max(float(apart), 0.0)


def frechet_of(x: Tensor, y: Tensor) -> float:
    """`frechet` of features (N, D) and (M, D), by the cheaper of two ways that agree.

    Of few pictures the trace of the root is the nuclear norm |X' Y'^T|_* / sqrt((N - 1)(M - 1)) of the centred rows.
    """
    _check(x, y)
    if 2 * min(len(x), len(y)) >= x.shape[1]:
        return frechet(Statistics.of(x), Statistics.of(y))
    x, y = x.double(), y.double()
    a, b = x - x.mean(0), y - y.mean(0)
    overlap = torch.linalg.svdvals(a @ b.T).sum() / math.sqrt((len(x) - 1) * (len(y) - 1))
    spread = a.square().sum() / (len(x) - 1) + b.square().sum() / (len(y) - 1)
    return max(float((x.mean(0) - y.mean(0)).square().sum() + spread - 2 * overlap), 0.0)


def kid(x: Tensor, y: Tensor) -> float:
    """The kernel distance of features (N, D) and (M, D), unbiased; it may be below 0. ValueError for fewer than two."""
    _check(x, y)
    return float(_kid(x, y, torch.ones(len(x), 1), torch.ones(len(y), 1)))


def kid_interval(x: Tensor, y: Tensor, *, seed: int = 0) -> Interval:
    """`kid` with its 95 % interval over 100 subsets that the seed names. ValueError for fewer than four vectors."""
    _check(x, y)
    if min(len(x), len(y)) < 4:
        raise ValueError(f"{len(x)} and {len(y)} feature vectors; an interval needs at least four of each")
    sizes = [min(_SUBSET, n // 2) for n in (len(x), len(y))]
    chosen = [_subsets(n, m, seed, which) for n, m, which in zip((len(x), len(y)), sizes, "xy", strict=True)]
    value, *spread = _kid(x, y, *chosen).tolist()
    share = max(m / (n - m) for n, m in zip((len(x), len(y)), sizes, strict=True))
    error = torch.tensor(spread, dtype=torch.float64).std().item() * math.sqrt(share)
    return Interval(value, value - _NORMAL * error, value + _NORMAL * error)


def _subsets(n: int, m: int, seed: int, which: str) -> Tensor:
    """(n, 1 + 100) of 0 and 1: all of n, then random m of them."""
    chosen = torch.ones(n, 1 + _SUBSETS)
    for i in range(_SUBSETS):
        chosen[torch.from_numpy(keyed(seed, "kid", which, i).permutation(n)[m:]), 1 + i] = 0
    return chosen


def _kid(x: Tensor, y: Tensor, of_x: Tensor, of_y: Tensor) -> Tensor:
    """The unbiased distance of each pair of subsets (S,): columns of 0 and 1, (N, S) and (M, S)."""
    of_x, of_y = of_x.double(), of_y.double()
    cross = _sums(x, y, of_x, of_y) / (of_x.sum(0) * of_y.sum(0))
    return _within(x, of_x) + _within(y, of_y) - 2 * cross


def _within(x: Tensor, chosen: Tensor) -> Tensor:
    """The mean of k over pairs of different rows."""
    count = chosen.sum(0)
    same = (x.double().square().sum(1) / x.shape[1] + 1).pow(3) @ chosen
    return (_sums(x, x, chosen, chosen) - same) / (count * (count - 1))


def _sums(x: Tensor, y: Tensor, of_x: Tensor, of_y: Tensor) -> Tensor:
    """The sums of k over all pairs of each subset (S,), a few rows of the matrix at a time."""
    y = y.double().T
    total = torch.zeros(of_x.shape[1], dtype=torch.float64)
    for rows, chosen in zip(x.split(_ROWS), of_x.split(_ROWS), strict=True):
        kernel = (rows.double() @ y).div_(x.shape[1]).add_(1).pow_(3)
        total += (chosen * (kernel @ of_y)).sum(0)
    return total


def _check(x: Tensor, y: Tensor) -> None:
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1] or min(len(x), len(y)) < 2:
        raise ValueError(
            f"features of shape {tuple(x.shape)} and {tuple(y.shape)}; expected (N, D) and (M, D), two rows or more"
        )


def cmmd(x: Tensor, y: Tensor) -> float:
    """CLIP's maximum mean discrepancy of features (N, D) and (M, D) of any length, as it is published: at least 0."""
    _check(x, y)
    x, y = (F.normalize(features.double(), dim=1) for features in (x, y))

    def mean(a: Tensor, b: Tensor) -> float:
        parts = ((part @ b.T - 1).div(100).exp().sum() for part in a.split(_ROWS))  # |x - y|^2 = 2 - 2 x.y
        return math.fsum(map(float, parts)) / (len(a) * len(b))

    return 1000 * (mean(x, x) + mean(y, y) - 2 * mean(x, y))


_STUDENT = (12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622)  # 97.5 %, 1 to 9 degrees


def repeated(values: Sequence[float]) -> Interval | None:
    """The mean of independent repeats with its 95 % interval by Student's t; None for a single one."""
    n = len(values)
    if n < 2:
        return None
    mean = math.fsum(values) / n
    error = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (n - 1) / n)
    degrees = n - 1
    series = _NORMAL + 2.372 / degrees + 2.823 / degrees**2 + 2.557 / degrees**3  # Cornish and Fisher
    times = _STUDENT[degrees - 1] if degrees <= len(_STUDENT) else series
    return Interval(mean, mean - times * error, mean + times * error)
