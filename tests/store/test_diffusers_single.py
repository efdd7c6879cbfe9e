"""Models in one file, in the layouts they were published in, against diffusers' own conversion of the same tensors.

The files are made of tiny random networks of diffusers, their names turned back by the rules below; that these rules
are the published layouts is what diffusers' conversions say of them.
"""

from __future__ import annotations

import json
import re
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    ControlNetModel,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    UNet2DConditionModel,
)
from diffusers.loaders import single_file_utils as theirs
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, T5Config, T5EncoderModel

from carrara.errors import RecipeError, StorageError
from carrara.store.diffusers import original
from carrara.store.diffusers.folder import read_pipeline, write_pipeline
from carrara.store.diffusers.single import read_single, recognise

State = dict[str, Tensor]

UNET: dict[str, Any] = {
    "block_out_channels": (8, 8, 16), "layers_per_block": 2, "norm_num_groups": 4, "cross_attention_dim": 12,
    "attention_head_dim": 2, "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D", "CrossAttnUpBlock2D"),
}  # fmt: skip
LINEAR = {**UNET, "use_linear_projection": True, "addition_embed_type": "text_time", "addition_time_embed_dim": 4,
          "projection_class_embeddings_input_dim": 32, "transformer_layers_per_block": (1, 1, 2)}  # fmt: skip
VAE: dict[str, Any] = {
    "block_out_channels": (8, 8, 16), "layers_per_block": 2, "norm_num_groups": 4, "latent_channels": 4,
    "down_block_types": ("DownEncoderBlock2D",) * 3, "up_block_types": ("UpDecoderBlock2D",) * 3,
}  # fmt: skip
CLIP: dict[str, Any] = {
    "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 32,
    "max_position_embeddings": 9, "projection_dim": 8, "bos_token_id": 0, "eos_token_id": 1,
}  # fmt: skip


def state(network: torch.nn.Module) -> State:
    """Its tensors, each with other numbers than any other."""
    return {name: torch.randn(tensor.shape) for name, tensor in network.state_dict().items()}


def turned(tensors: State, rules: list[tuple[str, str]]) -> State:
    """The names after each rule in turn."""
    found = {}
    for name, tensor in tensors.items():
        for pattern, there in rules:
            name = re.sub(pattern, there, name)
        found[name] = tensor
    return found


RESNET = [(r"\.norm1\.(?=\w+$)", ".in_layers.0."), (r"\.conv1\.", ".in_layers.2."),
          (r"time_emb_proj", "emb_layers.1"), (r"\.norm2\.(?=\w+$)", ".out_layers.0."),
          (r"\.conv2\.", ".out_layers.3."), (r"conv_shortcut", "skip_connection")]  # fmt: skip


def ldm_unet(tensors: State, each: int, up_attends: set[int]) -> State:
    """A UNet's names as LDM has them; `each` blocks and a change of size make a level."""
    found = {}
    for name, tensor in tensors.items():
        if match := re.fullmatch(r"(down|up)_blocks\.(\d+)\.(\w+)\.(\d+)\.(.+)", name):
            way, level, what, layer, rest = match[1], int(match[2]), match[3], int(match[4]), match[5]
            if way == "down":
                index = 1 + level * (each + 1) + (each if what == "downsamplers" else layer)
                there = f"input_blocks.{index}"
            else:
                index = level * (each + 1) + (each if what == "upsamplers" else layer)
                there = f"output_blocks.{index}"
            if what == "resnets":
                name = f"{there}.0.{rest}"
                for pattern, original_name in RESNET:
                    name = re.sub(pattern, original_name, name)
            elif what == "attentions":
                name = f"{there}.1.{rest}"
            elif what == "downsamplers":
                name = f"{there}.0.op.{rest.removeprefix('conv.')}"
            else:
                name = f"{there}.{2 if level in up_attends else 1}.{rest}"
        elif match := re.fullmatch(r"mid_block\.(resnets|attentions)\.(\d)\.(.+)", name):
            name = f"middle_block.{1 if match[1] == 'attentions' else 2 * int(match[2])}.{match[3]}"
            if match[1] == "resnets":
                for pattern, original_name in RESNET:
                    name = re.sub(pattern, original_name, name)
        found[name] = tensor
    return turned(found, [
        (r"^time_embedding\.linear_1", "time_embed.0"), (r"^time_embedding\.linear_2", "time_embed.2"),
        (r"^add_embedding\.linear_1", "label_emb.0.0"), (r"^add_embedding\.linear_2", "label_emb.0.2"),
        (r"^conv_in", "input_blocks.0.0"), (r"^conv_norm_out", "out.0"), (r"^conv_out", "out.2"),
        (r"^controlnet_down_blocks\.(\d+)", r"zero_convs.\1.0"), (r"^controlnet_mid_block", "middle_block_out.0"),
        (r"^controlnet_cond_embedding\.conv_in", "input_hint_block.0"),
        (r"^controlnet_cond_embedding\.conv_out", "input_hint_block.14"),
    ])  # fmt: skip


def ldm_vae(tensors: State, levels: int) -> State:
    found = {}
    for name, tensor in tensors.items():
        for i in range(levels):
            name = name.replace(f"encoder.down_blocks.{i}.", f"encoder.down.{i}.")
            name = name.replace(f"decoder.up_blocks.{i}.", f"decoder.up.{levels - 1 - i}.")
        for pattern, there in [
            (r"mid_block\.resnets\.0", "mid.block_1"), (r"mid_block\.resnets\.1", "mid.block_2"),
            (r"mid_block\.attentions\.0", "mid.attn_1"), (r"\.resnets\.", ".block."),
            (r"samplers\.0", "sample"), ("conv_shortcut", "nin_shortcut"), ("group_norm", "norm"),
            (r"attn_1\.to_([qkv])\.", r"attn_1.\1."), (r"to_out\.0", "proj_out"), ("conv_norm_out", "norm_out"),
        ]:  # fmt: skip
            name = re.sub(pattern, there, name)
        matrix = "attn_1" in name and name.endswith("weight") and tensor.ndim == 2
        found[name] = tensor[:, :, None, None] if matrix else tensor
    return found


def clip_state(network: Any, config: dict[str, Any] = CLIP) -> State:
    """In the names that files have, whatever the library calls them inside."""
    found = {}
    for name, tensor in state(network(CLIPTextConfig(**config))).items():
        name = name.removeprefix("text_model.")
        found[name if name.startswith("text_projection") else f"text_model.{name}"] = tensor
    return {name: tensor for name, tensor in found.items() if not name.endswith("position_ids")}


def open_clip(tensors: State) -> State:
    """OpenCLIP's names, its queries, keys and values in one."""
    found = {}
    for name, tensor in tensors.items():
        if match := re.fullmatch(r"(.*\.layers\.\d+\.self_attn)\.q_proj\.(weight|bias)", name):
            fused = torch.cat([tensors[f"{match[1]}.{part}_proj.{match[2]}"] for part in "qkv"])
            found[f"{match[1]}.in_proj_{match[2]}"] = fused
        elif name == "text_projection.weight":
            found["text_projection"] = tensor.T.contiguous()
        elif not re.search(r"\.[kv]_proj\.", name):
            found[name] = tensor
    return turned(found, [
        (r"text_model\.encoder\.layers\.", "transformer.resblocks."),
        (r"layer_norm1", "ln_1"), (r"layer_norm2", "ln_2"),
        (r"\.self_attn\.", ".attn."), (r"mlp\.fc1", "mlp.c_fc"), (r"mlp\.fc2", "mlp.c_proj"),
        (r"text_model\.embeddings\.token_embedding", "token_embedding"), (r"text_model\.final_layer_norm", "ln_final"),
        (r"text_model\.embeddings\.position_embedding\.weight", "positional_embedding"),
    ])  # fmt: skip


def prefixed(prefix: str, tensors: State) -> State:
    return {prefix + name: tensor for name, tensor in tensors.items()}


def written(path: Path, *states: State) -> Path:
    save_file({name: tensor.contiguous() for one in states for name, tensor in one.items()}, path)
    return path


def same(source: Any, wanted: State) -> None:
    assert set(source.names) == set(wanted), set(source.names) ^ set(wanted)
    for name, tensor in wanted.items():
        assert torch.equal(source.read(name), tensor), name


def plain(config: Any) -> dict[str, Any]:
    return {key: list(value) if isinstance(value, tuple) else value for key, value in dict(config).items()}


SCHEDULE = {"betas": torch.ones(3), "sqrt_one_minus_alphas_cumprod": torch.ones(3), "model_ema.decay": torch.ones(1)}


@pytest.mark.parametrize("config", [UNET, LINEAR], ids=["sd1", "sdxl"])
def test_unet(config: dict[str, Any], tmp_path: Path) -> None:
    network = UNet2DConditionModel(**config)
    wanted = state(network)
    file = prefixed("model.diffusion_model.", ldm_unet(wanted, 2, {0, 2}))
    converted = theirs.convert_ldm_unet_checkpoint(dict(file), dict(network.config))
    assert converted.keys() == wanted.keys() and all(torch.equal(converted[name], wanted[name]) for name in wanted)
    path = written(tmp_path / "a.safetensors", file, SCHEDULE, {"other.thing": torch.ones(1)})
    found = read_single(path, family="sd1", configs={"unet": plain(network.config)})
    same(found.part("unet").tensors, wanted)
    assert found.unread == ("other.thing",)
    assert "it also has averaged weights (model_ema), which are not read" in found.notes
    assert {"text_encoder", "vae", "tokenizer"} <= set(found.absent) and set(found.parts) == {"unet", "scheduler"}


def test_control(tmp_path: Path) -> None:
    config = {key: value for key, value in UNET.items() if key != "up_block_types"}
    network = ControlNetModel(**config, conditioning_embedding_out_channels=(4, 4, 8, 8))
    wanted = state(network)
    turned_back = ldm_unet(wanted, 2, set())
    blocks = [(rf"^controlnet_cond_embedding\.blocks\.{i}\.", f"input_hint_block.{2 * i + 2}.") for i in range(6)]
    turned_back = turned(turned_back, blocks)
    for prefix in ("control_model.", ""):
        file = prefixed(prefix, turned_back)
        converted = theirs.convert_controlnet_checkpoint(dict(file), dict(network.config))
        assert converted.keys() == wanted.keys() and all(torch.equal(converted[name], wanted[name]) for name in wanted)
        path = written(tmp_path / "a.safetensors", file)
        found = read_single(path, family="sd1", configs={"controlnet": plain(network.config)})
        same(found.part("controlnet").tensors, wanted)
        assert not found.unread and set(found.parts) == {"controlnet"}


@pytest.mark.parametrize("prefix", ["first_stage_model.", ""])
def test_autoencoder(prefix: str, tmp_path: Path) -> None:
    network = AutoencoderKL(**VAE)
    wanted = state(network)
    file = prefixed(prefix, ldm_vae(wanted, 3))
    converted = theirs.convert_ldm_vae_checkpoint(dict(file), dict(network.config))
    assert converted.keys() == wanted.keys() and all(torch.equal(converted[name], wanted[name]) for name in wanted)
    path = written(tmp_path / "a.safetensors", file)
    found = read_single(path, configs={"vae": plain(network.config)})
    same(found.part("vae").tensors, wanted)
    assert not found.unread and "taken as that of sd1" in found.notes[0]


def test_what_a_training_saved(tmp_path: Path) -> None:
    """A .ckpt is read as the same tensors in safetensors are."""
    network = UNet2DConditionModel(**UNET)
    wanted = state(network)
    file = prefixed("model.diffusion_model.", ldm_unet(wanted, 2, {0, 2}))
    torch.save({"epoch": 1, "state_dict": file, "callbacks": {}}, tmp_path / "a.ckpt")  # noqa: TID251
    found = read_single(tmp_path / "a.ckpt", family="sd1", configs={"unet": plain(network.config)})
    same(found.part("unet").tensors, wanted)


def test_clip(tmp_path: Path) -> None:
    wanted = clip_state(CLIPTextModel)
    for cut in ("", "text_model."):  # early files leave out the first
        file = {f"cond_stage_model.transformer.{name.removeprefix(cut)}": tensor for name, tensor in wanted.items()}
        ids = {"cond_stage_model.transformer.text_model.embeddings.position_ids": torch.arange(9)}
        path = written(tmp_path / "a.safetensors", file, ids)
        found = read_single(path, family="sd1", configs={"text_encoder": CLIP})
        same(found.part("text_encoder").tensors, wanted)
        assert not found.unread and set(found.parts) == {"text_encoder", "tokenizer"}


@pytest.mark.parametrize(
    ("family", "part", "prefix"),
    [("sd2", "text_encoder", "cond_stage_model.model."), ("sdxl", "text_encoder_2", "conditioner.embedders.1.model."),
     ("sdxl-refiner", "text_encoder_2", "conditioner.embedders.0.model.")],
)  # fmt: skip
def test_open_clip(family: Any, part: str, prefix: str, tmp_path: Path) -> None:
    """Against diffusers' conversion; SD 2's last layer and projection are in the file and not in the model."""
    whole = CLIPTextModelWithProjection(CLIPTextConfig(**CLIP | {"num_hidden_layers": 3 if family == "sd2" else 2}))
    tensors = clip_state(lambda config: whole)
    file = prefixed(prefix, {**open_clip(tensors), "logit_scale": torch.ones(())})
    path = written(tmp_path / "a.safetensors", file)
    found = read_single(path, family=family, configs={part: CLIP})
    if family == "sd2":
        wanted = {k: v for k, v in tensors.items() if ".layers.2." not in k and k != "text_projection.weight"}
    else:
        wanted = tensors
    same(found.part(part).tensors, wanted)
    assert not found.unread
    converted = theirs.convert_open_clip_checkpoint(whole, dict(file), prefix=prefix)
    assert all(torch.equal(converted[name], tensor) for name, tensor in wanted.items())


@pytest.mark.parametrize("dual", [(), (0,)], ids=["sd3", "sd3.5"])
def test_mmdit(dual: tuple[int, ...], tmp_path: Path) -> None:
    network = SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, num_layers=3, attention_head_dim=4, num_attention_heads=2,
        joint_attention_dim=12, caption_projection_dim=8, pooled_projection_dim=6, out_channels=4, pos_embed_max_size=6,
        dual_attention_layers=dual, qk_norm="rms_norm" if dual else None,
    )  # fmt: skip
    wanted = state(network)
    file: State = {}
    for name, tensor in wanted.items():
        swap = name.startswith(("norm_out", "transformer_blocks.2.norm1_context"))
        if match := re.fullmatch(r"(.*\.)(attn2?)\.(to|add)_q(?:_proj)?\.(\w+)", name):
            parts = [f"{match[1]}{match[2]}." + (f"to_{p}" if match[3] == "to" else f"add_{p}_proj") for p in "qkv"]
            block = "x_block" if match[3] == "to" else "context_block"
            there = match[1].replace("transformer_blocks", "joint_blocks") + f"{block}.{match[2]}.qkv.{match[4]}"
            file[there] = torch.cat([wanted[f"{part}.{match[4]}"] for part in parts])
        elif not re.search(r"\.(to_[kv]|add_[kv]_proj)\.", name):
            file[name] = torch.cat(tensor.chunk(2)[::-1]) if swap else tensor
    file = turned(file, [
        (r"^transformer_blocks\.(\d+)\.", r"joint_blocks.\1."), (r"\.norm1\.linear", ".x_block.adaLN_modulation.1"),
        (r"\.norm1_context\.linear", ".context_block.adaLN_modulation.1"),
        (r"\.ff\.net\.0\.proj", ".x_block.mlp.fc1"), (r"\.ff\.net\.2", ".x_block.mlp.fc2"),
        (r"\.ff_context\.net\.0\.proj", ".context_block.mlp.fc1"), (r"\.ff_context\.net\.2", ".context_block.mlp.fc2"),
        (r"\.(attn2?)\.to_out\.0", r".x_block.\1.proj"), (r"\.attn\.to_add_out", ".context_block.attn.proj"),
        (r"\.(attn2?)\.norm_([qk])", r".x_block.\1.ln_\2"),
        (r"\.attn\.norm_added_([qk])", r".context_block.attn.ln_\1"),
        (r"^pos_embed\.proj", "x_embedder.proj"), (r"^pos_embed\.pos_embed", "pos_embed"),
        (r"^time_text_embed\.timestep_embedder\.linear_1", "t_embedder.mlp.0"),
        (r"^time_text_embed\.timestep_embedder\.linear_2", "t_embedder.mlp.2"),
        (r"^time_text_embed\.text_embedder\.linear_1", "y_embedder.mlp.0"),
        (r"^time_text_embed\.text_embedder\.linear_2", "y_embedder.mlp.2"),
        (r"^proj_out", "final_layer.linear"), (r"^norm_out\.linear", "final_layer.adaLN_modulation.1"),
    ])  # fmt: skip
    converted = theirs.convert_sd3_transformer_checkpoint_to_diffusers(dict(file))
    assert converted.keys() == wanted.keys() and all(torch.equal(converted[name], wanted[name]) for name in wanted)
    for prefix in ("model.diffusion_model.", ""):
        path = written(tmp_path / "a.safetensors", prefixed(prefix, file))
        found = read_single(path, configs={"transformer": plain(network.config)})
        same(found.part("transformer").tensors, wanted)
        assert found.kind == "StableDiffusion3Pipeline" and not found.unread
    config = read_single(path).part("transformer").config  # as shapes tell
    for key in ("num_layers", "caption_projection_dim", "pos_embed_max_size", "qk_norm"):
        assert config[key] == network.config[key], key
    assert list(config["dual_attention_layers"]) == list(dual)


def test_flux(tmp_path: Path) -> None:
    network = FluxTransformer2DModel(
        in_channels=4, num_layers=1, num_single_layers=2, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=12, pooled_projection_dim=6, guidance_embeds=True, axes_dims_rope=(2, 2, 4),
    )  # fmt: skip
    wanted = state(network)
    file: State = {}
    for name, tensor in wanted.items():
        single = name.startswith("single")
        if match := re.fullmatch(r"(.*)\.attn\.(to|add)_q(?:_proj)?\.(\w+)", name):
            parts = [f"{match[1]}.attn." + (f"to_{p}" if match[2] == "to" else f"add_{p}_proj") for p in "qkv"]
            parts += [f"{match[1]}.proj_mlp"] if single else []
            fused = torch.cat([wanted[f"{part}.{match[3]}"] for part in parts])
            stream = "linear1" if single else f"{'img' if match[2] == 'to' else 'txt'}_attn.qkv"
            file[f"{match[1]}.{stream}.{match[3]}"] = fused
        elif not re.search(r"\.(to_[kv]|add_[kv]_proj|proj_mlp)\.", name):
            file[name] = torch.cat(tensor.chunk(2)[::-1]) if name.startswith("norm_out") else tensor
    file = turned(file, [
        (r"^(single_transformer_blocks\.\d+)\.norm\.linear", r"\1.modulation.lin"),
        (r"^(single_transformer_blocks\.\d+)\.proj_out", r"\1.linear2"),
        (r"^(single_transformer_blocks\.\d+)\.attn\.norm_q\.weight", r"\1.norm.query_norm.scale"),
        (r"^(single_transformer_blocks\.\d+)\.attn\.norm_k\.weight", r"\1.norm.key_norm.scale"),
        (r"^single_transformer_blocks", "single_blocks"), (r"^transformer_blocks", "double_blocks"),
        (r"attn\.norm_q\.weight", "img_attn.norm.query_norm.scale"),
        (r"attn\.norm_k\.weight", "img_attn.norm.key_norm.scale"),
        (r"attn\.norm_added_q\.weight", "txt_attn.norm.query_norm.scale"),
        (r"attn\.norm_added_k\.weight", "txt_attn.norm.key_norm.scale"),
        (r"norm1\.linear", "img_mod.lin"), (r"norm1_context\.linear", "txt_mod.lin"),
        (r"ff\.net\.0\.proj", "img_mlp.0"), (r"ff\.net\.2", "img_mlp.2"), (r"attn\.to_out\.0", "img_attn.proj"),
        (r"ff_context\.net\.0\.proj", "txt_mlp.0"), (r"ff_context\.net\.2", "txt_mlp.2"),
        (r"attn\.to_add_out", "txt_attn.proj"), (r"^x_embedder", "img_in"), (r"^context_embedder", "txt_in"),
        (r"^time_text_embed\.timestep_embedder\.linear_1", "time_in.in_layer"),
        (r"^time_text_embed\.timestep_embedder\.linear_2", "time_in.out_layer"),
        (r"^time_text_embed\.text_embedder\.linear_1", "vector_in.in_layer"),
        (r"^time_text_embed\.text_embedder\.linear_2", "vector_in.out_layer"),
        (r"^time_text_embed\.guidance_embedder\.linear_1", "guidance_in.in_layer"),
        (r"^time_text_embed\.guidance_embedder\.linear_2", "guidance_in.out_layer"),
        (r"^proj_out", "final_layer.linear"), (r"^norm_out\.linear", "final_layer.adaLN_modulation.1"),
    ])  # fmt: skip
    path = written(tmp_path / "a.safetensors", file)
    found = read_single(path)
    same(found.part("transformer").tensors, wanted)
    assert found.kind == "FluxPipeline" and not found.unread
    for key in ("num_layers", "num_single_layers", "guidance_embeds", "in_channels"):
        assert found.part("transformer").config[key] == network.config[key], key
    assert found.part("scheduler").config["use_dynamic_shifting"] is True
    few = {name: tensor for name, tensor in file.items() if not name.startswith("guidance_in")}
    few_steps = read_single(written(tmp_path / "b.safetensors", prefixed("model.diffusion_model.", few)))
    assert few_steps.part("transformer").config["guidance_embeds"] is False
    assert few_steps.part("scheduler").config["use_dynamic_shifting"] is False
    # diffusers' conversion knows one width only: one column of such a matrix is enough for the order of its rows
    rows = {name: torch.randn(tensor.shape[0], 1) for name, tensor in file.items()}
    for i in range(2):
        rows[f"single_blocks.{i}.linear1.weight"] = torch.randn(7 * 3072, 1)
        rows[f"single_blocks.{i}.linear1.bias"] = torch.randn(7 * 3072)
        rows[f"single_blocks.{i}.linear2.bias"] = torch.randn(3072)
    converted = theirs.convert_flux_transformer_checkpoint_to_diffusers(dict(rows))
    same(read_single(written(tmp_path / "c.safetensors", rows)).part("transformer").tensors, converted)


def test_sd3s_text_encoders(tmp_path: Path) -> None:
    clip_l = clip_state(CLIPTextModel)
    clip_g = clip_state(CLIPTextModelWithProjection)
    t5 = state(T5EncoderModel(T5Config(d_model=8, d_ff=16, d_kv=4, num_heads=2, num_layers=1, vocab_size=16)))
    t5.pop("encoder.embed_tokens.weight", None)
    places = {"clip_l": clip_l, "clip_g": clip_g, "t5xxl": t5}
    parts = [prefixed(f"text_encoders.{name}.transformer.", tensors) for name, tensors in places.items()]
    found = read_single(written(tmp_path / "a.safetensors", *parts), family="sd3", configs={"text_encoder": CLIP})
    same(found.part("text_encoder").tensors, {**clip_l, "text_projection.weight": torch.eye(8)})
    same(found.part("text_encoder_2").tensors, clip_g)
    same(found.part("text_encoder_3").tensors, t5)
    assert set(found.absent) == {"transformer", "vae", "scheduler"}


# --- recognition and configurations -----------------------------------------------------------------------------------

CONFIGS: dict[str, Any] = json.loads((resources.files("carrara.store.diffusers") / "published.json").read_text())


@pytest.mark.parametrize("part", sorted(CONFIGS["parts"]))
def test_a_published_configuration_says_what_its_class_takes(part: str) -> None:
    """Every key is one of the class's arguments, and a full-size network without numbers is made of it."""
    import diffusers
    import transformers

    library, kind, config = CONFIGS["parts"][part]
    keys = {key: value for key, value in config.items() if key != "_class_name"}
    if library == "transformers":
        assert "model_type" in config or "tokenizer_class" in config
        assert hasattr(transformers, kind)
    elif kind.endswith("Scheduler"):
        assert getattr(diffusers, kind).from_config(config).config["num_train_timesteps"] == 1000
    else:
        with torch.device("meta"):
            network = getattr(diffusers, kind)(**keys)
        assert all(network.config[key] == value for key, value in keys.items())


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl", "sdxl-refiner"])
@pytest.mark.parametrize("channels", [4, 9])
def test_full_size_unets_are_recognised(family: Any, channels: int) -> None:
    config = dict(CONFIGS["parts"][f"unet-{family}"][2]) | {"in_channels": channels}
    with torch.device("meta"):
        tensors = UNet2DConditionModel(**config).state_dict()
    attends = {i for i, kind in enumerate(config["up_block_types"]) if "CrossAttn" in kind}
    there = ldm_unet(dict(tensors), 2, attends)
    shapes = {f"model.diffusion_model.{name}": tuple(tensor.shape) for name, tensor in there.items()}
    assert recognise(shapes) == (family, [])
    inner = {name: tuple(tensor.shape) for name, tensor in there.items()}
    layout = dict(original.unet(inner, config))
    assert {name: inner[str(place)] for name, place in layout.items()} == {
        n: tuple(t.shape) for n, t in tensors.items()
    }


def tiny_unet(path: Path, width: int = 12, channels: int = 4, **more: Tensor) -> Path:
    """A file that looks like a UNet by the tensors that tell its family."""
    near = {"input_blocks.0.0.weight": torch.zeros(8, channels, 3, 3),
            "middle_block.1.transformer_blocks.0.attn2.to_k.weight": torch.zeros(8, width)}  # fmt: skip
    return written(path, prefixed("model.diffusion_model.", near), more)


def test_what_the_weights_do_not_tell(tmp_path: Path) -> None:
    path = tiny_unet(tmp_path / "a.safetensors", 1024)
    found = read_single(path)
    assert found.part("scheduler").config["prediction_type"] == "v_prediction"
    assert any("say the prediction if it is epsilon" in note for note in found.notes)
    told = read_single(path, prediction="epsilon")
    assert told.part("scheduler").config["prediction_type"] == "epsilon" and not told.notes
    assert told.part("unet").config["sample_size"] == 64
    save_file({"model.diffusion_model.input_blocks.0.0.weight": torch.zeros(8, 4, 3, 3)}, tmp_path / "b.safetensors",
              metadata={"modelspec.prediction_type": "epsilon"})  # fmt: skip
    said = read_single(tmp_path / "b.safetensors", family="sd2")
    assert said.part("scheduler").config["prediction_type"] == "epsilon" and not said.notes
    marked = read_single(tiny_unet(tmp_path / "c.safetensors", 2048, v_pred=torch.ones(0), ztsnr=torch.ones(0)))
    assert marked.part("scheduler").config["prediction_type"] == "v_prediction"
    assert marked.part("scheduler").config["rescale_betas_zero_snr"] is True and not marked.unread


def test_inpainting_and_what_is_not_read(tmp_path: Path) -> None:
    found = read_single(tiny_unet(tmp_path / "a.safetensors", 768, 9))
    assert found.kind == "StableDiffusionInpaintPipeline" and found.part("unet").config["in_channels"] == 9
    for channels, said in ((8, "InstructPix2Pix"), (5, "depth-to-image"), (7, "upscaler")):
        with pytest.raises(StorageError, match=said):
            read_single(tiny_unet(tmp_path / "a.safetensors", 768, channels))
    with pytest.raises(StorageError, match=r"a UNet that attends to"):
        read_single(tiny_unet(tmp_path / "a.safetensors", 99))
    with pytest.raises(RecipeError, match=r"the family is 'sd9'"):
        read_single(tmp_path / "a.safetensors", family="sd9")  # type: ignore[arg-type]
    with pytest.raises(StorageError, match=r"holds nothing of a model of the family flux"):
        read_single(tiny_unet(tmp_path / "a.safetensors"), family="flux")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight", "a LoRA .kohya's"),
        ("unet.down_blocks.0.attentions.0.proj_in.lora_A.weight", "a LoRA .diffusers' or PEFT's"),
        ("emb_params", "an embedding of textual inversion"),
        ("clip_l", "an embedding of textual inversion"),
        ("edm_mean", "a Playground model"),
        ("down_blocks.0.resnets.0.conv1.weight", "one component in diffusers' own names"),
        ("text_model.embeddings.token_embedding.weight", "a text or image encoder alone"),
        ("whatever", "no model in a published layout"),
    ],
)
def test_what_is_no_whole_model_is_named(name: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=rf"a.safetensors is {said}"):
        read_single(written(tmp_path / "a.safetensors", {name: torch.ones(2)}))


def test_written_as_a_folder_it_loads_in_the_libraries(tmp_path: Path) -> None:
    network, decoder = UNet2DConditionModel(**UNET), AutoencoderKL(**VAE)
    unet, vae, text = state(network), state(decoder), clip_state(CLIPTextModel)
    path = written(
        tmp_path / "a.safetensors",
        prefixed("model.diffusion_model.", ldm_unet(unet, 2, {0, 2})),
        prefixed("first_stage_model.", ldm_vae(vae, 3)),
        prefixed("cond_stage_model.transformer.", text),
    )
    configs = {"unet": plain(network.config), "vae": plain(decoder.config), "text_encoder": CLIP}
    write_pipeline(tmp_path / "out", read_single(path, family="sd1", configs=configs))
    again = read_pipeline(tmp_path / "out")
    for name, wanted in (("unet", unet), ("vae", vae), ("text_encoder", text)):
        same(again.part(name).tensors, wanted)
    loaded = UNet2DConditionModel.from_pretrained(tmp_path / "out" / "unet").state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in unet.items())
    loaded = AutoencoderKL.from_pretrained(tmp_path / "out" / "vae").state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in vae.items())
    encoder = CLIPTextModel.from_pretrained(tmp_path / "out" / "text_encoder").state_dict()
    bare = {name.removeprefix("text_model."): tensor for name, tensor in encoder.items()}
    assert all(torch.equal(bare[name.removeprefix("text_model.")], tensor) for name, tensor in text.items())
