"""Pictures that a command begins from: read as training reads them, scaled and cut to the size that is made."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from carrara.errors import DataError, RecipeError, StorageError

if TYPE_CHECKING:
    from torch import Tensor

    from carrara.system import System

__all__ = ["Begun", "read_inputs"]


@dataclass(frozen=True)
class Begun:
    """What pictures begin from: a request's inputs, with one row, and where they were read."""

    inputs: dict[str, Tensor]
    files: dict[str, str]


def read_inputs(system: System, image: Path | None, mask: Path | None, size: tuple[int, int] | None) -> Begun:
    """The image in [-1, 1] and the mask in [0, 1], white where it may change, of `size` or the system's own.

    Both are scaled by one factor and cut to the centre, the mask with its image. Raises RecipeError for what cannot be
    used together, DataError for a file that is no picture, StorageError for one that cannot be read.
    """
    if image is None:
        if mask is not None:
            raise RecipeError("--mask says where an image may change; give the image too, with --image FILE")
        return Begun({}, {})
    for name in ("image", *(("mask",) if mask else ())):
        if name not in getattr(system.generator, "inputs", ()):
            raise RecipeError(f"--{name} is for models that can begin from a picture, and this generator cannot")
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
    from dataclasses import replace

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
