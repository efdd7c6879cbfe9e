"""The text encoders of a pipeline folder as one part of a system, each as its pipeline reads prompts.

text_encoder, tokenizer ...        text_encoder_2, tokenizer_2 ...        text_encoder_3, tokenizer_3

Stable Diffusion 1, 2     CLIP, all 77 tokens; the null condition is the encoding of ""
Stable Diffusion XL       two CLIPs side by side, of each the last layer but one without its norm; the second's vector
its refiner               the second of them alone
Stable Diffusion 3        the same two, then T5's tokens behind them; both vectors
FLUX                      T5's tokens; CLIP's vector
PixArt                    T5's tokens with their mask, of prompts in lower case
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from carrara.errors import RecipeError
from carrara.store.transformers import PretrainedSource, read_text
from carrara.text import Absent, Convention, Joined, PretrainedText

__all__ = [
    "flux_text",
    "pixart_text",
    "stable_diffusion_3_text",
    "stable_diffusion_text",
    "stable_diffusion_xl_text",
]

_UNMASKED = Convention(masked=False)


def stable_diffusion_text(folder: Path, **told: Any) -> PretrainedText:
    """The encoder of a pipeline of Stable Diffusion 1 or 2.

    `told`, here and below, are further settings of a `PretrainedSource` or of its `Convention`: `precision`, `chunks`,
    `emphasis`. Raises StorageError and RecipeError as `read_text` does.
    """
    return _read(folder / "text_encoder", dataclasses.replace(_UNMASKED, vector=False), **told)


def stable_diffusion_xl_text(folder: Path, *, zero_empty: bool = True, **told: Any) -> PretrainedText | Joined:
    """Both encoders of a pipeline of SDXL, or the refiner's one.

    zero_empty: an empty prompt is zeros, which model_index.json calls force_zeros_for_empty_prompt.
    """
    convention = dataclasses.replace(_UNMASKED, zero_empty=zero_empty)
    second = _last_but_one(folder / "text_encoder_2", convention, **told)
    if not (folder / "text_encoder").is_dir():
        return second
    first = _last_but_one(folder / "text_encoder", dataclasses.replace(convention, vector=False), **told)
    return Joined((first, second), ((0, 1),), (1,)).eval()


def stable_diffusion_3_text(folder: Path, *, width: int, length: int = 256, **told: Any) -> Joined:
    """The three encoders of a pipeline of SD3, of which T5 may be missing.

    width: of the tokens that the network reads. length: tokens that T5 reads.
    """
    clips = [_last_but_one(folder / name, _UNMASKED, **told) for name in ("text_encoder", "text_encoder_2")]
    t5 = _t5(folder / "text_encoder_3", _UNMASKED, length, **told) if (folder / "text_encoder_3").is_dir() else None
    found = Joined((*clips, t5 or Absent(length, width)), ((0, 1), (2,)), (0, 1)).eval()
    if (own := found.space.shape[1]) != width:
        raise RecipeError(f"{folder} has text encoders of width {own}, and its network reads {width}")
    return found


def flux_text(folder: Path, *, length: int = 512, **told: Any) -> Joined:
    """The two encoders of a pipeline of FLUX. length: tokens that T5 reads, 512 or for the schnell kind 256."""
    clip = _read(folder / "text_encoder", _UNMASKED, **told)
    t5 = _t5(folder / "text_encoder_2", dataclasses.replace(_UNMASKED, vector=False), length, **told)
    return Joined((clip, t5), ((1,),), (0,)).eval()


def pixart_text(folder: Path, *, length: int = 120, **told: Any) -> PretrainedText:
    """The encoder of a pipeline of PixArt. length: tokens that are read, 120 for alpha and 300 for sigma."""
    return _t5(folder / "text_encoder", Convention(vector=False, lower=True), length, **told)


def _read(folder: Path, convention: Convention, length: int | None = None, **told: Any) -> PretrainedText:
    """An encoder of which nothing is whitened; what is `told` comes first."""
    said = {field.name: told.pop(field.name) for field in dataclasses.fields(Convention) if field.name in told}
    settings = {"whiten": False, "convention": dataclasses.replace(convention, **said), "length": length, **told}
    return read_text(PretrainedSource(path=str(folder), **settings))


def _last_but_one(folder: Path, convention: Convention, **told: Any) -> PretrainedText:
    return _read(folder, convention, **{"skip": 1, "normed": False, **told})


def _t5(folder: Path, convention: Convention, length: int, **told: Any) -> PretrainedText:
    """T5, which reads any length at once, and whose tokens have a mean too near zero to be restored."""
    return _read(folder, convention, length, **{**told, "chunks": 1, "restore": False})
