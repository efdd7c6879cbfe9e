"""What a picture says of how it was made, for `carrara sample --from picture.png`: our own record, or A1111's text."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from carrara.cli.voice import Voice
from carrara.errors import DataError, RecipeError

if TYPE_CHECKING:
    from carrara.system import System

__all__ = ["FORMAT_VERSION", "PARAMETERS", "RECORD", "Said", "a1111_sampler", "read_said"]

RECORD, PARAMETERS = "carrara", "parameters"  # the names of the texts
FORMAT_VERSION = 1
_DEEPEST, _MOST_STEPS, _MOST_SIDE, _MOST_CANDIDATES = 32, 10_000, 16_384, 1_000
_LONGEST = 1 << 16  # characters of a prompt

_SAMPLERS = {
    "adams": "LMS", "ancestral": "DDPM", "ddim": "DDIM", "dpmpp-2m": "DPM++ 2M", "dpmpp-2m-sde": "DPM++ 2M SDE",
    "dpmpp-3m-sde": "DPM++ 3M SDE", "dpmpp-sde": "DPM++ SDE", "euler-ancestral": "Euler a", "heun": "Heun",
    "lcm": "LCM", "plms": "PLMS", "unipc": "UniPC",
}  # fmt: skip
_OURS = {theirs.lower(): ours for ours, theirs in _SAMPLERS.items()} | {"euler": "ddim"}  # which are one
_TOLD = ("Version", "Model", "Model hash", "VAE", "VAE hash", "RNG")  # of the program, not of the picture
_FILES = {"image": "--image", "mask": "--mask", "inputs": "--input", "from": "--from"}


@dataclasses.dataclass(frozen=True)
class Said:
    """How a picture was made, as its file says.

    options: values of options of `carrara sample` by name. settings: the generator's own as a table, where they are
    known whole. components: fingerprints of the model's parts. skipped: of the layers of CLIP all that its tokens did
    not go through. left: what it says and nothing here takes.
    """

    path: Path
    options: Mapping[str, Any]
    settings: Mapping[str, Any] | None = None
    components: Mapping[str, str] = dataclasses.field(default_factory=dict)
    skipped: int | None = None
    left: Sequence[str] = ()

    def with_given(self, given: Mapping[str, Any], voice: Voice) -> dict[str, Any]:
        """The options with those that were given, which count more; what differs is said."""
        for name, value in given.items():
            if value is not None and name in self.options and value != self.options[name]:
                option = f"--{name.replace('_', '-')}" if name != "prompt" else "the prompt"
                voice.say(f"{option} is {_shown(value)}; {self.path.name} was made with {_shown(self.options[name])}.")
        own = {name: value for name, value in given.items() if value is not None}
        return {**dict.fromkeys(given), **self.options, **own}

    def tell(self, fingerprints: Mapping[str, str], voice: Voice) -> None:
        """Says what of the picture cannot be had again."""
        if self.left:
            voice.warn(f"of {self.path.name} this is not taken: {'; '.join(self.left[:8])}")
        others = [part for part, found in fingerprints.items() if self.components.get(part, found) != found]
        if others:
            voice.warn(f"{self.path.name} was made by another model: its {' and '.join(others)} had other weights")

    def settings_of(self, system: System, voice: Voice) -> Any:
        """The generator's settings as the picture was made; None where they are not known, or are another family's."""
        from carrara.config import build
        from carrara.store import kinds

        own = getattr(system.generator, "settings", None)
        if not self.settings or own is None:
            return None
        try:
            return build(type(own), self.settings, kinds())
        except RecipeError as error:
            first = str(error).splitlines()[0]
            voice.warn(f"the settings of {self.path.name} are not for this model, whose own are taken ({first})")
            return None


def a1111_sampler(kind: str) -> str:
    """What A1111 calls a sampler; our own word for one that it does not have."""
    return _SAMPLERS.get(kind, kind)


def read_said(path: Path) -> Said:
    """What a PNG says of how it was made; our record comes first.

    Raises StorageError for a file that cannot be read, DataError for one that says nothing, or nothing that can be.
    """
    from carrara.data.parameters import read_parameters
    from carrara.data.png_text import read_png_text

    texts = read_png_text(path, (RECORD, PARAMETERS))
    if RECORD in texts:
        return _from_record(path, texts[RECORD])
    if PARAMETERS in texts:
        return _from_parameters(path, read_parameters(texts[PARAMETERS]))
    raise DataError(f"{path} does not say how it was made; it was written with --no-metadata, or by another program")


def _from_record(path: Path, text: str) -> Said:
    try:
        record = json.loads(text, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: its record is no JSON that can be read") from error
    version = record.get("format_version") if isinstance(record, dict) else None
    if type(version) is not int or version < 1:
        raise DataError(f"{path}: its record has no format_version, and is none of Carrara's")
    if version > FORMAT_VERSION:
        raise DataError(f"{path}: its record has format version {version}; this Carrara reads {FORMAT_VERSION}")
    settings = _table(path, record, "settings")
    _check_bounds(path, settings)
    options: dict[str, Any] = {
        "prompt": _text(path, record, "prompt"),
        "negative": _text(path, record, "negative") or None,
        "seed": _whole(path, record, "seed", 2**63 - 1),
        "candidates": _whole(path, settings, "candidates", _MOST_CANDIDATES),
        "size": _size(path, record.get("size")),
    }
    options |= _brief(record)
    files = [f"{option} {settings[name]}" for name, option in _FILES.items() if name in settings]
    left = [f"{said}, which is to be given again" for said in files]
    if "decoding" in settings:
        left.append("how it was decoded (--tile, --augmentation)")
    own = {name: value for name, value in settings.items() if name not in _BESIDE}
    components = {str(k): str(v) for k, v in _table(path, record, "components").items()}
    skip = _whole(path, record, "skipped", 256)
    return Said(path, {k: v for k, v in options.items() if v is not None}, own, components, skip, left)


_BESIDE = ("negative", "size", "candidates", "decoding", "reading", *_FILES)  # in a record, beside the generator's own


def _brief(record: Mapping[str, Any]) -> dict[str, Any]:
    """What is only compared with options: the whole settings say the same."""
    kinds: dict[str, Any] = {"steps": int, "sampler": str, "guidance": (int, float)}
    return {name: record[name] for name, kind in kinds.items() if isinstance(record.get(name), kind)}


def _from_parameters(path: Path, found: Any) -> Said:
    """A1111's pairs; what is no number where one should be is left."""
    options: dict[str, Any] = {"prompt": found.prompt[:_LONGEST], "negative": found.negative[:_LONGEST] or None}
    pairs = dict(found.settings)
    left: list[str] = []
    sampler = re.sub(r" (Karras|Exponential|Automatic)$", "", pairs.get("Sampler", ""))
    if ours := _OURS.get(sampler.lower()):
        options["sampler"] = ours
        scheduled = pairs.pop("Sampler").removeprefix(sampler).strip()
        left += [f"Schedule type: {scheduled}"] if scheduled else []
    readers = {"Steps": ("steps", 1, _MOST_STEPS), "Seed": ("seed", 0, 2**63 - 1), "Clip skip": ("skipped", 1, 256)}
    for name, (option, least, most) in readers.items():
        if re.fullmatch(r"\d{1,19}", pairs.get(name, ""), re.ASCII) and least <= int(pairs[name]) <= most:
            options[option] = int(pairs.pop(name))
    if re.fullmatch(r"\d{1,6}(\.\d{1,6})?", pairs.get("CFG scale", ""), re.ASCII):
        options["guidance"] = float(pairs.pop("CFG scale"))
    if size := re.fullmatch(r"(\d{1,5})x(\d{1,5})", pairs.get("Size", ""), re.ASCII):
        width, height = map(int, size.groups())
        if min(width, height) > 0 and max(width, height) <= _MOST_SIDE:
            options["size"] = (height, width)
            del pairs["Size"]
    skip = options.pop("skipped", None)
    left += [f"{name}: {value[:60]}" for name, value in pairs.items() if name not in _TOLD]
    known = {name: value for name, value in options.items() if value is not None}
    return Said(path, known, skipped=None if skip is None else skip - 1, left=left)


def _no_number(word: str) -> Any:
    raise ValueError(word)


def _text(path: Path, record: Mapping[str, Any], name: str) -> str:
    value = record.get(name, "")
    if not isinstance(value, str) or len(value) > _LONGEST:
        raise DataError(f"{path}: the {name} of its record is no text of at most {_LONGEST:,} characters")
    return value


def _whole(path: Path, record: Mapping[str, Any], name: str, most: int) -> int | None:
    value = record.get(name)
    if value is not None and (type(value) is not int or not 0 <= value <= most):
        raise DataError(f"{path}: the {name} of its record is no whole number from 0 to {most:,}")
    return value


def _table(path: Path, record: Mapping[str, Any], name: str) -> dict[str, Any]:
    value = record.get(name, {})
    if not isinstance(value, dict):
        raise DataError(f"{path}: the {name} of its record are no table")
    return value


def _size(path: Path, value: Any) -> tuple[int, int] | None:
    if value is None:
        return None
    whole = isinstance(value, list) and len(value) == 2 and all(type(n) is int and 0 < n <= _MOST_SIDE for n in value)
    if not whole:
        raise DataError(f"{path}: the size of its record is no height and width up to {_MOST_SIDE:,}")
    return value[0], value[1]


def _check_bounds(path: Path, value: Any, depth: int = 0) -> None:
    """Refuses settings that would take for ever, or are too deep to be any."""
    if depth > _DEEPEST:
        raise DataError(f"{path}: the settings of its record are more than {_DEEPEST} deep")
    if isinstance(value, dict):
        steps = value.get("steps")
        if isinstance(steps, int | float) and not 0 <= steps <= _MOST_STEPS:
            raise DataError(f"{path}: its record has {steps:.6g} steps; more than {_MOST_STEPS:,} are not taken")
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _check_bounds(path, item, depth + 1)


def _shown(value: Any) -> str:
    text = "x".join(map(str, value)) if isinstance(value, tuple) else str(value)
    text = f'"{text}"' if isinstance(value, str) else text
    return text if len(text) < 80 else text[:77] + "..."
