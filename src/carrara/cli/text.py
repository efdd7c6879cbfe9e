"""What `--text` names: the folder of a trained text encoder, or a pretrained one as a recipe would say it.

    runs/text
    pretrained:openai/clip-vit-large-patch14
    {path = "openai/clip-vit-large-patch14", length = 32, whiten = false}

The last is a table in TOML, with the settings of `carrara.store.transformers.PretrainedSource`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from carrara.errors import RecipeError

if TYPE_CHECKING:
    from carrara.store.transformers import PretrainedSource

__all__ = ["is_folder", "told_source", "told_text"]


def is_folder(told: object) -> bool:
    """Whether what a recipe says of a part names the folder of one that is trained by itself."""
    words = ("", "labels", "pixels", "unconditional")
    return isinstance(told, str) and told not in words and not told.startswith("pretrained:")


def told_text(text: str) -> str | dict[str, Any]:
    """The text as a recipe's `task.text` would have it; RecipeError for a table that is no TOML."""
    if not text.lstrip().startswith("{"):
        return text
    from carrara.config import override

    table = override({}, [f"text={text}"])["text"]
    if not isinstance(table, dict):
        raise RecipeError(f'--text is {text}, which is no TOML table; write it as {{path = "FOLDER", length = 32}}')
    return {"kind": "pretrained", **table}


def told_source(text: str) -> PretrainedSource | None:
    """The pretrained encoder that is named; None for a folder."""
    from carrara.store.transformers import pretrained_source

    try:
        return pretrained_source(told_text(text))
    except RecipeError as error:
        raise RecipeError("\n".join(f"--text: {line}" for line in str(error).splitlines())) from error
