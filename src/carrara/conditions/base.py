r"""What every condition other than text is: pictures of a request become a part of the `Condition`.

    given = computed(picture)       in training, from the picture itself (or a file beside it); in use, from a person
    encoding = encode(given)        the part of the Condition that a network reads

An encoding of planes is folded to the size of z (a pixel's neighbours become channels, so that nothing is lost) and
has one plane more, which is 1 where the condition is given. **Its null is zero throughout**: a network that was told
nothing in a share of its training (`drop`) knows it, and guidance can lead away from it.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from carrara.rng import Rng

__all__ = ["Input", "PlaneInput"]

_RESERVED = ("image", "text")


class Input(nn.Module, ABC):
    """One condition other than text; its name is what it is given by.

    `needs` are the names of the pictures that it is made of, `planes` how many channels the one of its own name has,
    `low` the least of its values (the most is 1), `side` its (height, width) in pixels, None for that of the pictures
    made, `size` the only (height, width) of pictures that it is for, None for any, `nearest` whether its values are
    labels, which are never blended, `computable` whether it can be computed from a picture alone, and `optional`
    whether the generator knows what it is without. One that is `encoded` has a picture, `left`, which the decoder
    encodes; `encode` takes its z as well. `channels` is what a network is built for; `drop` the share of rows
    that it is trained on without.
    """

    part: ClassVar[Literal["controls", "adapters"]] = "controls"
    low: ClassVar[Literal[-1, 0]] = -1
    nearest: ClassVar[bool] = False
    computable: ClassVar[bool] = True
    encoded: ClassVar[bool] = False
    planes: int
    channels: int
    side: tuple[int, int] | None = None
    size: tuple[int, int] | None = None

    def __init__(self, name: str, drop: float) -> None:
        super().__init__()
        if not re.fullmatch(r"[a-z][a-z0-9_-]*", name) or name in _RESERVED:
            raise ValueError(
                f'an input cannot be named "{name}"; give a word of lower-case letters, digits and hyphens, other than '
                f"{' and '.join(_RESERVED)}, which have a meaning already"
            )
        if not 0 <= drop < 1:
            raise ValueError(f"drop = {drop}; expected a share of rows in [0, 1)")
        self.name, self.drop = name, drop
        self.optional = drop > 0

    @property
    def needs(self) -> tuple[str, ...]:
        """The names of the pictures that `encode` takes, in order."""
        return (self.name,)

    @abstractmethod
    def computed(self, pictures: Tensor, rng: Rng) -> Tensor:
        """What a person might give for pictures (B, C, H, W) in [-1, 1]; what is drawn depends on each row's stream."""

    @abstractmethod
    def encode(self, *given: Tensor) -> Tensor:
        """The part of the Condition that says what was given, each a picture named in `needs` with a row each."""

    @abstractmethod
    def null(self, rows: int, size: Sequence[int]) -> Tensor:
        """The part of the Condition that says that nothing was given, for z of `size` (height, width): zeros."""

    def left(self, *given: Tensor) -> Tensor:
        """What the decoder has to encode of what was given, of an input that is `encoded`."""
        raise NotImplementedError(f"{type(self).__name__} reads no z")

    def shown(self, *given: Tensor) -> Tensor:
        """What was given as a picture to look at: values in [-1, 1], one or three channels."""
        own = given[-1]
        return own if self.low == -1 else 2 * own - 1

    def doubt(self, *given: Tensor) -> str:
        """What is odd about what was given, where it was most likely meant otherwise; empty for nothing."""
        return ""

    def of(self, pictures: Tensor, beside: Mapping[str, Tensor], rng: Rng) -> tuple[Tensor, ...]:
        """What `encode` takes for rows of a data set: the pictures that lie `beside` them, or what is computed."""
        if self.name in beside:
            return (self.read(beside[self.name]),)
        return (self.computed(pictures, rng),)

    def read(self, pictures: Tensor) -> Tensor:
        """A data set's further pictures, in [-1, 1], as they are given to `encode`: black to white where `low` is 0."""
        return pictures if self.low == -1 else (pictures.mean(1, keepdim=True) + 1) / 2

    def measure(self, pictures: Iterable[Tensor], *, beside: bool = False) -> None:
        """Takes from data what this condition has to know of it: batches of pictures, or of those `beside` them."""


class PlaneInput(Input):
    """A condition that says something of every pixel; `down` is how many of them a cell of z has a side."""

    def __init__(self, name: str, drop: float, down: int, count: int) -> None:
        super().__init__(name, drop)
        self.down = down
        self.channels = count * down**2 + 1

    def folded(self, planes: Tensor) -> Tensor:
        """Planes (B, count, H, W) as (B, channels, H / down, W / down), the last of which is 1."""
        folded = F.pixel_unshuffle(planes, self.down)
        return torch.cat([folded, torch.ones_like(folded[:, :1])], 1)

    def null(self, rows: int, size: Sequence[int]) -> Tensor:
        return torch.zeros(rows, self.channels, *size)
