"""What of a pipeline stands beside its weights, kept in a model folder so that it can be written back.

diffusers/model_index.json, NAME/config.json ...   every configuration and every file of a tokenizer
diffusers/tensors.json                             {component: {tensor: its type, null for any, or "= another"}}
diffusers/rest.safetensors                         small tensors that no network here has, such as position_ids
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from carrara.errors import RecipeError, StorageError
from carrara.store.atomic import read_json, write_json
from carrara.store.diffusers.folder import INDEX, read_pipeline, write_pipeline
from carrara.store.diffusers.foreign import ForeignPart, ForeignPipeline
from carrara.store.diffusers.texts import names_of
from carrara.store.safetensors_io import load_tensors, save_plain

__all__ = ["KEPT", "Kept", "keep", "read_kept"]

KEPT = "diffusers"
_TENSORS, _REST = "tensors.json", "rest.safetensors"
_SMALL = 1 << 20  # bytes of tensors that nothing reads
_SAME = "= "


@dataclass(frozen=True)
class Kept:
    """A pipeline without its weights. `tensors`: what there was of each component; `rest`: what nothing reads."""

    pipeline: ForeignPipeline
    tensors: Mapping[str, Mapping[str, str | None]]
    rest: Mapping[str, Mapping[str, Tensor]]

    def whole(self, component: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors of a component in the types that they had, with those that nothing reads."""
        found = dict(self.rest.get(component, {}))
        for name, told in self.tensors[component].items():
            source = told.removeprefix(_SAME) if told and told.startswith(_SAME) else name
            if source not in tensors:
                raise RecipeError(f"{component} had a tensor {name} when it was imported, and has none now")
            tensor = tensors[source]
            known = told and not told.startswith(_SAME)
            found[name] = tensor.to(_type(told)) if known and tensor.is_floating_point() else tensor  # type: ignore[arg-type]
        return found


def keep(folder: Path, pipeline: ForeignPipeline, *, left_out: tuple[str, ...] = (), stored: bool) -> None:
    """Writes what is kept of a pipeline into `folder`/diffusers; components that are `left_out` are none of it.

    stored: the weights shall be written back in the types that they had. Raises RecipeError for a text encoder with
    tensors that nothing reads and that are too many to be kept.
    """
    place = folder / KEPT
    parts = {name: part for name, part in pipeline.parts.items() if name not in left_out}
    without = {name: dataclasses.replace(part, tensors=None) for name, part in parts.items()}
    absent = (*pipeline.absent, *(name for name in left_out if name in pipeline.parts))
    write_pipeline(place, dataclasses.replace(pipeline, parts=without, absent=absent))
    tensors: dict[str, dict[str, str | None]] = {}
    rest: dict[str, Tensor] = {}
    for name, part in parts.items():
        if part.tensors is not None:
            tensors[name], others = _listed(name, part, stored)
            rest |= {f"{name}/{one}": tensor for one, tensor in others.items()}
    write_json(place / _TENSORS, tensors)
    if rest:
        save_plain(place / _REST, rest, {})


def _listed(component: str, part: ForeignPart, stored: bool) -> tuple[dict[str, str | None], dict[str, Tensor]]:
    assert part.tensors is not None
    found = {name: part.tensors.read(name) for name in part.tensors.names}
    used = set(found)
    if component.startswith("text_encoder"):
        used = names_of(part, {name: tuple(tensor.shape) for name, tensor in found.items()})
    told: dict[str, str | None] = {
        name: str(found[name].dtype).removeprefix("torch.") if stored else None for name in sorted(used)
    }
    rest: dict[str, Tensor] = {}
    for name in sorted(set(found) - used):
        same = (other for other in sorted(used) if torch.equal(found[other], found[name]))
        if found[name].nbytes <= _SMALL:
            rest[name] = found[name]
        elif (other := next(same, None)) is not None:
            told[name] = _SAME + other
        else:
            raise RecipeError(
                f"{component} has a tensor {name}, which nothing reads and which could not be written back"
            )
    return told, rest


def read_kept(folder: Path) -> Kept | None:
    """What is kept in a model folder; None for a model that was not imported. Raises StorageError for damage."""
    place = folder / KEPT
    if not (place / INDEX).is_file():
        return None
    tensors = read_json(place / _TENSORS)
    for name, told in tensors.items():
        if not isinstance(told, Mapping) or not all(isinstance(one, str | None) for one in told.values()):
            raise StorageError(f"{place / _TENSORS} does not list the tensors of {name}; import the model again")
    rest: dict[str, dict[str, Tensor]] = {}
    if (place / _REST).is_file():
        for path, tensor in load_tensors(place / _REST).items():
            name, _, one = path.partition("/")
            rest.setdefault(name, {})[one] = tensor
    return Kept(read_pipeline(place, weights=False), tensors, rest)


def _type(name: str) -> torch.dtype:
    found = getattr(torch, name, None)
    if not isinstance(found, torch.dtype):
        raise StorageError(f"{_TENSORS} names a type {name[:40]!r}, which is none; import the model again")
    return found
