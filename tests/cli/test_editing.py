"""`carrara sample --image --mask --strength`: what a user asks for, and what can be wrong with it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from carrara.decoder import Pixels
from carrara.diffusion import Denoiser, DiffusionGenerator, Flow, Linear, Process, ScaledTime
from carrara.nn import UNet
from carrara.store import assemble, save_component
from carrara.text import Unconditional

from .conftest import done, draw, run

SYSTEM = "carrara-pics/system"


@pytest.fixture(scope="module")
def pixels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained model of grey pixels, 16 x 16."""
    place = tmp_path_factory.mktemp("pixels")
    torch.manual_seed(0)
    network = UNet(in_channels=1, out_channels=1, channels=8, multipliers=(1, 2), blocks=1, attention=(), groups=4)
    decoder = Pixels(channels=1, size=16)
    denoiser = Denoiser(network, Process(Linear()), Flow(), ScaledTime())
    parts = {"text": Unconditional(), "generator": DiffusionGenerator(denoiser, decoder.space), "decoder": decoder}
    for role, part in parts.items():
        save_component(place / role, role, part)
    assemble(place / "model", **{role: place / role for role in parts})
    return place / "model"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures and masks, good and bad."""
    place = tmp_path_factory.mktemp("files")
    draw(3, 40)[0].save(place / "picture.png")
    draw(4, 80)[0].crop((0, 0, 80, 60)).save(place / "wide.jpg")
    draw(5, 16)[0].convert("L").save(place / "grey.png")
    for side in (16, 40):
        half = Image.new("L", (side, side), 0)
        half.paste(255, (0, 0, side, side // 2))  # the upper half may change
        half.save(place / f"half-{side}.png")
        half.convert("RGB").convert("P").save(place / f"palette-{side}.png")
        Image.new("L", (side, side), 0).save(place / f"nothing-{side}.png")
    half.resize((20, 40)).save(place / "narrow.png")
    half.convert("RGBA").save(place / "opaque.png")
    Image.new("RGBA", (40, 40), (255, 255, 255, 100)).save(place / "clear.png")
    (place / "cut.png").write_bytes((place / "picture.png").read_bytes()[:50])
    np.save(place / "five.npy", np.zeros((40, 40, 5), np.uint8))
    return place


def made(folder: Path, number: int = 0) -> np.ndarray:
    (path,) = folder.glob(f"{number:04}-*seed?.png")
    return np.asarray(Image.open(path))


def test_strength(project: Path, files: Path, tmp_path: Path) -> None:
    words = ["sample", SYSTEM, "a red square", "--steps", 4, "--json"]
    begun = ["--image", files / "picture.png"]
    facts = json.loads(done(*words, *begun, "--strength", 0.5, "--out", tmp_path / "half", cwd=project).out)
    assert facts["settings"]["editing"]["strength"] == 0.5
    assert facts["settings"]["image"] == "picture.png"
    with Image.open(facts["pictures"][0]["path"]) as image:
        assert image.size == (40, 40)
        assert json.loads(image.info["carrara"])["settings"]["image"] == "picture.png"
    done(*words, "--out", tmp_path / "plain", cwd=project)
    said = done(*words, *begun, "--strength", 1, "--out", tmp_path / "whole", cwd=project)
    assert "warning: --image has no effect with --strength 1" in said.err
    assert np.array_equal(made(tmp_path / "plain"), made(tmp_path / "whole"))
    assert not np.array_equal(made(tmp_path / "plain"), made(tmp_path / "half"))
    done(*words, *begun, "--out", tmp_path / "default", cwd=project)
    assert not np.array_equal(made(tmp_path / "default"), made(tmp_path / "plain"))


def test_a_mask_keeps_what_is_black(project: Path, files: Path, tmp_path: Path) -> None:
    """Latents too: what is kept is the file's own, level for level."""
    picture = np.asarray(Image.open(files / "picture.png"))
    words = ["sample", SYSTEM, "x", "y", "--steps", 3, "--seed", 3, "--image", files / "picture.png"]
    for mask in ("half-40.png", "palette-40.png", "opaque.png", "half-16.png"):
        out = tmp_path / Path(mask).stem
        done(*words, "--mask", files / mask, "--out", out, "--trace", cwd=project)
        for name in ("0000-x-seed3.png", "0001-y-seed4.png"):
            found = np.asarray(Image.open(out / name))
            assert np.array_equal(found[20:], picture[20:])
            assert not np.array_equal(found[:20], picture[:20])
        trace = json.loads((out / "0000-x-seed3-trace.json").read_text())
        assert len(trace["times"]) == 8  # of 3 + 2 x 3 strides
    assert np.array_equal(made(tmp_path / "half-40", 1), made(tmp_path / "palette-40", 1))
    done(*words, "--mask", files / "nothing-40.png", "--out", tmp_path / "nothing", cwd=project)
    assert np.array_equal(made(tmp_path / "nothing", 1), picture)


def test_pixels(pixels: Path, files: Path, tmp_path: Path) -> None:
    picture = np.asarray(Image.open(files / "grey.png"))
    words = ["sample", pixels, "--steps", 3, "--image", files / "grey.png"]
    done(*words, "--mask", files / "half-16.png", "--out", tmp_path / "half")
    found = np.asarray(Image.open(tmp_path / "half" / "0000-seed0.png"))
    assert np.array_equal(found[8:], picture[8:]) and not np.array_equal(found[:8], picture[:8])
    done(*words, "--strength", 0, "--out", tmp_path / "same")
    assert np.array_equal(np.asarray(Image.open(tmp_path / "same" / "0000-seed0.png")), picture)


def test_other_sizes_are_scaled_and_cut(project: Path, files: Path, tmp_path: Path) -> None:
    words = ["sample", SYSTEM, "x", "--steps", 2, "--image", files / "wide.jpg", "--strength", 0.5]
    done(*words, "--out", tmp_path / "own", cwd=project)
    assert made(tmp_path / "own").shape == (40, 40, 3)
    done(*words, "--size", "32x48", "--out", tmp_path / "asked", cwd=project)
    assert made(tmp_path / "asked").shape == (32, 48, 3)


@pytest.mark.parametrize(
    "words, code, says",
    [
        (["--mask", "half-40.png"], 2, "--mask.*give the image too"),
        (["--strength", "0.5"], 2, "--strength.*give the image too"),
        (["--image", "picture.png", "--strength", "1.5"], 2, "--strength"),
        (["--image", "picture.png", "--strength", "-0.1"], 2, "--strength"),
        (["--image", "picture.png", "--strength", "nan"], 2, "strength"),
        (["--image", "picture.png", "--strength", "much"], 2, "--strength"),
        (["--image", "none.png"], 5, "none.png cannot be read"),
        (["--image", "."], 5, "cannot be read"),
        (["--image", "cut.png"], 3, "cut.png cannot be used"),
        (["--image", "five.npy"], 3, "five.npy cannot be used: it has 5 channels"),
        (["--image", "picture.png", "--mask", "none.png"], 5, "none.png cannot be read"),
        (["--image", "picture.png", "--mask", "cut.png"], 3, "cut.png cannot be used"),
        (["--image", "picture.png", "--mask", "five.npy"], 3, "five.npy has 5 channels"),
        (["--image", "picture.png", "--mask", "clear.png"], 3, "clear.png is transparent in part"),
        (["--image", "picture.png", "--mask", "narrow.png"], 3, "narrow.png cannot be used.*other proportions"),
        (["--image", "picture.png", "--size", "41"], 2, "multiples of 8"),
    ],
)
def test_refusals(project: Path, files: Path, tmp_path: Path, words: list[str], code: int, says: str) -> None:
    import re

    placed = [str(files / word) if "." in word and not re.fullmatch(r"-?[\d.]+", word) else word for word in words]
    placed = [str(files) if word == "." else word for word in placed]
    said = run("sample", SYSTEM, "x", "--steps", 2, *placed, "--out", tmp_path / "out", cwd=project)
    assert (said.code, bool(re.search(says, said.err))) == (code, True), said
    assert not (tmp_path / "out").exists()
