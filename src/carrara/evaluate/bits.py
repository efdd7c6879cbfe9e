"""Bits a dimension as one figure among others: the bound that suits a model's family, on held-out pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from carrara.evaluate.likelihood import Figure, Ledger, Measure, Subject, Tick, check_model
from carrara.evaluate.likelihood_diffusion import BoundMeasure
from carrara.evaluate.likelihood_vae import VaeMeasure
from carrara.evaluate.model import Model
from carrara.evaluate.yardstick import Yardstick
from carrara.vae import VaeGenerator

__all__ = ["bits_per_dim", "usual_bound"]


def usual_bound(generator: Any) -> Measure:
    """What a likelihood is measured by where nothing else is asked for."""
    return VaeMeasure() if isinstance(generator, VaeGenerator) else BoundMeasure.usual(generator)


def bits_per_dim(model: Model, yard: Yardstick, folder: Path, tick: Tick) -> Figure:
    """The mean over `yard.bits` of the held-out pictures, or of all where none is; finished ones are kept in `folder`.

    Raises RecipeError, with the reason, for a model that has no likelihood of pictures.
    """
    check_model(model.system)
    training = model.facts.get("training")
    half = isinstance(training, dict) and training.get("precision") == "bfloat16"
    subject = Subject(model.system, yard.pictures, precision="bfloat16" if half else "float32")
    measure = usual_bound(subject.generator)
    ledger = Ledger(folder / "bits.jsonl", {**subject.identity, **measure.settings, "seed": yard.seed})
    rows = yard.pictures.heldout.tolist() or range(len(yard.pictures))
    chosen = subject.chosen(rows, yard.bits, yard.seed)
    found = list(subject.measure(measure, chosen, ledger, seed=yard.seed, batch=yard.batch, tick=tick))
    return Figure.of([row["bits_per_dim"] for row in found])
