"""What a VAE's likelihood is measured by: its bound, from one draw of z or importance-weighted over several."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from carrara.evaluate.likelihood import Figure, Row, Subject
from carrara.rng import Rng
from carrara.types import Condition
from carrara.vae import VaeGenerator, vae_bound

__all__ = ["VaeMeasure", "vae_facts"]


@dataclass(frozen=True)
class VaeMeasure:
    """The bound from `terms` draws of z a picture: the ELBO of one, importance-weighted of more (Burda et al. 2016)."""

    half: ClassVar[bool] = True
    terms: int = 1

    @property
    def settings(self) -> dict[str, Any]:
        """What decides a row, for the ledger."""
        return {"measure": "vae-bound", "terms": self.terms}

    @property
    def calls(self) -> int:
        """Network calls a picture."""
        return self.terms

    def rows(
        self,
        generator: VaeGenerator,
        x: Tensor,
        condition: Condition,
        rng: Rng,
        levels: int,
        called: Callable[[], None],
    ) -> list[Row]:
        """One row a picture of x: bits a dimension, and in nats the reconstruction and the KL of each level."""
        found = vae_bound(generator, x, condition, rng, terms=self.terms, called=called)
        columns = (found.bits_per_dim, found.reconstruction, found.kl)
        names = ("bits_per_dim", "reconstruction", "kl")
        return [dict(zip(names, row, strict=True)) for row in zip(*(c.double().tolist() for c in columns), strict=True)]


def vae_facts(measure: VaeMeasure, rows: Sequence[Row], subject: Subject) -> dict[str, Any]:
    """Mean and standard error in bits a dimension, the ELBO with its parts, the bits of a picture in each level."""
    nats = math.log(2) * math.prod(subject.generator.space.shape)
    total = Figure.of([row["bits_per_dim"] for row in rows])
    levels = [math.fsum(column) / len(rows) for column in zip(*(row["kl"] for row in rows), strict=True)]
    parts = {f"level {i}": kl / nats for i, kl in enumerate(levels, 1)}
    parts["reconstruction"] = math.fsum(row["reconstruction"] for row in rows) / len(rows) / nats
    return {
        "bits_per_dim": total.mean,
        "std_error": total.std_error,
        "pictures": len(rows),
        "kind": "vae",
        "terms": measure.terms,
        "elbo": math.fsum(parts.values()),
        "parts": parts,
        "bits_of_levels": [kl / math.log(2) for kl in levels],
    }
