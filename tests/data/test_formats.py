"""Every kind of file becomes what a viewer shows, with all its bits; everything else is refused with a reason."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import png
import pytest
import tifffile
from PIL import Image, ImageCms, ImageOps

from carrara.data import formats
from carrara.data.colour import as_channels, composite
from carrara.data.formats import Unreadable, decode, sniff

WHITE = (255, 255, 255)


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def photo(height: int = 24, width: int = 40, channels: int = 3, seed: int = 0) -> np.ndarray:
    """Smooth, asymmetric and different in every channel."""
    y, x = np.mgrid[0:height, 0:width]
    planes = [(x * (5 + c) + y * (3 + 2 * c) + 40 * c + seed) % 256 for c in range(channels)]
    return np.stack(planes, -1).astype(np.uint8)


def png16(pixels: np.ndarray, **options: Any) -> bytes:
    height, width, channels = pixels.shape
    out = io.BytesIO()
    writer = png.Writer(width, height, greyscale=channels < 3, alpha=channels in (2, 4), bitdepth=16, **options)
    writer.write(out, pixels.reshape(height, -1).tolist())
    return out.getvalue()


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def with_chunk(data: bytes, kind: bytes, body: bytes) -> bytes:
    """A PNG with another chunk right after its header."""
    return data[:33] + chunk(kind, body) + data[33:]


# --- orientation ------------------------------------------------------------------------------------------------------


def as_stored(upright: Image.Image, orientation: int) -> Image.Image:
    """How a camera that was held so stores the picture: what `orientation` turns back into `upright`."""
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    return upright.transpose(undo[orientation]) if orientation in undo else upright


def exif(orientation: int) -> bytes:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags.tobytes()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
def test_orientation(kind: str, orientation: int) -> None:
    upright = Image.fromarray(photo())
    options: dict[str, Any] = {"lossless": True} if kind == "WEBP" else {}
    if kind == "TIFF":
        options["tiffinfo"] = {274: orientation}
    else:
        options["exif"] = exif(orientation)
    got = decode(saved(as_stored(upright, orientation), kind, **options))
    assert np.array_equal(got.pixels, photo())
    assert got.format == kind


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_of_16_bits(orientation: int) -> None:
    deep = photo(channels=3).astype(np.uint16) * 257
    turned = np.asarray(as_stored(Image.fromarray(photo()), orientation)).astype(np.uint16) * 257
    body = exif(orientation).removeprefix(b"Exif\x00\x00")
    assert np.array_equal(decode(with_chunk(png16(turned), b"eXIf", body)).pixels, deep)
    out = io.BytesIO()
    tifffile.imwrite(out, turned, photometric="rgb", extratags=[(274, "H", 1, orientation, True)])
    assert np.array_equal(decode(out.getvalue()).pixels, deep)


def test_orientation_of_jpeg_agrees_with_pillow() -> None:
    data = saved(Image.fromarray(photo(32, 48)), "JPEG", exif=exif(6), quality=95)
    assert np.array_equal(decode(data).pixels, np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data)))))
    assert decode(data).notes == ("EXIF orientation 6 applied",)


def test_damaged_exif_keeps_the_picture() -> None:
    data = with_chunk(saved(Image.fromarray(photo()), "PNG"), b"eXIf", b"II*\x00\xff\xff\xff\xff")
    with formats.quiet():
        assert np.array_equal(decode(data).pixels, photo())


# --- transparency and palettes ----------------------------------------------------------------------------------------


def test_alpha_is_laid_on_the_background() -> None:
    """Hidden colours never show: a red that is fully clear is the background."""
    pixels = np.zeros((2, 3, 4), np.uint8)
    pixels[..., 0], pixels[0, 0, 3], pixels[0, 1, 3] = 255, 255, 128
    got = decode(saved(Image.fromarray(pixels), "PNG"))
    assert got.alpha
    assert got.channels == 3
    flat = composite(got.pixels, WHITE)
    assert flat[0, 0].tolist() == [255, 0, 0]
    assert flat[0, 1].tolist() == [255, 127, 127]
    assert flat[0, 2].tolist() == [255, 255, 255]
    assert composite(got.pixels, (0, 0, 0))[0, 2].tolist() == [0, 0, 0]


@pytest.mark.parametrize("mode", ["LA", "PA", "P with one clear colour", "P with clear colours", "L", "RGB", "1"])
def test_transparency_of_every_mode(mode: str) -> None:
    """A black dot on clear ground, however it is stored, is a black dot on white."""
    dot = np.full((6, 6), 255, np.uint8)
    dot[2:4, 2:4] = 0
    clear = np.where(dot == 0, 255, 0).astype(np.uint8)
    image = Image.fromarray(dot)
    options: dict[str, Any] = {}
    if mode in ("LA", "PA"):
        image = Image.merge("LA", (image, Image.fromarray(clear)))
        kind = "PNG"
        if mode == "PA":  # only TIFF stores it
            palette = Image.fromarray((dot == 0).astype(np.uint8)).convert("P")
            palette.putpalette([90, 80, 70, 0, 0, 0])
            image, kind = palette.convert("PA"), "TIFF"
            image.putalpha(Image.fromarray(clear))
    else:
        kind = "PNG"
    if mode.startswith("P with"):
        image = Image.fromarray((dot == 0).astype(np.uint8)).convert("P")
        image.putpalette([90, 80, 70, 0, 0, 0])
        options["transparency"] = 0 if "one" in mode else bytes([0, 255])
    elif mode in ("L", "1"):
        image = image.convert(mode)
        options["transparency"] = 255
    elif mode == "RGB":
        image = image.convert("RGB")
        options["transparency"] = (255, 255, 255)
    got = decode(saved(image, kind, **options))
    assert got.alpha
    flat = composite(got.pixels, WHITE)
    assert np.array_equal(flat, np.broadcast_to(dot[..., None], flat.shape))


def test_grey_with_alpha_on_a_coloured_background_is_in_colour() -> None:
    pixels = np.zeros((2, 2, 2), np.uint8)
    assert composite(pixels, (10, 20, 30))[0, 0].tolist() == [10, 20, 30]
    assert composite(pixels, (9, 9, 9))[0, 0].tolist() == [9]


@pytest.mark.parametrize(("dtype", "top"), [(np.uint8, 255), (np.uint16, 65535)])
def test_composite_is_rounded_exactly(dtype: Any, top: int) -> None:
    pixels = np.random.default_rng(0).integers(0, top + 1, (64, 64, 4), dtype=dtype)
    pixels[:8, :, 3], pixels[8:16, :, 3], pixels[16:24] = 0, top, top
    colours, alpha = pixels[..., :3].astype(float), pixels[..., 3:].astype(float)
    ground = np.array([10, 200, 255]) * (top // 255)
    exact = np.floor((colours * alpha + ground * (top - alpha)) / top + 0.5)
    assert np.array_equal(composite(pixels, (10, 200, 255)), exact)


def test_palette_and_bilevel() -> None:
    image = Image.fromarray(np.array([[0, 1], [2, 1]], np.uint8)).convert("P")
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    assert decode(saved(image, "PNG")).pixels.tolist() == [[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [0, 255, 0]]]
    assert decode(saved(image, "GIF")).pixels[0, 0].tolist() == [255, 0, 0]
    assert decode(saved(image, "PNG"), values=True).pixels[..., 0].tolist() == [[0, 1], [2, 1]]
    bilevel = Image.fromarray(np.array([[0, 255]], np.uint8)).convert("1")
    assert decode(saved(bilevel, "PNG")).pixels.tolist() == [[[0], [255]]]


def test_grey_stays_grey() -> None:
    assert np.array_equal(decode(saved(Image.fromarray(photo()[..., 0]), "PNG")).pixels, photo()[..., :1])
    assert as_channels(photo()[..., :1], 3).shape == (24, 40, 3)
    back = as_channels(photo(), 1)[..., 0].astype(int)
    assert np.abs(back - np.asarray(Image.fromarray(photo()).convert("L")).astype(int)).max() <= 1
    with pytest.raises(ValueError, match="cannot become"):
        as_channels(photo(channels=5), 3)


def test_animation_gives_its_first_frame() -> None:
    frames = [Image.fromarray(photo(seed=40 * i)) for i in range(3)]
    got = decode(saved(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True))
    assert np.array_equal(got.pixels, photo())
    assert got.notes == ("animation: the first frame was taken",)


# --- depth ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("interlace", [False, True])
def test_16_bit_png_is_exact(channels: int, interlace: bool) -> None:
    deep = np.random.default_rng(1).integers(0, 65536, (9, 11, channels), dtype=np.uint16)
    got = decode(png16(deep, interlace=interlace))
    assert np.array_equal(got.pixels, deep)
    assert (got.depth, got.alpha) == (16, channels in (2, 4))


def test_16_bit_ramp_from_pillow_keeps_its_levels() -> None:
    ramp = np.linspace(0, 65535, 1024).astype(np.uint16)[None].repeat(4, 0)
    for kind in ("PNG", "TIFF"):
        got = decode(saved(Image.fromarray(ramp), kind)).pixels
        assert got.dtype == np.uint16
        assert np.array_equal(got[..., 0], ramp)


def test_16_bit_png_colour_key() -> None:
    deep = np.zeros((2, 2, 3), np.uint16)
    deep[0, 0] = (1000, 2000, 3000)
    got = decode(png16(deep, transparent=(1000, 2000, 3000)))
    assert got.alpha
    assert got.pixels[..., 3].tolist() == [[0, 65535], [65535, 65535]]


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5, 8])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("planar", ["contig", "separate"])
def test_tiff_of_many_channels(channels: int, dtype: Any, planar: str) -> None:
    pixels = np.random.default_rng(2).integers(0, np.iinfo(dtype).max, (10, 12, channels), dtype=dtype)
    out = io.BytesIO()
    if channels == 1:
        tifffile.imwrite(out, pixels[..., 0], photometric="minisblack")
    elif planar == "contig":
        tifffile.imwrite(out, pixels, photometric="minisblack", planarconfig="contig")
    else:
        tifffile.imwrite(out, np.moveaxis(pixels, -1, 0), photometric="minisblack", planarconfig="separate")
    got = decode(out.getvalue())
    assert np.array_equal(got.pixels, pixels)
    assert not got.alpha


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("compression", [None, "zlib"])
def test_tiff_alpha_is_alpha(dtype: Any, compression: str | None) -> None:
    top = np.iinfo(dtype).max
    pixels = np.random.default_rng(2).integers(0, top, (10, 12, 4), dtype=dtype)
    out = io.BytesIO()
    tifffile.imwrite(out, pixels, photometric="rgb", extrasamples=["unassalpha"], compression=compression)
    got = decode(out.getvalue())
    assert got.alpha
    assert np.array_equal(got.pixels, pixels)


def test_tiff_premultiplied_alpha_is_undone() -> None:
    out = io.BytesIO()
    pixels = np.array([[[20000, 10000, 0, 32768], [0, 0, 0, 0]]], np.uint16)
    tifffile.imwrite(out, pixels, photometric="rgb", extrasamples=["assocalpha"])
    got = decode(out.getvalue()).pixels
    assert got[0, 0].tolist() == [round(20000 * 65535 / 32768), round(10000 * 65535 / 32768), 0, 32768]
    assert got[0, 1].tolist() == [0, 0, 0, 0]


def test_tiff_white_is_zero_and_pages() -> None:
    grey = photo()[..., 0].astype(np.uint16) * 257
    out = io.BytesIO()
    tifffile.imwrite(out, grey, photometric="miniswhite")
    assert np.array_equal(decode(out.getvalue()).pixels[..., 0], 65535 - grey)
    out = io.BytesIO()
    tifffile.imwrite(out, np.stack([grey, grey // 2, grey // 3]), photometric="minisblack")
    got = decode(out.getvalue())
    assert np.array_equal(got.pixels[..., 0], grey)
    assert got.notes == ("several pages: the first was taken",)


def test_float_tiff_is_refused() -> None:
    out = io.BytesIO()
    tifffile.imwrite(out, np.zeros((4, 4), np.float32))
    with pytest.raises(Unreadable, match=r"float32.*8 or 16 bits"):
        decode(out.getvalue())


@pytest.mark.parametrize("shape", [(6, 7), (6, 7, 1), (6, 7, 3), (6, 7, 5)])
@pytest.mark.parametrize("dtype", ["<u1", "<u2", ">u2"])
def test_npy(shape: tuple[int, ...], dtype: str) -> None:
    array = np.random.default_rng(3).integers(0, 255, shape).astype(dtype)
    for order in ("C", "F"):
        out = io.BytesIO()
        np.save(out, np.asarray(array, order=order))  # type: ignore[call-overload]
        got = decode(out.getvalue()).pixels
        assert np.array_equal(got.squeeze(), array.squeeze())
        assert got.dtype.isnative


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.zeros((4, 4), np.float32), "float32; uint8 and uint16"),
        (np.array([{"a": 1}], object), "object"),
        (np.zeros((2, 2, 2, 2), np.uint8), "shape"),
        (np.zeros((0, 4), np.uint8), "no pixels"),
        (np.zeros((4, 4, 300), np.uint8), "third axis"),
    ],
)
def test_npy_refused(array: np.ndarray, words: str) -> None:
    out = io.BytesIO()
    np.save(out, array, allow_pickle=True)
    with pytest.raises(Unreadable, match=words):
        decode(out.getvalue())


def test_npy_that_lies_about_its_shape_takes_no_memory() -> None:
    head = "{'descr': '|u1', 'fortran_order': False, 'shape': (9000, 9000, 200), }"
    data = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head) + 1) + head.encode() + b"\n" + b"abc"
    with pytest.raises(Unreadable, match="cut off"):
        decode(data)


# --- colour -----------------------------------------------------------------------------------------------------------


def lab_distance(a: np.ndarray, b: np.ndarray) -> float:
    """The largest CIE76 difference of two sRGB arrays of 8 bits."""
    transform = ImageCms.buildTransform(ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB")
    labs = [np.asarray(ImageCms.applyTransform(Image.fromarray(x), transform)).astype(np.int16) for x in (a, b)]
    scale = np.array([100 / 255, 1, 1])
    signed = [np.stack([lab[..., 0], lab[..., 1].astype(np.int8), lab[..., 2].astype(np.int8)], -1) for lab in labs]
    return float(np.sqrt((((signed[0] - signed[1]) * scale) ** 2).sum(-1)).max())


def profile_of(gamma: float, primaries: tuple[tuple[float, float, float], ...] = ()) -> bytes:
    """A small version 2 ICC profile: one gamma, and XYZ (D50) columns for red, green and blue, or none for grey."""

    def fixed(values: tuple[float, ...]) -> bytes:
        return b"".join(struct.pack(">i", round(v * 65536)) for v in values)

    curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256)) + b"\0\0"
    text = b"a profile for tests\0"
    description = b"desc\0\0\0\0" + struct.pack(">I", len(text)) + text + bytes(79 + (-len(text) - 91) % 4)
    white = (0.9642, 1.0, 0.8249)
    tags = {b"desc": description, b"wtpt": b"XYZ \0\0\0\0" + fixed(white)}
    for name, xyz in zip((b"r", b"g", b"b"), primaries, strict=bool(primaries)):
        tags[name + b"XYZ"] = b"XYZ \0\0\0\0" + fixed(xyz)
        tags[name + b"TRC"] = curve
    if not primaries:
        tags[b"kTRC"] = curve
    start, table, body = 128 + 4 + 12 * len(tags), b"", b""
    for name, data in tags.items():
        table += struct.pack(">4sII", name, start + len(body), len(data))
        body += data + bytes(-len(data) % 4)
    size = start + len(body)
    head = struct.pack(">I4sI4s4s4s", size, b"test", 0x02100000, b"mntr", b"RGB " if primaries else b"GRAY", b"XYZ ")
    head += struct.pack(">6H", 2026, 1, 1, 0, 0, 0) + b"acsp" + bytes(28) + fixed(white) + bytes(48)
    return head + struct.pack(">I", len(tags)) + table + body


# Display P3 primaries, adapted to D50 (columns of its matrix)
P3 = ((0.51512, 0.24120, -0.00105), (0.29198, 0.69225, 0.04189), (0.15710, 0.06657, 0.78407))


def from_p3(values: np.ndarray, gamma: float) -> np.ndarray:
    """P3 values in [0, 1] to sRGB in [0, 1], by hand."""
    d50_to_linear_srgb = np.linalg.inv(
        np.array([[0.43607, 0.38515, 0.14307], [0.22249, 0.71687, 0.06061], [0.01392, 0.09708, 0.71410]])
    )
    linear = (values**gamma) @ np.array(P3) @ d50_to_linear_srgb.T
    linear = np.clip(linear, 0, 1)
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_profile_is_converted(mode: str) -> None:
    values = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    image = Image.fromarray(values)
    if mode == "RGBA":
        image.putalpha(Image.fromarray(photo(8, 8)[..., 0]))
    got = decode(saved(image, "PNG", icc_profile=profile_of(2.2, P3)))
    want = np.rint(255 * from_p3(values / 255, 2.2)).astype(np.uint8)
    assert lab_distance(np.ascontiguousarray(got.pixels[..., :3]), want) < 2
    assert lab_distance(values, want) > 5
    assert "ICC profile converted to sRGB" in got.notes
    if mode == "RGBA":
        assert np.array_equal(got.pixels[..., 3], photo(8, 8)[..., 0])


def test_profile_is_converted_at_16_bits() -> None:
    values = np.random.default_rng(0).integers(0, 65536, (8, 8, 3), dtype=np.uint16)
    profile = profile_of(2.2, P3)
    data = with_chunk(png16(values), b"iCCP", b"p3\0\0" + zlib.compress(profile))
    got = decode(data)
    assert np.abs(got.pixels / 65535 - from_p3(values / 65535, 563 / 256)).max() < 0.002
    assert np.unique(got.pixels).size > 150
    out = io.BytesIO()
    tifffile.imwrite(out, values, photometric="rgb", iccprofile=profile)
    assert np.array_equal(decode(out.getvalue()).pixels, got.pixels)
    assert np.array_equal(decode(data, values=True).pixels, values)


@pytest.mark.parametrize("alpha", [False, True])
def test_grey_profile_is_converted(alpha: bool) -> None:
    """Linear grey becomes sRGB grey, at 8 and at 16 bits, and stays one channel."""
    ramp = np.arange(256, dtype=np.uint8).reshape(16, 16)
    linear = ramp / 255
    want = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    image = Image.fromarray(ramp)
    if alpha:
        image.putalpha(Image.fromarray(ramp.T))
    got = decode(saved(image, "PNG", icc_profile=profile_of(1.0)))
    assert got.channels == 1
    assert np.abs(got.pixels[..., 0] - 255 * want).max() <= 1.5
    deep = np.stack([ramp, ramp.T], -1)[..., : 1 + alpha].astype(np.uint16) * 257
    got = decode(with_chunk(png16(deep), b"iCCP", b"g\0\0" + zlib.compress(profile_of(1.0))))
    assert np.abs(got.pixels[..., 0] / 65535 - want).max() < 1e-4
    if alpha:
        assert np.array_equal(got.pixels[..., 1], deep[..., 1])


def test_srgb_profile_changes_nothing() -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert np.array_equal(decode(saved(Image.fromarray(photo()), "PNG", icc_profile=profile)).pixels, photo())
    deep = photo().astype(np.uint16) * 257
    data = with_chunk(png16(deep), b"iCCP", b"s\0\0" + zlib.compress(profile))
    assert np.abs(decode(data).pixels.astype(int) - deep).max() <= 24


def test_broken_profile_is_said() -> None:
    got = decode(saved(Image.fromarray(photo()), "PNG", icc_profile=b"nonsense" * 40))
    assert np.array_equal(got.pixels, photo())
    assert "sRGB was assumed" in got.notes[0]
    wrong = with_chunk(png16(photo().astype(np.uint16)), b"iCCP", b"s\0\0" + zlib.compress(b"nonsense" * 40))
    assert "sRGB was assumed" in decode(wrong).notes[0]


def test_lab_profile_for_grey_is_not_applied() -> None:
    profile = profile_of(2.2, P3)
    got = decode(saved(Image.fromarray(photo()[..., 0]), "PNG", icc_profile=profile))
    assert np.array_equal(got.pixels, photo()[..., :1])


def test_cmyk() -> None:
    """Pure inks come out as their colours, with and without Adobe's inversion."""
    inks = {
        (0, 0, 0, 0): WHITE,
        (0, 0, 0, 255): (0, 0, 0),
        (255, 0, 0, 0): (0, 255, 255),
        (0, 255, 255, 0): (255, 0, 0),
    }
    for ink, colour in inks.items():
        image = Image.new("CMYK", (16, 16), ink)
        for kind, options in (("JPEG", {"quality": 100}), ("TIFF", {})):
            got = decode(saved(image, kind, **options))
            assert np.abs(got.pixels.astype(int) - colour).max() <= 2, (ink, kind)
            assert got.pixels.shape == (16, 16, 3)
            assert any("CMYK" in note for note in got.notes)


def test_png_gamma_is_honoured() -> None:
    """A linear-light PNG (gAMA 1.0) is brightened to sRGB; an ordinary one is left alone."""
    plain = saved(Image.fromarray(photo()), "PNG")
    linear = decode(with_chunk(plain, b"gAMA", struct.pack(">I", 100000)))
    x = photo() / 255
    want = np.where(x <= 0.0031308, 12.92 * x, 1.055 * x ** (1 / 2.4) - 0.055)
    assert np.abs(linear.pixels - 255 * want).max() <= 0.51
    assert np.array_equal(decode(with_chunk(plain, b"gAMA", struct.pack(">I", 45455))).pixels, photo())
    both = with_chunk(with_chunk(plain, b"gAMA", struct.pack(">I", 100000)), b"sRGB", b"\0")
    assert np.array_equal(decode(both).pixels, photo())


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_cut_off_files(kind: str, share: float) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    data = saved(Image.fromarray(noise), kind)
    with formats.quiet(), pytest.raises(Unreadable) as error:
        decode(data[: int(share * len(data))])
    assert str(error.value)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "empty"),
        (b"<!DOCTYPE html><html></html>", "web page"),
        (b"\xef\xbb\xbf <html>", "web page"),
        (b"<svg xmlns='x'/>", "vector drawing"),
        (b"%PDF-1.7", "PDF"),
        (b"PK\x03\x04....", "zip"),
        (b"version https://git-lfs.github.com/spec/v1", "git lfs pull"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", "PostScript"),
        (b"8BPS\0\1", "Photoshop"),
        (b"\0\0\0\x18ftypheic" + bytes(40), "HEIF"),
        (b"just some words, not a picture", "not a picture of a format"),
        (b"\x89PNG\r\n\x1a\n", "PNG"),
        (b"\xff\xd8\xff", "JPEG"),
        (b"II*\x00", "TIFF"),
        (b"\x93NUMPY", "NPY"),
        (b"BM" + bytes(12) + b"\x28\0\0\0" + bytes(40), "BMP"),
    ],
)
def test_not_pictures(data: bytes, words: str) -> None:
    with formats.quiet(), pytest.raises(Unreadable, match=words):
        decode(data)


def test_a_name_means_nothing() -> None:
    """A JPEG called .png, a PNG called .jpg: what counts is the content."""
    assert sniff(saved(Image.fromarray(photo()), "JPEG")[:32]) == "JPEG"
    assert sniff(b"<html>") is None


@pytest.mark.parametrize("bits", [8, 16])
def test_bombs(bits: int) -> None:
    """A PNG of a few bytes that claims to be enormous is refused before any of it is decoded."""
    head = struct.pack(">IIBBBBB", 50_000, 50_000, bits, 2, 0, 0, 0)
    data = (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )
    with formats.quiet(), pytest.raises(Unreadable, match="bomb"):
        decode(data)
    head = struct.pack(">IIBBBBB", 10_000, 10_000, bits, 2, 0, 0, 0)  # between Pillow's warning and its error
    data = (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )
    with formats.quiet(), pytest.raises(Unreadable, match="bomb"):
        decode(data)


def test_hostile_bytes_raise_nothing_else() -> None:
    """Any damage to a file either leaves a picture or raises Unreadable."""
    rng = np.random.default_rng(0)
    small = Image.fromarray(photo(12, 12))
    out = io.BytesIO()
    tifffile.imwrite(out, photo(12, 12, 5), photometric="minisblack", planarconfig="contig")
    seeds = [saved(small, kind) for kind in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")]
    seeds += [png16(photo(12, 12).astype(np.uint16)), out.getvalue()]
    array = io.BytesIO()
    np.save(array, photo(12, 12))
    seeds.append(array.getvalue())
    with formats.quiet():
        for data in seeds:
            for _ in range(40):
                broken = bytearray(data)
                for place in rng.integers(0, len(data), 3):
                    broken[place] = rng.integers(0, 256)
                try:
                    got = decode(bytes(broken))
                except Unreadable:
                    continue
                assert got.pixels.ndim == 3


def test_quiet_puts_warnings_back(tmp_path: Path) -> None:
    import logging
    import warnings

    before = list(warnings.filters)
    with formats.quiet():
        pass
    assert warnings.filters == before
    assert logging.getLogger("tifffile").level != logging.CRITICAL
