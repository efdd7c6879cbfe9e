r"""Linear multistep methods in y = x_t / c over u = sigma / c (see sampler.py): one evaluation a stride.

    y_s = y_t + (u_s - u_t) sum_i w_i f_i,     f_i = (y_i - E[x | x_i]) / u_i

`adams` has the weights of the strides as they are; `plms` and `pndm` those of equal strides, whatever they are, which
is what their authors do and what models were tuned with. In c = alpha the slope f is the estimated noise, and a stride
along it is the transfer of PNDM (Liu et al. 2022, eq. 11).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor

from carrara.diffusion.process import Process
from carrara.diffusion.quadrature import combined, plain_moments, weights
from carrara.diffusion.sampler import Coordinate, Path
from carrara.diffusion.times import Times
from carrara.rng import Rng
from carrara.types import Sampling

__all__ = ["adams", "plms", "pndm"]


def adams(
    process: Process, x: Tensor, times: Times, *, rng: Rng, order: int = 4, coordinate: Coordinate | None = None
) -> Sampling:
    """Adams-Bashforth of `order` 1 to 4 on unequal strides, known as LMS; deterministic. One evaluation a stride.

    The order rises from 1 over the first strides. `coordinate` None is alpha, or alpha + sigma where alpha (nearly)
    vanishes at times[0].
    """
    if not 1 <= order <= 4:
        raise ValueError(f"order = {order}; expected 1 to 4, the number of slopes that are combined")
    path = Path.of(process, times, coordinate)
    known: list[tuple[float, Tensor]] = []  # (u, slope), the latest first
    for t, s in pairwise(times):
        y, slope = yield from path.slope(x, t)
        u_t, u_s = path.at(t)[1], path.at(s)[1]
        known = [(u_t, slope), *known[: order - 1]]
        factors = weights([(u - u_t) / (u_s - u_t) for u, _ in known], plain_moments(len(known)))
        x = path.along(y, combined(factors, [each for _, each in known]), t, s)
    return x


def plms(process: Process, x: Tensor, times: Times, *, rng: Rng, coordinate: Coordinate | None = None) -> Sampling:
    """PNDM's linear multistep part alone, as Stable Diffusion came with; deterministic.

    The order rises from 1 to 4 over the first strides, of which the very first is Heun's: two evaluations there (one if
    it ends at sigma = 0), and one in every other. `coordinate` as in `adams`; alpha is the paper's.
    """
    path = Path.of(process, times, coordinate)
    known: list[Tensor] = []  # slopes, the latest first
    for t, s in pairwise(times):
        y, slope = yield from path.slope(x, t)
        known = [slope, *known[:3]]
        if t == times[0] and path.at(s)[1] > 0:
            _, ahead = yield from path.slope(path.along(y, slope, t, s), s, inner=True)
            x = path.along(y, combined([1 / 2, 1 / 2], [slope, ahead]), t, s)
        else:
            x = path.along(y, _bashforth(known), t, s)
    return x


def pndm(process: Process, x: Tensor, times: Times, *, rng: Rng, coordinate: Coordinate | None = None) -> Sampling:
    """PNDM (Liu et al. 2022, Algorithm 2): three strides of Runge-Kutta, then `plms` of order 4; deterministic.

    Four evaluations in each of the first three strides, two of them at (t + s) / 2 and one at s, and one in every
    other; one as well in a stride that ends at sigma = 0. `coordinate` as in `adams`; alpha is the paper's.
    """
    path = Path.of(process, times, coordinate)
    known: list[Tensor] = []  # slopes, the latest first
    for number, (t, s) in enumerate(pairwise(times)):
        y, first = yield from path.slope(x, t)
        known = [first, *known[:3]]
        if number < 3 and path.at(s)[1] > 0:
            m = (t + s) / 2
            _, second = yield from path.slope(path.along(y, first, t, m), m, inner=True)
            _, third = yield from path.slope(path.along(y, second, t, m), m, inner=True)
            _, fourth = yield from path.slope(path.along(y, third, t, s), s, inner=True)
            x = path.along(y, combined([1 / 6, 1 / 3, 1 / 3, 1 / 6], [first, second, third, fourth]), t, s)
        else:
            x = path.along(y, _bashforth(known), t, s)
    return x


def _bashforth(slopes: Sequence[Tensor]) -> Tensor:
    return combined(_equal(len(slopes)), slopes)


@functools.cache
def _equal(count: int) -> list[float]:
    """The weights of equal strides: (55, -59, 37, -9) / 24 for four."""
    return weights([-float(i) for i in range(count)], plain_moments(count))
