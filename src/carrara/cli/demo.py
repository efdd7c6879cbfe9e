"""`carrara demo`: the three parts trained on real pictures, sampled and measured, with a report."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Annotated

import typer

from carrara.cli.folders import require_writable
from carrara.cli.voice import Voice
from carrara.errors import RecipeError

__all__ = ["demo"]


def demo(
    minutes: Annotated[float, typer.Option(metavar="M", help="Time for all of it, on this machine.")] = 8.0,
    out: Annotated[Path, typer.Option(metavar="DIR", help="The folder for everything it makes.")] = Path("runs/demo"),
    seed: Annotated[int, typer.Option(metavar="N", min=0, help="Of every draw.")] = 0,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress.")] = False,
) -> None:
    """Train a text encoder, a decoder and a generator on 450 small pictures, sample them, and write a report.

    The same command goes on where an interrupted one was, and leaves a finished one as it is.
    """
    began = time.monotonic()  # what loads PyTorch is a part of the minutes
    from carrara.demo.pipeline import demo as run

    if not math.isfinite(minutes):
        raise RecipeError(f"--minutes is {minutes}; give a number, such as 8")
    require_writable(out)
    run(minutes, out, seed, Voice(silent=quiet).say, progress=not quiet, began=began)
