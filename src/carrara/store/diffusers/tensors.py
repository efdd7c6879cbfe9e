"""Tensors under another layout's names: one table a network, read both ways.

    table = {"inward.weight": "conv_in.weight",
             "attention.qkv.weight": Stacked(("to_q.weight", "to_k.weight", "to_v.weight"), (320, 320, 320)),
             "into.weight": Pointwise("proj_in.weight")}
    ours = imported(table, source, network.state_dict())        theirs = exported(table, ours)

Every tensor on either side is accounted for: what is missing, left over, of another shape or not finite is refused, all
in one sentence. Numbers and dtypes are passed on as they are, so that exported(imported(x)) is x, bit by bit.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from carrara.errors import StorageError
from carrara.store.safetensors_io import nonfinite

__all__ = ["Place", "Pointwise", "Stacked", "Table", "TensorSource", "exported", "imported", "names"]

_NAMED = 3  # tensors of a kind that are named before they are only counted


class Stacked(NamedTuple):
    """Several tensors there, with so many rows each, one below the other here."""

    names: tuple[str, ...]
    rows: tuple[int, ...]


class Pointwise(NamedTuple):
    """The kernel (out, in, 1, 1) of a convolution there, the matrix (out, in) of a linear map here."""

    name: str


Place = str | Stacked | Pointwise
Table = Mapping[str, Place]
"""Our name of each tensor, and where it is there."""


class TensorSource(Protocol):
    """The tensors of a file, or of several, read one by one; `title` opens sentences about them."""

    @property
    def title(self) -> str:
        """What they are called in an error, such as a path."""
        ...

    @property
    def names(self) -> Collection[str]:
        """Of all tensors."""
        ...

    def read(self, name: str) -> Tensor:
        """One tensor, as it lies there; StorageError for a damaged file."""
        ...


def names(place: Place) -> tuple[str, ...]:
    """The tensors there that one of ours is made of."""
    match place:
        case Stacked():
            return place.names
        case Pointwise():
            return (place.name,)
    return (place,)


def imported(
    table: Table, source: TensorSource, wanted: Mapping[str, Tensor], *, ignored: Collection[str] = ()
) -> dict[str, Tensor]:
    """Our tensors, with the names and shapes of `wanted` (a state dict, on any device, of which only shapes are used).

    `ignored` are tensors there that nobody needs, such as buffers which follow from the configuration; they may be
    absent. Raises StorageError that lists what is missing, left over, of another shape or not finite, and ValueError
    for a table that is not that of `wanted`.
    """
    if set(table) != set(wanted):
        raise ValueError(f"the table and the network differ in {sorted(set(table) ^ set(wanted))[:_NAMED]}")
    there, needed = set(source.names), [name for place in table.values() for name in names(place)]
    wrong = {
        "missing": sorted(set(needed) - there),
        "left over": sorted(there - set(needed) - set(ignored)),
    }
    found: dict[str, Tensor] = {}
    shapes: list[str] = []
    broken: list[str] = []
    for ours, place in table.items():
        if not there.issuperset(names(place)):
            continue
        parts = [source.read(name) for name in names(place)]
        if (fault := _misfit(place, parts, wanted[ours])) is not None:
            shapes.append(fault)
            continue
        broken += nonfinite(dict(zip(names(place), parts, strict=True)))
        found[ours] = torch.cat(parts) if isinstance(place, Stacked) else parts[0].reshape(wanted[ours].shape)
    wrong |= {"of another shape": shapes, "not finite": broken}
    if told := [_told(what, which) for what, which in wrong.items() if which]:
        raise StorageError(f"{source.title} does not hold this network's tensors: {'; '.join(told)}")
    return found


def exported(table: Table, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors there: what `imported` undoes."""
    return {name: tensor for ours, place in table.items() for name, tensor in _parts(place, tensors[ours])}


def _parts(place: Place, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    match place:
        case Stacked():
            yield from zip(place.names, tensor.split(list(place.rows)), strict=True)
        case Pointwise():
            yield place.name, tensor[:, :, None, None]
        case _:
            yield place, tensor


def _misfit(place: Place, parts: list[Tensor], wanted: Tensor) -> str | None:
    """Of the first part that has not the shape which it would be written with; None where all have."""
    for part, (name, model) in zip(parts, _parts(place, wanted), strict=True):
        if part.shape != model.shape:
            return f"{name} is {_shape(part)}, expected {_shape(model)}"
        if part.dtype != parts[0].dtype:
            return f"{name} is {part.dtype}, expected {parts[0].dtype} as {names(place)[0]} is"
    return None


def _shape(tensor: Tensor) -> str:
    return " x ".join(map(str, tensor.shape)) or "a number"


def _told(what: str, which: list[str]) -> str:
    more = f" and {len(which) - _NAMED} more" if len(which) > _NAMED else ""
    return f"{len(which)} {what} ({', '.join(which[:_NAMED])}{more})"
