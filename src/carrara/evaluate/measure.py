"""One measure for every model, whatever its family: the figures of `carrara evaluate` and `carrara compare`.

Pictures are asked for and seen as the yardstick says (yardstick.py). What cannot be measured is left out with the
reason; what stands on few pictures is marked.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from carrara.errors import RecipeError
from carrara.evaluate.bits import bits_per_dim
from carrara.evaluate.distances import Interval, cmmd, frechet_of, kid, kid_interval
from carrara.evaluate.extractor import Extractor, pixel_extractor
from carrara.evaluate.features import features_of
from carrara.evaluate.fidelity import fidelity, nearest, retrieval
from carrara.evaluate.figures import Figures
from carrara.evaluate.memorisation import Memorisation, memorisation
from carrara.evaluate.model import Model
from carrara.evaluate.neighbours import neighbourhood
from carrara.evaluate.resize import levels, resize
from carrara.evaluate.samples import Making, Samples, Series
from carrara.evaluate.scores import class_score, diversity, fit
from carrara.evaluate.yardstick import Yardstick, settings_of

__all__ = ["Measured", "Pair", "Say", "measure"]

Say = Callable[[str, int], Callable[[float], None]]
"""Told what begins and how many pictures it is of; gives who is told how many are done."""

_FEW = 50  # below which a figure is marked
_SHOWN, _WORST = 32, 12  # samples, and suspected copies, on the page


class Pair(NamedTuple):
    """A sample beside the training picture that it is nearest to; (3, H, W) in [-1, 1] each."""

    sample: Tensor
    training: Tensor
    name: str
    distance: float


class Measured(NamedTuple):
    """A model's figures as plain facts, and the pictures that are shown with them."""

    facts: dict[str, Any]
    samples: Tensor  # (N, 3, H, W) in [-1, 1]
    prompts: list[str]
    right: list[bool] | None  # whether each of them shows its prompt, by the extractor
    varied: Tensor  # (M, 3, H, W): prompts that were asked for several times
    varied_prompts: list[str]
    pairs: list[Pair]
    distances: tuple[list[float], list[float]]  # of samples and of held-out pictures to the nearest training picture


def measure(model: Model, yard: Yardstick, folder: Path, *, making: Making, say: Say) -> Measured:
    """Measures a model whose samples are made, or are made now, in `folder`."""
    samples = yard.samples(model, folder, making)
    for series in yard.series(model):
        samples.make(series, tick=say("samples", len(series.asked)))
    return _Work(model, yard, samples, folder, say).measured()


class _Work:
    """The measuring of one model."""

    def __init__(self, model: Model, yard: Yardstick, samples: Samples, folder: Path, say: Say) -> None:
        self.model, self.yard, self.samples, self.folder, self.say = model, yard, samples, folder, say
        every = yard.series(model)
        self.sets = every[: yard.repeats]
        self.varied = every[yard.repeats] if len(every) > yard.repeats else None
        self.slug = yard.extractor.slug
        self.found, self.plain = Figures(), pixel_extractor()
        self.real = self._real(yard.extractor)
        self.made = [self._features(yard.extractor, series) for series in self.sets]

    def measured(self) -> Measured:
        """Everything."""
        self._distances()
        self._neighbourhoods()
        right = self._prompts()
        self._classes()
        self._diversity()
        pairs, distances = self._copies()
        self._bits()
        self._costs()
        first = self.sets[0]
        varied = self.varied or Series("", ())
        return Measured(
            self._facts(),
            self._images(first, range(min(_SHOWN, len(first.asked)))),
            first.prompts[:_SHOWN],
            right[:_SHOWN] if right is not None else None,
            self._images(varied, range(len(varied.asked))),
            varied.prompts,
            pairs,
            distances,
        )

    # What is seen

    def _pixels(self, series: Series) -> Iterator[np.ndarray]:
        """The samples at the size that is measured at, file by file."""
        for block in self.samples.blocks(series):
            yield _at(block.pixels, self.yard.pictures.size)

    def _features(self, extractor: Extractor, series: Series) -> Tensor:
        tick = self.say("samples seen", len(series.asked))
        return features_of(extractor, self._pixels(series), self.folder / "features", tick)

    def _real(self, extractor: Extractor) -> Tensor:
        rows = self.yard.rows
        return self.yard.features(extractor, rows, self.say("reference pictures seen", len(rows)))

    def _images(self, series: Series, rows: Sequence[int]) -> Tensor:
        """Some of the samples, (n, 3, H, W) in [-1, 1]."""
        if not len(rows):
            return torch.zeros(0, 3, *self.yard.pictures.size)
        found: dict[int, Tensor] = {}
        wanted, first = set(rows), 0
        for pixels in self._pixels(series):
            here = [i for i in range(first, first + len(pixels)) if i in wanted]
            if here:
                found |= dict(zip(here, levels(pixels[[i - first for i in here]]) / 127.5 - 1, strict=True))
            first += len(pixels)
        return torch.stack([found[i] for i in rows])

    # The figures

    def _distances(self) -> None:
        dimensions = self.real.shape[1]
        first = kid_interval(self.made[0], self.real, seed=self.yard.seed)
        self.found.add(f"kid_{self.slug}", [first.value, *(kid(made, self.real) for made in self.made[1:])], first)
        self.found.add(f"fd_{self.slug}", [frechet_of(made, self.real) for made in self.made])
        fewest = min(len(self.real), self.yard.count)
        if fewest <= dimensions:
            what = "samples" if fewest == self.yard.count else "reference pictures"
            self.found.marks[f"fd_{self.slug}"] = f"n<d: {fewest} {what}, {dimensions} dimensions"
        if fewest < _FEW:
            self.found.marks[f"kid_{self.slug}"] = f"few: {fewest} pictures"

    def _neighbourhoods(self) -> None:
        found = [neighbourhood(self.real, made) for made in self.made]
        for name in ("precision", "recall", "density", "coverage"):
            self.found.add(f"{name}_{self.slug}", [getattr(one, name) for one in found])

    def _prompts(self) -> list[bool] | None:
        """Fidelity by the pictures themselves and by those who see; whether each sample of the first set is right."""
        self._clipped()
        if not any(one.prompt for one in self.sets[0].asked):
            for name in ("prompt_fidelity_top1", "prompt_fidelity_top1_contrastive", "retrieval_top1", "clip_score"):
                self.found.missing[name] = "the model is told nothing"
            return None
        known, told = self._captions(), _told(self.sets[0])
        real = self._real(self.plain)
        made = [self._features(self.plain, series) for series in self.sets]
        found = [_fidelity(one, real, known, series) for one, series in self._sets(made)]
        self.found.share("prompt_fidelity_top1", [share for share, _ in found], told)
        if self.yard.extractor.name != self.plain.name:
            directions = F.normalize(self.real)
            shares = [_fidelity(F.normalize(m), directions, known, series)[0] for m, series in self._sets(self.made)]
            self.found.share(f"prompt_fidelity_top1_{self.slug}", shares, told)
        if (judge := self.yard.judge) is None:
            why = "needs a contrastive text encoder: the model has none, and no --judge was given"
            self.found.missing |= {"prompt_fidelity_top1_contrastive": why, "retrieval_top1": why}
        else:
            self._judged(judge, known)
        return found[0][1]

    def _sets(self, features: Sequence[Tensor]) -> Iterator[tuple[Tensor, Series]]:
        return zip(features, self.sets, strict=True)

    def _captions(self) -> list[tuple[str, ...]]:
        """All that is said of each reference picture."""
        pictures = self.yard.pictures
        return [(*pictures.captions[i], pictures.labels[i]) for i in self.yard.rows]

    def _judged(self, judge: Extractor, known: Sequence[Sequence[str]]) -> None:
        read = judge.read
        assert read is not None
        real = self._real(judge)
        made = [self._features(judge, series) for series in self.sets]
        shares = [_fidelity(one, real, known, series)[0] for one, series in self._sets(made)]
        self.found.share("prompt_fidelity_top1_contrastive", shares, _told(self.sets[0]))
        for k in (1, 5):
            shares = [_retrieved(read, one, series, k) for one, series in self._sets(made)]
            self.found.share(f"retrieval_top{k}", shares, len(set(self.sets[0].prompts) - {""}))

    def _clipped(self) -> None:
        if (clip := self.yard.clip) is None:
            self.found.missing |= {"clip_score": "no --clip was given", "cmmd": "no --clip was given"}
            return
        read = clip.read
        assert read is not None
        real = self._real(clip)
        made = [self._features(clip, series) for series in self.sets]
        self.found.add("cmmd", [cmmd(one, real) for one in made])
        if any(self.sets[0].prompts):
            self.found.add("clip_score", [_fits(read, one, series) for one, series in self._sets(made)])

    def _classes(self) -> None:
        logits, name = self.yard.extractor.logits, f"class_score_{self.slug}"
        if logits is None:
            self.found.missing[name] = f"{self.yard.extractor.name} knows no classes"
            return
        device = next(self.yard.extractor.network.parameters()).device
        with torch.no_grad():
            classes = [logits(made.to(device)).cpu() for made in self.made]
        self.found.attempt(name, lambda: [class_score(one)[0] for one in classes])

    def _diversity(self) -> None:
        name = f"diversity_{self.slug}"
        if self.varied is not None:
            features = self._features(self.yard.extractor, self.varied)
            prompts = self.varied.prompts
            self.found.attempt(name, lambda: diversity(features, prompts, self.real))
        elif any(self.sets[0].prompts):
            self.found.missing[name] = "--per-prompt 1 asks for each prompt once"
        else:
            self.found.attempt(name, lambda: diversity(self.made[0], self.sets[0].prompts, self.real))

    def _copies(self) -> tuple[list[Pair], tuple[list[float], list[float]]]:
        """By the pictures themselves, since a network may see little in common where an eye sees a copy; then by it."""
        found = self._memorised("memorised_share", self.plain)
        if self.yard.extractor.name != self.plain.name:
            self._memorised(f"memorised_share_{self.slug}", self.yard.extractor)
        if not found:
            return [], ([], [])
        first, each = found[0], math.sqrt(math.prod(self.plain.size or (1, 1)) * 3)  # root mean square of a pixel
        self.found.add("nearest_training_distance", [one.distance.mean().item() / each for one in found])
        self.found.add("nearest_training_distance_heldout", [first.heldout.mean().item() / each])
        if first.duplicates:
            self.found.marks["memorised_share"] = f"{first.duplicates} held-out pictures are training pictures"
        pictures, worst = self.yard.pictures, first.worst(_WORST)
        rows = [int(pictures.train[first.number[i]]) for i in worst]
        beside = levels(pictures.pixels(rows)) / 127.5 - 1
        pairs = [
            Pair(sample, other, pictures.names[row], first.distance[i].item() / each)
            for sample, other, row, i in zip(self._images(self.sets[0], worst), beside, rows, worst, strict=True)
        ]
        return pairs, ((first.distance / each).tolist(), (first.heldout / each).tolist())

    def _memorised(self, name: str, extractor: Extractor) -> list[Memorisation]:
        """Of each set, as an extractor sees it."""
        yard, pictures = self.yard, self.yard.pictures
        if not len(pictures.heldout):
            self.found.missing[name] = "no picture of the folder is held out to compare with"
            return []
        tick = self.say("pictures seen", len(pictures))
        training = yard.features(extractor, pictures.train.tolist(), tick)
        heldout = yard.features(extractor, pictures.heldout.tolist(), tick)
        try:
            found = [memorisation(self._features(extractor, series), training, heldout) for series in self.sets]
        except ValueError as error:
            self.found.missing[name] = str(error)
            return []
        self.found.share(name, [one.share for one in found], yard.count)
        return found

    def _bits(self) -> None:
        yard, pictures = self.yard, self.yard.pictures
        if not yard.bits:
            self.found.missing["bits_per_dim"] = "--bits 0 leaves it out"
            return
        if tuple(pictures.size) != self.model.size:
            self.found.missing["bits_per_dim"] = "the model makes pictures of another size than is measured at"
            return
        expected = min(yard.bits, len(pictures.heldout) or len(pictures))
        try:
            found = bits_per_dim(self.model, yard, self.folder, self.say("likelihoods", expected))
        except RecipeError as error:
            self.found.missing["bits_per_dim"] = str(error)
            return
        around = 1.96 * found.std_error if found.std_error is not None else None
        interval = Interval(found.mean, found.mean - around, found.mean + around) if around is not None else None
        self.found.add("bits_per_dim", [found.mean], interval)
        if not len(pictures.heldout):
            self.found.marks["bits_per_dim"] = "of pictures that were not held out"

    def _costs(self) -> None:
        paces = [block.seconds / len(block.pixels) for series in self.sets for block in self.samples.blocks(series)]
        self.found.add("seconds_per_picture", [float(np.median(paces))])
        self.found.add("parameters", [sum(self.model.parameters.values())])
        if (seconds := self.model.training_seconds) is None:
            self.found.missing["training_seconds"] = "not noted in model.json; assemble the model from its run folders"
        else:
            self.found.add("training_seconds", [seconds])

    def _facts(self) -> dict[str, Any]:
        yard, pictures = self.yard, self.yard.pictures
        return {
            "format_version": 1,
            "name": self.model.name,
            "model": str(self.model.path),
            "model_key": self.model.key,
            "figures": self.found.values,
            "intervals": self.found.intervals,
            "marks": self.found.marks,
            "missing": self.found.missing,
            "samples": {
                "count": yard.count,
                "repeats": yard.repeats,
                "seed": yard.seed,
                "per_prompt": yard.each,
                "batch": self.samples.making.batch,
                "candidates": self.samples.making.candidates,
                "size": list(pictures.size),
                "settings": settings_of(self.model, self.samples.making),
            },
            "reference": {
                "folder": str(pictures.settings.folder),
                "split": yard.reference,
                "pictures": len(yard.rows),
                "fingerprint": pictures.fingerprint,
                "trained_on": self.model.trained_on(pictures),
            },
            "extractor": _extractor(yard.extractor, self.real.shape[1]),
            "judge": _extractor(yard.judge) if yard.judge else None,
            "clip": _extractor(yard.clip) if yard.clip else None,
            "parameters": self.model.parameters,
            "training_seconds": dict(self.model.seconds),
        }


def _extractor(extractor: Extractor, dimensions: int | None = None) -> dict[str, Any]:
    about: dict[str, Any] = {"name": extractor.name, "key": extractor.key}
    about |= {"size": list(extractor.size)} if extractor.size else {}
    return {**about, "dimensions": dimensions} if dimensions else about


def _at(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The pictures at a size; others are scaled and rounded as if they had been stored so."""
    if tuple(pixels.shape[1:3]) == tuple(size):
        return pixels
    whole = resize(levels(pixels), size).round()
    return whole.permute(0, 2, 3, 1).contiguous().numpy().astype(np.uint8)


def _told(series: Series) -> int:
    """How many of its pictures have a prompt."""
    return sum(bool(prompt) for prompt in series.prompts)


def _fidelity(made: Tensor, real: Tensor, known: Sequence[Sequence[str]], series: Series) -> tuple[float, list[bool]]:
    """The share of the samples with a prompt whose nearest real picture carries it, and which samples those are."""
    _, right = fidelity(series.prompts, nearest(made, real), known)
    right = [one and bool(prompt) for one, prompt in zip(right, series.prompts, strict=True)]
    return sum(right) / _told(series), right


def _fits(read: Callable[[Sequence[str]], Tensor], made: Tensor, series: Series) -> float:
    """How well the samples with a prompt fit it."""
    rows = [i for i, prompt in enumerate(series.prompts) if prompt]
    return fit(made[rows], read([series.prompts[i] for i in rows]))


def _retrieved(read: Callable[[Sequence[str]], Tensor], made: Tensor, series: Series, k: int) -> float:
    """Of the different prompts, the share whose own sample is among the k of all that fit best."""
    first: dict[str, int] = {}
    for i, prompt in enumerate(series.prompts):
        if prompt:
            first.setdefault(prompt, i)
    return retrieval(read(list(first)), made[list(first.values())], range(len(first)), k=k)
