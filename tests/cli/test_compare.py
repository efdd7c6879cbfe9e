"""`carrara compare`: several models, one measure, one table."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from .conftest import done, run


@pytest.fixture
def desk(project: Path, tmp_path: Path) -> Path:
    """Two copies of one model, and a third that is sampled otherwise."""
    system = project / "carrara-pics" / "system"
    for name in ("first", "second", "third"):
        shutil.copytree(system, tmp_path / name / "system")
    path = tmp_path / "third" / "system" / "generator" / "component.json"
    body = json.loads(path.read_text())
    body["config"]["settings"]["times"]["steps"] = 2
    path.write_text(json.dumps(body))
    return tmp_path


USUAL = ["--n", 20, "--extractor", "pixels", "--per-prompt", 1]


def test_a_table_charts_and_pictures(desk: Path, project: Path) -> None:
    names = [f"{name}/system" for name in ("first", "second", "third")]
    said = done("compare", *names, "--data", project / "pics", *USUAL, cwd=desk)
    assert "20 samples of 40 x 40 pixels" in said.out
    for name in ("first", "second", "third"):
        assert f"\n{name}\n" in said.out
    facts = json.loads((desk / "comparison" / "report.json").read_text())
    rows = {row["name"]: row for row in facts["rows"]}
    assert list(rows) == ["first", "second", "third"]
    for row in facts["rows"]:
        assert {"prompt_fidelity_top1", "fd_pixels", "kid_pixels", "seconds_per_picture", "parameters",
                "training_seconds"} <= set(row)  # fmt: skip
        assert row["marks"]["fd_pixels"].startswith("n<d")
        assert "bits_per_dim" not in row
        assert "bits_per_dim" in row["missing"]
    timed = {"seconds_per_picture"}
    alike = [{k: v for k, v in rows[n].items() if k not in timed | {"name", "model"}} for n in ("first", "second")]
    assert alike[0] == alike[1]  # the same weights, prompts and seeds
    assert rows["third"]["settings"]["times"]["steps"] == 2
    assert rows["third"]["fd_pixels"] != rows["first"]["fd_pixels"]
    page = (desk / "comparison" / "report.html").read_text()
    for part in ("Quality against cost", "The same prompts and seeds", "against parameters", "third", "All figures"):
        assert part in page


def test_names_and_what_evaluate_has_made(desk: Path, project: Path) -> None:
    """`evaluate --out DIR/NAME` has made the samples; a name stands before its model."""
    usual = ["--data", project / "pics", *USUAL]
    done("evaluate", "first/system", *usual, "--out", "comparison/a", "--no-card", cwd=desk)
    files = {path: path.stat().st_mtime_ns for path in (desk / "comparison" / "a" / "samples").iterdir()}
    said = done("compare", "a=first/system", "b=second/system", *usual, "--json", cwd=desk)
    assert [row["name"] for row in json.loads(said.out)["rows"]] == ["a", "b"]
    assert {path: path.stat().st_mtime_ns for path in files} == files


@pytest.mark.parametrize(
    "given, code, says",
    [
        (["first/system"], 2, "two models or more"),
        (["first/system", "first/system"], 2, "two models are called first; name them"),
        (["a=first/system", "a=second/system"], 2, "two models are called a"),
        (["..=first/system", "second/system"], 2, 'a model is called ".."; give names'),
        (["first/system", "nowhere"], 5, "nowhere does not exist"),
        (["..=first/system", "second/system"], 2, "names that can be folders"),
    ],
)
def test_refusal(desk: Path, project: Path, given: list[str], code: int, says: str) -> None:
    said = run("compare", *given, "--data", project / "pics", *USUAL, cwd=desk)
    assert said.code == code, said.err
    assert says in said.err
