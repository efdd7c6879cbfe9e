"""`carrara sample` with a generator that is no diffusion model: its own settings, candidates, and what it refuses."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from carrara.train.recipe import read_recipe

from .conftest import done, run

TOKENS = """
out = "tokens"
[data]
folder = "pics"
size = 32
channels = 3
[task]
kind = "tokens"
autoencoder = { kind = "kl", widths = [16, 16, 16] }
quantizer = { kind = "fsq", levels = [4, 4, 2] }
[train]
steps = 4
batch = 8
precision = "float32"
"""
WRITER = """
out = "writer"
[data]
folder = "pics"
size = 32
channels = 3
[task]
kind = "autoregressive"
text = "carrara-pics/text"
decoder = "tokens"
network = { kind = "causal", width = 32, depth = 1, heads = 2 }
settings = { guidance = 2.0, top_p = 0.9 }
[train]
steps = 4
batch = 8
precision = "float32"
"""


@pytest.fixture(scope="module")
def model(project: Path) -> Path:
    """A system of tokens under the project's text encoder."""
    for name, text in (("tokens", TOKENS), ("writer", WRITER)):
        (project / f"{name}.toml").write_text(text)
        done("train", f"{name}.toml", cwd=project)
    parts = ("--text", "carrara-pics/text", "--generator", "writer", "--decoder", "tokens")
    done("assemble", *parts, "written", cwd=project)
    return project / "written"


def sampled(model: Path, out: Path, *words: object) -> dict[str, object]:
    said = done("sample", model, "a red circle", "--out", out, "--json", *words)
    found: dict[str, object] = json.loads(said.out)
    return found


def test_settings_by_their_names(model: Path, tmp_path: Path) -> None:
    """What is not said is the model's own; all of it is in the picture's facts."""
    assert sampled(model, tmp_path / "a")["settings"] == {"guidance": 2.0, "temperature": 1.0, "top_k": 0, "top_p": 0.9}
    words = ("--temperature", 0.5, "--top-k", 8, "--top-p", 1, "--guidance", 1, "--candidates", 3)
    given = {"guidance": 1.0, "temperature": 0.5, "top_k": 8, "top_p": 1.0, "candidates": 3}
    assert sampled(model, tmp_path / "b", *words)["settings"] == given


def test_candidates_are_chosen_from(model: Path, tmp_path: Path) -> None:
    """One of one is the plain picture; the batch is what is drawn at a time, and changes nothing."""
    for name, words in (
        ("plain", ()),
        ("one", ("--candidates", 1)),
        ("four", ("--candidates", 4)),
        ("parts", ("--candidates", 4, "--batch", 5)),
    ):
        sampled(model, tmp_path / name, "--count", 3, "--no-metadata", *words)
    files = {name.name: [path.read_bytes() for path in sorted(name.glob("0*.png"))] for name in tmp_path.iterdir()}
    assert all(len(pictures) == 3 for pictures in files.values())
    assert files["plain"] == files["one"] and files["four"] == files["parts"]


def test_tokens_are_decoded_in_parts(model: Path, tmp_path: Path) -> None:
    said = sampled(model, tmp_path / "a", "--tile", 8)
    assert said["warnings"] == []
    assert said["settings"]["decoding"]["tiling"]["tile"] == 8  # type: ignore[index]


def test_a_negative_prompt_needs_guidance(model: Path, tmp_path: Path) -> None:
    quiet = sampled(model, tmp_path / "a", "--negative", "blue")
    assert quiet["warnings"] == []
    (warning,) = sampled(model, tmp_path / "b", "--negative", "blue", "--guidance", 1)["warnings"]
    assert "--negative has no effect without guidance" in warning


@pytest.mark.parametrize(
    "words, says",
    [
        (("--steps", 5), "--steps is for diffusion models, and this generator is none (autoregressive)"),
        (("--sampler", "ddim"), "--sampler is for diffusion models"),
        (("--truncation", 0.5), "--truncation is not for a generator of this family (autoregressive), which has"),
        (("--strength", 0.5), "--strength is for diffusion models"),
        (("--trace",), "--trace shows noise that comes off"),
        (("--top-p", 1.5), "--top-p = 1.5"),
        (("--size", "64x64"), "--size 64x64"),
    ],
)
def test_what_the_family_does_not_have(model: Path, tmp_path: Path, words: tuple[object, ...], says: str) -> None:
    said = run("sample", model, "a red circle", "--out", tmp_path, *words)
    assert said.code == 2
    assert says in " ".join(said.err.split()), said.err
    assert not list(tmp_path.glob("*.png"))


def test_a_diffusion_model_has_other_settings(project: Path, tmp_path: Path) -> None:
    system = project / "carrara-pics" / "system"
    said = run("sample", system, "a red circle", "--temperature", 0.5, "--out", tmp_path)
    assert said.code == 2
    wanted = "--temperature is not for a generator of this family (diffusion), which has --steps, --sampler, --guidance"
    assert wanted in " ".join(said.err.split())
    done("sample", system, "a red circle", "--candidates", 2, "--steps", 2, "--out", tmp_path)


def test_show_says_what_it_is(model: Path) -> None:
    said = done("show", model).out
    for words in ("tokens 4 x 4 (vocabulary 32", "causal", "fsq", "sampling: top_p", "bits_per_token"):
        assert words in said


def test_a_likelihood_of_tokens_is_none_of_pixels(model: Path) -> None:
    said = run("likelihood", model, "--data", model.parent / "pics")
    assert said.code == 2
    assert "exact, but one of tokens" in " ".join(said.err.split())


@pytest.mark.parametrize("page", ["autoregressive", "gan", "vae"])
def test_the_recipes_of_the_pages_are_recipes(page: str, tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "docs" / f"{page}.md").read_text(encoding="utf-8")
    found = re.findall(r"```toml\n(.*?)```", text, re.DOTALL)
    assert len(found) == 1 + (page == "autoregressive")
    for number, block in enumerate(found):
        (tmp_path / f"{number}.toml").write_text(block)
        recipe = read_recipe(tmp_path / f"{number}.toml")
        assert recipe.data.folder == "photos"
