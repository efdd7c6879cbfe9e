"""Pictures to files, with the channels and the depth that they have."""

from __future__ import annotations

import io
import json
import zlib
from pathlib import Path

import numpy as np

from carrara.errors import StorageError

__all__ = ["write_picture"]

_PNG_CHANNELS = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}


def write_picture(path: Path, pixels: np.ndarray, text: dict[str, str] | None = None) -> None:
    """Writes (H, W, C) uint8 or uint16 as .png (1 to 4 channels), .tif, .tiff or .npy.

    `text` goes into a PNG's text chunks, or as JSON into a TIFF's description; .npy has no place for it.

    Raises ValueError for an ending or channels that cannot be written, StorageError when the disk refuses.
    """
    ending = path.suffix.lower()
    if ending == ".png":
        data = _png(pixels, text or {})
    elif ending in (".tif", ".tiff"):
        import tifffile

        buffer = io.BytesIO()
        channels = pixels.shape[2]
        colour = "rgb" if channels in (3, 4) else "minisblack"
        shown = pixels[..., 0] if channels == 1 else pixels
        about = json.dumps(text) if text else None
        tifffile.imwrite(
            buffer, shown, photometric=colour, planarconfig="contig" if channels > 1 else None, description=about
        )
        data = buffer.getvalue()
    elif ending == ".npy":
        buffer = io.BytesIO()
        np.save(buffer, pixels, allow_pickle=False)
        data = buffer.getvalue()
    else:
        raise ValueError(f"{path.name} does not end in .png, .tiff or .npy, which are what pictures are written as")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    except OSError as error:
        raise StorageError(f"{path} cannot be written: {error.strerror or error}") from error


def _png(pixels: np.ndarray, text: dict[str, str]) -> bytes:
    height, width, channels = pixels.shape
    if channels not in _PNG_CHANNELS:
        raise ValueError(f"a PNG holds 1 to 4 channels and this picture has {channels}; write it as .tiff or .npy")
    buffer = io.BytesIO()
    if pixels.dtype == np.uint16:  # Pillow keeps 16 bits for grey only
        import png

        writer = png.Writer(width, height, greyscale=channels < 3, alpha=channels in (2, 4), bitdepth=16)
        writer.write(buffer, pixels.reshape(height, width * channels).tolist())
        return _with_text(buffer.getvalue(), text)
    from PIL import Image

    flat = pixels[..., 0] if channels == 1 else pixels
    Image.fromarray(flat, _PNG_CHANNELS[channels] if channels == 2 else None).save(buffer, "PNG")
    return _with_text(buffer.getvalue(), text)


_SIGNATURE_AND_HEADER = 33  # bytes of a PNG before its other chunks


def _with_text(data: bytes, text: dict[str, str]) -> bytes:
    """A PNG with a chunk for each text, after its header: tEXt, or what is not Latin-1 iTXt (UTF-8, no language)."""
    chunks = b""
    for key, value in text.items():
        name, value = key.encode("latin-1"), value.replace("\0", " ")
        try:
            body = b"tEXt" + name + b"\0" + value.encode("latin-1")
        except UnicodeEncodeError:
            body = b"iTXt" + name + b"\0\0\0\0\0" + value.encode(errors="replace")
        chunks += (len(body) - 4).to_bytes(4, "big") + body + zlib.crc32(body).to_bytes(4, "big")
    return data[:_SIGNATURE_AND_HEADER] + chunks + data[_SIGNATURE_AND_HEADER:]
