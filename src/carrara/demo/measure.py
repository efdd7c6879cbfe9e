"""What the demo measures of its system: pictures, and figures that can be checked.

Everything is keyed by the seed. Networks run on the device and in the precision of the generator's training.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from carrara.data import open_pictures
from carrara.data.pictures import Pictures
from carrara.decoder import psnr
from carrara.diffusion.draw import Uniform
from carrara.diffusion.loss import DenoisingLoss
from carrara.evaluate.fidelity import Nearest, fidelity, nearest, retrieval
from carrara.rng import Rng, permutation
from carrara.run import finish
from carrara.store import load
from carrara.system import Frame, System
from carrara.train.precision import autocast, candidates
from carrara.train.recipe import choose_device, read_recipe
from carrara.types import Step

__all__ = ["Fidelity", "Levels", "Measured", "Noised", "Reconstructions", "Shown", "Trace", "measure"]

_LEVELS = 8
_SHOWN = 64  # prompts of the sample grid
_ASKED = 100  # prompts of the fidelity
_BATCH = 50  # pictures that are sampled at a time


class Trace(NamedTuple):
    """One sampling, guided, at some of its times: x_t, and E[x | x_t] under the prompt alone; both decoded."""

    prompt: str
    times: tuple[float, ...]
    noisy: Tensor  # (K, C, H, W)
    means: Tensor  # (K, C, H, W)


class Noised(NamedTuple):
    """A picture's latent noised to several times in one step each, decoded."""

    name: str
    times: tuple[float, ...]
    noisy: Tensor  # (K, C, H, W)


class Levels(NamedTuple):
    """The loss at fixed times with fixed noise, on training and on held-out pictures."""

    times: tuple[float, ...]
    train: tuple[float, ...]
    heldout: tuple[float, ...]


class Shown(NamedTuple):
    """The sample grid, and the processes forward and backward."""

    prompts: list[str]
    heldout: list[bool]  # which of them were never trained on
    samples: Tensor  # (N, C, H, W)
    scale: float  # of their guidance; 1 is none
    traces: list[Trace]
    forward: list[Noised]  # the pictures of the traces' prompts


class Fidelity(NamedTuple):
    """What was asked for and made, and which training picture was the nearest."""

    asked: list[str]
    made: Tensor  # (N, C, H, W)
    nearest: Tensor  # (N, C, H, W)
    right: list[bool]
    distances: list[float]  # from what was made to the nearest training latent, root mean square per dimension
    heldout: list[float]  # the same from the held-out pictures


class Reconstructions(NamedTuple):
    """Held-out pictures, and what the decoder's two halves make of them."""

    names: list[str]
    originals: Tensor  # (N, C, H, W)
    decoded: Tensor  # (N, C, H, W)


class Measured(NamedTuple):
    """Everything that the report shows; pictures are on the CPU."""

    figures: dict[str, float]
    shown: Shown
    fidelity: Fidelity
    reconstructions: Reconstructions
    levels: Levels


@dataclass(frozen=True)
class _Trained:
    """A finished demo's system and pictures, on one device; pictures are given and returned on the CPU."""

    system: System
    pictures: Pictures
    device: torch.device
    seed: int

    def captions(self, rows: Iterable[int]) -> list[str]:
        """The names of pictures."""
        return [self.pictures.captions[i][0] for i in rows]

    def encode(self, images: Tensor) -> Tensor:
        """Their z."""
        return self.system.decoder.encode(images.to(self.device))

    def decode(self, z: Tensor) -> Tensor:
        """The pictures of z."""
        images: Tensor = self.system.decoder.decode(z)  # type: ignore[attr-defined]
        return images.float().cpu()

    def seen(self, images: Tensor) -> Tensor:
        """What the contrastive picture encoder sees."""
        features: Tensor = self.system.text.picture_features(images.to(self.device))  # type: ignore[attr-defined]
        return features

    def read(self, prompts: Sequence[str]) -> Tensor:
        """What the contrastive text encoder reads."""
        features: Tensor = self.system.text.text_features(prompts)  # type: ignore[attr-defined]
        return features

    def sample(self, prompts: Sequence[str]) -> Tensor:
        """A picture a prompt, picture i from seed + i."""
        made = []
        for i in range(0, len(prompts), _BATCH):
            some = prompts[i : i + _BATCH]
            *_, last = self.system.generate(some, seeds=[self.seed + i + k for k in range(len(some))])
            made.append(last.images.float().cpu())
        return torch.cat(made)


def measure(out: Path, *, seed: int) -> Measured:
    """Samples the system of a demo folder and measures its parts."""
    recipe = read_recipe(out / "generator" / "recipe.toml")
    device = choose_device(recipe.device)
    system = load(out / "system")
    for part in (system.text, system.generator, system.decoder):
        part.to(device)  # type: ignore[union-attr]
    trained = _Trained(system, open_pictures(recipe.data, out / "cache"), device, seed)
    with torch.no_grad(), autocast(device, candidates(device, recipe.train.precision)[0]):
        references = trained.pictures.tensor(trained.pictures.train)
        z, seen = trained.encode(references), trained.seen(references)
        reconstructions, figures = _reconstructions(trained)
        figures |= _retrieval(trained, Path(recipe.data.folder), seen)
        compared, more = _fidelity(trained, references, z, seen)
        apart = _spread(nearest(trained.encode(reconstructions.originals), z), z)
        compared = compared._replace(heldout=apart.tolist())
        figures |= more | {"nearest_training_distance_heldout": apart.mean().item()}
        figures |= _composition(trained, reconstructions.originals)
        shown = _shown(trained, compared.asked)
        return Measured(figures, shown, compared, reconstructions, _levels(trained))


def _reconstructions(trained: _Trained) -> tuple[Reconstructions, dict[str, float]]:
    held, train = trained.pictures.heldout, trained.pictures.train
    originals, some = trained.pictures.tensor(held), trained.pictures.tensor(train[: 4 * len(held)])
    decoded = trained.decode(trained.encode(originals))
    return Reconstructions(trained.captions(held), originals, decoded), {
        "decoder_psnr_heldout_db": psnr(originals, decoded).mean().item(),
        "decoder_psnr_train_db": psnr(some, trained.decode(trained.encode(some))).mean().item(),
    }


def _retrieval(trained: _Trained, folder: Path, seen: Tensor) -> dict[str, float]:
    """Names and aliases against all training pictures; an alias that is the name of another picture was read."""
    lines = (folder / "metadata.jsonl").read_text(encoding="utf-8").splitlines()
    aliases = {row["file_name"]: row["aliases"] for row in map(json.loads, lines)}
    pictures = trained.pictures
    places = {pictures.names[i]: place for place, i in enumerate(pictures.train)}
    known = trained.captions(pictures.train)
    read = set(known)
    asked = [(alias, place) for name, place in places.items() for alias in aliases[name] if alias not in read]
    words, names = trained.read([alias for alias, _ in asked]), trained.read(known)
    right = [place for _, place in asked]
    return {
        "text_retrieval_top1": retrieval(words, seen, right, k=1),
        "text_retrieval_top5": retrieval(words, seen, right, k=5),
        "text_retrieval_names_top1": retrieval(names, seen, range(len(names)), k=1),
        "text_retrieval_aliases": len(asked),
    }


def _fidelity(trained: _Trained, references: Tensor, z: Tensor, seen: Tensor) -> tuple[Fidelity, dict[str, float]]:
    """A hundred trained names asked for; `references` (M, C, H, W) are the training pictures, with their features."""
    known = trained.captions(trained.pictures.train)
    asked = [known[i] for i in permutation(len(known), trained.seed, "asked")[:_ASKED]]
    began = time.perf_counter()
    made = trained.sample(asked)
    each = (time.perf_counter() - began) / len(asked)
    captions = [trained.pictures.captions[i] for i in trained.pictures.train]
    by_latent, by_sight = nearest(trained.encode(made), z), nearest(trained.seen(made), seen)
    share, right = fidelity(asked, by_latent, captions)
    nearby, apart = references[by_latent.number.cpu()], _spread(by_latent, z)
    return Fidelity(asked, made, nearby, right, apart.tolist(), []), {
        "prompt_fidelity_top1": share,
        "prompt_fidelity_top1_contrastive": fidelity(asked, by_sight, captions)[0],
        "nearest_training_distance": apart.mean().item(),
        "seconds_per_picture": each,
    }


def _composition(trained: _Trained, originals: Tensor) -> dict[str, float]:
    """Held-out names asked for, twice each: how often the nearest of the held-out pictures is the name's own.

    By the picture encoder, which saw none of them; beside it the share that is right by chance.
    """
    names = trained.captions(trained.pictures.heldout)
    found = nearest(trained.seen(trained.sample(names * 2)), trained.seen(originals))
    share, _ = fidelity(names * 2, found, [[name] for name in names])
    return {"composition_top1": share, "composition_chance": 1 / max(len(names), 1)}


def _spread(found: Nearest, z: Tensor) -> Tensor:
    """The distances (N,) to the nearest of z, root mean square per dimension."""
    return found.distance / z[0].numel() ** 0.5


def _shown(trained: _Trained, asked: Sequence[str]) -> Shown:
    """The grid's prompts: names that were trained on, then held-out names and combinations."""
    held = trained.captions(trained.pictures.heldout)
    composed = ["cat with heart eyes", "angry cat", "green apple with smiling face", "blue bird", "sleepy dog"]
    unseen = [*held[:11], *(prompt for prompt in composed if prompt not in asked)]
    prompts = [*asked[: _SHOWN - len(unseen)], *unseen]
    followed = _remarkable(prompts)
    return Shown(
        prompts,
        [prompt in unseen for prompt in prompts],
        trained.sample(prompts),
        _scale(trained),
        [_trace(trained, prompt) for prompt in followed],
        [_forward(trained, prompt) for prompt in followed],
    )


def _remarkable(prompts: Sequence[str]) -> list[str]:
    wanted = [p for p in ("red apple", "cat face", "fox", "lady beetle", "red heart") if p in prompts]
    return [*wanted, *prompts][:2]


def _scale(trained: _Trained) -> float:
    """Of the guidance with which the system samples unless told otherwise; 1 is none."""
    return float(getattr(trained.system.generator.settings.guidance, "scale", 1.0))  # type: ignore[attr-defined]


def _trace(trained: _Trained, prompt: str) -> Trace:
    """A sampling as `generate` makes it. What guided it is no mean of anything: the means are asked for at its x_t."""
    frames: list[Frame] = list(trained.system.generate([prompt], seeds=[trained.seed]))
    steps: list[Step] = [frame.trace for frame in frames if frame.trace is not None]
    chosen = [steps[round(i * (len(steps) - 1) / (_LEVELS - 1))] for i in range(_LEVELS)]
    noisy = trained.decode(torch.cat([step.x for step in chosen]))
    denoiser = trained.system.generator.denoiser  # type: ignore[attr-defined]
    condition = finish(trained.system.text.start([prompt]))
    means = trained.decode(torch.cat([denoiser(step.x, float(step.t), condition).mean for step in chosen]))
    return Trace(prompt, tuple(float(step.t) for step in chosen), noisy, means)


def _forward(trained: _Trained, name: str) -> Noised:
    """A named picture noised in one step at eight times: `Process.diffuse` in the generator's space, decoded."""
    names = trained.captions(range(len(trained.pictures.captions)))
    z = trained.encode(trained.pictures.tensor([names.index(name)]))
    noise = Rng.seeds([trained.seed], "forward").normal_like(z)
    process = trained.system.generator.denoiser.process  # type: ignore[attr-defined]
    times = tuple(i / (_LEVELS - 1) for i in range(_LEVELS))
    return Noised(name, times, trained.decode(torch.cat([process.diffuse(z, t, noise) for t in times])))


def _levels(trained: _Trained) -> Levels:
    generator: Any = trained.system.generator
    objective = DenoisingLoss(Uniform())  # which draws nothing: times are given here
    times = tuple((i + 0.5) / _LEVELS for i in range(_LEVELS))
    curves = []
    for rows in (trained.pictures.train[: 4 * len(trained.pictures.heldout)], trained.pictures.heldout):
        z = trained.encode(trained.pictures.tensor(rows))
        condition = finish(trained.system.text.start(trained.captions(rows)))
        noise = Rng.samples(trained.seed, range(len(rows)), "levels").normal_like(z)
        at = torch.ones(len(rows), dtype=torch.float64, device=trained.device)
        curve = [objective.at(generator.denoiser, z, condition, noise, t * at) for t in times]
        curves.append(tuple(row.mean().item() for row in curve))
    return Levels(times, *curves)
