"""Pictures that a command begins from or tells a model of: read as training reads them, scaled and cut to its size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from carrara.cli.voice import Voice
from carrara.errors import DataError, RecipeError, StorageError

if TYPE_CHECKING:
    from torch import Tensor

    from carrara.conditions import Input
    from carrara.system import System

__all__ = ["Begun", "Files", "follow_settings", "input_options", "read_inputs"]

_EDITED = ("image", "mask")


@dataclass(frozen=True)
class Files:
    """What the options name: a picture to begin from and its mask, NAME=FILE of inputs, and of what they come from."""

    image: Path | None = None
    mask: Path | None = None
    given: Sequence[str] = ()
    computed: Sequence[str] = ()


@dataclass(frozen=True)
class Begun:
    """What pictures begin from and are told of: a request's inputs, with one row, and where they were read."""

    inputs: dict[str, Tensor]
    files: dict[str, Any] = field(default_factory=dict)


def read_inputs(system: System, files: Files, size: tuple[int, int] | None, voice: Voice) -> Begun:
    """The image in [-1, 1], the mask in [0, 1], white where it may change, and what else the model is told.

    All are scaled by one factor and cut to the centre, the mask with its image, to `size` or the system's own. Raises
    RecipeError for what cannot be used together and for an input that is missing, DataError for a file that is no
    picture, StorageError for one that cannot be read.
    """
    named, computed = _named("--input", files.given), _named("--from", files.computed)
    for name in _EDITED:
        if name in named and getattr(files, name) is not None:
            raise RecipeError(f"--{name} and --input {name} are the same; give one of them")
    image, mask = (getattr(files, name) or named.pop(name, None) for name in _EDITED)
    begun = _edited(system, image, mask, size)
    for option, paths in (("--input", named), ("--from", computed)):
        for name, path in paths.items():
            one = _input(system, option, name)
            if name in begun.inputs:
                raise RecipeError(f"{name} is given by --input and by --from; give it once")
            read = _computed if option == "--from" else _given
            begun.inputs[name] = read(system, one, path, size)
            begun.files.setdefault("inputs" if option == "--input" else "from", {})[name] = path.name
    _tell_missing(system, begun, voice)
    for known in system.conditions:
        given = [begun.inputs[name] for name in known.needs if name in begun.inputs]
        if len(given) == len(known.needs) and (doubt := known.doubt(*given)):
            voice.warn(f"{known.name}: {doubt}")
    return begun


def follow_settings(settings: Any, follow: Sequence[str], begun: Begun, system: System) -> Any:
    """The settings with a scale for each input that is named; RecipeError for one that has no effect."""
    if not follow:
        return settings
    if not hasattr(settings, "guidance") or not system.conditions:
        raise RecipeError("--follow is for diffusion models that are told more than a prompt, and this one is not")
    scales: dict[str, float] = {}
    for name, text in _pairs("--follow", follow, "X").items():
        one = _input(system, "--follow", name)
        if not set(one.needs) <= set(begun.inputs):
            raise RecipeError(f"--follow {name} has no effect: {name} was not given; add --input {name}=FILE")
        if not one.optional:
            raise RecipeError(
                f"--follow {name}: this model was never without {name} in its training, so that there is nothing to "
                "lead away from; leave it out, or train with a drop above 0"
            )
        try:
            scales[name] = float(text)
        except ValueError:
            raise RecipeError(f'--follow {name}={text}: "{text}" is no number; 1 is off, 2 counts twice') from None
    try:
        return replace(settings, guidance=_following(settings.guidance, scales))
    except ValueError as error:
        raise RecipeError(f"--follow: {error}") from error


def _following(guidance: Any, scales: Mapping[str, float]) -> Any:
    """The guidance that follows inputs, inside of whatever brings an estimate back into range."""
    from carrara.diffusion.follow import Follow
    from carrara.diffusion.guidance import Wrapper

    if isinstance(guidance, Follow):
        return replace(guidance, scales={**guidance.scales, **scales})
    if isinstance(guidance, Wrapper):
        return replace(guidance, inner=_following(guidance.inner, scales))
    return Follow(guidance, scales)


def input_options(one: Input) -> list[str]:
    """The options, and placeholders of their files, by which a person gives an input."""
    pairs = ([f"--{name}", "FILE"] if name in _EDITED else ["--input", f"{name}=FILE"] for name in one.needs)
    return [word for pair in pairs for word in pair]


def _pairs(option: str, words: Sequence[str], value: str) -> dict[str, str]:
    """What NAME=VALUE words say, by name."""
    found: dict[str, str] = {}
    for word in words:
        name, equals, text = word.partition("=")
        if not (name and equals and text):
            raise RecipeError(f'{option} "{word}" is not NAME={value}, such as {option} edges={value}')
        if name in found:
            raise RecipeError(f"{option} {name} is given twice")
        found[name] = text
    return found


def _named(option: str, words: Sequence[str]) -> dict[str, Path]:
    return {name: Path(text) for name, text in _pairs(option, words, "FILE").items()}


def _input(system: System, option: str, name: str) -> Input:
    for one in system.conditions:
        if one.name == name:
            return one
    if not system.conditions:
        raise RecipeError(f"{option} {name}: this model is told nothing but a prompt; leave it out, or add a --control")
    raise RecipeError(f"{option} {name}: this model knows {', '.join(one.name for one in system.conditions)}")


def _tell_missing(system: System, begun: Begun, voice: Voice) -> None:
    """RecipeError for an input that a model cannot go without; a sentence for one that it can."""
    from carrara.conditions import missing

    for one in missing(system.conditions, begun.inputs):
        ways = " ".join(input_options(one))
        computed = f", or --from {one.name}=FILE to compute it from a picture" if one.computable else ""
        raise RecipeError(f"this model needs {one.name}: give it {ways}{computed}")
    without = [one.name for one in system.conditions if not set(one.needs) <= set(begun.inputs)]
    if without:
        voice.say(f"Not told of {', '.join(without)}, which this model can go without.")


# --- what lies in the files -------------------------------------------------------------------------------------------


def _edited(system: System, image: Path | None, mask: Path | None, size: tuple[int, int] | None) -> Begun:
    """The picture to begin from and its mask."""
    if image is None:
        if mask is not None:
            raise RecipeError("--mask says where an image may change; give the image too, with --image FILE")
        return Begun({})
    read = {name for one in system.conditions for name in one.needs}
    for name in ("image", *(("mask",) if mask else ())):
        if name not in (*getattr(system.generator, "inputs", ()), *read):
            raise RecipeError(
                f"--{name} is for models that can begin from a picture, and this generator cannot; leave it out"
            )
    from carrara.data.formats import Unreadable
    from carrara.data.preparation import prepare
    from carrara.data.settings import DataSettings

    channels, height, width = system.decoder.pictures.shape
    wanted = DataSettings(folder="", size=size or (height, width), channels=channels, depth=16, inputs=())
    main = _decoded(image)
    try:
        ready = prepare(main, {"mask": _mask(mask)} if mask else {}, wanted)
    except Unreadable as error:
        raise DataError(f"{mask if mask and 'mask' in str(error) else image} cannot be used: {error}") from error
    files = {"image": image.name, **({"mask": mask.name} if mask else {})}
    inputs = {"image": _tensor(ready.pixels) * 2 - 1, **{name: _tensor(one) for name, one in ready.inputs.items()}}
    return Begun(inputs, files)


def _given(system: System, one: Input, path: Path, size: tuple[int, int] | None) -> Tensor:
    """The input as a person gives it: (1, planes, height, width)."""
    wanted = one.side or size or system.decoder.pictures.shape[1:]
    values = _prepared(path, one.planes, (wanted[0], wanted[1]), nearest=one.nearest)
    return values if one.low == 0 else values * 2 - 1


def _computed(system: System, one: Input, path: Path, size: tuple[int, int] | None) -> Tensor:
    """The input as it is computed from a picture in training."""
    from carrara.rng import Rng

    if not one.computable:
        raise RecipeError(
            f"--from {one.name}: it cannot be computed from a picture; give it with --input {one.name}=FILE"
        )
    channels, height, width = system.decoder.pictures.shape
    picture = _prepared(path, channels, size or (height, width), nearest=False) * 2 - 1
    device = next((tensor.device for tensor in (*one.parameters(), *one.buffers())), picture.device)
    return one.computed(picture.to(device), Rng.seeds([0])).cpu()


def _prepared(path: Path, channels: int, size: tuple[int, int], *, nearest: bool) -> Tensor:
    """A picture's values in [0, 1], (1, channels, height, width); blended where it is scaled, unless `nearest`."""
    from carrara.data.formats import Unreadable
    from carrara.data.preparation import prepare
    from carrara.data.settings import DataSettings

    main = _decoded(path)
    wanted = DataSettings(folder="", size=size, channels=channels, depth=16, nearest=("labels",), inputs=())
    try:
        ready = prepare(main, {"labels": _flat(main, channels)} if nearest else {}, wanted)
    except (Unreadable, ValueError) as error:
        raise DataError(f"{path} cannot be used: {error}") from error
    return _tensor(ready.inputs["labels"] if nearest else ready.pixels)


def _flat(decoded: Any, channels: int) -> Any:
    """The picture with so many channels and without transparency, laid on white."""
    from carrara.data.colour import as_channels, composite

    pixels = composite(decoded.pixels, (255, 255, 255)) if decoded.alpha else decoded.pixels
    return replace(decoded, pixels=as_channels(pixels, channels), alpha=False)


def _decoded(path: Path) -> Any:
    from carrara.data.formats import Unreadable, decode, quiet

    try:
        data = path.read_bytes()
    except OSError as error:
        raise StorageError(f"{path} cannot be read: {error.strerror or error}") from error
    try:
        with quiet():
            return decode(data)
    except Unreadable as error:
        raise DataError(f"{path} cannot be used: {error}") from error


def _mask(path: Path) -> Any:
    """One channel, black to white."""
    from carrara.data.colour import as_channels

    decoded = _decoded(path)
    pixels = decoded.pixels
    if decoded.alpha:
        import numpy as np

        if (pixels[..., -1] != np.iinfo(pixels.dtype).max).any():
            raise DataError(f"{path} is transparent in part; a mask is black where the image stays and white elsewhere")
        pixels = pixels[..., :-1]
    try:
        return replace(decoded, pixels=as_channels(pixels, 1), alpha=False)
    except ValueError:
        raise DataError(f"{path} has {pixels.shape[2]} channels; a mask is black, grey and white") from None


def _tensor(pixels: Any) -> Tensor:
    """(H, W, C) whole numbers as (1, C, H, W) in [0, 1]."""
    import numpy as np
    import torch

    top = float(np.iinfo(pixels.dtype).max)
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)).astype(np.float32) / top)[None]
