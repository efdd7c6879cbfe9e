"""The autoencoders of Stable Diffusion and FLUX compute what diffusers' own class does with the same weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from carrara.decoder import Latents
from carrara.errors import RecipeError
from carrara.store.diffusers import autoencoder_kl
from carrara.store.diffusers.former import Modern
from carrara.store.diffusers.tensors import imported
from parity.models import State, account, built, close, normal, twin, written

diffusers = pytest.importorskip("diffusers")

SMALL: dict[str, Any] = {"block_out_channels": [8, 16, 16], "norm_num_groups": 4, "layers_per_block": 1,
                         "down_block_types": ["DownEncoderBlock2D"] * 3,
                         "up_block_types": ["UpDecoderBlock2D"] * 3}  # fmt: skip
CASES: dict[str, dict[str, Any]] = {
    "sd": SMALL,
    "flux": {**SMALL, "latent_channels": 16, "use_quant_conv": False, "use_post_quant_conv": False,
             "scaling_factor": 0.3611, "shift_factor": 0.1159},
    "no attention": {**SMALL, "mid_block_add_attention": False, "in_channels": 1, "out_channels": 1},
    "narrow groups": {**SMALL, "norm_num_groups": 8, "layers_per_block": 2},
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_computes_what_diffusers_does(case: str) -> None:
    theirs = diffusers.AutoencoderKL(**CASES[case])
    ours = twin(autoencoder_kl, theirs, role="autoencoder")
    x, z = normal(2, ours.channels, 16, 24), normal(2, ours.latent, 4, 6)
    with torch.no_grad():
        moments = theirs.encode(x).latent_dist
        mean, logvar = ours.encode(x)
        close(mean, moments.mean)
        close(logvar, moments.logvar)
        close(ours.decode(z), theirs.decode(z).sample)


def test_each_half_computes_block_by_block_what_its_counterpart_does() -> None:
    theirs = diffusers.AutoencoderKL(**SMALL)
    ours = twin(autoencoder_kl, theirs, role="autoencoder")
    seen: dict[str, list[torch.Tensor]] = {"ours": [], "theirs": []}

    def note(whose: str) -> Any:
        return lambda _module, _given, made: seen[whose].append(made)

    for i in range(2):
        ours.encoder.downsample[i].register_forward_hook(note("ours"))
        theirs.encoder.down_blocks[i].register_forward_hook(note("theirs"))
        ours.decoder.upsample[i].register_forward_hook(note("ours"))
        theirs.decoder.up_blocks[i].register_forward_hook(note("theirs"))
    for mine, other in ((ours.encoder, theirs.encoder), (ours.decoder, theirs.decoder)):
        mine.middle.register_forward_hook(note("ours"))
        other.mid_block.register_forward_hook(note("theirs"))
    x = normal(1, 3, 16, 16)
    with torch.no_grad():
        ours(x), theirs(x)
    assert len(seen["ours"]) == len(seen["theirs"]) == 6
    for found, expected in zip(seen["ours"], seen["theirs"], strict=True):
        close(found, expected)


@pytest.mark.parametrize(
    "factors",
    [
        {"scaling_factor": 0.18215},
        {"scaling_factor": 0.13025},
        {"scaling_factor": 1.5305, "shift_factor": 0.0609},
        {"scaling_factor": 0.5, "latents_mean": [-1.6, 1.2, 0.0, 3.0], "latents_std": [8.4, 5.9, 1.0, 5.0]},
    ],
)
def test_the_factors_are_the_mean_and_deviation_of_the_latents(factors: dict[str, Any]) -> None:
    """What a generator is trained on, (encoding - shift) * scale in the pipelines; and they come back as written."""
    config = {**SMALL, **factors}
    latents = Latents(built(autoencoder_kl.network(config), "autoencoder"), size=16)
    mean, std = (torch.tensor(values)[:, None, None] for values in autoencoder_kl.scale(config))
    latents.load_state_dict({**latents.state_dict(), "mean": mean, "std": std})
    x = normal(1, 3, 16, 16)
    with torch.no_grad():
        encoding = latents.autoencoder.encode(x)[0]
    if "latents_mean" in factors:
        shift, spread = (torch.tensor(factors[key])[:, None, None] for key in ("latents_mean", "latents_std"))
        expected = (encoding - shift) * factors["scaling_factor"] / spread
    else:
        expected = (encoding - factors.get("shift_factor", 0.0)) * factors["scaling_factor"]
    torch.testing.assert_close((encoding - latents.mean) / latents.std, expected)
    again = autoencoder_kl.scaled(latents.mean.flatten().tolist(), latents.std.flatten().tolist())
    if "latents_mean" not in factors:
        assert {key: again[key] for key in factors} == factors
    for found, wanted in zip(autoencoder_kl.scale({**SMALL, **again}), autoencoder_kl.scale(config), strict=True):
        assert found == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize("kernels", [False, True], ids=["matrices", "kernels"])
def test_the_names_of_earlier_versions_are_read(kernels: bool) -> None:
    theirs = diffusers.AutoencoderKL(**SMALL)
    table = autoencoder_kl.network(written(theirs))
    names, model = autoencoder_kl.table(table), built(table, "autoencoder").state_dict()
    today, old = theirs.state_dict(), {}
    for name, tensor in today.items():
        for new, former in (("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn")):
            if f".{new}." in name:
                tensor = tensor[:, :, None, None] if kernels and tensor.ndim == 2 else tensor
                name = name.replace(f".{new}.", f".{former}.")
        old[name] = tensor
    assert set(old) != set(today)
    found, expected = (imported(names, Modern(State(each)), model) for each in (old, today))
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_every_key_is_known_or_refused() -> None:
    account(
        autoencoder_kl,
        diffusers.AutoencoderKL,
        {"out_channels": 1, "down_block_types": ["AttnDownEncoderBlock2D"], "up_block_types": [], "act_fn": "relu",
         "block_out_channels": [48], "norm_num_groups": "32", "scaling_factor": 0, "shift_factor": "0",
         "latents_mean": [0.0], "latents_std": [1.0, 1.0, 1.0, 0.0], "latent_channels": 4.0},
    )  # fmt: skip


@pytest.mark.parametrize("change", [{"kind": "kl"}, {"group_width": 4}])
def test_what_the_class_cannot_say_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match="AutoencoderKL"):
        autoencoder_kl.config({**autoencoder_kl.network(SMALL), **change})


@pytest.mark.parametrize("more", [{}, {"latent_channels": 16, "use_quant_conv": False, "use_post_quant_conv": False}])
def test_full_size_is_the_same(more: dict[str, Any]) -> None:
    config = {"block_out_channels": [128, 256, 512, 512], "layers_per_block": 2,
              "down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4,
              **more}  # fmt: skip
    with torch.device("meta"):
        theirs, ours = diffusers.AutoencoderKL(**config), built(autoencoder_kl.network(config), "autoencoder")
    counts = [sum(parameter.numel() for parameter in each.parameters()) for each in (ours, theirs)]
    assert counts[0] == counts[1]


def test_a_picture_that_does_not_divide_is_refused() -> None:
    ours = built(autoencoder_kl.network(SMALL), "autoencoder")
    with pytest.raises(ValueError, match="multiples of 4"):
        ours.encode(normal(1, 3, 18, 16))
