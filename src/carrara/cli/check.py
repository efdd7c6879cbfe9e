"""`carrara data check`: every picture decoded and prepared as training would, and a report of it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from carrara.cli.folders import default_folder, require_writable
from carrara.cli.voice import Counter, Voice
from carrara.errors import DataError

if TYPE_CHECKING:
    from carrara.data import Report

__all__ = ["check"]


def check(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A folder of pictures.", show_default=False)],
    size: Annotated[int, typer.Option(metavar="N", min=1, max=65536, help="Side in pixels to prepare them at.")] = 64,
    channels: Annotated[
        int | None, typer.Option(metavar="N", min=1, max=256, help="Make them grey (1) or colour (3).")
    ] = None,
    depth: Annotated[int | None, typer.Option(metavar="N", help="Give them 8 or 16 bits a channel.")] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="For the report.  [default: carrara-<name of FOLDER>]")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Say what was found as JSON.")] = False,
) -> None:
    """Look at every picture of a folder as training would, and write check.html and check.json.

    Ends with exit code 3 where training would refuse the folder as it is.
    """
    import json

    from carrara.data import DataSettings
    from carrara.data import check as look
    from carrara.store.atomic import storage_errors, write_file
    from carrara.train.presets import text_table

    voice = Voice(silent=as_json)
    target = out or default_folder(folder)
    require_writable(target)
    settings = DataSettings(folder=str(folder), size=size, channels=channels, depth=depth)  # type: ignore[arg-type]
    with Counter(1, "pictures", silent=as_json) as counter:

        def progress(done: int, total: int) -> None:
            counter.total = total
            counter.at(done)

        # a word is at least one token, so what has more words than this is cut for certain
        limit = text_table(size=size, channels=channels or 3)["task"]["length"] - 2
        report = look(settings, limit=limit, recipe=_recipe, progress=progress)
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


def _recipe(report: Report) -> str:
    """The recipes that `carrara init` would write, without its measurements."""
    from carrara.cli.plan import Shape, recipes

    shape = Shape.of_report(report)
    texts = [recipe.text() for recipe in recipes(shape, default_folder(Path(shape.folder)), minutes=30.0)]
    return "\n\n".join(texts)
