"""A decoder by itself, on decoders whose figures are known: no decoder at all, bicubic, tokens that are counted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from carrara.data import DataSettings, Pictures, open_pictures
from carrara.decoder import Chain, Pixels, Tokens, Upsample
from carrara.errors import DataError
from carrara.evaluate.extractor import pixel_extractor
from carrara.evaluate.reconstruction import Reconstruction, Trial
from carrara.evaluate.reconstruction_page import reconstruction_page, what_was_tried
from carrara.nn import FSQ, KLAutoencoder
from carrara.nn.upsampler import ResidualUpsampler

SIZE = 16


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Pictures:
    """Sixty smooth pictures, half of them held out."""
    place = tmp_path_factory.mktemp("data")
    for i in range(60):
        coarse = np.random.default_rng(i).integers(0, 256, (5, 5, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((SIZE, SIZE), Image.Resampling.BICUBIC).save(place / f"{i:02}.png")
    settings = DataSettings(str(place), size=SIZE, heldout=0.5, captions=("txt",), allow_uncaptioned=True)
    return open_pictures(settings, place / "cache")


def tried(decoder: Any, pictures: Pictures, place: Path, **more: Any) -> Reconstruction:
    usual: dict[str, Any] = {"split": "heldout", "facts": {}, "text": None, "path": place / "a-decoder", "batch": 8}
    given = {**usual, **more}
    trial = Trial(decoder=decoder, pictures=pictures, extractor=pixel_extractor(), cache=place / "cache", **given)
    return trial.measured(lambda *_: lambda _: None)


def test_nothing_is_lost_without_a_decoder(pictures: Pictures, tmp_path: Path) -> None:
    found = tried(Pixels(size=SIZE), pictures, tmp_path)
    f = found.facts["figures"]
    assert f["psnr_db"] > 120
    assert f["ssim"] == pytest.approx(1)
    assert f["reconstruction_fd_pixels"] == pytest.approx(0, abs=1e-6)
    assert f["parameters"] == 0
    assert torch.equal(found.given, found.made) and found.enlarged is None
    assert not {"above_bicubic_db", "vocabulary_used"} & set(f)
    count = len(pictures.heldout)
    assert found.facts["marks"]["reconstruction_fd_pixels"] == f"n<d: {count} pictures, 3072 dimensions"
    assert found.facts["reference"]["pictures"] == count


def test_an_untrained_upsampler_is_bicubic(pictures: Pictures, tmp_path: Path) -> None:
    torch.manual_seed(0)
    upsample = Upsample(ResidualUpsampler(factor=4, width=8, blocks=1), size=SIZE)
    found = tried(upsample, pictures, tmp_path, count=20)
    assert found.facts["figures"]["above_bicubic_db"] == pytest.approx(0, abs=1e-4)
    assert found.enlarged is not None
    torch.testing.assert_close(found.enlarged, found.made)
    low, high = found.facts["intervals"]["psnr_db"]
    assert low < found.facts["figures"]["psnr_db"] < high
    page = reconstruction_page(found).html()
    for part in ("PSNR above bicubic", "by bicubic", "reconstruction FD-pixels", "n&lt;d: 20 pictures"):
        assert part in page
    assert "20 held-out pictures of" in what_was_tried(found.facts)
    assert "encoded as pixels 3 x 4 x 4" in what_was_tried(found.facts)


def test_a_cascade_is_measured_whole(pictures: Pictures, tmp_path: Path) -> None:
    """Against bicubic from the first one's z: two doublings by bicubic are nearly one by four."""
    torch.manual_seed(0)
    parts = [Upsample(ResidualUpsampler(factor=2, width=8, blocks=1), size=size) for size in (8, SIZE)]
    found = tried(Chain(tuple(parts)), pictures, tmp_path)
    assert found.facts["z"]["shape"] == [3, 4, 4]
    assert abs(found.facts["figures"]["above_bicubic_db"]) < 1


def test_tokens_are_counted(pictures: Pictures, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = KLAutoencoder(latent=2, down=4, widths=(8, 8), encoder_blocks=(0, 1), decoder_blocks=(0, 1))
    tokens = Tokens(network, FSQ(levels=(5, 4)), size=SIZE).eval()
    f = tried(tokens, pictures, tmp_path, split="train").facts["figures"]
    use = tokens.measure([pictures.tensor(pictures.train)])
    assert (f["vocabulary_used"], f["perplexity"]) == pytest.approx(tuple(use), rel=1e-6)
    assert f["reconstruction_fd_pixels"] > 0


def test_too_few_and_none(pictures: Pictures, tmp_path: Path) -> None:
    facts = tried(Pixels(size=SIZE), pictures, tmp_path, count=5).facts
    assert "5 pictures are too few" in facts["missing"]["reconstruction_fd_pixels"]
    assert facts["figures"]["psnr_db"] > 120
    alone = open_pictures(
        DataSettings(str(pictures.settings.folder), size=SIZE, heldout=0, captions=("txt",), allow_uncaptioned=True),
        tmp_path,
    )
    with pytest.raises(DataError, match="held out; give --reference train or all"):
        tried(Pixels(size=SIZE), alone, tmp_path)
