"""A step's arithmetic: means over the whole batch, clipping, the learning rate, averages, and what is refused."""

from __future__ import annotations

import hashlib
import math
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import nn

from carrara.errors import NonFiniteError, RecipeError
from carrara.rng import Rng
from carrara.train import Loss, Phase, Training, fit
from carrara.train.checkpoint import checkpoints, read_checkpoint
from carrara.train.ema import Ema
from carrara.train.judge import heldout_figures, pictures
from carrara.train.log import read_log
from carrara.train.optim import learning_rate
from carrara.train.parallel import World
from carrara.train.state import State
from carrara.train.step import gradients, rows_of, slices, train_step
from carrara.types import Batch
from train.crash import state_at
from train.toy import ToyLoader, ToyTask, settings

CPU = torch.device("cpu")


def digest(module: nn.Module) -> str:
    data = b"".join(value.numpy().tobytes() for value in module.state_dict().values())
    return hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("cuts", [(4, 4), (5, 3), (3, 3, 2), (1,) * 8])
def test_micro_batches_give_the_gradient_of_the_whole_batch(cuts: tuple[int, ...], double: bool) -> None:
    task = ToyTask(dropout=0.0)
    batch = ToyLoader().batch(3)
    if double:
        task.modules.double()
        batch = Batch(batch.images.double(), batch.captions, batch.index, batch.sample)
    state = State(task, settings(), CPU, "float32")
    if double:  # the toy's own loss is in float32
        task.phases = tuple(phase._replace(loss=_in_double(task, phase.name)) for phase in task.phases)
    edges = [sum(cuts[:i]) for i in range(len(cuts) + 1)]
    for phase in task.phases:
        whole, parts = gradients(state, phase, batch, [slice(0, 8)], World())
        expected = [parameter.grad for parameter in phase.parameters]
        mean, same_parts = gradients(state, phase, batch, [slice(a, b) for a, b in pairwise(edges)], World())
        tolerance = 1e-12 if double else 1e-6
        assert mean == pytest.approx(whole, abs=tolerance)
        assert same_parts == pytest.approx(parts, abs=1e-6)
        for parameter, gradient in zip(phase.parameters, expected, strict=True):
            assert parameter.grad is not None and gradient is not None
            torch.testing.assert_close(parameter.grad, gradient, atol=tolerance, rtol=0)


def _in_double(task: ToyTask, name: str):  # type: ignore[no-untyped-def]
    def loss(batch: Batch, rng: Rng) -> Loss:
        noisy = batch.images + rng.normal_like(batch.images)
        made = task.modules["body"](noisy)
        if name == "critic":
            return Loss(task.modules["critic"](made.detach().flatten(1)).flatten())
        return Loss((made - batch.images).square().mean((1, 2, 3)))

    return loss


def test_accumulation_changes_a_run_by_rounding_alone(tmp_path: Path) -> None:
    ends = []
    for parts in (1, 2, 3):
        task = ToyTask(dropout=0.0)
        fit(task, ToyLoader(), settings(accumulate=parts, steps=5), tmp_path / str(parts), progress=False)
        ends.append(torch.cat([p.detach().flatten() for p in task.modules["body"].parameters()]))
    torch.testing.assert_close(ends[1], ends[0], atol=1e-6, rtol=0)
    torch.testing.assert_close(ends[2], ends[0], atol=1e-6, rtol=0)


def test_rows_keep_their_own_randomness_and_belongings() -> None:
    batch = Batch(torch.zeros(4, 1, 2, 2), ("a", "b", "c", "d"), (4, 5, 6, 7), (10, 11, 12, 13),
                  {"mask": torch.arange(4)}, ("w", "x", "y", "z"))  # fmt: skip
    part = rows_of(batch, slice(1, 3))
    assert (part.captions, part.index, part.sample, part.labels) == (("b", "c"), (5, 6), (11, 12), ("x", "y"))
    assert part.inputs["mask"].tolist() == [1, 2]
    whole = Rng.samples(0, batch.sample, "train").normal((3,))
    assert torch.equal(whole[1:3], Rng.samples(0, part.sample, "train").normal((3,)))
    assert slices(8, 3) == (slice(0, 2), slice(2, 5), slice(5, 8))
    assert slices(2, 5) == (slice(0, 1), slice(1, 2))


def test_rows_that_see_each_other_are_not_cut_up() -> None:
    with pytest.raises(RecipeError, match=r"`body` compares the rows .* `accumulate` = 2"):
        State(ToyTask(separable=False), settings(accumulate=2), CPU, "float32")
    State(ToyTask(separable=False), settings(), CPU, "float32")


def test_a_loss_gives_a_number_a_row() -> None:
    task = ToyTask()
    task.phases = (task.phases[0]._replace(loss=lambda batch, rng: Loss(torch.zeros(()))),)
    with pytest.raises(ValueError, match=r"shape \(\) for 8 rows; give one number a row"):
        train_step(State(task, settings(), CPU, "float32"), ToyLoader().batch(0), World())


def test_phases_are_checked() -> None:
    task = ToyTask()
    cases = [
        ((), "no phases"),
        ((task.phases[0], task.phases[0]), "different names"),
        ((Phase("x", (), task.denoise),), "no parameter to train"),
        ((Phase("x", task.phases[0].parameters * 2, task.denoise),), "twice"),
        ((Phase("x", (nn.Parameter(torch.ones(1)),), task.denoise),), "not in the task's modules"),
    ]
    for phases, words in cases:
        task.phases = phases
        with pytest.raises(RecipeError, match=words):
            State(task, settings(), CPU, "float32")


def test_a_phase_moves_its_own_parameters_only() -> None:
    task = ToyTask()
    task.phases = task.phases[1:]  # the critic's loss reaches the body, which has no optimiser here
    state = State(task, settings(), CPU, "float32")
    body, critic = digest(task.modules["body"]), digest(task.modules["critic"])
    train_step(state, ToyLoader().batch(0), World())
    assert digest(task.modules["body"]) == body
    assert digest(task.modules["critic"]) != critic
    assert all(parameter.grad is None for parameter in task.modules.parameters())


def test_the_learning_rate_is_a_table_of_steps() -> None:
    training = Training(steps=10, warmup=4, learning_rate=1.0, decay="cosine")
    rates = [learning_rate(training, step) for step in range(10)]
    assert rates[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert rates[7] == pytest.approx(0.5)
    assert rates == pytest.approx(rates[:4] + [0.5 * (1 + math.cos(math.pi * i / 6)) for i in range(6)])
    assert learning_rate(training, 10) == 0.0
    constant = Training(steps=10, warmup=0, learning_rate=0.3, batch=8, accumulate=4)
    assert {learning_rate(constant, step) for step in range(10)} == {0.3}
    assert learning_rate(Training(steps=3, warmup=100, learning_rate=1.0), 2) == pytest.approx(0.03)


def test_the_rate_in_the_log_does_not_know_of_micro_batches(tmp_path: Path) -> None:
    tables = []
    for parts in (1, 4):
        folder = tmp_path / str(parts)
        fit(ToyTask(), ToyLoader(), settings(accumulate=parts), folder, progress=False)
        tables.append([event["lr"] for event in read_log(folder / "log.jsonl") if event["event"] == "step"])
    assert tables[0] == tables[1] == [learning_rate(settings(), step) for step in range(12)]


def test_gradients_are_clipped_and_told() -> None:
    loose = train_step(state_at(0, clip=None), ToyLoader().batch(0), World())["body"]
    assert not loose.clipped and loose.grad_norm > 0.1
    seen: list[float] = []
    state = state_at(0, clip=0.1)
    optimizer = state.optimizers["body"]
    optimizer.register_step_pre_hook(
        lambda *_: seen.append(float(nn.utils.get_total_norm([p.grad for p in state.task.phases[0].parameters])))
    )
    tight = train_step(state, ToyLoader().batch(0), World())["body"]
    assert tight.clipped and tight.grad_norm == loose.grad_norm
    assert seen == [pytest.approx(0.1, rel=1e-4)]


def test_weight_decay_leaves_biases_alone() -> None:
    state = state_at(0, weight_decay=0.5)
    for group in state.optimizers["body"].param_groups:
        assert {p.ndim >= 2 for p in group["params"]} == {group["weight_decay"] > 0}


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_takes_no_step(tmp_path: Path, value: float) -> None:
    good = tmp_path / "good"
    before = ToyTask()
    fit(before, ToyLoader(), settings(steps=7, decay="constant"), good, progress=False)
    task = ToyTask()
    task.poison = lambda batch: value if batch.sample[0] == 7 * 8 else 1.0
    folder = tmp_path / "poisoned"
    with pytest.raises(NonFiniteError, match=r"at step 8 the loss of phase `body` is .* part `worst`") as caught:
        fit(task, ToyLoader(), settings(decay="constant"), folder, progress=False)
    assert caught.value.exit_code == 4
    assert "This step was not taken" in str(caught.value)
    assert "The checkpoint of step 6 is untouched" in str(caught.value)
    assert digest(task.modules) == digest(before.modules)
    assert checkpoints(folder)[-1].name == "step-00000006"
    read_checkpoint(checkpoints(folder)[-1])
    assert read_log(folder / "log.jsonl")[-1]["event"] == "nonfinite"
    task.poison = None
    fit(ToyTask(), ToyLoader(), settings(decay="constant"), folder, progress=False)
    whole = ToyTask()
    fit(whole, ToyLoader(), settings(decay="constant"), tmp_path / "whole", progress=False)
    ends = [read_checkpoint(checkpoints(path)[-1]).tables["weights"] for path in (folder, tmp_path / "whole")]
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[1])


def test_a_gradient_or_weight_that_is_not_finite_is_named() -> None:
    task = ToyTask()
    state = State(task, settings(), CPU, "float32")
    hook = task.modules["body"][3].bias.register_hook(lambda gradient: gradient * float("inf"))
    body = digest(task.modules)
    with pytest.raises(NonFiniteError, match=r"gradient of body\.3\.bias is the first"):
        train_step(state, ToyLoader().batch(0), World())
    assert digest(task.modules) == body and state.step == 0
    hook.remove()
    with torch.no_grad():
        task.modules["body"][0].weight[0] = float("nan")
    with pytest.raises(NonFiniteError, match=r"weight body\.0\.weight is not finite"):
        train_step(state, ToyLoader().batch(0), World())


def test_the_average_of_constant_weights_is_a_product() -> None:
    weight = nn.Parameter(torch.full((3,), 2.0, dtype=torch.float64))
    ema = Ema({"w": weight}, 0.6)
    with torch.no_grad():
        weight.fill_(5.0)
    held = 1.0
    for n in range(20):
        ema.update(n)
        held *= min(0.6, (1 + n) / (10 + n))
    torch.testing.assert_close(ema.average["w"], torch.full((3,), 5.0 - 3.0 * held, dtype=torch.float64))
    assert ema.decay_at(0) == 0.1 and ema.decay_at(10**6) == 0.6


def test_judging_sees_the_average_and_gives_the_weights_back() -> None:
    state = state_at(5)
    task = state.task
    assert isinstance(task, ToyTask) and state.ema
    live, average = digest(task.modules), {name: value.clone() for name, value in state.ema.average.items()}
    task.modules["critic"].eval()
    modes = [module.training for module in task.modules.modules()]
    with state.averaged():
        assert all(torch.equal(value, average[name]) for name, value in task.modules.state_dict().items())
        assert not torch.is_grad_enabled() and not any(module.training for module in task.modules.modules())
    figures = heldout_figures(state, ToyLoader(), 5)
    assert figures == heldout_figures(state, ToyLoader(), 5)
    first, second = pictures(state), pictures(state)
    assert first is not None and second is not None and torch.equal(first, second)
    with pytest.raises(KeyError), state.averaged():
        raise KeyError
    assert digest(task.modules) == live
    assert all(torch.equal(value, average[name]) for name, value in state.ema.average.items())
    assert [module.training for module in task.modules.modules()] == modes
    assert all(parameter.requires_grad for parameter in task.modules.parameters())


def test_judging_has_no_effect_on_training(tmp_path: Path) -> None:
    ends = []
    for name, every in (("often", 1), ("never", 0)):
        task = ToyTask()
        fit(task, ToyLoader(), settings(validate_every=every, sample_every=every), tmp_path / name, progress=False)
        ends.append(digest(task.modules))
    assert ends[0] == ends[1]


def test_without_an_average_the_weights_themselves_are_saved(tmp_path: Path) -> None:
    task = ToyTask()
    fit(task, ToyLoader(), settings(ema=0.0), tmp_path, progress=False)
    found = read_checkpoint(checkpoints(tmp_path)[-1])
    assert set(found.tables) == {"weights", "optimizer", "task"}


@pytest.mark.parametrize(
    "change",
    [{"steps": 0}, {"batch": 0}, {"learning_rate": 0.0}, {"learning_rate": float("nan")}, {"betas": (0.9, 1.0)},
     {"clip": 0.0}, {"ema": 1.0}, {"accumulate": 9}, {"save_seconds": -1.0}, {"seed": -1}, {"weight_decay": -1.0}],
)  # fmt: skip
def test_settings_out_of_range_are_refused(change: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=f"`{next(iter(change))}` (is|are)"):
        settings(**change)
