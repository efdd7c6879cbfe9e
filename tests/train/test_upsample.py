"""Trainings of decoders: upsamplers that beat bicubic, judges that begin late, and runs that resume to the bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from carrara.config import build
from carrara.data import write_picture
from carrara.decoder import Chain, DiffusionUpsample, Upsample
from carrara.decoder.loss import adaptive_weight, hinge_generator
from carrara.decoder.upsample import downsample
from carrara.errors import RecipeError
from carrara.nn.efficientnet import EfficientNetLite0
from carrara.rng import Rng
from carrara.store import kinds, load_component
from carrara.store.safetensors_io import save_tensors
from carrara.system import System
from carrara.text import Labels
from carrara.train.checkpoint import checkpoints, read_checkpoint
from carrara.train.log import Event
from carrara.train.recipe import Recipe, Run
from carrara.train.step import train_step
from carrara.train.tasks import AutoencoderTask, DiffusionUpsampleTask, UpsampleTask
from carrara.train.tasks.pictures import PictureTask
from train.resumed import same_bits, train

SIDE = 16
AUTOENCODER = {
    "kind": "kl",
    "latent": 2,
    "down": 4,
    "widths": [8, 8],
    "encoder_blocks": [0, 0],
    "decoder_blocks": [1, 0],
}
PATCH = {"kind": "patch", "width": 4, "depth": 1}
UNET = {"kind": "unet", "channels": 8, "multipliers": [1, 2], "blocks": 1, "attention": [], "groups": 4}
SMALL = {"kind": "residual", "factor": 2, "width": 12, "blocks": 2}
FEW = {"times": {"kind": "uniform", "steps": 2}, "guidance": {"kind": "plain"}}
TASKS: dict[str, dict[str, Any]] = {
    "autoencoder": {
        "kind": "autoencoder", "autoencoder": AUTOENCODER, "loss": {"charbonnier": 0.5},
        "adversarial": {"discriminator": PATCH, "start": 3},
    },
    "upsample": {
        "kind": "upsample", "network": SMALL, "degradation": {"noise": 0.1, "blur": 0.5, "levels": 32, "shift": 0.2},
        "adversarial": {"discriminator": PATCH, "start": 1},
    },
    "diffusion-upsample": {
        "kind": "diffusion-upsample", "network": UNET, "factor": 2, "most": 0.4, "text": "labels", "settings": FEW,
    },
}  # fmt: skip


def shape(number: int, side: int = SIDE) -> np.ndarray:
    """A disc or a square of a few colours on white, with crisp edges."""
    rng = np.random.default_rng(number)
    y, x = np.mgrid[:side, :side] - (side * (0.3 + 0.4 * rng.random(2))).reshape(2, 1, 1)
    radius = side * (0.15 + 0.2 * rng.random())
    inside = np.hypot(x, y) < radius if number % 2 else np.maximum(abs(x), abs(y)) < radius
    pixels = np.full((side, side, 3), 255, np.uint8)
    pixels[inside] = ((220, 30, 30), (30, 160, 60), (40, 60, 200))[number // 2 % 3]
    return pixels


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("upsample")
    for number in range(60):
        write_picture(folder / "pictures" / ("square", "disc")[number % 2] / f"{number}.png", shape(number))
    torch.manual_seed(0)
    save_tensors(folder / "seen.safetensors", EfficientNetLite0().state_dict())
    return folder


def run(pictures: Path, out: Path, task: dict[str, Any], **settings: Any) -> Run:
    train = {"steps": 6, "batch": 8, "precision": "float32", "validate_every": 3, "sample_every": 0, "warmup": 1,
             "save_every": 0, "learning_rate": 0.003, "ema": 0.5, **settings}  # fmt: skip
    table = {
        "out": str(out),
        "data": {"folder": str(pictures / "pictures"), "size": SIDE, "heldout": 0.2},
        "task": task,
        "train": train,
    }
    return Run(build(Recipe, table, kinds()), cache=pictures / "cache")


@pytest.mark.parametrize("name", TASKS)
def test_a_resumed_run_ends_with_the_same_bits(pictures: Path, tmp_path: Path, name: str) -> None:
    outcome, _ = same_bits(tmp_path, lambda place, **stop: train(run(pictures, place, TASKS[name]), **stop))
    assert {"loss", "psnr_db", "ssim"} <= set(outcome.figures)
    first, second = (load_component(tmp_path / place, "decoder") for place in ("whole", "cut"))
    z = torch.rand(2, *first.space.shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        assert torch.equal(first.preview(z), second.preview(z))
    assert not any("discriminator" in name for name in first.state_dict())


def test_supervised_upsampling_beats_bicubic(pictures: Path, tmp_path: Path) -> None:
    """On pictures that it never saw, and by as much as the figures say."""
    task = {"kind": "upsample", "network": {**SMALL, "width": 24}, "degradation": {"noise": 0.02}}
    it = run(pictures, tmp_path / "run", task, steps=100, batch=16, learning_rate=0.003, ema=0.9, decay="cosine")
    figures = train(it).figures
    assert figures["above_bicubic_db"] > 2
    decoder = load_component(tmp_path / "run", "decoder")
    assert isinstance(decoder, Upsample) and isinstance(it.task, UpsampleTask)
    images = it.pictures.tensor(it.pictures.heldout)
    with torch.no_grad():
        made = decoder.decode(downsample(images, 2))
    error = (made - images).square().flatten(1).mean(1)
    assert float((10 * torch.log10(4 / error)).mean()) == pytest.approx(figures["psnr_db"], abs=1e-3)
    grid = it.task.sample(0)
    assert grid is not None and grid.shape == (24, 3, SIDE, SIDE)


def test_pairs_without_degradation_are_bicubic_ones(pictures: Path, tmp_path: Path) -> None:
    task = {"kind": "upsample", "network": SMALL, "degradation": {}}
    it = run(pictures, tmp_path / "run", task)
    assert isinstance(it.task, UpsampleTask)
    batch = it.loader.batch(0)
    seen = []
    it.task.decoder.network.register_forward_hook(lambda _, given, made: seen.append(given[0]))
    images, _ = it.task.pairs(batch, Rng.samples(0, batch.sample))
    assert torch.equal(images, batch.images) and torch.equal(seen[0], downsample(batch.images, 2))


def test_the_discriminator_begins_when_it_should(pictures: Path, tmp_path: Path) -> None:
    """Until then it is as it was, and the decoder hears nothing of it; the rehearsal has tried it all the same."""
    task = {**TASKS["autoencoder"], "adversarial": {"discriminator": PATCH, "start": 3}}
    it = run(pictures, tmp_path / "run", task, steps=5)
    lines: list[Event] = []
    it.train(progress=False, on_event=lines.append)
    (trial,) = [line for line in lines if line["event"] == "preflight"]
    assert trial["warnings"] == ()
    steps = [line for line in lines if line["event"] == "step"]
    assert ["discriminator/loss" in line for line in steps] == [False] * 3 + [True] * 2
    assert ["adversarial" in line["parts"] for line in steps] == [False] * 3 + [True] * 2
    plain = {**task}
    del plain["adversarial"]
    first, second = (run(pictures, tmp_path / name, some) for name, some in (("with", task), ("without", plain)))
    assert isinstance(first.task, PictureTask)
    for step in range(3):
        losses = []
        for one in (first, second):
            batch = one.loader.batch(step)
            losses.append(one.task.loss(batch, Rng.samples(0, batch.sample, "train", "autoencoder")).rows)
        assert torch.equal(*losses)


def test_the_adversarial_term_is_weighed_by_the_last_layer(pictures: Path, tmp_path: Path) -> None:
    task = {**TASKS["autoencoder"], "adversarial": {"discriminator": PATCH, "start": 0, "weight": 0.7}}
    it = run(pictures, tmp_path / "run", task)
    assert isinstance(it.task, AutoencoderTask)
    judges, network = it.task.judges, it.task.latents.autoencoder
    assert judges.discriminator is not None
    batch = it.loader.batch(0)
    found = it.task.loss(batch, Rng.samples(0, batch.sample))
    images, made, mean, logvar = it.task._through(batch, Rng.samples(0, batch.sample))
    rows, _ = it.task.recipe.loss(images, made, mean, logvar)
    fooled = hinge_generator(judges.discriminator(made))
    share = adaptive_weight(rows.mean(), fooled.mean(), network.last)
    torch.testing.assert_close(found.rows, rows + 0.7 * share * fooled)
    pulls = [
        torch.autograd.grad(part.mean(), network.last, retain_graph=True)[0].norm() for part in (rows, share * fooled)
    ]
    torch.testing.assert_close(*pulls)
    with pytest.raises(RecipeError, match="accumulate"):
        train(run(pictures, tmp_path / "cut", task, accumulate=2))


def test_a_perceptual_term_from_a_file(pictures: Path, tmp_path: Path) -> None:
    seen = {"weights": [str(pictures / "seen.safetensors")], "weight": 0.3}
    task = {"kind": "upsample", "network": SMALL, "perceptual": seen}
    it = run(pictures, tmp_path / "run", task)
    lines: list[Event] = []
    it.train(progress=False, on_event=lines.append, rehearsal=False)
    parts = [line["parts"]["perceptual"] for line in lines if line["event"] == "step"]
    assert all(part > 0 for part in parts)
    names = {name for table in read_checkpoint(checkpoints(tmp_path / "run")[-1]).tables.values() for name in table}
    assert not any("_conv_stem" in name for name in names)  # it is not trained, nor kept
    save_tensors(tmp_path / "other.safetensors", {"a": torch.zeros(2)})
    with pytest.raises(RecipeError, match=r"task\.perceptual\.weights: .* no network"):
        run(pictures, tmp_path / "b", {**task, "perceptual": {"weights": [str(tmp_path / "other.safetensors")]}})


def test_what_a_diffusion_upsampler_learns_from(pictures: Path, tmp_path: Path) -> None:
    """Levels from 0 to the most, each row's own; in validation none; captions that are dropped as a generator's are."""
    it = run(pictures, tmp_path / "run", {**TASKS["diffusion-upsample"], "drop": 0.5}, batch=32)
    task = it.task
    assert isinstance(task, DiffusionUpsampleTask)
    batch = it.loader.batch(0)
    told = task.taught(batch, Rng.samples(0, batch.sample, "x"))
    levels = told.numbers["augmentation"]
    assert levels.min() < 0.1 < 0.3 < levels.max() <= 0.4 and len(levels.unique()) == len(batch)
    assert told.vector is not None and told.image is not None and told.image.shape == batch.images.shape
    dropped = (told.vector[:, -1] == 1).float().mean()
    assert 0.2 < dropped < 0.8
    half = task.taught(batch, Rng.samples(0, batch.sample, "x"))
    assert torch.equal(half.image, told.image)
    clean = task.told(batch)
    assert clean.image is not None and bool((clean.numbers["augmentation"] == 0).all())
    small = downsample(batch.images, 2)
    zero = torch.zeros(len(batch))
    assert torch.equal(clean.image, task.upsampler.told(clean, small, zero, torch.randn_like(small)).image)


def test_a_diffusion_upsampler_learns(pictures: Path, tmp_path: Path) -> None:
    """The loss falls by two fifths, and a cascade of what was trained makes pictures under labels."""
    task = {**TASKS["diffusion-upsample"], "network": {**UNET, "channels": 12}, "parameterization": {"kind": "karras"}}
    it = run(pictures, tmp_path / "run", task, steps=60, batch=16, learning_rate=0.005, ema=0.9, validate_every=60)
    before = run(pictures, tmp_path / "fresh", task).task
    batch = it.loader.heldout(12)
    with torch.no_grad():
        fresh = before.validate(batch, Rng.samples(0, batch.sample))["loss"]
    outcome = train(it)
    assert outcome.figures["loss"] < 0.6 * fresh
    decoder = load_component(tmp_path / "run", "decoder")
    assert isinstance(decoder, DiffusionUpsample)
    assert decoder.reads == Labels(it.pictures.classes).space and decoder.most == 0.4 and decoder.augmentation == 0.1
    assert not (tmp_path / "run" / "text").exists() and not (tmp_path / "run" / "decoder").exists()
    grid = it.task.sample(0)
    assert grid is not None and grid.shape == (24, 3, SIDE, SIDE) and bool(grid.isfinite().all())


def test_recipes_that_cannot_be(pictures: Path, tmp_path: Path) -> None:
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"kind": "upsample", "network": {**SMALL, "factor": 3}}, "factor"),
        ({"kind": "diffusion-upsample", "network": UNET, "factor": 5}, "factor"),
        ({"kind": "diffusion-upsample", "network": UNET, "most": 0.1, "augmentation": 0.2}, "augmentation = 0.2"),
        ({"kind": "diffusion-upsample", "settings": {"editing": {"strength": 0.5}}}, "edits nothing"),
        ({"kind": "diffusion-upsample", "decoder": "pixels"}, "no such setting"),
        ({"kind": "upsample", "adversarial": {"weight": 0.0}}, "weight = 0"),
        ({"kind": "upsample", "perceptual": {"weights": []}}, "weights is empty"),
    ]
    for task, words in wrong:
        with pytest.raises(RecipeError, match=words):
            run(pictures, tmp_path / "run", task)


def test_a_trained_cascade_is_a_system(pictures: Path, tmp_path: Path) -> None:
    """A generator trained in the first upsampler's space, then both upsamplers: pictures of the last size."""
    train(run(pictures, tmp_path / "up", {"kind": "upsample", "network": SMALL}, steps=2))
    base = {
        "kind": "diffusion", "text": "labels", "decoder": str(tmp_path / "up"), "settings": FEW,
        "network": {**UNET, "multipliers": [1]},
    }  # fmt: skip
    train(run(pictures, tmp_path / "base", base, steps=2))
    generator = load_component(tmp_path / "base", "generator")
    assert generator.space.shape == (3, SIDE // 2, SIDE // 2)
    first = load_component(tmp_path / "up", "decoder")
    second = DiffusionUpsample(
        load_component(_large(pictures, tmp_path), "decoder").denoiser, size=2 * SIDE, factor=2,
        reads=generator.reads, settings=generator.settings,
    )  # fmt: skip
    system = System(load_component(tmp_path / "base" / "text", "text"), generator, Chain((first, second)).eval())
    frames = list(system.generate(["disc"], seeds=[0]))
    assert [frame.images.shape[-1] for frame in frames] == [2 * SIDE] * 5


def _large(pictures: Path, place: Path) -> Path:
    """A diffusion upsampler of two steps' training."""
    train(run(pictures, place / "large", TASKS["diffusion-upsample"], steps=2))
    return place / "large"


def test_a_step_trains_both(pictures: Path, tmp_path: Path) -> None:
    """One step of the loop's own: decoder and discriminator both move, each by its own loss."""
    from carrara.train.parallel import World
    from carrara.train.settings import Training
    from carrara.train.state import State

    it = run(pictures, tmp_path / "run", TASKS["upsample"])
    assert isinstance(it.task, PictureTask)
    state = State(it.task, Training(batch=8, precision="float32", warmup=0), torch.device("cpu"), "float32")
    before = {name: p.detach().clone() for name, p in it.task.modules.named_parameters()}
    train_step(state, it.loader.batch(0), World())
    moved = {name for name, p in it.task.modules.named_parameters() if not torch.equal(p, before[name])}
    assert moved and not any(name.startswith("discriminator") for name in moved)  # it begins at step 1
    found = train_step(state, it.loader.batch(1), World())
    assert set(found) == {"upsample", "discriminator"}
    moved = {name for name, p in it.task.modules.named_parameters() if not torch.equal(p, before[name])}
    assert any(name.startswith("discriminator") for name in moved)
