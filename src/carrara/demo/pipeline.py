"""The demo from end to end, within a budget of minutes; run again after an interruption, it goes on where it was.

    data/      the pictures, written out as a folder like any user's
    text/ decoder/ generator/    a run folder each, which becomes the component
    system/    the model folder
    report.html, report.json

The budget is given out part by part: a few steps are timed, the number of steps that fit is fixed in the part's
recipe.toml, and what a part leaves or overruns is the next one's.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from carrara.config import build, describe
from carrara.data import DataSettings
from carrara.demo.twemoji import ATTRIBUTION, emojis, write_pictures
from carrara.errors import RecipeError, StorageError
from carrara.store import assemble, kinds
from carrara.store.atomic import storage_errors, write_file
from carrara.train.loop import Outcome
from carrara.train.presets import decoder_table, generator_table, text_table
from carrara.train.recipe import Recipe, Run

__all__ = ["Part", "demo"]

SIZE = 64
_SHARES = {"text": 0.15, "decoder": 0.34}  # of the budget; the generator has what is left
_REPORT = 14.0  # seconds that sampling and measuring need
_STEPS = 0.94  # of a part's time is spent in steps, the rest on figures, pictures and checkpoints


class Part(NamedTuple):
    """A part that has been trained: its recipe, and how that went."""

    recipe: Recipe
    outcome: Outcome


class _Clock:
    """Seconds since the demo began, over all its interruptions; kept in the folder."""

    def __init__(self, path: Path, minutes: float, seed: int) -> None:
        self.path, self.began, self.before = path, time.monotonic(), 0.0
        self.facts: dict[str, Any] = {"minutes": minutes, "seed": seed}
        if path.is_file():
            try:
                found = json.loads(path.read_text(encoding="utf-8"))
                earlier = {name: found[name] for name in self.facts}
                self.before = float(found["seconds"])
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise StorageError(f"{path} is damaged: {error}; choose another --out") from error
            if earlier != self.facts:
                raise RecipeError(
                    f"{path.parent} holds a demo of {earlier['minutes']:g} minutes with seed {earlier['seed']}; "
                    "give the same to go on with it, or another --out"
                )

    @property
    def seconds(self) -> float:
        return self.before + time.monotonic() - self.began

    def note(self) -> None:
        with storage_errors(f"{self.path} cannot be written"):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_file(self.path, json.dumps({**self.facts, "seconds": self.seconds}).encode())


def demo(minutes: float, out: Path, seed: int, say: Callable[[str], None], *, progress: bool = True) -> Path:
    """Runs the demo, or goes on with it; returns the path of report.html.

    Raises CarraraError for missing packages, RecipeError for a folder of another demo, and whatever training raises.
    """
    if not minutes >= 0.5:
        raise RecipeError(f"minutes is {minutes:g}; the demo's three parts need at least 0.5 minutes together")
    clock = _Clock(out / "demo.json", minutes, seed)
    clock.note()
    try:
        return _run(minutes, out, seed, say, progress, clock)
    finally:
        clock.note()  # also what an interrupted part has used


def _run(minutes: float, out: Path, seed: int, say: Callable[[str], None], progress: bool, clock: _Clock) -> Path:
    if not (out / "data").is_dir():
        concepts = emojis()
        write_pictures(out / "data", concepts, seed=seed)
        say(f"{len(concepts)} captioned pictures written to {out / 'data'}. {ATTRIBUTION}")
    parts: dict[str, Part] = {}
    for name in ("text", "decoder", "generator"):
        say(f"Training the {name}" + (" encoder" if name == "text" else "") + f" in {out / name}")
        parts[name] = _train(name, out, clock, say, progress)
        clock.note()
    assemble(out / "system", text=out / "text", generator=out / "generator", decoder=out / "decoder")
    say("Sampling and measuring the system")
    from carrara.demo.measure import measure
    from carrara.demo.page import write_report

    measured = measure(out, seed=seed)
    path = write_report(out, parts, measured, seconds=lambda: clock.seconds, minutes=minutes, seed=seed)
    clock.note()
    say(f"{clock.seconds:.0f} s of {minutes * 60:.0f} s. The system is in {out / 'system'}, the report is {path}")
    return path


def _train(name: str, out: Path, clock: _Clock, say: Callable[[str], None], progress: bool) -> Part:
    total = clock.facts["minutes"] * 60
    run = Run(_recipe(name, out, clock.facts["seed"], total), cache=out / "cache", say=say)
    run.task.facts["attribution"] = [ATTRIBUTION]

    def seconds() -> float:
        whole = _SHARES[name] * total if name in _SHARES else total - clock.seconds - _REPORT
        return max(_STEPS * whole, 2.0)

    recipe = run.resolve(seconds)
    return Part(recipe, run.train(progress=progress, rehearsal=False))


def _recipe(name: str, out: Path, seed: int, total: float) -> Recipe:
    data = DataSettings(folder=str(out / "data"), size=SIZE, channels=3, fit="pad")
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
        "seed": seed,
        "validate_every": 50,
        "sample_every": {"text": 0, "decoder": 300, "generator": 200}[name],
        "save_every": 0,
        "save_seconds": max(30.0, total / 5),
    }
    if name == "generator":  # a few hundred steps: large ones, and an average over few
        train |= {"learning_rate": 5e-3, "warmup": 60, "ema": 0.98}
    return build(
        Recipe,
        {
            "out": str(out / name),
            "minutes": 1.0,  # stands for the share that `resolve` is given
            "data": describe(data, kinds()),
            "task": table["task"],
            "train": train,
        },
        kinds(),
    )
