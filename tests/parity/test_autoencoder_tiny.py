"""TAESD computes what diffusers' AutoencoderTiny does with the same weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from carrara.errors import RecipeError
from carrara.store.diffusers import autoencoder_tiny
from parity.models import account, built, close, normal, twin

diffusers = pytest.importorskip("diffusers")

SMALL: dict[str, Any] = {"encoder_block_out_channels": [8, 8, 8], "decoder_block_out_channels": [8, 8, 8],
                         "num_encoder_blocks": [1, 2, 1], "num_decoder_blocks": [2, 1, 1]}  # fmt: skip


@pytest.mark.parametrize("more", [{}, {"latent_channels": 16}, {"in_channels": 1, "out_channels": 1}])
def test_computes_what_diffusers_does(more: dict[str, Any]) -> None:
    theirs = diffusers.AutoencoderTiny(**SMALL, **more)
    ours = twin(autoencoder_tiny, theirs, role="autoencoder")
    x, z = normal(2, ours.channels, 16, 24), 3.0 * normal(2, ours.latent, 4, 6)
    with torch.no_grad():
        close(ours.encode(x)[0], theirs.encode(x).latents)
        close(ours.decode(z), theirs.decode(z).sample)


def test_full_size_has_every_tensor() -> None:
    with torch.device("meta"):
        theirs, ours = diffusers.AutoencoderTiny(), built(autoencoder_tiny.network({}), "autoencoder")
    names = autoencoder_tiny.table(autoencoder_tiny.network({}))
    found = {names[name]: tensor.shape for name, tensor in ours.state_dict().items()}
    assert found == {name: tensor.shape for name, tensor in theirs.state_dict().items()}


def test_the_scale_of_the_latents() -> None:
    mean, std = autoencoder_tiny.scale({**SMALL, "scaling_factor": 0.25, "shift_factor": 0.5})
    assert (mean, std) == ((0.5,) * 4, (4.0,) * 4)


def test_every_key_is_known_or_refused() -> None:
    account(
        autoencoder_tiny,
        diffusers.AutoencoderTiny,
        {"out_channels": 1, "encoder_block_out_channels": [64, 32, 64, 64], "decoder_block_out_channels": [32] * 4,
         "act_fn": "silu", "upsample_fn": "bilinear", "upsampling_scaling_factor": 4, "num_encoder_blocks": [1, 3],
         "num_decoder_blocks": [1], "scaling_factor": -1.0, "latent_channels": 4.0, "shift_factor": None},
    )  # fmt: skip


@pytest.mark.parametrize("change", [{"pooled": True}, {"kind": "kl"}])
def test_what_the_class_cannot_say_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match="AutoencoderTiny"):
        autoencoder_tiny.config({**autoencoder_tiny.network({}), **change})
