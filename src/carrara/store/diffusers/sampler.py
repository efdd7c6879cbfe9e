"""Samplers that walk a grid as foreign schedulers do, made of Carrara's own."""

from __future__ import annotations

import functools
import math
from itertools import pairwise

from torch import Tensor

from carrara.diffusion.dpm import dpmpp_2m, level
from carrara.diffusion.process import Process
from carrara.diffusion.quadrature import combined
from carrara.diffusion.sampler import Sampler, ddim, stride
from carrara.diffusion.times import Times
from carrara.rng import Rng
from carrara.types import Query, Sampling

__all__ = ["ending", "singlestep"]

_DPM = functools.partial(dpmpp_2m)
_DDIM = functools.partial(ddim)


def ending(
    process: Process,
    x: Tensor,
    times: Times,
    *,
    rng: Rng,
    inner: Sampler = _DPM,
    last: Sampler = _DDIM,
    below: int | None = 15,
) -> Sampling:
    """`inner`, but for the final stride, which is `last`'s in grids of fewer than `below` strides; None is always.

    "lower_order_final" and "euler_at_final" of DPM-Solver++, which keep few strides from overshooting.
    """
    if below is not None and len(times) - 1 >= below:
        return (yield from inner(process, x, times, rng=rng))
    x = yield from inner(process, x, times[:-1], rng=rng)
    return (yield from last(process, x, times[-2:], rng=rng))


def singlestep(process: Process, x: Tensor, times: Times, *, rng: Rng, single: int = 2) -> Sampling:
    """DPM-Solver++(2S) whose strides take two of the grid's, the time between being where it is asked again.

    One evaluation a stride of the grid. The last `single` strides of an even number, 0 or 2, and the last of an odd
    number are DDIM strides, and so are two that begin or end where the log-SNR is infinite. (`dpmpp_2s` chooses the
    middle itself.)
    """
    if single not in (0, 2):
        raise ValueError(f"single = {single}; expected 0 or 2, how many of an even number of strides are not paired")
    strides = len(times) - 1
    paired = strides - 1 if strides % 2 else max(strides - single, 0)
    for t, m, s in zip(times[0:paired:2], times[1 : paired + 1 : 2], times[2 : paired + 1 : 2], strict=True):
        mean = (yield Query(x, t)).mean
        halfway = stride(process, x, mean, t, m)
        inner = (yield Query(halfway, m)).mean
        start, middle, end = (level(process.schedule, time) for time in (t, m, s))
        if math.isfinite(start) and math.isfinite(end):
            share = (end - start) / (2 * (middle - start))
            x = stride(process, x, combined([1 - share, share], [mean, inner]), t, s)
        else:
            x = stride(process, halfway, inner, m, s)
    for t, s in pairwise(times[paired:]):
        x = stride(process, x, (yield Query(x, t)).mean, t, s)
    return x
