"""A pretrained text encoder made ready for a training: read, whitened over the captions, saved with its card."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from carrara.data.pictures import Pictures
from carrara.errors import RecipeError
from carrara.evaluate.card import card
from carrara.rng import permutation
from carrara.store import save_component
from carrara.store.transformers import PretrainedSource, read_text
from carrara.text import PretrainedText

__all__ = ["measured_captions", "pretrained_text", "save_pretrained"]

_MEASURED = 4096  # captions


def pretrained_text(source: PretrainedSource, pictures: Pictures, device: torch.device) -> PretrainedText:
    """The encoder that a recipe names, whitened over the training captions where it says so."""
    encoder = read_text(source).to(device)
    if source.whiten:
        said = {caption for i in pictures.train for caption in pictures.captions[i]} - {""}
        if not said:
            raise RecipeError(
                "task.text: no picture has a caption, which a text encoder is whitened over; see `carrara data check`"
            )
        encoder.measure(measured_captions(sorted(said), _MEASURED))
        folder = Path(pictures.settings.folder).name
        encoder.facts["whitened_over"] = f"{min(len(said), _MEASURED):,} captions of {folder}"
    return encoder


def measured_captions(captions: Sequence[str], most: int) -> list[str]:
    """What a whitening is measured over: the null prompt, which is read as often as any, and captions, keyed."""
    chosen = (
        captions if len(captions) <= most else [captions[i] for i in permutation(len(captions), 0, "measure")[:most]]
    )
    return ["", *chosen]


def save_pretrained(folder: Path, encoder: PretrainedText) -> None:
    """Writes it as a component, complete alone: weights, tokenizer, and a card that says whose it is."""
    facts = encoder.facts
    known = {name: facts[name] for name in ("license",) if name in facts}
    whose = facts.get("pretrained", "a pretrained encoder")
    what = f"A frozen text encoder of a Carrara system: {whose}, as others have trained it; its licence is theirs."
    if "whitened_over" in facts:
        what += f" What a generator reads of it is whitened over {facts['whitened_over']}."
    text = card({"name": str(whose), "what": what, "tags": ["text-encoder"], **known})
    save_component(folder, "text", encoder, facts=facts, card=text)
