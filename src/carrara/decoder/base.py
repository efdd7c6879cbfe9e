"""What every decoder is: z becomes the picture. Its `encode` defines the space in which a generator is trained."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from torch import Tensor

from carrara.decoder.tiling import Tiling
from carrara.rng import Rng
from carrara.types import Condition, Rounds, Space

__all__ = ["Decoder", "Decoding", "Depth", "shown"]

Depth = Literal[8, 16]


@dataclass(frozen=True)
class Decoding:
    """How z is to be decoded where that differs from what a decoder was saved with; each takes what concerns it.

    tiling: part by part, in bounded memory. augmentation: how much noise a diffusion upsampler puts on the small
    picture, in [0, 1]. sampling: how it is sampled, a `SamplingSettings`.
    """

    tiling: Tiling | None = None
    augmentation: float | None = None
    sampling: Any = None

    def __post_init__(self) -> None:
        if self.augmentation is not None and not 0 <= self.augmentation <= 1:
            raise ValueError(f"augmentation = {self.augmentation}; expected a share of noise in [0, 1]")


class Decoder(Protocol):
    """z to a picture and back, as one of the parts of a system.

    One that reads the text encoder's condition has `reads`, the space of it. A step of one that is a sampling itself
    has `show`.
    """

    depth: Depth  # bits a channel of the pictures

    @property
    def space(self) -> Space:
        """The space of z."""
        ...

    @property
    def pictures(self) -> Space:
        """The space of what comes out."""
        ...

    def encode(self, images: Tensor, rng: Rng | None = None) -> Tensor:
        """Pictures (B, C, H, W) in [-1, 1] to z; without an rng the most likely one."""
        ...

    def start(self, z: Tensor, condition: Condition, null: Condition, rng: Rng, settings: Any = None) -> Rounds:
        """A request for the pictures of z, in [-1, 1]; settings are a `Decoding`, or None."""
        ...

    def preview(self, z: Tensor) -> Tensor:
        """Pictures of z at once, without chance and without a condition: for looking at what is being made."""
        ...


def shown(rounds: Rounds, picture: Callable[[Tensor], Tensor]) -> Rounds:
    """The rounds of a decoder that is a sampling itself, their steps with what is seen of them.

    That is `picture` of what the step already shows, or else of what is believed at it.
    """
    try:
        asked = next(rounds)
        while True:
            if (step := asked.step) is not None:

                def show(before: Callable[[], Tensor] | None = step.show, mean: Tensor = step.estimate.mean) -> Tensor:
                    return picture(mean if before is None else before())

                asked = asked._replace(step=step._replace(show=show))
            asked = rounds.send((yield asked))
    except StopIteration as finished:
        return finished.value
    finally:
        rounds.close()
