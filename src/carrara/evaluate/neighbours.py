r"""Quality and variety of samples apart, by nearest neighbours among features.

A picture's ball reaches to its k-th nearest neighbour in its own set. With real pictures r and samples s

    precision    share of the samples that lie in a ball of a real picture            "it looks like the data"
    recall       share of the real pictures that lie in a ball of a sample            "the data could have been made"
    density      balls of real pictures that a sample lies in, on average, over k     not fooled by one stray picture
    coverage     share of the real pictures whose ball has a sample in it             not fooled by a stray sample

(Kynkaanniemi et al. 2019 with k = 3; Naeem et al. 2020 with k = 5.) All but density are shares. They depend on the
numbers of pictures: compare only figures of equal ones.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Neighbourhood", "neighbourhood", "radii"]

_ROWS = 1024  # of a matrix of distances at once
_SHARES, _COUNTS = 3, 5  # the k of precision and recall, and of density and coverage


class Neighbourhood(NamedTuple):
    """The four figures, and how many pictures they are of."""

    precision: float
    recall: float
    density: float
    coverage: float
    real: int
    samples: int


def radii(x: Tensor, k: int) -> Tensor:
    """Of each row of x (N, D) the distance to its k-th nearest other row: (N,) float64. ValueError for N <= k."""
    if len(x) <= k:
        raise ValueError(f"{len(x)} pictures have no {k} nearest neighbours each; give more than {k}")
    found = []
    for first, distances in _distances(x, x):
        rows = torch.arange(len(distances))
        distances[rows, first + rows] = torch.inf
        found.append(distances.kthvalue(k, dim=1).values)
    return torch.cat(found) * (1 + 1e-9)  # rounding must not leave that row outside


def neighbourhood(real: Tensor, samples: Tensor) -> Neighbourhood:
    """The four figures of features (N, D) and (M, D). ValueError for five pictures or fewer in a set."""
    near, far = radii(real, _SHARES), radii(real, _COUNTS)
    of_samples = radii(samples, _SHARES)
    inside = counted = 0.0
    reached = torch.zeros(len(real), dtype=torch.bool)
    nearest = torch.full((len(real),), torch.inf, dtype=torch.float64)
    for first, distances in _distances(samples, real):
        inside += float((distances <= near).any(1).sum())
        counted += float((distances <= far).sum())
        reached |= (distances <= of_samples[first : first + len(distances), None]).any(0)
        nearest = torch.minimum(nearest, distances.min(0).values)
    return Neighbourhood(
        precision=inside / len(samples),
        recall=reached.double().mean().item(),
        density=counted / (_COUNTS * len(samples)),
        coverage=(nearest <= far).double().mean().item(),
        real=len(real),
        samples=len(samples),
    )


def _distances(x: Tensor, y: Tensor) -> Iterator[tuple[int, Tensor]]:
    """The number of the first row, and (rows, M) float64 distances, a few rows of x at a time."""
    y = y.double()
    for first in range(0, len(x), _ROWS):
        yield first, torch.cdist(x[first : first + _ROWS].double(), y, compute_mode="use_mm_for_euclid_dist")
