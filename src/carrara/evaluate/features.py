"""Features of pictures, each computed once: kept in a folder, by the hash of what is seen and of who sees it.

    FOLDER/<extractor's key>/<hash of the pixels>.safetensors        features (N, D) float32 of a block of pictures

So a stop loses one block, reference pictures are seen once for all models, and nothing is ever out of date. A file that
is damaged is computed again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from carrara.errors import StorageError
from carrara.evaluate.extractor import PIXELS, Extractor
from carrara.store.atomic import storage_errors
from carrara.store.safetensors_io import load_tensors, save_tensors

__all__ = ["BLOCK", "features_of"]

BLOCK = 256  # pictures, of a data set


def features_of(
    extractor: Extractor, blocks: Iterable[np.ndarray], folder: Path, tick: Callable[[int], None] = lambda _: None
) -> Tensor:
    """The features (N, D) of blocks of pictures (n, H, W, C); `tick` is told how many pictures are done.

    Pixels, which are no work, are not kept.
    """
    found, done = [], 0
    for pixels in blocks:
        found.append(extractor.features(pixels) if extractor.name == PIXELS else _block(extractor, pixels, folder))
        done += len(pixels)
        tick(done)
    return torch.cat(found)


def _block(extractor: Extractor, pixels: np.ndarray, folder: Path) -> Tensor:
    digest = hashlib.blake2b(f"{pixels.shape}{pixels.dtype}".encode(), digest_size=16)
    digest.update(np.ascontiguousarray(pixels).data)
    path = folder / extractor.key / f"{digest.hexdigest()}.safetensors"
    with suppress(StorageError):
        kept = load_tensors(path).get("features")
        if kept is not None and kept.ndim == 2 and len(kept) == len(pixels) and bool(kept.isfinite().all()):
            return kept
    features = extractor.features(pixels)
    with storage_errors(f"cannot write into {path.parent}"):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".tmp")
        save_tensors(temporary, {"features": features})
        temporary.replace(path)
    return features
