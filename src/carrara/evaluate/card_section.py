"""What was measured, in a model's card: README.md of the model folder, between two marks; all else is left as it is."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from carrara.errors import StorageError
from carrara.evaluate.card import card, plain, table
from carrara.evaluate.measure_page import what_was_measured
from carrara.evaluate.model import Model
from carrara.evaluate.words import ordered, value_words, word
from carrara.store.atomic import write_file

__all__ = ["measured_section", "write_into_card", "write_section"]

_BEGIN, _END = "<!-- measured: begin -->", "<!-- measured: end -->"
_BETWEEN = re.compile(re.escape(_BEGIN) + r".*?" + re.escape(_END), re.DOTALL)


def measured_section(facts: Mapping[str, Any], told: str) -> str:
    """The section, marks included; `told` says what was measured."""
    extractor = facts["extractor"]["name"]
    rows = {word(name, extractor).label: value_words(name, facts) for name in ordered(list(facts["figures"]))}
    body = table(("figure", "value"), rows)
    return f"{_BEGIN}\n## Measured\n\n{plain(told)}\n\n{body}\n{_END}"


def write_into_card(model: Model, facts: Mapping[str, Any]) -> Path:
    """Writes or replaces the section in the model's card, which is made where there is none. Raises StorageError."""
    return write_section(model.path, measured_section(facts, what_was_measured(facts)), lambda: _new(model))


def write_section(folder: Path, section: str, new: Callable[[], str]) -> Path:
    """Writes or replaces the section in a folder's README.md; `new` makes one. Raises StorageError."""
    path = folder / "README.md"
    try:
        text = path.read_text(encoding="utf-8") if path.exists() else new()
    except (OSError, UnicodeDecodeError) as error:
        raise StorageError(f"{path} cannot be read: {error}") from error
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
