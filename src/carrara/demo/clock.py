"""How long the demo has taken, stage by stage and over all its interruptions, and whether it is finished.

The seconds are kept in the demo's folder and noted again every few seconds while it works, so that even a `kill -9`
loses no more than these.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from carrara.errors import RecipeError, StorageError
from carrara.store.atomic import storage_errors, write_json

__all__ = ["Clock"]

_EVERY = 2.0  # seconds between notes
_STAGES = ("start", "data", "text", "decoder", "generator", "report")  # in the order in which they are told


class Clock:
    """Counts the seconds of one stage after the other; `began` (time.monotonic) is when the first one, `start`, did.

    `finished` tells a finished demo by what it was made of; "" is one that is not finished.
    Raises StorageError for a damaged file, RecipeError for one of a demo with another budget or seed.
    """

    def __init__(self, path: Path, minutes: float, seed: int, *, began: float) -> None:
        self.path, self.minutes, self.seed, self.total = path, minutes, seed, 60 * minutes
        self.stages: dict[str, float] = {}
        self.finished = ""
        self._stage, self._since, self._noted = "start", began, 0.0
        self._facts: dict[str, Any] = {"minutes": minutes, "seed": seed}
        if path.is_file():
            self._read()

    def _read(self) -> None:
        try:
            found = json.loads(self.path.read_text(encoding="utf-8"))
            earlier = {name: found[name] for name in self._facts}
            self.stages = {str(name): float(seconds) for name, seconds in found["stages"].items()}
            self.finished = str(found["finished"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise StorageError(f"{self.path} is damaged: {error!r}; choose another --out") from error
        if earlier != self._facts:
            raise RecipeError(
                f"{self.path.parent} holds a demo of {earlier['minutes']:g} minutes with seed {earlier['seed']}; "
                "give the same to go on with it, or another --out"
            )

    @property
    def seconds(self) -> float:
        """Of all stages, with what the present one has taken so far."""
        return sum(self.counted().values())

    def counted(self) -> dict[str, float]:
        """Seconds of each stage in the order of the work, the present one's so far."""
        here = time.monotonic() - self._since
        found = {**self.stages, self._stage: self.stages.get(self._stage, 0.0) + here}
        return {name: found[name] for name in sorted(found, key=_place)}

    def turn(self, stage: str, *, anew: bool = False) -> None:
        """Ends the present stage and begins another; `anew` forgets what that one took before."""
        self.stages = self.counted()
        if anew:
            self.stages.pop(stage, None)
        self._stage, self._since = stage, time.monotonic()
        self.note()

    def tick(self) -> None:
        """Notes the seconds, if that was not done just now."""
        if time.monotonic() - self._noted >= _EVERY:
            self.note()

    def note(self) -> None:
        """Writes what has been counted. Raises StorageError."""
        self._noted = time.monotonic()
        stages = {name: round(seconds, 3) for name, seconds in self.counted().items()}
        with storage_errors(f"{self.path} cannot be written"):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_json(self.path, {**self._facts, "stages": stages, "finished": self.finished})


def _place(stage: str) -> int:
    return _STAGES.index(stage) if stage in _STAGES else len(_STAGES)
