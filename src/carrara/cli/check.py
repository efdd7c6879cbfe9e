"""`carrara data check`: every picture decoded and prepared as training would, and a report of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from carrara.cli.folders import default_folder, require_writable
from carrara.cli.text import told_source
from carrara.cli.voice import Counter, Voice
from carrara.errors import DataError, RecipeError

if TYPE_CHECKING:
    from carrara.cli.plan import PartRecipe

__all__ = ["check"]


def check(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A folder of pictures.", show_default=False)],
    size: Annotated[
        int | None,
        typer.Option(metavar="N", min=8, max=4096, help="Side to prepare them at, in pixels.  [default: as init]"),
    ] = None,
    channels: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, max=256, help="Make them grey (1) or colour (3).  [default: as init]"),
    ] = None,
    depth: Annotated[
        int | None, typer.Option(metavar="N", help="Give them 8 or 16 bits a channel.  [default: as init]")
    ] = None,
    text: Annotated[
        str | None,
        typer.Option(metavar="DIR", help="A text encoder, or pretrained:PATH, whose tokens captions are counted in."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="For the report.  [default: carrara-<name of FOLDER>]")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Say what was found as JSON.")] = False,
) -> None:
    """Look at every picture of a folder as training would, and write check.html and check.json.

    Pictures are prepared as `carrara init` would have it. Ends with exit code 3 where training would refuse the folder.
    """
    import json

    from carrara.cli.look import look
    from carrara.cli.plan import recipes
    from carrara.data import DataSettings
    from carrara.data import check as look_at_all
    from carrara.store.atomic import storage_errors, write_file

    voice = Voice(silent=as_json)
    target = out or default_folder(folder)
    require_writable(target)
    shape = look(folder, size=size, silent=as_json).shape
    parts = recipes(shape, default_folder(folder), minutes=30.0)
    asked = {name: value for name, value in (("channels", channels), ("depth", depth)) if value is not None}
    reading = _reader(text) if text else _presets(parts)
    with Counter(1, "pictures", silent=as_json) as counter:

        def progress(done: int, total: int) -> None:
            counter.total = total
            counter.at(done)

        report = look_at_all(
            DataSettings(**{**parts[0].data(), **asked}),
            **reading._asdict(),
            recipe="\n\n".join(part.text() for part in parts),
            progress=progress,
        )
    with storage_errors(f"cannot write into {target}"):
        target.mkdir(parents=True, exist_ok=True)
    write_file(target / "check.html", report.to_html().encode())
    facts = report.to_json()
    write_file(target / "check.json", (json.dumps(facts, indent=2, ensure_ascii=False) + "\n").encode())
    if as_json:
        voice.json({**facts, "report": target / "check.html"})
    for sentence in report.sentences()[len(report.refusals) :]:
        voice.say(sentence)
    voice.say(f"The report is {target / 'check.html'}")
    if report.refusals:
        raise DataError("\n".join(("this data cannot be trained on as it is:", *report.refusals)))


class _Reading(NamedTuple):
    """How captions are counted: in tokens or words, up to which limit, and a sentence that says so."""

    tokens: Callable[[str], int] | None
    limit: int | None
    note: str


def _presets(parts: Sequence[PartRecipe]) -> _Reading:
    """In words, since there is no encoder yet; a word is a token at least."""
    lengths = [part.table["task"]["length"] for part in parts if part.role == "text"]
    if not lengths:
        return _Reading(None, None, "")
    limit = lengths[0] - 2  # marks
    return _Reading(
        None,
        limit,
        f"Captions are counted in words, of one token or more each. The text encoder that `carrara init` would choose "
        f"for them reads {lengths[0]} tokens, two marks included: {limit} words at most. With --text, the tokens of a "
        "trained one are counted.",
    )


def _reader(folder: str) -> _Reading:
    """In the tokens of a trained text encoder, marks included."""
    from carrara.store import load_component
    from carrara.store.transformers import read_text
    from carrara.text import ContrastiveText, PretrainedText

    source = told_source(folder)
    encoder = read_text(source) if source else load_component(folder, "text")
    if not isinstance(encoder, ContrastiveText | PretrainedText):
        raise RecipeError(f"--text: {folder} reads no captions; name the folder of a trained text encoder that does")
    most = encoder.length * (encoder.convention.chunks if isinstance(encoder, PretrainedText) else 1)
    return _Reading(
        lambda caption: encoder.lengths([caption])[0],
        most,
        f"Captions are counted in tokens of {folder}, which reads {most}, two marks included.",
    )
