"""CLIP and DINOv2 equal transformers' own on tiny random weights, loaded from its files without a leftover."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from carrara.nn.vit import ClipShape, ClipVision, Dinov2, Dinov2Shape

transformers = pytest.importorskip("transformers")


def saved(module: Any, place: Path) -> dict[str, torch.Tensor]:
    """The tensors as its file names them."""
    module.save_pretrained(place)
    return load_file(place / "model.safetensors")


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_clip(activation: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    sizes = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 3,
             "hidden_act": activation}  # fmt: skip
    config = transformers.CLIPConfig(
        text_config={**sizes, "vocab_size": 50}, vision_config={**sizes, "image_size": 32, "patch_size": 8},
        projection_dim=16,
    )  # fmt: skip
    other = transformers.CLIPModel(config).eval()
    shape = ClipShape(
        width=24, hidden=40, depth=2, heads=3, size=32, patch=8, projection=16, quick=activation == "quick_gelu"
    )
    ours = ClipVision(shape).eval()
    tensors = saved(other, tmp_path)
    ours.load_state_dict({name: t for name, t in tensors.items() if name.startswith("vis")}, strict=True)
    x = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        theirs = other(pixel_values=x, input_ids=torch.ones(3, 4, dtype=torch.int64)).image_embeds
        torch.testing.assert_close(torch.nn.functional.normalize(ours(x)), theirs)


@pytest.mark.parametrize("size", [(28, 28), (42, 28)])
def test_dinov2(size: tuple[int, int], tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = transformers.Dinov2Config(
        hidden_size=24, num_hidden_layers=2, num_attention_heads=3, mlp_ratio=2, image_size=28, patch_size=7
    )
    other = transformers.Dinov2Model(config).eval()
    with torch.no_grad():
        for name, parameter in other.named_parameters():
            if "lambda1" in name or "embeddings" in name:
                parameter.normal_()
    ours = Dinov2(Dinov2Shape(width=24, hidden=48, depth=2, heads=3, size=28, patch=7)).eval()
    ours.load_state_dict(saved(other, tmp_path), strict=True)
    x = torch.randn(2, 3, *size)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), other(x).pooler_output)


def test_patches_that_do_not_divide() -> None:
    with pytest.raises(ValueError, match="30 pixels do not divide into patches of 7"):
        Dinov2(Dinov2Shape(width=4, hidden=4, depth=1, heads=1, size=30, patch=7))
