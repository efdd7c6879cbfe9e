"""What a folder is like before anything is trained on it: `carrara data check FOLDER`.

Every picture is decoded and prepared exactly as training would, one after the other, and nothing is written. The report
says what was found, what would be refused and why, and what to set.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from typing import Any

import numpy as np

from ..errors import DataError
from .colour import composite
from .findings import Findings, Problem, count, examples, printable, refusals
from .folder import Listing, Row, list_folder
from .page import bars, cards, escape, figures, items, page, table
from .preparation import Kind, Prepared, kind_advice, kind_words, stream
from .settings import DataSettings
from .split import held_out_rows

__all__ = ["Report", "check"]

_SHEET = 24  # pictures on the contact sheet
_CELL = 256  # pixels of its largest picture
_SIDES = (32, 64, 128, 256, 512, 1024, 2048, 4096)
_ASPECTS = (0.5, 0.67, 0.8, 1.25, 1.5, 2.0)


@dataclass(frozen=True)
class Report:
    """The state of a folder; counts are of pictures unless a name says otherwise."""

    settings: DataSettings
    findings: Findings
    refusals: tuple[str, ...]  # why training would not begin; empty where it would
    formats: Mapping[str, int]
    modes: Mapping[str, int]  # as the files say it: RGB, P, L;16, ...
    kinds: Mapping[Kind, int]  # (channels, bits) before any conversion
    converted: tuple[str, ...]  # pictures of another kind than the settings make of them
    notes: Mapping[str, int]  # what decoding did: orientations, profiles, first frames
    duplicates: tuple[tuple[str, ...], ...]  # names that show exactly the same
    flat: tuple[str, ...]  # pictures that are one even colour once prepared
    sizes: np.ndarray  # (N, 2) int64: height and width
    train: int
    heldout: int
    lengths: tuple[int, ...]  # of every caption, in `unit`s
    unit: str  # "token" or "word"
    limit: int | None  # the longest caption that the text encoder reads
    note: str  # a sentence on what is counted, and where the limit comes from
    over: tuple[str, ...]  # pictures with a caption beyond the limit
    sheet: tuple[tuple[bytes, str, str], ...]  # (PNG, name, caption) after preprocessing
    recipe: str = ""  # one that suits the folder

    @property
    def ok(self) -> bool:
        """Whether training on this would begin."""
        return not self.refusals

    def sentences(self) -> tuple[str, ...]:
        """The report for a terminal: refusals first, then what was found."""
        done = (f"{count(number, 'picture')}: {note}." for note, number in sorted(self.notes.items()))
        return (*self.refusals, *self.findings.sentences(), *self._more(), *done)

    def _more(self) -> list[str]:
        said = [self.note] if self.note and self.lengths else []
        if self.converted:
            said.append(
                f"{count(len(self.converted), 'picture')} of another kind, converted: {examples(self.converted)}."
            )
        if self.duplicates:
            extra = sum(len(group) - 1 for group in self.duplicates)
            said.append(
                f"{count(extra, 'picture')} repeated exactly: {examples(' = '.join(g) for g in self.duplicates)}."
            )
        if self.flat:
            said.append(
                f"{count(len(self.flat), 'picture')} of one even colour once prepared, which the background may be to "
                f"blame for: {examples(self.flat)}."
            )
        if self.over:
            said.append(
                f"{count(len(self.over), 'picture')} with a caption over {self.limit} {self.unit}s, the rest of which "
                f"is cut off: {examples(self.over)}."
            )
        return said

    def to_json(self) -> dict[str, Any]:
        """Everything but the contact sheet, as plain JSON values."""
        return {
            "format_version": 1,
            "ok": self.ok,
            "settings": asdict(self.settings),
            "refusals": list(self.refusals),
            "findings": self.findings.to_json(),
            "formats": dict(self.formats),
            "modes": dict(self.modes),
            "kinds": [{"channels": c, "bits": b, "pictures": n} for (c, b), n in self.kinds.items()],
            "converted": list(self.converted),
            "notes": dict(self.notes),
            "duplicates": [list(group) for group in self.duplicates],
            "flat": list(self.flat),
            "sizes": {"short_side": self._short_sides(), "aspect": self._aspects(), **self._extremes()},
            "split": {"train": self.train, "heldout": self.heldout},
            "captions": {
                "unit": self.unit,
                "limit": self.limit,
                "note": self.note,
                "count": len(self.lengths),
                "lengths": self._lengths(),
                "longest": max(self.lengths, default=0),
                "over": list(self.over),
            },
            "recipe": self.recipe,
        }

    def to_html(self) -> str:
        """A page that stands alone; names and captions in it are only ever text."""
        f = self.findings
        verdict = "".join(f'<p class="bad" dir="auto">{escape(text)}</p>' for text in self.refusals)
        verdict = verdict or '<p class="good">Training can begin on this data.</p>'
        sections = [("Verdict", verdict + self._cards()), ("What was found", items((*f.sentences(), *self._more())))]
        if self.sheet:
            height, width = self.settings.shape
            sections.append((f"What training sees, at {width} x {height}", figures(self.sheet)))
        sections.append(("Pictures", self._charts()))
        if self.lengths:
            sections.append(
                ("Captions", bars(f"Length in {self.unit}s, of {len(self.lengths)} captions", self._lengths()))
            )
        if f.problems:
            sections.append(("Skipped", table(("picture", "reason"), f.problems)))
        if self.duplicates:
            sections.append(
                ("Exact duplicates", table(("the same picture",), [(", ".join(g),) for g in self.duplicates]))
            )
        if self.recipe:
            sections.append(("Suggested settings", f"<pre><code>{_lines(self.recipe)}</code></pre>"))
        return page(f"Data check: {f.folder}", f"{count(f.pictures, 'picture')} that can be used", sections)

    def _cards(self) -> str:
        values: dict[str, object] = {"pictures": self.findings.pictures, "for training": self.train}
        values |= {"held out": self.heldout, "with a caption": self.findings.captioned}
        values |= {"skipped": len(self.findings.problems), "repeated": sum(len(g) - 1 for g in self.duplicates)}
        return cards(values)

    def _charts(self) -> str:
        kinds = {kind_words(kind): number for kind, number in self.kinds.items()}
        said = bars("Shorter side in pixels", self._short_sides()) + bars("Width / height", self._aspects())
        said += bars("File format", self.formats) + bars("Stored as", self.modes) + bars("Channels and depth", kinds)
        said = f'<div class="charts">{said}</div>'
        return said + (table(("what was done", "pictures"), sorted(self.notes.items())) if self.notes else "")

    def _short_sides(self) -> dict[str, int]:
        names = [f"below {_SIDES[0]}", *(f"{a} to {b - 1}" for a, b in pairwise(_SIDES))]
        return _histogram(self.sizes.min(axis=1), _SIDES, [*names, f"{_SIDES[-1]} and more"])

    def _aspects(self) -> dict[str, int]:
        names = [f"{a:g} to {b:g}" for a, b in pairwise(_ASPECTS)]
        ratio = self.sizes[:, 1] / self.sizes[:, 0]
        return _histogram(ratio, _ASPECTS, [f"below {_ASPECTS[0]:g}", *names, f"{_ASPECTS[-1]:g} and more"])

    def _extremes(self) -> dict[str, list[int]]:
        areas = self.sizes.prod(axis=1)
        small, large = self.sizes[int(areas.argmin())], self.sizes[int(areas.argmax())]
        return {"smallest": [int(v) for v in small], "largest": [int(v) for v in large]}

    def _lengths(self) -> dict[str, int]:
        if not self.lengths:
            return {}
        step = next(s for s in (1, 2, 5, 10, 20, 50, 100, 200, 500, 10**9) if max(self.lengths) / s < 16)
        edges = list(range(step, max(self.lengths) + step, step))
        names = [str(e - step) if step == 1 else f"{e - step} to {e - 1}" for e in [*edges, edges[-1] + step]]
        return _histogram(np.array(self.lengths), edges, names)


def check(
    settings: DataSettings,
    *,
    tokens: Callable[[str], int] | None = None,
    limit: int | None = None,
    note: str = "",
    recipe: str = "",
    progress: Callable[[int, int], None] | None = None,
) -> Report:
    """Look at every picture of `settings.folder` as training would; nothing is written.

    Caption lengths are `tokens(caption)`, or words without it; `limit` is the longest the text encoder reads, and
    `note` a sentence that says so. `recipe` is shown as a suggestion. Raises DataError where there is nothing to look
    at, StorageError where the folder cannot be read.
    """
    listing = list_folder(settings)
    seen = _look(listing, settings, progress)
    if not seen.rows:
        raise DataError(
            f"none of the {count(len(listing.rows), 'picture')} in {listing.findings.folder} could be read: "
            + examples(f"{p.name} ({p.reason})" for p in seen.problems)
        )
    findings = _found(listing, seen)
    held = held_out_rows(seen.rows, seen.content, settings)
    lengths, over = _lengths_of(seen.rows, tokens, limit)
    return Report(
        settings=settings,
        findings=findings,
        refusals=(*_mixed(seen), *refusals(findings, settings)),
        formats=dict(seen.formats.most_common()),
        modes=dict(seen.modes.most_common()),
        kinds=dict(seen.kinds.most_common()),
        converted=tuple(seen.converted),
        notes=dict(seen.notes),
        duplicates=tuple(tuple(names) for names in seen.same.values() if len(names) > 1),
        flat=tuple(seen.flat),
        sizes=np.asarray(seen.sizes, np.int64).reshape(-1, 2),
        train=int((~held).sum()),
        heldout=int(held.sum()),
        lengths=lengths,
        unit="token" if tokens else "word",
        limit=limit,
        note=note,
        over=over,
        sheet=tuple(seen.sheet),
        recipe=recipe,
    )


@dataclass
class _Examples:
    """How many there are, and the first few."""

    number: int = 0
    names: list[str] = field(default_factory=list)

    def add(self, name: str) -> None:
        self.number += 1
        if len(self.names) < 3:
            self.names.append(name)


@dataclass
class _Seen:
    """What is gathered while the pictures go by."""

    rows: list[Row] = field(default_factory=list)
    content: list[str] = field(default_factory=list)
    sizes: list[tuple[int, int]] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    upscaled: list[str] = field(default_factory=list)
    converted: list[str] = field(default_factory=list)
    flat: list[str] = field(default_factory=list)
    formats: Counter[str] = field(default_factory=Counter)
    modes: Counter[str] = field(default_factory=Counter)
    kinds: Counter[Kind] = field(default_factory=Counter)
    stored: dict[Kind, _Examples] = field(default_factory=dict)  # after the conversions that the settings ask for
    notes: Counter[str] = field(default_factory=Counter)
    same: dict[str, list[str]] = field(default_factory=dict)
    sheet: list[tuple[bytes, str, str]] = field(default_factory=list)


def _look(listing: Listing, settings: DataSettings, progress: Callable[[int, int], None] | None) -> _Seen:
    seen, total = _Seen(), len(listing.rows)
    shown = set(np.linspace(0, total - 1, min(total, _SHEET)).astype(int).tolist())
    for number, one in stream(listing, settings):
        if isinstance(one, Problem):
            seen.problems.append(one)
        else:
            _note(seen, listing.rows[number], one)
            if number in shown:
                said = listing.rows[number].captions
                seen.sheet.append(
                    (_thumbnail(one.pixels, settings), listing.rows[number].name, said[0] if said else "")
                )
        if progress is not None:
            progress(number + 1, total)
    return seen


def _note(seen: _Seen, row: Row, one: Prepared) -> None:
    seen.rows.append(row)
    seen.content.append(one.content)
    seen.sizes.append(one.size)
    seen.formats[one.format] += 1
    seen.modes[one.mode] += 1
    seen.kinds[one.natural] += 1
    seen.notes.update(one.notes)
    seen.same.setdefault(one.content, []).append(row.name)
    if one.upscaled:
        seen.upscaled.append(row.name)
    kind = (one.pixels.shape[2], 8 * one.pixels.dtype.itemsize)
    seen.stored.setdefault(kind, _Examples()).add(row.name)
    if kind != one.natural:
        seen.converted.append(row.name)
    if (one.pixels == one.pixels[:1, :1]).all():
        seen.flat.append(row.name)


def _found(listing: Listing, seen: _Seen) -> Findings:
    kept = {row.name for row in seen.rows}
    found = listing.findings
    sources = Counter(row.source for row in seen.rows if row.captions)
    return replace(
        found,
        pictures=len(seen.rows),
        captions={source: sources[source] for source in found.captions if sources[source]},
        problems=(*found.problems, *seen.problems),
        uncaptioned=tuple(name for name in found.uncaptioned if name in kept),
        unlisted=tuple(name for name in found.unlisted if name in kept),
        upscaled=tuple(seen.upscaled),
    )


def _mixed(seen: _Seen) -> tuple[str, ...]:
    """Why the pictures do not go together, if they do not."""
    if len(seen.stored) < 2:
        return ()
    kinds = sorted(seen.stored, key=lambda kind: -seen.stored[kind].number)
    parts = []
    for kind in kinds:
        some = seen.stored[kind]
        names = ", ".join(map(printable, some.names))
        parts.append(f"{count(some.number, 'picture')} in {kind_words(kind)} (such as {names})")
    return (f"The folder mixes {', '.join(parts)}; {kind_advice(kinds[0], kinds[1])}.",)


def _lengths_of(
    rows: Sequence[Row], tokens: Callable[[str], int] | None, limit: int | None
) -> tuple[tuple[int, ...], tuple[str, ...]]:
    measure = tokens or (lambda said: len(said.split()))
    lengths, over = [], []
    for row in rows:
        mine = [measure(said) for said in row.captions]
        lengths.extend(mine)
        if limit is not None and mine and max(mine) > limit:
            over.append(row.name)
    return tuple(lengths), tuple(over)


def _thumbnail(pixels: np.ndarray, settings: DataSettings) -> bytes:
    """A PNG of 8 bits in grey or colour, whatever the channels are, at most 256 pixels wide or high."""
    from PIL import Image

    if pixels.dtype == np.uint16:
        pixels = (pixels >> 8).astype(np.uint8)
    if pixels.shape[2] == 4:
        pixels = composite(pixels, settings.colour)
    shown = pixels[..., 0] if pixels.shape[2] < 3 else np.ascontiguousarray(pixels[..., :3])
    image = Image.fromarray(shown)
    image.thumbnail((_CELL, _CELL), Image.Resampling.LANCZOS)
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


def _histogram(values: np.ndarray, edges: Sequence[float], names: Sequence[str]) -> dict[str, int]:
    counts = np.bincount(np.searchsorted(np.asarray(edges), values, side="right"), minlength=len(names))
    return {name: int(number) for name, number in zip(names, counts, strict=True)}


def _lines(text: str) -> str:
    return "\n".join(escape(line) for line in text.split("\n"))
