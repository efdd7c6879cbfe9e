"""A text encoder from a folder in the layout of transformers: CLIP's, T5's, a sentence encoder's."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Annotated

import torch
from torch import nn

from carrara.config import Role, build
from carrara.errors import RecipeError, StorageError
from carrara.store.atomic import read_json
from carrara.store.kinds import kinds
from carrara.store.transformers.architectures import architecture
from carrara.store.transformers.places import find_folder
from carrara.store.transformers.source import PretrainedSource
from carrara.store.transformers.tokenizer import find_pad, find_tokenizer
from carrara.store.transformers.weights import gathered
from carrara.store.weights import find_weights
from carrara.text import PretrainedText

__all__ = ["read_text"]

_LENGTH = 77  # that is read where nothing is said: CLIP's


def read_text(source: PretrainedSource) -> PretrainedText:
    """The encoder of a source, in eval mode; its `facts` say where it is from and under which licence.

    Raises StorageError for files that are missing or damaged, RecipeError for a model or a setting that is not read.
    """
    folder = find_folder(source.path)
    if (folder / "model_index.json").is_file():
        raise RecipeError(f"{folder} is a whole pipeline; name one of its text encoders, such as {folder}/text_encoder")
    if not (folder / "config.json").is_file():
        raise StorageError(f"{folder} has no config.json: it is no model in the layout of transformers")
    config = read_json(folder / "config.json")
    files = find_weights(folder, variant=source.variant)
    try:
        table, tensors = architecture(config, source, files)
        with torch.device("meta"):  # every weight is replaced
            network: nn.Module = build(Annotated[nn.Module, Role("text_network")], table, kinds())
    except RecipeError as error:
        raise RecipeError(f"{folder / 'config.json'}: {error}") from error
    precision = torch.bfloat16 if source.precision == "bfloat16" else torch.float32
    state = {ours: gathered(files, theirs).to(precision) for ours, theirs in tensors.items()}
    try:
        network.load_state_dict(state, strict=True, assign=True)
    except RuntimeError as error:
        lines = " ".join(str(error).splitlines()[1:4])
        raise StorageError(f"{folder}: the weights do not fit config.json: {lines}") from error
    most = table.get("length")
    length = source.length or (min(_LENGTH, most) if most else _LENGTH)
    tokenizer, convention = find_tokenizer(folder), source.convention
    if not convention.masked and convention.pad is None:  # otherwise nothing reads it
        convention = dataclasses.replace(convention, pad=find_pad(folder, tokenizer))
    try:
        encoder = PretrainedText(tokenizer, network, length, source.whiten, convention)
    except ValueError as error:
        raise RecipeError(f"{source.path}: {error}") from error
    local = Path(source.path).expanduser().is_dir()
    encoder.facts = {
        "pretrained": folder.resolve().name if local else source.path,
        "architecture": config["model_type"],
    }
    if license := source.license or _license(folder):
        encoder.facts["license"] = license
    return encoder.eval()


def _license(folder: Path) -> str | None:
    """The licence that the head of the model's card states."""
    for place in (folder, folder.parent) if folder.name.startswith("text_encoder") else (folder,):
        try:
            text = (place / "README.md").read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            continue
        head = re.match(r"---\n(.*?)\n---", text, re.DOTALL)
        if head and (found := re.search(r"^license:\s*[\"']?([\w.+-]+)", head[1], re.MULTILINE)):
            return found[1]
    return None
