"""What was found in a folder, what was made of it and what was left out, in values and in sentences.

Nothing is dropped silently: whatever does not reach training is counted and named here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from .settings import DataSettings

__all__ = ["Findings", "Problem", "count", "examples", "printable", "refusals"]


class Problem(NamedTuple):
    """A picture that could not be used, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class Findings:
    """What a folder holds and what was decided about it."""

    folder: str
    pictures: int  # usable pictures
    named: int = 0  # rows of metadata, with and without a picture
    captions: Mapping[str, int] = field(default_factory=dict)  # source -> pictures whose captions come from it
    classes: tuple[str, ...] = ()
    problems: tuple[Problem, ...] = ()  # skipped pictures
    uncaptioned: tuple[str, ...] = ()  # pictures without a caption while others have one
    unlisted: tuple[str, ...] = ()  # pictures that the metadata does not name
    missing: tuple[str, ...] = ()  # metadata rows whose picture is not there
    upscaled: tuple[str, ...] = ()  # pictures smaller than the size asked for
    ignored: tuple[str, ...] = ()  # files that are no pictures
    decisions: tuple[str, ...] = ()  # sentences on what was chosen, in order

    @property
    def captioned(self) -> int:
        """How many pictures have a caption."""
        return sum(self.captions.values())

    def sentences(self) -> tuple[str, ...]:
        """The findings for people, most important first."""
        said = [f"{count(self.pictures, 'picture')} in {self.folder}."]
        for source, number in self.captions.items():
            said.append(f"Captions of {count(number, 'picture')} come from {SOURCE_WORDS.get(source, source)}.")
        if not self.captioned:
            said.append("No captions were found: this data can train a generator without prompts.")
        if self.classes:
            said.append(f"{count(len(self.classes), 'class', 'classes')}: {examples(self.classes)}.")
        said.extend(self.decisions)
        for names, words in (
            ([f"{p.name} ({p.reason})" for p in self.problems], "skipped"),
            (self.uncaptioned, "without a caption"),
            (self.unlisted, "not named by the metadata"),
        ):
            if names:
                said.append(f"{count(len(names), 'picture')} {words}: {examples(names)}.")
        if self.missing:
            said.append(f"{count(len(self.missing), 'metadata row')} without a picture: {examples(self.missing)}.")
        if self.upscaled:
            said.append(
                f"{count(len(self.upscaled), 'picture')} smaller than asked for, enlarged: {examples(self.upscaled)}."
            )
        if self.ignored:
            said.append(f"{count(len(self.ignored), 'other file')} left alone: {examples(self.ignored)}.")
        return tuple(said)

    def to_json(self) -> dict[str, object]:
        """The findings as plain JSON values."""
        return {
            "folder": self.folder,
            "pictures": self.pictures,
            "named": self.named,
            "captions": dict(self.captions),
            "classes": list(self.classes),
            "problems": [problem._asdict() for problem in self.problems],
            **{
                name: list(getattr(self, name))
                for name in ("uncaptioned", "unlisted", "missing", "upscaled", "ignored", "decisions")
            },
            "sentences": list(self.sentences()),
        }


_TOLERATED = 0.01  # share of uncaptioned pictures, or of metadata rows without a picture, that is only reported


def refusals(findings: Findings, settings: DataSettings) -> tuple[str, ...]:
    """Why training on this must not begin: too many gaps of a kind that nobody has allowed; empty where it may."""
    said = []
    missing, bare, problems = findings.missing, findings.uncaptioned, findings.problems
    if len(missing) > _TOLERATED * findings.named and not settings.allow_missing:
        said.append(
            f"{len(missing)} of {count(findings.named, 'metadata row')} name a picture that is not there: "
            f"{examples(missing)}. Paths are relative to the metadata file's own folder; "
            "mend them, or set allow_missing = true."
        )
    if len(bare) > _TOLERATED * findings.pictures and not settings.allow_uncaptioned:
        where = f" ({len(findings.unlisted)} are not named by the metadata)" if findings.unlisted else ""
        said.append(
            f"{len(bare)} of {count(findings.pictures, 'picture')} have no caption while others do{where}: "
            f"{examples(bare)}. Caption them, or set allow_uncaptioned = true to train on them without."
        )
    offered = findings.pictures + len(problems)
    if len(problems) > settings.allow_broken * offered:
        said.append(
            f"{len(problems)} of {count(offered, 'picture')} cannot be used: "
            + examples(f"{p.name} ({p.reason})" for p in problems)
            + f". Mend or remove them, or raise allow_broken above {settings.allow_broken:g}."
        )
    return tuple(said)


SOURCE_WORDS = {
    "metadata": "metadata",
    "caption": ".caption files",
    "txt": ".txt files",
    "class": "class folders",
    "name": "file names",
}


def count(number: int, thing: str, things: str | None = None) -> str:
    """`number` and the right form of the noun."""
    return f"{number} {thing if number == 1 else things or thing + 's'}"


def examples(names: Iterable[str] | Sequence[str], most: int = 5) -> str:
    """The first names and how many more there are."""
    listed = list(names)
    shown = ", ".join(printable(name) for name in listed[:most])
    return f"{shown} and {len(listed) - most} more" if len(listed) > most else shown


def printable(text: str, most: int = 200) -> str:
    """Text from a file or a name, safe to print: control characters escaped, surrogates replaced, length limited."""
    clean = "".join(c if c.isprintable() else c.encode("unicode_escape", "replace").decode() for c in text[:most])
    return clean + "..." if len(text) > most else clean
