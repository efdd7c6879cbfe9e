"""What every text encoder is: prompts become a Condition. The empty prompt is the null condition."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from carrara.types import Rounds, Space

__all__ = ["Cut", "Reading", "TextEncoder"]


class TextEncoder(Protocol):
    """Prompts to a Condition, as one of the parts of a system.

    One that has learnt from pictures, too, has `match(images, prompts) -> Rounds`, a request for how well each picture
    fits its prompt: (B,), higher is better.

    One whose prompts can be read in more than one way has `skips`, the most layers that a `Reading` may skip, and a
    parameter `reading` of `start`.
    """

    @property
    def space(self) -> Space:
        """What it makes; its fingerprint tells one training from another."""
        ...

    def start(self, prompts: Sequence[str]) -> Rounds:
        """A request for the Condition of the prompts; the empty prompt is the null condition."""
        ...


@dataclass(frozen=True)
class Reading:
    """How the prompts of one request are read, where that differs from how the encoder was saved.

    skip: layers at the end that the tokens do not go through, beside those that they never go through: "clip skip",
    counted from 0.
    """

    skip: int = 0

    def __post_init__(self) -> None:
        if self.skip < 0:
            raise ValueError(f"skip = {self.skip}; give 0, or how many layers the tokens do not go through")


class Cut(NamedTuple):
    """A prompt that is longer than the encoder reads: its number, and the words that are not read."""

    row: int
    lost: str
