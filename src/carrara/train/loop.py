"""The training loop: steps, figures, pictures, checkpoints, and an end that can come at any moment.

Whatever is drawn in a step is keyed by (seed, sample number, purpose), so a step depends on the weights and its number
alone. A run that was stopped, however often and however rudely, therefore ends with the bits of one that was not.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from carrara.errors import NonFiniteError, Preempted, RecipeError
from carrara.store.atomic import require_space, storage_errors
from carrara.train.checkpoint import Checkpoint, checkpoints, find_checkpoint, locked, save_checkpoint
from carrara.train.grid import save_grid
from carrara.train.judge import heldout_figures, pictures
from carrara.train.log import Event, Log, Progress, peak_memory_bytes, read_log, reset_peak_memory
from carrara.train.optim import learning_rate
from carrara.train.parallel import World, joined
from carrara.train.precision import Precision, candidates, compile_networks, compiled_graphs
from carrara.train.preflight import check_batch, isolated, memory_errors, rehearse
from carrara.train.settings import Training
from carrara.train.signals import StopSignals
from carrara.train.state import State
from carrara.train.step import Measured, samples_hash, to_device, train_step
from carrara.train.task import BatchSource, Task
from carrara.types import Batch

__all__ = ["Outcome", "fit"]


class Outcome(NamedTuple):
    """What a finished run comes to; times and counts include what was done before a resume."""

    steps: int
    seconds: float  # from start to end, without the pauses between resumes
    images_per_second: float  # in training steps alone
    peak_memory_bytes: int  # of this call, and of the whole process where the system does not count anew
    last_loss: float  # of the first phase, mean over the last batch
    figures: dict[str, float]  # the last held-out figures
    precision: Precision
    clipped: float  # share of the phases' steps whose gradient was shortened
    resumed_from: int | None  # the step of the checkpoint this call went on from
    checkpoint: Path  # the last one


def fit(
    task: Task,
    loader: BatchSource,
    training: Training,
    folder: Path | str,
    *,
    device: torch.device | str = "cpu",
    progress: bool = True,
    on_event: Callable[[Event], None] | None = None,
    rehearsal: bool = True,
) -> Outcome:
    """Trains `task` in the run folder, or goes on with the run that is there; both end with the component saved.

    `progress` speaks to standard error; `on_event` gets every line of the log as it is written; `rehearsal` tries
    everything once before the first step of a new run.

    Raises RecipeError for settings that cannot work or that differ from those the run was begun with, DataError for
    pictures that cannot be used, NonFiniteError before a step with a loss or gradient that is not finite, StorageError
    when the disk refuses or the folder is in use, and Preempted after a signal to stop, with the state saved.
    """
    folder, where = Path(folder), torch.device(device)
    with ExitStack() as stack:
        stop = stack.enter_context(StopSignals())
        here = stack.enter_context(joined(where))
        if here.first:
            stack.enter_context(locked(folder))
        stack.enter_context(isolated(where))
        run = _Run(task, loader, training, folder, where, here, stop, on_event)
        stack.callback(run.close)
        run.begin(progress and here.first, rehearsal)
        while run.state.step < training.steps:
            run.step()
        return run.finish()


class _Run:
    """A run under way."""

    def __init__(
        self,
        task: Task,
        loader: BatchSource,
        training: Training,
        folder: Path,
        device: torch.device,
        world: World,
        stop: StopSignals,
        on_event: Callable[[Event], None] | None,
    ) -> None:
        self.loader, self.training, self.folder = loader, training, folder
        self.world, self.stop, self.on_event = world, stop, on_event
        self.state = State(task, training, device, candidates(device, training.precision)[0])
        self.log: Log | None = None
        self.progress: Progress | None = None
        self.resumed_from: int | None = None
        self.saved_step = -1
        self.checkpoint = folder
        # Counters that travel in the checkpoint.
        self.loss = float("nan")
        self.figures: dict[str, float] = {}
        self.clipped = 0
        self.images = 0
        self.step_seconds = 0.0
        self.seconds_before = 0.0
        self.began = self.saved_at = time.monotonic()

    # Beginning

    def begin(self, progress: bool, rehearsal: bool) -> None:
        """Takes up the newest checkpoint, or rehearses and writes the first one."""
        if progress:
            self.progress = Progress(self.training.steps)
        reset_peak_memory(self.state.device)
        found = find_checkpoint(self.folder, self.say, tidy=self.world.first)
        self.world.barrier()
        if found:
            self._resume(found)
        if self.world.first:
            with storage_errors(f"cannot write the log in {self.folder}"):
                self.log = Log(self.folder / "log.jsonl", self.state.step if found else -1)
        if self.state.step < self.training.steps:
            self._check_space()
            if self.training.compile:
                compile_networks(_networks(self.state.task), self.state.device)
        if found:
            self.event("resume", checkpoint=found.path.name, precision=self.state.precision)
            return
        self.world.broadcast(value for table in self.state.tables().values() for value in table.values())
        if rehearsal:
            self._rehearse()
        else:
            check_batch(self.loader.batch(0), self.training, self.world)
            self.state.precision = candidates(self.state.device, self.training.precision)[0]
        self.event("start", precision=self.state.precision, settings=asdict(self._resolved()))
        self.save()  # also keeps the chosen precision, so that a run stopped early goes on in the same numbers

    def _resume(self, found: Checkpoint) -> None:
        info = found.info
        earlier = info.get("settings", {})
        if different := self.training.differences(earlier):
            raise RecipeError(
                f"the run in {self.folder} was begun with other settings: {', '.join(different)}; "
                "give these back, or train into a new folder"
            )
        data, known = getattr(self.loader, "fingerprint", None), info.get("data")
        if data and known and data != known:
            raise RecipeError(
                f"the run in {self.folder} was begun on other data (fingerprint {known}, now {data}); "
                "give these back, or train into a new folder"
            )
        if found.step > self.training.steps:
            raise RecipeError(
                f"the run in {self.folder} has done {found.step} steps and `steps` is {self.training.steps}; "
                "give as many or more, or train into a new folder"
            )
        if (phases := sorted(self.state.optimizers)) != info.get("phases"):
            raise RecipeError(f"the run in {self.folder} trains the phases {info.get('phases')}, this task {phases}")
        self.state.load(found.tables, found.step)
        self.state.precision = earlier["precision"]
        counters = info["counters"]
        self.loss, self.figures = _number(counters["loss"]), dict(counters["figures"])
        self.clipped, self.images = int(counters["clipped"]), int(counters["images"])
        self.step_seconds, self.seconds_before = float(counters["step_seconds"]), float(counters["seconds"])
        self.resumed_from = self.saved_step = found.step
        self.checkpoint = found.path
        self.say(f"going on from step {found.step}")

    def _check_space(self) -> None:
        if self.world.first:
            missing = max(1, self.training.keep + 1 - len(checkpoints(self.folder)))
            needed = self.state.checkpoint_bytes() * missing
            require_space(self.folder, needed, f"room for {missing} more checkpoints")

    def _rehearse(self) -> None:
        graphs = compiled_graphs() if self.training.compile else 0
        report = rehearse(self.state, self.loader, self.folder, self.world)
        warnings = list(report.warnings)
        if self.training.compile and compiled_graphs() == graphs:
            warnings.append(
                "`compile` has no effect: the task does not call its modules' `forward`; it should list those it calls "
                "in `networks`"
            )
        for warning in warnings:
            self.say(f"warning: {warning}")
        self.event("preflight", **report._replace(warnings=tuple(warnings))._asdict())
        self.say(
            f"a step takes {report.step_seconds:.3g} s in {report.precision}, the run about "
            f"{_duration(report.projected_seconds)}, memory {report.peak_memory_bytes / 2**20:,.0f} MiB"
        )

    # Going on

    def step(self) -> None:
        """One training step and whatever is due after it."""
        training = self.training
        before = time.monotonic()
        with memory_errors(training):
            batch = self.loader.batch(self.state.step)
            try:
                measured = train_step(self.state, to_device(batch, self.state.device), self.world)
            except NonFiniteError as error:
                self.event("nonfinite", samples=samples_hash(batch), reason=str(error))
                raise NonFiniteError(f"{error}. The checkpoint of step {self.saved_step} is untouched") from error
            self._record(batch, measured, time.monotonic() - before)
            last = self.state.step == training.steps
            if last or _due(self.state.step, training.validate_every):
                self._validate()
            if last or _due(self.state.step, training.sample_every):
                self._sample()
        stopped = self.world.any(self.stop.received is not None)
        late = training.save_seconds and time.monotonic() - self.saved_at >= training.save_seconds
        if last or stopped or _due(self.state.step, training.save_every) or self.world.any(bool(late)):
            self.save()
        if stopped and not last:
            self._preempt()

    def _record(self, batch: Batch, measured: dict[str, Measured], seconds: float) -> None:
        (_, main), *others = measured.items()
        self.loss = main.loss
        self.clipped += sum(result.clipped for result in measured.values())
        self.images += self.training.batch
        self.step_seconds += seconds
        facts: Event = {
            "samples": samples_hash(batch),
            "loss": main.loss,
            "parts": dict(main.parts),
            "grad_norm": main.grad_norm,
            "clipped": main.clipped,
            "lr": learning_rate(self.training, self.state.step - 1),
        }
        for name, result in others:
            facts |= {f"{name}/loss": result.loss, f"{name}/grad_norm": result.grad_norm}
            facts["parts"] |= {f"{name}/{part}": value for part, value in result.parts.items()}
        facts["images_per_second"] = self.training.batch / seconds if seconds > 0 else 0.0
        facts["memory"] = peak_memory_bytes(self.state.device) if self._speaks() else 0
        if self._speaks() or self.state.step == self.training.steps:
            self.event("step", **facts)
        if self.progress:
            self.progress.step({**facts, "step": self.state.step})

    def _speaks(self) -> bool:
        return self.state.step % self.training.log_every == 0

    def _validate(self) -> None:
        if self.training.validate_every:
            self.figures = heldout_figures(self.state, self.loader, self.training.validate_rows)
            if self.figures:
                self.event("validate", figures=self.figures)
                self.say(f"step {self.state.step}: " + ", ".join(f"{k} {v:.5g}" for k, v in self.figures.items()))
                self._warn()

    def _warn(self) -> None:
        """Says, and logs, what the task makes of its figures."""
        warnings = getattr(self.state.task, "warnings", None)
        for sentence in warnings(self.figures) if warnings else ():
            self.say(f"warning: {sentence}")
            self.event("warning", said=sentence)

    def _sample(self) -> None:
        if not (self.training.sample_every and self.world.first):
            return
        grid = pictures(self.state)
        if grid is None:
            return
        if not bool(torch.isfinite(grid).all()):
            self.say(f"warning: the pictures at step {self.state.step} are not all finite; check the sampler")
        path = self.folder / "samples" / f"step-{self.state.step:06}.png"
        save_grid(path, grid)
        self.event("sample", path=path.relative_to(self.folder).as_posix())

    def save(self) -> None:
        """Writes a checkpoint of this step, unless there is one."""
        if self.saved_step == self.state.step:
            return
        if self.world.first:
            if self.log:
                self.log.sync()
            self.checkpoint = save_checkpoint(self.folder, self.state, self._info(), self.training.keep)
        self.world.barrier()
        self.saved_step, self.saved_at = self.state.step, time.monotonic()

    def _preempt(self) -> None:
        self.event("preempted", signal=self.stop.received)
        raise Preempted(
            f"stopped by {self.stop.received or 'a signal'} after step {self.state.step} of {self.training.steps}; "
            "the state is saved, and the same command goes on from here"
        )

    # Ending

    def finish(self) -> Outcome:
        """Saves the component, unless that was done before."""
        if self.world.first and not self._finished():
            before = _names(self.folder)
            with self.state.averaged(), storage_errors(f"cannot save the component in {self.folder}"):
                self.state.task.save(self.folder)
            outcome = self._outcome()
            numbers = {"seconds": outcome.seconds, "images_per_second": outcome.images_per_second}
            made = sorted(_names(self.folder) - before) or sorted(before)
            self.event("done", **numbers, memory=outcome.peak_memory_bytes, figures=self.figures, files=made)
        self.world.barrier()
        return self._outcome()

    def _finished(self) -> bool:
        done = [event for event in read_log(self.folder / "log.jsonl") if event.get("event") == "done"]
        return bool(
            done
            and done[-1].get("step") == self.state.step
            and all((self.folder / str(name)).exists() for name in done[-1].get("files", ()))
        )

    def _outcome(self) -> Outcome:
        phases = max(1, self.state.step * len(self.state.task.phases))
        return Outcome(
            steps=self.state.step,
            seconds=self._seconds(),
            images_per_second=self.images / self.step_seconds if self.step_seconds else 0.0,
            peak_memory_bytes=peak_memory_bytes(self.state.device),
            last_loss=self.loss,
            figures=dict(self.figures),
            precision=self.state.precision,
            clipped=self.clipped / phases,
            resumed_from=self.resumed_from,
            checkpoint=self.checkpoint,
        )

    def close(self) -> None:
        """Ends log and progress."""
        if self.progress:
            self.progress.close()
        if self.log:
            self.log.close()

    # Speaking

    def _seconds(self) -> float:
        return self.seconds_before + time.monotonic() - self.began

    def _resolved(self) -> Training:
        return replace(self.training, precision=self.state.precision)

    def _info(self) -> dict[str, Any]:
        counters = {
            "loss": None if self.loss != self.loss else self.loss,
            "figures": self.figures,
            "clipped": self.clipped,
            "images": self.images,
            "step_seconds": self.step_seconds,
            "seconds": self._seconds(),
        }
        return {
            "settings": asdict(self._resolved()),
            "counters": counters,
            "phases": sorted(self.state.optimizers),
            "data": getattr(self.loader, "fingerprint", None),
        }

    def say(self, sentence: str) -> None:
        """Tells whoever watches."""
        if self.progress:
            self.progress.say(sentence)

    def event(self, kind: str, **facts: Any) -> None:
        """Logs an event of the current step."""
        if not self.world.first:
            return
        entry: Event = {"event": kind, "step": self.state.step, **facts, "seconds": round(self._seconds(), 3)}
        if self.log:
            self.log.write(entry)
            if self.log.broken:
                self.say(f"warning: {self.log.broken}; training goes on")
                self.log.broken = None
        if self.on_event:
            self.on_event(entry)


def _networks(task: Task) -> tuple[torch.nn.Module, ...]:
    return tuple(getattr(task, "networks", None) or task.modules.values())


def _due(step: int, every: int) -> bool:
    return bool(every) and step % every == 0


def _number(value: float | None) -> float:
    return float("nan") if value is None else float(value)


def _names(folder: Path) -> set[str]:
    ours = {"log.jsonl", "run.lock", "latest", "checkpoints", "samples", "recipe.toml", "plan.json"}
    return {path.name for path in folder.iterdir()} - ours


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
