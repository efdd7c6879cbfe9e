"""A recipe: everything that decides a training run, as one frozen object and one TOML file.

    format_version = 1
    out = "runs/decoder"          # the run folder, which becomes the component
    [data]                        # carrara.data.DataSettings
    [task]                        # kind = "contrastive" | "autoencoder" | "diffusion", and its own settings
    [train]                       # carrara.train.Training

`minutes` instead of `train.steps` gives the run a share of time: a few steps are timed first, and the number of steps
that fit is written into the run folder's recipe.toml. Every resume reads that one, so a run never changes its length;
plan.json keeps the minutes, and other ones in a later recipe are warned of.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch

from carrara import config
from carrara.config import Role
from carrara.data import DataSettings, Loader, open_pictures
from carrara.data.pictures import Pictures
from carrara.errors import RecipeError
from carrara.store import kinds
from carrara.store.atomic import storage_errors, write_file, write_json
from carrara.train.checkpoint import checkpoints
from carrara.train.log import Event
from carrara.train.loop import Outcome, fit
from carrara.train.parallel import world
from carrara.train.precision import Precision
from carrara.train.preflight import Preflight, measure_step_seconds, preflight
from carrara.train.settings import Training
from carrara.train.tasks import PartTask, TaskRecipe

__all__ = ["Recipe", "Run", "choose_device", "read_recipe", "write_recipe"]

_FORMAT_VERSION = 1
_RESOLVED, _PLAN = "recipe.toml", "plan.json"
_TIMED = 0.05  # of the minutes, at most, are spent on timing steps in each precision
_FREE = (
    "decoder",
    "model",
    "prompts",
    "settings",
    "text",
)  # of a task: how samples look, and in which folders the parts are


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What `carrara train` reads; `minutes` 0 leaves the number of steps to `train.steps`."""

    out: str
    data: DataSettings
    task: Annotated[TaskRecipe, Role("task")]
    train: Training = field(default_factory=Training)
    minutes: float = 0.0
    device: str = "auto"  # "auto", "cpu" or "cuda"
    format_version: int = _FORMAT_VERSION

    def __post_init__(self) -> None:
        if self.format_version != _FORMAT_VERSION:
            raise ValueError(f"format_version is {self.format_version} and this Carrara reads {_FORMAT_VERSION}")
        if not 0 <= self.minutes < math.inf:
            raise ValueError(f"minutes is {self.minutes}; give 0 (off) or more")
        if not self.out:
            raise ValueError("out is empty; name the folder that the run shall make")


def read_recipe(path: Path, settings: Sequence[str] = ()) -> Recipe:
    """The recipe of a TOML file with `--set` overrides; RecipeError lists every problem with file, line and path."""
    if path.is_dir():
        raise RecipeError(f"{path} is a folder; give a recipe, a TOML file, which `carrara init FOLDER` writes")
    if not path.is_file():
        raise RecipeError(f"{path} does not exist; `carrara init FOLDER` writes a recipe")
    try:
        table, text = config.read_toml(path)
    except RecipeError as error:
        if isinstance(error.__cause__, UnicodeDecodeError):
            raise RecipeError(f"{path} is no TOML file; `carrara init FOLDER` writes a recipe") from error
        raise
    table = config.override(table, settings)
    try:
        return config.build(Recipe, table, kinds())
    except RecipeError as error:
        problems = getattr(error, "problems", [])
        lines = []
        for problem in problems:
            line = config.locate(text, problem.path)
            where = f"{path}:{line}" if line else str(path)
            lines.append(f"{where}: {'.'.join(problem.path) or 'recipe'}: {problem.message}")
        raise RecipeError("\n".join(lines or [str(error)])) from error


def write_recipe(path: Path, recipe: Recipe, note: str = "") -> None:
    """The recipe as a TOML file, defaults included."""
    text = "".join(f"# {line}\n" for line in note.splitlines()) + config.dump_toml(config.describe(recipe, kinds()))
    with storage_errors(f"{path} cannot be written"):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, text.encode())


def choose_device(name: str) -> torch.device:
    """The device of a name; "auto" is CUDA where there is one. RecipeError for one that is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise RecipeError(f'device: "{name}" is none; give "auto", "cpu" or "cuda"') from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise RecipeError('device: "cuda" was asked for and this machine has none that PyTorch can use; give "cpu"')
    return device


class Run:
    """A recipe brought to life: its data, its task, and the training itself.

    `say` gets sentences for people; `reading(done, total)` is called while pictures are prepared.
    """

    def __init__(
        self,
        recipe: Recipe,
        *,
        cache: Path | None = None,
        say: Callable[[str], None] = lambda _: None,
        reading: Callable[[int, int], None] | None = None,
    ) -> None:
        self.folder = Path(recipe.out)
        self.say = say
        self._minutes = recipe.minutes
        self.recipe = self._taken_up(recipe)
        self.device = choose_device(self.recipe.device)
        self.pictures: Pictures = open_pictures(self.recipe.data, cache, progress=reading)
        if self.recipe.train.validate_every and not len(self.pictures.heldout):
            say("warning: no picture is held out, so that nothing will be validated")
            self.recipe = dataclasses.replace(
                self.recipe, train=dataclasses.replace(self.recipe.train, validate_every=0)
            )
        self.task: PartTask = self.recipe.task.create(self.pictures, self.recipe.train.seed, self.device)
        here = world()
        self.loader = Loader(
            self.pictures, self.recipe.train.batch, self.recipe.train.seed, rank=here.rank, world=here.size
        )
        self.task.facts = self._facts()

    def _taken_up(self, recipe: Recipe) -> Recipe:
        """The recipe, or for a run with a time budget the one that its first start resolved."""
        if not (recipe.minutes and self._begun):
            return recipe
        earlier = read_recipe(self.folder / _RESOLVED)
        if (planned := self._planned_minutes()) not in (None, recipe.minutes):
            other = "train into a new folder" if earlier.train.decay == "cosine" else "give a larger train.steps"
            self.say(
                f"warning: minutes is {recipe.minutes:g} and was {planned:g} when this run began; it keeps the "
                f"{earlier.train.steps:,} steps that were fixed then; to train longer, {other}"
            )
        kept = {name: getattr(earlier.train, name) for name in ("steps", "precision", "warmup")}
        return dataclasses.replace(recipe, minutes=0.0, train=dataclasses.replace(recipe.train, **kept))

    def _planned_minutes(self) -> float | None:
        """The minutes from which the run's steps were worked out, where that is known."""
        try:
            return float(json.loads((self.folder / _PLAN).read_text(encoding="utf-8"))["minutes"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    @property
    def _begun(self) -> bool:
        """Whether there is a run to go on with; what is left of one that failed before its first checkpoint is none."""
        return (self.folder / _RESOLVED).is_file() and bool(checkpoints(self.folder))

    def _refuse_another_task(self) -> None:
        if not self._begun:
            return
        if different := _differences(read_recipe(self.folder / _RESOLVED), self.recipe):
            raise RecipeError(
                f"the run in {self.folder} was begun with another task: {', '.join(different)}; "
                "give these back, or train into a new folder"
            )

    def _facts(self) -> dict[str, Any]:
        found = self.pictures.findings
        prepared = {k: v for k, v in config.describe(self.recipe.data, kinds()).items() if k != "folder"}
        return {
            "trained_on": f"{len(self.pictures.train)} pictures of {Path(self.recipe.data.folder).name}, "
            f"{len(self.pictures.heldout)} held out",
            "data": {
                "fingerprint": self.pictures.fingerprint,
                "captions": dict(found.captions),
                "settings": prepared,
            },
            "training": {
                "steps": self.recipe.train.steps,
                "batch": self.recipe.train.batch,
                "seed": self.recipe.train.seed,
                "precision": self.recipe.train.precision,
            },
        }

    def plan(self, seconds: Callable[[], float] | None = None) -> Recipe:
        """Fixes the number of steps for the time budget; nothing is written.

        The budget is the recipe's `minutes`, or what `seconds` says once a step has been timed.
        """
        if self.recipe.minutes:
            longest = min(20.0, _TIMED * 60 * self.recipe.minutes)
            measured = measure_step_seconds(
                self.task, self.loader, self.recipe.train, device=self.device, longest=longest
            )
            budget = seconds() if seconds is not None else self.recipe.minutes * 60
            steps = max(1, int(budget / measured.seconds))
            asked = self.recipe.train.warmup
            warmup = min(asked, max(1, steps // 10))
            train = dataclasses.replace(self.recipe.train, steps=steps, precision=measured.precision, warmup=warmup)
            self.recipe = dataclasses.replace(self.recipe, minutes=0.0, train=train)
            self.task.facts |= self._facts()
            pace = f"{measured.seconds * 1000:.0f} ms a step in {measured.precision}"
            short = f"; the warm-up is {warmup} of them instead of {asked}" if warmup < asked else ""
            self.say(f"{pace}: {steps} steps fit into {budget:.0f} s{short}")
        return self.recipe

    def resolve(self, seconds: Callable[[], float] | None = None) -> Recipe:
        """`plan`, and writes recipe.toml unless the run has begun with one."""
        recipe = self.plan(seconds)
        if not self._begun:
            self._write()
            with storage_errors(f"cannot write into {self.folder}"):
                write_json(self.folder / _PLAN, {"minutes": self._minutes, "steps": recipe.train.steps})
        return recipe

    def _write(self) -> None:
        write_recipe(self.folder / _RESOLVED, self.recipe, "The recipe of this run, with everything resolved.")

    def preflight(self) -> Preflight:
        """One step, one sample, one save, measured; nothing is begun. The recipe then names the precision."""
        found = preflight(self.task, self.loader, self.recipe.train, self.folder, device=self.device)
        self._settle(found.precision)
        return found

    def _settle(self, precision: Precision) -> None:
        """The recipe and the facts with the precision that "auto" came to."""
        self.recipe = dataclasses.replace(
            self.recipe, train=dataclasses.replace(self.recipe.train, precision=precision)
        )
        self.task.facts |= self._facts()

    def train(
        self, *, progress: bool = True, on_event: Callable[[Event], None] | None = None, rehearsal: bool = True
    ) -> Outcome:
        """Trains, or goes on; ends with the component in the run folder. RecipeError for a run of another task."""
        self._refuse_another_task()
        self.resolve()

        def noting(event: Event) -> None:
            if event["event"] in ("start", "resume"):
                self._settle(event["precision"])
            if event["event"] == "start":
                self._write()
            if event["event"] == "validate":
                self.task.facts["figures"] = dict(event["figures"])  # goes into the component, and its card
            if on_event:
                on_event(event)

        outcome = fit(
            self.task,
            self.loader,
            self.recipe.train,
            self.folder,
            device=self.device,
            progress=progress,
            on_event=noting,
            rehearsal=rehearsal,
        )
        self._write()  # a run that was made longer says so
        return outcome


def _differences(earlier: Recipe, now: Recipe) -> list[str]:
    """Which settings of the task these change in a way that changes results."""
    was, now_is = (config.describe(recipe.task, kinds()) for recipe in (earlier, now))
    return [
        f"task.{name} (was {was.get(name)!r}, is {now_is.get(name)!r})"
        for name in sorted({*was, *now_is} - set(_FREE))
        if was.get(name) != now_is.get(name)
    ]
