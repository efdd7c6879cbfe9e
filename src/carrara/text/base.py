"""What every text encoder is: prompts become a Condition. The empty prompt is the null condition."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from carrara.types import Rounds, Space

__all__ = ["Cut", "TextEncoder"]


class TextEncoder(Protocol):
    """Prompts to a Condition, as one of the parts of a system.

    One that has learnt from pictures, too, has `match(images, prompts) -> Rounds`, a request for how well each picture
    fits its prompt: (B,), higher is better.
    """

    @property
    def space(self) -> Space:
        """What it makes; its fingerprint tells one training from another."""
        ...

    def start(self, prompts: Sequence[str]) -> Rounds:
        """A request for the Condition of the prompts; the empty prompt is the null condition."""
        ...


class Cut(NamedTuple):
    """A prompt that is longer than the encoder reads: its number, and the words that are not read."""

    row: int
    lost: str
