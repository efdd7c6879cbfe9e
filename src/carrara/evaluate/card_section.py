"""What was measured, in a model's card: README.md of the model folder, between two marks; all else is left as it is."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from carrara.errors import StorageError
from carrara.evaluate.card import card, plain, table
from carrara.evaluate.measure_page import what_was_measured
from carrara.evaluate.model import Model
from carrara.evaluate.words import ordered, value_words, word
from carrara.store.atomic import write_file

__all__ = ["measured_section", "write_into_card"]

_BEGIN, _END = "<!-- measured: begin -->", "<!-- measured: end -->"
_BETWEEN = re.compile(re.escape(_BEGIN) + r".*?" + re.escape(_END), re.DOTALL)


def measured_section(facts: Mapping[str, Any]) -> str:
    """The section, marks included."""
    extractor = facts["extractor"]["name"]
    rows = {word(name, extractor).label: value_words(name, facts) for name in ordered(list(facts["figures"]))}
    body = table(("figure", "value"), rows)
    return f"{_BEGIN}\n## Measured\n\n{plain(what_was_measured(facts))}\n\n{body}\n{_END}"


def write_into_card(model: Model, facts: Mapping[str, Any]) -> Path:
    """Writes or replaces the section in the model's card, which is made where there is none. Raises StorageError."""
    path = model.path / "README.md"
    try:
        text = path.read_text(encoding="utf-8") if path.exists() else _new(model)
    except (OSError, UnicodeDecodeError) as error:
        raise StorageError(f"{path} cannot be read: {error}") from error
    section = measured_section(facts)
    if _BETWEEN.search(text):
        text = _BETWEEN.sub(lambda _: section, text, count=1)
    else:
        text = f"{text.rstrip()}\n\n{section}\n"
    write_file(path, text.encode())
    return path


def _new(model: Model) -> str:
    known = {k: v for k, v in model.facts.items() if k in ("trained_on", "license", "attribution")}
    return card({"name": model.name, "what": "A Carrara system: text encoder, generator, decoder.", **known,
                 "load": model.path.name})  # fmt: skip
