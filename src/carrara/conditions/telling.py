"""From the pictures of a request to what a generator is told beside text."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from carrara.conditions.base import Input
from carrara.types import Ask, Condition, Round, Rounds

__all__ = ["missing", "read_by", "tell"]


def read_by(inputs: Sequence[Input], given: Collection[str]) -> set[str]:
    """The names of the given pictures that inputs read; one that needs two pictures reads none of them alone."""
    return {name for one in inputs if set(one.needs) <= set(given) for name in one.needs}


def missing(inputs: Sequence[Input], given: Collection[str]) -> list[Input]:
    """The inputs that are not given and that a generator cannot go without, never having been without them."""
    return [one for one in inputs if not one.optional and not set(one.needs) <= set(given)]


def tell(
    condition: Condition,
    inputs: Sequence[Input],
    given: Mapping[str, Tensor],
    *,
    rows: int,
    size: Sequence[int],
    device: torch.device | str = "cpu",
    encoder: Callable[[Tensor], Tensor] | None = None,
) -> Rounds:
    """A request for the condition with all inputs in it: those that are `given`, and the nulls of the others.

    `size` is that of z (height, width), and `encoder` what makes z of pictures, for inputs that read some. Raises
    ValueError for an input that is missing.
    """
    if lacking := missing(inputs, given):
        names = " and ".join(name for name in lacking[0].needs if name not in given)
        raise ValueError(
            f"this model was never without {lacking[0].name} and needs {names}; "
            f"give inputs={{{lacking[0].name!r}: ...}}, or --input {lacking[0].name}=FILE"
        )
    here = [one for one in inputs if set(one.needs) <= set(given)]
    pictures = {one.name: tuple(given[name].to(device) for name in one.needs) for one in here}
    if encoded := [one for one in here if one.encoded]:
        if encoder is None:
            raise ValueError(f"{encoded[0].name} is told as z, and nothing here makes one; ask a whole system")
        found = yield Round(tuple(Ask(encoder, (one.left(*pictures[one.name]),)) for one in encoded))
        for one, (z,) in zip(encoded, found, strict=True):
            pictures[one.name] = (*pictures[one.name], z)
    answers = yield Round(tuple(Ask(one.encode, pictures[one.name]) for one in here))
    encodings = {one.name: encoding for one, (encoding,) in zip(here, answers, strict=True)}
    parts: dict[str, Any] = {"controls": {}, "adapters": {}}
    for one in inputs:
        parts[one.part][one.name] = encodings[one.name] if one.name in encodings else one.null(rows, size).to(device)
    return replace(condition, **parts)
