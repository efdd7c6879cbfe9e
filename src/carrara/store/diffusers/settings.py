"""A network's own settings, on their way to another format: all of them, and those that it has no key for."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from carrara.config import build, describe, parameters
from carrara.errors import RecipeError
from carrara.store.kinds import kinds

__all__ = ["settings"]


def settings(network: Mapping[str, Any], fixed: Mapping[str, Any], *, kind: str, name: str) -> dict[str, Any]:
    """All settings of a network's table, defaults included.

    fixed: what the class `name` there has no key for, and has so. Raises RecipeError for a network of another kind, and
    for one that differs in any of those.
    """
    if network.get("kind") != kind:
        raise RecipeError(f'{name} is a network of kind "{kind}", given "{network.get("kind")}"; export it as another')
    known = parameters(kinds().resolve("network", kind))
    if unknown := sorted(network.keys() - known.keys() - {"kind"}):
        raise RecipeError(f'a network of kind "{kind}" has no setting {unknown[0]!r}; it has {", ".join(known)}')
    found = {key: _said(network.get(key, known[key].default), known[key].annotation) for key in known}
    for key, value in fixed.items():
        if found[key] != _said(value, known[key].annotation):
            raise RecipeError(f"{name} has no key for {key} = {network.get(key, known[key].default)}; it has {value}")
    return found


def _said(value: Any, annotation: Any) -> Any:
    """A value as it can be compared: lists are tuples, objects their tables with every default."""
    if isinstance(value, Mapping) and "kind" in value:
        value = build(annotation, value, kinds())
    if dataclasses.is_dataclass(value):
        return describe(value, kinds())
    return tuple(value) if isinstance(value, list) else value
