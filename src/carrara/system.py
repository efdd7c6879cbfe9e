"""The system: text encoder -> generator -> decoder, three parts that fit, as one coroutine from prompt to picture."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from carrara.decoder import Decoder
from carrara.errors import RecipeError
from carrara.image import to_pixels
from carrara.rng import Rng
from carrara.run import finish, run
from carrara.text import TextEncoder
from carrara.types import Condition, Request, Rounds, Space, Step

__all__ = ["Frame", "Generator", "System"]


class Generator(Protocol):
    """Makes z from noise under a condition: diffusion, VAE, GAN or autoregressive."""

    space: Space
    reads: Space | None

    def start(
        self, shape: Sequence[int], condition: Condition, null: Condition, rng: Rng, settings: Any = None
    ) -> Rounds:
        """A request for one z of `shape` for each stream of the rng."""
        ...


@dataclass(frozen=True)
class Frame:
    """What a request has to show: a finished step, or with `final` the pictures themselves.

    `step` counts from 1. A step's pictures are what the generator believes it is making, E[x | x_t], decoded when they
    are first looked at; `trace` holds x_t, t and the estimate as they are.
    """

    step: int
    final: bool
    seeds: tuple[int, ...]
    depth: Any = 8
    trace: Step | None = None
    _images: Callable[[], Tensor] = field(default=lambda: torch.empty(0), repr=False)

    @cached_property
    def images(self) -> Tensor:
        """(N, C, H, W) in [-1, 1]."""
        return self._images()

    def pixels(self) -> np.ndarray:
        """(N, H, W, C) uint8, or uint16 for models of 16 bits."""
        return to_pixels(self.images, self.depth)

    def save(self, *paths: str | Path) -> None:
        """Writes each picture to its path: .png, or .tiff and .npy for channels that PNG cannot hold."""
        from carrara.data import write_picture

        pictures = self.pixels()
        if len(paths) != len(pictures):
            raise ValueError(f"{len(paths)} paths for {len(pictures)} pictures; give one each")
        for path, picture in zip(paths, pictures, strict=True):
            write_picture(Path(path), picture)


@dataclass(frozen=True)
class System:
    """Three parts, trained apart and swapped apart; parts that do not fit are refused."""

    text: TextEncoder
    generator: Generator
    decoder: Decoder

    def __post_init__(self) -> None:
        _check("generator", self.generator.space, "decoder", self.decoder.space)
        if self.generator.reads is not None:
            _check("generator", self.generator.reads, "text encoder", self.text.space)

    def start(self, request: Request) -> Rounds:
        """The request from prompt to picture, as rounds for a driver."""
        prompts = list(request.prompts)
        negative = list(request.negative or [""] * len(prompts))
        if not len(prompts) == len(negative) == len(request.seeds):
            raise ValueError(
                f"{len(prompts)} prompts, {len(negative)} negative prompts and {len(request.seeds)} seeds; "
                "a request has one of each a picture"
            )
        if request.inputs:
            raise ValueError(f"inputs {sorted(request.inputs)} were given, and no part of this system reads any")
        both = yield from self.text.start(prompts + negative)
        condition, null = both.rows(slice(0, len(prompts))), both.rows(slice(len(prompts), None))
        rng = Rng.seeds(request.seeds)
        shape = self._shape(request.size)
        z = yield from self.generator.start(shape, condition, null, rng.fork("generator"), request.settings)
        images = yield from self.decoder.start(z, condition, null, rng.fork("decoder"))
        return images

    def _shape(self, size: tuple[int, int] | None) -> tuple[int, ...]:
        shape = self.decoder.space.shape
        if size is None:
            return shape
        _, height, width = self.decoder.pictures.shape
        down = height // shape[1]
        if size[0] % down or size[1] % down:
            raise ValueError(
                f"size {size[0]} x {size[1]}; this system makes multiples of {down}, and {height} x {width} best"
            )
        return (shape[0], size[0] // down, size[1] // down)

    def generate(
        self,
        prompts: Sequence[str],
        *,
        seeds: Sequence[int],
        negative: Sequence[str] | None = None,
        size: tuple[int, int] | None = None,
        inputs: Mapping[str, Tensor] | None = None,
        settings: Any = None,
    ) -> Iterator[Frame]:
        """Frames of one request: each finished step, then the pictures (`final`).

        Image i depends on prompt and seed i alone.

        A single prompt serves all seeds. Stop early by closing the iterator. Raises ValueError for lengths that differ.
        """
        if isinstance(prompts, str):
            raise ValueError(f'prompts is the text "{prompts}"; give a list of prompts')
        if len(prompts) == 1:
            prompts = list(prompts) * len(seeds)
        if negative is not None and len(negative) == 1:
            negative = list(negative) * len(seeds)
        request = Request(
            tuple(prompts),
            tuple(int(seed) for seed in seeds),
            tuple(negative) if negative is not None else None,
            size,
            dict(inputs or {}),
            settings,
        )
        steps = run(self.start(request))
        count = 0
        while True:
            try:
                step = next(steps)
            except StopIteration as finished:
                images = finished.value
                break
            count += 1
            yield Frame(count, False, request.seeds, self.decoder.depth, step, self._preview(step))
        yield Frame(count, True, request.seeds, self.decoder.depth, None, lambda: images)

    def _preview(self, step: Step) -> Callable[[], Tensor]:
        def images() -> Tensor:
            rng = Rng.seeds(range(len(step.x)))
            return finish(self.decoder.start(step.estimate.mean, Condition(), Condition(), rng))  # type: ignore[no-any-return]

        return images


def _check(name: str, wanted: Space, other: str, given: Space) -> None:
    if wanted.kind != given.kind or wanted.shape != given.shape or wanted.vocabulary != given.vocabulary:
        raise RecipeError(
            f"the {name} was trained for {wanted.kind} {wanted.shape} and this {other} has {given.kind} {given.shape}; "
            f"give the {other} that it was trained with, or train it again"
        )
    if wanted.fingerprint != given.fingerprint:
        raise RecipeError(
            f"this {other} has the shape that the {name} was trained for, but other weights (fingerprint "
            f"{given.fingerprint} instead of {wanted.fingerprint}); give the {other} that it was trained with"
        )
