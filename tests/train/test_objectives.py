"""Runs with every objective: what learns beside the network is trained, kept, resumed to the bit and loaded again."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from carrara.config import build
from carrara.data import write_picture
from carrara.diffusion import DiffusionGenerator, Importance, LearnedLogSNR
from carrara.errors import RecipeError
from carrara.rng import Rng
from carrara.store import kinds, load_component
from carrara.train.checkpoint import checkpoints, read_checkpoint
from carrara.train.parallel import World
from carrara.train.recipe import Recipe, Run
from carrara.train.settings import Training
from carrara.train.state import State
from carrara.train.step import rows_of, train_step
from carrara.train.tasks import DiffusionTask
from train.resumed import same_bits, train

TABLE = {"kind": "linear-betas", "steps": 4, "first": 0.1, "last": 0.5}
INTEGER = {"kind": "integer-step", "steps": 4}
IMPORTANCE = {"kind": "importance", "steps": 4, "history": 2}
TASKS: dict[str, dict[str, Any]] = {
    "hybrid": {
        "schedule": TABLE,
        "parameterization": {"kind": "epsilon"},
        "level": INTEGER,
        "learned_variance": True,
        "objective": {
            "kind": "hybrid",
            "simple": {"draw": IMPORTANCE, "weight": {"kind": "uncertainty", "inner": {"kind": "p2"}, "waves": 8}},
        },
    },
    "bound": {
        "schedule": TABLE,
        "parameterization": {"kind": "epsilon"},
        "level": INTEGER,
        "learned_variance": True,
        "objective": {"kind": "bound", "variance": {"kind": "learned"}, "draw": IMPORTANCE},
    },
    "learned schedule": {
        "schedule": {"kind": "learned", "curves": 3},
        "parameterization": {"kind": "epsilon"},
        "level": {"kind": "log-sigma"},
        "objective": {"kind": "least-variance", "bound": {}},
    },
    "denoising": {
        "schedule": {"kind": "sigmoid"},
        "parameterization": {"kind": "v"},
        "objective": {
            "kind": "denoising",
            "draw": {"kind": "low-discrepancy", "inner": {"kind": "mode"}},
            "weight": {"kind": "per-logsnr", "inner": {"kind": "sigmoid", "bias": -1.0}},
        },
    },
}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("objectives")
    for number in range(24):
        pixels = np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        write_picture(folder / "pictures" / f"{number}.png", pixels)
    return folder


def run(pictures: Path, out: Path, task: dict[str, Any], **settings: Any) -> Run:
    network = {"kind": "unet", "channels": 8, "multipliers": [1], "blocks": 1, "attention": [], "groups": 4}
    train = {"steps": 6, "batch": 8, "precision": "float32", "validate_every": 3, "sample_every": 0, "warmup": 1,
             "save_every": 0, "learning_rate": 0.01, "ema": 0.5, **settings}  # fmt: skip
    table = {
        "out": str(out),
        "data": {"folder": str(pictures / "pictures"), "size": 8, "heldout": 0.2},
        "task": {
            "kind": "diffusion",
            "network": network,
            "settings": {"guidance": {"kind": "plain"}, "times": {"kind": "uniform", "steps": 2}},
            **task,
        },
        "train": train,
    }
    return Run(build(Recipe, table, kinds()), cache=pictures / "cache")


@pytest.mark.parametrize("name", TASKS)
def test_a_resumed_run_ends_with_the_same_bits(pictures: Path, tmp_path: Path, name: str) -> None:
    _, last = same_bits(tmp_path, lambda place, **stop: train(run(pictures, place, TASKS[name]), **stop))
    began = read_checkpoint(checkpoints(tmp_path / "whole")[0]).tables["weights"]
    if name in ("hybrid", "bound"):
        prefix = "simple_draw" if name == "hybrid" else "draw"
        counts, losses = (last["task"][f"{prefix}/{key}"] for key in ("counts", "losses"))
        assert counts.sum() > 4 and bool((losses != 0).any())
    if name == "hybrid":
        for part in ("coefficients", "constant"):
            assert bool((last["weights"][f"simple_weight.{part}"] != 0).any())
            assert f"simple_weight.{part}" in last["ema"]
    if name == "learned schedule":
        learned = {key: value for key, value in last["weights"].items() if ".schedule." in key}
        assert len(learned) == 5
        fresh = LearnedLogSNR(curves=3)
        for key, value in learned.items():
            assert not torch.equal(value, getattr(fresh, key.rsplit(".", 1)[1])) and key in last["ema"]
    assert began.keys() == last["weights"].keys()


def test_a_learned_schedule_is_the_components(pictures: Path, tmp_path: Path) -> None:
    it = run(pictures, tmp_path / "run", TASKS["learned schedule"])
    train(it)
    generator = load_component(tmp_path / "run", "generator")
    assert isinstance(generator, DiffusionGenerator)
    schedule = generator.denoiser.process.schedule
    ema = read_checkpoint(checkpoints(tmp_path / "run")[-1]).tables["ema"]
    assert isinstance(schedule, LearnedLogSNR)
    assert torch.equal(schedule.first, ema["generator.denoiser.schedule.first"])
    assert schedule.logsnr(1e-3) == pytest.approx(ema["generator.denoiser.schedule.first"].item(), rel=1e-9)
    # the recipe's own was not trained: it makes the same task again
    assert isinstance(it.recipe.task.schedule, LearnedLogSNR)  # type: ignore[attr-defined]
    assert it.recipe.task.schedule.first.item() == pytest.approx(13.3)  # type: ignore[attr-defined]


def test_importance_does_not_see_how_a_batch_is_cut(pictures: Path, tmp_path: Path) -> None:
    """One process or two, a batch at once or in pieces: the same losses are remembered, in the same order."""

    def after(accumulate: int, world: World = World()) -> Importance:  # noqa: B008 - frozen
        it = run(pictures, tmp_path / f"{accumulate}", TASKS["bound"])
        training = Training(batch=8, accumulate=accumulate, precision="float32", learning_rate=1e-4)
        task = it.task
        assert isinstance(task, DiffusionTask)
        state = State(task, training, torch.device("cpu"), "float32")
        for step in range(3):
            train_step(state, it.loader.batch(step), world)
        (draw,) = task._draws.values()
        assert isinstance(draw, Importance)
        return draw

    whole, cut = after(1), after(4)
    assert torch.equal(whole.counts, cut.counts) and whole.counts.sum() >= 6
    torch.testing.assert_close(whole.losses, cut.losses, rtol=1e-4, atol=1e-5)

    class Half(World):
        """A process of two whose sibling's rows are handed to it."""

        other: torch.Tensor

        def gather(self, rows: torch.Tensor) -> torch.Tensor:
            return torch.cat([rows, self.other])

    it = run(pictures, tmp_path / "half", TASKS["bound"])
    assert isinstance(it.task, DiffusionTask)
    batch, task = it.loader.batch(0), it.task
    rows: list[torch.Tensor] = []
    other = run(pictures, tmp_path / "other", TASKS["bound"]).task
    assert isinstance(other, DiffusionTask)
    tasks = [task, other]
    for half, mine in enumerate(tasks):
        part = rows_of(batch, slice(4 * half, 4 * half + 4))
        mine.loss(part, Rng.samples(0, part.sample, "train", "denoising"))
    (first,), (second,) = (list(mine._draws.values()) for mine in tasks)

    def overheard(found: torch.Tensor) -> torch.Tensor:
        rows.append(found)
        return found

    second.commit(overheard)
    world = Half()
    object.__setattr__(world, "other", rows[0])
    task.after_step(world)
    single = run(pictures, tmp_path / "single", TASKS["bound"]).task
    assert isinstance(single, DiffusionTask) and isinstance(first, Importance)
    single.loss(batch, Rng.samples(0, batch.sample, "train", "denoising"))
    single.after_step(World())
    (all_of_it,) = single._draws.values()
    assert isinstance(all_of_it, Importance) and torch.equal(first.counts, all_of_it.counts)
    torch.testing.assert_close(first.losses, all_of_it.losses, rtol=1e-4, atol=1e-5)


class Threads(World):
    """A process of three that are threads, whose sums go through a list."""

    sums: dict[int, tuple[float, ...]]
    wait: threading.Barrier

    def total(self, *numbers: float) -> tuple[float, ...]:
        self.sums[self.rank] = numbers
        self.wait.wait()
        found = tuple(map(sum, zip(*(self.sums[rank] for rank in range(self.size)), strict=True)))
        self.wait.wait()
        return found


def test_rows_of_all_processes_are_gathered_in_their_order() -> None:
    sums, wait = {}, threading.Barrier(3)
    rows = [torch.arange(n * 2, dtype=torch.float64).view(n, 2) + 100 * rank for rank, n in enumerate((2, 0, 3))]
    found: dict[int, torch.Tensor] = {}

    def gather(rank: int) -> None:
        here = Threads(rank, 3)
        object.__setattr__(here, "sums", sums)
        object.__setattr__(here, "wait", wait)
        found[rank] = here.gather(rows[rank])

    threads = [threading.Thread(target=gather, args=(rank,)) for rank in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    for rank in range(3):
        assert torch.equal(found[rank], torch.cat(rows))
    assert torch.equal(World().gather(rows[0].float()), rows[0])


@pytest.mark.parametrize(
    "change, said",
    [
        ({"objective": {"kind": "hybrid"}, "schedule": TABLE, "level": INTEGER}, "learned_variance"),
        ({"learned_variance": True}, "HybridLoss"),
        ({"schedule": {"kind": "learned"}}, "ContinuousBoundLoss"),
        ({"objective": {"kind": "least-variance", "bound": {}}}, "no interior"),
        ({"objective": {"kind": "continuous-bound", "levels": 65536}}, "256"),
        ({"level": {"kind": "integer-step"}, "schedule": TABLE}, r"IntegerStep\(4\)"),
        ({"parameterization": {"kind": "epsilon"}}, "task.parameterization"),
    ],
)
def test_what_does_not_fit_is_a_recipe_error(pictures: Path, tmp_path: Path, change: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        run(pictures, tmp_path, change)
