"""`carrara likelihood` as a user has it: from pictures and a recipe to a report, and on with it after a stop."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from .conftest import done, run

RECIPE = """
out = "run"
[data]
folder = "pics"
size = 8
channels = 1
heldout = 0.3
[task]
kind = "diffusion"
text = "labels"
[task.network]
kind = "unet"
channels = 16
multipliers = [1]
blocks = 1
attention = []
[task.schedule]
kind = "linear-betas"
steps = 20
first = 0.001
last = 0.3
[task.parameterization]
kind = "epsilon"
[task.level]
kind = "integer-step"
steps = 20
[task.settings.times]
kind = "uniform"
steps = 10
[train]
steps = 3
batch = 8
precision = "float32"
"""


VAE = """
out = "vae"
[data]
folder = "pics"
size = 8
channels = 1
heldout = 0.3
[task]
kind = "vae"
text = "labels"
[task.network]
kind = "ladder"
widths = [8, 8]
blocks = [0, 0]
levels = [1, 1]
latent = 2
[train]
steps = 3
batch = 8
precision = "float32"
"""


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures in class folders, others without, and a tiny model of the first."""
    place = tmp_path_factory.mktemp("likelihood")
    for folder, first in (("pics/cats", 0), ("pics/dogs", 20), ("others", 40)):
        (place / folder).mkdir(parents=True)
        for i in range(first, first + 20):
            pixels = np.random.default_rng(i).integers(0, 256, (8, 8), dtype=np.uint8)
            Image.fromarray(pixels).save(place / folder / f"{i:02}.png")
    (place / "recipe.toml").write_text(RECIPE)
    done("train", "recipe.toml", "--cache", "cache", cwd=place)
    done("assemble", "--generator", "run", "model", cwd=place)
    (place / "vae.toml").write_text(VAE)
    done("train", "vae.toml", "--cache", "cache", cwd=place)
    done("assemble", "--generator", "vae", "vae-model", cwd=place)
    return place


WORDS = ["likelihood", "model", "--data", "pics", "--cache", "cache"]


def test_the_bound(desk: Path, tmp_path: Path) -> None:
    words = [*WORDS, "--out", tmp_path, "--terms", 4, "--n", 4]
    said = done(*words, cwd=desk)
    assert "pictures that were held out" in said.out
    assert "bits/dim over 4 pictures (prior " in said.out
    assert "20 strides, variance the posterior's (fixed, small); 5 terms a picture" in said.out
    assert said.err == ""
    facts = json.loads((tmp_path / "report.json").read_text())
    assert facts["condition"] == "class"
    assert facts["bound"]["pictures"] == 4
    assert facts["bound"]["parts"].keys() == {"prior", "steps", "reconstruction"}
    assert "Rate and distortion" in (tmp_path / "report.html").read_text()
    before = (tmp_path / "bound.jsonl").read_bytes()
    again = json.loads(done(*words, "--json", cwd=desk).out)
    assert again["bound"] == facts["bound"]
    assert (tmp_path / "bound.jsonl").read_bytes() == before
    more = json.loads(done(*words, "--json", "--n", 8, cwd=desk).out)
    assert more["bound"]["pictures"] == 8
    assert (tmp_path / "bound.jsonl").read_bytes().startswith(before)


def test_both_on_other_pictures(desk: Path, tmp_path: Path) -> None:
    words = ["likelihood", "model", "--data", "others", "--cache", "cache", "--out", tmp_path, "--bound", "--ode"]
    said = done(*words, "--n", 2, "--steps", 10, "--variance", "transition", "--json", cwd=desk)
    assert "no captions or classes" in said.err
    facts = json.loads(said.out)
    assert facts["condition"] == "nothing"
    assert facts["bound"]["strides"] == 10
    assert facts["bound"]["terms"] == 10  # all of them
    assert "fixed, large" in facts["bound"]["variance"]
    assert facts["ode"]["pictures"] == 2
    assert facts["ode"]["evaluations"] > 10
    assert facts["report"] == str(tmp_path / "report.html")


def test_clipping_and_options_without_a_use(desk: Path, tmp_path: Path) -> None:
    words = [*WORDS, "--n", 2, "--terms", 4, "--json"]
    bare = json.loads(done(*words, "--no-clip", "--out", tmp_path / "bare", cwd=desk).out)["bound"]
    clipped = done(*words, "--clip", "--probes", 2, "--tolerance", 0.1, "--out", tmp_path / "clipped", cwd=desk)
    assert "--probes, --tolerance without --ode: no effect" in clipped.err
    found = json.loads(clipped.out)["bound"]
    assert (bare["clip"], found["clip"]) == (None, 1.0)
    assert found["bits_per_dim"] != bare["bits_per_dim"]
    more = ["--ode", "--variance", "posterior", "--no-clip", "--n", 2, "--probes", 2, "--tolerance", 0.1]
    said = done(*WORDS, *more, "--out", tmp_path / "flow", "--json", cwd=desk).err
    assert "--variance, --clip without --bound: no effect" in said
    said = done(*WORDS, "--n", 300, "--terms", 2, "--out", tmp_path / "many", cwd=desk).err
    assert "--n is 300, and there are " in said


def test_pictures_that_it_was_trained_on_are_said_to_be(desk: Path, tmp_path: Path) -> None:
    said = done(*WORDS, "--split", "train", "--n", 2, "--terms", 2, "--out", tmp_path, "--unconditional", cwd=desk)
    assert "warning: the model was trained on these pictures" in said.err


@pytest.mark.parametrize(
    "words, code, says",
    [
        (["--terms", 5], 2, "--terms is 5; give an even number, such as 6"),
        (["--terms", 1], 2, "--terms"),
        (["--steps", 30], 2, "--steps is 30 and the model's table has 20"),
        (["--variance", "learned"], 2, "no learned variance"),
        (["--variance", "small"], 2, "--variance"),
        (["--n", 0], 2, "--n"),
        (["--split", "test"], 2, "--split"),
        (["--seed", -1], 2, "--seed"),
        (["--batch", 0], 2, "--batch"),
        (["--device", "gpu"], 2, "device"),
        (["--out", "recipe.toml/x"], 5, "recipe.toml"),
        (["--data", "nowhere"], 3, "no folder nowhere"),
        (["--data", "others", "--split", "heldout", "--n", 1, "--seed", 1], 0, ""),
    ],
)
def test_refusal(desk: Path, tmp_path: Path, words: list[object], code: int, says: str) -> None:
    given = [*WORDS, *([] if "--out" in words else ["--out", tmp_path / "new"]), *words]
    said = run(*given, cwd=desk)
    assert said.code == code, said.err
    assert says in said.err


def test_the_bound_of_a_vae(desk: Path, tmp_path: Path) -> None:
    words = ["likelihood", "vae-model", "--data", "pics", "--cache", "cache", "--bound", "--n", 4]
    said = done(*words, "--out", tmp_path / "one", cwd=desk)
    assert "bits/dim over 4 pictures (level 1 " in said.out
    assert "one draw of z a picture" in said.out
    one = json.loads((tmp_path / "one" / "report.json").read_text())["bound"]
    assert one["bits_per_dim"] == pytest.approx(sum(one["parts"].values()))
    said = done(*words, "--out", tmp_path / "many", "--terms", 5, cwd=desk)
    assert "importance-weighted over 5 draws of z a picture; of one draw it is " in said.out
    many = json.loads((tmp_path / "many" / "report.json").read_text())["bound"]
    assert many["bits_per_dim"] < many["elbo"]
    assert many["terms"] == 5
    assert "What z holds" in (tmp_path / "many" / "report.html").read_text()


@pytest.mark.parametrize(
    "words, says",
    [
        (["--ode"], "--ode follows the flow of a diffusion model, and this one is none"),
        (["--bound", "--ode"], "--ode follows the flow"),
        (["--steps", 10], "--steps is for diffusion models, and this one is a VAE"),
        (["--variance", "posterior"], "--variance is for diffusion models"),
    ],
)
def test_what_a_vae_has_not(desk: Path, tmp_path: Path, words: list[object], says: str) -> None:
    said = run("likelihood", "vae-model", "--data", "pics", "--cache", "cache", "--out", tmp_path, *words, cwd=desk)
    assert said.code == 2
    assert says in said.err


def test_another_seed_into_the_same_folder(desk: Path, tmp_path: Path) -> None:
    words = [*WORDS, "--out", tmp_path, "--n", 2, "--terms", 2]
    done(*words, cwd=desk)
    said = run(*words, "--seed", 3, cwd=desk)
    assert said.code == 2
    assert "rows of another seed (0 instead of 3); choose another --out" in said.err
