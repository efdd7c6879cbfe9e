"""A VAE and a GAN through the same commands as every generator: train, assemble, show, sample, evaluate, likelihood."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from .conftest import done, run

RECIPE = """
out = "{kind}"
[data]
folder = "pics"
size = 16
channels = 3
[task]
kind = "{kind}"
text = "carrara-pics/text"
decoder = "pixels"
{task}
[train]
steps = 4
batch = 8
precision = "float32"
"""
TASKS = {
    "vae": 'network = { kind = "ladder", widths = [8, 12], blocks = [0, 0], levels = [1, 1], latent = 2 }',
    "gan": 'network = { kind = "convolutional", noise = 8, style = 16, widths = [16, 16], blocks = 1, group = 4 }\n'
    'discriminator = { kind = "convolutional", features = 32, widths = [16, 16], blocks = 1, group = 4 }',
}
OPTION = {"vae": ("temperature", "--temperature"), "gan": ("truncation", "--truncation")}


@pytest.fixture(scope="module", params=sorted(TASKS))
def model(project: Path, request: pytest.FixtureRequest) -> Path:
    """A model of this family, of pixels under the project's text encoder."""
    kind = request.param
    (project / f"{kind}.toml").write_text(RECIPE.format(kind=kind, task=TASKS[kind]))
    said = done("train", f"{kind}.toml", cwd=project).out
    assert f"Next:  carrara assemble --generator {kind} --text carrara-pics/text {kind}-system\n" in said
    done("assemble", "--text", "carrara-pics/text", "--generator", kind, f"{kind}-system", cwd=project)
    return project / f"{kind}-system"


def pictures(folder: Path) -> list[np.ndarray]:
    return [np.asarray(Image.open(path)) for path in sorted(folder.glob("0*.png"))]


def test_its_setting_is_an_option(model: Path, tmp_path: Path) -> None:
    """At 0 there is one picture of a prompt, whatever the seed; at 1, which is the model's own, there are several."""
    setting, option = OPTION[model.name.removesuffix("-system")]
    for value in (0, 1):
        words = ("--count", 3, option, value, "--out", tmp_path / str(value), "--json")
        found = json.loads(done("sample", model, "a red circle", *words).out)
        assert found["settings"][setting] == value
    done("sample", model, "a red circle", "--count", 3, "--out", tmp_path / "own")
    still, drawn, own = (pictures(tmp_path / name) for name in ("0", "1", "own"))
    assert all(np.array_equal(one, still[0]) for one in still)
    assert not np.array_equal(drawn[0], drawn[1])
    assert all(np.array_equal(one, other) for one, other in zip(drawn, own, strict=True))


@pytest.mark.parametrize(
    "words", [("--steps", 5), ("--guidance", 2), ("--top-k", 3), ("--trace",), ("--strength", 0.5)]
)
def test_what_the_family_does_not_have(model: Path, tmp_path: Path, words: tuple[object, ...]) -> None:
    said = run("sample", model, "a red circle", "--out", tmp_path, *words)
    assert said.code == 2 and str(words[0]) in said.err, said.err
    assert not list(tmp_path.glob("*.png"))


def test_pictures_that_are_not_finite_suggest_no_option_of_others(model: Path, tmp_path: Path) -> None:
    copied = shutil.copytree(model, tmp_path / "model")
    weights = copied / "generator" / "weights.safetensors"
    save_file({name: torch.full_like(tensor, torch.nan) for name, tensor in load_file(weights).items()}, weights)
    component = json.loads((copied / "generator" / "component.json").read_text())
    component["files"]["weights.safetensors"]["bytes"] = weights.stat().st_size
    (copied / "generator" / "component.json").write_text(json.dumps(component))
    said = run("sample", copied, "a red circle", "--out", tmp_path / "out")
    assert said.code == 4
    assert "not finite" in said.err and "try the model's own settings" in said.err
    assert not (tmp_path / "out").exists()


def test_it_is_evaluated(model: Path, tmp_path: Path) -> None:
    """By the same measure; samples of another setting need another folder."""
    _, option = OPTION[model.name.removesuffix("-system")]
    words = ("evaluate", model, "--data", model.parent / "pics", "--n", 16, "--extractor", "pixels", "--per-prompt", 1)
    found = json.loads(done(*words, option, 0.5, "--out", tmp_path, "--json", "--no-card").out)
    assert found["samples"]["count"] == 16 and "prompt_fidelity_top1" in found["figures"]
    assert ("bits_per_dim" in found["figures"]) == model.name.startswith("vae")
    said = run(*words, option, 0.6, "--out", tmp_path, "--no-card")
    assert said.code != 0 and "--out" in said.err


def test_its_likelihood(model: Path, tmp_path: Path) -> None:
    said = run("likelihood", model, "--data", model.parent / "pics", "--out", tmp_path)
    if model.name.startswith("gan"):
        assert said.code == 2 and "GanGenerator has no likelihood" in said.err
    else:
        assert said.code == 0 and "bits/dim" in said.out + said.err


def test_show_says_what_it_is(model: Path) -> None:
    setting, _ = OPTION[model.name.removesuffix("-system")]
    said = done("show", model).out
    assert model.name.removesuffix("-system") in said and setting in said
