r"""Adaptive steps: Dormand and Prince's pair of orders 5 and 4 (1980), in y = x_t / c over u = sigma / c (sampler.py).

Every row has steps of its own, so that what becomes of it does not depend on its batch mates. It is a coroutine of its
own; `dopri` asks for the next evaluations of all rows in one question, in which each row has its own time.

A step from u to u + h is accepted when the difference of the two orders is within the tolerance,

    e = rms( (y5 - y4) / (atol + rtol max(|y|, |y5|)) ) <= 1,     next h = h min(5, max(0.2, 0.9 e^(-1/5)))

as in Hairer, Norsett & Wanner, "Solving Ordinary Differential Equations I", section II.4.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from carrara.diffusion.dormand_prince import ERROR, NODES, STAGES
from carrara.diffusion.process import Process
from carrara.diffusion.quadrature import combined
from carrara.diffusion.sampler import Coordinate, Path, stride
from carrara.diffusion.times import Times
from carrara.rng import Rng
from carrara.types import Estimate, Query, Sampling

__all__ = ["dopri"]


class _Control(NamedTuple):
    rtol: float
    atol: float
    most: int


def dopri(
    process: Process,
    x: Tensor,
    times: Times,
    *,
    rng: Rng,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    most: int = 1000,
    coordinate: Coordinate | None = None,
) -> Sampling:
    """The probability-flow ODE from times[0] to times[-1] to a tolerance, by Dormand-Prince 5(4); deterministic.

    The grid gives the ends, and times[1] the end of the first step that is tried; the times after it have no effect.
    Where the grid begins beyond the schedule's t_max or ends below its t_min (at 0, say), one DDIM stride leads in or
    out. Six evaluations a step that is tried, and one more to begin. A row that has arrived waits for the others: it
    stands in their questions unchanged.
    `coordinate` None is alpha, or alpha + sigma where alpha (nearly) vanishes at times[0].

    Raises ValueError when a row has not arrived after `most` evaluations.
    """
    if not (rtol > 0 and atol > 0 and most > 0):
        raise ValueError(f"rtol = {rtol}, atol = {atol}, most = {most}; expected tolerances and a number above 0")
    first = min(max(times[0], process.schedule.t_min), process.schedule.t_max)
    last = min(max(times[-1], process.schedule.t_min), process.schedule.t_max)
    if first < times[0]:
        x = stride(process, x, (yield Query(x, times[0])).mean, times[0], first)
    if last < first:
        path, control = Path.of(process, (first,), coordinate), _Control(rtol, atol, most)
        tried = times[1] if last < times[1] < first else last
        y, slope = yield from path.slope(x, first)
        rows = zip(torch.split(y, 1), torch.split(slope, 1), strict=True)
        x = yield from _together([_row(path, *row, (first, tried, last), control) for row in rows])
    if times[-1] < last:
        x = stride(process, x, (yield Query(x, last)).mean, last, times[-1])
    return x


def _together(rows: Sequence[Sampling]) -> Sampling:
    """Samplings of a row each, with one question for what all of them ask next."""
    asked = [next(row) for row in rows]
    ended: dict[int, Tensor] = {}
    while len(ended) < len(rows):
        times = torch.tensor([query.t for query in asked], dtype=torch.float64, device="cpu")
        mean = (yield Query(torch.cat([query.x for query in asked]), times, inner=True)).mean
        for i, row in enumerate(rows):
            if i not in ended:
                try:
                    asked[i] = row.send(Estimate(mean[i : i + 1]))
                except StopIteration as finished:
                    ended[i] = finished.value
    return torch.cat([ended[i] for i in range(len(rows))])


def _row(path: Path, y: Tensor, slope: Tensor, times: tuple[float, float, float], control: _Control) -> Sampling:
    """From times[0], where y and its slope are known, to times[2]; times[1] is where the first step tries to end."""
    t, tried, last = times
    (_, u), (c_last, u_last) = path.at(t), path.at(last)
    h, asked = path.at(tried)[1] - u, 1
    while True:
        if asked + 6 > control.most:
            raise ValueError(
                f"after {asked} evaluations a row is at t = {t:.4g} on its way to {last:.4g}; loosen rtol = "
                f"{control.rtol:g} and atol = {control.atol:g}, or raise `most`, if the estimates are finite"
            )
        arrives = u + h <= u_last * (1 + 1e-12)
        h = u_last - u if arrives else h
        slopes, ahead = [slope], y
        for node, stage in zip(NODES[1:], STAGES[1:], strict=True):
            at = last if arrives and node == 1 else path.time(u + node * h)
            ahead = y + h * combined(stage, slopes)
            slopes.append((yield from path.slope(path.at(at)[0] * ahead, at, inner=True))[1])
        asked += 6
        scale = control.atol + control.rtol * torch.maximum(y.abs(), ahead.abs())
        error = (h * combined(ERROR, slopes) / scale).double().square().mean().sqrt().item()
        if error <= 1:
            if arrives:
                return c_last * ahead
            t, u, y, slope = at, u + h, ahead, slopes[-1]
        h *= min(5.0, max(0.2, 0.9 * max(error, 1e-10) ** -0.2))
