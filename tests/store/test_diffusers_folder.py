"""Pipelines' folders that diffusers wrote are read as data, and written so that diffusers reads them again."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from carrara.errors import CarraraError, RecipeError, StorageError
from carrara.store.diffusers.folder import read_pipeline, write_pipeline
from carrara.store.diffusers.foreign import ForeignPart, ForeignPipeline, Tensors


@pytest.fixture(scope="module")
def pipeline() -> StableDiffusionPipeline:
    torch.manual_seed(0)
    return StableDiffusionPipeline(
        unet=UNet2DConditionModel(
            block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4, cross_attention_dim=8,
            attention_head_dim=2, down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        ),
        vae=AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, latent_channels=4),
        text_encoder=CLIPTextModel(
            CLIPTextConfig(hidden_size=8, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
                           vocab_size=32, max_position_embeddings=9, bos_token_id=0, eos_token_id=1)
        ),
        scheduler=PNDMScheduler(steps_offset=1, skip_prk_steps=True),
        tokenizer=None, safety_checker=None, feature_extractor=None,
        requires_safety_checker=False,
    )  # fmt: skip


@pytest.fixture
def folder(pipeline: StableDiffusionPipeline, tmp_path: Path) -> Path:
    pipeline.save_pretrained(tmp_path / "sd")
    return tmp_path / "sd"


def state(pipeline: StableDiffusionPipeline, name: str) -> dict[str, torch.Tensor]:
    return dict(getattr(pipeline, name).state_dict())


def same(found: ForeignPipeline, pipeline: StableDiffusionPipeline) -> None:
    for name in ("unet", "vae"):
        source, wanted = found.part(name).tensors, state(pipeline, name)
        assert source is not None and set(source.names) == set(wanted)
        assert all(torch.equal(source.read(key), tensor) for key, tensor in wanted.items())


def test_what_diffusers_wrote_is_read(pipeline: StableDiffusionPipeline, folder: Path) -> None:
    (folder / "vae" / "notes.txt").write_text("x")
    (folder / "extra").mkdir()
    (folder / "extra" / "a.bin").write_bytes(b"x")
    (folder / "README.md").write_text("x")
    found = read_pipeline(folder)
    assert found.kind == "StableDiffusionPipeline"
    assert set(found.parts) == {"unet", "vae", "text_encoder", "scheduler"}
    assert set(found.absent) == {"tokenizer", "safety_checker", "feature_extractor", "image_encoder"}
    assert found.options["requires_safety_checker"] is False
    assert found.unread == ("extra/a.bin",) and set(found.part("vae").files) == {"notes.txt"}
    assert not found.notes
    assert found.part("unet").config["block_out_channels"] == [8, 16]
    assert found.part("scheduler").config["_class_name"] == "PNDMScheduler"
    assert found.part("scheduler").tensors is None
    assert (found.part("text_encoder").library, found.part("text_encoder").kind) == ("transformers", "CLIPTextModel")
    same(found, pipeline)
    with pytest.raises(StorageError, match=r"has no tokenizer; it has scheduler, text_encoder, unet, vae"):
        found.part("tokenizer")


def test_variants_and_shards(pipeline: StableDiffusionPipeline, tmp_path: Path) -> None:
    folder = tmp_path / "sd"
    pipeline.save_pretrained(folder, variant="fp16", max_shard_size="20KB")
    assert len(list((folder / "unet").glob("*.fp16-*-of-*.safetensors"))) > 2
    found = read_pipeline(folder, variant="fp16")
    assert not found.notes and not found.unread
    same(found, pipeline)
    assert "unet is of variant fp16, the only one that is there" in read_pipeline(folder).notes
    pipeline.save_pretrained(folder)  # both are there now
    found = read_pipeline(folder)
    assert not found.notes and found.part("unet").variant is None
    assert "unet/diffusion_pytorch_model.safetensors.index.fp16.json" in found.unread
    assert len(read_pipeline(folder, variant="other").notes) == 3


def test_what_torch_save_wrote(pipeline: StableDiffusionPipeline, tmp_path: Path) -> None:
    pipeline.save_pretrained(tmp_path / "sd", safe_serialization=False)
    assert list((tmp_path / "sd" / "unet").glob("*.bin"))
    same(read_pipeline(tmp_path / "sd"), pipeline)


def test_former_names_of_attention(pipeline: StableDiffusionPipeline, folder: Path) -> None:
    former = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    renamed = {}
    for name, tensor in state(pipeline, "vae").items():
        for now, then in former.items():
            name = name.replace(f"attentions.0.{now}.", f"attentions.0.{then}.")
        renamed[name] = tensor
    assert renamed.keys() != state(pipeline, "vae").keys()
    (folder / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    torch.save(renamed, folder / "vae" / "diffusion_pytorch_model.bin")  # noqa: TID251
    same(read_pipeline(folder), pipeline)


@pytest.mark.parametrize("variant", [None, "fp16"])
@pytest.mark.parametrize("shard_bytes", [None, 20_000])
def test_written_again_it_is_the_same(
    variant: str | None, shard_bytes: int | None, pipeline: StableDiffusionPipeline, folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    found = read_pipeline(folder)
    write_pipeline(out, found, variant=variant, shard_bytes=shard_bytes)
    again = read_pipeline(out, variant=variant)
    assert (again.kind, again.options, set(again.absent)) == (found.kind, found.options, set(found.absent))
    assert not again.unread and not again.notes
    for name, part in found.parts.items():
        other = again.part(name)
        assert (part.library, part.kind, part.config) == (other.library, other.kind, other.config)
        if part.tensors is not None and other.tensors is not None:
            assert set(part.tensors.names) == set(other.tensors.names)
            for key in part.tensors.names:
                a, b = part.tensors.read(key), other.tensors.read(key)
                assert a.dtype == b.dtype and torch.equal(a, b)
    if not variant and not shard_bytes:
        for name in ("model_index.json", "unet/config.json", "scheduler/scheduler_config.json"):
            assert (out / name).read_bytes().rstrip() == (folder / name).read_bytes().rstrip()
    theirs = StableDiffusionPipeline.from_pretrained(out, variant=variant, tokenizer=None)
    for name in ("unet", "vae", "text_encoder"):
        wanted = state(pipeline, name)
        assert all(torch.equal(tensor, wanted[key]) for key, tensor in state(theirs, name).items())


def test_tensors_that_share_numbers_are_written_each(tmp_path: Path) -> None:
    rows = torch.randn(6, 2)
    tensors = {"a": rows[:2], "b": rows[2:], "c": rows}
    part = ForeignPart("diffusers", "Other", {"x": 1}, Tensors("memory", tensors))
    write_pipeline(tmp_path / "out", ForeignPipeline("memory", "Pipe", {"part": part}))
    found = read_pipeline(tmp_path / "out").part("part").tensors
    assert found is not None and all(torch.equal(found.read(name), tensor) for name, tensor in tensors.items())


def edit(folder: Path, **changes: Any) -> None:
    body = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(body | changes))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"../secret": ["diffusers", "UNet2DConditionModel"]}, "as a component, which is no plain name"),
        ({"/etc": ["diffusers", "UNet2DConditionModel"]}, "as a component, which is no plain name"),
        ({"unet": ["diffusers", "os.system('x')"]}, "as its unet, which is no library and class"),
        ({"unet": ["a/../b", "X"]}, "as its unet, which is no library and class"),
        ({"unet": [None, "X"]}, "as its unet, which is no library and class"),
        ({"unet": ["diffusers", None]}, "as its unet, which is no library and class"),
        ({"other": ["diffusers", "X"]}, "other is missing or empty"),
        ({"_class_name": ["x.py", "Pipe"]}, "as its class, which is no name of one"),
        ({"_class_name": None}, "as its class"),
    ],
)
def test_names_are_names(changes: dict[str, Any], said: str, folder: Path) -> None:
    edit(folder, **changes)
    with pytest.raises(StorageError, match=said):
        read_pipeline(folder)


def test_a_class_that_is_unknown_is_only_a_name(folder: Path) -> None:
    edit(folder, unet=["os", "system"], _class_name="Whatever")
    found = read_pipeline(folder)
    assert (found.kind, found.part("unet").library, found.part("unet").kind) == ("Whatever", "os", "system")
    assert "unet is a system, and its own config says 'UNet2DConditionModel'" in found.notes


@pytest.mark.parametrize(
    "name", ["unet/config.json", "unet", "vae/diffusion_pytorch_model.safetensors", "model_index.json"]
)
def test_links_stay_inside(name: str, folder: Path, tmp_path: Path) -> None:
    shutil.move(folder / name, tmp_path / "outside")
    os.symlink(tmp_path / "outside", folder / name)
    with pytest.raises(StorageError, match=r"a link to what lies outside"):
        read_pipeline(folder)


def test_links_inside_are_followed(folder: Path, pipeline: StableDiffusionPipeline) -> None:
    name = "diffusion_pytorch_model.safetensors"
    shutil.move(folder / "unet" / name, folder / "kept")
    os.symlink("../kept", folder / "unet" / name)
    same(read_pipeline(folder), pipeline)


def test_nothing_else_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    empty = ForeignPipeline("memory", "Pipe", {})
    with pytest.raises(StorageError, match=r"exists and is no pipeline's folder"):
        write_pipeline(tmp_path / "mine", empty)
    for bad in ("..", "a/b"):
        with pytest.raises(RecipeError, match=r"cannot be the name of a component"):
            write_pipeline(tmp_path / "out", ForeignPipeline("memory", "Pipe", {bad: ForeignPart("a", "B", {})}))
    with pytest.raises(RecipeError, match=r"the variant is 'a/b'"):
        write_pipeline(tmp_path / "out", empty, variant="a/b")
    part = ForeignPart("transformers", "CLIPTokenizer", {"a": 1}, files={"../x": b"x"})
    with pytest.raises(CarraraError, match=r"cannot be the name of a file"):
        write_pipeline(tmp_path / "out", ForeignPipeline("memory", "Pipe", {"tokenizer": part}))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine"]
