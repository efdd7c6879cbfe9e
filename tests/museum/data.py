"""Data: what becomes of a picture between the file and the batch."""

from __future__ import annotations

from museum.exhibit import Exhibit

__all__ = ["EXHIBITS"]

EXHIBITS = (
    Exhibit(
        name="same-draws-every-step",
        bug=43,
        file="data/loader.py",
        text="        bits.advance(start // 4)  # a Philox block is four words\n",
        replacement="        start = start % 4\n",
        tests=("tests/data/test_loader.py::test_captions_and_flips_are_drawn_anew_for_every_sample",),
    ),
    Exhibit(
        name="same-move-for-every-row",
        bug=43,
        file="data/augment.py",
        text="        draws = rng.uniform((4,)).to(torch.float32)\n",
        replacement="        draws = rng.uniform((4,)).to(torch.float32)[:1].expand(len(images), 4)\n",
        tests=("tests/data/test_augment.py::test_every_sample_is_moved_by_itself",),
    ),
    Exhibit(
        name="mask-not-turned-with-its-picture",
        bug=53,
        file="data/loader.py",
        text="            for tensor in (images, *inputs.values()):\n",
        replacement="            for tensor in (images,):\n",
        tests=("tests/data/test_loader.py::test_random_crops",),
    ),
    Exhibit(
        name="mask-cut-elsewhere",
        bug=53,
        file="data/loader.py",
        text="self.pictures.input_tensors(index, crop)\n",
        replacement="self.pictures.input_tensors(index)\n",
        tests=("tests/data/test_loader.py::test_random_crops",),
    ),
    Exhibit(
        name="captions-of-other-pictures",
        bug=52,
        file="data/pictures.py",
        text="        rows: list[Row] = [listing.rows[number] for number in cache.rows]\n",
        replacement="        rows: list[Row] = list(listing.rows[: len(cache.rows)])\n",
        tests=("tests/data/test_pictures.py::test_captions_stay_with_their_pictures_when_some_are_skipped",),
    ),
    Exhibit(
        name="orientation-ignored",
        bug=58,
        file="data/formats.py",
        text="    if orientation in range(2, 9):\n        ImageOps",
        replacement="    if False:\n        ImageOps",
        tests=("tests/data/test_pictures.py::test_eight_orientations_are_one_tensor",),
    ),
    Exhibit(
        name="orientation-turned-the-other-way",
        bug=58,
        file="data/formats.py",
        text="    if orientation in (2, 3, 6, 7):\n",
        replacement="    if orientation in (2, 3, 5, 8):\n",
        tests=("tests/data/test_formats.py::test_orientation_of_16_bits",),
    ),
    Exhibit(
        name="hidden-colours-exposed",
        bug=59,
        file="data/preparation.py",
        text="    pixels = composite(main.pixels, settings.colour) if main.alpha else main.pixels\n    if want",
        replacement="    pixels = main.pixels[..., :-1] if main.alpha else main.pixels\n    if want",
        tests=("tests/data/test_pictures.py::test_transparency_lies_on_the_declared_background",),
    ),
    Exhibit(
        name="hidden-colours-bleed-in-scaling",
        bug=59,
        file="data/transform.py",
        text="    weighted = np.concatenate([pixels[..., :-1] * share, share], axis=2).astype(np.float32)\n",
        replacement=("    weighted = np.concatenate([pixels[..., :-1], share], axis=2).astype(np.float32)\n"),
        tests=("tests/data/test_transform.py::test_hidden_colours_do_not_bleed",),
    ),
    Exhibit(
        name="transparency-of-palettes-lost",
        bug=59,
        file="data/formats.py",
        text='    if image.mode in ("P", "PA", "1") or "transparency" in image.info:\n',
        replacement='    if image.mode in ("P", "PA", "1"):\n        image = image.convert("RGB")\n    if False:\n',
        tests=("tests/data/test_formats.py::test_transparency_of_every_mode",),
    ),
    Exhibit(
        name="sixteen-bits-clipped",
        bug=60,
        file="data/preparation.py",
        text="        return ((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)\n",
        replacement="        return np.clip(pixels, 0, 255).astype(np.uint8)\n",
        tests=("tests/data/test_pictures.py::test_16_bits_keep_their_levels",),
    ),
    Exhibit(
        name="sixteen-bits-read-as-eight",
        bug=60,
        file="data/formats.py",
        text='    if kind == "PNG" and len(data) > 24 and data[24] == 16:\n',
        replacement='    if kind == "PNG" and len(data) < 24:\n',
        tests=("tests/data/test_pictures.py::test_16_bit_colour",),
    ),
    Exhibit(
        name="profiles-ignored",
        bug=61,
        file="data/colour.py",
        text='    if profile and bands in ("L", "RGB", "CMYK", "LAB"):\n',
        replacement="    if False:\n",
        tests=("tests/data/test_formats.py::test_profile_is_converted",),
    ),
    Exhibit(
        name="profiles-ignored-at-sixteen-bits",
        bug=61,
        file="data/colour.py",
        text="            changed = _by_matrix(colours, _tags(profile))\n",
        replacement="            changed = colours / 65535\n",
        tests=("tests/data/test_formats.py::test_profile_is_converted_at_16_bits",),
    ),
    Exhibit(
        name="gamma-ignored",
        bug=61,
        file="data/colour.py",
        text='    if gamma and bands in ("L", "RGB") and _unusual(gamma):\n',
        replacement="    if False:\n",
        tests=("tests/data/test_formats.py::test_png_gamma_is_honoured",),
    ),
    Exhibit(
        name="inks-taken-for-colours",
        bug=61,
        file="data/formats.py",
        text='        image = image.convert("RGB")\n    return image, notes\n',
        replacement=(
            "        from PIL import Image\n"
            "\n"
            '        image = Image.merge("RGB", image.split()[:3]) if image.mode == "CMYK" else image.convert("RGB")\n'
            "    return image, notes\n"
        ),
        tests=("tests/data/test_formats.py::test_cmyk",),
    ),
    Exhibit(
        name="scaled-without-antialiasing",
        bug=62,
        file="data/transform.py",
        text="np.asarray(image.resize(shape, Image.Resampling.LANCZOS, box))\n",
        replacement="np.asarray(image.resize(shape, Image.Resampling.NEAREST, box))\n",
        tests=("tests/data/test_transform.py::test_scaling_down_is_antialiased",),
        note="No figure of quality is computed from features yet; what is resized is the data.",
    ),
    Exhibit(
        name="scaled-by-another-filter",
        bug=62,
        file="data/transform.py",
        text="np.asarray(image.resize(shape, Image.Resampling.LANCZOS, box))\n",
        replacement="np.asarray(image.resize(shape, Image.Resampling.BICUBIC, box))\n",
        tests=("tests/data/test_transform.py::test_8_bits_are_pillows_lanczos",),
    ),
    Exhibit(
        name="corrupt-picture-ends-it-all",
        bug=68,
        file="data/preparation.py",
        text="        return Problem(row.name, str(error))\n",
        replacement="        raise\n",
        tests=("tests/data/test_pictures.py::test_bad_files_are_skipped_counted_and_named",),
        raises="Unreadable",
    ),
    Exhibit(
        name="corrupt-picture-passed-over-in-silence",
        bug=68,
        file="data/cache.py",
        text="            done.problems.append(one)\n",
        replacement="            pass\n",
        tests=("tests/data/test_pictures.py::test_bad_files_are_skipped_counted_and_named",),
    ),
    Exhibit(
        name="corrupt-picture-replaced-by-the-one-before",
        bug=68,
        file="data/cache.py",
        text=(
            "            done.problems.append(one)\n"
            "        else:\n"
            "            _add(done, arrays, work, listing, number, one)\n"
        ),
        replacement=(
            "            done.problems.append(one)\n"
            "            if done.rows:\n"
            "                _add(done, arrays, work, listing, number, before)\n"
            "        else:\n"
            "            before = one\n"
            "            _add(done, arrays, work, listing, number, one)\n"
        ),
        tests=("tests/data/test_pictures.py::test_bad_files_are_skipped_counted_and_named",),
    ),
)
