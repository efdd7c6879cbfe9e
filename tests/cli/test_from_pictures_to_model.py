"""A user's way from a folder of pictures to a model, and what each verb says on it."""

from __future__ import annotations

import functools
import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from carrara.cli.sampling import sampling_settings
from carrara.cli.voice import Voice
from carrara.decoder import Pixels
from carrara.diffusion import (
    Denoiser,
    DiffusionGenerator,
    Epsilon,
    IntegerStep,
    Learned,
    LinearBetas,
    Process,
    SamplingSettings,
    Transition,
    ancestral,
    uniform,
)
from carrara.nn import UNet
from carrara.system import System
from carrara.text import Unconditional
from carrara.train.presets import usual_size
from carrara.train.recipe import read_recipe
from carrara.train.tasks import ContrastiveRecipe
from carrara.types import Space

from .conftest import done, draw, run, tiny

SYSTEM = "carrara-pics/system"


def test_data_check(project: Path, tmp_path: Path) -> None:
    said = done("data", "check", "pics", "--size", 40, "--out", tmp_path, "--json", cwd=project)
    facts = json.loads(said.out)
    assert facts["ok"]
    assert facts["findings"]["captions"] == {"txt": 40}
    assert {problem["name"] for problem in facts["findings"]["problems"]} == {"cut.png", "empty.png", "text.png"}
    page = (tmp_path / "check.html").read_text()
    assert "kind = &quot;contrastive&quot;" in page  # the recipe that init would write


def test_init_writes_recipes_that_load(project: Path) -> None:
    folder = project / "carrara-pics"
    for part in ("text", "decoder", "generator"):
        text = (folder / f"{part}.toml").read_text()
        assert "# Estimate: " in text
        assert text.count("  # ") >= 10
        recipe = read_recipe(folder / f"{part}.toml")
        assert recipe.out == f"carrara-pics/{part}"
    total = sum(read_recipe(folder / f"{part}.toml").minutes for part in ("text", "decoder", "generator"))
    assert total == pytest.approx(2, rel=0.02)


def test_init_says_what_comes_next(project: Path) -> None:
    said = (project / "init.txt").read_text().splitlines()
    commands = [line.strip() for line in said if line.startswith("  carrara ")]
    assert commands == [
        "carrara data check pics --size 40 --out carrara-pics",
        "carrara train carrara-pics/text.toml",
        "carrara train carrara-pics/decoder.toml",
        "carrara train carrara-pics/generator.toml",
        "carrara assemble --generator carrara-pics/generator --text carrara-pics/text --decoder carrara-pics/decoder "
        "carrara-pics/system",
        "carrara sample carrara-pics/system 'a red square'",
    ]


@pytest.mark.parametrize(
    "shorter, size", [([28] * 9, 28), ([16], 16), ([31], 32), ([40], 32), ([60], 48), ([900], 256)]
)
def test_usual_size(shorter: list[int], size: int) -> None:
    assert usual_size(shorter) == size


def test_data_check_prepares_as_init_would(tmp_path: Path) -> None:
    """One size, one depth and one share, whichever of the verbs is asked; nothing is enlarged or refused."""
    (tmp_path / "few").mkdir()
    for number in range(30):
        draw(number, 24)[0].save(tmp_path / "few" / f"{number}.png")
        (tmp_path / "few" / f"{number}.txt").write_text("a long caption of eight words or more " * (1 + number % 3))
    deep = np.random.default_rng(0).integers(0, 65536, (24, 24), dtype=np.uint16)
    Image.fromarray(deep).save(tmp_path / "few" / "deep.png")
    (tmp_path / "few" / "deep.txt").write_text("noise")
    facts = json.loads(done("data", "check", "few", "--json", cwd=tmp_path).out)
    assert facts["ok"]
    assert facts["findings"]["upscaled"] == []
    assert facts["converted"] == ["deep.png"]
    said = done("init", "few", "--minutes", 1, cwd=tmp_path).out
    assert "30 in colour with 8 bits, 1 in grey with 16 bits; all will be colour with 8 bits" in said
    recipe = read_recipe(tmp_path / "carrara-few" / "generator.toml")
    for name in ("size", "channels", "depth", "heldout"):
        assert facts["settings"][name] == getattr(recipe.data, name)
    text = read_recipe(tmp_path / "carrara-few" / "text.toml").task
    assert isinstance(text, ContrastiveRecipe)
    length = text.length
    assert facts["captions"]["limit"] == length - 2
    assert f"reads {length} tokens" in facts["captions"]["note"]


def test_data_check_counts_the_tokens_of_a_trained_encoder(project: Path, tmp_path: Path) -> None:
    words = ["data", "check", "pics", "--text", "carrara-pics/text", "--out", tmp_path, "--json"]
    facts = json.loads(done(*words, cwd=project).out)["captions"]
    length = json.loads((project / "carrara-pics" / "text" / "component.json").read_text())["config"]["network"][
        "length"
    ]
    assert (facts["unit"], facts["limit"]) == ("token", length)
    assert facts["longest"] >= 3 + 2  # "a red square" and two marks
    refused = run(*words[:3], "--text", "carrara-pics/decoder", cwd=project)
    assert refused.code == 2
    assert "expected a text" in refused.err


def test_train_says_what_it_found_and_what_comes_next(project: Path) -> None:
    said = (project / "text.txt").read_text()
    assert "40 pictures in pics." in said
    assert "Captions of 40 pictures come from .txt files." in said
    assert "held out" in said
    assert "parameters to train, on cpu in float32" in said
    assert "Next:  carrara train carrara-pics/decoder.toml" in said
    assert "Next:  carrara train carrara-pics/generator.toml" in (project / "decoder.txt").read_text()
    assert "Next:  carrara assemble --generator" in (project / "generator.txt").read_text()


def test_the_same_command_again_says_that_it_is_finished(project: Path) -> None:
    before = (project / "carrara-pics" / "text" / "weights.safetensors").read_bytes()
    said = done("train", "carrara-pics/text.toml", *tiny("text"), cwd=project)
    assert "This run is finished: 4 steps" in said.out
    assert (project / "carrara-pics" / "text" / "weights.safetensors").read_bytes() == before


def test_minutes_are_kept_by_a_resume(project: Path, tmp_path: Path) -> None:
    """A time budget is turned into steps once; the same command again finds the same run, finished."""
    short = [word for word in tiny("text") if word != "train.steps=4"]
    short = [word for word, next_ in zip(short, [*short[1:], ""], strict=True) if not (word == next_ == "--set")]
    words = ["train", "carrara-pics/text.toml", "--out", tmp_path / "run", *short, "--set", "minutes=0.01"]
    assert "steps fit into 1 s" in done(*words, cwd=project).out
    assert "This run is finished" in done(*words, cwd=project).out
    said = done(*words[:-1], "minutes=5", "--quiet", cwd=project)
    assert "warning: minutes is 5 and was 0.01 when this run began" in said.err
    assert said.out == ""


def test_dry_run_begins_nothing(project: Path, tmp_path: Path) -> None:
    words = ["train", "carrara-pics/decoder.toml", "--out", tmp_path / "run", "--dry-run", *tiny("decoder")]
    facts = json.loads(done(*words, "--json", cwd=project).out)
    assert facts["recipe"]["train"]["steps"] == 4
    assert facts["recipe"]["task"]["autoencoder"]["widths"] == [16, 16, 16]
    assert facts["preflight"]["step_seconds"] > 0
    assert facts["preflight"]["precision"] == "float32"
    said = done(*words, cwd=project).out
    assert "[task.autoencoder]" in said
    assert "Nothing was begun." in said
    assert not (tmp_path / "run").exists()


def test_quiet_training(project: Path, tmp_path: Path) -> None:
    said = done("train", "carrara-pics/text.toml", "--quiet", "--out", tmp_path / "run", *tiny("text"), cwd=project)
    assert said.out == said.err == ""


def test_sample(project: Path, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("a green circle\n\n  a blue square\n")
    words = ["sample", SYSTEM, "a red square", "--prompts", tmp_path / "prompts.txt", "--seed", 7, "--steps", 3]
    facts = json.loads(done(*words, "--out", tmp_path, "--batch", 2, "--json", cwd=project).out)
    names = ["0000-a-red-square-seed7.png", "0001-a-green-circle-seed8.png", "0002-a-blue-square-seed9.png"]
    assert [Path(made["path"]).name for made in facts["pictures"]] == names
    assert facts["warnings"] == []
    assert Path(facts["sheet"]).is_file()
    with Image.open(tmp_path / names[2]) as image:
        assert image.size == (40, 40)
        about = json.loads(image.info["carrara"])
    assert (about["prompt"], about["seed"]) == ("a blue square", 9)
    assert about["settings"]["times"] == {"kind": "uniform", "steps": 3, "shift": 1.0}
    assert set(about["components"]) == {"text", "generator", "decoder"}
    assert "torch" in about


def test_a_picture_depends_on_prompt_and_seed_alone(project: Path, tmp_path: Path) -> None:
    words = ["sample", SYSTEM, "--steps", 3, "--out"]
    done(*words, tmp_path / "a", "a red square", "--seed", 3, cwd=project)
    done(*words, tmp_path / "b", "a blue circle", "a red square", "--seed", 2, "--batch", 1, cwd=project)
    one = np.asarray(Image.open(tmp_path / "a" / "0000-a-red-square-seed3.png"))
    two = np.asarray(Image.open(tmp_path / "b" / "0001-a-red-square-seed3.png"))
    assert np.array_equal(one, two)


def test_sampling_again_overwrites_nothing(project: Path, tmp_path: Path) -> None:
    for _ in range(2):
        done("sample", SYSTEM, "x", "y", "--steps", 1, "--no-metadata", "--out", tmp_path, cwd=project)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == [
        "0000-x-seed0.png", "0001-y-seed1.png", "0002-x-seed0.png", "0003-y-seed1.png",
        "sheet-0000.png", "sheet-0002.png",
    ]  # fmt: skip
    with Image.open(tmp_path / "0000-x-seed0.png") as image:
        assert "carrara" not in image.info


@pytest.mark.parametrize("sampler", ["ancestral", "ddim", "dpmpp-2m", "heun"])
def test_samplers_and_guidance(project: Path, tmp_path: Path, sampler: str) -> None:
    words = ["--sampler", sampler, "--steps", 3, "--guidance", 4, "--negative", "a circle", "--json"]
    facts = json.loads(done("sample", SYSTEM, "x", *words, "--out", tmp_path, cwd=project).out)
    assert facts["settings"]["sampler"]["kind"] == sampler
    assert facts["settings"]["guidance"]["scale"] == 4
    assert facts["settings"]["negative"] == "a circle"


def test_a_sampler_that_is_the_models_own_stays_as_it_is() -> None:
    network = UNet(out_channels=6, channels=16, multipliers=(1,), blocks=1, attention=())
    denoiser = Denoiser(
        network, Process(LinearBetas(20, 0.001, 0.3)), Epsilon(), IntegerStep(20), learned_variance=True
    )
    own, times = functools.partial(ancestral, variance=Transition()), functools.partial(uniform, steps=4)
    taught = functools.partial(ancestral, variance=Learned())
    for settings, expected in ((SamplingSettings(own, times), own), (SamplingSettings(times=times), taught)):
        generator = DiffusionGenerator(denoiser, Space("pixels", (3, 8, 8)), settings=settings)
        system = System(Unconditional(), generator, Pixels(channels=3, size=8))
        found = sampling_settings(system, {"sampler": "ancestral"}, None, Voice(silent=True))
        assert found is not None
        assert isinstance(found.sampler, functools.partial)
        assert (found.sampler.func, found.sampler.keywords) == (expected.func, expected.keywords)


def test_another_size(project: Path, tmp_path: Path) -> None:
    done("sample", SYSTEM, "x", "--size", "32x48", "--steps", 2, "--out", tmp_path, cwd=project)
    with Image.open(tmp_path / "0000-x-seed0.png") as image:
        assert image.size == (48, 32)


def test_trace(project: Path, tmp_path: Path) -> None:
    done("sample", SYSTEM, "x", "--trace", "--steps", 20, "--out", tmp_path, cwd=project)
    facts = json.loads((tmp_path / "0000-x-seed0-trace.json").read_text())
    assert len(facts["times"]) == 8
    assert facts["times"][0] == 1.0
    assert facts["times"][-1] == pytest.approx(0.05)
    with Image.open(tmp_path / "0000-x-seed0-trace.png") as image:
        assert image.size[0] > 8 * 40


def test_what_is_cut_off_is_said(project: Path, tmp_path: Path) -> None:
    said = done("sample", SYSTEM, "a red square " * 20, "--steps", 1, "--out", tmp_path, cwd=project)
    assert "is longer than this model reads; not read:" in said.err


def test_negative_without_guidance_warns(project: Path, tmp_path: Path) -> None:
    words = ["--guidance", 1, "--negative", "y", "--steps", 1, "--out", tmp_path]
    assert "warning: --negative has no effect" in done("sample", SYSTEM, "x", *words, cwd=project).err


def test_show(project: Path) -> None:
    said = done("show", SYSTEM, "--verify", cwd=project).out
    heads = ("text encoder: contrastive", "generator: diffusion", "decoder: latents")
    for words in (*heads, "pictures of pics", "psnr_db", "Every file is as it was saved."):
        assert words in said
    facts = json.loads(done("show", SYSTEM, "--json", cwd=project).out)
    assert facts["verified"] is None  # nothing was compared
    text, generator, decoder = facts["parts"]
    assert generator["spaces"]["reads"] == text["spaces"]["space"]
    assert generator["spaces"]["space"] == decoder["spaces"]["space"]
    assert decoder["spaces"]["pictures"] == {"kind": "pixels", "shape": [3, 40, 40]}
    assert decoder["facts"]["figures"]["psnr_db"] > 0
    one = json.loads(done("show", "carrara-pics/text", "--json", cwd=project).out)
    assert one["kind"] == "component"
    assert one["parts"][0]["parameters"] == text["parameters"]


def test_class_folders(project: Path, tmp_path: Path) -> None:
    """Small pictures in class folders: no text encoder, no autoencoder, one recipe; grey stays grey."""
    for number in range(24):
        folder = tmp_path / "animals" / ("cats", "dogs")[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        draw(number, 16)[0].convert("L").save(folder / f"{number}.png")
    said = done("init", "animals", "--minutes", 1, cwd=tmp_path).out
    assert "16 x 16 pixels" in said
    assert "the names of their class folders" in said
    assert not (tmp_path / "carrara-animals" / "decoder.toml").exists()
    small = ["--set", "task.network.channels=8", "--set", "task.network.heads=1", *tiny("")]
    for part, why in (
        ("text", "class folders are the prompts"),
        ("decoder", "pictures this small are generated as they"),
    ):
        said = done("train", f"carrara-animals/{part}.toml", cwd=tmp_path).out
        assert why in said
        assert "Next:  carrara train carrara-animals/generator.toml" in said
    done("train", "carrara-animals/generator.toml", *small, cwd=tmp_path)
    parts = ["--generator", "carrara-animals/generator", "--decoder", "carrara-animals/decoder"]
    said = done("assemble", *parts, "model", cwd=tmp_path).out
    assert "carrara-animals/decoder is not there and not needed" in said
    assert "carrara sample model cats" in said
    assert done("sample", "model", "dogs", "cats", "--guidance", 3, "--trace", "--steps", 2, cwd=tmp_path).code == 0
    with Image.open(tmp_path / "samples" / "0000-dogs-seed0.png") as image:
        assert (image.size, image.mode) == ((16, 16), "L")
    assert "did you mean cats?" in run("sample", "model", "cat", cwd=tmp_path).err
    assert "name a class of this model, or several: cats, dogs" in run("sample", "model", cwd=tmp_path).err


def test_unconditional(project: Path, tmp_path: Path) -> None:
    """Pictures of which nothing is said; a prompt is refused, guidance warns."""
    for number in range(24):
        (tmp_path / "shapes").mkdir(exist_ok=True)
        draw(number, 16)[0].save(tmp_path / "shapes" / f"{1000 + number}.png")
    assert "the generator is told nothing" in done("init", "shapes", "--minutes", 1, cwd=tmp_path).out
    small = ["--set", "task.network.channels=8", "--set", "task.network.heads=1", *tiny("")]
    done("train", "carrara-shapes/generator.toml", *small, cwd=tmp_path)
    said = done("assemble", "--generator", "carrara-shapes/generator", "model", cwd=tmp_path).out
    assert "carrara sample model --count 4" in said
    said = done("sample", "model", "--count", 3, "--guidance", 3, "--steps", 2, cwd=tmp_path)
    assert "warning: --guidance has no effect" in said.err
    assert (tmp_path / "samples" / "0002-seed2.png").is_file()
    said = run("sample", "model", "a cat", cwd=tmp_path)
    assert said.code == 2
    assert 'cannot read "a cat"' in said.err


def test_doctor(project: Path) -> None:
    facts = json.loads(done("doctor", "--json").out)
    found = {finding["name"]: finding for finding in facts["findings"]}
    assert {"python", "torch", "threads", "precision", "GPU", "memory", "cache", "extra demo"} <= set(found)
    states = [finding["state"] for finding in facts["findings"]]
    assert states == sorted(states, key=("problem", "missing", "ok").index)
    said = done("doctor").out
    assert "torch" in said
    assert "precision" in said


def test_doctor_names_what_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    find = importlib.util.find_spec
    absent = {"tensorboard", "tifffile"}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in absent else find(name))
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CARRARA_CACHE", str(tmp_path / "file" / "cache"))
    said = done("doctor").out
    assert said.index("tifffile") < said.index("tensorboard") < said.index("python")
    assert "pip install 'carrara[tensorboard]'" in said
    assert "pip install tifffile" in said
    assert "CARRARA_CACHE" in said
    assert "2 to mend." in said


def test_demo_is_called_with_what_was_asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from carrara.demo import pipeline

    seen: list[object] = []
    monkeypatch.setattr(
        pipeline,
        "demo",
        lambda minutes, out, seed, say, *, progress, began: seen.extend((minutes, out, seed, progress)),
    )
    done("demo", "--minutes", 1, "--out", tmp_path, "--seed", 3)
    assert seen == [1.0, tmp_path, 3, True]
