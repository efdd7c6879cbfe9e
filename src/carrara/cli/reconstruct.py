"""`carrara evaluate` of a decoder by itself: what becomes of pictures that it encodes and decodes."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from carrara.cli.measuring import counted, opened, write_report
from carrara.cli.voice import Voice
from carrara.errors import RecipeError, StorageError

if TYPE_CHECKING:
    from carrara.evaluate.reconstruction import Reconstruction, Trial
    from carrara.evaluate.yardstick import Split
    from carrara.store import Component

__all__ = ["Bench", "evaluate_decoder", "find_decoder"]


def find_decoder(folder: Path, others: Mapping[str, tuple[object, object]]) -> Component:
    """The component of a folder. RecipeError for another part than a decoder, and for options that are of models.

    `others` are these options' names, with what was given and what they are when nothing is.
    """
    from carrara.store import read_component

    found = read_component(folder)
    if found.role != "decoder":
        what = {"text": "text encoder"}.get(found.role, found.role)
        raise RecipeError(
            f"{folder} is a {what}, which makes no pictures by itself; put a model together with `carrara assemble`, "
            "or give a decoder"
        )
    for name, (given, usual) in others.items():
        if given != usual:
            raise RecipeError(f"--{name.replace('_', '-')} is of whole models, and {folder} is a decoder; leave it out")
    return found


@dataclass(frozen=True)
class Bench:
    """What was asked for, of all that a decoder is tried on."""

    data: Path
    count: int
    seed: int
    reference: Split
    extractor: str
    batch: int
    cache: Path | None

    def trial(self, component: Component, device: Any, voice: Voice) -> Trial:
        """The decoder beside the pictures. Raises as its parts do."""
        from carrara.data.cache import default_cache
        from carrara.evaluate.extractor import find_extractor
        from carrara.evaluate.model import prepared
        from carrara.evaluate.reconstruction import Trial
        from carrara.store import load_component

        decoder = load_component(component.path, "decoder").to(device)
        text = _text(component.path, getattr(decoder, "reads", None))
        _, height, width = decoder.pictures.shape
        settings = prepared(component.facts, decoder, self.data, (height, width))
        return Trial(
            path=component.path,
            decoder=decoder,
            facts=component.facts,
            text=None if text is None else text.to(device),
            pictures=opened(settings, self.cache, voice),
            split=self.reference,
            extractor=find_extractor(self.extractor, device),
            cache=self.cache or default_cache(),
            count=self.count,
            seed=self.seed,
            batch=self.batch,
        )


def _text(folder: Path, reads: object) -> Any:
    """The text encoder that a decoder reads, in its own folder or beside it; None for one that reads none."""
    from carrara.store import load_component

    if reads is None:
        return None
    for place in (folder / "text", folder.resolve().parent / "text"):
        if (place / "component.json").is_file():
            text = load_component(place, "text")
            if text.space == reads:
                return text
    raise RecipeError(
        f"{folder} was trained with a text encoder, which is not beside it; assemble a model of both, and give that "
        "model's `decoder` folder"
    )


def evaluate_decoder(trial: Trial, out: Path, voice: Voice, *, as_json: bool, card: bool) -> None:
    """Measures it, and writes report.html, report.json and the card."""
    from carrara.evaluate.card import card as new_card
    from carrara.evaluate.card_section import measured_section, write_section
    from carrara.evaluate.reconstruction_page import reconstruction_page, what_was_tried

    began = time.monotonic()
    found: Reconstruction = trial.measured(counted(voice))
    facts = {**found.facts, "seconds": time.monotonic() - began}
    if card:
        section = measured_section(facts, what_was_tried(facts))
        try:
            written = write_section(
                trial.path,
                section,
                lambda: new_card({"name": trial.path.resolve().name, "what": "A decoder of a Carrara system."}),
            )
            facts["card"] = str(written)
        except StorageError as error:
            voice.warn(f"the decoder's card is as it was: {error}")
    write_report(facts, reconstruction_page(found), out, what_was_tried(facts), voice, as_json=as_json)
