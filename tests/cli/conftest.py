"""Commands run in this process, and a tiny project that all tests of the command line look at."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image

from carrara.cli import main


class Ended(NamedTuple):
    """How a command ended and what it said."""

    code: int
    out: str
    err: str


def run(*words: object, cwd: Path | None = None) -> Ended:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.chdir(cwd or Path.cwd()), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        with pytest.raises(SystemExit) as ended:
            main([str(word) for word in words])
    said = Ended(int(ended.value.code or 0), out.getvalue(), err.getvalue())
    assert "Traceback" not in said.out + said.err
    return said


def done(*words: object, cwd: Path | None = None) -> Ended:
    said = run(*words, cwd=cwd)
    assert said.code == 0, said.err
    return said


COLOURS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (40, 60, 230), "yellow": (240, 220, 30)}


def draw(number: int, side: int) -> tuple[Image.Image, str]:
    """A coloured square or disc on white, and its caption."""
    rng = np.random.default_rng(number)
    name, shape = list(COLOURS)[number % 4], ("square", "circle")[number // 4 % 2]
    y, x = np.mgrid[:side, :side] - (side * (0.35 + 0.3 * rng.random(2))).reshape(2, 1, 1)
    radius = side * (0.2 + 0.15 * rng.random())
    pixels = np.full((side, side, 3), 255, np.uint8)
    pixels[np.maximum(abs(x), abs(y)) < radius if shape == "square" else np.hypot(x, y) < radius] = COLOURS[name]
    return Image.fromarray(pixels), f"a {name} {shape}"


def write_pictures(folder: Path) -> None:
    """Forty captioned pictures of 16 to 32 pixels, and three that are broken."""
    folder.mkdir(parents=True)
    for number in range(40):
        picture, caption = draw(number, 16 + 4 * (number % 5))
        picture.save(folder / f"{number:02}.png")
        (folder / f"{number:02}.txt").write_text(caption + "\n")
    whole = (folder / "39.png").read_bytes()
    for name, data in (("cut", whole[:60]), ("empty", b""), ("text", b"no picture")):
        (folder / f"{name}.png").write_bytes(data)
        (folder / f"{name}.txt").write_text("a broken file\n")


_TRAIN = ("train.steps=4", "train.batch=8", "train.precision=float32")
TINY = {
    "text": ("task.network.width=32", "task.network.depth=1", "task.network.heads=2", "task.picture.widths=[16,16,16]"),
    "decoder": ("task.autoencoder.widths=[16,16,16]", "task.autoencoder.latent=4"),
    "generator": ("task.network.width=32", "task.network.depth=1", "task.network.heads=2"),
}


def tiny(part: str, *more: str) -> list[str]:
    return [word for setting in (*TINY.get(part, ()), *_TRAIN, *more) for word in ("--set", setting)]


@pytest.fixture(scope="session")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder in which a user went from pictures to a model: pics, carrara-pics with recipes, runs and system."""
    place = tmp_path_factory.mktemp("project")
    before = os.environ.get("CARRARA_CACHE")
    os.environ["CARRARA_CACHE"] = str(place / "cache")
    write_pictures(place / "pics")
    assert "40 pictures in pics" in done("data", "check", "pics", "--size", 40, cwd=place).out
    said = done("init", "pics", "--size", 40, "--minutes", 2, cwd=place).out
    (place / "init.txt").write_text(said)
    for part in ("text", "decoder", "generator"):
        said = done("train", f"carrara-pics/{part}.toml", *tiny(part), cwd=place).out
        (place / f"{part}.txt").write_text(said)
    parts = [word for part in ("text", "decoder", "generator") for word in (f"--{part}", f"carrara-pics/{part}")]
    done("assemble", *parts, "carrara-pics/system", cwd=place)
    yield place
    if before is None:
        del os.environ["CARRARA_CACHE"]
    else:
        os.environ["CARRARA_CACHE"] = before


@pytest.fixture
def copied(project: Path, tmp_path: Path) -> Path:
    """The project's model, to be damaged."""
    shutil.copytree(project / "carrara-pics" / "system", tmp_path / "system")
    return tmp_path / "system"
