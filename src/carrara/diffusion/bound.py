r"""Training by the variational bound: one term a row, such that the mean over rows is the bound in bits a dimension.

    BoundLoss             a random stride of a grid, times their number N:   N L_i + L_prior            (DDPM eq. 5)
    HybridLoss            the denoising loss for the mean, the bound for the learned variance alone     (iDDPM eq. 16)
    ContinuousBoundLoss   a random time, of infinitely many strides                                     (VDM eq. 17)

        -1/2 integral of dlogsnr/dt |noise - noise_hat|^2 dt,  with the prior at t_max and the reconstruction at the end

    LeastVariance         that, and the interior of a learned schedule minimises how much it varies     (VDM, app. I.2)

The terms are those that `likelihood.py` measures, here for one draw of the stride and differentiable; but in continuous
time the reconstruction is that of a normal over each level's bin, smooth in the schedule's end, and slightly above the
one that is measured.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from carrara.diffusion.denoiser import Denoiser
from carrara.diffusion.draw import Steps, TimeDistribution
from carrara.diffusion.learned import LearnedLogSNR
from carrara.diffusion.likelihood import discretised_log_prob, kl, prior_kl, resolving_time, stride_term
from carrara.diffusion.loss import DenoisingLoss, Objective, check_draw, check_fixed
from carrara.diffusion.process import Learned, Posterior, Process, Variance, like
from carrara.diffusion.times import Grid, Times, full
from carrara.diffusion.weight import of_noise
from carrara.rng import Rng
from carrara.types import Condition, Estimate, Gaussian

__all__ = ["BoundLoss", "ContinuousBoundLoss", "HybridLoss", "LeastVariance"]

_FULL = functools.partial(full)
_POSTERIOR = Posterior()


def _times(grid: Grid, process: Process) -> Times:
    times: Times = tuple(grid(process.schedule))
    if len(times) < 3 or times[-1] != 0:
        raise ValueError(
            f"a bound's grid has at least two strides and ends at 0; given {len(times)} times to {times[-1]}"
        )
    return times


def _bits(x: Tensor) -> float:
    """Nats a row over bits a dimension."""
    return x[0].numel() * math.log(2)


def _check_variance(denoiser: Denoiser, variance: Variance) -> None:
    if isinstance(variance, Learned) != denoiser.learned_variance:
        raise ValueError(
            "the bound has a learned variance and the denoiser none; build it with learned_variance"
            if isinstance(variance, Learned)
            else "the denoiser has a learned variance, which only a bound with `variance` Learned() teaches"
        )


@dataclass(frozen=True)
class BoundLoss(Objective):
    """The bound over a grid, from one of its strides a row, for data on `levels` grey levels in [-1, 1].

    `draw` chooses among the N strides as among the steps of a table, Importance(steps=N) say; None spreads them evenly.
    """

    times: Grid = _FULL
    draw: TimeDistribution | None = None
    variance: Variance = _POSTERIOR
    levels: int = 256

    def __call__(self, denoiser: Denoiser, x: Tensor, condition: Condition, rng: Rng) -> Tensor:
        """One draw of the bound a row, in bits a dimension: (B,)."""
        process, strides = denoiser.process, len(_times(self.times, denoiser.process)) - 1
        noise = rng.fork("noise").normal_like(x)
        if self.draw is None:
            left = ((rng.fork("time").spread() * strides).floor() + 1).long()
            return self.at(denoiser, x, condition, noise, strides - left)
        share = self.draw(process, rng.fork("time"))  # of the strides that are left
        term = self._term(denoiser, x, condition, noise, strides - (share * strides).round().long())
        return self.draw.counted(rng, share, term) + self._prior(process, x)

    def at(self, denoiser: Denoiser, x: Tensor, condition: Condition, noise: Tensor, index: Tensor) -> Tensor:
        """The draw with given noise and strides (B,), from times[i] to times[i + 1]. Its mean over i is the bound."""
        return self._term(denoiser, x, condition, noise, index) + self._prior(denoiser.process, x)

    def _term(self, denoiser: Denoiser, x: Tensor, condition: Condition, noise: Tensor, index: Tensor) -> Tensor:
        process, times = denoiser.process, _times(self.times, denoiser.process)
        t = torch.tensor(times, dtype=torch.float64)[index]
        x_t = process.diffuse(x, t, noise)
        estimate = denoiser(x_t, t, condition)
        term = stride_term(process, estimate, x, x_t, times, index, variance=self.variance, levels=self.levels)
        return term * ((len(times) - 1) / _bits(x))

    def _prior(self, process: Process, x: Tensor) -> Tensor:
        return prior_kl(process, x, _times(self.times, process)[0]) / _bits(x)

    def check(self, denoiser: Denoiser) -> None:
        _check_variance(denoiser, self.variance)
        check_fixed(denoiser)
        strides = len(_times(self.times, denoiser.process)) - 1
        if self.draw is not None:
            check_draw(self.draw, strides)
            self.draw.quantile(denoiser.process, torch.zeros(1, dtype=torch.float64))  # refuses a table of other steps

    @property
    def grey_levels(self) -> int:
        return self.levels


@dataclass(frozen=True)
class HybridLoss(Objective):
    """L_simple + share L_vlb, for a denoiser with a learned variance (Nichol & Dhariwal 2021, eq. 16).

    The mean learns from L_simple alone: L_vlb, in bits a dimension, sees it without gradient. `simple` draws times of
    the grid. `levels` 0, for latents, leaves out the last stride, in which sampling draws nothing.
    """

    simple: DenoisingLoss = DenoisingLoss(Steps())  # noqa: RUF009 - frozen
    share: float = 0.001
    times: Grid = _FULL
    levels: int = 256

    def __post_init__(self) -> None:
        if not self.share > 0:
            raise ValueError(f"share = {self.share}; expected a positive share of the bound, 0.001 in the paper")

    def __call__(self, denoiser: Denoiser, x: Tensor, condition: Condition, rng: Rng) -> Tensor:
        """The loss of each row: (B,)."""
        t = self.simple.draw(denoiser.process, rng.fork("time"))
        loss = self.at(denoiser, x, condition, rng.fork("noise").normal_like(x), t)
        return self.simple.draw.counted(rng, t, loss)

    def at(self, denoiser: Denoiser, x: Tensor, condition: Condition, noise: Tensor, t: Tensor) -> Tensor:
        """The loss of each row at given times (B,) of the grid, and noise."""
        process, times = denoiser.process, _times(self.times, denoiser.process)
        prediction = denoiser.predict(x, noise, t, condition)
        error = (prediction.output - prediction.target).square().flatten(1).mean(1)
        simple = self.simple.weight.weigh(error, process, denoiser.parameterization, t)
        index, (mean, mix) = self._index(t, times), prediction.estimate
        x_t, stopped = process.diffuse(x, t, noise), mean.detach()
        if mix is None:
            raise ValueError("the hybrid loss teaches a learned variance; build the denoiser with learned_variance")
        rows = torch.arange(len(x)) if self.levels else (index < len(times) - 2).nonzero()[:, 0]
        on = rows.to(x.device)
        bound = torch.zeros_like(simple)
        if len(rows):
            estimate, levels = Estimate(stopped[on], mix[on]), self.levels or 256
            term = stride_term(process, estimate, x[on], x_t[on], times, index[rows], variance=Learned(), levels=levels)
            bound = bound.index_put((on,), term.to(bound.dtype))
        return simple + bound * (self.share * (len(times) - 1) / _bits(x))

    def _index(self, t: Tensor, times: Times) -> Tensor:
        grid = torch.tensor(times[-2::-1], dtype=torch.float64)  # ascending, without 0
        above = torch.searchsorted(grid, t.to("cpu", torch.float64) - 1e-9).clamp(max=len(grid) - 1)
        if bool(((grid[above] - t.to("cpu")).abs() > 1e-9).any()):
            raise ValueError(f"a time is not on the grid of {len(grid)} strides; draw Steps({len(grid)})")
        return len(grid) - 1 - above

    def check(self, denoiser: Denoiser) -> None:
        _check_variance(denoiser, Learned())
        check_fixed(denoiser)
        times = _times(self.times, denoiser.process)
        steps = len(times) - 1
        check_draw(self.simple.draw, steps)
        middles = (torch.arange(steps, dtype=torch.float64) + 0.5) / steps
        self._index(self.simple.draw.quantile(denoiser.process, middles), times)  # refuses times off the grid

    @property
    def grey_levels(self) -> int | None:
        return self.levels or None


@dataclass(frozen=True)
class ContinuousBoundLoss(Objective):
    """The bound in continuous time, from one time a row, for data on `levels` grey levels in [-1, 1] (VDM, eq. 17).

    Times are spread evenly from t_max to where grey levels can be told apart, or to t_min of a learned schedule: its
    ends then learn from the whole bound. The reconstruction there is of x_t / alpha, without the network.
    """

    levels: int = 256

    def __call__(self, denoiser: Denoiser, x: Tensor, condition: Condition, rng: Rng) -> Tensor:
        """One draw of the bound a row, in bits a dimension: (B,)."""
        low, high = self.span(denoiser.process)
        t = low + (high - low) * rng.fork("time").spread()
        noise, last = rng.fork("noise").normal_like(x), rng.fork("last").normal_like(x)
        return self.at(denoiser, x, condition, noise, t, last)

    def at(self, denoiser: Denoiser, x: Tensor, condition: Condition, noise: Tensor, t: Tensor, last: Tensor) -> Tensor:
        """The draw with given times (B,) and noise, `last` being that of the reconstruction."""
        process, (low, high) = denoiser.process, self.span(denoiser.process)
        prediction = denoiser.predict(x, noise, t, condition)
        error = (prediction.output - prediction.target).square().flatten(1).sum(1)
        density: Tensor = -process.schedule.slope(t) / 2 * of_noise(process, denoiser.parameterization, t)
        loss: Tensor = (like((high - low) * density, error) * error + self.ends(process, x, last)) / _bits(x)
        return loss

    def span(self, process: Process) -> tuple[float, float]:
        """The times that the integral goes over, of which the first is the reconstruction's."""
        schedule = process.schedule
        learned = isinstance(schedule, LearnedLogSNR)
        return schedule.t_min if learned else resolving_time(schedule, self.levels), schedule.t_max

    def ends(self, process: Process, x: Tensor, last: Tensor) -> Tensor:
        """The prior's and the reconstruction's nats: (B,)."""
        first, until = (torch.full((len(x),), t, dtype=torch.float64) for t in self.span(process))
        prior = kl(process.marginal(x, until), Gaussian(torch.zeros_like(x), process.prior_std(until[0].item()) ** 2))
        alpha, sigma = process.schedule(first)
        decoded = Gaussian(process.diffuse(x, first, last) / like(alpha, x), like((sigma / alpha) ** 2, x))
        return (prior - discretised_log_prob(x, decoded, self.levels)).flatten(1).sum(1)

    def check(self, denoiser: Denoiser) -> None:
        if denoiser.learned_variance:
            raise ValueError("in continuous time the bound has no variance to learn; leave learned_variance out")

    @property
    def grey_levels(self) -> int:
        return self.levels


@dataclass(frozen=True)
class LeastVariance(Objective):
    """A continuous bound, whose mean a learned schedule's interior cannot change: it learns to be steady instead.

    Network and ends follow the gradient of the bound L; the interior that of L^2, row by row, which is the gradient of
    its variance (Kingma et al. 2021, appendix I.2).
    """

    bound: ContinuousBoundLoss = ContinuousBoundLoss()

    def __call__(self, denoiser: Denoiser, x: Tensor, condition: Condition, rng: Rng) -> Tensor:
        """One draw of the bound a row, in bits a dimension: (B,)."""
        schedule = _learned(denoiser)
        pace = torch.ones(len(x), dtype=torch.float64)
        with schedule.paced(pace):
            loss = self.bound(denoiser, x, condition, rng)
        pace.copy_(2 * loss.detach())
        return loss

    def check(self, denoiser: Denoiser) -> None:
        self.bound.check(denoiser)
        _learned(denoiser)

    @property
    def grey_levels(self) -> int:
        return self.bound.levels


def _learned(denoiser: Denoiser) -> LearnedLogSNR:
    schedule = denoiser.process.schedule
    if not isinstance(schedule, LearnedLogSNR):
        raise ValueError(
            f"{type(schedule).__name__} has no interior to learn; use ContinuousBoundLoss, or LearnedLogSNR as schedule"
        )
    return schedule
