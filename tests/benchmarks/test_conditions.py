"""The measure of obedience, with tiny recipes: what is trained, what is measured, and what is shown."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from benchmarks import conditions

NAMES = ("edges", "several", "embedding", "control-edges", "classes")
TRAIN = '\n[train]\nsteps = 2\nbatch = 4\nwarmup = 1\nprecision = "float32"\n'
DATA = '\n[data]\nfolder = "data/{}"\nsize = 16\nheldout = 0.3\n'
UNET = 'network = { kind = "unet", channels = 8, multipliers = [1, 2], blocks = 1, attention = [], groups = 4 }\n'
FAST = 'settings = { times = { kind = "uniform", steps = 2 } }\n'
CONTRASTIVE = """[task]
kind = "contrastive"
vocabulary = 300
length = 8
network = { kind = "transformer", width = 16, depth = 1, heads = 2 }
picture = { kind = "convolutional", patch = 4, widths = [8, 8], blocks = [1, 1] }
"""
DIFFUSION = f'[task]\nkind = "diffusion"\ntext = "runs/emoji/text"\n{UNET}{FAST}'


def told(**kinds: str) -> str:
    return "".join(f'[task.inputs.{name}]\nkind = "{kind}"\ndrop = 0.2\n' for name, kind in kinds.items())


TINY = {
    "emoji/text": CONTRASTIVE,
    "conditions/plain": DIFFUSION,
    "conditions/edges": DIFFUSION + told(edges="edges"),
    "conditions/several": DIFFUSION + told(layout="layout", mask="mask", small="small", relief="relief"),
    "conditions/embedding": DIFFUSION
    + '[task.inputs.embedding]\nkind = "embedding"\nencoder = "runs/emoji/text"\ndrop = 0.2\n',
    "conditions/control-edges": '[task]\nkind = "control"\nmodel = "runs/conditions/plain-system"\n'
    '[task.inputs.edges]\nkind = "edges"\n',
    "conditions/classes": f'[task]\nkind = "diffusion"\ntext = "labels"\n{UNET}{FAST}',
    "conditions/classifier": CONTRASTIVE,
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, in_process: Callable[..., str]) -> Path:
    """A place in which everything was trained and measured."""
    place = tmp_path_factory.mktemp("conditions")
    for name, task in TINY.items():
        path = place / "recipes" / f"{name}.toml"
        path.parent.mkdir(parents=True, exist_ok=True)
        classes = name in ("conditions/classes", "conditions/classifier")
        head = f'out = "runs/{name}"\nminutes = 0\n'
        path.write_text(head + task + DATA.format("clothes" if classes else "emoji") + TRAIN)
    for number in range(40):
        picture = Image.new("RGB", (16, 16), "white")
        picture.paste((number * 6, 255 - number * 6, number * 37 % 256), (number % 4, 2, 8 + number % 7, 12))
        for folder in (place / "data" / "emoji", place / "data" / "clothes" / f"kind {number % 4}"):
            folder.mkdir(parents=True, exist_ok=True)
            picture.save(folder / f"{number:02}.png")
        (place / "data" / "emoji" / f"{number:02}.txt").write_text(f"shape {number} of colour\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.setattr(conditions, "carrara", in_process)
        patch.setattr(conditions, "NAMES", NAMES)
        patch.setenv("CARRARA_CACHE", str(place / "cache"))
        recipes = ["--recipes", "recipes/conditions"]
        conditions.main([*recipes, "--only", "control-edges"])
        runs = {path.name for path in (place / "runs" / "conditions").iterdir()}
        assert runs == {"plain", "plain-system", "control-edges"}
        conditions.main([*recipes, "--out", "conditions.json", "--pictures", "images"])
    return place


def test_a_row_a_condition(made: Path) -> None:
    body: dict[str, Any] = json.loads((made / "conditions.json").read_text())
    rows = {row["name"]: row for row in body["rows"]}
    assert list(rows) == list(NAMES)
    assert all(row["training"]["step"] == 2 for row in rows.values())
    assert set(rows["several"]["figures"]) == {
        "layout_agreement", "hole_rms", "changed_outside", "small_image_rms", "relief_error",
    }  # fmt: skip
    assert rows["several"]["figures"]["changed_outside"]["told"] == {"mean": 0, "std_error": 0}
    assert rows["several"]["figures"]["changed_outside"]["alone"]["mean"] > 0.5
    assert set(rows["classes"]["figures"]["label_accuracy"]) == {"told", "real"}
    assert set(rows["embedding"]["figures"]["likeness"]) == {"told", "alone"}
    assert str(made) not in (made / "conditions.json").read_text()
    for name in NAMES:
        with Image.open(made / "images" / f"condition-{name}.png") as image:
            assert image.width == 8 * 18 + 2 or name == "classes"


def test_an_unknown_name(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        conditions.main(["--only", "edge"])
    assert "no recipe is called edge; known are" in capsys.readouterr().err


@pytest.mark.parametrize("name", conditions.NAMES)
def test_what_a_recipe_needs_has_a_recipe(name: str) -> None:
    recipes = conditions.ROOT / "recipes"
    for path in conditions.needed(recipes / "conditions", name):
        assert (recipes / path.parent.name / f"{path.name}.toml").is_file()
