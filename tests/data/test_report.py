"""The report before training: right counts, honest refusals, and a page that no file name or caption can break."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from carrara.data import DataSettings, Report, check
from carrara.errors import DataError


def write(path: Path, seed: int = 0, height: int = 40, width: int = 60, **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, **options)


def checked(folder: Path, **options: Any) -> Report:
    settings = {key: options.pop(key) for key in list(options) if key in DataSettings.__dataclass_fields__}
    return check(DataSettings(folder=str(folder), size=16, **settings), **options)


class Tags(HTMLParser):
    """Every element and attribute of a page, and whether they nest."""

    VOID = ("meta", "img", "rect", "link")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag


def test_counts(tmp_path: Path) -> None:
    for i in range(10):
        write(tmp_path / f"{i}.png", i)
        (tmp_path / f"{i}.txt").write_text("a picture of " + "very " * i + "much noise")
    write(tmp_path / "copy.bmp", 3)
    write(tmp_path / "tall.jpg", 11, 100, 20)
    (tmp_path / "copy.txt").write_text("x"), (tmp_path / "tall.txt").write_text("y")
    (tmp_path / "bad.png").write_bytes(b"<html>")
    seen: list[tuple[int, int]] = []
    report = checked(tmp_path, limit=10, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (13, 13)
    assert report.ok
    assert report.formats == {"PNG": 10, "BMP": 1, "JPEG": 1}
    assert report.modes == {"RGB": 12}
    assert report.kinds == {(3, 8): 12}
    assert report.duplicates == (("3.png", "copy.bmp"),)
    assert report.findings.problems[0].name == "bad.png"
    assert report.train + report.heldout == 12
    assert report.over == ("6.png", "7.png", "8.png", "9.png")
    assert len(report.sheet) == 12
    said = "\n".join(report.sentences())
    assert "1 picture repeated exactly: 3.png = copy.bmp" in said
    assert "bad.png (this is a web page" in said
    plain = json.loads(json.dumps(report.to_json()))
    assert plain["sizes"]["short_side"]["32 to 63"] == 11
    assert plain["sizes"]["aspect"]["below 0.5"] == 1
    assert plain["sizes"]["largest"] == [40, 60]
    assert sum(plain["captions"]["lengths"].values()) == 12
    assert plain["captions"]["longest"] == 14
    assert plain["settings"]["size"] == 16
    assert not (tmp_path / "cache").exists()


def test_refusals_are_those_of_training(tmp_path: Path) -> None:
    for i in range(4):
        write(tmp_path / f"{i}.png", i)
    (tmp_path / "0.txt").write_text("x")
    Image.fromarray(np.zeros((40, 40), np.uint8)).save(tmp_path / "grey.png")
    (tmp_path / "grey.txt").write_text("g")
    report = checked(tmp_path)
    assert not report.ok
    assert "mixes 4 pictures in colour with 8 bits" in report.refusals[0]
    assert "1 picture in grey with 8 bits (such as grey.png)" in report.refusals[0]
    assert report.flat == ("grey.png",)
    assert "set channels = 3" in report.refusals[0]
    assert "3 of 5 pictures have no caption" in report.refusals[1]
    assert report.converted == ()
    converted = checked(tmp_path, channels=3, allow_uncaptioned=True)
    assert converted.ok
    assert "1 picture of another kind, converted: grey.png." in converted.sentences()
    with pytest.raises(DataError, match="there is no folder"):
        checked(tmp_path / "none")


HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(1)>\"' & \u202e \x07"


def test_html_escapes_everything(tmp_path: Path) -> None:
    folder = tmp_path / "<b onmouseover='x'>data"
    name = "<img src=x onerror=alert(1)>\"'&.png"
    write(folder / name), write(folder / "two.png"), write(folder / "three.png", 5)
    (folder / "<svg onload=x>.png").write_bytes(b"nothing")
    rows = [
        {"file_name": name, "text": HOSTILE, "label": "<i>class"},
        {"file_name": "two.png", "text": "</figcaption></style><script>", "label": "x"},
        {"file_name": "three.png", "text": "plain"},
        {"file_name": "<gone>.png", "text": "x"},
    ]
    (folder / "metadata.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    (folder / "<u>.doc").write_text("x")
    report = checked(folder, recipe=f'folder = "{folder}"\n# {HOSTILE}')
    page = report.to_html()
    tags = Tags(page)
    assert not tags.open
    names = {tag for tag, _ in tags.seen}
    assert not names & {"script", "i", "b", "u", "iframe", "link", "base", "form"}
    for _, attributes in tags.seen:
        assert not any(key.startswith("on") for key in attributes)
        assert attributes.get("src", "data:image/png;base64,").startswith("data:image/png;base64,")  # type: ignore[union-attr]
        assert "href" not in attributes
    assert "&lt;script&gt;alert(1)" in page
    assert "\x07" not in page
    assert "\u202e" not in page


def test_html_stands_alone_and_reads_well(tmp_path: Path) -> None:
    for i in range(5):
        write(tmp_path / "d" / f"{i}.png", i)
    page = checked(tmp_path / "d").to_html()
    assert page.startswith("<!doctype html>")
    assert "prefers-color-scheme:dark" in page
    assert "Content-Security-Policy" in page
    assert not re.search(r"https?://", page)
    assert page.count("<img ") == 5
    assert "<svg" in page
    assert "Training can begin" in page
    assert all(attributes.get("alt") for tag, attributes in Tags(page).seen if tag == "img")


def test_what_was_done_to_pictures_is_told(tmp_path: Path) -> None:
    write(tmp_path / "plain.png", 1)
    Image.new("CMYK", (40, 40), (10, 80, 30, 0)).save(tmp_path / "cmyk.jpg")
    said = checked(tmp_path).sentences()
    assert "1 picture: CMYK without a profile, converted plainly." in said


def test_tokens_and_recipe(tmp_path: Path) -> None:
    write(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("four letter words only")
    report = checked(tmp_path, tokens=len, limit=10, note="Counted in letters.", recipe="size = 32")
    assert report.lengths == (22,)
    assert report.unit == "token"
    assert report.over == ("a.png",)
    assert report.recipe == "size = 32"
    said = "\n".join(report.sentences())
    assert "Counted in letters." in said
    assert "over 10 tokens" in said


def test_contact_sheet_of_deep_and_many_channels(tmp_path: Path) -> None:
    for i in range(3):
        np.save(tmp_path / f"{i}.npy", np.random.default_rng(i).integers(0, 65536, (20, 20, 5), dtype=np.uint16))
    report = checked(tmp_path)
    assert report.kinds == {(5, 16): 3}
    assert len(report.sheet) == 3
    assert report.to_html()


def test_nothing_readable(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"none of the 1 picture.*a\.png \(the file is empty\)"):
        checked(tmp_path)
