"""Pictures to bytes: the border where float NCHW in [-1, 1] becomes uint8 NHWC, PNG files, contact sheets, data URIs.

    u = round(127.5 (x + 1)), cut to 0 ... 255

Values outside [-1, 1] are cut, as a sampler may overshoot a little; values that are not finite are an error, because a
cast would turn them into black without a word. How many channels are shown as what:

    1 grey    2 red and cyan (equal channels are grey)    3 RGB    4 RGBA    more: the first three as RGB

`split_channels` shows every channel of a latent or a satellite picture as a grey picture of its own.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from carrara.errors import NonFiniteError

if TYPE_CHECKING:
    from PIL import Image, ImageFont
    from torch import Tensor

__all__ = ["data_uri", "fit_scale", "pictures", "png_bytes", "sheet", "split_channels", "strip", "to_uint8"]

_PAPER = (251, 251, 250)
_INK = (58, 64, 70)
_FONT_SIZE = 12  # px, the smallest at which the bundled font reads well
_LINES = 2  # of a caption; what does not fit ends in an ellipsis


def to_uint8(images: Tensor) -> np.ndarray:
    """Pictures as bytes.

    Args:
        images: (N, C, H, W) floating point, -1 is black and 1 is white; values beyond are cut.

    Returns:
        (N, H, W, C) uint8.

    Raises:
        ValueError: not four dimensions, no pixels, or not floating point.
        NonFiniteError: NaN or infinity; the message names the pictures.
    """
    if images.ndim != 4 or 0 in images.shape[1:]:
        raise ValueError(f"pictures have shape {tuple(images.shape)}; expected (N, C, H, W), none of C, H, W zero")
    if not images.is_floating_point():
        raise ValueError(f"pictures are {images.dtype}; expected floating point in [-1, 1]: divide uint8 by 127.5 - 1")
    values = images.detach().to("cpu").float().numpy()
    finite = np.isfinite(values).all(axis=(1, 2, 3))
    if not finite.all():
        bad = np.flatnonzero(~finite)
        named = ", ".join(map(str, bad[:8])) + (", ..." if len(bad) > 8 else "")
        raise NonFiniteError(
            f"{len(bad)} of {len(values)} pictures hold NaN or infinity (number {named}); "
            "they cannot be shown. Look for the step where the network's output stopped being finite"
        )
    levels = np.clip(np.rint((values + 1.0) * 127.5), 0, 255).astype(np.uint8)
    return np.ascontiguousarray(levels.transpose(0, 2, 3, 1))


def split_channels(images: Tensor) -> Tensor:
    """(N, C, H, W) -> (N C, 1, H, W): every channel a grey picture of its own, picture by picture."""
    n, c, h, w = images.shape
    return images.reshape(n * c, 1, h, w)


def pictures(images: Tensor) -> list[Image.Image]:
    """(N, C, H, W) in [-1, 1] -> N Pillow pictures of mode L, RGB or RGBA; errors as `to_uint8`."""
    from PIL import Image

    levels = to_uint8(images)
    channels = levels.shape[-1]
    if channels == 1:
        levels = levels[..., 0]
    elif channels == 2:
        levels = levels[..., [0, 1, 1]]
    elif channels > 4:
        levels = np.ascontiguousarray(levels[..., :3])
    return [Image.fromarray(level) for level in levels]


def fit_scale(side: int, *, at_least: int = 96) -> int:
    """The smallest whole factor that brings `side` pixels to `at_least`."""
    if side < 1:
        raise ValueError(f"a picture's side is {side} pixels; expected 1 or more")
    return max(1, -(-at_least // side))


def sheet(
    images: Tensor, columns: int, *, gap: int = 2, labels: Sequence[str] | None = None, scale: int = 1
) -> Image.Image:
    """A contact sheet, filled row by row.

    Args:
        images: (N, C, H, W) in [-1, 1], N >= 1.
        columns: pictures a row, at most N are used.
        gap: pixels around and between the cells.
        labels: N captions, under each picture in at most two lines; what is longer ends in an ellipsis.
        scale: a whole factor; every pixel becomes a block of scale x scale (nearest neighbour).

    Returns:
        RGB; (columns (scale W + gap) + gap) wide.
    """
    from PIL import Image, ImageDraw, ImageFont

    if len(images) == 0 or columns < 1 or scale < 1 or gap < 0:
        raise ValueError(
            f"a sheet of {len(images)} pictures, {columns} columns, scale {scale}, gap {gap}; "
            "expected at least one picture, column and scale, and a gap of 0 or more"
        )
    if labels is not None and len(labels) != len(images):
        raise ValueError(f"{len(labels)} labels for {len(images)} pictures; expected one for each")
    cells = pictures(images)
    columns = min(columns, len(cells))
    rows = -(-len(cells) // columns)
    width, height = scale * cells[0].width, scale * cells[0].height

    font = ImageFont.load_default(_FONT_SIZE)
    captions = [_wrap(label, width, font) for label in labels or ()]
    line = _FONT_SIZE + 3
    below = line * max(map(len, captions), default=0) + (4 if any(captions) else 0)

    across, down = width + gap, height + below + gap
    paper = Image.new("RGB", (columns * across + gap, rows * down + gap), _PAPER)
    draw = ImageDraw.Draw(paper)
    for i, cell in enumerate(cells):
        left, top = gap + i % columns * across, gap + i // columns * down
        large = cell.resize((width, height), Image.Resampling.NEAREST)
        paper.paste(large, (left, top), large if large.mode == "RGBA" else None)
        for k, text in enumerate(captions[i] if captions else ()):
            middle = left + (width - draw.textlength(text, font=font)) / 2
            draw.text((middle, top + height + 2 + k * line), text, font=font, fill=_INK)
    return paper


def strip(images: Tensor, *, gap: int = 2, labels: Sequence[str] | None = None, scale: int = 1) -> Image.Image:
    """All pictures side by side: a sheet of one row."""
    return sheet(images, max(1, len(images)), gap=gap, labels=labels, scale=scale)


def png_bytes(image: Image.Image) -> bytes:
    """The picture as a PNG file; the same picture gives the same bytes."""
    file = io.BytesIO()
    image.save(file, format="PNG", optimize=True)
    return file.getvalue()


def data_uri(image: Image.Image) -> str:
    """The picture as `data:image/png;base64,...`, to stand in a page that loads nothing."""
    return "data:image/png;base64," + base64.b64encode(png_bytes(image)).decode("ascii")


def _wrap(text: str, width: int, font: ImageFont.ImageFont | ImageFont.FreeTypeFont) -> list[str]:
    """At most `_LINES` lines of at most `width` pixels; breaks at spaces, inside a word only if it is too long."""
    words = "".join(c if c.isprintable() else " " for c in text).split()
    lines: list[str] = []
    while words and len(lines) < _LINES:
        line = words.pop(0)
        while words and font.getlength(f"{line} {words[0]}") <= width:
            line = f"{line} {words.pop(0)}"
        if font.getlength(line) > width:
            head = _cut(line, width, font)
            line, words = head, [line[len(head) :], *words]
        lines.append(line)
    if words:
        lines[-1] = _cut(lines[-1], width - font.getlength("..."), font) + "..."
    return lines


def _cut(text: str, width: float, font: ImageFont.ImageFont | ImageFont.FreeTypeFont) -> str:
    """The longest beginning that fits, one character at least."""
    end = len(text)
    while end > 1 and font.getlength(text[:end]) > width:
        end -= 1
    return text[:end]
