"""The demo from end to end, within a budget of minutes; run again after an interruption, it goes on where it was.

    twemoji/   the pictures, written out as a folder like any user's
    text/ decoder/ generator/    a run folder each, which becomes the component
    system/    the model folder
    report.html, report.json
    demo.json  the seconds so far, and what a finished demo was made of

Each part has a time by which it should be done, counted from the beginning, so that what one leaves or overruns is the
next one's. A few steps are timed, and the number of them that fits until then is fixed in the part's recipe.toml.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from carrara import __version__
from carrara.config import build, describe
from carrara.data import DataSettings
from carrara.demo.clock import Clock
from carrara.demo.twemoji import ATTRIBUTION, LICENSE, emojis, write_pictures
from carrara.errors import RecipeError, StorageError
from carrara.store import assemble, kinds
from carrara.store.atomic import storage_errors
from carrara.train.log import Event, read_log
from carrara.train.loop import Outcome
from carrara.train.presets import decoder_table, generator_table, text_table
from carrara.train.recipe import Recipe, Run

__all__ = ["Part", "demo"]

SIZE = 64
DATA = "twemoji"
_PARTS = ("text", "decoder", "generator")  # in the order of their training
_SHARES = {"text": 0.15, "decoder": 0.34}  # of the budget; the generator has what is left
_REPORT = 13.0  # seconds that sampling and measuring need
_ENDING = {"text": 1.0, "decoder": 1.0, "generator": 3.0}  # seconds for the last figures, pictures and files
_STEPS = 0.96  # of a part's time is spent in steps, the rest on figures, pictures and checkpoints on the way


class Part(NamedTuple):
    """A part that has been trained: its recipe, and how that went."""

    recipe: Recipe
    outcome: Outcome


def demo(
    minutes: float,
    out: Path,
    seed: int,
    say: Callable[[str], None],
    *,
    progress: bool = True,
    began: float | None = None,
) -> Path:
    """Runs the demo, or goes on with it; returns the path of report.html. A finished one is left as it is.

    `began` (time.monotonic) is when its time began to count, where that was before this call.
    Raises CarraraError for missing packages, RecipeError for a folder of another demo, StorageError for one of other
    files, and whatever training raises.
    """
    if not minutes >= 0.5:
        raise RecipeError(f"minutes is {minutes:g}; the demo's three parts need at least 0.5 minutes together")
    _require_own(out)
    clock = Clock(out / "demo.json", minutes, seed, began=time.monotonic() if began is None else began)
    again = bool(clock.finished)
    if again and clock.finished == _made_of(out, clock):
        report = out / "report.html"
        say(f"This demo is finished: the report is {report}, the system is in {out / 'system'}")
        return report
    clock.finished = ""
    clock.note()
    try:
        path = _run(out, clock, say, progress, again)
        clock.finished = _made_of(out, clock)
        return path
    finally:
        clock.note()  # also what an interrupted part has used


def _require_own(out: Path) -> None:
    """Raises StorageError for a folder with files that are not a demo's."""
    with storage_errors(f"--out {out} cannot be read"):
        names = {path.name for path in out.iterdir()} if out.is_dir() else set()
    if names - {"demo.json.tmp"} and "demo.json" not in names:  # the .tmp is left by a kill in the first moment
        raise StorageError(f"--out {out} holds other files and no demo; choose another --out, new or empty")


def _made_of(out: Path, clock: Clock) -> str:
    """Everything that the report came from, and itself, hashed; "" where some of it is not there.

    By contents and without the folder's own path, so that a copy is as finished as what it was made of. Of weights
    the size: their SHA-256 is in component.json.
    """
    recipes = [describe(_recipe(name, Path(), clock), kinds()) for name in _PARTS]
    digest = hashlib.blake2b(json.dumps([__version__, recipes]).encode(), digest_size=16)
    folders = [folder / name for folder in (out, out / "system") for name in _PARTS]
    try:
        weights = [path for folder in folders for path in sorted(folder.glob("*.safetensors"))]
        for path in weights:
            digest.update(f"{path.relative_to(out).as_posix()} {path.stat().st_size}\n".encode())
        components = [folder / "component.json" for folder in folders]
        for path in (*components, *sorted((out / DATA).iterdir()), out / "report.html", out / "report.json"):
            contents = path.read_bytes()
            digest.update(f"{path.relative_to(out).as_posix()} {len(contents)}\n".encode() + contents)
    except OSError:
        return ""
    return digest.hexdigest()


def _run(out: Path, clock: Clock, say: Callable[[str], None], progress: bool, again: bool) -> Path:
    clock.turn("data")
    if not (out / DATA).is_dir():
        concepts = emojis()
        write_pictures(out / DATA, concepts, seed=clock.seed)
        say(f"{len(concepts)} captioned pictures written to {out / DATA}. {ATTRIBUTION}")
    parts: dict[str, Part] = {}
    for name in _PARTS:
        say(f"Training the {name}" + (" encoder" if name == "text" else "") + f" in {out / name}")
        clock.turn(name)
        parts[name] = _train(name, out, clock, say, progress)
    clock.turn("report", anew=again)
    assemble(out / "system", text=out / "text", generator=out / "generator", decoder=out / "decoder")
    say("Sampling and measuring the system")
    from carrara.demo.measure import measure
    from carrara.demo.page import write_report

    path = write_report(out, parts, measure(out, seed=clock.seed), clock)
    say(f"{clock.seconds:.0f} s of {clock.total:.0f} s. The system is in {out / 'system'}, the report is {path}")
    return path


def _train(name: str, out: Path, clock: Clock, say: Callable[[str], None], progress: bool) -> Part:
    run = Run(_recipe(name, out, clock), cache=out / "cache", say=say)
    run.task.facts |= {"license": LICENSE, "attribution": [ATTRIBUTION]}
    recipe = run.resolve(lambda: _seconds(name, clock))
    outcome = run.train(progress=progress, on_event=lambda _: clock.tick(), rehearsal=False)
    return Part(recipe, _recorded(outcome, read_log(out / name / "log.jsonl")))


def _recorded(outcome: Outcome, events: Sequence[Event]) -> Outcome:
    """What the part's own log says of its training, which may have been another process's; no news where it is cut."""
    ends = [i for i, event in enumerate(events) if event.get("event") == "done" and event.get("step") == outcome.steps]
    if not ends:
        return outcome
    done, before = events[ends[-1]], events[: ends[-1] + 1]
    resumed = [event["step"] for event in before if event.get("event") == "resume"]
    return outcome._replace(
        seconds=done["seconds"],
        images_per_second=done["images_per_second"],
        peak_memory_bytes=max(event.get("memory", 0) for event in before),
        resumed_from=resumed[-1] if resumed else None,
    )


def _share(name: str) -> float:
    """A part's share of the budget, the generator's with the report's."""
    return _SHARES.get(name, 1 - sum(_SHARES.values()))


def _seconds(name: str, clock: Clock) -> float:
    """How long a part may train from now on; on a machine too slow for its minutes still a third of its share."""
    left = _until(name, clock.total) - clock.seconds - _ENDING[name]
    return _STEPS * max(left, _share(name) * clock.total / 3)


def _until(name: str, total: float) -> float:
    """The second by which a part should be done."""
    if name not in _SHARES:
        return total - _REPORT
    before = _PARTS[: _PARTS.index(name) + 1]
    return total * sum(_SHARES[part] for part in before)


def _recipe(name: str, out: Path, clock: Clock) -> Recipe:
    data = DataSettings(folder=str(out / DATA), size=SIZE, channels=3, fit="pad")
    tables = {
        "text": lambda: text_table(size=SIZE, channels=3, words=4),
        "decoder": lambda: decoder_table(size=SIZE, channels=3),
        "generator": lambda: generator_table(
            size=SIZE, channels=3, text=str(out / "text"), decoder=str(out / "decoder")
        ),
    }
    table: dict[str, Any] = tables[name]()
    train = {
        **table["train"],
        "seed": clock.seed,
        "validate_every": 50,
        "sample_every": {"text": 0, "decoder": 300, "generator": 200}[name],
        "save_every": 0,
        "save_seconds": max(30.0, clock.total / 5),
    }
    if name == "generator":  # a few hundred steps: large ones, and an average over few
        train |= {"learning_rate": 5e-3, "warmup": 60, "ema": 0.98}
    return build(
        Recipe,
        {
            "out": str(out / name),
            "minutes": _share(name) * clock.minutes,  # about; see `_seconds`
            "data": describe(data, kinds()),
            "task": table["task"],
            "train": train,
        },
        kinds(),
    )
