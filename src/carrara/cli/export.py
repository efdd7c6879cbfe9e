"""`carrara export`: a model in the layout of other programs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from carrara.cli.folders import require_writable
from carrara.cli.voice import Voice, mebibytes

__all__ = ["export"]


def export(
    model: Annotated[
        Path, typer.Argument(metavar="MODEL", help="A model folder that was imported.", show_default=False)
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The folder to write.", show_default=False)],
    variant: Annotated[
        str | None, typer.Option(metavar="NAME", help="For the names of the files of weights, such as fp16.")
    ] = None,
    shards: Annotated[
        float | None,
        typer.Option("--shard-gib", metavar="X", min=0.001, help="Weights in files of at most so many GiB."),
    ] = None,
) -> None:
    """Write an imported model as diffusers does, with the weights that it has now; the rest is as it came."""
    from carrara.store.diffusers.model import export_model

    voice = Voice()
    require_writable(out)
    export_model(model, out, variant=variant, shard_bytes=None if shards is None else int(shards * 2**30))
    total = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    voice.say(f"{out} is a pipeline of diffusers ({mebibytes(total)}).")
