"""Networks of diffusers' own classes, small and with random weights, and ours with the same weights."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from types import ModuleType
from typing import Annotated, Any

import pytest
import torch
from torch import Tensor, nn

from carrara.config import Role, build
from carrara.errors import RecipeError
from carrara.store import kinds
from carrara.store.diffusers.tensors import exported, imported
from nn.networks import perturb

SMALL_UNET: dict[str, Any] = {"block_out_channels": (8, 16, 16), "norm_num_groups": 4, "cross_attention_dim": 12,
                              "layers_per_block": 1, "attention_head_dim": 2,
                              "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
                              "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D")}  # fmt: skip
_XL: dict[str, Any] = {**SMALL_UNET,
                       "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
                       "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
                       "use_linear_projection": True, "transformer_layers_per_block": (1, 2, 3),
                       "attention_head_dim": (2, 4, 8), "addition_embed_type": "text_time",
                       "addition_time_embed_dim": 6}  # fmt: skip
UNETS: dict[str, dict[str, Any]] = {
    "sd1": SMALL_UNET,
    "inpainting": {**SMALL_UNET, "in_channels": 9},
    "sd2": {**SMALL_UNET, "use_linear_projection": True, "attention_head_dim": (2, 4, 4), "upcast_attention": True},
    "sdxl": {**_XL, "projection_class_embeddings_input_dim": 8 + 6 * 6},
    "refiner": {**_XL, "transformer_layers_per_block": 2, "projection_class_embeddings_input_dim": 12 + 5 * 6},
    "narrow groups": {**SMALL_UNET, "norm_num_groups": 8},
    "middle alone": {**SMALL_UNET, "mid_block_type": "UNetMidBlock2D"},
    "no middle": {**SMALL_UNET, "mid_block_type": None},
    "classes": {**SMALL_UNET, "num_class_embeds": 5},
    "distilled": {**SMALL_UNET, "time_cond_proj_dim": 6},
    "vector": {**SMALL_UNET, "class_embed_type": "simple_projection", "projection_class_embeddings_input_dim": 10},
}


class State:
    """A module's tensors as a file would hold them."""

    title = "the file"

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.tensors = tensors

    @property
    def names(self) -> list[str]:
        return list(self.tensors)

    def read(self, name: str) -> Tensor:
        return self.tensors[name]


def written(theirs: Any) -> dict[str, Any]:
    """The config.json that diffusers writes of its model."""
    return json.loads(theirs.to_json_string())


def built(table: Mapping[str, Any], role: str = "network") -> Any:
    """Our network of a table that a file can hold."""
    return build(Annotated[nn.Module, Role(role)], json.loads(json.dumps(table)), kinds()).eval()


def twin(module: ModuleType, theirs: Any, *, role: str = "network") -> Any:
    """Our network with the weights of theirs, moved so that nothing is zero; everything comes back as it went."""
    perturb(theirs)
    table = module.network(written(theirs))
    ours, names, state = built(table, role), module.table(table), theirs.state_dict()
    ours.load_state_dict(imported(names, State(state), ours.state_dict()))
    back = exported(names, ours.state_dict())
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], tensor) for name, tensor in state.items())
    again = module.config(table)
    assert module.network(again) == table
    same = type(theirs).from_config(again)
    assert {n: t.shape for n, t in same.state_dict().items()} == {n: t.shape for n, t in state.items()}
    return ours


def close(found: Tensor, expected: Tensor, most: float = 1e-5) -> None:
    """Equal to 1e-5 of the greatest number."""
    torch.testing.assert_close(found, expected, rtol=0, atol=most * float(expected.abs().max()))


def account(module: ModuleType, theirs: type, odd: Mapping[str, Any]) -> None:
    """Every argument of their constructor is known with its default; `odd` values of some are refused by name."""
    arguments = {name: p.default for name, p in inspect.signature(theirs.__init__).parameters.items() if name != "self"}
    defaults = json.loads(json.dumps(arguments))
    assert defaults == json.loads(json.dumps(module.DEFAULTS))
    assert set(odd) <= set(defaults)
    base = module.network({})
    assert module.network(defaults) == base
    for name, value in odd.items():
        with pytest.raises(RecipeError, match=f"^[^\n]*: {name} = [^\n]*$"):
            module.network({name: value})


def normal(*shape: int, seed: int = 0) -> Tensor:
    """Normal numbers."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
