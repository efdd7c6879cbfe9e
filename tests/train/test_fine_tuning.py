"""Fine-tuning of whole models: what learns, what stays, what is kept of before, and the same elsewhere."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from benchmarks.parity import write
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from carrara.config import build
from carrara.errors import RecipeError, StorageError
from carrara.rng import Rng
from carrara.store import assemble, kinds, load, load_component
from carrara.store.diffusers.kept import read_kept
from carrara.store.diffusers.model import export_model, import_model
from carrara.store.diffusers.tensors import exported
from carrara.store.lora import apply_lora, place_of
from carrara.train.checkpoint import checkpoints, read_checkpoint
from carrara.train.recipe import Recipe, Run
from train.resumed import same_bits, train

pytestmark = pytest.mark.filterwarnings("ignore")
LORA = "lora.safetensors"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Stable Diffusion as diffusers writes it, imported, and five pictures without captions."""
    folder = tmp_path_factory.mktemp("tuning")
    write("sd1", folder / "sd1")
    import_model(folder / "sd1", folder / "model", size=32)
    (folder / "pics").mkdir()
    draw = np.random.default_rng(0)
    for number in range(5):
        pixels = draw.integers(0, 256, (8, 8, 3), dtype=np.uint8).repeat(4, 0).repeat(4, 1)
        Image.fromarray(pixels).save(folder / "pics" / f"{number}.png")
    return folder


def run(place: Path, out: Path, kind: str, steps: int = 8, **task: Any) -> Run:
    table = {
        "out": str(out),
        "data": {"folder": str(place / "pics"), "size": 32, "heldout": 0.0},
        "task": {"kind": kind, "model": str(place / "model"), "prompt": "a photo of sks", **task},
        "train": {
            "steps": steps, "batch": 2, "warmup": 1, "learning_rate": 1e-2, "precision": "float32", "validate_every": 0,
            "sample_every": 0, "save_every": 0,
        },
    }  # fmt: skip
    return Run(build(Recipe, table, kinds()), cache=place / "cache")


KINDS = [
    ("low-rank", {"rank": 2, "layers": ["attention", "convolution"]}, LORA),
    ("fine-tuning", {}, "weights.safetensors"),
]


@pytest.mark.parametrize("kind, more, file", KINDS, ids=["low-rank", "fine-tuning"])
def test_a_resumed_run_ends_with_the_same_bits(
    place: Path, tmp_path: Path, kind: str, more: dict[str, Any], file: str
) -> None:
    """With a prior, which is made by the model as it was, not as it is when the run goes on."""
    prior = {"prompts": ["a photo", "a cat"], "pictures": 3}
    _, tables = same_bits(tmp_path, lambda out, **stop: train(run(place, out, kind, prior=prior, **more), **stop), file)
    assert any("prior" in key for table in tables.values() for key in table)


@pytest.mark.parametrize("kind, more, file", KINDS, ids=["low-rank", "fine-tuning"])
def test_it_learns_and_the_rest_stays(place: Path, tmp_path: Path, kind: str, more: dict[str, Any], file: str) -> None:
    it = run(place, tmp_path, kind, steps=60, drop=0.0, **more)
    before = {name: x.clone() for name, x in it.task.generator.denoiser.network.state_dict().items()}  # type: ignore[attr-defined]
    losses: list[float] = []
    train(it, hear=lambda event: losses.append(event["loss"]) if event["event"] == "step" else None)
    assert np.mean(losses[-15:]) < 0.9 * np.mean(losses[:15])
    assert not it.task.text.training and not any(p.requires_grad for p in it.task.text.parameters())  # type: ignore[attr-defined]
    after = it.task.generator.denoiser.network.state_dict()  # type: ignore[attr-defined]
    same = [torch.equal(before[name], after[name]) for name in before]
    assert all(same) if kind == "low-rank" else not any(same)
    assert ((tmp_path / file).is_file() and "fine-tuned" in (tmp_path / "README.md").read_text()) or kind == "low-rank"


def test_the_prior_counts(place: Path, tmp_path: Path) -> None:
    """What is taught beside the new pictures is known better afterwards than by a run without it."""
    prior = {"prompts": ["a photo"], "pictures": 4, "weight": 10.0}
    kept = run(place, tmp_path / "with", "fine-tuning", steps=60, prior=prior)
    task: Any = kept.task
    z, losses = task._prior().clone(), []
    for it in (kept, run(place, tmp_path / "without", "fine-tuning", steps=60)):
        train(it)
        tuned: Any = it.task
        with torch.no_grad():
            told = tuned._encode_text(["a photo"] * len(z))
            draws = [task.objective(tuned.generator.denoiser, z, told, Rng.seeds(range(4), i)) for i in range(16)]
        losses.append(float(torch.stack(draws).mean()))
    assert losses[0] < 0.98 * losses[1]
    assert torch.equal(task._prior(), z)  # made once


def weights(system: Any, place: Path) -> dict[str, Tensor]:
    """The generator's weights under diffusers' names."""
    there = place_of(system, place / "model")
    return exported(there.table, there.network.state_dict())


@pytest.mark.parametrize("strength", [1.0, 0.6])
def test_updates_are_the_same_merged_hooked_and_in_diffusers(place: Path, tmp_path: Path, strength: float) -> None:
    import diffusers

    it = run(place, tmp_path, "low-rank", rank=3, alpha=1.5, layers=["attention", "convolution", "linear"])
    train(it)
    system = load(place / "model")
    plain = weights(system, place)
    said = apply_lora(system, place / "model", tmp_path / LORA, strength=strength)
    assert said["strength"] == strength and "warning" not in said
    merged = weights(system, place)
    assert sum(not torch.equal(plain[name], merged[name]) for name in plain) > 10

    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(place / "sd1")
    pipeline.load_lora_weights(str(tmp_path), weight_name=LORA)
    pipeline.fuse_lora(lora_scale=strength)
    pipeline.unload_lora_weights()
    theirs = pipeline.unet.state_dict()
    assert theirs.keys() == merged.keys()
    for name, tensor in merged.items():
        torch.testing.assert_close(tensor, theirs[name], rtol=0, atol=1e-5)

    if strength == 1.0:  # as a hook, in the task
        it.task.modules.load_state_dict(read_checkpoint(checkpoints(tmp_path)[-1]).tables["ema"], strict=False)
        it.task.modules.eval()
        x, level = torch.randn(2, 4, 8, 8), torch.tensor([10.0, 700.0])
        condition = it.task._encode_text(["a", "b"])  # type: ignore[attr-defined]
        with torch.no_grad():
            hooked = it.task.generator.denoiser.network(x, level, condition)  # type: ignore[attr-defined]
            whole = system.generator.denoiser.network(x, level, condition)  # type: ignore[attr-defined]
        torch.testing.assert_close(hooked, whole, rtol=0, atol=1e-4)


def test_updates_of_text_encoders_are_read_too(place: Path, tmp_path: Path) -> None:
    """Of a file in kohya's layout, for both networks."""
    layers = {
        "lora_te_text_model_encoder_layers_1_self_attn_v_proj": (24, 24),
        "lora_te_text_model_encoder_layers_0_mlp_fc1": (40, 24),
        "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k": (16, 24),
    }
    tensors: dict[str, Tensor] = {}
    for name, (wide, narrow) in layers.items():
        tensors |= {
            f"{name}.lora_down.weight": torch.randn(2, narrow), f"{name}.lora_up.weight": torch.randn(wide, 2),
            f"{name}.alpha": torch.tensor(1.0),
        }  # fmt: skip
    save_file(tensors, tmp_path / "k.safetensors")
    system = load(place / "model")
    before = {name: x.clone() for name, x in system.text.network.state_dict().items()}  # type: ignore[attr-defined]
    apply_lora(system, place / "model", tmp_path / "k.safetensors", strength=2.0)
    after = system.text.network.state_dict()  # type: ignore[attr-defined]
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    assert len(changed) == 2
    (fc1,) = (name for name in changed if before[name].shape == (40, 24))
    delta = 2.0 * 0.5 * tensors["lora_te_text_model_encoder_layers_0_mlp_fc1.lora_up.weight"]
    delta = delta @ tensors["lora_te_text_model_encoder_layers_0_mlp_fc1.lora_down.weight"]
    torch.testing.assert_close(after[fc1] - before[fc1], delta, rtol=1e-4, atol=1e-5)


def test_files_for_other_models_are_refused(place: Path, tmp_path: Path) -> None:
    system = load(place / "model")
    wrong = {
        "unet.conv_in.lora_A.weight": torch.ones(1, 99, 3, 3),
        "unet.conv_in.lora_B.weight": torch.ones(8, 1, 1, 1),
    }
    save_file(wrong, tmp_path / "shape.safetensors")
    save_file({"unet.nothing.lora_A.weight": torch.ones(1, 4), "unet.nothing.lora_B.weight": torch.ones(4, 1)},
              tmp_path / "name.safetensors")  # fmt: skip
    (tmp_path / "broken.safetensors").write_bytes(b"\x10")
    for name, says in (("shape", "another model"), ("name", "no layer here"), ("broken", "broken"), ("none", "none")):
        with pytest.raises(StorageError, match=says):
            apply_lora(system, place / "model", tmp_path / f"{name}.safetensors")


def test_updates_of_another_base_are_told(place: Path, tmp_path: Path) -> None:
    train(run(place, tmp_path / "lora", "low-rank", steps=2))
    train(run(place, tmp_path / "tuned", "fine-tuning", steps=2))
    assemble(tmp_path / "other", generator=tmp_path / "tuned", text=place / "model" / "text",
             decoder=place / "model" / "decoder")  # fmt: skip
    said = apply_lora(load(tmp_path / "other"), tmp_path / "other", tmp_path / "lora" / LORA)
    assert "trained for a generator with other weights" in said["warning"]


def test_what_was_tuned_is_written_back(place: Path, tmp_path: Path) -> None:
    """Assembled with the model's other parts, a tuned generator is exported as the pipeline was."""
    import diffusers

    train(run(place, tmp_path / "tuned", "fine-tuning", steps=2))
    assemble(tmp_path / "whole", generator=tmp_path / "tuned", text=place / "model" / "text",
             decoder=place / "model" / "decoder")  # fmt: skip
    assert read_kept(tmp_path / "whole") is not None
    export_model(tmp_path / "whole", tmp_path / "out")
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(tmp_path / "out")
    generator: Any = load_component(tmp_path / "tuned", "generator")
    mine = exported(
        place_of(load(tmp_path / "whole"), tmp_path / "whole").table, generator.denoiser.network.state_dict()
    )
    assert all(torch.equal(mine[name], x) for name, x in pipeline.unet.state_dict().items())


def test_another_model_is_another_run(place: Path, tmp_path: Path) -> None:
    train(run(place, tmp_path / "run", "low-rank", steps=2))
    moved = tmp_path / "place"
    shutil.copytree(place, moved)
    weights = moved / "model" / "generator" / "weights.safetensors"
    tensors = {name: x * 1.01 if x.is_floating_point() else x for name, x in load_file(weights).items()}
    save_file(tensors, weights)
    described = json.loads((weights.parent / "component.json").read_text())
    described["files"]["weights.safetensors"]["bytes"] = weights.stat().st_size
    (weights.parent / "component.json").write_text(json.dumps(described))
    with pytest.raises(RecipeError, match="another"):
        train(run(moved, tmp_path / "run", "low-rank", steps=4))


@pytest.mark.parametrize(
    "kind, more, says",
    [
        ("low-rank", {"rank": 0}, "rank = 0"),
        ("low-rank", {"alpha": -1.0}, "alpha = -1"),
        ("low-rank", {"layers": ["everything"]}, "layers"),
        ("fine-tuning", {"prior": {"prompts": ["x"], "pictures": 0}}, "pictures = 0"),
        ("fine-tuning", {"prior": {"prompts": ["x"], "weight": 0.0}}, "weight = 0"),
        ("fine-tuning", {"prior": {"prompts": []}}, "prompts is empty"),
        ("fine-tuning", {"model": "nowhere"}, "task.model"),
    ],
)
def test_refused(place: Path, tmp_path: Path, kind: str, more: dict[str, Any], says: str) -> None:
    with pytest.raises((RecipeError, StorageError), match=says):
        run(place, tmp_path / "out", kind, **more)
    assert not (tmp_path / "out").exists()
