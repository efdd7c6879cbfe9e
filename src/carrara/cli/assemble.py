"""`carrara assemble`: three components become a model folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from carrara.cli.folders import require_writable
from carrara.cli.voice import Voice, command, mebibytes

__all__ = ["assemble"]


def assemble(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The model folder to make.", show_default=False)],
    generator: Annotated[Path, typer.Option(metavar="FOLDER", help="The trained generator.", show_default=False)],
    text: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="The text encoder it was trained with, if it has one.")
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

    voice = Voice()
    require_writable(out)
    text = _named("text", text, generator, voice)
    found = [_named("decoder", path, generator, voice) for path in decoders or ()]
    decoding = [path for path in found if path is not None]
    system = put_together(out, generator=generator, text=text, decoder=decoding, controls=controls or ())
    total = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    voice.say(f"{out} is a whole model ({mebibytes(total)}).")
    example = getattr(system.text, "names", ("a prompt",) if text else ())[:1]
    voice.say("Next:  " + command("sample", out, *(example or ("--count", 4))))


def _named(role: str, path: Path | None, generator: Path, voice: Voice) -> Path | None:
    """The part's folder; None, and a sentence, for one that is not there because the generator goes without it."""
    if path is None or path.exists() or not (generator / role / "component.json").is_file():
        return path
    voice.say(f"{path} is not there and not needed: {generator} was trained without it.")
    return None
