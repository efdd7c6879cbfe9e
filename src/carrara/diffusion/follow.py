r"""Guidance by inputs: a scale for each condition other than text, beside whatever guides by the text.

With inputs i = 1 .. k at scales w_i, and C_j the estimate under no text and the first j of these inputs alone,

    D = inner + sum_i (w_i - 1) (C_i - C_(i-1))                         scale 1 is off

With ClassifierFree(w) inside, D = C_0 + sum_i w_i (C_i - C_(i-1)) + w (D_condition - C_k): each condition is led
towards by its own scale, given those before it (InstructPix2Pix, Brooks et al. 2023, eq. 3, for any number of them).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from carrara.diffusion.guidance import Branch, Wrapper
from carrara.diffusion.process import Scale
from carrara.types import Condition, Estimate

__all__ = ["Follow"]


@dataclass(frozen=True)
class Follow(Wrapper):
    """Leads towards inputs by their `scales`, in their order; above 1 they count more, at 0 not at all.

    The network has to know what it is without each (`drop` in its recipe); their nulls are zeros. The null condition of
    a request has the same inputs as the condition itself, so that what is inside guides by the text alone.
    """

    scales: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if wrong := [name for name, scale in self.scales.items() if not math.isfinite(scale)]:
            raise ValueError(f"scales of {wrong} are not finite; 1 is off, 2 counts twice")

    @property
    def _terms(self) -> tuple[tuple[tuple[str, ...], float], ...]:
        """The names that are left out of each C_j that counts, and its factor; the differences are summed up here."""
        names, scales = tuple(self.scales), (1.0, *self.scales.values(), 1.0)
        factors = [(names[j:], scales[j] - scales[j + 1]) for j in range(len(names) + 1)]
        return tuple((without, factor) for without, factor in factors if factor != 0)

    def branches(
        self, denoiser: Callable[..., Estimate], condition: Condition, null: Condition, t: Scale
    ) -> tuple[Branch, ...]:
        more = (null.without(without) if without else null for without, _ in self._terms)
        return (*self.inner.branches(denoiser, condition, null, t), *(Branch(denoiser, other) for other in more))

    def combine(
        self, estimates: Sequence[Estimate], denoiser: Callable[..., Estimate], x_t: Tensor, t: Scale
    ) -> Estimate:
        terms = self._terms
        inner = len(estimates) - len(terms)
        mean, mix = self.inner.combine(estimates[:inner], denoiser, x_t, t)
        for (_, factor), estimate in zip(terms, estimates[inner:], strict=True):
            mean = mean + factor * estimate.mean
        return Estimate(mean, mix)
