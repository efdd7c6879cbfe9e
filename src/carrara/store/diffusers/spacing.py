"""The grids of one foreign scheduler, for every number of steps."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

from carrara.diffusion.times import Grid, given, resolution_shift, shift

__all__ = ["DynamicShift", "Spacing"]


@dataclass(frozen=True)
class DynamicShift:
    """A shift that is chosen for each picture: by exp(mu), or by mu itself, where mu depends on the picture's size.

    mu is linear in the number of tokens: `low` at `few`, `high` at `many`; None where the file does not say.
    """

    exponential: bool = True
    low: float | None = None
    high: float | None = None
    few: int | None = None
    many: int | None = None

    def by(self, tokens: int | None, mu: float | None) -> float:
        """The factor, for so many tokens or for a mu of one's own."""
        if mu is None:
            if tokens is None:
                raise ValueError(
                    "this scheduler's shift depends on the size of the picture; give `tokens` "
                    "(height times width of the latent, over the patch's area), or a `mu` of your own"
                )
            if self.low is None or self.high is None or self.few is None or self.many is None:
                raise ValueError("this file does not say how the shift depends on the picture's size; give `mu`")
            mu = math.log(resolution_shift(tokens, few=self.few, many=self.many, low=self.low, high=self.high))
        return math.exp(mu) if self.exponential else mu


@dataclass(frozen=True)
class Spacing:
    """`base` laid out for a number of steps, then handed `through` other grids; `given` may take the base's place."""

    base: functools.partial[Grid]
    through: tuple[functools.partial[Grid], ...] = ()
    dynamic: DynamicShift | None = None
    handed: bool = False  # whether a pipeline may hand in sigmas of its own

    def __call__(
        self, steps: int, *, tokens: int | None = None, mu: float | None = None, sigmas: tuple[float, ...] | None = None
    ) -> Grid:
        """The grid of so many steps."""
        if sigmas is None:
            grid = functools.partial(self.base, steps=steps)
        elif not self.handed:
            raise ValueError("this scheduler lays out its own times and takes no sigmas; leave them out")
        elif len(sigmas) != steps:
            raise ValueError(f"{len(sigmas)} sigmas for {steps} steps; give one a step, without the final 0")
        else:
            grid = functools.partial(given, values=(*sigmas, 0.0))
        if self.dynamic is not None:
            grid = functools.partial(shift, inner=grid, by=self.dynamic.by(tokens, mu))
        elif tokens is not None or mu is not None:
            raise ValueError("this scheduler's times do not depend on the picture's size; leave out tokens and mu")
        for outer in self.through:
            grid = functools.partial(outer, inner=grid)
        return grid
