"""Numbers that a generator is told beside text: the size that is asked for, how pretty, how strongly guided."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch

from carrara.types import Condition

__all__ = ["Number", "numbered"]


@dataclass(frozen=True)
class Number:
    """One of `Condition.numbers`: a constant, or the height, the width or height over width of z, `scale` times.

    `negative` is what the null condition is told instead, None for the same.
    """

    name: str
    value: float | Literal["height", "width", "aspect_ratio"]
    scale: float = 1.0
    negative: float | None = None

    def of(self, shape: Sequence[int], null: bool = False) -> float:
        """The number for z of `shape` (..., height, width)."""
        if null and self.negative is not None:
            return self.scale * self.negative
        if not isinstance(self.value, str):
            return self.scale * self.value
        height, width = shape[-2:]
        return self.scale * {"height": height, "width": width, "aspect_ratio": height / width}[self.value]


def numbered(
    condition: Condition, numbers: Sequence[Number], shape: Sequence[int], rows: int, *, null: bool = False
) -> Condition:
    """The condition with those of the numbers that it does not have yet, the same in all rows."""
    told = {one.name: torch.full((rows,), one.of(shape, null)) for one in numbers if one.name not in condition.numbers}
    parts = [part for part in (condition.tokens, condition.vector, condition.image) if part is not None]
    if parts:
        told = {name: number.to(parts[0].device) for name, number in told.items()}
    return replace(condition, numbers={**condition.numbers, **told})
