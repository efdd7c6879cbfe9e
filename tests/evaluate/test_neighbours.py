"""Precision, recall, density and coverage: as their papers write them out, and at their ends."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from carrara.evaluate.neighbours import neighbourhood, radii


def cloud(n: int, seed: int, shift: float = 0.0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(shift, 1, (n, 6)).astype(np.float32))


def written_out(real: np.ndarray, samples: np.ndarray) -> tuple[float, float, float, float]:
    """Kynkaanniemi et al., equation 1 with k = 3; Naeem et al., equations 4 and 6 with k = 5."""

    def distance(a: np.ndarray, b: np.ndarray) -> float:
        return float(np.sqrt(((a - b) ** 2).sum()))

    def ball(points: np.ndarray, i: int, k: int) -> float:
        return sorted(distance(points[i], points[j]) for j in range(len(points)) if j != i)[k - 1]

    def inside(point: np.ndarray, points: np.ndarray, k: int) -> list[bool]:
        return [distance(point, points[i]) <= ball(points, i, k) for i in range(len(points))]

    precision = np.mean([any(inside(s, real, 3)) for s in samples])
    recall = np.mean([any(inside(r, samples, 3)) for r in real])
    density = np.mean([sum(inside(s, real, 5)) / 5 for s in samples])
    covered = [min(distance(s, real[i]) for s in samples) <= ball(real, i, 5) for i in range(len(real))]
    return float(precision), float(recall), float(density), float(np.mean(covered))


@pytest.mark.parametrize("shift", [0.0, 0.7, 2.0])
def test_written_out(shift: float) -> None:
    real, samples = cloud(23, 0), cloud(17, 1, shift)
    found = neighbourhood(real, samples)
    assert found[:4] == pytest.approx(written_out(real.double().numpy(), samples.double().numpy()))
    assert (found.real, found.samples) == (23, 17)


def test_a_set_against_itself() -> None:
    x = cloud(1100, 0)  # more than a block of rows
    found = neighbourhood(x, x)
    assert (found.precision, found.recall, found.coverage) == (1, 1, 1)
    assert found.density == pytest.approx(6 / 5)  # a picture lies in its own ball and in five others', on average


def test_far_apart() -> None:
    assert neighbourhood(cloud(20, 0), cloud(20, 1, 50.0))[:4] == (0, 0, 0, 0)


def test_one_picture_again_and_again() -> None:
    """All samples look real, and hardly anything of the data is made."""
    real = cloud(300, 0)
    found = neighbourhood(real, real[:1].repeat(50, 1))
    assert found.precision == 1
    assert found.coverage < 0.1
    assert found.recall < 0.1


def test_too_few() -> None:
    with pytest.raises(ValueError, match="3 pictures have no 3 nearest"):
        radii(cloud(3, 0), 3)
    with pytest.raises(ValueError, match="give more than 5"):
        neighbourhood(cloud(5, 0), cloud(20, 1))
