"""Which pictures are held out: by a hash of the content, so that the answer for one does not depend on the others."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from .folder import Row
from .settings import DataSettings

__all__ = ["groups", "held_out", "held_out_rows"]


def held_out_rows(rows: Sequence[Row], content: Sequence[str], settings: DataSettings) -> np.ndarray:
    """(N,) bool: which pictures are held out, by the folder's own split where it has one, else by content."""
    if any(row.split for row in rows):
        return np.array([row.split == "heldout" for row in rows])
    captioned = any(row.captions for row in rows)
    words = [(row.captions[0] if row.captions else "") if captioned else row.label for row in rows]
    return held_out(groups(content, words if settings.heldout_by == "caption" else None), settings.heldout)


def groups(content: Sequence[str], together: Sequence[str] | None = None) -> list[str]:
    """A key for each picture; pictures with one key must not be separated.

    Those are pictures of the same content and, when given, of the same word in `together` ("" joins nothing).
    """
    if together is None:
        return list(content)
    parent: dict[str, str] = {}

    def root(node: str) -> str:
        parent.setdefault(node, node)
        while parent[node] != node:
            parent[node] = parent[parent[node]]
            node = parent[node]
        return node

    for shown, word in zip(content, together, strict=True):
        a, b = root(f"content:{shown}"), root(f"word:{word}" if word else f"content:{shown}")
        parent[max(a, b)] = min(a, b)
    return [root(f"content:{shown}") for shown in content]


def held_out(keys: Sequence[str], share: float) -> np.ndarray:
    """(N,) bool: True where the key's hash, as a number in [0, 1), is below `share`.

    With a share above 0 and two keys or more, at least one is held out and at least one is not.
    """
    distinct = sorted(set(keys), key=_number)
    if share <= 0 or len(distinct) < 2:
        return np.zeros(len(keys), bool)
    chosen = {key for key in distinct if _number(key) < share} or {distinct[0]}
    if len(chosen) == len(distinct):
        chosen.discard(distinct[-1])
    return np.array([key in chosen for key in keys])


def _number(key: str) -> float:
    digest = hashlib.blake2b(f"heldout {key}".encode(errors="surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64
