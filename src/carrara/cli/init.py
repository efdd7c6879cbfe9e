"""`carrara init`: commented recipes that suit a folder of pictures, with measured estimates of memory and time."""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from carrara.cli.folders import default_folder, require_writable
from carrara.cli.look import Look, look
from carrara.cli.text import is_folder, told_source, told_text
from carrara.cli.voice import Voice, command, duration, mebibytes
from carrara.errors import RecipeError, StorageError

if TYPE_CHECKING:
    from carrara.cli.plan import PartRecipe, Shape
    from carrara.data import DataSettings
    from carrara.data.folder import Listing
    from carrara.data.pictures import Pictures

__all__ = ["init"]

_FEW = 300  # steps below which a part has hardly begun to learn
_PIXELS = 64 * 64 * 16  # of a measured batch on a processor; time and memory of more rows are proportional


def init(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A folder of pictures.", show_default=False)],
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="For the recipes.  [default: carrara-<name of FOLDER>]")
    ] = None,
    size: Annotated[
        int | None,
        typer.Option(metavar="N", min=8, max=4096, help="Side of the pictures in pixels.  [default: what suits them]"),
    ] = None,
    text: Annotated[
        str | None,
        typer.Option(metavar="FOLDER", help="A text encoder that is trained already, or pretrained:PATH."),
    ] = None,
    minutes: Annotated[float, typer.Option(metavar="M", help="Time for training, all parts together.")] = 30.0,
    force: Annotated[bool, typer.Option("--force", help="Overwrite recipes that are there.")] = False,
) -> None:
    """Write commented recipes for a folder of pictures, each with an estimate of memory and time on this machine."""
    from carrara.cli.plan import check_size, recipes
    from carrara.store.atomic import storage_errors, write_file

    voice = Voice()
    if not 0 < minutes < 1e7:
        raise RecipeError(f"--minutes is {minutes}; give a time above 0")
    if size is not None:
        check_size(size)
    target = out or default_folder(folder)
    require_writable(target)
    found = look(folder, size=size)
    _say(found, size, voice)
    shape = found.shape
    if text and not shape.captions:
        raise RecipeError(f"--text is {text}, and the pictures of {folder} have no captions for it to read")
    parts = recipes(shape, target, minutes=minutes, text=_named(text) if text else None)
    if not force and (there := [str(part.path) for part in parts if part.path.exists()]):
        raise StorageError(f"{', '.join(there)} {'exist' if len(there) > 1 else 'exists'}; add --force to overwrite")
    parts = _measured(parts, shape, found.listing)
    with storage_errors(f"cannot write into {target}"):
        target.mkdir(parents=True, exist_ok=True)
    for part in parts:
        write_file(part.path, part.text().encode())
        voice.say(f"{part.path}: {part.estimate}")
    if hasty := [str(part.path) for part in parts if part.steps < _FEW]:
        voice.warn(f"too few steps to learn much in {', '.join(hasty)}; give more --minutes, or a smaller --size")
    for sentence in found.refusals:
        voice.warn(f"training will not begin as it is: {sentence}")
    voice.say("\nRead the recipes, then:\n")
    for line in _commands(parts, shape, target):
        voice.say(f"  {line}")


def _named(text: str) -> str | dict[str, Any]:
    """What the recipe says; refused now rather than by the training."""
    from carrara.store import read_component
    from carrara.store.transformers import find_folder

    source = told_source(text)
    if source:
        find_folder(source.path)
    else:
        read_component(Path(text), "text")
    return told_text(text)


def _commands(parts: list[PartRecipe], shape: Shape, target: Path) -> list[str]:
    task = parts[-1].table["task"]
    folders = {role: task[role] for role in ("text", "decoder") if is_folder(task[role])}
    named = [word for role, name in folders.items() for word in (f"--{role}", name)]
    return [
        command("data", "check", shape.folder, "--size", shape.size, "--out", target),
        *(command("train", part.path) for part in parts),
        command("assemble", "--generator", target / "generator", *named, target / "system"),
        command("sample", target / "system", *([shape.example] if shape.example else ["--count", 4])),
    ]


def _say(found: Look, size: int | None, voice: Voice) -> None:
    """What the folder holds, and what was chosen for it."""
    from carrara.data.findings import count
    from carrara.data.preparation import kind_words

    for sentence in found.findings.sentences():
        voice.say(sentence)
    shape, seen = found.shape, len(found.listing.rows)
    if len(found.kinds) > 1:
        each = ", ".join(f"{n} in {kind_words(kind)}" for kind, n in sorted(found.kinds.items(), key=lambda i: -i[1]))
        alike = kind_words((shape.channels, shape.convert["depth"]))
        voice.say(f"Of {count(seen, 'picture')} that were looked at, {each}; all will be {alike}.")
    chosen = "as asked" if size else f"which suits {seen} pictures that were looked at"
    voice.say(
        f"Pictures will be {shape.size} x {shape.size} pixels, {chosen}; the generator is told {_TOLD[shape.text]}."
    )


_TOLD = {"captions": "their captions", "labels": "the names of their class folders", "unconditional": "nothing"}


# --- measuring --------------------------------------------------------------------------------------------------------


class _Cost(NamedTuple):
    """What a step costs here."""

    seconds: float
    memory: float  # bytes, of the whole process
    precision: str
    device: str


def _measured(parts: list[PartRecipe], shape: Shape, listing: Listing) -> list[PartRecipe]:
    """The recipes with an estimate each, and with intervals that suit the steps that fit into their minutes."""
    from carrara.data import DataSettings
    from carrara.train.presets import intervals

    place = Path(tempfile.mkdtemp(prefix="carrara-init-"))
    try:
        settings = DataSettings(**parts[0].data())
        pictures = _pictures(listing, settings, place)
        found, text, decoder = [], None, None
        for part in parts:
            cost, task = _cost(part, pictures, text, decoder)
            text = task.module if part.role == "text" else text
            decoder = task.module if part.role == "decoder" else decoder
            steps = max(1, int(part.table["minutes"] * 60 / cost.seconds))
            train = {**part.table["train"], **intervals(steps, pictures=part.role != "text")}
            found.append(
                dataclasses.replace(
                    part, table={**part.table, "train": train}, estimate=_words(part, cost, steps), steps=steps
                )
            )
        return found
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _words(part: PartRecipe, cost: _Cost, steps: int) -> str:
    time = duration(part.table["minutes"] * 60)
    return (
        f"Estimate: {_few(steps)} steps of {cost.seconds:.2g} s in {time}, {mebibytes(cost.memory)} of memory "
        f"(measured here: {cost.device}, {cost.precision}, untrained)."
    )


def _few(number: int) -> str:
    """Two digits of it."""
    digits = 10 ** max(0, len(str(number)) - 2)
    return f"{number // digits * digits:,}"


def _pictures(listing: Listing, settings: DataSettings, place: Path) -> Pictures:
    from carrara.data.cache import open_cache
    from carrara.data.pictures import Pictures

    settings = dataclasses.replace(settings, heldout=0.0)
    return Pictures(settings, listing, open_cache(listing, settings, place))


def _cost(part: PartRecipe, pictures: Pictures, text: Any, decoder: Any) -> tuple[_Cost, Any]:
    """Times a few steps on the pictures that were looked at, with the other parts as they begin."""
    import torch

    from carrara.config import build
    from carrara.data import Loader
    from carrara.data.findings import count
    from carrara.decoder import Pixels
    from carrara.store import kinds
    from carrara.train.log import reset_peak_memory
    from carrara.train.preflight import measure_step_seconds
    from carrara.train.recipe import Recipe, choose_device
    from carrara.train.tasks.generator import text_encoder

    plain = {key: value for key, value in part.table.items() if key != "data"}
    recipe: Recipe = build(Recipe, {**plain, "data": {"folder": pictures.settings.folder}}, kinds())
    device = choose_device("auto")
    here, before = reset_peak_memory(device), _memory()
    if part.role == "generator":
        if text is None:
            text = text_encoder(part.table["task"]["text"], pictures, device)
        depth: Any = pictures.depth
        decoder = decoder or Pixels(channels=pictures.channels, size=pictures.size, depth=depth)
        task: Any = recipe.task.create_with(text, decoder, pictures, 0, device)  # type: ignore[attr-defined]
    else:
        task = recipe.task.create(pictures, 0, device)
    batch = recipe.train.batch
    height, width = pictures.size
    latent = part.role == "generator" and not isinstance(decoder, Pixels)
    few = max(1, min(batch, _PIXELS * (8 if latent else 1) // (height * width)))
    rows = few if device.type == "cpu" else batch
    training = dataclasses.replace(recipe.train, batch=rows)
    time = measure_step_seconds(
        task, Loader(pictures, rows, 0), training, device=device, repeats=2 if height * width <= 128**2 else 1
    )
    used = time.peak_memory_bytes
    if device.type == "cpu" and here:
        fixed = min(used - before, 8 * sum(p.nbytes for p in task.module.parameters()))  # weights, moments, copies
        used = int(before + fixed + (used - before - fixed) * batch / rows)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else count(torch.get_num_threads(), "thread")
    return _Cost(time.seconds * batch / rows, used, time.precision, name), task


def _memory() -> int:
    import psutil

    return int(psutil.Process().memory_info().rss)
