"""The system: text encoder -> generator -> decoder, three parts that fit, as one coroutine from prompt to picture."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from carrara.conditions import Input, missing, read_by, tell
from carrara.decoder import Decoder, Decoding
from carrara.errors import RecipeError
from carrara.image import to_pixels
from carrara.rng import Rng
from carrara.run import finish, run
from carrara.text import Reading, TextEncoder
from carrara.types import Ask, Condition, Estimate, Request, Round, Rounds, Space, Step

__all__ = ["Frame", "Generator", "System"]


class Generator(Protocol):
    """Makes z from noise under a condition: diffusion, VAE, GAN or autoregressive.

    One that can begin from a picture has `inputs`, the names of what it takes, and a parameter `inputs` of `start`: the
    "image" as z (B, ...), and the "mask" (B, 1, ...) of its size, true where it may change.
    """

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
        for name, part in (("generator", self.generator), ("decoder", self.decoder)):
            if (reads := getattr(part, "reads", None)) is not None:
                _check(name, reads, "text encoder", self.text.space)

    def start(self, request: Request) -> Rounds:
        """The request from prompt to picture, as rounds for a driver."""
        prompts = list(request.prompts)
        negative = list(request.negative or [""] * len(prompts))
        if not len(prompts) == len(negative) == len(request.seeds):
            raise ValueError(
                f"{len(prompts)} prompts, {len(negative)} negative prompts and {len(request.seeds)} seeds; "
                "a request has one of each a picture"
            )
        self._check_inputs(request)
        self._check_candidates(request)
        shape = self._shape(request)
        both = yield from self._read(prompts + negative, request.reading)
        condition, null = both.rows(slice(0, len(prompts))), both.rows(slice(len(prompts), None))
        rng = Rng.seeds(request.seeds)
        if request.candidates > 1:
            request, condition, null, rng = _every(request, condition, null)
        more: dict[str, Any] = {}
        if edits := self.edits(request.inputs):
            more["inputs"] = yield from self._encoded(edits, shape)
        told, void = yield from self._told(condition, null, request, shape)
        z = yield from self.generator.start(shape, told, void, rng.fork("generator"), request.settings, **more)
        images = yield from self.decoder.start(z, condition, null, rng.fork("decoder"), request.decoding)
        images = _put_back(images, request.inputs)
        if request.candidates > 1:
            likeness = yield from self.text.match(images, request.prompts)  # type: ignore[attr-defined]
            images = _best(images, likeness, len(prompts))
        return images

    def _read(self, prompts: list[str], reading: Reading | None) -> Rounds:
        if reading is None:
            return (yield from self.text.start(prompts))
        if reading.skip > (most := getattr(self.text, "skips", 0)):
            raise ValueError(f"skip = {reading.skip}, and of this system's text encoder {most} layers can be skipped")
        text: Any = self.text  # which may have the parameter, where `skips` says so
        return (yield from text.start(prompts, reading) if most else text.start(prompts))

    def _check_candidates(self, request: Request) -> None:
        if request.candidates < 1:
            raise ValueError(f"candidates = {request.candidates}; give 1, or how many are drawn of each picture")
        if request.candidates > 1 and not hasattr(self.text, "match"):
            raise ValueError(
                f"{request.candidates} candidates of a picture are told apart by how well they fit its prompt, and "
                "this system's text encoder has not learnt from pictures; leave candidates out, or train with one that "
                "has"
            )
        if request.candidates > 1 and not all(request.prompts):
            raise ValueError("a picture without a prompt has no best candidate; give every picture a prompt")

    def _check_inputs(self, request: Request) -> None:
        inputs, needs = request.inputs, [name for one in self.conditions for name in one.needs]
        takes = tuple(dict.fromkeys([*getattr(self.generator, "inputs", ()), *needs]))
        if other := sorted(set(inputs) - set(takes)):
            known = f"this system reads {' and '.join(takes)}" if takes else "no part of this system reads any"
            raise ValueError(f"inputs {other} were given, and {known}")
        if "mask" in inputs and "image" not in inputs:
            raise ValueError("a mask was given without an image; it says where the image may change")
        channels = self.decoder.pictures.shape[0]
        for name, low, planes in (("image", -1, channels), ("mask", 0, 1)):
            if name in inputs:
                _check_picture(name, inputs[name], (len(request.seeds), planes), low)
        if "mask" in inputs and inputs["mask"].shape[2:] != inputs["image"].shape[2:]:
            sizes = (" x ".join(map(str, inputs[name].shape[2:])) for name in ("mask", "image"))
            raise ValueError("the mask has {} pixels and the image {}; give a mask of the image's size".format(*sizes))
        if request.size and "image" in inputs and tuple(request.size) != tuple(inputs["image"].shape[2:]):
            have = " x ".join(map(str, inputs["image"].shape[2:]))
            raise ValueError(f"size {request.size[0]} x {request.size[1]} was asked for, and the image has {have}")

        for one in self.conditions:
            if one.needs == (one.name,) and one.name in inputs:
                _check_picture(one.name, inputs[one.name], (len(request.seeds), one.planes), one.low)
                made = tuple(n * self._down for n in self._shape(request)[-2:])
                if one.size is not None and one.size != made:
                    raise ValueError(
                        f"{one.name} is for pictures of {one.size[0]} x {one.size[1]}, and {made[0]} x {made[1]} were "
                        f"asked for; make that size, or leave {one.name} out"
                    )
                wanted = one.side or made
                if (size := tuple(inputs[one.name].shape[2:])) != wanted:
                    raise ValueError(f"{one.name} has {size[0]} x {size[1]} pixels, expected {wanted[0]} x {wanted[1]}")

    @property
    def conditions(self) -> tuple[Input, ...]:
        """What the generator is told beside text, each by pictures of a request."""
        return tuple(getattr(self.generator, "conditions", ()))

    def untold(self, condition: Condition, rows: int) -> Condition:
        """The condition as the generator's network reads it, told of no input; RecipeError where it needs one."""
        if lacking := missing(self.conditions, ()):
            raise RecipeError(
                f"this model was never without {lacking[0].name}, and is asked here without any input; measure a model "
                "that was trained with a drop above 0"
            )
        size, device = self.decoder.space.shape[-2:], _device(self.generator)
        told: Condition = finish(tell(condition, self.conditions, {}, rows=rows, size=size, device=device))
        return told

    def edits(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The inputs that a picture is edited by: "image" and "mask", unless the generator reads them."""
        read = read_by(self.conditions, inputs)
        return {name: x for name, x in inputs.items() if name in ("image", "mask") and name not in read}

    def _told(self, condition: Condition, null: Condition, request: Request, shape: tuple[int, ...]) -> Rounds:
        """Both conditions with the inputs, in both the same: what is inside of `Follow` guides by the text alone."""
        if not self.conditions:
            return condition, null
        rows, device = len(request.seeds), _device(self.generator)
        told: Condition = yield from tell(
            condition,
            self.conditions,
            request.inputs,
            rows=rows,
            size=shape[-2:],
            device=device,
            encoder=self.decoder.encode,
        )
        if condition.tokens is None and condition.vector is None:  # without text, the null says the same
            return told, told
        return told, replace(null, controls=told.controls, adapters=told.adapters)

    def _encoded(self, inputs: Mapping[str, Tensor], shape: tuple[int, ...]) -> Rounds:
        """The inputs in the generator's space; a cell of z may change where any of its pixels may."""
        ((z,),) = yield Round((Ask(self.decoder.encode, (inputs["image"].to(_device(self.decoder)),)),))
        if "mask" not in inputs:
            return {"image": z}
        return {"image": z, "mask": F.adaptive_max_pool2d(inputs["mask"].float(), shape[1:]) > 0}

    def _shape(self, request: Request) -> tuple[int, ...]:
        shape = self.decoder.space.shape
        size = tuple(request.inputs["image"].shape[2:]) if "image" in request.inputs else request.size
        if size is None:
            return shape
        (_, height, width), down = self.decoder.pictures.shape, self._down
        if size[0] % down or size[1] % down:
            raise ValueError(
                f"size {size[0]} x {size[1]}; this system makes multiples of {down}, and {height} x {width} best"
            )
        return (*shape[:-2], size[0] // down, size[1] // down)

    @property
    def _down(self) -> int:
        """Pixels a side of a cell of z."""
        return self.decoder.pictures.shape[-2] // self.decoder.space.shape[-2]

    def generate(
        self,
        prompts: Sequence[str],
        *,
        seeds: Sequence[int],
        negative: Sequence[str] | None = None,
        size: tuple[int, int] | None = None,
        inputs: Mapping[str, Tensor] | None = None,
        settings: Any = None,
        candidates: int = 1,
        decoding: Decoding | None = None,
        preview: Decoder | None = None,
        reading: Reading | None = None,
    ) -> Iterator[Frame]:
        """Frames of one request: each finished step, then the pictures (`final`).

        Image i depends on prompt and seed i alone: its randomness is its own, and only the rounding of float32 (about
        2e-5, at most one grey level) varies with the number of rows that a network is given at once.

        `inputs` are pictures (N, C, H, W) to begin from: "image" in [-1, 1], and "mask" with one channel in [0, 1], 1
        where the image may change; what the mask keeps is the image's own, value for value. `settings.editing` says how
        much changes. What a generator is told beside text (its `conditions`) is given by name, with `planes` channels
        in [`low`, 1] each. A single prompt or picture serves all seeds. Stop early by closing the iterator. Raises
        ValueError for lengths and sizes that differ, and for an input that the generator cannot go without.

        Of so many `candidates` of each picture, the first of which is the picture without this, the one is kept that
        fits its prompt best, as the text encoder sees it, which must have learnt from pictures, too (Ramesh et al.
        2021). Steps show the first ones.

        `decoding` says how z is decoded where that differs from what the decoder was saved with: in parts, or how an
        upsampler samples; `reading` how a pretrained text encoder reads the prompts, such as CLIP's without its last
        layer. `preview` is another decoder of the same z, a quicker one, by which steps are shown.
        """
        if preview is not None and preview.space[:3] != self.decoder.space[:3]:
            other, mine = (f"{one.space.kind} {one.space.shape}" for one in (preview, self.decoder))
            raise ValueError(f"the preview decodes {other}, and this system's z is {mine}")
        prompts, seeds = _texts("prompts", prompts), _seeds(seeds)
        if negative is not None:
            negative = _texts("negative", negative)
        if len(prompts) == 1:
            prompts = list(prompts) * len(seeds)
        if negative is not None and len(negative) == 1:
            negative = list(negative) * len(seeds)
        request = Request(
            tuple(prompts),
            tuple(seeds),
            tuple(negative) if negative is not None else None,
            size,
            {name: x.expand(len(seeds), *x.shape[1:]) if len(x) == 1 else x for name, x in (inputs or {}).items()},
            settings,
            candidates,
            decoding,
            reading,
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
            step = _first(step, len(seeds))
            yield Frame(count, False, request.seeds, self.decoder.depth, step, _seen(step, preview or self.decoder))
        yield Frame(count, True, request.seeds, self.decoder.depth, None, lambda: images)


def _seen(step: Step, decoder: Decoder) -> Callable[[], Tensor]:
    """What a step shows: what a decoder says of its own steps, or else the decoded estimate."""

    @torch.no_grad()
    def images() -> Tensor:
        return step.show() if step.show is not None else decoder.preview(step.estimate.mean)

    return images


def _every(request: Request, condition: Condition, null: Condition) -> tuple[Request, Condition, Condition, Rng]:
    """The request and its conditions with all candidates: the first of each picture, then the second of each, ..."""
    count, seeds = request.candidates, request.seeds
    rows = list(range(len(seeds))) * count
    inputs = {name: x[rows] for name, x in request.inputs.items()}
    every = replace(request, prompts=request.prompts * count, seeds=seeds * count, inputs=inputs)
    further = [(seed, "candidate", number) for number in range(1, count) for seed in seeds]
    rng = Rng([*((seed,) for seed in seeds), *further], place=0)
    return every, condition.rows(rows), null.rows(rows), rng


def _best(images: Tensor, likeness: Tensor, pictures: int) -> Tensor:
    """Of the candidates' images, ordered as `_every` does, the likeliest of each picture; of equals the first."""
    best = likeness.view(-1, pictures).argmax(0)
    every = images.view(-1, pictures, *images.shape[1:])
    return every[best, torch.arange(pictures, device=best.device)]


def _first(step: Step, pictures: int) -> Step:
    """The step of each picture's first candidate."""
    mean, mix = step.estimate
    estimate = Estimate(mean[:pictures], None if mix is None else mix[:pictures])
    show = step.show
    return step._replace(
        x=step.x[:pictures], estimate=estimate, show=None if show is None else lambda: show()[:pictures]
    )


def _texts(name: str, given: object) -> list[str]:
    if isinstance(given, str):
        raise ValueError(f'{name} is the text "{given}"; give a list of prompts')
    if not isinstance(given, Sequence) or not all(isinstance(text, str) for text in given):
        raise ValueError(f"{name} is {given!r}; give a list of texts, with an empty one for no prompt")
    return list(given)


def _seeds(given: object) -> list[int]:
    """Whole numbers from 0, of any integer type."""
    try:
        seeds = [operator.index(seed) for seed in given]  # type: ignore[attr-defined]
    except TypeError:
        raise ValueError(f"seeds is {given!r}; give a list of whole numbers, one for each picture") from None
    if not seeds or min(seeds) < 0:
        raise ValueError(f"seeds is {given!r}; give at least one, each 0 or more")
    return seeds


def _check_picture(name: str, x: Tensor, rows_and_channels: tuple[int, int], low: int) -> None:
    """Raises ValueError for a tensor that is no picture with values in [low, 1]."""
    rows, channels = rows_and_channels
    if x.ndim != 4 or tuple(x.shape[:2]) != rows_and_channels or not x.is_floating_point():
        raise ValueError(
            f"the {name} is {x.dtype} of shape {tuple(x.shape)}; expected floating-point ({rows}, {channels}, height, "
            "width), a row a picture"
        )
    if not bool(((x >= low) & (x <= 1)).all()):
        raise ValueError(f"the {name} has values from {x.min():g} to {x.max():g}; expected [{low}, 1]")


def _put_back(images: Tensor, inputs: Mapping[str, Tensor]) -> Tensor:
    """The pictures with what the mask keeps as it was given; between 0 and 1 the mask blends."""
    if "mask" not in inputs:
        return images
    given, mask = (inputs[name].to(images.device, images.dtype) for name in ("image", "mask"))
    return torch.lerp(given, images, mask.expand_as(images))


def _device(part: object) -> torch.device:
    tensors = (*part.parameters(), *part.buffers()) if isinstance(part, nn.Module) else ()
    return tensors[0].device if tensors else torch.device("cpu")


def _check(name: str, wanted: Space, other: str, given: Space) -> None:
    if (wanted.kind, wanted.shape) == (given.kind, given.shape) and wanted.vocabulary != given.vocabulary:
        raise RecipeError(
            f"the {name} was trained for a vocabulary of {wanted.vocabulary} and this {other} has one of "
            f"{given.vocabulary}; give the {other} that it was trained with, or train it again"
        )
    if wanted.kind != given.kind or wanted.shape != given.shape:
        raise RecipeError(
            f"the {name} was trained for {wanted.kind} {wanted.shape} and this {other} has {given.kind} {given.shape}; "
            f"give the {other} that it was trained with, or train it again"
        )
    if wanted.fingerprint != given.fingerprint:
        raise RecipeError(
            f"this {other} has the shape that the {name} was trained for, but other weights (fingerprint "
            f"{given.fingerprint} instead of {wanted.fingerprint}); give the {other} that it was trained with"
        )
