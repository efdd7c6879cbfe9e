"""Any layout of a folder is understood, what was decided is said, and nothing is dropped without being named."""

from __future__ import annotations

import codecs
import contextlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from carrara.data import DataSettings, check
from carrara.data.captions import name_caption, wordy
from carrara.data.findings import refusals
from carrara.data.folder import Listing, Row, list_folder
from carrara.data.paths import leaves
from carrara.errors import DataError, StorageError


def picture(path: Path, value: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((8, 8, 3), value, np.uint8)).save(path, "PNG")
    return path


def listed(folder: Path, **settings: Any) -> Listing:
    return list_folder(DataSettings(folder=str(folder), **settings))


def by_name(listing: Listing) -> Mapping[str, Row]:
    return {row.name: row for row in listing.rows}


def lines(path: Path, *rows: object) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")


# --- metadata ---------------------------------------------------------------------------------------------------------


def test_jsonl(tmp_path: Path) -> None:
    picture(tmp_path / "a.png"), picture(tmp_path / "sub" / "b.png")
    lines(
        tmp_path / "metadata.jsonl",
        {"file_name": "a.png", "text": " a red apple "},
        {"file_name": "sub/b.png", "text": ["one", "two", "", None, "one"]},
    )
    found = listed(tmp_path)
    assert by_name(found)["a.png"].captions == ("a red apple",)
    assert by_name(found)["sub/b.png"].captions == ("one", "two")
    assert found.findings.captions == {"metadata": 2}
    assert not found.findings.uncaptioned


def test_csv_keeps_captions_that_look_like_nothing(tmp_path: Path) -> None:
    said = ["None", "NA", "null", "nan", "", 'a "quoted", word', "two\nlines"]
    for i in range(len(said)):
        picture(tmp_path / f"{i}.png")
    rows = ["file_name,text"] + [f'{i}.png,"{text.replace(chr(34), chr(34) * 2)}"' for i, text in enumerate(said)]
    (tmp_path / "metadata.csv").write_bytes(codecs.BOM_UTF8 + "\n".join(rows).encode())
    found = listed(tmp_path)
    captions = [by_name(found)[f"{i}.png"].captions for i in range(len(said))]
    assert captions == [("None",), ("NA",), ("null",), ("nan",), (), ('a "quoted", word',), ("two\nlines",)]
    assert found.findings.uncaptioned == ("4.png",)


def test_parquet_metadata(tmp_path: Path) -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    picture(tmp_path / "a.png"), picture(tmp_path / "b.png")
    pq.write_table(
        pa.table({"file_name": ["a.png", "b.png"], "caption": [["x", "y"], ["None"]]}), tmp_path / "metadata.parquet"
    )
    found = listed(tmp_path)
    assert [row.captions for row in found.rows] == [("x", "y"), ("None",)]
    assert found.findings.ignored == ()


def test_caption_column_and_labels_and_repeats(tmp_path: Path) -> None:
    picture(tmp_path / "a.png"), picture(tmp_path / "b.png")
    lines(
        tmp_path / "metadata.jsonl",
        {"file_name": "a.png", "caption": "one", "label": 3},
        {"file_name": "a.png", "caption": "two", "label": 3},
        {"file_name": "./b.png", "text": "text wins", "caption": "not this", "label": "cat"},
    )
    found = listed(tmp_path)
    assert by_name(found)["a.png"].captions == ("one", "two")
    assert by_name(found)["b.png"].captions == ("text wins",)
    assert [row.label for row in found.rows] == ["3", "cat"]
    assert any("named a picture again" in text for text in found.findings.sentences())


def test_one_metadata_file_a_folder(tmp_path: Path) -> None:
    for name in ("x", "y"):
        picture(tmp_path / name / "same.png")
        lines(tmp_path / name / "metadata.jsonl", {"file_name": "same.png", "text": name})
    assert [row.captions for row in listed(tmp_path).rows] == [("x",), ("y",)]


def test_mixed_kinds_are_refused(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    lines(tmp_path / "metadata.jsonl", {"file_name": "a.png", "text": "x"})
    (tmp_path / "metadata.csv").write_text("file_name,text\na.png,x\n")
    with pytest.raises(DataError, match="different kinds"):
        listed(tmp_path)


def test_gaps_are_named(tmp_path: Path) -> None:
    """A picture that the metadata lacks, and a row whose picture is not there, are neither dropped nor fatal here."""
    for name in "abc":
        picture(tmp_path / f"{name}.png")
    lines(tmp_path / "metadata.jsonl", {"file_name": "a.png", "text": "x"}, {"file_name": "gone.png", "text": "y"})
    found = listed(tmp_path)
    assert found.findings.unlisted == found.findings.uncaptioned == ("b.png", "c.png")
    assert found.findings.missing == ("gone.png",)
    assert len(found.rows) == 3
    settings = DataSettings(folder="x")
    missing, bare = refusals(found.findings, settings)
    assert "gone.png" in missing
    assert "allow_missing" in missing
    assert "b.png" in bare
    assert "2 are not named by the metadata" in bare
    assert not refusals(found.findings, DataSettings(folder="x", allow_uncaptioned=True, allow_missing=True))


def test_one_percent_is_only_reported(tmp_path: Path) -> None:
    for i in range(100):
        picture(tmp_path / f"{i}.png")
    lines(tmp_path / "metadata.jsonl", *({"file_name": f"{i}.png", "text": "x"} for i in range(99)))
    found = listed(tmp_path)
    assert found.findings.uncaptioned == ("99.png",)
    assert not refusals(found.findings, DataSettings(folder="x"))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"file_name": "a.png"', "line 1 is not JSON"),
        ("[1, 2]", "is a list"),
        ('{"filename": "a.png"}', 'rename "filename" to "file_name"'),
        ('{"file_name": 3}', "file_name is 3"),
        ('{"file_name": null}', "file_name is None"),
        ('{"file_name": "a.png", "text": 5}', "a caption is 5"),
        ('{"file_name": "a.png", "text": [["x"]]}', "a caption is"),
        ('{"file_names": ["a.png"], "file_name": "a.png"}', "one column a picture"),
        ('{"file_name": "a.png", "split": "sideways"}', "split column has sideways"),
        ("[" * 100_000, "is not JSON"),
    ],
)
def test_wrong_metadata_is_a_sentence(tmp_path: Path, text: str, words: str) -> None:
    picture(tmp_path / "a.png")
    (tmp_path / "metadata.jsonl").write_text(text + "\n")
    with pytest.raises(DataError, match=words):
        listed(tmp_path)


def test_wrong_csv_is_a_sentence(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    path = tmp_path / "metadata.csv"
    path.write_text("file_name,text\na.png,one,two\n")
    with pytest.raises(DataError, match="line 2 has more cells"):
        listed(tmp_path)
    path.write_bytes(b"file_name,text\na.png,\xff\xfe\xfd\n")
    with pytest.raises(DataError, match="UTF-8"):
        listed(tmp_path)
    path.write_text("file_name,text\na.png," + "x" * 200_000 + "\n")
    with pytest.raises(DataError, match="cannot be read as csv"):
        listed(tmp_path)


@pytest.mark.parametrize(
    "name",
    ["/etc/passwd", "../secret.png", "a/../../secret.png", "https://x.org/a.png", "file:///a.png", "C:\\a.png",
     "..\\secret.png", "~/a.png", "\\\\server\\a.png", "a\x00.png", "", "  "],
)  # fmt: skip
def test_paths_that_leave_the_folder(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "data"
    picture(folder / "a.png"), picture(tmp_path / "secret.png")
    assert leaves(name)
    for column in ("file_name", "mask_file_name"):
        row = {"file_name": "a.png", "text": "x", column: name}
        if name == "" and column != "file_name":
            continue  # an empty cell: no mask
        lines(folder / "metadata.jsonl", row)
        with pytest.raises(DataError, match="is refused"):
            listed(folder)


def test_links(tmp_path: Path) -> None:
    """Links inside the folder are pictures; links out of it, broken or circular ones are named."""
    folder = tmp_path / "data"
    picture(folder / "a.png"), picture(tmp_path / "secret" / "s.png")
    (folder / "inside.png").symlink_to("a.png")
    (folder / "outside.png").symlink_to(tmp_path / "secret" / "s.png")
    (folder / "outer").symlink_to(tmp_path / "secret")
    (folder / "loop").symlink_to(folder)
    (folder / "broken.png").symlink_to(folder / "none.png")
    found = listed(folder)
    assert set(by_name(found)) == {"a.png", "inside.png"}
    reasons = {problem.name: problem.reason for problem in found.findings.problems}
    assert reasons["outside.png"] == reasons["outer"] == "the link leaves the folder"
    assert "broken.png" in reasons
    assert any("loop was not followed" in text for text in found.findings.sentences())
    lines(folder / "metadata.jsonl", {"file_name": "outside.png", "text": "x"}, {"file_name": "a.png", "text": "y"})
    assert "outside.png" not in by_name(listed(folder))


def test_a_linked_folder_itself_is_fine(tmp_path: Path) -> None:
    picture(tmp_path / "real" / "a.png")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert len(listed(tmp_path / "link").rows) == 1


# --- caption files ----------------------------------------------------------------------------------------------------


def test_sidecars(tmp_path: Path) -> None:
    for name in ("a", "b", "c", "d", "e"):
        picture(tmp_path / f"{name}.png")
    (tmp_path / "a.txt").write_text("one\n\n  two  \none\n")
    (tmp_path / "b.caption").write_bytes(codecs.BOM_UTF8 + b"first\nsecond\n")
    (tmp_path / "c.txt").write_text("from txt")
    (tmp_path / "c.caption").write_text("from caption")
    (tmp_path / "d.txt").write_bytes("ünïcode".encode("utf-16"))
    (tmp_path / "e.txt").write_bytes(b"\xff\xfe\xfd\xfc\xfb")
    (tmp_path / "notes.txt").write_text("nobody's")
    found = listed(tmp_path)
    rows = by_name(found)
    assert rows["a.png"].captions == ("one", "two")
    assert rows["b.png"].captions == ("first",)
    assert rows["c.png"].captions == ("from caption",)
    assert rows["d.png"].captions == ("ünïcode",)
    assert rows["e.png"].captions == ()
    assert found.findings.captions == {"caption": 2, "txt": 2}
    assert found.findings.uncaptioned == ("e.png",)
    assert found.findings.ignored == ("notes.txt",)
    assert any("e.png has no caption" in text and "UTF-8" in text for text in found.findings.sentences())


def test_order_of_sources(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("from txt")
    lines(tmp_path / "metadata.jsonl", {"file_name": "a.png", "text": "from metadata"})
    assert listed(tmp_path).rows[0].captions == ("from metadata",)
    assert listed(tmp_path, captions=("txt", "metadata")).rows[0].captions == ("from txt",)
    assert listed(tmp_path, captions=()).rows[0].captions == ()


# --- classes, splits, names -------------------------------------------------------------------------------------------


def test_class_folders(tmp_path: Path) -> None:
    for name in ("red_apple", "pear"):
        picture(tmp_path / name / "1.png")
    found = listed(tmp_path)
    assert [row.label for row in found.rows] == ["pear", "red_apple"]
    assert [row.captions for row in found.rows] == [("pear",), ("red apple",)]
    assert found.findings.classes == ("pear", "red_apple")
    assert found.findings.captions == {"class": 2}
    assert listed(tmp_path, captions=("txt",)).rows[0].captions == ()


def test_no_classes_where_depths_differ_or_one_folder(tmp_path: Path) -> None:
    picture(tmp_path / "one" / "1.png"), picture(tmp_path / "one" / "2.png")
    assert {row.label for row in listed(tmp_path).rows} == {""}
    picture(tmp_path / "two" / "deeper" / "3.png")
    found = listed(tmp_path)
    assert {row.label for row in found.rows} == {""}
    assert any("several depths" in text for text in found.findings.sentences())


def test_split_folders(tmp_path: Path) -> None:
    for split in ("train", "test", "Validation"):
        for name in ("cat", "dog"):
            picture(tmp_path / split / name / "1.png")
    found = by_name(listed(tmp_path))
    assert {name: row.split for name, row in found.items() if "cat" in name} == {
        "Validation/cat/1.png": "heldout",
        "test/cat/1.png": "heldout",
        "train/cat/1.png": "train",
    }
    assert {row.label for row in found.values()} == {"cat", "dog"}


def test_a_train_folder_alone_is_no_split(tmp_path: Path) -> None:
    picture(tmp_path / "train" / "1.png")
    assert listed(tmp_path).rows[0].split == ""


def test_split_column(tmp_path: Path) -> None:
    picture(tmp_path / "a.png"), picture(tmp_path / "b.png")
    lines(
        tmp_path / "metadata.jsonl",
        {"file_name": "a.png", "text": "x", "split": "Test"},
        {"file_name": "b.png", "text": "y"},
    )
    assert [row.split for row in listed(tmp_path).rows] == ["heldout", "train"]


def test_names_as_captions(tmp_path: Path) -> None:
    """The last resort: only when there is nothing else and the names are words, and it is said."""
    for name in ("a red apple 01", "green_pear-2", "blue sky"):
        picture(tmp_path / f"{name}.png")
    found = listed(tmp_path)
    assert sorted(row.captions for row in found.rows) == [("a red apple",), ("blue sky",), ("green pear",)]
    assert any("file names, for want of anything else" in text for text in found.findings.sentences())
    (tmp_path / "blue sky.txt").write_text("the sky")
    found = listed(tmp_path, allow_uncaptioned=True)
    assert found.findings.captions == {"txt": 1}


def test_camera_names_are_no_captions(tmp_path: Path) -> None:
    for i in range(3):
        picture(tmp_path / f"IMG_{i:04}.png")
    found = listed(tmp_path)
    assert found.findings.captions == {}
    assert not found.findings.uncaptioned
    assert any("No captions were found" in text for text in found.findings.sentences())
    assert [row.captions for row in listed(tmp_path, captions=("name",)).rows] == [("IMG",)] * 3


@pytest.mark.parametrize(
    "name", ["DSC01234", "00001", "3f2a9c77", "image-12", "frame_000012", "photo (3)", "xkcd_12_b"]
)
def test_not_words(name: str) -> None:
    assert not wordy([name + ".png"])


@pytest.mark.parametrize("name", ["sunset over the sea", "cat_0012", "Katze", "赤い林檎", "oil-painting-of-a-boat"])
def test_words(name: str) -> None:
    assert wordy([name + ".png"])
    assert name_caption("x/" + name + ".png").split()[0] in name


# --- which files count ------------------------------------------------------------------------------------------------


def test_content_decides_what_is_a_picture(tmp_path: Path) -> None:
    picture(tmp_path / "no suffix"), picture(tmp_path / "odd.dat"), picture(tmp_path / "sub" / "x.PNG")
    (tmp_path / "README.md").write_text("# words")
    (tmp_path / ".hidden.png").write_bytes(b"x")
    (tmp_path / "__MACOSX").mkdir()
    picture(tmp_path / "__MACOSX" / "y.png"), picture(tmp_path / ".git" / "z.png")
    found = listed(tmp_path)
    assert set(by_name(found)) == {"no suffix", "odd.dat", "sub/x.PNG"}
    assert found.findings.ignored == ("README.md",)


def test_runs_and_caches_inside_are_not_data(tmp_path: Path) -> None:
    picture(tmp_path / "a.png"), picture(tmp_path / "run" / "samples" / "step.png")
    (tmp_path / "run" / "log.jsonl").write_text("")
    (tmp_path / "cache").mkdir()
    np.save(tmp_path / "cache" / "images.npy", np.zeros((4, 4), np.uint8))
    (tmp_path / "cache" / "index.json").write_text("{}")
    found = listed(tmp_path)
    assert set(by_name(found)) == {"a.png"}
    assert any("is a run or a model" in text for text in found.findings.sentences())


def test_no_folder_and_empty_folder_and_a_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no folder"):
        listed(tmp_path / "none")
    with pytest.raises(DataError, match="no pictures in"):
        listed(tmp_path)
    (tmp_path / "words.md").write_text("x")
    with pytest.raises(DataError, match=r"1 other file: words\.md"):
        listed(tmp_path)
    with pytest.raises(DataError, match="give the folder"):
        listed(tmp_path / "words.md")
    with pytest.raises((DataError, StorageError)):
        listed(Path("a\x00b"))


def test_names_of_any_bytes(tmp_path: Path) -> None:
    """A name that is not UTF-8, one with control characters, one in decomposed Unicode."""
    picture(tmp_path / "a\x1b[31m.png")
    picture(tmp_path / "e\u0301.png")
    raw = os.fsencode(tmp_path) + b"/\xff\xfe.png"
    try:
        with open(raw, "wb") as file:
            file.write((tmp_path / "e\u0301.png").read_bytes())
    except OSError:
        pytest.skip("this file system wants UTF-8 names")
    lines(tmp_path / "metadata.jsonl", {"file_name": "\u00e9.png", "text": "composed"})
    found = listed(tmp_path)
    assert by_name(found)["e\u0301.png"].captions == ("composed",)
    assert len(found.rows) == 3
    assert found.stamp
    said = "\n".join(found.findings.sentences())
    assert "\x1b" not in said
    said.encode()


def test_order_does_not_depend_on_the_file_system(tmp_path: Path) -> None:
    for name in ("b", "a", "C", "10", "9"):
        picture(tmp_path / f"{name}.png")
    assert [row.name for row in listed(tmp_path).rows] == ["10.png", "9.png", "C.png", "a.png", "b.png"]


# --- parquet files of pictures ----------------------------------------------------------------------------------------


def data_of(value: int) -> bytes:
    import io

    out = io.BytesIO()
    Image.fromarray(np.full((8, 8, 3), value, np.uint8)).save(out, "PNG")
    return out.getvalue()


@pytest.mark.parametrize("struct", [True, False])
def test_parquet_of_pictures(tmp_path: Path, struct: bool) -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    cells = [{"bytes": data_of(i), "path": f"{i}.png"} if struct else data_of(i) for i in range(5)]
    features = {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}
    table = pa.table(
        {"image" if struct else "jpg": cells, "text": ["None", "b", None, "", "e"], "label": [0, 1, 0, 1, None]}
    )
    table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, tmp_path / "data.parquet", row_group_size=2)
    for folder in (tmp_path, tmp_path / "data.parquet"):
        found = listed(folder)
        assert [row.name for row in found.rows] == [f"data.parquet:{i}" for i in range(5)]
        assert [row.captions for row in found.rows] == [("None",), ("b",), (), (), ("e",)]
        assert [row.label for row in found.rows] == ["cat", "dog", "cat", "dog", ""]


def test_parquet_shards_name_their_split(tmp_path: Path) -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    for name in ("train-00000-of-00002", "train-00001-of-00002", "test-00000-of-00001"):
        pq.write_table(pa.table({"image": [data_of(1)], "caption": ["x"]}), tmp_path / f"{name}.parquet")
    assert [row.split for row in listed(tmp_path).rows] == ["heldout", "train", "train"]


def test_damaged_and_other_parquet(tmp_path: Path) -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    picture(tmp_path / "a.png")
    pq.write_table(pa.table({"number": [1, 2]}), tmp_path / "numbers.parquet")
    found = listed(tmp_path)
    assert found.findings.ignored == ("numbers.parquet",)
    assert any("no column of pictures" in text for text in found.findings.sentences())
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(DataError, match="not a parquet file"):
        listed(tmp_path)


def test_parquet_captions_that_are_not_utf8(tmp_path: Path) -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    wrong = pa.Array.from_buffers(pa.string(), 1, pa.array([b"\xff\xfe"], pa.binary()).buffers())
    pq.write_table(pa.table({"image": [data_of(1)], "caption": wrong}), tmp_path / "x.parquet")
    with pytest.raises(DataError, match=r"x\.parquet is a damaged parquet file"):
        listed(tmp_path)


def test_a_parquet_file_damaged_inside_is_a_sentence(tmp_path: Path) -> None:
    """Every place of the file is damaged in turn; nothing but our own errors comes out."""
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    for table, name in (
        (pa.table({"image": [data_of(i) for i in range(20)], "caption": [str(i) for i in range(20)]}), "x.parquet"),
        (pa.table({"file_name": [f"{i}.png" for i in range(20)], "text": ["x"] * 20}), "metadata.parquet"),
    ):
        folder = tmp_path / name
        picture(folder / "0.png")
        pq.write_table(table, folder / name)
        whole = (folder / name).read_bytes()
        settings = DataSettings(folder=str(folder), size=8, channels=3, allow_missing=True, allow_uncaptioned=True)
        for place in range(4, len(whole) - 8, max(1, len(whole) // 60)):
            data = bytearray(whole)
            data[place : place + 6] = b"\xff\x00\xff\x00\xff\x00"
            (folder / name).write_bytes(data)
            with contextlib.suppress(DataError, StorageError):
                check(settings)


def test_parquet_without_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(DataError, match=r"pip install 'carrara\[parquet\]'"):
        listed(tmp_path)


# --- inputs -----------------------------------------------------------------------------------------------------------


def test_inputs(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        picture(tmp_path / f"{name}.png"), picture(tmp_path / "masks" / f"{name}.png")
    (tmp_path / "masks" / "c.png").unlink()
    lines(
        tmp_path / "metadata.jsonl",
        *({"file_name": f"{n}.png", "text": n, "mask_file_name": f"masks/{n}.png"} for n in "abc"),
    )
    found = listed(tmp_path)
    assert found.inputs == ("mask",)
    assert set(by_name(found)) == {"a.png", "b.png"}  # the masks themselves are no rows
    assert by_name(found)["a.png"].inputs["mask"].path == "masks/a.png"
    assert found.findings.problems == (("c.png", "its input masks/c.png is not there"),)
    assert listed(tmp_path, inputs=()).inputs == ()
    assert len(listed(tmp_path, inputs=()).rows) == 3
    with pytest.raises(DataError, match="inputs asks for depth"):
        listed(tmp_path, inputs=("depth",))


def test_a_row_without_its_input_is_named(tmp_path: Path) -> None:
    for name in ("a", "b", "m"):
        picture(tmp_path / f"{name}.png")
    (tmp_path / "metadata.csv").write_text("file_name,text,mask_file_name\na.png,x,m.png\nb.png,y,\n")
    found = listed(tmp_path)
    assert found.findings.problems == (("b.png", "it has no mask, which other pictures have"),)


@pytest.mark.parametrize(
    "wrong",
    [
        {"size": 0},
        {"channels": 0},
        {"depth": 12},
        {"fit": "stretch"},
        {"heldout": 1.0},
        {"background": "no colour"},
        {"captions": ("tags",)},
        {"captions": ("txt", "txt")},
        {"allow_broken": 2},
        {"heldout_by": "luck"},
    ],
)
def test_settings_say_what_is_wrong(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        DataSettings(folder="x", **wrong)
