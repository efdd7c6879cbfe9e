"""The words that a text encoder has read, to say so when a prompt has none of them.

A byte-level tokenizer can spell any word, so that a word which no caption said gives a condition like any other, and
pictures that have nothing to do with it. Words are compared without case, in Unicode's NFKC. Scripts without blanks
are compared character by character, and symbols such as emoji are words of their own.
"""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple

from carrara.types import Asset

__all__ = ["Unknown", "known_words", "read_words", "unknown", "words"]

_MOST = 1 << 17  # of very many different words the most frequent are kept
_ALONE = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[{_ALONE}]|[^\W{_ALONE}]+")


class Unknown(NamedTuple):
    """A prompt of which no word is known: its number, and known words that are spelt like its own."""

    row: int
    near: tuple[str, ...]


def words(text: str) -> list[str]:
    """The words of a text, in order, in lower case; punctuation is none."""
    plain = unicodedata.normalize("NFKC", text).lower()
    return [*_WORD.findall(plain), *(c for c in plain if unicodedata.category(c) == "So")]


def known_words(captions: Iterable[str]) -> Asset:
    """Every word of the captions, sorted, one a line; of very many the most frequent."""
    counts = Counter(word for caption in captions for word in words(caption))
    kept = sorted(word for word, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:_MOST])
    return Asset("words.txt", "".join(f"{word}\n" for word in kept).encode())


def read_words(asset: Asset) -> frozenset[str]:
    """The words of a file that `known_words` made."""
    return frozenset(asset.data.decode().split())


def unknown(prompts: Sequence[str], known: Collection[str]) -> list[Unknown]:
    """The prompts that have words, none of which is known."""
    found = []
    for row, prompt in enumerate(prompts):
        said = words(prompt)
        if said and not any(word in known for word in said):
            near = [match for word in dict.fromkeys(said) for match in difflib.get_close_matches(word, known, 2, 0.7)]
            found.append(Unknown(row, tuple(dict.fromkeys(near))))
    return found
