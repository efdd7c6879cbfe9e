r"""Where training looks: distributions over t, each given by its quantile function.

    Steps, Uniform        DDPM's table, evenly; continuous time, evenly
    LogNormal             log(sigma/alpha) is normal                             (Karras et al. 2022)
    LogitNormal, Mode     logit(t) is normal; heavy tails about a mode           (Esser et al. 2024, SD3)
    LowDiscrepancy        any of these, spread evenly over the samples of a run  (Kingma et al. 2021, appendix I.1)
    Importance            the steps of a table by the size of their losses       (Nichol & Dhariwal 2021, eq. 18)

A draw is a function of the row's own stream, and for Importance also of the losses of the steps before.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from carrara.config import Configured
from carrara.diffusion.process import Process, like
from carrara.diffusion.schedule import Tabulated
from carrara.rng import Rng

__all__ = [
    "Importance",
    "LogNormal",
    "LogitNormal",
    "LowDiscrepancy",
    "Mode",
    "Steps",
    "TimeDistribution",
    "Uniform",
]

Gather = Callable[[Tensor], Tensor]
"""Puts the rows (n, k) that every process has into one tensor, the same one in all of them."""


class TimeDistribution(ABC):
    """A distribution over t."""

    @abstractmethod
    def quantile(self, process: Process, u: Tensor) -> Tensor:
        """The times below which the shares u in [0, 1) lie: (B,) float64.

        Continuous ones stay within [t_min, t_max] of the schedule.
        """

    def __call__(self, process: Process, rng: Rng) -> Tensor:
        """One time a stream of the rng: (B,) float64."""
        return self.quantile(process, rng.uniform())

    @property
    def count(self) -> int | None:
        """How many different times there are to draw; None for a continuum."""
        return None

    def correction(self, t: Tensor) -> Tensor | float:
        """What a row at t counts, so that the mean is that over the distribution which a loss is stated for."""
        return 1.0

    def counted(self, rng: Rng, t: Tensor, loss: Tensor) -> Tensor:
        """The losses (B,) at the drawn t, each as it counts; those that teach (have gradients) are remembered."""
        if loss.requires_grad:
            self.record(rng, t, loss)
        correction = self.correction(t)
        corrected: Tensor = like(correction, loss) * loss if isinstance(correction, Tensor) else correction * loss
        return corrected

    def record(self, rng: Rng, t: Tensor, loss: Tensor) -> None:  # noqa: B027 - most remember nothing
        """Notes the losses of the rng's rows, as they are before they are corrected."""

    def commit(self, gather: Gather = lambda rows: rows) -> None:  # noqa: B027
        """Takes what was recorded into account, from the next draw on; called once a training step."""

    def state(self) -> dict[str, Tensor]:
        """What it remembers, to be kept with a checkpoint."""
        return {}

    def load_state(self, state: Mapping[str, Tensor]) -> None:  # noqa: B027
        """Takes over what `state` gave."""


def _check_table(process: Process, steps: int) -> None:
    schedule = process.schedule
    if isinstance(schedule, Tabulated) and schedule.steps % steps:
        raise ValueError(f"steps = {steps} of a table of {schedule.steps}; expected {schedule.steps} or a divisor")


def _step(u: Tensor, steps: int) -> Tensor:
    return ((u * steps).floor() + 1).clamp(max=steps) / steps


def _normal(u: Tensor) -> Tensor:
    quantile: Tensor = torch.special.ndtri(u)
    return quantile


@dataclass(frozen=True)
class Steps(TimeDistribution):
    """The T steps of a table, uniformly: t = i/T with i in 1..T (DDPM Algorithm 1, line 3).

    t = 1 is drawn even where alpha is 0 there: samplers begin at it, so it has to be learned (Lin et al. 2024).
    """

    steps: int = 1000

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps = {self.steps}; expected at least 1")

    @property
    def count(self) -> int:
        return self.steps

    def quantile(self, process: Process, u: Tensor) -> Tensor:
        _check_table(process, self.steps)
        return _step(u, self.steps)


@dataclass(frozen=True)
class Uniform(TimeDistribution):
    """Uniform on [t_min, t_max]."""

    def quantile(self, process: Process, u: Tensor) -> Tensor:
        low, high = process.schedule.t_min, process.schedule.t_max
        return low + (high - low) * u


@dataclass(frozen=True)
class LogNormal(TimeDistribution):
    """EDM's: log(sigma/alpha) is normal (Karras et al. 2022: mean -1.2, std 1.2)."""

    mean: float = -1.2
    std: float = 1.2

    def __post_init__(self) -> None:
        _check_std(self.std)

    def quantile(self, process: Process, u: Tensor) -> Tensor:
        return process.schedule.time(-2 * (self.mean + self.std * _normal(u)))


@dataclass(frozen=True)
class LogitNormal(TimeDistribution):
    """SD3's: logit(t) is normal (Esser et al. 2024, eq. 19)."""

    mean: float = 0.0
    std: float = 1.0

    def __post_init__(self) -> None:
        _check_std(self.std)

    def quantile(self, process: Process, u: Tensor) -> Tensor:
        t = 1 / (1 + torch.exp(-self.mean - self.std * _normal(u)))
        return t.clamp(process.schedule.t_min, process.schedule.t_max)


def _check_std(std: float) -> None:
    if not std > 0:
        raise ValueError(f"std = {std}; expected a positive standard deviation")


@dataclass(frozen=True)
class Mode(TimeDistribution):
    """SD3's mode sampling with heavy tails: t = 1 - u - scale (cos^2(pi u / 2) - 1 + u) (Esser et al. 2024, eq. 20).

    A positive scale prefers the middle, a negative one the ends, 0 is uniform.
    """

    scale: float = 1.29

    def __post_init__(self) -> None:
        most = 2 / (math.pi - 2)
        if not -1 <= self.scale <= most:
            raise ValueError(f"scale = {self.scale}; beyond -1 and {most:.4f} it is no distribution")

    def quantile(self, process: Process, u: Tensor) -> Tensor:
        u = 1 - u  # the paper's t falls with u
        t = 1 - u - self.scale * (torch.cos(math.pi / 2 * u) ** 2 - 1 + u)
        return t.clamp(process.schedule.t_min, process.schedule.t_max)


@dataclass(frozen=True)
class LowDiscrepancy(TimeDistribution):
    """Another distribution's times, spread evenly over consecutive samples, so that batches differ less.

    Every row's share is a step of the golden ratio beyond the row's before; the shares of a batch of B rows leave no
    gap longer than about 2/B. In expectation over seeds it is the inner distribution.
    """

    inner: TimeDistribution = Uniform()

    def __post_init__(self) -> None:
        if isinstance(self.inner, Importance):
            raise ValueError("importance sampling remembers losses, which a distribution around it would not pass on")

    @property
    def count(self) -> int | None:
        return self.inner.count

    def quantile(self, process: Process, u: Tensor) -> Tensor:
        return self.inner.quantile(process, u)

    def __call__(self, process: Process, rng: Rng) -> Tensor:
        return self.quantile(process, rng.spread())


class Importance(Configured, TimeDistribution):
    r"""The steps of a table in proportion to sqrt(E[loss^2]) (Nichol & Dhariwal 2021, eq. 18).

    The mean is over the last `history` losses of each step; until all have as many, and always for a `share` of the
    rows, steps are drawn uniformly. A row counts 1 / (T p), so that the loss means the same. What is remembered changes
    with `commit` alone, in the order of the rows' numbers: not with micro-batches, ranks or a resume.
    """

    def __init__(self, *, steps: int = 1000, history: int = 10, share: float = 0.001) -> None:
        if steps < 1 or history < 1 or not 0 < share <= 1:
            raise ValueError(
                f"steps {steps}, history {history}, share {share}; expected at least 1, at least 1, and within (0, 1]"
            )
        self.steps, self.history, self.share = steps, history, share
        self.losses = torch.zeros(steps, history, dtype=torch.float64, device="cpu")  # oldest first
        self.counts = torch.zeros(steps, dtype=torch.int64, device="cpu")  # at most `history`
        self._pending: list[Tensor] = []

    @property
    def count(self) -> int:
        return self.steps

    def probabilities(self) -> Tensor:
        """How often each step is drawn: (T,) float64."""
        uniform = torch.full((self.steps,), 1 / self.steps, dtype=torch.float64, device="cpu")
        if bool((self.counts < self.history).any()):
            return uniform
        size = self.losses.square().mean(1).sqrt()
        total = size.sum()
        return uniform if total == 0 else (1 - self.share) * size / total + self.share * uniform

    def quantile(self, process: Process, u: Tensor) -> Tensor:
        _check_table(process, self.steps)
        edges = self.probabilities().cumsum(0)[:-1]
        return (torch.searchsorted(edges, u, right=True) + 1).double() / self.steps

    def _index(self, t: Tensor) -> Tensor:
        return (t.detach().to("cpu", torch.float64) * self.steps).round().long() - 1

    def correction(self, t: Tensor) -> Tensor:
        return 1 / (self.steps * self.probabilities()[self._index(t)])

    def record(self, rng: Rng, t: Tensor, loss: Tensor) -> None:
        rows = torch.tensor(rng.numbers(), dtype=torch.float64)
        noted = loss.detach().to("cpu", torch.float64)
        self._pending.append(torch.stack([rows, self._index(t).double(), noted], 1))

    def commit(self, gather: Gather = lambda rows: rows) -> None:
        rows = gather(torch.cat([torch.zeros(0, 3, dtype=torch.float64), *self._pending]))
        self._pending.clear()
        for _, index, loss in rows[rows[:, 0].argsort(stable=True)].tolist():
            step = int(index)
            self.losses[step] = torch.cat([self.losses[step, 1:], self.losses.new_tensor([loss])])
            self.counts[step] = min(int(self.counts[step]) + 1, self.history)

    def state(self) -> dict[str, Tensor]:
        return {"losses": self.losses, "counts": self.counts}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        self._pending.clear()
        self.losses.copy_(state["losses"])
        self.counts.copy_(state["counts"])
