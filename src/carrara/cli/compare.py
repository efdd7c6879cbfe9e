"""`carrara compare`: several models by one measure, one table."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from carrara.cli.folders import require_writable
from carrara.cli.measuring import (
    Batch,
    Bits,
    Cache,
    Clip,
    Count,
    Data,
    Device,
    ExtractorName,
    Json,
    Judge,
    PerPrompt,
    Reference,
    Repeats,
    Ruler,
    Seed,
    counted,
)
from carrara.cli.voice import Voice, duration
from carrara.errors import RecipeError

if TYPE_CHECKING:
    from carrara.evaluate.model import Model

__all__ = ["compare"]


def compare(
    models: Annotated[
        list[str], typer.Argument(metavar="[NAME=]MODEL ...", help="Model folders, two or more.", show_default=False)
    ],
    data: Data,
    n: Count = 1000,
    repeats: Repeats = 1,
    seed: Seed = 0,
    reference: Reference = "train",
    extractor: ExtractorName = "efficientnet-lite0",
    judge: Judge = None,
    clip: Clip = None,
    per_prompt: PerPrompt = 4,
    bits: Bits = 256,
    out: Annotated[Path, typer.Option(metavar="DIR", help="For samples, a folder a model, and report.")] = Path(
        "comparison"
    ),
    batch: Batch = 32,
    device: Device = "auto",
    cache: Cache = None,
    as_json: Json = False,
) -> None:
    """Measure models side by side: the same prompts, seeds, reference and network for all, one table and charts.

    Each makes its pictures with its own settings; what `carrara evaluate --out DIR/NAME` has made is taken over.
    """
    from carrara.evaluate.comparison import comparison_facts, comparison_page
    from carrara.evaluate.measure import measure
    from carrara.evaluate.samples import Making
    from carrara.store.atomic import write_json
    from carrara.train.recipe import choose_device

    voice = Voice(silent=as_json)
    require_writable(out)
    where = choose_device(device)
    opened = _open(models, voice)
    ruler = Ruler(data, n, repeats, seed, reference, extractor, judge, clip, per_prompt, bits, batch, cache)
    yard = ruler.yardstick(opened, where, voice)
    began, found = time.monotonic(), []
    for model in opened:
        voice.say(f"{model.name}:")
        model.to(where)
        found.append(measure(model, yard, out / model.name, making=Making(batch=batch), say=counted(voice)))
    facts: dict[str, Any] = {
        **comparison_facts(found),
        "device": str(where),
        "seconds": time.monotonic() - began,
        "warnings": voice.warnings,
        "report": str(out / "report.html"),
    }
    write_json(out / "report.json", facts)
    comparison_page(found, voice.warnings).write(out / "report.html")
    if as_json:
        voice.json(facts)
        return
    _tell(found, facts, voice)


def _open(given: Sequence[str], voice: Voice) -> list[Model]:
    """The models with names that differ."""
    from carrara.evaluate.model import open_model

    if len(given) < 2:
        raise RecipeError("give two models or more; one alone is measured by `carrara evaluate`")
    opened = []
    for one in given:
        name, equals, path = one.partition("=")
        named = bool(equals) and "/" not in name and not Path(one).exists()
        opened.append(open_model(Path(path), name) if named else open_model(Path(one)))
    names = [model.name for model in opened]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise RecipeError(f"two models are called {twice[0]}; name them, as in  first={given[0]} second={given[1]}")
    if wrong := [name for name in names if "/" in name or name in ("", ".", "..")]:
        raise RecipeError(f'a model is called "{wrong[0]}"; give names that can be folders')
    if len(sizes := sorted({model.size for model in opened})) > 1:
        said = " and ".join(f"{height} x {width}" for height, width in sizes)
        voice.warn(f"the models make pictures of {said} pixels; all are measured at the smallest size")
    return opened


def _tell(found: Sequence[Any], facts: dict[str, Any], voice: Voice) -> None:
    from carrara.evaluate.comparison import comparison_table
    from carrara.evaluate.measure_page import what_was_measured

    header, rows = comparison_table(found)
    voice.say(what_was_measured(found[0].facts))
    for row in rows:
        voice.say()
        voice.say(row[0])
        width = max(map(len, header))
        for name, value in zip(header[1:], row[1:], strict=True):
            voice.say(f"  {name:<{width}}  {value}")
    voice.say()
    voice.say(f"{duration(facts['seconds'])}; the report is {facts['report']}")
