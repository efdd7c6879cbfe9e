"""A GAN through the whole line: two phases, resumed to the bit, saved, sampled, its condition used, collapse said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from carrara.config import build
from carrara.data import write_picture
from carrara.errors import RecipeError
from carrara.gan import GanGenerator, GanSettings
from carrara.nn.discriminator import Discriminator
from carrara.rng import Rng
from carrara.store import assemble, kinds, load, load_component
from carrara.system import System
from carrara.train.checkpoint import checkpoints, read_checkpoint
from carrara.train.log import Event, read_log
from carrara.train.parallel import World
from carrara.train.recipe import Recipe, Run, read_recipe
from carrara.train.settings import Training
from carrara.train.state import State
from carrara.train.step import train_step
from carrara.train.tasks import GanRecipe, GanTask
from carrara.types import Condition
from train import resumed
from train.resumed import same_bits

# Two classes of two modes each: the half that is bright, in a colour of the class.
COLOURS = {"red": (200, 40, 40), "blue": (40, 40, 200)}
NETWORK = {"kind": "convolutional", "noise": 8, "style": 16, "widths": [16, 16], "blocks": 1, "group": 4}
JUDGE = {"kind": "convolutional", "features": 32, "widths": [16, 16], "blocks": 1, "group": 4}


def picture(name: str, number: int) -> np.ndarray:
    pixels = np.full((8, 8, 3), 20.0)
    pixels[:, 4 * (number % 2) : 4 * (number % 2) + 4] = COLOURS[name]
    noise = np.random.default_rng(number).normal(0, 6, pixels.shape)
    return (pixels + noise).clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gan")
    for name in COLOURS:
        for number in range(40):
            write_picture(folder / "pictures" / name / f"{number}.png", picture(name, number))
    return folder


def run(pictures: Path, out: Path, task: dict[str, Any] | None = None, **settings: Any) -> Run:
    train = {"steps": 6, "batch": 8, "precision": "float32", "validate_every": 3, "sample_every": 0, "warmup": 1,
             "save_every": 0, "learning_rate": 2e-3, "betas": [0.0, 0.99], "ema": 0.9, **settings}  # fmt: skip
    table = {
        "out": str(out),
        "data": {"folder": str(pictures / "pictures"), "size": 8, "heldout": 0.2},
        "task": {"kind": "gan", "text": "labels", "network": NETWORK, "discriminator": JUDGE, **(task or {})},
        "train": train,
    }
    return Run(build(Recipe, table, kinds()), cache=pictures / "cache")


def train(it: Run, stop_after: int | None = None) -> list[Event]:
    events: list[Event] = []
    resumed.train(it, stop_after, hear=events.append)
    return events


def gan(it: Run) -> GanTask:
    assert isinstance(it.task, GanTask)
    return it.task


def sampled(system: System, prompts: list[str], seeds: list[int], settings: GanSettings | None = None) -> Tensor:
    *_, last = system.generate(prompts, seeds=seeds, settings=settings)
    return last.images


def test_a_resumed_run_ends_with_the_same_bits(pictures: Path, tmp_path: Path) -> None:
    events, last = same_bits(tmp_path, lambda place, **stop: train(run(pictures, place), **stop))
    owned = {key.split("/")[0]: key.split("/")[1].split(".")[0] for key in last["optimizer"]}
    assert owned == {"generator": "generator", "discriminator": "discriminator"}  # an optimiser a phase
    assert any(key.startswith("discriminator.") for key in last["weights"])  # to go on with,
    component = load_component(tmp_path / "whole", "generator")  # not to keep
    assert isinstance(component, GanGenerator)
    assert not any(isinstance(module, Discriminator) for module in component.modules())
    (report,) = [event for event in events if event["event"] == "preflight"]
    assert not [said for said in report["warnings"] if "gradient" in said or "phase" in said], report["warnings"]
    steps = [event for event in events if event["event"] == "step"]
    assert {"discriminator/loss", "discriminator/grad_norm"} <= set(steps[-1])
    assert {"discriminator/r1", "discriminator/r2", "discriminator/margin"} <= set(steps[-1]["parts"])
    figures = [event for event in events if event["event"] == "validate"][-1]["figures"]
    assert set(figures) == {"loss", "margin", "diversity", "spread", "matched"}


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_batch_may_be_cut_into_pieces(pictures: Path, tmp_path: Path, precision: Any) -> None:
    """Losses and penalties are each row's own, so accumulation changes the order of additions alone."""

    def after(accumulate: int) -> tuple[Tensor, dict[str, float]]:
        it = run(pictures, tmp_path / f"{accumulate}")
        training = Training(batch=8, accumulate=accumulate, precision=precision, learning_rate=1e-3, betas=(0.0, 0.99))
        state = State(it.task, training, torch.device("cpu"), precision)
        for step in range(2):
            measured = train_step(state, it.loader.batch(step), World())
        flat = torch.cat([p.detach().flatten() for p in it.task.modules.parameters()])
        return flat, measured["discriminator"].parts

    (whole, parts), (cut, cut_parts) = after(1), after(4)
    assert cut_parts == pytest.approx(parts, rel=1e-3, abs=1e-3)
    assert (whole - cut).abs().mean() < (1e-6 if precision == "float32" else 1e-4)


def test_each_phase_moves_its_own_network(pictures: Path, tmp_path: Path) -> None:
    it = run(pictures, tmp_path / "run")
    task, batch = gan(it), it.loader.batch(0)
    rng = Rng.samples(0, batch.sample, "train")
    for phase in task.phases:
        phase.loss(batch, rng).rows.mean().backward(inputs=list(phase.parameters))
        moved = {name for name, p in task.modules.named_parameters() if p.grad is not None}
        assert moved and all(name.startswith(phase.name) for name in moved)
        task.modules.zero_grad(set_to_none=True)
    assert {p for phase in task.phases for p in phase.parameters} == set(task.modules.parameters())
    assert all(phase.separable for phase in task.phases) and task.networks == (task.generator.network,)


def test_modes_are_covered_told_apart_and_kept(pictures: Path, tmp_path: Path) -> None:
    """Trained for seconds: each class in its colour, both of its modes, and the same pictures from the saved system."""
    it = run(
        pictures,
        tmp_path / "run",
        {"drop": 0.2, "loss": {"mismatch": 0.1, "gamma": {"first": 10.0, "last": 1.0, "pictures": 6000}}},
        steps=300,
        batch=32,
        learning_rate=4e-3,
        decay="cosine",
        ema=0.97,
        validate_every=300,
    )
    figures = train(it)[-1]["figures"]
    folder = tmp_path / "run"
    assemble(tmp_path / "system", text=folder / "text", generator=folder, decoder=folder / "decoder")
    system = load(tmp_path / "system")
    names = [name for name in COLOURS for _ in range(32)]
    seeds = list(range(64))
    images = sampled(system, names, seeds)
    now = System(it.task.text, gan(it).generator, it.task.decoder)
    ema = read_checkpoint(checkpoints(folder)[-1]).tables["ema"]
    with torch.no_grad():
        for name, parameter in it.task.modules.named_parameters():
            parameter.copy_(ema[name])
    assert torch.equal(sampled(now, names, seeds), images)
    modes = torch.stack([torch.from_numpy(picture(name, i)).permute(2, 0, 1) for name in COLOURS for i in range(2)])
    which = torch.cdist(images.flatten(1), (modes / 127.5 - 1).flatten(1)).argmin(1)
    counts = [torch.bincount(part, minlength=4).tolist() for part in which.split(32)]
    assert sum(counts[0][:2]) >= 30 and sum(counts[1][2:]) >= 30, f"colours do not follow the class: {counts}"
    assert min(counts[0][:2] + counts[1][2:]) >= 4, f"a mode is missing: {counts}"
    assert figures["matched"] > 0.3 and figures["spread"] > 0.5 and figures["diversity"] > 0.5, figures
    assert gan(it).warnings(figures) == []
    still = sampled(system, names[:4], seeds[:4], GanSettings(truncation=0.0))
    torch.testing.assert_close(still, still[:1].expand_as(still), rtol=0, atol=1e-5)


def test_collapse_is_said(pictures: Path, tmp_path: Path) -> None:
    it = run(pictures, tmp_path / "run", {"drop": 0.0, "least_diversity": 0.2})
    network: Any = gan(it).generator.network
    with torch.no_grad():  # deaf to its noise, and then to its condition as well
        network.map1.weight[:, : network.noise] = 0
    batch = it.loader.heldout(8)
    with torch.no_grad():
        figures = gan(it).validate(batch, Rng.samples(0, batch.sample, "validate"))
    assert figures["diversity"] < 1e-3 < figures["spread"]
    (said,) = gan(it).warnings({**figures, "spread": 1.0})
    assert "one prompt" in said and "0.0%" in said and "below 20%" in said
    with torch.no_grad():
        network.map1.weight.zero_()
    warned = [event for event in train(it) if event["event"] == "warning"]
    assert len(warned) >= 2 and any("different prompts" in event["said"] for event in warned)
    assert [event for event in read_log(tmp_path / "run" / "log.jsonl") if event["event"] == "warning"] == warned
    assert gan(it).warnings({}) == []


def test_distances_are_measured_against_the_datas(pictures: Path, tmp_path: Path) -> None:
    """A generator that hands out the data itself has the diversity and the spread of the data."""
    told = gan(run(pictures, tmp_path / "told"))
    alone = gan(run(pictures, tmp_path / "alone", {"text": "unconditional"}))
    assert told._apart == pytest.approx(alone._apart) and alone._apart_told == alone._apart
    assert told._apart_told < 0.9 * told._apart  # pictures of one class have one colour
    numbers = told.pictures.train
    real = told.pictures.tensor(numbers)
    apart = torch.cdist(real.flatten(1), real.flatten(1)) / real[0].numel() ** 0.5
    mean = apart.sum() / (len(numbers) * (len(numbers) - 1))
    assert told._apart == pytest.approx(mean.item(), rel=0.25)

    class Data(torch.nn.Module):
        noise = 1

        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def forward(self, noise: Tensor, condition: Condition) -> Tensor:
            return real[(torch.special.ndtr(noise[:, 0]) * len(real)).long().clamp(max=len(real) - 1)]

    alone.generator.network = Data()
    batch = run(pictures, tmp_path / "more").loader.batch(0)
    figures = [alone.validate(batch, Rng.samples(seed, batch.sample)) for seed in range(20)]
    for name in ("diversity", "spread"):
        assert np.mean([each[name] for each in figures]) == pytest.approx(1, abs=0.3)
    assert "matched" not in figures[0]


def test_wrong_recipes_are_refused(pictures: Path, tmp_path: Path) -> None:
    for task, said in (
        ({"least_diversity": 2.0}, "least_diversity = 2.0"),
        ({"drop": -0.1}, "drop = -0.1; expected a share of rows"),
        ({"part": 1.5}, "part = 1.5; expected a share of rows"),
        ({"loss": {"mismatch": -1.0}}, "mismatch = -1.0"),
        ({"network": {**NETWORK, "widths": [8, 8, 8]}}, "task.network: .*fewer widths"),
        ({"network": {**NETWORK, "size": 16}}, "task.network.size"),
        ({"discriminator": {**JUDGE, "blokcs": 2}}, "task.discriminator.*blocks"),
        ({"settings": {"truncation": 3.0}}, "truncation = 3.0"),
    ):
        with pytest.raises(RecipeError, match=said):
            run(pictures, tmp_path / "run", task)


def test_the_emoji_recipe(pictures: Path, tmp_path: Path) -> None:
    """It is read, has no momentum, its penalties fall, and it trains."""
    path = Path(__file__).parents[2] / "recipes" / "emoji" / "gan.toml"
    recipe = read_recipe(path)
    assert recipe.out == "runs/emoji/gan" and 0 < recipe.minutes <= 25
    assert isinstance(recipe.task, GanRecipe) and recipe.train.betas == (0.0, 0.99)
    assert recipe.task.loss.gamma.first > recipe.task.loss.gamma.last > 0
    small = [f"data.folder={pictures / 'pictures'}", "data.heldout=0.2", "data.size=8", f"out={tmp_path / 'run'}"]
    small += ["task.text=labels", "task.decoder=pixels", "task.network.widths=[16,16]", "task.network.blocks=1"]
    small += ["task.network.kind=convolutional", "task.discriminator.kind=convolutional"]
    small += ["task.discriminator.widths=[16,16]", "minutes=0", "train.steps=2", "train.batch=4", "train.warmup=1"]
    outcome = Run(read_recipe(path, small), cache=tmp_path / "cache").train(progress=False, rehearsal=False)
    assert outcome.steps == 2
