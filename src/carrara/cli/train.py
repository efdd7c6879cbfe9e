"""`carrara train`: one part, from its recipe; the same command again goes on where it was."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from carrara.cli.folders import require_writable
from carrara.cli.text import is_folder
from carrara.cli.voice import Counter, Voice, command, duration, mebibytes
from carrara.errors import RecipeError

if TYPE_CHECKING:
    from carrara.train.loop import Outcome
    from carrara.train.recipe import Recipe, Run

__all__ = ["train"]

_NAMES = {"text": "text encoder", "generator": "generator", "decoder": "decoder", "control": "control",
          "lora": "low-rank update"}  # fmt: skip


def train(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe file.", show_default=False)],
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="A.B=C", help="Another value for a setting; may be repeated.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Resolve and measure everything, and begin nothing.")
    ] = False,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Another run folder than the recipe's.")] = None,
    cache: Annotated[
        Path | None, typer.Option(metavar="DIR", help="For the prepared pictures.  [default: ~/.cache/carrara]")
    ] = None,
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Also log for TensorBoard.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Say nothing but warnings and errors.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="With --dry-run: say it as JSON.")] = False,
) -> None:
    """Train one part as its recipe says.

    Ctrl-C saves the state and ends; the same command goes on from there, or says that the run is finished.
    """
    from carrara.train.recipe import Run, read_recipe

    voice = Voice(silent=quiet or as_json)
    if as_json and not dry_run:
        raise RecipeError("--json goes with --dry-run; a training's own log is log.jsonl in its run folder")
    if sentences := _not_needed(recipe):
        for sentence in sentences:
            voice.say(sentence)
        return
    plan = read_recipe(recipe, _with_steps(settings or []))
    if out is not None:
        plan = dataclasses.replace(plan, out=str(out))
    require_writable(Path(plan.out))
    on_event = _tensorboard(Path(plan.out)) if tensorboard else None
    with Counter(1, "pictures", silent=voice.silent) as counter:

        def reading(done: int, total: int) -> None:
            counter.total = total
            counter.at(done)

        run = Run(plan, cache=cache, say=_speaking(voice), reading=reading)
    if dry_run:
        _dry_run(run, voice, as_json)
        return
    for sentence in _found(run):
        voice.say(sentence)
    outcome = run.train(progress=not quiet, on_event=on_event)
    for sentence in _ended(run, outcome, recipe):
        voice.say(sentence)


_WITHOUT = {
    "pixels": "No decoder is needed: pictures this small are generated as they are",
    "labels": "No text encoder is needed: the names of the class folders are the prompts",
    "unconditional": "No text encoder is needed: nothing is said of these pictures",
}


def _not_needed(recipe: Path) -> list[str]:
    """What to say where there is no recipe because the generator beside it goes without that part; else nothing."""
    from carrara.train.recipe import read_recipe

    beside = recipe.with_name("generator.toml")
    if recipe.exists() or recipe.name not in ("text.toml", "decoder.toml") or not beside.is_file():
        return []
    plan = read_recipe(beside)
    value = getattr(plan.task, recipe.stem, "")
    if value not in _WITHOUT:
        return []
    said = [f'{_WITHOUT[value]} (task.{recipe.stem} = "{value}" in {beside}).']
    return said if (Path(plan.out) / "component.json").is_file() else [*said, "Next:  " + command("train", beside)]


def _speaking(voice: Voice) -> Callable[[str], None]:
    """Says what a run says; its warnings also where all else is silent."""
    mark = "warning: "
    return lambda text: voice.warn(text.removeprefix(mark)) if text.startswith(mark) else voice.say(text)


def _with_steps(settings: Sequence[str]) -> list[str]:
    """A number of steps takes the place of the recipe's minutes, which would otherwise decide it."""
    names = {setting.partition("=")[0].strip() for setting in settings}
    return [*settings, *(["minutes=0"] if "train.steps" in names and "minutes" not in names else [])]


def _tensorboard(folder: Path) -> Callable[[dict[str, Any]], None]:
    from carrara.train.log import TensorBoard

    return TensorBoard(folder / "tensorboard")


def _found(run: Run) -> list[str]:
    trained = sum(parameter.numel() for phase in run.task.phases for parameter in phase.parameters)
    precision = run.recipe.train.precision
    said = "the faster of its precisions" if precision == "auto" else precision
    return [
        *run.pictures.findings.sentences(),
        f"The {_NAMES[run.task.role]} has {trained:,} parameters to train, on {run.device} in {said}; "
        f"the run folder is {run.folder}.",
    ]


def _ended(run: Run, outcome: Outcome, recipe: Path) -> list[str]:
    figures = ", ".join(f"{name} {value:.4g}" for name, value in outcome.figures.items())
    measured = f"; held out: {figures}" if figures else ""
    if outcome.resumed_from == outcome.steps:
        first = f"This run is finished: {outcome.steps:,} steps{measured}."
    else:
        first = (
            f"{outcome.steps:,} steps in {duration(outcome.seconds)} "
            f"({outcome.images_per_second:.3g} pictures a second, {mebibytes(outcome.peak_memory_bytes)}){measured}."
        )
    return [first, f"The {_NAMES[run.task.role]} is in {run.folder}", *_next(run, recipe)]


def _next(run: Run, recipe: Path) -> list[str]:
    """The command that follows, as far as the recipes say it."""
    if run.task.role == "lora":
        from carrara.train.tasks.low_rank import FILE

        shown = run.task.prompts(1)  # type: ignore[attr-defined]
        return ["Next:  " + command("sample", run.recipe.task.model, *shown, "--lora", run.folder / FILE)]  # type: ignore[attr-defined]
    if run.task.role == "generator":
        parts: list[object] = []
        for name in ("text", "decoder"):
            whole = getattr(run.recipe.task, "model", "")
            value = str(Path(whole) / name) if whole else getattr(run.recipe.task, name, "")
            if is_folder(value):
                parts += [f"--{name}", value]
        own = "system" if run.folder.name == "generator" else f"{run.folder.name}-system"  # beside others' systems
        return ["Next:  " + command("assemble", "--generator", run.folder, *parts, run.folder.with_name(own))]
    if run.task.role == "control":
        from carrara.text import Unconditional

        told = f"{next(iter(run.recipe.task.inputs))}=FILE"  # type: ignore[attr-defined]
        model, text = run.recipe.task.model, run.task.text  # type: ignore[attr-defined]
        prompt = getattr(text, "names", () if isinstance(text, Unconditional) else ("a prompt",))[:1]
        return ["Next:  " + command("sample", model, *prompt, "--control", run.folder, "--input", told)]
    later = {"text": ("decoder.toml", "generator.toml"), "decoder": ("generator.toml",)}[run.task.role]
    for name in later:
        other = recipe.with_name(name)
        if other.is_file() and not (run.folder.with_name(other.stem) / "component.json").is_file():
            return ["Next:  " + command("train", other)]
    return [f'Next: a generator\'s recipe names it, as task.{run.task.role} = "{run.folder}".']


def _dry_run(run: Run, voice: Voice, as_json: bool) -> None:
    from carrara.config import describe, dump_toml
    from carrara.store import kinds

    there = run.folder.exists()
    run.plan()
    try:
        found = run.preflight()
    finally:
        if not there and run.folder.is_dir() and not any(run.folder.iterdir()):
            run.folder.rmdir()
    resolved: Recipe = run.recipe
    for warning in found.warnings:
        voice.warn(warning)
    table = describe(resolved, kinds())
    if as_json:
        voice.json({"recipe": table, "preflight": {**found._asdict(), "warnings": list(found.warnings)}})
        return
    voice.say(dump_toml(table))
    for sentence in _found(run):
        voice.say(sentence)
    voice.say(
        f"A step takes {found.step_seconds:.3g} s in {found.precision}, "
        f"the whole run of {resolved.train.steps:,} steps about {duration(found.projected_seconds)}; "
        f"memory {mebibytes(found.peak_memory_bytes)}, a checkpoint {mebibytes(found.checkpoint_bytes)}. "
        "Nothing was begun."
    )
