r"""UniPC (Zhao et al. 2023): a multistep predictor, and a corrector that costs no evaluation of its own; in lambda.

The estimate at the end of a stride, asked for anyway to begin the next one, first mends the stride that led there: one
node more, one order more. In the terms of dpm.py both are values of D for the stride, with nodes v = (lambda_i -
lambda_t) / h. Where several nodes are combined, the conditions of the paper's eq. 10 say that polynomials through them
are integrated exactly, whatever B(h) is. A single difference is not solved for but gets the weight 1/2 (the paper's
appendix on the degenerate case), and only there B matters:

    D + B(-h) / (2 (e^{-h} - 1)) (D_i - D) / v_i
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Annotated

from torch import Tensor

from carrara.config import Role
from carrara.diffusion.dpm import level
from carrara.diffusion.process import Process
from carrara.diffusion.quadrature import combined, exponential_moments, weights
from carrara.diffusion.sampler import stride
from carrara.diffusion.times import Times
from carrara.rng import Rng
from carrara.types import Query, Sampling

__all__ = ["B", "bh1", "bh2", "unipc"]

B = Annotated[Callable[[float], float], Role("bh")]
"""B(h), any function that is h to first order."""


def bh1(h: float) -> float:
    """B1(h) = h, which the authors advise for unconditional sampling."""
    return h


def bh2(h: float) -> float:
    """B2(h) = e^h - 1, which the authors advise for guided sampling."""
    return math.expm1(h)


def unipc(
    process: Process,
    x: Tensor,
    times: Times,
    *,
    rng: Rng,
    order: int = 2,
    corrector: bool = True,
    b: B = bh2,
) -> Sampling:
    """UniPC of the predictor's `order` 1 to 3, deterministic; one evaluation a stride, corrected or not.

    The order rises from 1 over the first strides. Where the log-SNR is infinite at either end of a stride it is a DDIM
    stride that is not corrected, and what was known before is forgotten; nor is the last stride corrected, for nothing
    is asked at its end.
    """
    if not 1 <= order <= 3:
        raise ValueError(f"order = {order}; expected 1, 2 or 3, the order of the predictor")
    known: list[tuple[float, Tensor]] = []  # (lambda, estimate), the latest first
    before: tuple[float, Tensor] | None = None  # where a stride that can be corrected began
    for t, s in pairwise(times):
        mean = (yield Query(x, t)).mean
        start, end = level(process.schedule, t), level(process.schedule, s)
        if corrector and before is not None:
            began, x = before
            x = stride(process, x, _direction(known, (start, mean), start, b), began, t)
        known = [(start, mean), *known[: order - 1]] if math.isfinite(start) else []
        if known and math.isfinite(end):
            before = t, x
            mean = _direction(known, None, end, b)
        else:
            before = None
        x = stride(process, x, mean, t, s)
    return x


def _direction(
    known: Sequence[tuple[float, Tensor]], ahead: tuple[float, Tensor] | None, end: float, b: Callable[[float], float]
) -> Tensor:
    """D for the stride from known[0] to lambda = `end`, from what is known there and perhaps `ahead`."""
    start = known[0][0]
    h = end - start
    nodes = [*known, ahead] if ahead is not None else list(known)
    places = [(at - start) / h for at, _ in nodes]
    if len(nodes) == 2:
        share = b(-h) / (2 * math.expm1(-h) * places[1])
        factors = [1 - share, share]
    else:
        factors = weights(places, exponential_moments(h, len(places)))
    return combined(factors, [estimate for _, estimate in nodes])
