"""A text encoder that is not there: zeros in its place, as SD3 reads without T5."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from carrara.config import Configured
from carrara.types import Condition, Rounds, Space

__all__ = ["Absent"]


class Absent(Configured, nn.Module):
    """Zeros for every prompt: tokens (B, length, width), and a vector (B, pooled) where its width is given."""

    _here: Tensor

    def __init__(self, length: int, width: int, pooled: int | None = None) -> None:
        super().__init__()
        if min(length, width, pooled or 1) < 1:
            raise ValueError(f"length = {length}, width = {width}, pooled = {pooled}; give numbers from 1")
        self.length, self.width, self.pooled = length, width, pooled
        self.register_buffer("_here", torch.empty(0), persistent=False)  # knows the device

    @property
    def space(self) -> Space:
        return Space("text", (self.length, self.width, *([self.pooled] if self.pooled else [])))

    def start(self, prompts: Sequence[str]) -> Rounds:
        """Zeros, whatever the prompts are."""
        yield from ()
        rows, place = len(prompts), self._here.device
        vector = torch.zeros(rows, self.pooled, device=place) if self.pooled else None
        return Condition(tokens=torch.zeros(rows, self.length, self.width, device=place), vector=vector)
