"""The rehearsal finds what would fail, measures, and leaves no trace."""

from __future__ import annotations

import importlib
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from carrara.errors import DataError, NonFiniteError, Preempted, RecipeError, StorageError
from carrara.train import fit, measure_step_seconds, preflight
from carrara.train.checkpoint import checkpoints, read_checkpoint
from carrara.train.log import Event, read_log
from carrara.train.parallel import World
from carrara.train.precision import autocast, candidates, compile_networks
from carrara.train.preflight import rehearse
from carrara.types import Batch
from train.crash import same, state_at
from train.test_step import digest
from train.toy import ToyLoader, ToyTask, settings

CPU = torch.device("cpu")
rehearsal = importlib.import_module("carrara.train.preflight")


class Changed(ToyLoader):
    """The toy's data with something done to them."""

    def __init__(self, change: Callable[[Batch], Batch]) -> None:
        super().__init__()
        self.change = change

    def batch(self, step: int) -> Batch:
        return self.change(super().batch(step))


def with_pixel(value: float) -> Changed:
    def change(batch: Batch) -> Batch:
        images = batch.images.clone()
        images[5, 0, 1, 1] = value
        return replace(batch, images=images)

    return Changed(change)


def test_the_state_is_the_same_afterwards(tmp_path: Path) -> None:
    state = state_at(3)
    before = {name: {k: v.clone() for k, v in table.items()} for name, table in state.tables().items()}
    generator = torch.random.get_rng_state()
    with rehearsal.isolated(CPU):
        report = rehearse(state, ToyLoader(), tmp_path / "run", World())
    assert same(state.tables(), before)
    assert torch.equal(generator, torch.random.get_rng_state())
    assert state.step == 3 and state.precision == "float32"
    assert all(parameter.grad is None for parameter in state.task.modules.parameters())
    assert all(module.training for module in state.task.modules.modules())
    assert list((tmp_path / "run").iterdir()) == []
    assert report.step_seconds > 0 and report.projected_seconds > 12 * report.step_seconds
    assert report.peak_memory_bytes > 2**20 and report.checkpoint_bytes > 1000


def test_buffers_that_are_not_stored_are_put_back() -> None:
    task = ToyTask()
    norm = nn.BatchNorm2d(1)
    norm.register_buffer("scratch", torch.zeros(2), persistent=False)
    task.modules["body"] = nn.Sequential(norm, *task.modules["body"])
    norm.register_forward_pre_hook(lambda *_: setattr(norm, "scratch", norm.scratch + 1))
    before = {name: value.clone() for name, value in task.modules.named_buffers()}
    measure_step_seconds(task, ToyLoader(), settings(), repeats=1)
    assert all(torch.equal(value, before[name]) for name, value in task.modules.named_buffers())


def test_a_rehearsed_run_has_the_bits_of_one_that_was_not(tmp_path: Path) -> None:
    for name, rehearsal in (("with", True), ("without", False)):
        fit(ToyTask(), ToyLoader(), settings(), tmp_path / name, progress=False, rehearsal=rehearsal)
    ends = [read_checkpoint(checkpoints(tmp_path / name)[-1]).tables for name in ("with", "without")]
    assert same(*ends)


def test_the_task_of_a_public_measurement_is_as_before(tmp_path: Path) -> None:
    task = ToyTask()
    before = digest(task.modules)
    found = measure_step_seconds(task, ToyLoader(), settings(precision="auto"))
    assert found.seconds > 0 and found.precision in candidates(CPU, "auto") and found.peak_memory_bytes > 0
    report = preflight(task, ToyLoader(), settings(), tmp_path / "run")
    assert report.precision == "float32"
    assert digest(task.modules) == before and task.seen == 0


@pytest.mark.parametrize(
    "loader, words",
    [
        (with_pixel(float("nan")), "picture 5 of the data holds NaN"),
        (with_pixel(255.0), r"picture 5 has values from .* to 255; pictures must lie in \[-1, 1\]"),
        (Changed(lambda batch: replace(batch, images=batch.images.to(torch.uint8))), "uint8"),
    ],
)
def test_data_that_cannot_be_used_are_refused(tmp_path: Path, loader: ToyLoader, words: str) -> None:
    with pytest.raises(DataError, match=words):
        fit(ToyTask(), loader, settings(), tmp_path, progress=False)
    assert not checkpoints(tmp_path)


def test_a_batch_of_another_size_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="give 4 rows a step and `batch` is 8"):
        fit(ToyTask(), ToyLoader(4), settings(), tmp_path, progress=False)


def test_parameters_that_are_left_out_are_named(tmp_path: Path) -> None:
    task = ToyTask(phases=1)
    task.modules["body"].register_parameter("unused", nn.Parameter(torch.zeros(2)))
    task.modules["body"].register_parameter("frozen", nn.Parameter(torch.zeros(2), requires_grad=False))
    task.phases = (task.phases[0]._replace(parameters=tuple(task.modules["body"].parameters())),)
    warnings = preflight(task, ToyLoader(), settings(), tmp_path).warnings
    assert warnings == (
        "2 parameters: critic.bias, critic.weight can be trained and no phase trains it",
        "parameter body.unused gets no gradient: the loss does not depend on it",
    )


def test_a_network_that_begins_at_zero_is_not_warned_of(tmp_path: Path) -> None:
    task = ToyTask(phases=1)
    nn.init.zeros_(task.modules["body"][3].weight)
    del task.modules["critic"]
    assert preflight(task, ToyLoader(), settings(), tmp_path).warnings == ()


def test_timing_ends_when_its_time_is_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """One step that warms up, and one that is measured: less would be none."""
    seen: list[int] = []
    rows = ToyLoader.batch
    monkeypatch.setattr(ToyLoader, "batch", lambda loader, step: (seen.append(step), rows(loader, step))[1])
    measure_step_seconds(ToyTask(), ToyLoader(), settings(), longest=0.0)
    assert seen == [0, 1]


def test_a_warmup_that_never_ends_is_warned_of(tmp_path: Path) -> None:
    before, after = (
        preflight(ToyTask(), ToyLoader(), settings(warmup=n), tmp_path / str(n)).warnings for n in (12, 13)
    )
    assert after[:-1] == before
    assert "`warmup` is 13 and the run has 12 steps" in after[-1]


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory. Tried"), MemoryError(),
              RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")],
)  # fmt: skip
def test_running_out_of_memory_names_the_knobs(tmp_path: Path, error: Exception) -> None:
    task = ToyTask()

    def fail(batch: Batch) -> float:
        raise error

    task.poison = fail
    before = digest(task.modules)
    with pytest.raises(RecipeError, match="out of memory with 4 rows at a time: set `accumulate` above 2") as caught:
        fit(task, ToyLoader(), settings(accumulate=2), tmp_path, progress=False)
    assert "bfloat16" in str(caught.value)
    assert digest(task.modules) == before


def test_other_errors_pass_as_they_are(tmp_path: Path) -> None:
    task = ToyTask()

    def fail(batch: Batch) -> float:
        raise RuntimeError("shapes do not match")

    task.poison = fail
    with pytest.raises(RuntimeError, match="shapes do not match"):
        fit(task, ToyLoader(), settings(), tmp_path, progress=False)


def test_a_component_that_cannot_be_saved_is_found_before_the_first_step(tmp_path: Path) -> None:
    task = ToyTask()

    def fail(folder: Path) -> None:
        raise StorageError("no such kind")

    task.save = fail  # type: ignore[method-assign]
    with pytest.raises(StorageError, match="no such kind"):
        fit(task, ToyLoader(), settings(), tmp_path, progress=False)
    assert not checkpoints(tmp_path) and not (tmp_path / "preflight.tmp").exists()


def test_the_precision_that_was_chosen_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    seconds = {"float32": 2.0, "bfloat16": 1.0}
    monkeypatch.setattr(rehearsal, "_time_steps", lambda state, *_: [seconds[state.precision]])

    def stop(event: Event) -> None:
        if event["event"] == "step" and event["step"] == 5:
            raise Preempted("away")

    fit(ToyTask(), ToyLoader(), settings(precision="auto"), tmp_path / "whole", progress=False)
    with pytest.raises(Preempted):
        fit(ToyTask(), ToyLoader(), settings(precision="auto"), tmp_path / "run", progress=False, on_event=stop)
    seconds["float32"] = 0.5  # another choice would be made now
    outcome = fit(ToyTask(), ToyLoader(), settings(precision="auto"), tmp_path / "run", progress=False)
    assert outcome.precision == "bfloat16" and outcome.resumed_from == 3
    assert same(*(read_checkpoint(checkpoints(tmp_path / name)[-1]).tables for name in ("run", "whole")))
    with pytest.raises(RecipeError, match=r"precision .was 'bfloat16', is 'float32'"):
        fit(ToyTask(), ToyLoader(), settings(), tmp_path / "run", progress=False)
    start = next(event for event in read_log(tmp_path / "run" / "log.jsonl") if event["event"] == "start")
    assert start["settings"]["precision"] == "bfloat16"


def test_a_precision_that_gives_no_finite_loss_is_not_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": True})
    task = ToyTask()
    task.poison = lambda batch: float("nan") if torch.is_autocast_enabled("cpu") else 1.0
    assert measure_step_seconds(task, ToyLoader(), settings(precision="auto")).precision == "float32"
    task.poison = lambda batch: float("nan")
    with pytest.raises(NonFiniteError, match="This was a trial before the run, of which nothing is kept"):
        measure_step_seconds(task, ToyLoader(), settings(precision="auto"))


def test_candidates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True})
    assert candidates(CPU, "auto") == ("float32",)
    assert candidates(CPU, "bfloat16") == ("bfloat16",)
    assert candidates(torch.device("mps"), "auto") == ("float32",)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)
    assert candidates(torch.device("cuda"), "auto") == ("bfloat16",)


def test_a_pass_without_gradients_does_not_cut_off_the_next() -> None:
    layer = nn.Linear(4, 4)
    x = torch.randn(2, 4, generator=torch.Generator().manual_seed(0))
    with autocast(CPU, "bfloat16"):
        with torch.no_grad():
            guess = layer(x)
        out = layer(x + guess.float())
    assert out.dtype == torch.bfloat16
    out.float().sum().backward()
    assert layer.weight.grad is not None and layer.weight.grad.dtype == torch.float32


def test_compiling_needs_a_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(RecipeError, match=r"`compile` is on and no C\+\+ compiler"):
        fit(ToyTask(), ToyLoader(), settings(compile=True), tmp_path, progress=False)


def test_the_task_says_what_is_compiled(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    compiled: list[nn.Module] = []
    monkeypatch.setattr(shutil, "which", lambda _: "/usr/bin/g++")
    monkeypatch.setattr(nn.Module, "compile", lambda self, *_: compiled.append(self))
    task: Any = ToyTask()
    fit(task, ToyLoader(), settings(compile=True, steps=1), tmp_path / "a", progress=False)
    assert compiled == list(task.modules.values())
    compiled.clear()
    task.networks = (task.modules["body"],)
    fit(task, ToyLoader(), settings(compile=True, steps=1), tmp_path / "b", progress=False)
    assert compiled == [task.modules["body"]]
    start = next(event for event in read_log(tmp_path / "b" / "log.jsonl") if event["event"] == "preflight")
    assert "`compile` has no effect" in start["warnings"][-1]
    compile_networks([], CPU)


class Net(nn.Module):
    """A network of one's own: torch's own containers are not compiled by themselves."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = ToyTask(dropout=0.0).modules["body"]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_compiled_run_is_like_one_that_is_not(tmp_path: Path) -> None:
    ends = []
    for name, compiled in (("plain", False), ("compiled", True)):
        task = ToyTask()
        net = Net()
        task.modules["body"] = net
        task.phases = (task.phases[0]._replace(parameters=tuple(net.parameters())),)
        outcome = fit(task, ToyLoader(), settings(compile=compiled), tmp_path / name, progress=False)
        ends.append((outcome.last_loss, outcome.figures["error"]))
    assert ends[0] == pytest.approx(ends[1], abs=1e-5)
    start = next(event for event in read_log(tmp_path / "compiled" / "log.jsonl") if event["event"] == "preflight")
    assert not [warning for warning in start["warnings"] if "compile" in warning]
