"""What the demo measures of its system: pictures, and figures that can be checked.

Everything is keyed by the seed. Networks run in the precision that training chose.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from carrara.data import DataSettings, open_pictures
from carrara.data.pictures import Pictures
from carrara.decoder import psnr
from carrara.diffusion.draw import Uniform
from carrara.diffusion.loss import DenoisingLoss
from carrara.evaluate.fidelity import Nearest, fidelity, nearest, retrieval
from carrara.rng import Rng, permutation
from carrara.run import finish
from carrara.store import load
from carrara.system import Frame, System
from carrara.types import Step

__all__ = ["Levels", "Measured", "Trace", "measure"]

_LEVELS = 8
_SHOWN = 64  # prompts of the sample grid
_ASKED = 100  # prompts of the fidelity


class Trace(NamedTuple):
    """One sampling at some of its times: x_t and E[x | x_t], both decoded, and what came of it."""

    prompt: str
    times: tuple[float, ...]
    noisy: Tensor  # (K, C, H, W)
    means: Tensor  # (K, C, H, W)


class Levels(NamedTuple):
    """The loss at fixed times with fixed noise, on training and on held-out pictures."""

    times: tuple[float, ...]
    train: tuple[float, ...]
    heldout: tuple[float, ...]


class Measured(NamedTuple):
    """Everything that the report shows."""

    figures: dict[str, float]
    prompts: list[str]  # of the sample grid
    heldout: list[bool]  # which of them were never trained on
    samples: Tensor
    asked: list[str]  # of the fidelity, with what was made and which training picture was nearest
    made: Tensor
    nearest: Tensor
    right: list[bool]
    distances: list[float]
    forward: tuple[tuple[float, ...], Tensor]
    traces: list[Trace]
    levels: Levels
    originals: Tensor
    reconstructions: Tensor


def measure(out: Path, *, seed: int, batch: int = 50) -> Measured:
    """Samples the system of a demo folder and measures its parts."""
    system = load(out / "system")
    pictures = open_pictures(DataSettings(folder=str(out / "data"), size=64, channels=3, fit="pad"), out / "cache")
    low = _precision(out)
    train, held = pictures.train, pictures.heldout
    figures: dict[str, float] = {}
    with torch.no_grad(), low():
        originals = pictures.tensor(held)
        reconstructions = _decode(system, system.decoder.encode(originals))
        figures["decoder_psnr_heldout_db"] = psnr(originals, reconstructions).mean().item()
        some = pictures.tensor(train[: len(held) * 4])
        figures["decoder_psnr_train_db"] = psnr(some, _decode(system, system.decoder.encode(some))).mean().item()
        references = pictures.tensor(train)
        z = system.decoder.encode(references)
        seen = system.text.picture_features(references)  # type: ignore[attr-defined]
        figures |= _retrieval(system, pictures, out, seen)

        known = [pictures.captions[i][0] for i in train]
        asked = [known[i] for i in permutation(len(known), seed, "asked")[:_ASKED]]
        began = time.perf_counter()
        made = _sample(system, asked, [seed + i for i in range(len(asked))], batch)
        each = (time.perf_counter() - began) / len(asked)
        captions = [pictures.captions[i] for i in train]
        by_latent = nearest(system.decoder.encode(made), z)
        by_sight = nearest(system.text.picture_features(made), seen)  # type: ignore[attr-defined]
        figures["prompt_fidelity_top1"], right = fidelity(asked, by_latent, captions)
        figures["prompt_fidelity_top1_contrastive"], _ = fidelity(asked, by_sight, captions)
        figures |= _memorisation(by_latent, system.decoder.encode(originals), z)

        prompts, flags = _shown(pictures, asked, seed)
        samples = _sample(system, prompts, [seed + i for i in range(len(prompts))], batch)
        traces = [_trace(system, prompt, seed) for prompt in _remarkable(prompts)]
        forward = _forward(system, references[:1], seed)
        levels = _levels(system, pictures, seed)
    figures["seconds_per_picture"] = each
    return Measured(
        figures,
        prompts,
        flags,
        samples,
        asked,
        made,
        references[by_latent.number],
        right,
        by_latent.distance.tolist(),
        forward,
        traces,
        levels,
        originals,
        reconstructions,
    )


def _precision(out: Path) -> Callable[[], AbstractContextManager[Any]]:
    from carrara.train.recipe import read_recipe

    if read_recipe(out / "generator" / "recipe.toml").train.precision == "bfloat16":
        return lambda: torch.autocast("cpu", torch.bfloat16)
    return nullcontext


def _decode(system: System, z: Tensor) -> Tensor:
    images: Tensor = system.decoder.decode(z)  # type: ignore[attr-defined]
    return images.float()


def _sample(system: System, prompts: Sequence[str], seeds: Sequence[int], batch: int) -> Tensor:
    made = []
    for i in range(0, len(prompts), batch):
        *_, last = system.generate(prompts[i : i + batch], seeds=seeds[i : i + batch])
        made.append(last.images.float())
    return torch.cat(made)


def _retrieval(system: System, pictures: Pictures, out: Path, seen: Tensor) -> dict[str, float]:
    """Names and aliases against all training pictures; an alias that is the name of another picture was read."""
    lines = (out / "data" / "metadata.jsonl").read_text(encoding="utf-8").splitlines()
    aliases = {row["file_name"]: row["aliases"] for row in map(json.loads, lines)}
    places = {pictures.names[i]: place for place, i in enumerate(pictures.train)}
    read = {pictures.captions[i][0] for i in pictures.train}
    asked = [(alias, place) for name, place in places.items() for alias in aliases[name] if alias not in read]
    features: Callable[..., Tensor] = system.text.text_features  # type: ignore[attr-defined]
    words = features([alias for alias, _ in asked])
    names = features([pictures.captions[i][0] for i in pictures.train])
    right = [place for _, place in asked]
    return {
        "text_retrieval_top1": retrieval(words, seen, right, k=1),
        "text_retrieval_top5": retrieval(words, seen, right, k=5),
        "text_retrieval_names_top1": retrieval(names, seen, range(len(names)), k=1),
        "text_retrieval_aliases": len(asked),
    }


def _memorisation(made: Nearest, held: Tensor, z: Tensor) -> dict[str, float]:
    """Distances to the nearest training picture, in the latents' unit scale, and those of held-out pictures."""
    per = z[0].numel() ** 0.5
    return {
        "nearest_training_distance": made.distance.mean().item() / per,
        "nearest_training_distance_heldout": nearest(held, z).distance.mean().item() / per,
    }


def _shown(pictures: Pictures, asked: Sequence[str], seed: int) -> tuple[list[str], list[bool]]:
    """The grid's prompts: names that were trained on, then held-out names and combinations."""
    held = [pictures.captions[i][0] for i in pictures.heldout]
    composed = ["cat with heart eyes", "angry cat", "green apple with smiling face", "blue bird", "sleepy dog"]
    composed = [prompt for prompt in composed if prompt not in asked]
    unseen = [*held[:11], *composed]
    prompts = [*asked[: _SHOWN - len(unseen)], *unseen]
    return prompts, [prompt in unseen for prompt in prompts]


def _remarkable(prompts: Sequence[str]) -> list[str]:
    wanted = [p for p in ("red apple", "cat face", "fox", "lady beetle", "red heart") if p in prompts]
    return [*wanted, *prompts][:2]


def _trace(system: System, prompt: str, seed: int) -> Trace:
    frames: list[Frame] = list(system.generate([prompt], seeds=[seed]))
    steps: list[Step] = [frame.trace for frame in frames if frame.trace is not None]
    chosen = [steps[round(i * (len(steps) - 1) / (_LEVELS - 1))] for i in range(_LEVELS)]
    noisy = _decode(system, torch.cat([step.x for step in chosen]))
    means = _decode(system, torch.cat([step.estimate.mean for step in chosen]))
    return Trace(prompt, tuple(step.t for step in chosen), noisy, means)


def _forward(system: System, image: Tensor, seed: int) -> tuple[tuple[float, ...], Tensor]:
    """One picture noised in one step at eight times: `Process.diffuse` in the generator's space, decoded."""
    z = system.decoder.encode(image)
    noise = Rng.seeds([seed], "forward").normal_like(z)
    process = system.generator.denoiser.process  # type: ignore[attr-defined]
    times = tuple(i / (_LEVELS - 1) for i in range(_LEVELS))
    return times, _decode(system, torch.cat([process.diffuse(z, t, noise) for t in times]))


def _levels(system: System, pictures: Pictures, seed: int) -> Levels:
    generator: Any = system.generator
    objective = DenoisingLoss(Uniform())  # which draws nothing: times are given here
    times = tuple((i + 0.5) / _LEVELS for i in range(_LEVELS))
    curves = []
    for rows in (pictures.train[: 4 * len(pictures.heldout)], pictures.heldout):
        z = system.decoder.encode(pictures.tensor(rows))
        condition = finish(system.text.start([pictures.captions[i][0] for i in rows]))
        noise = Rng.samples(seed, range(len(rows)), "levels").normal_like(z)
        curve = [
            objective.at(generator.denoiser, z, condition, noise, torch.full((len(rows),), t, dtype=torch.float64))
            for t in times
        ]
        curves.append(tuple(row.mean().item() for row in curve))
    return Levels(times, *curves)
