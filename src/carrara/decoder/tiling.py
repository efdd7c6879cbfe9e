"""Part by part: pictures of any size through a network, in the memory of one part.

A part of the result needs the inputs within the network's reach (`carrara.nn.reach`). Given these, every part comes out
as in the whole picture, to the rounding of its convolutions: nothing is blended and no seam is there to be seen. A
network that sees the whole picture at once (a norm over groups of channels, attention) makes each part by itself: parts
overlap, and are blended over the overlap by weights that rise linearly from its edge.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor

from carrara.types import Ask, Round, Rounds

__all__ = ["Scale", "Tiling", "answered", "tiled"]


@dataclass(frozen=True)
class Tiling:
    """Parts of `tile` pixels a side of the large picture; `overlap` of them are blended where a network sees all of it.

    Both are rounded up to whole cells of z. A picture that is no larger than a part is made whole.
    """

    tile: int = 512
    overlap: int = 128

    def __post_init__(self) -> None:
        if self.tile < 1:
            raise ValueError(f"tile = {self.tile}; expected a part's side in pixels, such as 512")
        if not 0 <= self.overlap < self.tile:
            raise ValueError(f"overlap = {self.overlap}; expected pixels, at least 0 and below tile = {self.tile}")


class Scale(NamedTuple):
    """A network that makes `outputs` places of every `inputs` ones; one of the two is 1. `reach` is in inputs."""

    inputs: int
    outputs: int
    reach: int | None  # None: it sees everything

    @property
    def pixels(self) -> int:
        """Pixels of the large picture a side of a cell."""
        return max(self.inputs, self.outputs)


def answered(rounds: Rounds) -> Tensor:
    """What a request for tensors alone comes to, its asks answered one by one."""
    answers: list[tuple[Tensor]] = []
    try:
        asked = next(rounds)
        while True:
            answers = [(ask.network(*ask.rows),) for ask in asked.asks]
            asked = rounds.send(answers)
    except StopIteration as finished:
        whole: Tensor = finished.value
        return whole


class _Part(NamedTuple):
    """A stretch of a side, in cells: what is read, and what of it is kept."""

    start: int
    stop: int
    first: int
    last: int


def tiled(network: Callable[[Tensor], Tensor], x: Tensor, tiling: Tiling, scale: Scale) -> Rounds:
    """A request for network(x), part by part: x (B, C, H, W), whose sides are whole cells, to (B, C', H', W')."""
    size = [side // scale.inputs for side in x.shape[2:]]
    rows, columns = ([*_parts(length, tiling, scale)] for length in size)
    out: Tensor | None = None
    total: Tensor | None = None
    for down, across in product(rows, columns):
        part = x[
            :,
            :,
            down.start * scale.inputs : down.stop * scale.inputs,
            across.start * scale.inputs : across.stop * scale.inputs,
        ]
        ((made,),) = yield Round((Ask(network, (part,)),))
        if len(rows) * len(columns) == 1:
            return made
        if out is None:
            out = made.new_zeros((*made.shape[:2], *(length * scale.outputs for length in size)))
        if scale.reach is not None:
            inside, place = _kept(down, across, scale.outputs)
            out[place] = made[inside]
            continue
        if total is None:
            total = made.new_zeros(out.shape[2:])
        weight = _weight(down, size[0], tiling, scale, made)[:, None] * _weight(across, size[1], tiling, scale, made)
        _, place = _kept(down, across, scale.outputs)
        out[place] += made * weight
        total[place[2:]] += weight
    assert out is not None
    return out if total is None else out / total


def _parts(length: int, tiling: Tiling, scale: Scale) -> list[_Part]:
    tile, overlap = (-(-pixels // scale.pixels) for pixels in (tiling.tile, tiling.overlap))
    if length <= tile:
        return [_Part(0, length, 0, length)]
    if scale.reach is None:
        step = max(1, tile - overlap)
        starts = [*range(0, length - tile, step), length - tile]
        return [_Part(start, start + tile, start, start + tile) for start in starts]
    reach = -(-scale.reach // scale.inputs)
    return [
        _Part(max(0, first - reach), min(length, min(length, first + tile) + reach), first, min(length, first + tile))
        for first in range(0, length, tile)
    ]


def _kept(down: _Part, across: _Part, outputs: int) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """Where what is kept lies in the part that was made, and in the whole."""
    every = slice(None)
    inside = [slice((p.first - p.start) * outputs, (p.last - p.start) * outputs) for p in (down, across)]
    place = [slice(p.first * outputs, p.last * outputs) for p in (down, across)]
    return (every, every, *inside), (every, every, *place)


def _weight(part: _Part, length: int, tiling: Tiling, scale: Scale, like: Tensor) -> Tensor:
    """How much each place of a part counts: rising over the overlap, but not at the picture's own edge."""
    places = torch.arange((part.stop - part.start) * scale.outputs, device=like.device, dtype=like.dtype) + 0.5
    ramp = -(-tiling.overlap // scale.pixels) * scale.outputs
    weight = torch.ones_like(places)
    if part.start > 0 and ramp:
        weight = weight * (places / ramp).clamp(max=1)
    if part.stop < length and ramp:
        weight = weight * (places.flip(0) / ramp).clamp(max=1)
    return weight
