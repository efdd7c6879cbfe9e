"""Decoders on the command line: a published file imported, several put together, and how they are asked to decode."""

from __future__ import annotations

import functools
import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from carrara.decoder import DiffusionUpsample, Upsample
from carrara.diffusion import Denoiser, DiffusionGenerator, Flow, Linear, Plain, Process, ScaledTime, uniform
from carrara.diffusion.generator import SamplingSettings
from carrara.nn import UNet
from carrara.nn.tiny_autoencoder import TinyAutoencoder
from carrara.nn.upsampler import ResidualUpsampler
from carrara.store import load_component, save_component
from carrara.store.safetensors_io import save_tensors
from carrara.text import Unconditional
from carrara.train.tasks.generator import condition_widths

from .conftest import done, run, write_pictures

SETTINGS = SamplingSettings(times=functools.partial(uniform, steps=3), guidance=Plain())


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny autoencoder's weights as they are handed round, and pictures."""
    place = tmp_path_factory.mktemp("published")
    torch.manual_seed(0)
    network = TinyAutoencoder(latent=4, width=8, encoder_blocks=(1, 1), decoder_blocks=(1, 1))
    save_tensors(place / "tiny.safetensors", {name: tensor.half() for name, tensor in network.state_dict().items()})
    write_pictures(place / "pics")
    return place


def test_import(published: Path) -> None:
    words = ["import", "tiny.safetensors", "tiny", "--size", 16, "--data", "pics", "--cache", "cache"]
    said = done(*words, cwd=published).out
    assert "tiny is a decoder of latents 4 x 8 x 8" in said and "psnr_db" in said and 'task.decoder = "tiny"' in said
    decoder = load_component(published / "tiny", "decoder")
    assert (decoder.std != 1).all() and (decoder.mean != 0).all()
    facts = json.loads(done("show", "tiny", "--json", cwd=published).out)["parts"][0]["facts"]
    assert facts["imported_from"] == "tiny.safetensors" and set(facts["figures"]) == {"psnr_db", "ssim"}
    assert "imported from tiny.safetensors" in (published / "tiny" / "README.md").read_text()
    plain = done("import", "tiny.safetensors", "plain", "--size", 64, cwd=published).out
    assert "latents 4 x 32 x 32" in plain
    assert (load_component(published / "plain", "decoder").std == 1).all()


def test_import_refuses(published: Path, tmp_path: Path) -> None:
    save_tensors(tmp_path / "other.safetensors", {"a": torch.zeros(2)})
    said = run("import", tmp_path / "other.safetensors", tmp_path / "out")
    assert said.code == 5 and "not of TAESD's layout" in said.err
    said = run("import", published / "tiny.safetensors", tmp_path / "out", "--size", 15)
    assert said.code == 2 and "folds 2 pixels" in said.err
    assert not (tmp_path / "out").exists()
    done("import", published / "tiny.safetensors", tmp_path / "out")
    said = run("import", published / "tiny.safetensors", tmp_path / "out")
    assert said.code == 5 and "is a component already" in said.err
    assert run("import", tmp_path / "none.safetensors", tmp_path / "b").code == 5


@pytest.fixture(scope="module")
def cascade(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A generator of 8 px, two upsamplers, and the model that they make."""
    place = tmp_path_factory.mktemp("cascade")
    torch.manual_seed(0)

    def unet(**more: object) -> Denoiser:
        network = UNet(channels=8, multipliers=(1, 2), blocks=1, attention=(), groups=4, **more)
        return Denoiser(network, Process(Linear()), Flow(), ScaledTime())

    first = Upsample(ResidualUpsampler(factor=2, width=8, blocks=1), size=16)
    second = DiffusionUpsample(
        unet(image_channels=3, numbers=("augmentation",)), size=32, factor=2, most=0.5, settings=SETTINGS
    )
    for name, part in (("first", first), ("second", second)):
        save_component(place / name, "decoder", part.eval(), facts={"trained_on": name}, card=f"# {name}\n")
    save_component(place / "base", "generator", DiffusionGenerator(unet(), first.space, settings=SETTINGS).eval())
    save_component(place / "base" / "text", "text", Unconditional())
    done("assemble", "--generator", "base", "--decoder", "first", "--decoder", "second", "model", cwd=place)
    return place


def test_several_decoders_are_a_cascade(cascade: Path) -> None:
    said = done("show", "model", cwd=cascade).out
    assert "decoder: chain" in said and "pixels 3 x 8 x 8" in said and "pixels 3 x 32 x 32" in said
    assert "decoder 1: network" in said and "decoder 2: network" in said
    card = (cascade / "model" / "decoder" / "README.md").read_text()
    assert "# first" in card and "# second" in card
    facts = json.loads(done("show", "model/decoder", "--json", cwd=cascade).out)["parts"][0]["facts"]
    assert facts["parts"] == {"first": {"trained_on": "first"}, "second": {"trained_on": "second"}}
    said = run("assemble", "--generator", "base", "--decoder", "second", "--decoder", "first", "no", cwd=cascade)
    assert said.code == 2 and "in the order from the generator to the picture" in said.err
    assert not (cascade / "no").exists()


def test_a_cascade_is_sampled(cascade: Path, tmp_path: Path) -> None:
    done("sample", "model", "--out", tmp_path / "a", "--trace", cwd=cascade)
    with Image.open(tmp_path / "a" / "0000-seed0.png") as image:
        assert image.size == (32, 32)
    facts = json.loads((tmp_path / "a" / "0000-seed0-trace.json").read_text())
    assert len(facts["times"]) == 3  # of the generator
    said = done("sample", "model", "--out", tmp_path / "b", "--augmentation", 0.4, "--tile", 8, "--json", cwd=cascade)
    decoding = json.loads(said.out)["settings"]["decoding"]
    assert decoding == {"tiling": {"tile": 8, "overlap": 2}, "augmentation": 0.4}
    (warning,) = json.loads(said.out)["warnings"]
    assert "no effect on the diffusion upsampler" in warning
    pictures = [(tmp_path / name / "0000-seed0.png").read_bytes() for name in "ab"]
    assert pictures[0] != pictures[1]


def test_decoding_that_cannot_be(cascade: Path, tmp_path: Path) -> None:
    said = run("sample", "model", "--augmentation", 0.9, "--out", tmp_path, cwd=cascade)
    assert said.code == 2 and "levels up to 0.5" in said.err
    done("assemble", "--generator", "base", "--decoder", "first", tmp_path / "plain", cwd=cascade)
    said = run("sample", tmp_path / "plain", "--augmentation", 0.1, "--out", tmp_path)
    assert said.code == 2 and "--augmentation is of diffusion upsamplers" in said.err
    said = run("likelihood", tmp_path / "plain", "--data", tmp_path, "--out", tmp_path / "l")
    assert said.code == 2 and "small pictures (3, 8, 8)" in said.err


def test_a_decoder_is_measured_by_itself(published: Path, project: Path, tmp_path: Path) -> None:
    done("import", published / "tiny.safetensors", tmp_path / "tiny", "--size", 16)
    words = ["evaluate", "tiny", "--data", published / "pics", "--extractor", "pixels", "--reference", "all"]
    said = done(*words, "--n", 20, cwd=tmp_path).out
    assert "tiny: 20 pictures of pics at 16 x 16 pixels, encoded as latent 4 x 8 x 8 and decoded" in said
    assert "PSNR" in said and "reconstruction FD-pixels" in said
    facts = json.loads((tmp_path / "evaluation" / "report.json").read_text())
    assert set(facts["figures"]) == {"psnr_db", "ssim", "reconstruction_fd_pixels", "seconds_per_picture", "parameters"}
    assert "There and back" in (tmp_path / "evaluation" / "report.html").read_text()
    card = (tmp_path / "tiny" / "README.md").read_text()
    assert "imported from" in card and card.count("## Measured") == 1
    done(*words, cwd=tmp_path)
    assert (tmp_path / "tiny" / "README.md").read_text().count("## Measured") == 1
    assert done("show", "tiny", cwd=tmp_path).out  # still a component
    said_again = json.loads(done(*words, "--json", "--no-card", cwd=tmp_path).out)
    assert said_again["reference"]["pictures"] == 40
    for more, code, says in (
        (["--steps", 4], 2, "--steps is of whole models, and tiny is a decoder"),
        (["--per-prompt", 2], 2, "--per-prompt is of whole models"),
        (["--shard", "1/2"], 2, "--shard is of whole models"),
    ):
        ended = run(*words, *more, cwd=tmp_path)
        assert ended.code == code and says in ended.err, ended.err
    ended = run("evaluate", project / "carrara-pics" / "text", "--data", published / "pics", cwd=tmp_path)
    assert ended.code == 2 and "is a text encoder, which makes no pictures by itself" in ended.err


def test_a_decoder_of_a_model_reads_its_captions(project: Path, tmp_path: Path) -> None:
    """The text encoder that an upsampler was trained with is found beside it; without it the sentence says so."""
    torch.manual_seed(0)
    text = load_component(project / "carrara-pics" / "text", "text")
    widths = condition_widths(text)
    network = UNet(
        channels=8, multipliers=(1, 2), blocks=1, attention=(1,), heads=1, groups=4, image_channels=3,
        numbers=("augmentation",), **widths,
    )  # fmt: skip
    denoiser = Denoiser(network, Process(Linear()), Flow(), ScaledTime())
    upsample = DiffusionUpsample(denoiser, size=40, factor=4, reads=text.space, settings=SETTINGS)
    save_component(tmp_path / "model" / "decoder", "decoder", upsample.eval())
    words = ["--data", project / "pics", "--extractor", "pixels", "--reference", "all", "--n", 16, "--no-card"]
    ended = run("evaluate", "model/decoder", *words, cwd=tmp_path)
    assert ended.code == 2 and "was trained with a text encoder, which is not beside it" in ended.err
    shutil.copytree(project / "carrara-pics" / "text", tmp_path / "model" / "text")
    facts = json.loads(done("evaluate", "model/decoder", *words, "--json", cwd=tmp_path).out)
    assert {"psnr_db", "above_bicubic_db"} <= set(facts["figures"])
