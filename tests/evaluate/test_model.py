"""A model folder as it is measured: its name, parameters, times of training, and how data are prepared for it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from carrara.data import open_pictures
from carrara.decoder import Pixels
from carrara.diffusion import Denoiser, DiffusionGenerator, Flow, Linear, Process, SamplingSettings, ScaledTime
from carrara.evaluate.card_section import measured_section, write_into_card
from carrara.evaluate.model import Model, open_model, said
from carrara.nn import UNet
from carrara.store import assemble, save_component
from carrara.text import Labels, Unconditional
from carrara.types import Space


def written(place: Path, *, labels: tuple[str, ...] = (), log: str | None = None, name: str = "system") -> Path:
    """A model of tiny grey pictures."""
    text = Labels(labels) if labels else Unconditional()
    network = UNet(in_channels=1, out_channels=1, channels=16, multipliers=(1,), blocks=1, attention=(),
                   vector=len(labels) + 1 if labels else None)  # fmt: skip
    denoiser = Denoiser(network, Process(Linear()), Flow(), ScaledTime())
    generator = DiffusionGenerator(denoiser, Space("pixels", (1, 8, 8)), reads=text.space, settings=SamplingSettings())
    save_component(place / "run", "generator", generator, facts={"data": {"settings": {"background": "black"}}})
    save_component(place / "run" / "text", "text", text)
    save_component(place / "run" / "decoder", "decoder", Pixels(channels=1, size=8))
    if log is not None:
        (place / "run" / "log.jsonl").write_text(log)
    assemble(place / name, generator=place / "run")
    return place / name


def test_what_is_known(tmp_path: Path) -> None:
    log = '{"event": "step"}\n{"event": "done", "step": 3, "seconds": 12.34}\n'
    model = open_model(written(tmp_path / "flow", log=log))
    assert model.name == "flow"  # "system" says nothing
    assert open_model(model.path, "other").name == "other"
    assert model.parameters == {"text": 0, "generator": model.parameters["generator"], "decoder": 0}
    assert model.training_seconds == 12.3
    assert model.size == (8, 8)
    assert json.loads((model.path / "model.json").read_text())["training_seconds"] == {"generator": 12.3}
    assert open_model(written(tmp_path / "b", name="named", log=log)).name == "named"


@pytest.mark.parametrize("log", [None, "", '{"event": "step", "seconds": 3}\n', "{\n", '{"event": "done"}\n'])
def test_an_unknown_time(log: str | None, tmp_path: Path) -> None:
    assert open_model(written(tmp_path, log=log)).training_seconds is None


def test_other_weights_have_another_key(tmp_path: Path) -> None:
    a, b = (open_model(written(tmp_path / name)) for name in "ab")
    assert a.key != b.key
    assert a.key == open_model(a.path).key


def test_data_as_in_training(tmp_path: Path) -> None:
    model = open_model(written(tmp_path, labels=("cats", "dogs")))
    for name in ("cats", "fish"):
        (tmp_path / "pics" / name).mkdir(parents=True)
        for i in range(3):
            pixels = np.full((12, 12), 40 * i, np.uint8)
            Image.fromarray(pixels).save(tmp_path / "pics" / name / f"{i}.png")
    settings = model.data(tmp_path / "pics")
    assert (settings.shape, settings.channels, settings.depth, settings.background) == ((8, 8), 1, 8, "black")
    assert model.data(tmp_path / "pics", (4, 4)).shape == (4, 4)
    pictures = open_pictures(settings, tmp_path / "cache")
    assert not model.trained_on(pictures)
    told = said(model.system.text, pictures, range(6))
    assert sorted(told) == ["", "", "", "cats", "cats", "cats"]  # it knows no fish
    other = Model("x", model.path, model.system, {"data": {"fingerprint": pictures.fingerprint}}, {})
    assert other.trained_on(pictures)


FACTS = {
    "figures": {"fd_pixels": 3.0},
    "intervals": {},
    "marks": {"fd_pixels": "n<d: 20 samples, 3072 dimensions"},
    "samples": {"count": 20, "repeats": 1, "seed": 0, "candidates": 1, "size": [8, 8]},
    "reference": {"folder": "pics", "split": "all", "pictures": 30},
    "extractor": {"name": "pixels", "dimensions": 3072, "key": "abc"},
}


def test_the_card(tmp_path: Path) -> None:
    """Made where there is none; the section is replaced, whatever stands around it."""
    model = open_model(written(tmp_path))
    path = write_into_card(model, FACTS)
    text = path.read_text()
    assert "\\# " not in text
    assert text.index("# ") < text.index("## Measured") < text.index("n\\<d")
    assert open_model(model.path).key == model.key
    section = measured_section(FACTS, "All of it.")
    path.write_text(f"before\n{section}\nafter \\g<0>\n")
    write_into_card(model, {**FACTS, "figures": {"fd_pixels": 7.0}})
    text = path.read_text()
    assert text.startswith("before\n<!-- measured: begin -->")
    assert text.endswith("after \\g<0>\n")
    assert "7.00" in text
    assert "3.00" not in text
