"""Decoders one after another: a cascade. What the first makes is the z of the second, and so on to the picture.

Encoding is the last one's, then that of the one before it, down to the first one's space.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Any

from torch import Tensor, nn

from carrara.config import Configured, Role
from carrara.decoder.base import Decoder, Decoding, Depth, shown
from carrara.rng import Rng
from carrara.types import Condition, Rounds, Space

__all__ = ["Chain"]


class Chain(Configured, nn.Module):
    """Two decoders or more, the one that reads the generator's z first; a chain among them counts as its parts.

    ValueError for neighbours that do not fit.
    """

    def __init__(self, decoders: tuple[Annotated[nn.Module, Role("decoder")], ...]) -> None:
        super().__init__()
        flat: list[Any] = [p for given in decoders for p in (given.parts if isinstance(given, Chain) else (given,))]
        if len(flat) < 2:
            raise ValueError(f"a chain of {len(flat)} decoders; give two or more, the generator's first")
        self.decoders = nn.ModuleList(flat)
        for number, (small, large) in enumerate(pairwise(self.parts), start=1):
            _check(number, small, large)
        if len({reads for part in self.parts if (reads := getattr(part, "reads", None)) is not None}) > 1:
            raise ValueError("these decoders were trained with different text encoders; train them with one")

    @property
    def parts(self) -> tuple[Decoder, ...]:
        """The decoders in the order of decoding."""
        return tuple(self.decoders)  # type: ignore[arg-type]

    @property
    def depth(self) -> Depth:
        """Bits a channel of the pictures: the last one's."""
        return self.parts[-1].depth

    @property
    def space(self) -> Space:
        """The first one's."""
        return self.parts[0].space

    @property
    def pictures(self) -> Space:
        """The last one's."""
        return self.parts[-1].pictures

    @property
    def reads(self) -> Space | None:
        """What those that read a text encoder's condition read; they have been trained with one and the same."""
        return next((reads for part in self.parts if (reads := getattr(part, "reads", None)) is not None), None)

    def encode(self, images: Tensor, rng: Rng | None = None) -> Tensor:
        """z of pictures (B, C, H, W) in [-1, 1]; each part has streams of its own."""
        z = images
        for number, part in reversed(list(enumerate(self.parts))):
            z = part.encode(z, None if rng is None else rng.fork("decoder", number))
        return z

    def start(
        self, z: Tensor, condition: Condition, null: Condition, rng: Rng, settings: Decoding | None = None
    ) -> Rounds:
        """One part's request after another's; the steps of each show what the rest makes of them at once."""
        for number, part in enumerate(self.parts):
            rounds = part.start(z, condition, null, rng.fork("decoder", number), settings)
            z = yield from shown(rounds, lambda mean, after=number + 1: self._onward(mean, after))  # type: ignore[misc]
        return z

    def preview(self, z: Tensor) -> Tensor:
        """The parts' previews, one after another."""
        return self._onward(z, 0)

    def _onward(self, z: Tensor, first: int) -> Tensor:
        for part in self.parts[first:]:
            z = part.preview(z)
        return z


def _check(number: int, small: Decoder, large: Decoder) -> None:
    made, wanted = small.pictures, large.space
    if made != wanted:
        raise ValueError(
            f"decoder {number} makes {made.kind} {made.shape} and decoder {number + 1} is for {wanted.kind} "
            f"{wanted.shape}" + _other(made, wanted) + "; name them in the order from the generator to the picture"
        )
    if small.depth != large.depth:
        raise ValueError(
            f"decoder {number} makes pictures of {small.depth} bits and decoder {number + 1} of {large.depth}; "
            "train them on pictures of one depth"
        )


def _other(made: Space, wanted: Space) -> str:
    return " of other weights" if (made.kind, made.shape) == (wanted.kind, wanted.shape) else ""
