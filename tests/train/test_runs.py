"""Runs from recipes: what a resume refuses, and what an attempt that failed leaves behind."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from carrara.config import build
from carrara.data import write_picture
from carrara.errors import RecipeError
from carrara.store import kinds, read_component
from carrara.train.precision import candidates
from carrara.train.recipe import Recipe, Run, read_recipe

AUTOENCODER = {"kind": "kl", "latent": 4, "widths": [8, 8, 8], "decoder_blocks": [0, 0, 1]}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    draw(tmp_path / "pictures", range(12))
    return tmp_path


def draw(folder: Path, numbers: range) -> None:
    for number in numbers:
        pixels = np.random.default_rng(number).integers(0, 256, (16, 16, 3), dtype=np.uint8)
        write_picture(folder / f"{number}.png", pixels)


def decoder(folder: Path, *, out: str = "decoder", loss: dict[str, Any] | None = None, **more: Any) -> Run:
    """A run of an autoencoder."""
    task = {"kind": "autoencoder", "autoencoder": AUTOENCODER, "loss": loss or {}}
    return run(folder, out, task, **more)


def generator(folder: Path) -> Run:
    network = {"kind": "dit", "patch": 1, "width": 32, "depth": 1, "heads": 2}
    return run(folder, "generator", {"kind": "diffusion", "decoder": str(folder / "decoder"), "network": network})


def run(folder: Path, out: str, task: dict[str, Any], *, minutes: float = 0.0, said: list[str] | None = None,
        **settings: Any) -> Run:  # fmt: skip
    train = {"steps": 2, "batch": 4, "precision": "float32", "validate_every": 0, "sample_every": 0, **settings}
    table = {
        "out": str(folder / out),
        "minutes": minutes,
        "data": {"folder": str(folder / "pictures"), "size": 16, "heldout": 0.0},
        "task": task,
        "train": train,
    }
    return Run(build(Recipe, table, kinds()), cache=folder / "cache", say=[].append if said is None else said.append)


def test_other_pictures_are_refused(folder: Path) -> None:
    decoder(folder).train(progress=False)
    draw(folder / "pictures", range(12, 15))
    with pytest.raises(RecipeError, match="other data"):
        decoder(folder).train(progress=False)


def test_another_task_is_refused_by_name(folder: Path) -> None:
    decoder(folder).train(progress=False)
    decoder(folder).train(progress=False)  # the same one is finished
    with pytest.raises(RecipeError, match=r"task\.loss"):
        decoder(folder, loss={"l2": 3.0}).train(progress=False)


def test_a_generator_does_not_go_on_with_another_decoder(folder: Path) -> None:
    decoder(folder).train(progress=False)
    generator(folder).train(progress=False)
    generator(folder).train(progress=False)
    shutil.rmtree(folder / "decoder")
    decoder(folder, seed=1).train(progress=False)
    with pytest.raises(RecipeError, match="another text encoder or decoder"):
        generator(folder).train(progress=False)


def test_steps_of_an_attempt_that_never_began_are_counted_anew(folder: Path) -> None:
    first = decoder(folder, minutes=0.002).resolve()
    assert decoder(folder, minutes=1.0).plan().train.steps > first.train.steps  # it did not get to a checkpoint
    decoder(folder, minutes=0.002).train(progress=False)
    begun = decoder(folder, minutes=1.0).plan()
    assert begun.train.steps == decoder(folder, minutes=0.002).plan().train.steps  # a run keeps its length


@pytest.mark.parametrize("decay, advice", [("constant", "larger train.steps"), ("cosine", "new folder")])
def test_minutes_changed_after_the_beginning_are_warned_of(folder: Path, decay: str, advice: str) -> None:
    said: list[str] = []
    steps = decoder(folder, minutes=0.002, said=said, decay=decay).train(progress=False).steps
    assert not [sentence for sentence in said if "warning" in sentence]
    assert f"the warm-up is {max(1, steps // 10)} of them instead of 100" in said[-1]
    decoder(folder, minutes=0.002, said=said, decay=decay)
    assert not [sentence for sentence in said if "minutes is" in sentence]
    again = decoder(folder, minutes=0.5, said=said, decay=decay)
    (warning,) = [sentence for sentence in said if sentence.startswith("warning: minutes is 0.5 and was 0.002")]
    assert f"keeps the {steps:,} steps" in warning and advice in warning
    assert again.train(progress=False).steps == steps


def test_minutes_given_to_a_run_that_was_begun_with_steps_are_warned_of(folder: Path) -> None:
    said: list[str] = []
    decoder(folder, minutes=0.002).resolve()  # an attempt that never began
    decoder(folder).train(progress=False)
    assert decoder(folder, minutes=0.002, said=said).plan().train.steps == 2
    assert "was 0 when this run began" in said[0]


@pytest.mark.parametrize("minutes", [0.0, 0.002])
def test_a_run_names_the_precision_that_it_trained_in(folder: Path, minutes: float) -> None:
    asked = decoder(folder, minutes=minutes, precision="auto")
    trained = asked.train(progress=False).precision
    assert trained in candidates(asked.device, "auto")
    for _ in range(2):  # also when the finished run is asked for again
        assert read_component(folder / "decoder").facts["training"]["precision"] == trained
        assert read_recipe(folder / "decoder" / "recipe.toml").train.precision == trained
        decoder(folder, minutes=minutes, precision="auto").train(progress=False)


def test_a_dry_run_names_the_precision(folder: Path) -> None:
    asked = decoder(folder, precision="auto")
    assert asked.preflight().precision == asked.recipe.train.precision
