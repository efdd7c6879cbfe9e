"""Transformers: the same output, tensors and configuration as the library's own classes have."""

from __future__ import annotations

import inspect
import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from carrara.config import describe, parameters
from carrara.errors import RecipeError
from carrara.store.diffusers import flux, pixart, sd3
from carrara.store.diffusers.tensors import exported, imported
from carrara.store.kinds import kinds
from carrara.types import Condition
from parity.networks import Family, Held, here, read, stated, there

LEVELS = torch.tensor([981.25, 437.5, 12.5])


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _words(config: dict[str, Any], rows: int) -> Condition:
    return Condition(
        tokens=normal(rows, 7, config["joint_attention_dim"], seed=1),
        vector=normal(rows, config["pooled_projection_dim"], seed=2),
    )


def _ask_sd3(model: nn.Module, x: Tensor, level: Tensor, condition: Condition) -> Tensor:
    return model(x, condition.tokens, condition.vector, level, return_dict=False)[0]


def _told(config: dict[str, Any], rows: int) -> Condition:
    condition = _words(config, rows)
    picture = torch.empty(rows, 2, 0, 0) if config["out_channels"] else None  # of the size of x, once that is known
    numbers = {"guidance": torch.tensor([3.5, 1.0, 7.0])} if config.get("guidance_embeds") else {}
    return replace(condition, numbers=numbers, image=picture)


def _ask_flux(model: nn.Module, x: Tensor, level: Tensor, condition: Condition) -> Tensor:
    """Packed as its pipeline does it, in patches of 2 x 2; the level as a part of 1."""
    assert torch.equal(level / 1000 * 1000, level)
    size = (x.shape[2] // 2, x.shape[3] // 2)

    def packed(picture: Tensor) -> Tensor:
        return picture.unflatten(3, (-1, 2)).unflatten(2, (-1, 2)).permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)

    pictures = [x] if condition.image is None else [x, condition.image]
    place = torch.cartesian_prod(torch.zeros(1), torch.arange(size[0]).float(), torch.arange(size[1]).float())
    answer = model(
        torch.cat([packed(picture) for picture in pictures], 2),
        condition.tokens,
        condition.vector,
        level / 1000,
        place,
        torch.zeros(7, 3),
        condition.numbers.get("guidance"),
        return_dict=False,
    )[0]
    return answer.unflatten(1, size).unflatten(3, (-1, 2, 2)).permute(0, 3, 1, 4, 2, 5).flatten(4).flatten(2, 3)


def _captioned(config: dict[str, Any], rows: int) -> Condition:
    """Captions of three, six and seven words, and three sizes where they are read."""
    read = pixart.network(config)["sizes"]
    height, width = torch.tensor([512.0, 1024.0, 768.0]), torch.tensor([512.0, 640.0, 1344.0])
    return Condition(
        tokens=normal(rows, 7, config["caption_channels"], seed=1),
        mask=torch.arange(7)[None] < torch.tensor([3, 6, 7])[:, None],
        numbers={"height": height, "width": width, "aspect_ratio": height / width} if read else {},
    )


def _ask_pixart(model: nn.Module, x: Tensor, level: Tensor, condition: Condition) -> Tensor:
    told: dict[str, Any] = {"resolution": None, "aspect_ratio": None}
    if numbers := condition.numbers:
        told["resolution"] = torch.stack((numbers["height"], numbers["width"]), 1)
        told["aspect_ratio"] = numbers["aspect_ratio"][:, None]
    return model(
        x,
        condition.tokens,
        level,
        added_cond_kwargs=told,
        encoder_attention_mask=condition.mask,
        return_dict=False,
    )[0]


SD3: dict[str, Any] = {
    "sample_size": 16, "patch_size": 2, "in_channels": 4, "num_layers": 3, "attention_head_dim": 8,
    "num_attention_heads": 2, "joint_attention_dim": 12, "caption_projection_dim": 16, "pooled_projection_dim": 10,
    "out_channels": 4, "pos_embed_max_size": 12,
}  # fmt: skip
SD3_FULL: dict[str, Any] = {
    "sample_size": 128, "patch_size": 2, "in_channels": 16, "num_layers": 24, "attention_head_dim": 64,
    "num_attention_heads": 24, "joint_attention_dim": 4096, "caption_projection_dim": 1536,
    "pooled_projection_dim": 2048, "out_channels": 16, "pos_embed_max_size": 192,
}  # fmt: skip
FLUX: dict[str, Any] = {
    "in_channels": 16, "out_channels": None, "num_layers": 2, "num_single_layers": 2, "attention_head_dim": 16,
    "num_attention_heads": 2, "joint_attention_dim": 12, "pooled_projection_dim": 10, "axes_dims_rope": [4, 8, 4],
}  # fmt: skip
PIXART: dict[str, Any] = {
    "num_attention_heads": 3, "attention_head_dim": 8, "num_layers": 2, "cross_attention_dim": 24, "sample_size": 128,
    "caption_channels": 10,
}  # fmt: skip
PIXART_FULL: dict[str, Any] = {"caption_channels": 4096, "sample_size": 128}

FAMILIES = {
    "sd3": Family(
        sd3,
        "SD3Transformer2DModel",
        {
            "sd3": SD3,
            "sd3.5": {**SD3, "qk_norm": "rms_norm", "dual_attention_layers": [0, 1]},
            "sd3.5 dual to the end": {**SD3, "qk_norm": "rms_norm", "dual_attention_layers": [2], "out_channels": None},
        },
        {
            "sd3-medium": SD3_FULL,
            "sd3.5-medium": {
                **SD3_FULL, "qk_norm": "rms_norm", "dual_attention_layers": list(range(13)), "pos_embed_max_size": 384,
            },
            "sd3.5-large": {
                **SD3_FULL, "qk_norm": "rms_norm", "num_layers": 38, "num_attention_heads": 38,
                "caption_projection_dim": 2432,
            },
        },
        _words,
        _ask_sd3,
    ),
    "flux": Family(
        flux,
        "FluxTransformer2DModel",
        {
            "flux schnell": FLUX,
            "flux dev": {**FLUX, "guidance_embeds": True},
            "flux told a picture": {**FLUX, "guidance_embeds": True, "in_channels": 24, "out_channels": 16},
        },
        {
            "flux.1-schnell": {},
            "flux.1-dev": {"guidance_embeds": True},
            "flux.1-fill": {"guidance_embeds": True, "in_channels": 384, "out_channels": 64},
        },
        _told,
        _ask_flux,
    ),
    "pixart": Family(
        pixart,
        "PixArtTransformer2DModel",
        {
            "alpha": PIXART,
            "alpha 512": {**PIXART, "sample_size": 64, "out_channels": None},
            "alpha small": {**PIXART, "sample_size": 16, "patch_size": 4, "use_additional_conditions": True},
            "sigma": {**PIXART, "use_additional_conditions": False, "interpolation_scale": 3},
        },
        {
            "pixart-alpha": PIXART_FULL,
            "pixart-sigma": {**PIXART_FULL, "use_additional_conditions": False},
        },
        _captioned,
        _ask_pixart,
    ),
}  # fmt: skip
TINY = [(family, case) for family, found in FAMILIES.items() for case in found.tiny]
FULL = [(family, case) for family, found in FAMILIES.items() for case in found.full]


@pytest.mark.parametrize(("name", "case"), TINY)
def test_the_same_output(name: str, case: str) -> None:
    """Three rows with conditions and levels of their own, square and not, smaller and larger than trained at."""
    family = FAMILIES[name]
    given = family.tiny[case]
    model = there(family.name, given)
    network, condition = read(family, model), family.condition(given, 3)
    channels = network.config["in_channels"]
    for height, width in ((16, 16), (8, 20), (24, 4)):
        x = normal(3, channels, height, width, seed=height)
        if condition.image is not None:
            condition = replace(condition, image=normal(3, 2, height, width, seed=4))
        with torch.no_grad():
            theirs, ours = family.ask(model, x, LEVELS, condition), network(x, LEVELS, condition)
            others = network(x, LEVELS, condition.rows([1, 2, 0]))
        assert ours.shape == theirs.shape
        gap = float((ours - theirs).abs().max() / theirs.abs().max())
        assert gap <= 1e-5, f"{height} x {width}: {gap:.2g}"
        assert float((ours - others).abs().max() / theirs.abs().max()) > 1e-3, "the condition is not read"


@pytest.mark.slow
@pytest.mark.parametrize(("name", "case"), FULL)
def test_the_same_output_at_full_width(name: str, case: str) -> None:
    """As wide as it is, of two blocks of a kind, with the weights that the class begins with."""
    import diffusers

    family = FAMILIES[name]
    shallow = {"num_layers": 2, "num_single_layers": 2, "dual_attention_layers": [0]}
    full = {key: p.default for key, p in _arguments(family).items()} | family.full[case]
    given = {key: shallow[key] if full[key] and key in shallow else value for key, value in full.items()}
    torch.manual_seed(0)
    model = getattr(diffusers, family.name)(**given).eval()
    network, condition = read(family, model), family.condition(given, 3)
    x = normal(3, network.config["in_channels"], 16, 24, seed=0)
    if condition.image is not None:
        condition = replace(condition, image=normal(3, network.config["image_channels"], 16, 24, seed=4))
    with torch.no_grad():
        theirs, ours = family.ask(model, x, LEVELS, condition), network(x, LEVELS, condition)
    assert float((ours - theirs).abs().max() / theirs.abs().max()) <= 1e-5


@pytest.mark.parametrize(("name", "case"), TINY)
def test_there_and_back(name: str, case: str) -> None:
    """Tensors bit by bit with their names and dtypes, and every key that the class has."""
    family = FAMILIES[name]
    model = there(family.name, family.tiny[case]).to(torch.bfloat16)
    network = here(family.module.network(stated(model)))
    table = describe(network, kinds())
    places, held = family.module.table(table), model.state_dict()
    back = exported(places, imported(places, Held(held), network.state_dict()))
    assert back.keys() == held.keys()
    assert all(torch.equal(back[key], held[key]) and back[key].dtype == held[key].dtype for key in held)
    again = family.module.config(json.loads(json.dumps(table)))
    kept = {key: value for key, value in stated(model).items() if key not in ("_diffusers_version", "_name_or_path")}
    assert _settled(json.loads(json.dumps(again))) == _settled(kept)
    assert describe(here(family.module.network(again)), kinds()) == table


def _settled(config: dict[str, Any]) -> dict[str, Any]:
    """The configuration with each null that stands for another key's value written out."""
    nulls = {"out_channels": config["in_channels"]}
    if "interpolation_scale" in config:
        size = config["sample_size"]
        nulls |= {"interpolation_scale": max(size // 64, 1), "use_additional_conditions": size == 128}
    return {**config, **{key: value for key, value in nulls.items() if config[key] is None}}


def _arguments(family: Family) -> dict[str, inspect.Parameter]:
    import diffusers

    signature = inspect.signature(getattr(diffusers, family.name).__init__)
    return {key: parameter for key, parameter in signature.parameters.items() if key != "self"}


@pytest.mark.parametrize("name", FAMILIES)
def test_every_key_of_the_class(name: str) -> None:
    """The class has the keys that are known here, with these defaults; no value is passed over."""
    family = FAMILIES[name]
    assert {key: p.default for key, p in _arguments(family).items()} == family.module.DEFAULTS
    given = next(iter(family.tiny.values()))
    for key in family.module.DEFAULTS:
        with pytest.raises(RecipeError, match=rf"{family.name}: {key} = 'nonsense'"):
            family.module.network({**given, key: "nonsense"})
    with pytest.raises(RecipeError, match=rf"{family.name} has no key 'depth'"):
        family.module.network({**given, "depth": 3})


def _config(family: Family, table: dict[str, Any]) -> dict[str, Any] | str:
    """What is written, or why nothing is."""
    try:
        return family.module.config(table)
    except RecipeError as error:
        return str(error)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_setting_of_ours(name: str) -> None:
    """Each setting of our network is written, or refused where the class there has it otherwise."""
    family = FAMILIES[name]
    table = family.module.network(next(iter(family.tiny.values())))
    written = family.module.config(table)
    other: dict[str, Any] = {
        "activation": "silu", "embedding": {"kind": "fourier"}, "size": 32, "table": 14, "dual": [0],
        "numbers": ["augmentation"], "controls": {"edges": 1}, "adapters": {"face": 3}, "ratio": 3.0,
            "axes": [8, 4, 4],
    }  # fmt: skip
    for key, parameter in parameters(kinds().resolve("network", table["kind"])).items():
        value = table.get(key, parameter.default)
        changed = other[key] if key in other else not value if isinstance(value, bool) else 2 * value + 2
        answer = _config(family, {**table, key: changed})
        assert key in answer if isinstance(answer, str) else answer != written, key


@pytest.mark.parametrize(("name", "case"), FULL)
def test_as_many_parameters_at_full_size(name: str, case: str) -> None:
    import diffusers

    family = FAMILIES[name]
    with torch.device("meta"):
        theirs = getattr(diffusers, family.name)(**family.full[case])
        ours = here(family.module.network(family.full[case]))
    count = sum(parameter.numel() for parameter in theirs.parameters())
    assert sum(parameter.numel() for parameter in ours.parameters()) == count
    table = family.module.table(family.module.network(family.full[case]))
    shapes = {key: tensor.shape for key, tensor in exported(table, ours.state_dict()).items()}
    assert shapes == {key: tensor.shape for key, tensor in theirs.state_dict().items()}


def test_files_of_earlier_versions() -> None:
    """PixArt-Alpha's own file has keys that the class no longer has; each is read where it says what the class does."""
    file = {
        "_class_name": "Transformer2DModel", "_diffusers_version": "0.22.0.dev0", "activation_fn": "gelu-approximate",
        "attention_bias": True, "attention_head_dim": 72, "attention_type": "default", "caption_channels": 4096,
        "cross_attention_dim": 1152, "double_self_attention": False, "dropout": 0.0, "in_channels": 4,
        "norm_elementwise_affine": False, "norm_eps": 1e-06, "norm_num_groups": 32, "norm_type": "ada_norm_single",
        "num_attention_heads": 16, "num_embeds_ada_norm": 1000, "num_layers": 28, "num_vector_embeds": None,
        "only_cross_attention": False, "out_channels": 8, "patch_size": 2, "sample_size": 128,
        "upcast_attention": False, "use_linear_projection": False,
    }  # fmt: skip
    assert pixart.network(file) == pixart.network(PIXART_FULL)
    for key, value in {"use_linear_projection": True, "num_vector_embeds": 100}.items():
        with pytest.raises(RecipeError, match=f"{key} = {value}; expected"):
            pixart.network({**file, key: value})


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("sd3", {"caption_projection_dim": 24}, "caption_projection_dim = 24; expected 16"),
        (
            "sd3",
            {"dual_attention_layers": [3]},
            r"dual_attention_layers = \[3\]; expected a list of numbers from 0 to 2",
        ),
        ("sd3", {"qk_norm": "layer_norm"}, "qk_norm = 'layer_norm'; expected None, 'rms_norm'"),
        ("sd3", {"pos_embed_max_size": None}, "pos_embed_max_size = None; expected a number"),
        ("sd3", {"num_layers": 10**9}, "num_layers = 1000000000; expected a number from 1 to 1000"),
        ("sd3", {"num_attention_heads": 0}, "num_attention_heads = 0; expected a number from 1"),
        ("flux", {"in_channels": 18}, "in_channels = 18; expected a multiple of 4"),
        ("flux", {"out_channels": 20}, "out_channels = 20; expected at most the 16"),
        ("flux", {"axes_dims_rope": [3, 9, 4]}, "expected even numbers that are 16 together"),
        ("flux", {"patch_size": 2}, "patch_size = 2; expected 1"),
        ("pixart", {"cross_attention_dim": 32}, "cross_attention_dim = 32; expected 24"),
        ("pixart", {"attention_bias": False}, "attention_bias = False; expected True"),
        ("pixart", {"interpolation_scale": -1}, "interpolation_scale = -1; expected a number above 0"),
    ],
)
def test_what_is_not_read(name: str, change: dict[str, Any], said: str) -> None:
    family = FAMILIES[name]
    with pytest.raises(RecipeError, match=said):
        family.module.network({**next(iter(family.tiny.values())), **change})


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("sd3", {"size": [16, 32]}, r"is square, and this network's size is \(16, 32\)"),
        ("sd3", {"vector": None}, "needs vector"),
        ("sd3", {"token_norm": True}, "has no key for token_norm = True; it has False"),
        ("sd3", {"kind": "dit"}, 'is a network of kind "mmdit", given "dit"'),
        ("sd3", {"waves": 3}, "has no setting 'waves'"),
        ("flux", {"patch": 4}, "has no key for patch = 4; it has 2"),
        ("flux", {"out_channels": 8}, "in_channels = 4 and out_channels = 8"),
        ("pixart", {"ratio": 2.0}, "has no key for ratio = 2.0; it has 4.0"),
        ("pixart", {"size": [16, 32]}, "is square"),
    ],
)
def test_what_cannot_be_written(name: str, change: dict[str, Any], said: str) -> None:
    family = FAMILIES[name]
    table = family.module.network(next(iter(family.tiny.values())))
    with pytest.raises(RecipeError, match=said):
        family.module.config({**table, **change})
