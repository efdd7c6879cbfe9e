"""Colour: embedded profiles and gamma to sRGB, transparency to a background, grey to colour and back.

8-bit pictures go through LittleCMS (in Pillow) with relative colorimetric intent and black-point compensation. It has
no 16-bit path there, so 16-bit pictures are converted here by the matrix and tone curves of the profile (ICC.1:2022,
sections 9.2 and 10.6/10.18), in float64. Compositing happens on the stored (sRGB) values, as browsers do.
"""

from __future__ import annotations

import io
import struct
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["LUMA", "as_channels", "composite", "deep_to_srgb", "to_srgb"]

LUMA = (299, 587, 114)
"""Weights of red, green and blue in grey, in thousandths (ITU-R BT.601, as Pillow uses)."""

_SRGB_FROM_XYZ_D50 = np.array(  # the Bradford-adapted sRGB primaries, inverted
    [[3.1338561, -1.6168667, -0.4906146], [-0.9787684, 1.9161415, 0.0334540], [0.0719453, -0.2289914, 1.4052427]]
)


def to_srgb(image: Image.Image) -> tuple[Image.Image, tuple[str, ...]]:
    """An 8-bit picture in sRGB: by its embedded profile, else its PNG gamma, else as it is (CMYK: plainly)."""
    profile = image.info.get("icc_profile")
    gamma = None if "srgb" in image.info else image.info.get("gamma")
    bands = image.mode[:-1] if image.mode in ("LA", "RGBA") else image.mode
    if profile and bands in ("L", "RGB", "CMYK", "LAB"):
        transform = _transform(profile, bands)
        if transform == "sRGB":
            return image, ()
        if transform is None:
            return image, ("its ICC profile could not be used and sRGB was assumed",)
        return _with_alpha(image, lambda plain: _apply(transform, plain)), ("ICC profile converted to sRGB",)
    if gamma and bands in ("L", "RGB") and _unusual(gamma):
        table = np.rint(255 * _encode((np.arange(256) / 255) ** (1 / gamma))).astype(int).tolist()
        return _with_alpha(image, lambda plain: plain.point(table * len(plain.getbands()))), ("gamma converted",)
    return image, ()


def _with_alpha(image: Image.Image, change: Any) -> Image.Image:
    """`change` applied to the colours alone."""
    if image.mode not in ("LA", "RGBA"):
        changed: Image.Image = change(image)
        return changed
    alpha = image.getchannel("A")
    changed = change(image.convert(image.mode[:-1]))
    changed.putalpha(alpha)
    return changed


@lru_cache(maxsize=64)
def _transform(profile: bytes, mode: str) -> Any:
    """A LittleCMS transform to sRGB, a table of 256 values for grey, "sRGB" where nothing is to be done, or None where
    the profile is of no use."""
    from PIL import ImageCms

    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        space = source.profile.xcolor_space.strip()
        if {"L": "GRAY", "RGB": "RGB", "CMYK": "CMYK", "LAB": "Lab"}[mode] != space:
            return None
        if mode == "L":  # LittleCMS is coarse here: up to ten levels off in the shadows
            values = _encode(_curve(_tags(profile)[b"kTRC"], np.arange(256) / 255))
            return np.rint(255 * values).astype(int).tolist()
        if mode == "RGB" and "sRGB" in (ImageCms.getProfileDescription(source) or ""):
            return "sRGB"
        return ImageCms.buildTransform(
            source,
            ImageCms.createProfile("sRGB"),
            mode,
            "RGB",
            renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
            flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError, AttributeError, LookupError, struct.error):
        return None


def _apply(transform: Any, image: Image.Image) -> Image.Image:
    from PIL import ImageCms

    if isinstance(transform, list):
        return image.point(transform)
    done = ImageCms.applyTransform(image, transform)
    if done is None:
        raise OSError("the ICC profile could not be applied")
    return done


def _unusual(gamma: float) -> bool:
    return 0.05 < gamma < 20 and abs(gamma - 1 / 2.2) > 0.01


def _encode(linear: np.ndarray) -> np.ndarray:
    """Light in [0, 1] to sRGB values in [0, 1] (IEC 61966-2-1)."""
    linear = np.clip(linear, 0, 1)
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


# --- 16 bits ----------------------------------------------------------------------------------------------------------


def deep_to_srgb(
    pixels: np.ndarray, alpha: bool, profile: bytes | None, gamma: float | None
) -> tuple[np.ndarray, tuple[str, ...]]:
    """(H, W, C) uint16 of 1 or 3 colour channels in sRGB, and what was done."""
    colours = pixels[..., : pixels.shape[2] - alpha]
    if profile:
        try:
            if b"sRGB" in profile[:4096] or "sRGB".encode("utf-16-be") in profile[:4096]:
                return pixels, ()
            changed = _by_matrix(colours, _tags(profile))
        except (ValueError, KeyError, struct.error, IndexError):
            return pixels, ("its ICC profile could not be used at 16 bits and sRGB was assumed",)
        note = "ICC profile converted to sRGB"
    elif gamma and _unusual(gamma):
        changed, note = _encode((colours / 65535) ** (1 / gamma)), "gamma converted"
    else:
        return pixels, ()
    whole = np.rint(np.clip(changed, 0, 1) * 65535).astype(np.uint16)
    return np.concatenate([whole, pixels[..., colours.shape[2] :]], axis=2), (note,)


def _tags(profile: bytes) -> dict[bytes, bytes]:
    number = struct.unpack_from(">I", profile, 128)[0]
    if number > 200:
        raise ValueError("too many tags")
    tags = {}
    for i in range(number):
        name, start, length = struct.unpack_from(">4sII", profile, 132 + 12 * i)
        tags[name] = profile[start : start + length]
    return tags


def _by_matrix(colours: np.ndarray, tags: dict[bytes, bytes]) -> np.ndarray:
    """Through the profile's tone curves and primaries; Raises KeyError where it is made of tables alone."""
    values = colours / 65535
    if colours.shape[2] == 1:
        return _encode(_curve(tags[b"kTRC"], values))
    linear = np.stack([_curve(tags[name], values[..., i]) for i, name in enumerate((b"rTRC", b"gTRC", b"bTRC"))], -1)
    primaries = np.array([_xyz(tags[name]) for name in (b"rXYZ", b"gXYZ", b"bXYZ")]).T
    return _encode(linear @ (_SRGB_FROM_XYZ_D50 @ primaries).T)


def _xyz(tag: bytes) -> list[float]:
    return [value / 65536 for value in struct.unpack_from(">3i", tag, 8)]


def _curve(tag: bytes, x: np.ndarray) -> np.ndarray:
    """A `curv` or `para` tone curve at x in [0, 1] (ICC.1:2022 10.6 and 10.18)."""
    if tag[:4] == b"curv":
        number = struct.unpack_from(">I", tag, 8)[0]
        if number == 0:
            return x
        if number == 1:
            return x ** (struct.unpack_from(">H", tag, 12)[0] / 256)
        table = np.frombuffer(tag, ">u2", number, 12) / 65535
        return np.interp(x, np.linspace(0, 1, number), table)
    if tag[:4] != b"para":
        raise ValueError("an unknown tone curve")
    kind = struct.unpack_from(">H", tag, 8)[0]
    size = (1, 3, 4, 5, 7)[kind]
    p = [value / 65536 for value in struct.unpack_from(f">{size}i", tag, 12)]
    g, a, b, c, d, e, f = (*p, *(0.0,) * (7 - size)) if size > 1 else (p[0], 1.0, 0.0, 0.0, 0.0, 0.0, 0.0)
    if kind == 0:
        return x**g
    power = np.maximum(a * x + b, 0) ** g
    if kind == 1:
        return np.where(x >= -b / a, power, 0)
    if kind == 2:
        return np.where(x >= -b / a, power + c, c)
    return np.where(x >= d, power + e, c * x + f)


# --- transparency and channels ----------------------------------------------------------------------------------------


def composite(pixels: np.ndarray, background: tuple[int, int, int]) -> np.ndarray:
    """(H, W, C + 1) with transparency laid on an 8-bit colour: (H, W, C), or colour where the background has any."""
    bits = 8 * pixels.dtype.itemsize
    wide = np.dtype(np.uint16 if bits == 8 else np.uint32)
    top = np.iinfo(pixels.dtype).max
    colours, alpha = pixels[..., :-1].astype(wide), pixels[..., -1:].astype(wide)
    if colours.shape[2] == 1 and len(set(background)) > 1:
        colours = np.repeat(colours, 3, axis=2)
    ground = np.array([value * (top // 255) for value in background[: colours.shape[2]]], wide)
    mixed = colours * alpha + ground * (top - alpha)  # at most top * top
    half = mixed + 2 ** (bits - 1)
    return ((half + (half >> bits)) >> bits).astype(pixels.dtype)  # mixed / top, rounded, without a division


def as_channels(pixels: np.ndarray, channels: int) -> np.ndarray:
    """(H, W, 1 or 3) as grey or colour; Raises ValueError for any other change."""
    have = pixels.shape[2]
    if have == channels:
        return pixels
    if (have, channels) == (1, 3):
        return np.repeat(pixels, 3, axis=2)
    if (have, channels) == (3, 1):
        grey = (pixels.astype(np.uint32) * np.array(LUMA, np.uint32)).sum(axis=2, keepdims=True)
        return ((grey + 500) // 1000).astype(pixels.dtype)
    raise ValueError(f"{have} channels cannot become {channels}")
