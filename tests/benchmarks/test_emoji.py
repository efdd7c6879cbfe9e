"""The comparison of the emoji's generators, with tiny recipes: all that it should say is there, and on the page."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from benchmarks import emoji

ROOT = Path(__file__).parents[2]

COMMON = """
[data]
folder = "data/emoji"
size = 16
heldout = 0.2

[train]
steps = 2
batch = 4
warmup = 1
precision = "float32"
"""
LATENT = 'text = "runs/emoji/text"\ndecoder = "runs/emoji/decoder"\n'
AUTOENCODER = "down = 4\nwidths = [8, 8]\npatch = 2\nencoder_blocks = [0, 1]\ndecoder_blocks = [0, 1]\n"
TINY = {
    "text": """[task]
kind = "contrastive"
vocabulary = 300
length = 8
network = { kind = "transformer", width = 16, depth = 1, heads = 2 }
picture = { kind = "convolutional", patch = 4, widths = [8, 8], blocks = [1, 1] }
""",
    "decoder": f'[task]\nkind = "autoencoder"\n[task.autoencoder]\nkind = "kl"\nlatent = 4\n{AUTOENCODER}',
    "tokens": f"""[task]
kind = "tokens"
quantizer = {{ kind = "vq", vocabulary = 32, channels = 4 }}
[task.autoencoder]
kind = "kl"
{AUTOENCODER}""",
    "cascade-upsample": '[task]\nkind = "upsample"\n'
    'network = { kind = "residual", factor = 4, width = 8, blocks = 1 }\n',
    "vae": f'[task]\nkind = "vae"\n{LATENT}network = {{ kind = "ladder", widths = [8], blocks = [1], levels = [1] }}\n'
    'likelihood = { kind = "normal" }\n',
    "autoregressive": """[task]
kind = "autoregressive"
text = "runs/emoji/text"
decoder = "runs/emoji/tokens"
network = { kind = "causal", width = 16, depth = 1, heads = 2 }
""",
    "cascade": """[task]
kind = "diffusion"
text = "runs/emoji/text"
decoder = "runs/emoji/cascade-upsample"
network = { kind = "dit", patch = 2, width = 16, depth = 1, heads = 2 }
settings = { times = { kind = "uniform", steps = 2 } }
""",
}
FAMILIES = ("vae", "autoregressive", "cascade")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, in_process: Callable[..., str]) -> Path:
    """A place in which the whole comparison was made of tiny recipes."""
    place = tmp_path_factory.mktemp("emoji")
    (place / "recipes").mkdir()
    for name, task in TINY.items():
        head = f'out = "runs/emoji/{name}"\nminutes = 0\n'
        (place / "recipes" / f"{name}.toml").write_text(f"{head}{task}{COMMON}")
    (place / "data").mkdir()
    for number in range(40):
        colour = (number * 6, 255 - number * 6, number * 37 % 256)
        picture = Image.new("RGB", (16, 16), "white")
        picture.paste(colour, (number % 4, 2, 8 + number % 7, 12))
        picture.save(place / "data" / f"{number:02}.png")
        (place / "data" / f"{number:02}.txt").write_text(f"shape {number} of colour\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(emoji, "carrara", in_process)
        patch.setattr(emoji, "FAMILIES", FAMILIES)
        patch.setattr(emoji, "RANKED", "autoregressive")
        patch.setenv("CARRARA_CACHE", str(place / "cache"))
        words = ["--data", place / "data", "--runs", place / "runs", "--recipes", place / "recipes", "--n", 16]
        words += ["--out", place / "compare-emoji.json", "--pictures", place / "images"]
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            emoji.main([*map(str, words), "--only", "autoregressive"])
        assert "cascade" not in said.getvalue() and not (place / "compare-emoji.json").exists()
        assert said.getvalue().splitlines() == [f"{name}: training" for name in ("text", "tokens", "autoregressive")]
        with contextlib.redirect_stdout(said):
            emoji.main([*map(str, words)])
        assert "autoregressive: is trained" in said.getvalue()
    return place


@pytest.fixture(scope="module")
def found(made: Path) -> dict[str, Any]:
    body: dict[str, Any] = json.loads((made / "compare-emoji.json").read_text())
    return body


def test_a_row_a_family(found: dict[str, Any]) -> None:
    assert [row["name"] for row in found["rows"]] == list(FAMILIES)
    for row in found["rows"]:
        assert {"prompt_fidelity_top1", "fd_pixels", "kid_pixels", "seconds_per_picture", "parameters",
                "training_seconds"} <= set(row)  # fmt: skip
        assert row["training"]["step"] == 2
        assert row["training_seconds"] > row["training"]["seconds"]  # other parts count, too
        assert "bits_per_dim" in row["missing"]
    assert found["reference"]["folder"] == "data"
    assert {"torch", "python", "carrara"} <= set(found["facts"]["versions"])


def test_decoders_candidates_and_goals(found: dict[str, Any]) -> None:
    assert [row["name"] for row in found["decoders"]] == ["decoder", "tokens", "cascade-upsample"]
    assert "above_bicubic_db" in found["decoders"][-1] and "vocabulary_used" in found["decoders"][1]
    assert [row["candidates"] for row in found["candidates"]] == [1, 8]
    row = next(row for row in found["rows"] if row["name"] == "autoregressive")
    assert found["candidates"][0]["prompt_fidelity_top1"] == row["prompt_fidelity_top1"]
    assert len(found["goals"]) == 4  # two families above the VAE, the cascade, the candidates


def test_no_folder_of_this_machine_is_written(made: Path) -> None:
    assert str(made) not in (made / "compare-emoji.json").read_text()


def test_pictures_of_the_same_prompts(made: Path, found: dict[str, Any]) -> None:
    assert len(found["prompts"]) == emoji.SHOWN and all(found["prompts"])
    sizes = set()
    for name in ("data", *FAMILIES):
        with Image.open(made / "images" / f"emoji-{name}.png") as image:
            sizes.add(image.size)
    assert len(sizes) == 1


def test_a_newer_part_is_measured_anew(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And nothing is assembled twice that is as it was."""
    done: list[str] = []
    monkeypatch.setattr(emoji, "carrara", lambda *words: done.append(str(words[0])))
    shop = emoji.Workshop(made / "data", made / "runs", made / "recipes", 16)
    shop.assemble("vae")
    assert not done and (shop.comparison / "vae").exists()
    component = made / "runs" / "text" / "component.json"
    component.touch()
    shop.assemble("vae")
    assert done == ["assemble"] and not (shop.comparison / "vae").exists()


def test_goals() -> None:
    rows = [
        {"name": name, "prompt_fidelity_top1": share} for name, share in (("vae", 0.4), ("gan", 0.3), ("flow", 0.6))
    ]
    candidates = [{"prompt_fidelity_top1": share} for share in (0.5, 0.5)]
    body = {"rows": rows, "decoders": [{"name": "cascade-upsample", "above_bicubic_db": 2.0}], "candidates": candidates}
    assert [goal["met"] for goal in emoji.goals(body)] == [False, True, True, False]


def test_an_unknown_name(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        emoji.main(["--only", "diffusoin"])
    assert "no recipe is called diffusoin" in capsys.readouterr().err


@pytest.mark.parametrize("name", [*emoji.PARTS, *emoji.FAMILIES])
def test_the_recipes_are_there(name: str) -> None:
    shop = emoji.Workshop(Path("data/emoji"), Path("runs/emoji"))
    assert set(shop.needed(name).values()) <= set(emoji.PARTS)
    assert shop.order([name])[-1] == name


@pytest.fixture
def figures() -> Any:
    spec = importlib.util.spec_from_file_location("docs_figures_emoji", ROOT / "docs" / "figures.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_made_of_it(made: Path, figures: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(figures, "BENCHMARKS", made)
    names = [name for name in figures.TABLES if name.startswith("results-emoji")]
    text = "\n".join(f"<!--table {name}-->\nold\n<!--/table-->" for name in names)
    page = figures.filled(text)
    assert figures.filled(page) == page and "old" not in page and "not measured" not in page.lower()
    for said in (
        "| cascade |",
        "images/emoji-cascade.png",
        "PSNR above bicubic",
        "(n<d)",
        "best of 8",
        "From the left:",
    ):
        assert said in page, said
    charts = dict(figures.emoji_charts())
    assert len(charts) == 3
    assert all(f"images/{name}.svg" in page and "cascade" in figures.drawn(chart) for name, chart in charts.items())
    monkeypatch.setattr(figures, "BENCHMARKS", tmp_path)  # before it is measured
    assert "*Not measured yet.*" in figures.filled(text) and not list(figures.emoji_charts())
