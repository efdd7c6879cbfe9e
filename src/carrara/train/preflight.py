"""Trying everything once before the first step, so that what can fail fails in the first seconds.

The data, a few steps of every phase, held-out figures, pictures, a checkpoint and the finished component are tried on
the real objects, measured, and undone: the state is the same afterwards, bit for bit.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from carrara.errors import DataError, NonFiniteError, RecipeError, is_out_of_memory
from carrara.store.atomic import new_directory, remove, require_space, storage_errors
from carrara.store.safetensors_io import save_tensors
from carrara.train.judge import heldout_figures, pictures
from carrara.train.log import peak_memory_bytes, reset_peak_memory
from carrara.train.parallel import World, joined
from carrara.train.precision import Precision, candidates
from carrara.train.settings import Training
from carrara.train.state import State
from carrara.train.step import to_device, train_step
from carrara.train.task import BatchSource, Task
from carrara.types import Batch

__all__ = ["Preflight", "StepTime", "check_batch", "isolated", "measure_step_seconds", "memory_errors", "preflight",
           "rehearse"]  # fmt: skip


class StepTime(NamedTuple):
    """How fast a step is, in the precision that was chosen for it."""

    seconds: float  # a step, the median of a few
    precision: Precision
    peak_memory_bytes: int


class Preflight(NamedTuple):
    """What a rehearsal found."""

    step_seconds: float
    precision: Precision
    peak_memory_bytes: int
    checkpoint_bytes: int
    projected_seconds: float  # the whole run, with its figures, pictures and checkpoints
    warnings: tuple[str, ...]


def preflight(
    task: Task, loader: BatchSource, training: Training, folder: Path, *, device: torch.device | str = "cpu"
) -> Preflight:
    """Rehearses a run without beginning it; `folder` is where the run would go. The task is unchanged afterwards.

    Raises DataError, RecipeError (out of memory, say), NonFiniteError or StorageError for what would have failed.
    """
    where = torch.device(device)
    with joined(where) as world, isolated(where):
        state = State(task, training, where, candidates(where, training.precision)[0])
        return rehearse(state, loader, folder, world)


def measure_step_seconds(
    task: Task,
    loader: BatchSource,
    training: Training,
    *,
    device: torch.device | str = "cpu",
    repeats: int = 10,
    longest: float = 20.0,
) -> StepTime:
    """The time of a training step and the precision that "auto" comes to here; the task is unchanged afterwards.

    At most `repeats` steps are measured in a precision, and no further one after `longest` seconds of them.
    """
    where = torch.device(device)
    with joined(where) as world, isolated(where):
        state = State(task, training, where, candidates(where, training.precision)[0])
        reset_peak_memory(where)
        snapshot = state.snapshot()
        try:
            with memory_errors(training), _fully(task):
                seconds = _choose(state, loader, world, snapshot, repeats, longest)
        finally:
            state.restore(snapshot)
        return StepTime(seconds, state.precision, peak_memory_bytes(where))


@contextmanager
def isolated(device: torch.device) -> Iterator[None]:
    """Gives torch's own random generators back as they were."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        yield


def rehearse(state: State, loader: BatchSource, folder: Path, world: World) -> Preflight:
    """Tries everything once; sets `state.precision` to the faster one and leaves the rest of the state as it was."""
    training = state.training
    check_batch(loader.batch(0), training, world)
    require_space(folder, state.checkpoint_bytes() * 2, "a run with this network")
    reset_peak_memory(state.device)
    snapshot = state.snapshot()
    watch = _Gradients(state)
    try:
        with memory_errors(training):
            with watch, _fully(state.task):
                seconds = _choose(state, loader, world, snapshot, repeats=3)
            judged, warnings = _try_judging(state, loader)
            saved = _try_saving(state, folder) if world.first else 0.0
    finally:
        state.restore(snapshot)
    steps = training.steps
    times = {"judge": max(training.validate_every, training.sample_every), "save": training.save_every}
    extra = sum(
        cost * (steps // times[name] + 1 if times[name] else 1) for name, cost in (("judge", judged), ("save", saved))
    )
    return Preflight(
        seconds,
        state.precision,
        peak_memory_bytes(state.device),
        state.checkpoint_bytes(),
        seconds * steps + extra,
        watch.warnings() + warnings + _short(training),
    )


def _fully(task: Task) -> AbstractContextManager[None]:
    context: Callable[[], AbstractContextManager[None]] = getattr(task, "fully", nullcontext)
    return context()


def _short(training: Training) -> tuple[str, ...]:
    """A warning for a run that ends before its warm-up does."""
    if training.warmup <= training.steps:
        return ()
    return (
        f"`warmup` is {training.warmup} and the run has {training.steps} steps: the learning rate never reaches "
        f"{training.learning_rate:g}; lower `warmup` or raise `steps`",
    )


def check_batch(batch: Batch, training: Training, world: World) -> None:
    """Raises DataError for pictures a step cannot use, RecipeError for a batch of another size than `batch` says."""
    images = batch.images
    (rows,) = world.total(len(batch))
    if rows != training.batch:
        raise RecipeError(f"the data give {rows:g} rows a step and `batch` is {training.batch}; make them equal")
    if images.ndim != 4 or not images.is_floating_point():
        raise DataError(f"pictures have shape {tuple(images.shape)} and type {images.dtype}; (B, C, H, W) is needed")
    if not bool(torch.isfinite(images).all()):
        raise DataError(f"picture {_first_row(~torch.isfinite(images), batch)} of the data holds NaN or infinity")
    if bool((images.abs() > 1 + 1e-4).any()):
        raise DataError(
            f"picture {_first_row(images.abs() > 1 + 1e-4, batch)} has values from {images.min():g} to "
            f"{images.max():g}; pictures must lie in [-1, 1]"
        )


def _first_row(wrong: Tensor, batch: Batch) -> int:
    return batch.index[int(wrong.flatten(1).any(1).nonzero()[0])]


@contextmanager
def memory_errors(training: Training) -> Iterator[None]:
    """Turns running out of memory into a RecipeError that says which setting to turn."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        rows = -(-training.batch // training.accumulate)
        knobs = [f"set `accumulate` above {training.accumulate} (the result stays the same)"] if rows > 1 else []
        knobs += ["lower `batch`"] if training.batch > 1 else []
        knobs += ['set `precision` to "bfloat16"'] if training.precision != "bfloat16" else []
        knobs += ["use smaller pictures or a smaller network"]
        raise RecipeError(
            f"out of memory with {rows} rows at a time: {', or '.join(knobs)}. The machine said: "
            f"{str(error).splitlines()[0] if str(error) else type(error).__name__}"
        ) from error


def _choose(
    state: State,
    loader: BatchSource,
    world: World,
    snapshot: dict[str, object],
    repeats: int,
    longest: float = 20.0,
) -> float:
    """Sets the precision to the faster of the possible ones and returns its seconds a step.

    Precisions are compared by their fastest step, which other work on the machine disturbs least; a precision that is
    slower by half is not measured further. What is returned is the median of the later half, when caches have settled.
    """
    found: dict[Precision, list[float]] = {}
    failed: NonFiniteError | None = None
    for precision in candidates(state.device, state.training.precision):
        state.precision = precision
        state.restore(snapshot)
        limit = 1.5 * min((min(times) for times in found.values()), default=math.inf)
        try:
            found[precision] = _time_steps(state, loader, world, repeats, limit, longest)
        except NonFiniteError as error:
            failed = error
    if not found:
        raise NonFiniteError(f"{failed}. This was a trial before the run, of which nothing is kept") from failed
    state.precision = min(found, key=lambda precision: min(found[precision]))
    times = found[state.precision]
    return statistics.median(times[len(times) // 2 :])


def _time_steps(
    state: State, loader: BatchSource, world: World, repeats: int, limit: float, longest: float
) -> list[float]:
    """Seconds of up to `repeats` steps, fewer when they come to more than `longest`, or one of them to `limit`."""
    times: list[float] = []
    for number in range(repeats + 1):
        batch = loader.batch(number)
        _wait(state.device)
        before = time.perf_counter()
        train_step(state, to_device(batch, state.device), world)
        _wait(state.device)
        times.append(world.total(time.perf_counter() - before)[0] / world.size)  # alike in every process
        if number and (sum(times[1:]) > longest or times[-1] > limit):
            break
    return times[1:]  # the first one pays for whatever is made once


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _try_judging(state: State, loader: BatchSource) -> tuple[float, tuple[str, ...]]:
    training = state.training
    before = time.perf_counter()
    warnings: list[str] = []
    if training.validate_every:
        figures = heldout_figures(state, loader, min(training.validate_rows, training.batch))
        warnings += [] if figures else ["there are no held-out rows, so that nothing will be validated"]
    if training.sample_every:
        grid = pictures(state)
        if grid is not None and not bool(torch.isfinite(grid).all()):
            warnings.append("the first pictures are not finite; check the sampler's settings")
    _wait(state.device)
    return time.perf_counter() - before, tuple(warnings)


def _try_saving(state: State, folder: Path) -> float:
    trial = folder / "preflight.tmp"
    before = time.perf_counter()
    try:
        with storage_errors(f"cannot write {folder}"):
            remove(trial)
            trial.mkdir(parents=True)
        with state.averaged():
            state.task.save(trial / "component")
        with new_directory(trial / "checkpoint") as temporary:
            for name, table in state.tables().items():
                save_tensors(temporary / f"{name}.safetensors", table, finite=False)
    finally:
        with storage_errors(f"cannot clean {folder}"):
            remove(trial)
    return time.perf_counter() - before


class _Gradients:
    """Watches which parameters a gradient reaches while it is open."""

    def __init__(self, state: State) -> None:
        self._trained = {p for phase in state.task.phases for p in phase.parameters if p.requires_grad}
        self._names = {p: name for p, name in state.names.items() if p.requires_grad}
        self._moved: dict[str, Tensor] = {}
        self._hooks: list[torch.utils.hooks.RemovableHandle] = []

    def __enter__(self) -> None:
        for parameter in self._trained:
            self._hooks.append(parameter.register_post_accumulate_grad_hook(self._see))

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def _see(self, parameter: Tensor) -> None:
        name = self._names[parameter]  # type: ignore[index]
        found = parameter.grad.detach().ne(0).any() if parameter.grad is not None else torch.tensor(False)
        self._moved[name] = self._moved[name] | found if name in self._moved else found

    def warnings(self) -> tuple[str, ...]:
        """A sentence for each way in which parameters are left out."""
        orphans = [name for p, name in self._names.items() if p not in self._trained]
        unreached = [self._names[p] for p in self._trained if self._names[p] not in self._moved]
        still = [name for name, moved in self._moved.items() if not bool(moved)]
        return tuple(
            f"{_listed(names)} {said}"
            for names, said in (
                (sorted(orphans), "can be trained and no phase trains it"),
                (sorted(unreached), "gets no gradient: the loss does not depend on it"),
                (sorted(still), "gets a gradient of zero in the first steps"),
            )
            if names
        )


def _listed(names: list[str]) -> str:
    shown = ", ".join(names[:5])
    return f"{'parameter' if len(names) == 1 else f'{len(names)} parameters:'} {shown}" + (
        ", ..., each" if len(names) > 5 else ""
    )
