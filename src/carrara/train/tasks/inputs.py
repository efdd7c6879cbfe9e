"""The inputs that a recipe names, with what follows from its data.

[task.inputs.edges]
kind = "edges"
drop = 0.1            # share of rows that are trained without it; 0 makes it one that has to be given
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from carrara.conditions import Input
from carrara.config import describe, parameters
from carrara.data.pictures import Pictures
from carrara.decoder import Decoder
from carrara.errors import CarraraError, RecipeError
from carrara.rng import permutation
from carrara.store import kinds, load_component
from carrara.train.tasks.part import Table, built

__all__ = ["create_inputs", "network_widths"]

_MEASURED = 2048  # pictures from which an input learns what it has to know, at most


def create_inputs(
    tables: Mapping[str, Table], pictures: Pictures, decoder: Decoder, seed: int, device: torch.device, **derived: Any
) -> tuple[Input, ...]:
    """The inputs of these tables, in their order; RecipeError naming the one that is not right."""
    return tuple(_create(name, tables[name], pictures, decoder, seed, device, derived) for name in tables)


def network_widths(inputs: Sequence[Input]) -> dict[str, Any]:
    """What a network that reads the inputs is built with."""
    found: dict[str, dict[str, int]] = {}
    for one in inputs:
        found.setdefault(one.part, {})[one.name] = one.channels
    return found


def _create(
    name: str,
    given: Table,
    pictures: Pictures,
    decoder: Decoder,
    seed: int,
    device: torch.device,
    more: Mapping[str, Any],
) -> Input:
    where, table, derived = f"task.inputs.{name}", dict(given), {"name": name, **more}
    kind = table.get("kind")
    if not isinstance(kind, str):
        raise RecipeError(f"{where}: no kind; kinds are {', '.join(kinds().names('input'))}")
    try:
        takes = parameters(kinds().resolve("input", kind))
    except ValueError as error:
        raise RecipeError(f"{where}.kind: {error}") from error
    beside = name in pictures.inputs
    if kind == "map" and not beside:
        raise RecipeError(
            f"{where}: no picture has one beside it; name them in a column {name}_file_name of the metadata (the data "
            f"has {', '.join(sorted(pictures.inputs)) or 'none'})"
        )
    follows = {
        "channels": pictures.inputs[name] if beside and kind != "mask" else pictures.channels,
        "down": decoder.pictures.shape[-2] // decoder.space.shape[-2],
        "size": list(pictures.size),
    }
    derived |= {key: value for key, value in follows.items() if key in takes}
    tower = None
    if "network" in takes:
        tower = _tower(table, where, device)
        derived["network"] = describe(tower, kinds())
    made = built("input", table, where, seed, **derived)
    assert isinstance(made, Input)
    if tower is not None:
        made.network.load_state_dict(tower.state_dict())  # type: ignore[union-attr]
    made = made.to(device)
    with torch.no_grad():
        made.measure(_batches(name, pictures, beside), beside=beside)
    return made


def _tower(table: Table, where: str, device: torch.device) -> nn.Module:
    """The picture tower of the text encoder that `encoder` names, which is taken out of the table."""
    folder = table.pop("encoder", None)
    if not isinstance(folder, str):
        raise RecipeError(f'{where}.encoder: missing; name the folder of a text encoder, such as "runs/emoji/text"')
    try:
        text = load_component(Path(folder), "text")
    except CarraraError as error:
        raise type(error)(f"{where}.encoder: {error}") from error
    tower = getattr(text, "picture", None)
    if not isinstance(tower, nn.Module):
        raise RecipeError(f"{where}.encoder: {folder} has no picture tower; name a contrastive text encoder")
    return tower.to(device)


def _batches(name: str, pictures: Pictures, beside: bool) -> Iterator[Tensor]:
    rows = pictures.train
    rows = rows[permutation(len(rows), 0, "measure inputs")[:_MEASURED]]
    for i in range(0, len(rows), 64):
        some = rows[i : i + 64]
        yield pictures.input_tensors(some)[name] if beside else pictures.tensor(some)
