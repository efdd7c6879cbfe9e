r"""Exact log-likelihood by the probability-flow ODE (Song et al. 2021, section 4.3; Chen et al. 2018).

In y = x_t / c with c = hypot(alpha, sigma), and r = log(sigma / alpha) in the place of time, data flows into noise by

    dy/dr = cos (cos y - E[x | x_t]),     cos = alpha / c
    log p(y_0) = log p(y_1) + integral of div dr,     div = cos (cos d - tr dE/dy)

Both sides are smooth and bounded for every schedule, and r is half the log-SNR with its sign turned. The trace is
v^T (dE/dy) v averaged over probes v with E[v v^T] = I (Hutchinson 1990; FFJORD, Grathwohl et al. 2019): a product with
a vector is one backward pass. A row's probes stay the same along its path, so that it is one smooth ODE, and its step
lengths are its own (Dormand & Prince 5(4)), so that no row depends on its batch mates.

What is found is the density of the flow's own data: of x_t / alpha at t = `end`, from N(0, prior_std^2) at t_max. Grey
levels are made continuous first: see `dequantise.py`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from carrara.diffusion.dormand_prince import ERROR, NODES, STAGES
from carrara.diffusion.likelihood import Denoises, prior_kl
from carrara.diffusion.process import like
from carrara.diffusion.quadrature import combined
from carrara.errors import NonFiniteError
from carrara.rng import Rng
from carrara.types import Condition

__all__ = ["EveryAxis", "GaussianProbes", "OdeLikelihood", "Probes", "Rademacher", "ode_log_prob"]

_LEAST = 1e-10  # of a step in r


class Probes(ABC):
    """The vectors that a trace is measured with."""

    @abstractmethod
    def __call__(self, x: Tensor, rng: Rng) -> Tensor:
        """(K, *x.shape): K vectors for each row, whose v v^T are the identity on average."""


@dataclass(frozen=True)
class Rademacher(Probes):
    """Signs: without bias, and of the least variance among independent entries."""

    count: int = 1

    def __call__(self, x: Tensor, rng: Rng) -> Tensor:
        signs = rng.integers(2, (self.count, *x.shape[1:])) * 2 - 1
        return signs.transpose(0, 1).to(x.device, x.dtype)


@dataclass(frozen=True)
class GaussianProbes(Probes):
    """Standard normal entries."""

    count: int = 1

    def __call__(self, x: Tensor, rng: Rng) -> Tensor:
        return rng.normal((self.count, *x.shape[1:])).transpose(0, 1).to(x.device, x.dtype)


@dataclass(frozen=True)
class EveryAxis(Probes):
    """Each axis once: the exact trace, by as many backward passes as there are dimensions."""

    def __call__(self, x: Tensor, rng: Rng) -> Tensor:
        d = x[0].numel()
        axes = torch.eye(d, dtype=x.dtype, device=x.device) * math.sqrt(d)
        return axes.view(d, 1, *x.shape[1:]).expand(d, *x.shape)


class OdeLikelihood(NamedTuple):
    """Log-densities, nats a row, with what they are made of."""

    prior: Tensor  # (B,) log N(noise; 0, prior_std^2)
    change: Tensor  # (B, K) log-density of the data without the prior's, by each probe
    noise: Tensor  # (B, ...) where the row's path ends, at t_max
    evaluations: Tensor  # (B,) int64, of the denoiser
    dimensions: int
    prior_kl: Tensor  # (B,) KL(q(x_1|x) || prior): how much the prior leaves out of what data leaves in the noise

    @property
    def log_prob(self) -> Tensor:
        """log p(x): (B,) float64."""
        return self.prior + self.change.mean(1)

    @property
    def std_error(self) -> Tensor:
        """The standard error by the spread of the probes: (B,); NaN for one probe, no measure of `EveryAxis`."""
        if self.change.shape[1] < 2:
            return torch.full_like(self.prior, math.nan)
        return self.change.std(1) / math.sqrt(self.change.shape[1])

    def bits_per_dim(self, cost: Tensor) -> Tensor:
        """-log2 P a dimension of grey levels that were dequantised at a `cost` (B,) in nats: (B,)."""
        return (cost - self.log_prob) / (self.dimensions * math.log(2))


def ode_log_prob(
    denoiser: Denoises,
    x: Tensor,
    *,
    rng: Rng,
    probes: Probes = Rademacher(),
    tolerance: float = 1e-5,
    end: float | None = None,
    condition: Condition = Condition(),  # noqa: B008 - frozen
) -> OdeLikelihood:
    """log p(x) of continuous data x (B, ...), by the flow from t = `end` (None: t_min) to t_max.

    `tolerance` bounds a step's error, in y relative to 1 + |y| and in the log-density a dimension. Raises
    NonFiniteError for estimates that are not finite or a path that cannot be followed.
    """
    schedule = denoiser.process.schedule
    end = schedule.t_min if end is None else end
    if not schedule.t_min <= end < schedule.t_max:
        raise ValueError(f"end = {end}; expected a time in [{schedule.t_min:g}, {schedule.t_max:g})")
    if not 0 < tolerance < 1:
        raise ValueError(f"tolerance = {tolerance}; expected a small positive error, such as 1e-5")
    (alpha_0, sigma_0), (alpha_1, sigma_1) = schedule(end), schedule(schedule.t_max)
    c_0, c_1, d = math.hypot(alpha_0, sigma_0), math.hypot(alpha_1, sigma_1), x[0].numel()
    flow = _Flow(denoiser, probes(x, rng.fork("probes")), condition)
    ends = -schedule.logsnr(end) / 2, -schedule.logsnr(schedule.t_max) / 2
    y, change, evaluations = _integrate(flow, x * (alpha_0 / c_0), ends, tolerance)
    noise = y * c_1
    std = denoiser.process.prior_std(schedule.t_max)
    squares = noise.double().square().flatten(1).sum(1)
    prior = -squares / (2 * std**2) - d * math.log(2 * math.pi * std**2) / 2
    change = change + d * math.log(c_1 * alpha_0 / c_0)
    return OdeLikelihood(prior, change, noise, evaluations, d, prior_kl(denoiser.process, x, schedule.t_max))


class _Flow(NamedTuple):
    """The right-hand side, for some of the rows."""

    denoiser: Denoises
    probes: Tensor  # (K, B, ...)
    condition: Condition

    def at(self, rows: Tensor) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """(r (B,), y) -> (dy/dr, the probes' div (B, K) in float64), for the chosen rows."""
        schedule, probes, condition = self.denoiser.process.schedule, self.probes[:, rows], self.condition.rows(rows)

        def slopes(r: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
            t = schedule.time(-2 * r)
            alpha, sigma = schedule(t)
            c = torch.hypot(alpha, sigma)
            cos = alpha / c
            with torch.enable_grad():
                x_t = (like(c, y) * y).detach().requires_grad_()
                mean = self.denoiser(x_t, t, condition).mean
                stretch = [
                    (torch.autograd.grad(mean, x_t, v, retain_graph=i < len(probes) - 1)[0] * v).flatten(1).sum(1)
                    for i, v in enumerate(probes)
                ]
            traces = torch.stack(stretch, 1).double() * like(c, stretch[0])[:, None]
            div = like(cos, traces) * (like(cos, traces) * y[0].numel() - traces)
            return like(cos, y) * (like(cos, y) * y - mean.detach()), div

        return slopes


def _integrate(flow: _Flow, y: Tensor, ends: tuple[float, float], tolerance: float) -> tuple[Tensor, Tensor, Tensor]:
    """y and the integral of div (B, K) at ends[1], from y at ends[0], and the number of evaluations."""
    B, (first, last) = len(y), ends
    r = torch.full((B,), first, dtype=torch.float64)
    h = torch.full((B,), 0.1, dtype=torch.float64)
    total = torch.zeros(B, len(flow.probes), dtype=torch.float64, device=y.device)
    evaluations = torch.ones(B, dtype=torch.int64)
    y, slope = y.clone(), list(flow.at(torch.arange(B, device=y.device))(r, y))
    going = torch.arange(B)
    while len(going):
        rows = going.to(y.device)
        start, step = r[going], torch.minimum(h[going], last - r[going])
        after, gained, ahead, error = _step(flow.at(rows), start, step, y[rows], [k[rows] for k in slope], tolerance)
        evaluations[going] += 6
        if not bool(error.isfinite().all()) or bool((step < _LEAST).any()):
            raise NonFiniteError(
                "the flow cannot be followed: the estimates are not finite or jump; a larger tolerance may help"
            )
        good = error <= 1
        kept = good.to(y.device)
        done, at = going[good], rows[kept]
        y[at], total[at] = after[kept], total[at] + gained[kept]
        for k, new in zip(slope, ahead, strict=True):
            k[at] = new[kept]
        moved = r[done] + step[good]
        r[done] = torch.where(moved > last - _LEAST, last, moved)
        h[going] = step * (0.9 * error.clamp(min=1e-10) ** -0.2).clamp(0.2, 5)
        going = going[r[going] < last]
    return y, total, evaluations


def _step(
    slopes: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
    r: Tensor,
    h: Tensor,
    y: Tensor,
    first: list[Tensor],
    tolerance: float,
) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor], Tensor]:
    """One step of each row: y after it, what the integral gains, the slopes there, and the error over the tolerance."""
    found = [(first[0], first[1])]
    for node, stage in zip(NODES[1:], STAGES[1:], strict=True):
        inside = y + like(h, y) * combined(stage, [k for k, _ in found])
        found.append(slopes(r + node * h, inside))
    after = inside  # the last stage is the end of the step
    gained = like(h, found[0][1]) * combined(STAGES[-1], [k for _, k in found[:-1]])
    off, lost = (combined(ERROR, [k[part] for k in found]) for part in (0, 1))
    scale = tolerance * (1 + torch.maximum(y.abs(), after.abs()))
    of_y = (like(h, y) * off / scale).flatten(1).double().square().mean(1).sqrt().cpu()
    of_log = (h * lost.mean(1).cpu()).abs() / (tolerance * y[0].numel())
    return after, gained, found[-1], torch.maximum(of_y, of_log)
