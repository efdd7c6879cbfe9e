"""First recipes for pictures of a given size: which networks, how wide, how fast, and how time is shared.

Each function gives the `task` and `train` tables of one part's recipe, plain and nested as a file says them. These are
starting points for trainings of minutes to hours; every number of them is here and nowhere else.

    text        CLIP's objective on captions
    decoder     a KL autoencoder with latents of an eighth of the side (Rombach et al. 2022)
    generator   flow matching with logit-normal times (Esser et al. 2024): a DiT on latents, a UNet on small pixels
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["PIXELS", "batch_size", "conversions", "decoder_table", "generator_table", "heldout_share", "intervals",
           "shares", "text_table", "usual_size"]  # fmt: skip

Table = dict[str, Any]

PIXELS = 32
"""Pictures of at most this side are generated as they are; larger ones through an autoencoder."""

_SIDES = (32, 48, 64, 128, 256)  # of larger ones
_BATCHES = {16: 256, 32: 128, 64: 64, 128: 32, 256: 16, 512: 8}  # side -> rows a step
_SHARES = {"text": 0.1, "decoder": 0.35, "generator": 0.55}  # of the time
_DEVIATION = 0.5  # standard deviation of pixels in [-1, 1], about
_LATENT, _DOWN = 16, 8  # channels of a latent, and pixels of the picture a side of it


def batch_size(size: int, pictures: int = 1_000_000) -> int:
    """Rows a step for pictures of this side; at most as many as there are pictures."""
    fitting = [rows for side, rows in _BATCHES.items() if side >= size]
    return max(1, min(fitting[0] if fitting else 4, pictures))


def usual_size(shorter: Sequence[int]) -> int:
    """The side that suits pictures whose shorter sides these are: one that nine in ten of them reach.

    Up to 32 pixels it is their own, as a multiple of 4; then 32 or 48; above, the next lower usual one up to 256.
    """
    reach = sorted(shorter)[int(0.1 * (len(shorter) - 1))]
    if reach <= PIXELS:
        return max(8, -(-reach // 4) * 4)
    return max(side for side in _SIDES if side <= reach)


def conversions(kinds: Mapping[tuple[int, int], int]) -> dict[str, int]:
    """The data settings that make pictures alike, of which so many have these (channels, bits a channel).

    Colour where there is any, since grey loses it, and the depth of most. They are given where all pictures are alike,
    too: of a large folder only some are looked at. Other numbers of channels have no conversion.
    """
    depths = {bits: sum(n for (_, b), n in kinds.items() if b == bits) for _, bits in kinds}
    found = {"channels": 3} if {channels for channels, _ in kinds} in ({3}, {1, 3}) else {}
    return {**found, "depth": max(depths, key=lambda bits: (depths[bits], -bits))}


def heldout_share(pictures: int) -> float:
    """The share that is kept out of training: about ten pictures of a few hundred, 2 % of many."""
    return max(0.02, min(0.1, round(10 / max(1, pictures), 2)))


def shares(*parts: str) -> dict[str, float]:
    """The share of the time that each of the parts gets; together 1."""
    total = sum(_SHARES[part] for part in parts)
    return {part: _SHARES[part] / total for part in parts}


def intervals(steps: int, *, pictures: bool = True) -> Table:
    """How often a run of about so many steps looks at itself: figures ten times, pictures four times."""
    sample = _round(steps // 4) if pictures else 0
    return {"validate_every": _round(steps // 10), "sample_every": sample, "save_every": 0, "save_seconds": 120.0}


def _round(number: int) -> int:
    """Down to two digits, at least 1."""
    digits = 10 ** max(0, len(str(number)) - 2)
    return max(1, number // digits * digits)


def text_table(
    *, size: int, channels: int, pictures: int = 1_000_000, captions: int = 1_000, words: int = 8
) -> dict[str, Table]:
    """A text encoder for so many different captions, of which few have more than `words` words."""
    fold = _divides(size, 16)
    widths = (64, 128, 256) if fold >= 4 else (64, 128)
    down = 2 ** (len(widths) - 1)
    return {
        "task": {
            "kind": "contrastive",
            "vocabulary": 1024 if captions <= 5_000 else 4096 if captions <= 100_000 else 16384,
            "length": max(16, min(96, -(-2 * (words + 2) // 8) * 8)),
            "network": {"kind": "transformer", "width": 256, "depth": 4, "heads": 4},
            "picture": {
                "kind": "convolutional",
                "patch": max(1, fold // down),
                "widths": list(widths),
                "blocks": [1] * len(widths),
            },
            "augment": {"shift": 0.06, "scale": 0.15},
        },
        "train": {
            "batch": max(1, min(64, 4 * batch_size(size), pictures)),
            "learning_rate": 1e-3,
            "betas": [0.9, 0.98],
            "decay": "cosine",
            "warmup": 50,
            "weight_decay": 0.01,
            "ema": 0.99,
        },
    }


def decoder_table(*, size: int, channels: int, pictures: int = 1_000_000) -> dict[str, Table]:
    """An autoencoder for pictures of this side, which must be a multiple of 8."""
    return {
        "task": {
            "kind": "autoencoder",
            "autoencoder": {
                "kind": "kl",
                "latent": _LATENT,
                "down": _DOWN,
            },
            "loss": {"l1": 1.0, "l2": 1.0, "edges": 1.0, "kl": 1e-6},
        },
        "train": {
            "batch": min(32, batch_size(size, pictures)),
            "learning_rate": 2e-3,
            "betas": [0.9, 0.99],
            "decay": "cosine",
            "warmup": 60,
            "ema": 0.99,
        },
    }


def generator_table(
    *, size: int, channels: int, text: str | Table, decoder: str, pictures: int = 1_000_000
) -> dict[str, Table]:
    """A generator; `text` is as a recipe has it: a component folder, "labels", ...; `decoder` one or "pixels"."""
    pixels = decoder == "pixels"
    guidance: Table = {"kind": "plain"} if text == "unconditional" else {"kind": "classifier-free", "scale": 3.0}
    return {
        "task": {
            "kind": "diffusion",
            "text": text,
            "decoder": decoder,
            "drop": 0.0 if text == "unconditional" else 0.1,
            "part": 0.0 if text in ("unconditional", "labels") else 0.5,
            "network": _unet(size) if pixels else _dit(size),
            "schedule": {"kind": "linear"},
            # the straight path's velocity with what x_t says of it taken off: unit variance in and out at every t
            "parameterization": {"kind": "karras", "sigma_data": _DEVIATION if pixels else 1.0},
            # times towards noise, where the prompt decides
            "objective": {"kind": "denoising", "draw": {"kind": "logit-normal", "mean": 0.6}},
            "settings": {
                "sampler": {"kind": "ddim"},
                "times": {"kind": "uniform", "steps": 20, "shift": 1.0},
                "guidance": {"kind": "clip", "inner": guidance} if pixels else guidance,
            },
        },
        "train": {
            "batch": batch_size(size, pictures) if pixels else max(1, min(128, 4 * batch_size(size), pictures)),
            "learning_rate": 1e-3,
            "betas": [0.9, 0.95],
            "decay": "cosine",
            "warmup": 100,
            "ema": 0.999,
        },
    }


def _dit(size: int) -> Table:
    latent = size // _DOWN
    return {
        "kind": "dit",
        "patch": 2 if latent % 2 == 0 else 1,
        "width": 384,
        "depth": 6,
        "heads": 6,
        "activation": "silu",
    }


def _unet(size: int) -> Table:
    """Halved until a side is at most 8, with attention there."""
    multipliers = [1, 2, 2][: 1 + min(2, max(0, (size - 1) // 8).bit_length(), _divides(size, 4).bit_length() - 1)]
    return {
        "kind": "unet",
        "channels": 64,
        "multipliers": multipliers,
        "blocks": 2,
        "attention": [len(multipliers) - 1],
        "heads": 4,
    }


def _divides(size: int, most: int) -> int:
    """The largest power of two up to `most` that divides the side."""
    return min(most, size & -size)
