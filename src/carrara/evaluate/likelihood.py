r"""How likely a model finds pictures, in bits a dimension, whatever its family.

    -log2 P(picture) / dimensions,     a dimension being one channel of one pixel

Lower is better; uniform noise of 8 bits has 8. It is a statement about discrete pictures, so a model whose generator
makes latents has none. Every picture is a row of its own in a file that only grows, keyed by what the picture shows:
measuring goes on after a stop, and with more pictures. A row depends on its picture and the seed alone. What a family
measures is a `Measure`: likelihood_diffusion.py has the bound and the flow, likelihood_vae.py the bound of a VAE.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor

from carrara.autoregressive import AutoregressiveGenerator
from carrara.data import Pictures
from carrara.diffusion.generator import DiffusionGenerator
from carrara.errors import NonFiniteError, RecipeError, StorageError
from carrara.fingerprint import fingerprint
from carrara.rng import Rng, permutation
from carrara.run import finish
from carrara.store.atomic import storage_errors
from carrara.system import System
from carrara.text import Labels, Unconditional
from carrara.types import Condition
from carrara.vae import VaeGenerator

__all__ = ["Figure", "Ledger", "Measure", "Row", "Subject", "Tick", "check_model"]

Row = dict[str, Any]
Tick = Callable[[float], None]
"""Called with how many pictures are done, fractions included."""


class Figure(NamedTuple):
    """A mean over pictures with its standard error, which one picture alone has not."""

    mean: float
    std_error: float | None

    @classmethod
    def of(cls, values: Sequence[float]) -> Figure:
        """Of one value a picture."""
        n = len(values)
        mean = math.fsum(values) / n
        return cls(mean, math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (n - 1) / n) if n > 1 else None)


class Measure(Protocol):
    """A way of measuring the models of a family."""

    half: ClassVar[bool]  # whether the network may run in the low precision that it was trained in

    @property
    def settings(self) -> dict[str, Any]:
        """What decides a row, for the ledger."""
        ...

    @property
    def calls(self) -> int | None:
        """Network calls a picture; None where that is not known before."""
        ...

    def rows(
        self, generator: Any, x: Tensor, condition: Condition, rng: Rng, levels: int, called: Callable[[], None]
    ) -> list[Row]:
        """One row a picture of x (B, C, H, W) on grey levels in [-1, 1]: "bits_per_dim", and its parts in nats.

        `called` is called after each call of the network.
        """
        ...


class Subject:
    """A model and the pictures that it is measured on.

    `told` says whether pictures come with their caption or class; without, the condition is the null one.
    Raises RecipeError for a model that has no likelihood of pictures, or pictures that it is not for.
    """

    def __init__(self, system: System, pictures: Pictures, *, told: bool = True, precision: str = "float32") -> None:
        check_model(system)
        generator: Any = system.generator
        self.system, self.pictures = system, pictures
        self.generator = generator
        self.levels = 2**system.decoder.depth
        self.precision = precision
        self.said = _said(system, pictures) if told else None
        self.device = next(generator.parameters()).device
        shape = (pictures.channels, *pictures.size)
        if shape != tuple(generator.space.shape) or 2**pictures.depth != self.levels:
            raise RecipeError(
                f"the pictures are {shape} with {pictures.depth} bits and the model makes {generator.space.shape} "
                f"with {system.decoder.depth}; prepare them alike"
            )

    @property
    def condition(self) -> str:
        """What the model is told: "caption", "class" or "nothing"."""
        if self.said is None:
            return "nothing"
        return "class" if isinstance(self.system.text, Labels) else "caption"

    @property
    def identity(self) -> dict[str, Any]:
        """What decides every row, whatever is measured."""
        weights = dict(self.generator.state_dict())
        if self.said is not None and isinstance(self.system.text, torch.nn.Module):
            weights |= {f"text.{name}": value for name, value in self.system.text.state_dict().items()}
        return {
            "format_version": 1,
            "model": fingerprint(weights),
            "condition": self.condition,
            "levels": self.levels,
            "precision": self.precision,
        }

    def key(self, index: int) -> str:
        """The name of a picture's row: what it shows and what is said of it."""
        said = self.said[index] if self.said is not None else ""
        return hashlib.sha256(f"{self.pictures.content[index]}\x1f{said}".encode(errors="replace")).hexdigest()[:24]

    def chosen(self, rows: Sequence[int], count: int | None, seed: int) -> list[int]:
        """`count` of the rows, drawn by the seed; a larger count begins with the same ones."""
        order = permutation(len(rows), seed, "likelihood")[:count]
        return [int(rows[i]) for i in order]

    def measure(
        self, measure: Measure, rows: Sequence[int], ledger: Ledger, *, seed: int, batch: int, tick: Tick
    ) -> Iterator[Row]:
        """Measures what the ledger lacks, and yields the rows of all, in order, as they are known."""
        missing = [i for i in rows if self.key(i) not in ledger.rows]
        done = len(rows) - len(missing)
        tick(done)
        for first in range(0, len(missing), batch):
            some = missing[first : first + batch]
            ledger.add(zip(map(self.key, some), self._batch(measure, some, seed, done + first, tick), strict=True))
            tick(done + first + len(some))
        yield from (ledger.rows[self.key(i)] for i in rows)

    def _batch(self, measure: Measure, rows: Sequence[int], seed: int, done: int, tick: Tick) -> list[Row]:
        calls = 0

        def called() -> None:
            nonlocal calls
            calls += 1
            if measure.calls:
                tick(done + len(rows) * calls / measure.calls)

        x = self.pictures.tensor(rows).to(self.device)
        rng = Rng([(seed, "likelihood", self.key(i)) for i in rows])
        half = self.precision == "bfloat16" and measure.half
        with torch.no_grad():
            condition = self._condition(rows)
            with torch.autocast(self.device.type, torch.bfloat16, enabled=half, cache_enabled=False):
                found = measure.rows(self.generator, x, condition, rng, self.levels, called)
        for i, row in zip(rows, found, strict=True):
            if not math.isfinite(row["bits_per_dim"]):
                raise NonFiniteError(
                    f"the likelihood of {self.pictures.names[i]} is not finite; `carrara show MODEL --verify` checks "
                    "the weights"
                )
            row["picture"] = self.pictures.names[i]
        return found

    def _condition(self, rows: Sequence[int]) -> Condition:
        said = [self.said[i] if self.said is not None else "" for i in rows]
        return self.system.untold(finish(self.system.text.start(said)), len(said))


def check_model(system: System) -> None:
    """Raises RecipeError for a model that has no likelihood of pictures."""
    generator = system.generator
    if isinstance(generator, AutoregressiveGenerator):
        raise RecipeError(
            "this generator's likelihood is exact, but one of tokens: what its decoder leaves out of a picture is not "
            "counted, so that there are no bits a dimension. `carrara show MODEL` has its bits a token on held-out "
            "pictures"
        )
    if not isinstance(generator, DiffusionGenerator | VaeGenerator):
        raise RecipeError(
            f"a {type(generator).__name__} has no likelihood that could be measured here; give a diffusion model or a "
            "VAE"
        )
    made, pictures = generator.space, system.decoder.pictures
    if made.kind != "pixels" or made.shape != pictures.shape:
        what = "small pictures" if made.kind == "pixels" else "latents"
        raise RecipeError(
            f"this model's generator makes {what} {made.shape}, which a decoder turns into pictures; bits a dimension "
            f"are a likelihood of discrete pixels, which {what} have not, and no bound through the decoder is known. "
            'Measure a model whose decoder is "pixels"'
        )
    levels = 2**system.decoder.depth
    if isinstance(generator, VaeGenerator) and generator.likelihood.grey_levels != levels:
        raise RecipeError(
            f"this VAE's p(x | z) is a {type(generator.likelihood).__name__}, which gives no probability to each of "
            f"{levels} grey levels, and so no bits a dimension; train one with a discretised likelihood, the default"
        )


def _said(system: System, pictures: Pictures) -> list[str] | None:
    """What is said of each picture, in the words that the model reads; None where that is nothing."""
    text = system.text
    if isinstance(text, Unconditional):
        return None
    if isinstance(text, Labels):
        known = set(text.names)
        return [label if label in known else "" for label in pictures.labels] if pictures.classes else None
    return [said[0] if said else "" for said in pictures.captions] if any(pictures.captions) else None


class Ledger:
    """Finished rows in a file of JSON lines that only grows; its first line says what they are rows of.

    Raises RecipeError for a file of other settings, StorageError where it cannot be read or written.
    """

    def __init__(self, path: Path, header: Mapping[str, Any]) -> None:
        self.path = path
        self.rows: dict[str, Row] = {}
        with storage_errors(f"cannot read {path}"):
            path.parent.mkdir(parents=True, exist_ok=True)
            lines = path.read_bytes().split(b"\n") if path.exists() else []
        whole, cut = lines[:-1], lines[-1] if lines else b""
        if not whole:
            self._write(json.dumps(dict(header)).encode() + b"\n", "wb")
            return
        self._refuse_others(whole[0], header)
        for number, line in enumerate(whole[1:], 2):
            row = _parsed(path, number, line)
            self.rows[row.pop("key")] = row
        if cut:  # the machine stopped within a line
            self._write(b"\n".join(whole) + b"\n", "wb")

    def _refuse_others(self, line: bytes, header: Mapping[str, Any]) -> None:
        found = _parsed(self.path, 1, line)
        if different := sorted(name for name in {*found, *header} if found.get(name) != header.get(name)):
            name = different[0]
            raise RecipeError(
                f"{self.path} holds rows of another {name.replace('_', ' ')} ({found.get(name)!r} instead of "
                f"{header.get(name)!r}); choose another --out, or delete it"
            )

    def add(self, rows: Any) -> None:
        """Appends (key, row) pairs, durably."""
        new = dict(rows)
        self._write(b"".join(json.dumps({"key": key, **row}).encode() + b"\n" for key, row in new.items()), "ab")
        self.rows |= new

    def _write(self, data: bytes, mode: str) -> None:
        with storage_errors(f"cannot write {self.path}"), open(self.path, mode) as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())


def _parsed(path: Path, number: int, line: bytes) -> Row:
    try:
        row = json.loads(line)
        if not isinstance(row, dict) or (number > 1 and not {"key", "bits_per_dim"} <= set(row)):
            raise ValueError("not a row")
    except ValueError as error:
        raise StorageError(f"line {number} of {path} is damaged ({error}); delete the file to begin anew") from error
    return row
