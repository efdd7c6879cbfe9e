"""Pictures that are not 8-bit RGB, all the way: folder, cache, training, model folder, sampling, file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from carrara.config import build
from carrara.data.formats import decode
from carrara.store import assemble, kinds, load
from carrara.train.recipe import Recipe, Run


def train(folder: Path, out: Path, task: dict[str, object]) -> None:
    table = {
        "out": str(out),
        "data": {"folder": str(folder), "size": 16, "heldout": 0.1},
        "task": task,
        "train": {"steps": 2, "batch": 4, "precision": "float32", "validate_every": 0, "sample_every": 0},
    }
    recipe = build(Recipe, table, kinds())
    Run(recipe, cache=folder.parent / "cache").train(progress=False)


@pytest.mark.parametrize(("channels", "ending"), [(1, "png"), (3, "png"), (5, "tiff"), (2, "npy")])
def test_channels_and_sixteen_bits_are_kept(tmp_path: Path, channels: int, ending: str) -> None:
    from carrara.data import write_picture

    rng = np.random.default_rng(0)
    for number in range(12):
        pixels = rng.integers(0, 65536, (16, 16, channels)).astype(np.uint16)
        write_picture(tmp_path / "pictures" / f"{number}.{ending}", pixels)
    pictures = tmp_path / "pictures"
    autoencoder = {"kind": "kl", "latent": 4, "widths": [8, 8, 8], "decoder_blocks": [0, 0, 1]}
    train(pictures, tmp_path / "decoder", {"kind": "autoencoder", "autoencoder": autoencoder})
    network = {"kind": "dit", "patch": 1, "width": 32, "depth": 1, "heads": 2}
    train(
        pictures,
        tmp_path / "generator",
        {"kind": "diffusion", "decoder": str(tmp_path / "decoder"), "network": network},
    )
    assemble(tmp_path / "model", generator=tmp_path / "generator", decoder=tmp_path / "decoder")
    *_, last = load(tmp_path / "model").generate([""], seeds=[0])
    assert last.pixels().shape == (1, 16, 16, channels)
    assert last.pixels().dtype == np.uint16
    path = tmp_path / f"made.{ending}"
    last.save(path)
    assert np.array_equal(decode(path.read_bytes()).pixels.reshape(16, 16, channels), last.pixels()[0])
