r"""Quantiles of the Beta distribution, in float64 and without a dependency.

    I_x(a, b) = x^a (1 - x)^b / (a B(a, b)) * 1 / (1 + d_1 / (1 + d_2 / (1 + ...)))

is the distribution function, the regularised incomplete beta function; its continued fraction (Abramowitz & Stegun
26.5.8) is summed by Lentz's method, and the quantile is Newton's root of log I in log x, which is concave there.
"""

from __future__ import annotations

import math

__all__ = ["beta_distribution", "beta_quantile"]


def _log_head(x: float, a: float, b: float) -> float:
    """log of x^a (1 - x)^b / (a B(a, b))."""
    log_beta = math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)
    return a * math.log(x) + b * math.log1p(-x) - math.log(a) - log_beta


def _fraction(x: float, a: float, b: float) -> float:
    """1 / (1 + d_1 / (1 + d_2 / ...)), for x up to about the mean, where it converges fast."""
    value, c, d = 1.0, 1.0, 0.0
    for i in range(1000):
        m = i // 2
        if i == 0:
            term = 1.0
        elif i % 2 == 0:
            term = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        else:
            term = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        d = 1 / _away_from_zero(1 + term * d)
        c = _away_from_zero(1 + term / c)
        value *= c * d
        if i > 0 and abs(c * d - 1) < 1e-16:
            break
    return value - 1


def _away_from_zero(value: float) -> float:
    return value if abs(value) > 1e-300 else 1e-300


def beta_distribution(x: float, a: float, b: float) -> float:
    """P(X <= x) for X of a Beta(a, b) distribution."""
    if not 0 < x < 1:
        return float(x >= 1)
    if x > (a + 1) / (a + b + 2):
        return 1 - beta_distribution(1 - x, b, a)
    return math.exp(_log_head(x, a, b)) * _fraction(x, a, b)


def beta_quantile(share: float, a: float, b: float) -> float:
    """The x with P(X <= x) = share, for X of a Beta(a, b) distribution; ValueError for parameters that make none."""
    if not (0 <= share <= 1 and 0.1 <= a <= 100 and 0.1 <= b <= 100):
        raise ValueError(f"quantile {share} of Beta({a}, {b}); expected a share in [0, 1], parameters in [0.1, 100]")
    if share in (0, 1) or a == b == 1:
        return share
    if share > beta_distribution(0.5, a, b):
        return 1 - _lower_quantile(1 - share, b, a)
    return _lower_quantile(share, a, b)


def _lower_quantile(share: float, a: float, b: float) -> float:
    """A quantile of at most a half: by Newton's steps within a bracket."""
    low, high = -math.inf, math.log(0.5)  # of log x
    # where (1 - x)^b is left out, an upper or a lower bound
    at = min(high, (math.log(share) + math.log(a) + math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)) / a)
    for _ in range(200):
        x = math.exp(at)
        found = beta_distribution(x, a, b)
        low, high = (at, high) if found < share else (low, at)
        slope = math.exp(_log_head(x, a, b) - math.log1p(-x)) * a  # of the distribution over log x
        ahead = at + math.log(share / found) * found / slope if found > 0 and slope > 0 else math.inf
        if not low <= ahead <= high:
            ahead = (low + high) / 2 if low > -math.inf else at - 1
        if abs(ahead - at) <= 1e-16 * max(1.0, abs(at)):
            break
        at = ahead
    return math.exp(at)
