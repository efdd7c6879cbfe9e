"""The first look at a folder of pictures, from which `carrara init` and `carrara data check` decide alike."""

from __future__ import annotations

import dataclasses
from collections import Counter as Tally
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from carrara.cli.plan import Shape
from carrara.cli.voice import Counter
from carrara.errors import DataError

if TYPE_CHECKING:
    from carrara.data.findings import Findings
    from carrara.data.folder import Listing
    from carrara.data.preparation import Kind, Prepared

__all__ = ["Look", "look"]

_LOOKED_AT = 128  # pictures that are decoded


class Look(NamedTuple):
    """What was found of a folder, and what follows from it."""

    shape: Shape
    findings: Findings
    refusals: tuple[str, ...]  # why training would not begin
    listing: Listing  # the pictures that were decoded
    kinds: dict[Kind, int]  # (channels, bits) of these


def look(folder: Path, *, size: int | None = None, silent: bool = False) -> Look:
    """Lists the folder, decodes up to 128 of its pictures, and chooses how all are to be prepared.

    Raises DataError where there is no picture that can be read.
    """
    from carrara.data import DataSettings
    from carrara.data.findings import Problem, count, examples, refusals
    from carrara.data.folder import list_folder
    from carrara.data.preparation import stream
    from carrara.train.presets import usual_size

    settings = DataSettings(folder=str(folder), size=size or 64)
    listing = list_folder(settings)
    some = _some(listing)
    seen: dict[int, Prepared] = {}
    broken: list[Problem] = []
    with Counter(len(some.rows), "pictures", silent=silent) as counter:
        for number, one in stream(some, settings):
            if isinstance(one, Problem):
                broken.append(one)
            else:
                seen[number] = one
            counter.at(number + 1)
    if not seen:
        raise DataError(
            f"none of the {count(len(some.rows), 'picture')} of {folder} that were looked at could be read: "
            + examples(f"{problem.name} ({problem.reason})" for problem in broken)
        )
    findings = dataclasses.replace(
        listing.findings,
        pictures=listing.findings.pictures - len(broken),
        problems=(*listing.findings.problems, *broken),
    )
    unread = {problem.name for problem in broken}
    refused = refusals(findings, settings)
    kinds = dict(Tally(one.natural for one in seen.values()))
    shape = Shape.of(
        findings,
        folder=str(folder),
        size=size or usual_size([min(one.size) for one in seen.values()]),
        kinds=kinds,
        said=tuple(caption for row in listing.rows if row.name not in unread for caption in row.captions),
        allowances=_allowances(findings, refused),
    )
    decoded = dataclasses.replace(some, rows=tuple(some.rows[number] for number in seen))
    return Look(shape, findings, refused, decoded, kinds)


def _some(listing: Listing) -> Listing:
    """Up to 128 of the pictures, evenly."""
    n = len(listing.rows)
    chosen = sorted({i * n // min(n, _LOOKED_AT) for i in range(min(n, _LOOKED_AT))})
    return dataclasses.replace(listing, rows=tuple(listing.rows[i] for i in chosen))


def _allowances(findings: Findings, refused: tuple[str, ...]) -> dict[str, str]:
    """The settings that a refusal asks for, as lines that are commented out."""
    found = {}
    for name, value, why in (
        (
            "allow_uncaptioned",
            "true",
            f"{len(findings.uncaptioned)} pictures have no caption; train on them all the same",
        ),
        ("allow_missing", "true", f"{len(findings.missing)} rows of metadata have no picture; go on without"),
        ("allow_broken", "1.0", f"{len(findings.problems)} pictures cannot be read; go on without"),
    ):
        if any(name in sentence for sentence in refused):
            found[name] = f"{value}  # {why}"
    return found
