"""No text encoder: a generator that is told nothing."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from carrara.config import Configured
from carrara.types import Condition, Rounds, Space

__all__ = ["Unconditional"]


class Unconditional(Configured, nn.Module):
    """No condition at all: prompts must be empty."""

    def __init__(self) -> None:
        super().__init__()

    @property
    def space(self) -> Space:
        return Space("text", ())

    def start(self, prompts: Sequence[str]) -> Rounds:
        """The empty Condition; ValueError for a prompt, which would otherwise be ignored."""
        if told := [prompt for prompt in prompts if prompt]:
            raise ValueError(f'this model has no text encoder and cannot read "{told[0]}"; give empty prompts')
        yield from ()
        return Condition()
