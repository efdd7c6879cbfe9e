"""Low-rank updates: their algebra, every layout of their names, and that nothing in a file is left unused."""

import json

import pytest
import torch
from torch import Tensor

from carrara.errors import StorageError
from carrara.store.diffusers.lora import Lora, Update, merged, read_lora, written
from carrara.store.diffusers.tensors import Pointwise, Stacked

ATTENTION = "down_blocks.0.attentions.0.transformer_blocks.0.attn1"
MODULES = {
    "unet": [f"{ATTENTION}.{part}" for part in ("to_q", "to_k", "to_v", "to_out.0")] + ["conv_in", "proj_in"],
    "text_encoder": ["text_model.encoder.layers.0.self_attn.q_proj"],
}
Q = f"{ATTENTION}.to_q"


class Given:
    title = "the file"

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        self.tensors = tensors

    @property
    def names(self) -> list[str]:
        return list(self.tensors)

    def read(self, name: str) -> Tensor:
        return self.tensors[name]


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


DOWN, UP = random(2, 8), random(6, 2)


def read(tensors: dict[str, Tensor], **more: object) -> Lora:
    return read_lora(Given(tensors), MODULES, **more)  # type: ignore[arg-type]


# --- algebra ----------------------------------------------------------------------------------------------------------


def test_a_linear_update_is_the_product_of_its_factors():
    weight = random(6, 8)
    expected = weight + 0.7 * (4 / 2) * UP @ DOWN
    torch.testing.assert_close(Update(DOWN, UP, 4.0).applied(weight, 0.7), expected)


@pytest.mark.parametrize("with_middle", [False, True])
def test_a_convolution_with_the_update_is_the_convolution_plus_a_chain_of_convolutions(with_middle):
    x, weight, up = random(1, 8, 5, 5), random(6, 8, 3, 3), random(6, 2, 1, 1)
    down = random(2, 8, 1, 1) if with_middle else random(2, 8, 3, 3)
    middle = random(2, 2, 3, 3) if with_middle else None
    update = Update(down, up, 1.0, middle)
    h = torch.conv2d(x, down, padding=0 if with_middle else 1)
    h = h if middle is None else torch.conv2d(h, middle, padding=1)
    expected = torch.conv2d(x, weight, padding=1) + torch.conv2d(h, up) / 2
    torch.testing.assert_close(torch.conv2d(x, update.applied(weight), padding=1), expected, rtol=1e-4, atol=1e-4)


def test_a_magnitude_is_the_length_of_every_row():
    weight, magnitude = random(6, 8), random(6).abs() + 0.1
    made = Update(DOWN, UP, 2.0, magnitude=magnitude).applied(weight)
    torch.testing.assert_close(made.norm(dim=1), magnitude)
    cosine = torch.cosine_similarity(made, weight + UP @ DOWN)
    torch.testing.assert_close(cosine, torch.ones(6))


def test_strength_0_changes_nothing_and_dtypes_stay():
    weight = random(6, 8).bfloat16()
    for magnitude in (None, torch.ones(6)):
        made = Update(DOWN, UP, 2.0, magnitude=magnitude).applied(weight, 0.0)
        assert made.dtype == torch.bfloat16
        assert torch.equal(made, weight)


# --- names ------------------------------------------------------------------------------------------------------------

LAYOUTS = {
    "diffusers": (f"unet.{Q}.lora_A.weight", f"unet.{Q}.lora_B.weight"),
    "peft": (f"base_model.model.unet.{Q}.lora_A.default.weight", f"base_model.model.unet.{Q}.lora_B.default.weight"),
    "unnamed": (f"{Q}.lora_A.weight", f"{Q}.lora_B.weight"),
    "older": (f"unet.{Q}.lora.down.weight", f"unet.{Q}.lora.up.weight"),
    "oldest": (f"unet.{ATTENTION}.processor.to_q_lora.down.weight", f"unet.{ATTENTION}.processor.to_q_lora.up.weight"),
    "kohya": (
        f"lora_unet_{Q.replace('.', '_')}.lora_down.weight",
        f"lora_unet_{Q.replace('.', '_')}.lora_up.weight",
    ),
    "original": ("lora_unet_input_blocks_1_1_attn1_to_q.lora_down.weight",
                 "lora_unet_input_blocks_1_1_attn1_to_q.lora_up.weight"),
}  # fmt: skip
ALIASES = {"unet": {"input_blocks.1.1.attn1.to_q": Q}}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_says_the_same(layout):
    down, up = LAYOUTS[layout]
    found = read({down: DOWN, up: UP}, aliases=ALIASES)
    assert set(found.updates) == {"unet"}
    assert set(found.updates["unet"]) == {Q}
    update = found.updates["unet"][Q]
    assert torch.equal(update.down, DOWN)
    assert torch.equal(update.up, UP)
    assert update.alpha == 2
    assert found.ranks == (2,)


def test_the_old_name_of_the_output_is_that_of_its_first_part():
    name = f"unet.{ATTENTION}.processor.to_out_lora"
    assert set(read({f"{name}.down.weight": DOWN, f"{name}.up.weight": UP}).updates["unet"]) == {
        f"{ATTENTION}.to_out.0"
    }


@pytest.mark.parametrize(
    "name",
    [
        "lora_te_text_model_encoder_layers_0_self_attn_q_proj.lora_{}.weight",
        "lora_te1_text_model_encoder_layers_0_self_attn_q_proj.lora_{}.weight",
        "text_encoder.text_model.encoder.layers.0.self_attn.q_proj.lora_linear_layer.{}.weight",
    ],
)
def test_text_encoders(name):
    found = read({name.format("down"): DOWN, name.format("up"): UP})
    assert set(found.updates["text_encoder"]) == {"text_model.encoder.layers.0.self_attn.q_proj"}


def test_alpha_stands_beside_the_factors_or_in_the_metadata_or_is_the_rank():
    down, up = LAYOUTS["kohya"]
    beside = read({down: DOWN, up: UP, down.replace("lora_down.weight", "alpha"): torch.tensor(7.0)})
    assert beside.updates["unet"][Q].alpha == 7
    down, up = LAYOUTS["diffusers"]

    def told(**about: object) -> float:
        metadata = {"lora_adapter_metadata": json.dumps({f"unet.{key}": value for key, value in about.items()})}
        return read({down: DOWN, up: UP}, metadata=metadata).updates["unet"][Q].alpha

    assert told(lora_alpha=5) == 5
    assert told(lora_alpha=5, alpha_pattern={"attn1.to_q": 3}) == 3
    assert told(lora_alpha=5, alpha_pattern={"ttn1.to_q": 3}) == 5
    assert told(lora_alpha=5, use_rslora=True) == pytest.approx(5 * 2**0.5)  # alpha / sqrt(r) instead of alpha / r
    assert told() == 2


def test_what_is_written_is_read_again():
    updates = {Q: Update(DOWN, UP, 3.0), "proj_in": Update(random(4, 8), random(6, 4), 1.0, magnitude=torch.ones(6))}
    text = {MODULES["text_encoder"][0]: Update(DOWN, UP, 2.0)}
    tensors, metadata = written(Lora({"unet": updates, "text_encoder": text}))
    again = read(tensors, metadata=metadata)
    for component, expected in (("unet", updates), ("text_encoder", text)):
        found = again.updates[component]
        assert set(found) == set(expected)
        for name, update in expected.items():
            assert found[name].alpha == update.alpha
            torch.testing.assert_close(found[name].delta(), update.delta(), rtol=0, atol=0)
            assert (found[name].magnitude is None) == (update.magnitude is None)


# --- into a network ---------------------------------------------------------------------------------------------------


def test_updates_reach_their_rows_of_a_stacked_tensor_and_pointwise_kernels():
    table = {
        "qkv.weight": Stacked(tuple(f"{ATTENTION}.to_{part}.weight" for part in "qkv"), (6, 6, 6)),
        "into.weight": Pointwise("proj_in.weight"),
        "into.bias": "proj_in.bias",
        "other.weight": "conv_in.weight",
    }
    tensors = {
        "qkv.weight": random(18, 8),
        "into.weight": random(6, 8),
        "into.bias": random(6),
        "other.weight": random(1),
    }
    key, into = Update(DOWN, UP, 2.0), Update(random(2, 8, 1, 1), random(6, 2, 1, 1), 2.0)
    changed = merged(table, tensors, {f"{ATTENTION}.to_k": key, "proj_in": into}, 0.5)
    assert set(changed) == {"qkv.weight", "into.weight"}
    expected = tensors["qkv.weight"].clone()
    expected[6:12] += 0.5 * UP @ DOWN
    torch.testing.assert_close(changed["qkv.weight"], expected)
    torch.testing.assert_close(changed["into.weight"], tensors["into.weight"] + 0.5 * into.delta()[:, :, 0, 0])


# --- what is refused --------------------------------------------------------------------------------------------------

KOHYA_DOWN, KOHYA_UP = LAYOUTS["kohya"]


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ({}, "no tensors"),
        ({KOHYA_DOWN: DOWN}, "has no up"),
        ({KOHYA_UP: UP}, "has no down"),
        ({KOHYA_DOWN: DOWN, KOHYA_UP: random(6, 3)}, "make no update"),
        ({KOHYA_DOWN: DOWN[0], KOHYA_UP: UP}, "make no update"),
        ({KOHYA_DOWN: DOWN, KOHYA_UP: UP * float("nan")}, "NaN or infinite"),
        (
            {KOHYA_DOWN: DOWN, KOHYA_UP: UP, "lora_unet_other.lora_up.weight": UP},
            "1 tensors of no layer here: lora_unet_o",
        ),
        ({KOHYA_DOWN: DOWN, KOHYA_UP: UP, "conv_in.weight": UP}, "1 tensors of no layer here: conv_in.weight"),
        ({KOHYA_DOWN: DOWN, KOHYA_UP: UP, LAYOUTS["diffusers"][0]: DOWN}, "twice"),
        ({"lora_unet_conv_in.hada_w1_a": UP}, "holds LoHa"),
        ({"lora_unet_conv_in.lokr_w1": UP}, "holds LoKr"),
        ({"lora_unet_conv_in.diff": UP}, "holds whole differences"),
        (
            {"unet.conv_in.lora_A.weight": DOWN, "unet.conv_in.lora_B.weight": UP, "unet.conv_in.lora_B.bias": UP},
            "a bias",
        ),
        (
            {KOHYA_DOWN: DOWN, KOHYA_UP: UP, KOHYA_DOWN.replace("lora_down.weight", "dora_scale"): torch.ones(5)},
            "a magnitude of 5 for 6 outputs",
        ),
    ],
)
def test_a_file_of_which_anything_would_be_left_out_is_refused(tensors, said):
    with pytest.raises(StorageError, match=said):
        read(tensors)


@pytest.mark.parametrize("told", ["[", "[1]", '{"unet.lora_alpha": "big"}', '{"unet.lora_alpha": 1e999}'])
def test_metadata_of_another_kind_are_refused(told):
    down, up = LAYOUTS["diffusers"]
    with pytest.raises(StorageError):
        read({down: DOWN, up: UP}, metadata={"lora_adapter_metadata": told})


def test_an_update_for_another_model_is_refused():
    table = {"q.weight": f"{Q}.weight"}
    with pytest.raises(StorageError, match="for another model"):
        merged(table, {"q.weight": random(6, 9)}, {Q: Update(DOWN, UP, 2.0)})
    with pytest.raises(StorageError, match="1 updates are of layers that this network does not have: conv_in"):
        merged(table, {"q.weight": random(6, 8)}, {"conv_in": Update(DOWN, UP, 2.0)})
