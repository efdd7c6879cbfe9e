r"""Weights of the multistep methods: an integral of what is known at a few nodes, exact for polynomials through them.

    integral w(v) f(v) dv  =  sum_i w_i f(v_i),   with  sum_i w_i v_i^j = m_j = integral w(v) v^j dv  for j < nodes

Nodes are in units of the stride that is to be made: 0 is where it begins, 1 where it ends, what was known before is
negative. Adams-Bashforth methods have m_j = 1 / (j + 1); exponential ones weight by how much of f is left at the end.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from torch import Tensor

__all__ = ["combined", "exponential_moments", "plain_moments", "weights"]


def weights(nodes: Sequence[float], moments: Sequence[float]) -> list[float]:
    """w_i for distinct nodes v_i, exact for polynomials of a degree below their number; float64."""
    if len(nodes) == 1:
        return [moments[0]]
    powers = np.vander(np.asarray(nodes, dtype=np.float64), increasing=True).T
    solved: list[float] = np.linalg.solve(powers, np.asarray(moments, dtype=np.float64)).tolist()
    return solved


def plain_moments(count: int) -> list[float]:
    """m_j = integral_0^1 v^j dv, for j < count."""
    return [1 / (j + 1) for j in range(count)]


def exponential_moments(h: float, count: int) -> list[float]:
    """m_j = integral_0^1 h e^{-h (1 - v)} v^j dv / (1 - e^{-h}), for j < count and h > 0; the weights sum to 1."""
    if h < 1:  # a series, since the recursion below loses digits here
        moments = [
            h * math.factorial(j) * math.fsum((-h) ** k / math.factorial(j + k + 1) for k in range(20))
            for j in range(count)
        ]
    else:  # by parts
        moments = [-math.expm1(-h)]
        for j in range(1, count):
            moments.append(1 - j / h * moments[-1])
    return [moment / moments[0] for moment in moments]


def combined(factors: Sequence[float], values: Sequence[Tensor]) -> Tensor:
    """sum_i factor_i value_i."""
    total = factors[0] * values[0]
    for factor, value in zip(factors[1:], values[1:], strict=True):
        total = total + factor * value
    return total
