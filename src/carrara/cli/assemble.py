"""`carrara assemble`: three components become a model folder."""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from carrara.cli.folders import require_writable
from carrara.cli.text import told_source, told_text
from carrara.cli.voice import Voice, command, mebibytes
from carrara.errors import RecipeError

if TYPE_CHECKING:
    from carrara.system import System

__all__ = ["assemble"]


def assemble(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The model folder to make.", show_default=False)],
    generator: Annotated[Path, typer.Option(metavar="FOLDER", help="The trained generator.", show_default=False)],
    text: Annotated[
        str | None,
        typer.Option(metavar="FOLDER", help="The text encoder it was trained with, if it has one; or pretrained:PATH."),
    ] = None,
    decoders: Annotated[
        list[Path] | None,
        typer.Option(
            "--decoder", metavar="FOLDER", help="The decoder of what it makes; several, its own first, make a cascade."
        ),
    ] = None,
    controls: Annotated[
        list[Path] | None,
        typer.Option("--control", metavar="FOLDER", help="A control that was trained for the generator."),
    ] = None,
) -> None:
    """Put three trained parts together into a model folder. Parts that do not fit are refused."""
    from carrara.store import assemble as put_together
    from carrara.text import Unconditional

    voice = Voice()
    require_writable(out)
    found = [_named("decoder", path, generator, voice) for path in decoders or ()]
    decoding = [path for path in found if path is not None]
    with _text(text, generator, voice) as folder:
        try:
            system = put_together(out, generator=generator, text=folder, decoder=decoding, controls=controls or ())
        except RecipeError as error:
            own = generator / "text"
            if folder is None or not (own / "component.json").is_file() or "text encoder" not in str(error):
                raise
            raise RecipeError(f"{error}; that is in {own}, so leave --text out") from error
    total = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    voice.say(f"{out} is a whole model ({mebibytes(total)}).")
    example = getattr(system.text, "names", () if isinstance(system.text, Unconditional) else ("a prompt",))[:1]
    voice.say("Next:  " + command("sample", out, *(example or ("--count", 4)), *_needed(system)))


def _needed(system: System) -> list[str]:
    """The options of `sample` that the model cannot go without."""
    from carrara.cli.inputs import input_options
    from carrara.conditions import missing

    return [word for one in missing(system.conditions, ()) for word in input_options(one)]


@contextlib.contextmanager
def _text(text: str | None, generator: Path, voice: Voice) -> Iterator[Path | None]:
    """The text encoder's folder; that of a pretrained one is made for as long as it is needed."""
    source = told_source(text) if text else None
    if text is None or source is None:
        yield _named("text", Path(text), generator, voice) if text else None
        return
    from carrara.store import read_component
    from carrara.store.transformers import read_text
    from carrara.train.tasks.pretrained import save_pretrained

    told = told_text(text)
    if isinstance(told, dict) and told.get("whiten"):
        raise RecipeError(
            "--text: whiten = true needs captions; training has whitened the encoder and kept it beside the generator"
        )
    reads = read_component(generator, "generator").config.get("reads")
    length = source.length or (reads["shape"][0] if reads and len(reads["shape"]) == 3 else None)
    encoder = read_text(dataclasses.replace(source, length=length, whiten=False))
    with tempfile.TemporaryDirectory(prefix="carrara-text-") as place:
        save_pretrained(Path(place), encoder)
        yield Path(place)


def _named(role: str, path: Path | None, generator: Path, voice: Voice) -> Path | None:
    """The part's folder; None, and a sentence, for one that is not there because the generator goes without it."""
    if path is None or path.exists() or not (generator / role / "component.json").is_file():
        return path
    voice.say(f"{path} is not there and not needed: {generator} was trained without it.")
    return None
