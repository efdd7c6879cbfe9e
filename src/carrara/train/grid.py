"""Pictures side by side in one PNG."""

from __future__ import annotations

import io
import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from carrara.store.atomic import storage_errors, write_file

__all__ = ["save_grid"]

_GAP = 2  # pixels between pictures


def save_grid(path: Path, pictures: Tensor) -> None:
    """Writes pictures (N, C, H, W) in [-1, 1] as a nearly square grid; C is 1, 3 or 4, or the first 3 (or 1) are shown.

    Raises ValueError for another shape and StorageError when the disk refuses.
    """
    from PIL import Image

    if pictures.ndim != 4 or not len(pictures):
        raise ValueError(f"pictures have shape {tuple(pictures.shape)}; give (N, C, H, W) with N above 0")
    n, channels, height, width = pictures.shape
    shown = channels if channels in (1, 3, 4) else 3 if channels > 3 else 1
    levels = ((pictures[:, :shown].detach().float().cpu().nan_to_num(0.0).clamp(-1, 1) + 1) * 127.5).round()
    tiles = levels.to(torch.uint8).permute(0, 2, 3, 1).numpy()
    columns = math.ceil(math.sqrt(n))
    rows = math.ceil(n / columns)
    sheet = np.zeros((rows * (height + _GAP) - _GAP, columns * (width + _GAP) - _GAP, shown), np.uint8)
    for i, tile in enumerate(tiles):
        y, x = (i // columns) * (height + _GAP), (i % columns) * (width + _GAP)
        sheet[y : y + height, x : x + width] = tile
    buffer = io.BytesIO()
    Image.fromarray(sheet[..., 0] if shown == 1 else sheet).save(buffer, "PNG")
    with storage_errors(f"cannot write {path}"):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, buffer.getvalue())
