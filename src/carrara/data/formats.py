"""From the bytes of a picture file to its pixels: what a viewer would show, with all the bits that are there.

`decode` looks at the content and never at a name. It applies the EXIF orientation, expands palettes, converts CMYK and
embedded ICC profiles to sRGB, keeps 16-bit depth and any number of channels, and refuses what it cannot read with an
`Unreadable` that says why. Pillow reads 8-bit pictures; it drops the low byte of 16-bit colour, so those go through
pypng (PNG), tifffile (TIFF) and numpy (.npy, without pickles).
"""

from __future__ import annotations

import io
import logging
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from . import colour

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["Decoded", "MAX_PIXELS", "PICTURE_SUFFIXES", "Unreadable", "decode", "quiet", "sniff"]

MAX_PIXELS = 89_478_485
"""The most pixels a picture may have: 256 MiB of RGB. Larger ones are taken for decompression bombs."""

PICTURE_SUFFIXES = frozenset(
    f".{word}"
    for words in ("png apng jpg jpeg jpe jfif webp gif", "bmp dib tif tiff ppm pgm pbm pnm qoi avif npy")
    for word in words.split()
)

_MAGIC = (
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"\xff\xd8\xff", "JPEG"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    (b"II*\x00", "TIFF"),
    (b"MM\x00*", "TIFF"),
    (b"II+\x00", "TIFF"),
    (b"MM\x00+", "TIFF"),
    (b"\x93NUMPY", "NPY"),
    (b"qoif", "QOI"),
)
_KNOWN_OTHERS = (
    (b"8BPS", "a Photoshop document"),
    (b"%PDF", "a PDF document"),
    (b"%!PS", "a PostScript document"),
    (b"PK\x03\x04", "a zip archive"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"\x00\x00\x00\x0cJXL ", "JPEG XL"),
    (b"\xff\x0a", "JPEG XL"),
    (b"\x00\x00\x00\x0cjP", "JPEG 2000"),
    (b"version https://git-lfs", "a Git LFS pointer, not the picture itself: run `git lfs pull`"),
)


class Unreadable(ValueError):
    """A file that cannot be used as a picture; the message is the reason, in a few words."""


@dataclass(frozen=True)
class Decoded:
    """The pixels of one picture."""

    pixels: np.ndarray  # (H, W, C) uint8 or uint16
    alpha: bool  # the last channel is transparency, not premultiplied
    format: str  # "PNG", "JPEG", ...
    mode: str  # as the file says it: "P", "RGBA", "RGB;16", ...
    notes: tuple[str, ...] = ()  # what was done beyond reading: "EXIF orientation 6 applied", ...

    @property
    def depth(self) -> int:
        """Bits a channel, 8 or 16."""
        return 8 * self.pixels.dtype.itemsize

    @property
    def channels(self) -> int:
        """Channels without transparency."""
        return self.pixels.shape[2] - self.alpha


def sniff(head: bytes) -> str | None:
    """The picture format that the first 32 bytes of a file announce, or None."""
    for magic, name in _MAGIC:
        if head.startswith(magic):
            return name
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WEBP"
    if head[4:8] == b"ftyp" and (b"avif" in head[8:32] or b"avis" in head[8:32]):
        return "AVIF"
    if (
        head[:2] == b"BM"
        and len(head) >= 18
        and struct.unpack_from("<I", head, 14)[0] in (12, 40, 52, 56, 64, 108, 124)
    ):
        return "BMP"
    if len(head) > 2 and head[:1] == b"P" and head[1:2] in b"123456" and head[2:3].isspace():
        return "PPM"
    return None


def decode(data: bytes, *, values: bool = False) -> Decoded:
    """The picture in `data`, upright, in sRGB (grey stays grey).

    With `values` the numbers are kept as stored, for masks: a palette gives its indices and no colour is managed.
    Raises Unreadable, and nothing else, for whatever is wrong with the bytes.
    """
    kind = sniff(data[:32])
    if kind is None:
        raise Unreadable(_why_not(data))
    try:
        return _decode(data, kind, values)
    except Unreadable:
        raise
    except MemoryError:
        raise Unreadable("needs more memory than there is") from None
    except Exception as error:  # the parsers raise a dozen types for damaged files
        raise Unreadable(_reason(kind, error)) from None


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the parsers' warnings about odd files to ourselves: what matters is said in findings.

    Filters are the process's own, so this belongs around a pool of decoding threads and never inside one.
    """
    logger = logging.getLogger("tifffile")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _why_not(data: bytes) -> str:
    if not data:
        return "the file is empty"
    for magic, name in _KNOWN_OTHERS:
        if data.startswith(magic):
            return f"this is {name}"
    start = data[:256].lstrip(b"\xef\xbb\xbf \r\n\t").lower()
    if start.startswith((b"<!doctype", b"<html")):
        return "this is a web page, not a picture"
    if start.startswith((b"<svg", b"<?xml")):
        return "this is a vector drawing or XML, not a picture of pixels"
    if data[4:8] == b"ftyp":
        return "this is HEIF or a video, which is not read; convert it to PNG or JPEG"
    return "this is not a picture of a format that is read (PNG, JPEG, WebP, AVIF, GIF, BMP, TIFF, PNM, QOI, NPY)"


def _reason(kind: str, error: Exception) -> str:
    text = str(error).split("\n")[0]
    if "truncated" in text.lower() or isinstance(error, EOFError) or "unexpected end" in text.lower():
        return f"the {kind} file is cut off"
    if "cannot identify" in text:
        return f"damaged {kind} file"
    return f"damaged {kind} file ({text[:120] or type(error).__name__})"


def check_pixels(width: int, height: int) -> None:
    """Refuse a picture of no pixels or of too many; Raises Unreadable."""
    if width < 1 or height < 1:
        raise Unreadable(f"it has no pixels ({width} x {height})")
    if width * height > MAX_PIXELS:
        raise Unreadable(f"{width} x {height} is more than {MAX_PIXELS} pixels, which may be a decompression bomb")


def _decode(data: bytes, kind: str, values: bool) -> Decoded:
    if kind == "NPY":
        return _numpy(data)
    if kind == "PNG" and len(data) > 24 and data[24] == 16:
        return _deep_png(data, values)
    if kind == "TIFF":
        deep = _deep_tiff(data)
        if deep is not None:
            return deep
    return _pillow(data, kind, values)


# --- Pillow: everything of 8 bits -------------------------------------------------------------------------------------


def _pillow(data: bytes, kind: str, values: bool) -> Decoded:
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        image: Image.Image = Image.open(io.BytesIO(data), formats=(kind,))
    except Image.DecompressionBombError:
        raise Unreadable(f"it has more than {MAX_PIXELS} pixels, which may be a decompression bomb") from None
    except UnidentifiedImageError:
        if kind not in Image.OPEN:
            raise Unreadable(f"{kind} is not read by this Pillow; update it, or convert the picture to PNG") from None
        raise Unreadable(f"damaged {kind} file") from None
    check_pixels(*image.size)
    mode, notes = image.mode, []
    if getattr(image, "is_animated", False) and image.format != "MPO":
        notes.append("animation: the first frame was taken")
        image.seek(0)
    image.load()
    orientation = image.getexif().get(0x0112, 1)
    if orientation in range(2, 9):
        ImageOps.exif_transpose(image, in_place=True)
        notes.append(f"EXIF orientation {orientation} applied")
    if mode.startswith("I;16") or mode in ("I", "F"):
        return _deep_grey(image, mode, kind, tuple(notes))
    image, more = _plain(image) if values else _managed(image)
    pixels = np.asarray(image)
    pixels = pixels.astype(np.uint8) * 255 if pixels.dtype == bool else pixels
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    return Decoded(np.ascontiguousarray(pixels), image.mode in ("LA", "RGBA"), kind, mode, (*notes, *more))


def _deep_grey(image: Image.Image, mode: str, kind: str, notes: tuple[str, ...]) -> Decoded:
    pixels = np.asarray(image)
    if mode == "F":
        raise Unreadable("32-bit floating-point pixels; pictures have 8 or 16 bits a channel")
    if pixels.size and (pixels.min() < 0 or pixels.max() > 65535):
        raise Unreadable("32-bit whole-number pixels; pictures have 8 or 16 bits a channel")
    return Decoded(pixels.astype(np.uint16)[..., None], False, kind, mode, notes)


def _plain(image: Image.Image) -> tuple[Image.Image, tuple[str, ...]]:
    """For masks: the stored numbers; palette indices stay indices."""
    if image.mode in ("P", "L", "RGB", "LA", "RGBA", "1"):
        return image, ()
    return image.convert("RGBA" if "A" in image.mode or "a" in image.mode else "RGB"), ()


def _managed(image: Image.Image) -> tuple[Image.Image, tuple[str, ...]]:
    """For pictures: grey or sRGB, with transparency where there is any."""
    if image.mode in ("P", "PA", "1") or "transparency" in image.info:
        image = _unpacked(image)
    elif image.mode in ("La", "RGBa", "RGBX"):
        image = image.convert({"La": "LA", "RGBa": "RGBA", "RGBX": "RGB"}[image.mode])
    image, notes = colour.to_srgb(image)
    if image.mode not in ("L", "LA", "RGB", "RGBA"):
        notes = (*notes, f"{image.mode} without a profile, converted plainly")
        image = image.convert("RGB")
    return image, notes


def _unpacked(image: Image.Image) -> Image.Image:
    """A palette, bilevel or colour-keyed picture in full: L, LA, RGB or RGBA; its profile comes along."""
    clear = "transparency" in image.info or image.mode == "PA"
    grey = image.mode in ("1", "L", "LA")
    full = image.convert(("LA" if clear else "L") if grey else ("RGBA" if clear else "RGB"))
    for name in ("icc_profile", "gamma", "srgb"):
        if name in image.info:
            full.info[name] = image.info[name]
    full.info.pop("transparency", None)
    return full


# --- 16 bits, and more than four channels -----------------------------------------------------------------------------


def _deep_png(data: bytes, values: bool) -> Decoded:
    import png

    width, height = struct.unpack_from(">II", data, 16)
    check_pixels(width, height)
    reader = png.Reader(bytes=data)
    columns, rows, flat, info = reader.read()
    planes = info["planes"]
    pixels = np.empty((rows, columns * planes), np.uint16)
    done = -1
    for done, row in enumerate(flat):
        pixels[done] = row
    if done + 1 != rows:
        raise Unreadable("the PNG file is cut off")
    pixels = pixels.reshape(rows, columns, planes)
    alpha, mode = bool(info["alpha"]), {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}[planes] + ";16"
    if reader.transparent is not None and not alpha:
        key = np.asarray(reader.transparent, np.uint16).reshape(-1)
        opaque = (pixels != key).any(axis=2, keepdims=True).astype(np.uint16) * 65535
        pixels, alpha = np.concatenate([pixels, opaque], axis=2), True
    orientation, profile, gamma = _png_extras(data)
    pixels, notes = (pixels, ()) if values else colour.deep_to_srgb(pixels, alpha, profile, gamma)
    pixels, turned = _upright(pixels, orientation)
    return Decoded(np.ascontiguousarray(pixels), alpha, "PNG", mode, (*notes, *turned))


def _png_extras(data: bytes) -> tuple[int, bytes | None, float | None]:
    """EXIF orientation, ICC profile and gamma of a PNG, from its header chunks alone (no pixel is decoded)."""
    from PIL import Image

    with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
        gamma = None if "srgb" in image.info else image.info.get("gamma")
        profile = image.info.get("icc_profile")
        return _exif_orientation(image.info.get("exif")), profile, gamma


def _exif_orientation(exif: bytes | None) -> int:
    from PIL import Image

    if not exif:
        return 1
    tags = Image.Exif()
    try:
        tags.load(exif)
        return int(tags.get(0x0112, 1))
    except Exception:  # damaged EXIF is no reason to lose a picture
        return 1


def _upright(pixels: np.ndarray, orientation: int) -> tuple[np.ndarray, tuple[str, ...]]:
    """(H, W, C) turned as EXIF orientation 1..8 says."""
    if orientation not in range(2, 9):
        return pixels, ()
    if orientation in (5, 6, 7, 8):
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return pixels, (f"EXIF orientation {orientation} applied",)


_PLAIN_PHOTOMETRICS = (0, 1, 2, 3, 5, 6, 8)  # white is zero, black is zero, RGB, palette, separated, YCbCr, CIELab


def _deep_tiff(data: bytes) -> Decoded | None:
    """A TIFF of more than 8 bits or of unusual channels; None where Pillow reads it in full."""
    import tifffile

    with tifffile.TiffFile(io.BytesIO(data)) as file:
        page: Any = file.pages[0]
        check_pixels(page.imagewidth, page.imagelength)
        samples, bits = page.samplesperpixel, page.bitspersample
        axes = str(file.series[0].axes) if file.series else str(page.axes)
        stacked = set(axes) == {"C", "Y", "X"} and len(file.pages) > 1
        if bits <= 8 and samples <= 4 and not stacked and page.photometric in _PLAIN_PHOTOMETRICS:
            extra = [int(e) for e in page.extrasamples]
            plain = samples - len(extra)
            if (not extra or extra[-1] in (1, 2)) and plain in (1, 3, 4):
                return None
        _check_deep_tiff(page, samples)
        try:
            pixels = file.series[0].asarray() if stacked else page.asarray()
        except ValueError as error:
            if "imagecodecs" in str(error):
                if samples == 1 and bits == 16 and not stacked:
                    return None  # libtiff behind Pillow unpacks it, and keeps 16 bits of grey
                name = getattr(page.compression, "name", page.compression)
                raise Unreadable(
                    f"TIFF compression {name} is not read at {bits} bits; save it uncompressed or deflated"
                ) from None
            raise
        axes = axes if stacked else str(page.axes)
        return _tiff_pixels(page, pixels, axes, frames=1 if stacked else len(file.pages))


def _check_deep_tiff(page: Any, samples: int) -> None:
    if page.dtype is None or np.dtype(page.dtype).kind != "u" or np.dtype(page.dtype).itemsize > 2:
        raise Unreadable(f"TIFF pixels of type {page.dtype}; pictures have 8 or 16 bits a channel")
    if samples * page.imagewidth * page.imagelength > 4 * MAX_PIXELS:
        raise Unreadable(f"{samples} channels of {page.imagewidth} x {page.imagelength} are too large to read")


def _tiff_pixels(page: Any, pixels: np.ndarray, axes: str, frames: int) -> Decoded:
    for axis in reversed(range(len(axes))):
        if axes[axis] not in "YXSC" and pixels.shape[axis] == 1:
            pixels, axes = pixels.squeeze(axis), axes[:axis] + axes[axis + 1 :]
    axes = axes.replace("S", "C")
    if sorted(axes) not in (["X", "Y"], ["C", "X", "Y"]):
        raise Unreadable(f"a TIFF with axes {axes}; height, width and channels are read")
    pixels = pixels[..., None] if "C" not in axes else np.moveaxis(pixels, axes.index("C"), -1)
    if axes.replace("C", "") == "XY":
        pixels = pixels.swapaxes(0, 1)
    notes = ("several pages: the first was taken",) if frames > 1 else ()
    bits = page.bitspersample
    if 8 < bits < 16 or bits < 8:  # unpacked into the low bits: stretch to the whole range
        top = 65535 if bits > 8 else 255
        pixels = ((pixels.astype(np.uint32) * top + (1 << bits) // 2) // ((1 << bits) - 1)).astype(pixels.dtype)
    if int(page.photometric) == 0:
        pixels = np.iinfo(pixels.dtype).max - pixels
    extra = [int(e) for e in page.extrasamples]
    alpha = len(extra) == 1 and extra[0] in (1, 2) and pixels.shape[2] in (2, 4)
    if alpha and extra[0] == 1:
        pixels = _unpremultiplied(pixels)
    profile = page.tags.get(34675)
    if pixels.shape[2] - alpha in (1, 3) and pixels.dtype == np.uint16:
        pixels, more = colour.deep_to_srgb(pixels, alpha, bytes(profile.value) if profile else None, None)
        notes = (*notes, *more)
    tag = page.tags.get(274)
    pixels, turned = _upright(pixels, int(tag.value) if tag else 1)
    mode = f"{pixels.shape[2]} channels;{8 * pixels.dtype.itemsize}"
    return Decoded(np.ascontiguousarray(pixels), alpha, "TIFF", mode, (*notes, *turned))


def _unpremultiplied(pixels: np.ndarray) -> np.ndarray:
    top = np.iinfo(pixels.dtype).max
    alpha = pixels[..., -1:].astype(np.float64)
    straight = np.where(alpha > 0, pixels[..., :-1].astype(np.float64) * top / np.maximum(alpha, 1), 0)
    return np.concatenate([np.clip(np.rint(straight), 0, top).astype(pixels.dtype), pixels[..., -1:]], axis=2)


def _numpy(data: bytes) -> Decoded:
    """A .npy array (H, W) or (H, W, C) of uint8 or uint16; its header is checked before any memory is taken."""
    stream = io.BytesIO(data)
    version = np.lib.format.read_magic(stream)
    if version == (1, 0):
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream)
    elif version == (2, 0):
        shape, fortran, dtype = np.lib.format.read_array_header_2_0(stream)
    else:
        raise Unreadable(f"a .npy file of version {version}; 1.0 and 2.0 are read")
    if dtype.hasobject or dtype.newbyteorder("=") not in (np.dtype(np.uint8), np.dtype(np.uint16)):
        raise Unreadable(f"a .npy array of {dtype}; uint8 and uint16 are read")
    if len(shape) not in (2, 3):
        raise Unreadable(f"a .npy array of shape {shape}; (height, width) or (height, width, channels) is read")
    check_pixels(shape[1], shape[0])
    if len(shape) == 3 and not 1 <= shape[2] <= 256:
        raise Unreadable(f"a .npy array of shape {shape}; the third axis is channels, 1 to 256")
    wanted = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    if len(data) - stream.tell() < wanted:
        raise Unreadable("the NPY file is cut off")
    flat = np.frombuffer(data, dtype, wanted // dtype.itemsize, stream.tell())
    pixels = flat.reshape(shape, order="F" if fortran else "C").astype(dtype.newbyteorder("="))
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    return Decoded(np.ascontiguousarray(pixels), False, "NPY", f"{pixels.shape[2]} channels;{8 * dtype.itemsize}")
