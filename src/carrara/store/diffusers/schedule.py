r"""Tables as foreign schedulers read them: what they do between entries, and how near to pure noise they go.

LinearSigma         sigma/alpha linear in t between entries (Carrara's own tables: the log-SNR)
NearZeroTerminal    alpha_bar_T = 2^-24 in the place of the 0 that a rescaled table ends in
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from carrara.diffusion.schedule import ScaledLinearBetas, Schedule, Tabulated

__all__ = ["LinearSigma", "NearZeroTerminal"]


def _tabulated(schedule: Schedule) -> Tabulated:
    if not isinstance(schedule, Tabulated):
        raise ValueError(f"{type(schedule).__name__} has no entries to read otherwise; give a table of betas")
    return schedule


@dataclass(frozen=True)
class LinearSigma(Schedule):
    """A table, with sigma/alpha interpolated linearly in t between its entries."""

    table: Schedule = field(default_factory=ScaledLinearBetas)

    def __post_init__(self) -> None:
        if _tabulated(self.table).t_max < 1:
            raise ValueError("the table ends where alpha is 0, and so sigma/alpha infinite; nothing lies before that")

    @property
    def steps(self) -> int:
        """T, the table's number of entries."""
        return _tabulated(self.table).steps

    @property
    def t_min(self) -> float:
        return self.table.t_min

    @property
    def t_max(self) -> float:
        return self.table.t_max

    @functools.cached_property
    def _levels(self) -> Tensor:
        """sigma/alpha of the entries 0 to T."""
        alpha, sigma = self.table(torch.arange(self.steps + 1, dtype=torch.float64, device="cpu") / self.steps)
        return sigma / alpha

    def _scales(self, t: Tensor) -> tuple[Tensor, Tensor]:
        alpha, sigma = self.table(t)  # right at entries; refuses what lies before the first
        position = t * self.steps
        exact = (position - position.round()).abs() < 1e-9 * self.steps
        below = position.floor().clamp(0, self.steps - 1).long()
        share = position - below
        level = self._levels[below] * (1 - share) + self._levels[below + 1] * share
        root = torch.sqrt(1 + level**2)
        return torch.where(exact, alpha, 1 / root), torch.where(exact, sigma, level / root)

    def _time(self, logsnr: Tensor) -> Tensor:
        wanted = torch.exp(-logsnr / 2)
        above = torch.searchsorted(self._levels, wanted.reshape(-1)).reshape(wanted.shape).clamp(1, self.steps)
        low, high = self._levels[above - 1], self._levels[above]
        return (above - 1 + ((wanted - low) / (high - low)).clamp(0, 1)) / self.steps


@dataclass(frozen=True)
class NearZeroTerminal(Tabulated):
    """A table whose last alpha_bar is `last` instead: those that divide by alpha cannot bear a 0 there.

    `table` is one with zero_terminal, as a rule. The default is 2^-24, alpha = 2.4e-4.
    """

    table: Schedule = field(default_factory=functools.partial(ScaledLinearBetas, zero_terminal=True))
    last: float = 2**-24

    def __post_init__(self) -> None:
        before = _tabulated(self.table)(1 - 1 / self.steps)[0] ** 2
        if not 0 < self.last < before:
            raise ValueError(f"last = {self.last}; expected a positive alpha_bar below the entry before, {before:g}")

    @property
    def steps(self) -> int:
        return _tabulated(self.table).steps

    def betas(self) -> Tensor:
        betas = _tabulated(self.table).betas().clone()
        before = math.exp(float(torch.log1p(-betas[:-1]).sum()))
        betas[-1] = 1 - self.last / before
        return betas
