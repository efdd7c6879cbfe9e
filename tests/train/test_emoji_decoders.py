"""The recipes of the emoji's decoders and cascade: read, built as they are said, trained a step, and put together."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from carrara.decoder import Chain, DiffusionUpsample, Latents, Upsample
from carrara.store import assemble, load_component
from carrara.train.recipe import Run, read_recipe

RECIPES = Path(__file__).parents[2] / "recipes" / "emoji"
KINDS = {
    "decoder": Latents,
    "cascade-upsample": Upsample,
    "cascade-upsample-diffusion": DiffusionUpsample,
    "upsample-128": Upsample,
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every recipe's run of one step, on six pictures."""
    place = tmp_path_factory.mktemp("emoji")
    pixels = np.random.default_rng(0)
    (place / "pictures").mkdir()
    for number in range(6):
        shape = pixels.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(shape).resize((128, 128), Image.Resampling.BICUBIC).save(place / "pictures" / f"{number}.png")
    for name in (*KINDS, "cascade"):
        small = [f"data.folder={place / 'pictures'}", "data.heldout=0.34", f"out={place / name}", "minutes=0"]
        small += ["train.steps=1", "train.batch=2", "train.warmup=1", "train.precision=float32"]
        recipe = read_recipe(RECIPES / f"{name}.toml")
        if hasattr(recipe.task, "text"):
            small.append("task.text=unconditional")
        if name == "cascade":
            small.append(f"task.decoder={place / 'cascade-upsample'}")
        outcome = Run(read_recipe(RECIPES / f"{name}.toml", small), cache=place / "cache").train(
            progress=False, rehearsal=False
        )
        assert outcome.steps == 1
    return place


@pytest.mark.parametrize("name", KINDS)
def test_each_is_what_it_says(trained: Path, name: str) -> None:
    text = (RECIPES / f"{name}.toml").read_text(encoding="utf-8")
    recipe = read_recipe(RECIPES / f"{name}.toml")
    assert text.startswith("# ") and recipe.out == f"runs/emoji/{name}" and 0 < recipe.minutes <= 25
    assert isinstance(load_component(trained / name, "decoder"), KINDS[name])


@pytest.mark.parametrize("first", ["cascade-upsample", "cascade-upsample-diffusion"])
def test_the_cascade_goes_to_128(trained: Path, tmp_path: Path, first: str) -> None:
    """16 to 64 to 128, with either upsampler in the middle."""
    parts = [trained / first, trained / "upsample-128"]
    system = assemble(tmp_path / "model", generator=trained / "cascade", decoder=parts)
    assert isinstance(system.decoder, Chain)
    assert [part.pictures.shape[-1] for part in system.decoder.parts] == [64, 128]
    assert system.generator.space.shape == (3, 16, 16)
    if first == "cascade-upsample":
        *_, last = system.generate([""], seeds=[0])
        assert last.images.shape == (1, 3, 128, 128)


def test_the_last_step_follows_the_latent_decoder_too(trained: Path) -> None:
    latents, upsample = (load_component(trained / name, "decoder") for name in ("decoder", "upsample-128"))
    assert Chain((latents, upsample)).pictures.shape == (3, 128, 128)
