"""`carrara evaluate` as a user has it: from a model and a folder to figures, a report and a card, and on with more."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from .conftest import done, run

FIGURES = {
    "class_score_pixels", "coverage_pixels", "density_pixels", "diversity_pixels", "fd_pixels", "kid_pixels",
    "memorised_share", "nearest_training_distance", "nearest_training_distance_heldout", "parameters",
    "precision_pixels", "prompt_fidelity_top1", "prompt_fidelity_top1_contrastive", "recall_pixels", "retrieval_top1",
    "retrieval_top5", "seconds_per_picture", "training_seconds",
}  # fmt: skip


@pytest.fixture
def desk(project: Path, tmp_path: Path) -> Path:
    """A copy of the project's model, whose card is written."""
    shutil.copytree(project / "carrara-pics" / "system", tmp_path / "tiny")
    return tmp_path


def words(desk: Path, project: Path, *more: object) -> list[object]:
    given = [str(word) for word in more]
    options = {"--data": project / "pics", "--out": desk / "out", "--n": 20, "--extractor": "pixels"}
    usual = [part for name, value in options.items() if name not in given for part in (name, value)]
    return ["evaluate", desk / "tiny", *usual, *more]


def report(desk: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((desk / "out" / "report.json").read_text())
    return found


def test_figures_report_and_card(desk: Path, project: Path) -> None:
    said = done(*words(desk, project), cwd=desk)
    assert "tiny: 20 samples of 40 x 40 pixels from seed 0, against" in said.out
    assert "training pictures of pics" in said.out
    assert "(n<d)" in said.out
    assert "FD-pixels: n<d: 20 samples, 3072 dimensions." in said.out
    assert "Not measured: CMMD (no --clip was given)." in said.out
    facts = report(desk)
    assert facts["name"] == "tiny"
    assert set(facts["figures"]) == FIGURES - {"class_score_pixels"}
    assert set(facts["missing"]) == {"bits_per_dim", "class_score_pixels", "clip_score", "cmmd"}
    assert "latents" in facts["missing"]["bits_per_dim"]
    assert facts["reference"]["trained_on"]
    assert facts["reference"]["pictures"] == facts["reference"]["pictures"]
    low, high = facts["intervals"]["kid_pixels"]
    assert low < facts["figures"]["kid_pixels"] < high
    assert 0 <= facts["figures"]["prompt_fidelity_top1"] <= 1
    assert facts["figures"]["parameters"] == sum(facts["parameters"].values())
    assert facts["figures"]["training_seconds"] > 0
    page = (desk / "out" / "report.html").read_text()
    for part in ("n&lt;d: 20 samples", "Copies?", "The same prompt again", "nearest training picture"):
        assert part in page
    card = (desk / "tiny" / "README.md").read_text()
    assert card.count("## Measured") == 1
    assert "KID\\-pixels" in card or "KID-pixels" in card
    done("sample", desk / "tiny", "a red circle", "--out", desk / "samples", cwd=desk)  # the folder is still a model


def test_on_with_more_and_again(desk: Path, project: Path) -> None:
    """The same command makes nothing anew, more samples begin with the same, and the card has one section."""
    done(*words(desk, project), cwd=desk)
    first = report(desk)
    files = {path: path.read_bytes() for path in (desk / "out" / "samples").glob("*.safetensors")}
    assert len(files) == 2
    said = done(*words(desk, project, "--json"), cwd=desk)
    again = json.loads(said.out)
    assert again["figures"] == first["figures"]
    assert all(path.read_bytes() == data for path, data in files.items())
    done(*words(desk, project, "--n", 24), cwd=desk)
    assert report(desk)["samples"]["count"] == 24
    assert (desk / "tiny" / "README.md").read_text().count("## Measured") == 1
    assert "24 samples" in (desk / "tiny" / "README.md").read_text()


def test_shards(desk: Path, project: Path) -> None:
    """The parts that are made apart are the whole."""
    first = done(*words(desk, project, "--n", 100, "--shard", "1/2"), cwd=desk)
    assert "128 of 164 samples are in" in first.out  # 64 of 100, and those of the same prompts
    second = json.loads(done(*words(desk, project, "--n", 100, "--shard", "2/2", "--json"), cwd=desk).out)
    assert (second["samples"], second["of"], second["shard"]) == (164, 164, [2, 2])
    assert not (desk / "out" / "report.json").exists()
    done(*words(desk, project, "--n", 100, "--no-card"), cwd=desk)
    assert report(desk)["samples"]["count"] == 100
    assert not (desk / "tiny" / "README.md").exists()


def test_settings_repeats_and_a_judge(desk: Path, project: Path) -> None:
    more = ["--repeats", 2, "--steps", 2, "--guidance", 1, "--per-prompt", 1, "--reference", "all", "--no-card"]
    said = done(*words(desk, project, *more, "--judge", project / "carrara-pics" / "text"), cwd=desk)
    assert "2 sets of 20 samples" in said.out
    assert "Student's t" in said.out
    facts = report(desk)
    assert facts["samples"]["settings"]["times"]["steps"] == 2
    assert facts["reference"]["split"] == "all"
    assert "--per-prompt 1" in facts["missing"]["diversity_pixels"]
    assert {"kid_pixels", "fd_pixels", "precision_pixels"} <= set(facts["intervals"])
    said = run(*words(desk, project, "--no-card"), cwd=desk)
    assert said.code == 2
    assert "holds samples of another" in said.err


def test_a_card_of_ones_own_is_kept(desk: Path, project: Path) -> None:
    (desk / "tiny" / "README.md").write_text("# Mine\n\nWords.\n")
    done(*words(desk, project), cwd=desk)
    text = (desk / "tiny" / "README.md").read_text()
    assert text.startswith("# Mine\n\nWords.\n\n<!-- measured: begin -->\n## Measured\n")
    (desk / "tiny" / "README.md").write_text(text + "\nMore.\n")
    done(*words(desk, project, "--n", 22), cwd=desk)
    after = (desk / "tiny" / "README.md").read_text()
    assert after.endswith("\nMore.\n")
    assert "22 samples" in after
    assert "20 samples" not in after


@pytest.mark.parametrize(
    "more, code, says",
    [
        (["--n", 15], 2, "15 samples are too few to measure anything; give 16 or more"),
        (["--reference", "heldout"], 3, "too few for a reference; 16 are needed"),
        (["--shard", "3/2"], 2, '--shard is "3/2"'),
        (["--shard", "half"], 2, '--shard is "half"'),
        (["--extractor", "nowhere"], 5, "--extractor: nowhere does not exist"),
        (["--clip", "nowhere"], 5, "--clip: nowhere does not exist"),
        (["--clip", "pixels"], 2, "--clip pixels is pixels, which reads no prompts; give the folder of a CLIP"),
        (["--extractor", "pics"], 5, "config.json"),
        (["--clip", "nowhere"], 5, "nowhere"),
        (["--judge", "carrara-pics/decoder"], 2, "sees no pictures"),
        (["--data", "nowhere"], 3, "nowhere"),
        (["--temperature", 0.5], 2, "--temperature"),
        (["--sampler", "magic"], 2, "--sampler"),
        (["--out", "init.txt/x"], 5, "init.txt"),
    ],
)
def test_refusal(desk: Path, project: Path, more: list[object], code: int, says: str) -> None:
    said = run(*words(desk, project, *more), cwd=project)
    assert said.code == code, said.err
    assert says in said.err
