"""What a recipe or a command says of a pretrained text encoder: `"pretrained:PATH"`, or a table.

[task.text]
kind = "pretrained"
path = "openai/clip-vit-large-patch14"     # see places.py
length = 32                                # tokens that are read, marks included

For a generator that others have trained with it, `convention` says what prompts mean to that one:

whiten = false
convention = {masked = false, vector = false}
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from carrara.config import build
from carrara.errors import RecipeError
from carrara.nn.bert_text import Pooling
from carrara.store.kinds import kinds
from carrara.text.convention import Convention

__all__ = ["PretrainedSource", "pretrained_source"]

_PREFIX = "pretrained:"
_OURS = Convention()


@dataclasses.dataclass(frozen=True, kw_only=True)
class PretrainedSource:
    """Where a pretrained text encoder is, and how it is read.

    length: tokens that are read of a prompt, marks included; None is 77, or what the encoder can read at most.
    skip, normed: of CLIP alone, see `CLIPTextTower`. pooling, unit: of the others; None is what the folder says.
    whiten: what a generator reads is whitened over the captions. precision: that the weights are kept in.
    variant: of the files of weights, such as "fp16"; where there is none of it, what is there.
    license: as SPDX writes it, where the folder does not say it. convention: what prompts mean to the generator; its
    `pad`, where it is left out, is what the tokenizer's folder says.
    """

    path: str
    length: int | None = None
    skip: int = 0
    normed: bool = True
    pooling: Pooling | None = None
    unit: bool | None = None
    whiten: bool = True
    precision: Literal["float32", "bfloat16"] = "float32"
    variant: str | None = None
    license: str | None = None
    convention: Convention = _OURS

    def __post_init__(self) -> None:
        if not self.path:
            raise ValueError("path is empty; name a folder, or what the hub calls it")


def pretrained_source(told: str | Mapping[str, Any]) -> PretrainedSource | None:
    """What `text = "pretrained:PATH"` or a table with `kind = "pretrained"` says; None for another text.

    Raises RecipeError for a table that says something else.
    """
    if isinstance(told, str):
        return PretrainedSource(path=told.removeprefix(_PREFIX)) if told.startswith(_PREFIX) else None
    if told.get("kind") != "pretrained":
        raise RecipeError(f'kind: given {told.get("kind")!r}, and a table stands for kind = "pretrained" alone')
    found: PretrainedSource = build(PretrainedSource, {k: v for k, v in told.items() if k != "kind"}, kinds())
    return found
