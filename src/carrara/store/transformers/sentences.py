"""What a folder of sentence-transformers says of how a sentence's tokens become its vector.

modules.json lists what they go through: the network, a pooling, perhaps a normalisation (Reimers & Gurevych 2019).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from carrara.errors import RecipeError, StorageError
from carrara.store.atomic import read_json
from carrara.store.transformers.source import PretrainedSource

__all__ = ["pooling_of"]

_POOLINGS = {"pooling_mode_cls_token": "first", "pooling_mode_mean_tokens": "mean"}


def pooling_of(folder: Path, source: PretrainedSource) -> tuple[str, bool]:
    """Which tokens are the vector, and whether it has length 1: as the source says, or the folder, or their mean."""
    pooling, unit = "mean", False
    if source.pooling is None and (folder / "modules.json").is_file():
        pooling, unit = _said(folder)
    return source.pooling or pooling, unit if source.unit is None else source.unit


def _said(folder: Path) -> tuple[str, bool]:
    pooling, unit = "mean", False
    for module in _modules(folder / "modules.json"):
        kind = str(module.get("type", "")).rpartition(".")[2]
        if kind == "Pooling":
            pooling = _pooled(folder / str(module.get("path", "")) / "config.json")
        elif kind == "Normalize":
            unit = True
        elif kind != "Transformer":
            raise RecipeError(
                f"{folder / 'modules.json'} has a {kind}, which is not read; say what the vector shall be instead: "
                'pooling = "mean" or "first"'
            )
    return pooling, unit


def _modules(path: Path) -> list[Mapping[str, Any]]:
    try:
        modules = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StorageError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(modules, list) or not all(isinstance(module, Mapping) for module in modules):
        raise StorageError(f"{path} is no list of modules")
    return modules


def _pooled(path: Path) -> str:
    chosen = [name for name, on in read_json(path).items() if name.startswith("pooling_mode_") and on is True]
    if len(chosen) != 1 or chosen[0] not in _POOLINGS:
        said = " and ".join(chosen) or "no pooling_mode_..."
        raise RecipeError(f'{path} says {said}, which is not read; say pooling = "mean" or "first"')
    return _POOLINGS[chosen[0]]
