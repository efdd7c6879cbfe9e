"""The VAE's training: pictures that it reproduces, runs that resume to the bit, a component that loads and samples."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from carrara.config import build, describe
from carrara.data import open_pictures, write_picture
from carrara.data.settings import DataSettings
from carrara.decoder import Pixels, psnr
from carrara.errors import RecipeError
from carrara.rng import Rng
from carrara.store import assemble, kinds, load, load_component
from carrara.text import Labels
from carrara.train.checkpoint import checkpoints, read_checkpoint
from carrara.train.log import read_log
from carrara.train.recipe import Recipe, Run, read_recipe
from carrara.train.tasks import VaeRecipe, VaeTask
from carrara.types import Condition, Space
from carrara.vae import DiscretisedLogistic, Normal, VaeGenerator, VaeObjective, VaeSettings
from train.resumed import same_bits, train

RECIPES = Path(__file__).parents[2] / "recipes" / "emoji"
NAMES = ("apples", "boats", "cats", "drums")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four classes, each of one pattern of blocks that is darker or lighter from picture to picture."""
    folder = tmp_path_factory.mktemp("vae")
    y, x = np.mgrid[:8, :8] // 4
    for name, pattern in zip(NAMES, (x, y, x ^ y, x & y), strict=True):
        for i in range(6):
            pixels = (40 + 20 * i + 60 * pattern).astype(np.uint8)
            write_picture(folder / "pictures" / name / f"{i}.png", pixels[:, :, None])
    return folder


def run(pictures: Path, out: Path, train: dict[str, Any] | None = None, **task: Any) -> Run:
    network = {"kind": "ladder", "widths": [8, 12], "blocks": [0, 0], "levels": [1, 1], "latent": 2}
    table = {
        "out": str(out),
        "data": {"folder": str(pictures / "pictures"), "size": 8, "heldout": 0.2},
        "task": {"kind": "vae", "network": network, "text": "labels", **task},
        "train": {
            "steps": 6,
            "batch": 8,
            "precision": "float32",
            "validate_every": 3,
            "sample_every": 0,
            "warmup": 1,
            "save_every": 0,
            "learning_rate": 0.01,
            "ema": 0.5,
            **(train or {}),
        },
    }
    return Run(build(Recipe, table, kinds()), cache=pictures / "cache")


def test_it_learns_pictures_and_what_they_are_called(pictures: Path, tmp_path: Path) -> None:
    it = run(pictures, tmp_path, {"steps": 150, "batch": 18, "warmup": 5, "validate_every": 0, "ema": 0.9,
                                "learning_rate": 0.007}, objective={"warmup": 400})  # fmt: skip
    task = it.task
    assert isinstance(task, VaeTask)
    train(it)
    generator = load_component(tmp_path, "generator").requires_grad_(False)
    shown = it.pictures.train
    batch = it.pictures.tensor(shown)
    told = task._encode_text([it.pictures.labels[i] for i in shown])
    noise = tuple(torch.zeros(len(shown), *shape) for shape in generator.network.latents)
    output, _ = generator.network(batch, noise, told)
    assert psnr(batch, generator.likelihood.mean(output)).min() > 25
    draw = generator.posterior(batch, told, Rng.seeds(range(len(shown))))
    assert (draw.reconstruction + draw.kl.sum(1)).mean() / (64 * np.log(2)) < 6  # noise has 8
    # a draw from the prior, told a class, has that class's pattern, whatever its brightness
    system = load_system(tmp_path)
    *_, last = system.generate(list(NAMES) * 4, seeds=range(16))
    means = torch.stack([batch[[it.pictures.labels[i] == name for i in shown]].mean(0) for name in NAMES])
    made, patterns = (x.flatten(1) - x.mean((1, 2, 3))[:, None] for x in (last.images, means))
    nearest = torch.cosine_similarity(made[:, None], patterns[None], dim=2).argmax(1).tolist()
    assert sum(found == i % 4 for i, found in enumerate(nearest)) >= 15


def load_system(folder: Path) -> Any:
    parts = {role: folder / role for role in ("text", "decoder")}
    assemble(folder / "system", generator=folder, **parts)
    return load(folder / "system")


def test_the_saved_one_makes_the_same(pictures: Path, tmp_path: Path) -> None:
    it = run(pictures, tmp_path, settings={"temperature": 0.7, "draw": True})
    train(it)
    it.task.module.eval()
    weights = read_checkpoint(checkpoints(tmp_path)[-1]).tables["ema"]
    it.task.modules.load_state_dict(weights, strict=False)
    here = it.task.sample(0)
    system = load_system(tmp_path)
    assert system.generator.settings == VaeSettings(0.7, True)
    assert system.generator.reads == Labels(NAMES).space
    *_, last = system.generate(it.task.prompts(16), seeds=range(16))  # type: ignore[attr-defined]
    assert here is not None
    assert torch.equal(last.images, here)
    *_, other = system.generate(it.task.prompts(16), seeds=range(16), settings=VaeSettings(0.0))  # type: ignore[attr-defined]
    assert not torch.equal(other.images, here)


def test_a_resumed_run_ends_with_the_same_bits(pictures: Path, tmp_path: Path) -> None:
    objective = {"beta": 0.9, "warmup": 30, "free_bits": 2.0}
    same_bits(tmp_path, lambda place, **stop: train(run(pictures, place, objective=objective), **stop))
    losses = [
        [e["loss"] for e in read_log(tmp_path / p / "log.jsonl") if e["event"] == "step"] for p in ("whole", "cut")
    ]
    assert losses[0] == losses[1]


def test_a_batch_in_pieces_gives_the_same_gradient(pictures: Path, tmp_path: Path) -> None:
    found = []
    for accumulate in (1, 4):
        it = run(pictures, tmp_path / f"{accumulate}", {"steps": 2, "accumulate": accumulate},
                 objective={"warmup": 30, "free_bits": 1.0})  # fmt: skip
        train(it)
        found.append({e["step"]: e["loss"] for e in read_log(it.folder / "log.jsonl") if e["event"] == "step"})
    assert found[0] == pytest.approx(found[1], rel=1e-4)


def test_figures_and_a_warning_of_collapse(pictures: Path, tmp_path: Path) -> None:
    it = run(pictures, tmp_path, {"steps": 3}, objective={"beta": 50.0}, drop=0.0)
    task = it.task
    assert isinstance(task, VaeTask)
    batch = it.loader.batch(0)
    with torch.no_grad():
        figures = task.validate(batch, Rng.samples(0, batch.sample, "validate"))
        assert figures["loss"] == pytest.approx(figures["reconstruction"] + figures["kl"])
        levels = [figures[f"bits_of_level_{i}"] for i in (1, 2)]
        assert sum(levels) / 64 == pytest.approx(figures["kl"])
        assert figures["active_units"] > 0.5
        assert task.warnings(figures) == ()
        for part in task.generator.network._levels():
            for parameter in part.to_posterior[-1].parameters():
                parameter.zero_()  # the posterior is the prior
        gone = task.validate(batch, Rng.samples(0, batch.sample, "validate"))
    assert gone["kl"] == gone["active_units"] == 0
    (said,) = task.warnings(gone)
    assert "z holds 0 bits of a picture" in said
    train(it)
    events = read_log(it.folder / "log.jsonl")
    warned = [e["said"] for e in events if e["event"] == "warning"]
    judged = [e["figures"] for e in events if e["event"] == "validate"]
    assert warned == [said for figures in judged for said in task.warnings(figures)]
    assert {name for figures in judged for name in figures} == set(figures)


def test_in_the_latents_of_a_trained_decoder(pictures: Path, tmp_path: Path) -> None:
    autoencoder = {"kind": "autoencoder",
                   "autoencoder": {"kind": "kl", "latent": 4, "down": 4, "widths": [8, 8], "encoder_blocks": [0, 0],
                                   "decoder_blocks": [0, 0]}}  # fmt: skip
    base = {"data": {"folder": str(pictures / "pictures"), "size": 8, "heldout": 0.2}}
    short = {"steps": 2, "batch": 4, "precision": "float32", "validate_every": 0, "sample_every": 0, "warmup": 1}
    table = {**base, "out": str(tmp_path / "decoder"), "task": autoencoder, "train": short}
    Run(build(Recipe, table, kinds()), cache=pictures / "cache").train(progress=False)
    it = run(pictures, tmp_path / "vae", {"steps": 2}, decoder=str(tmp_path / "decoder"))
    train(it)
    generator = load_component(tmp_path / "vae", "generator")
    assert generator.likelihood == Normal()
    assert generator.space == load_component(tmp_path / "decoder", "decoder").space
    assemble(tmp_path / "system", text=tmp_path / "vae" / "text", generator=tmp_path / "vae",
             decoder=tmp_path / "decoder")  # fmt: skip
    *_, last = load(tmp_path / "system").generate(["cats"], seeds=[0])
    assert last.images.shape == (1, 1, 8, 8)
    with pytest.raises(RecipeError, match=r"task\.likelihood: .*latent have none"):
        run(pictures, tmp_path / "other", decoder=str(tmp_path / "decoder"),
            likelihood={"kind": "discretised-normal"})  # fmt: skip


def test_what_does_not_fit_is_a_recipe_error(pictures: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"levels = 16, and pictures of 8 bits have 256"):
        run(pictures, tmp_path, likelihood={"kind": "discretised-logistic", "levels": 16})
    with pytest.raises(RecipeError, match=r"task\.network\.size"):
        run(pictures, tmp_path, network={"kind": "ladder", "size": 16})
    with pytest.raises(RecipeError, match=r"task\.network.*leaves no z"):
        run(pictures, tmp_path, network={"kind": "ladder", "levels": [0, 0, 0]})
    with pytest.raises(RecipeError, match="free_bits = -1"):
        run(pictures, tmp_path, objective={"free_bits": -1.0})


class Words(torch.nn.Module):
    """A text encoder that makes tokens, and a vector if asked for."""

    def __init__(self, vector: bool) -> None:
        super().__init__()
        self.space, self.pooled = Space("text", (3, 6)), vector

    def start(self, prompts: list[str]) -> Any:
        yield from ()
        n = len(prompts)
        return Condition(tokens=torch.ones(n, 3, 6), mask=torch.ones(n, 3, dtype=torch.bool),
                         vector=torch.ones(n, 5) if self.pooled else None)  # fmt: skip


def test_which_parts_of_a_text_it_reads(pictures: Path) -> None:
    """The vector; and the tokens where the network attends to them."""
    data = open_pictures(DataSettings(str(pictures / "pictures"), size=8), pictures / "cache")

    def widths(vector: bool, **network: Any) -> tuple[int | None, int | None]:
        small = {"widths": (8, 8), "blocks": (0, 0), "levels": (0, 1), "heads": 2}
        recipe = VaeRecipe(network={"kind": "ladder", **small, **network})
        text: Any = Words(vector)
        task = recipe.create_with(text, Pixels(channels=1, size=8), data, 0, torch.device("cpu"))
        assert isinstance(task.module, VaeGenerator)
        assert task.module.likelihood == DiscretisedLogistic()
        return task.module.network.vector, task.module.network.context

    assert widths(True) == (5, None)
    assert widths(True, attention=(1,)) == (5, 6)
    assert widths(False, attention=(1,)) == (None, 6)
    with pytest.raises(RecipeError, match="makes tokens and no vector"):
        widths(False)


@pytest.mark.parametrize("path", sorted(RECIPES.glob("vae*.toml")), ids=lambda path: path.stem)
def test_its_recipes(path: Path, pictures: Path, tmp_path: Path) -> None:
    """They are read, go to a table and back, and train."""
    recipe = read_recipe(path)
    assert isinstance(recipe.task, VaeRecipe)
    assert recipe.out == f"runs/emoji/{path.stem}"
    assert 0 < recipe.minutes <= 25
    assert recipe.task.objective != VaeObjective()
    assert path.read_text(encoding="utf-8").startswith("# ")
    assert build(Recipe, describe(recipe, kinds()), kinds()) == recipe
    widths = [8] * len(recipe.task.network["widths"])
    small = [f"data.folder={pictures / 'pictures'}", "data.heldout=0.2", f"out={tmp_path / 'run'}", "minutes=0"]
    small += ["data.size=16", "task.text=labels", "task.decoder=pixels", f"task.network.widths={widths}"]
    small += ["train.steps=2", "train.batch=4", "train.warmup=1", "train.precision=float32", "train.sample_every=2"]
    outcome = Run(read_recipe(path, small), cache=tmp_path / "cache").train(progress=False, rehearsal=False)
    assert outcome.steps == 2
    assert len(list((tmp_path / "run" / "samples").iterdir())) == 1
