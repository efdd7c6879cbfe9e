"""Geometry: how a picture of any shape comes to the size that is asked for, and its masks with it.

The picture is scaled by one factor in both directions, never stretched, with Pillow's antialiased Lanczos filter (or
to the nearest pixel, for labels), then cut or padded. Cuts are real-valued boxes relative to the picture, so that a
mask of another resolution gets exactly the same cut.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

__all__ = ["Placement", "place", "resize"]

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Placement:
    """Where a picture goes: the part that is kept, the size it gets, and the canvas it lies on."""

    box: Box  # left, top, right, bottom of the part that is kept, as shares of width and height
    scaled: tuple[int, int]  # (height, width) of that part after scaling
    canvas: tuple[int, int]  # (height, width) of the result; equal to `scaled` unless padded
    upscaled: bool  # the part is enlarged

    def __call__(
        self, pixels: np.ndarray, ground: np.ndarray, *, nearest: bool = False, alpha: bool = False
    ) -> np.ndarray:
        """(H, W, C) placed as said; `ground` (C,) fills the rest of the canvas."""
        height, width = pixels.shape[:2]
        left, top, right, bottom = self.box
        box = (left * width, top * height, right * width, bottom * height)
        part = resize(pixels, self.scaled, box, nearest=nearest, alpha=alpha)
        if self.canvas == self.scaled:
            return part
        canvas = np.empty((*self.canvas, pixels.shape[2]), pixels.dtype)
        canvas[:] = ground
        y, x = (self.canvas[0] - self.scaled[0]) // 2, (self.canvas[1] - self.scaled[1]) // 2
        canvas[y : y + self.scaled[0], x : x + self.scaled[1]] = part
        return canvas


def place(have: tuple[int, int], want: tuple[int, int], fit: Literal["crop", "random-crop", "pad"]) -> Placement:
    """How a picture of (height, width) `have` comes to `want`.

    "random-crop" keeps the whole picture, scaled until it covers `want`; the cut itself is made per sample.
    """
    height, width = have
    down, across = want[0] / height, want[1] / width
    whole: Box = (0.0, 0.0, 1.0, 1.0)
    if fit == "pad":
        scale = min(down, across)
        scaled = (max(1, round(height * scale)), max(1, round(width * scale)))
        return Placement(whole, scaled, want, scale > 1)
    scale = max(down, across)
    if fit == "random-crop":
        scaled = (max(want[0], round(height * scale)), max(want[1], round(width * scale)))
        return Placement(whole, scaled, scaled, scale > 1)
    x, y = (1 - want[1] / (width * scale)) / 2, (1 - want[0] / (height * scale)) / 2
    x, y = max(x, 0.0), max(y, 0.0)
    return Placement((x, y, 1 - x, 1 - y), want, want, scale > 1)


def resize(
    pixels: np.ndarray, size: tuple[int, int], box: Box | None = None, *, nearest: bool = False, alpha: bool = False
) -> np.ndarray:
    """(H, W, C) uint8 or uint16, the part in `box` (left, top, right, bottom in pixels) scaled to (height, width).

    With `alpha` the last channel is transparency, and hidden colours do not bleed into visible ones.
    """
    height, width = pixels.shape[:2]
    box = box or (0.0, 0.0, float(width), float(height))
    whole = tuple(round(edge) for edge in box)
    if all(abs(edge - near) < 1e-6 for edge, near in zip(box, whole, strict=True)):
        left, top, right, bottom = whole
        if (bottom - top, right - left) == size:
            return np.ascontiguousarray(pixels[top:bottom, left:right])
        box = (float(left), float(top), float(right), float(bottom))
    if nearest:
        return _nearest(pixels, size, box)
    if alpha:
        return _with_alpha(pixels, size, box)
    return _lanczos(pixels, size, box)


def _nearest(pixels: np.ndarray, size: tuple[int, int], box: Box) -> np.ndarray:
    left, top, right, bottom = box
    rows = top + (np.arange(size[0]) + 0.5) * (bottom - top) / size[0]
    columns = left + (np.arange(size[1]) + 0.5) * (right - left) / size[1]
    rows = np.clip(rows.astype(np.int64), 0, pixels.shape[0] - 1)
    columns = np.clip(columns.astype(np.int64), 0, pixels.shape[1] - 1)
    return np.ascontiguousarray(pixels[rows[:, None], columns[None, :]])


def _lanczos(pixels: np.ndarray, size: tuple[int, int], box: Box) -> np.ndarray:
    from PIL import Image

    shape = (size[1], size[0])
    if pixels.dtype == np.uint8 and pixels.shape[2] in (1, 3):
        image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
        done = np.asarray(image.resize(shape, Image.Resampling.LANCZOS, box))
        return done[..., None] if done.ndim == 2 else done
    top = np.iinfo(pixels.dtype).max
    planes = _floats(pixels.astype(np.float32), shape, box)
    return np.clip(np.rint(planes), 0, top).astype(pixels.dtype)


def _floats(pixels: np.ndarray, shape: tuple[int, int], box: Box) -> np.ndarray:
    """Each channel of (H, W, C) float32 by itself: exact enough for 16 bits."""
    from PIL import Image

    planes = [np.ascontiguousarray(pixels[..., channel]) for channel in range(pixels.shape[2])]
    done = [np.asarray(Image.fromarray(plane).resize(shape, Image.Resampling.LANCZOS, box)) for plane in planes]
    return np.stack(done, axis=-1)


def _with_alpha(pixels: np.ndarray, size: tuple[int, int], box: Box) -> np.ndarray:
    top = float(np.iinfo(pixels.dtype).max)
    share = pixels[..., -1:].astype(np.float32) / top
    weighted = np.concatenate([pixels[..., :-1] * share, share], axis=2).astype(np.float32)
    done = _floats(weighted, (size[1], size[0]), box)
    share = np.clip(done[..., -1:], 0, 1)
    colours = np.where(share > 0, done[..., :-1] / np.maximum(share, 1e-6), 0)
    both = np.concatenate([colours, share * top], axis=2)
    return np.clip(np.rint(both), 0, top).astype(pixels.dtype)
