"""`carrara bench samplers`, on known data and on a model: what it writes, says, and counts."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from carrara.evaluate import sampler_bench
from carrara.evaluate.walks import samplers

from .conftest import done, run

FEW = ("--evaluations", "2,4", "--rows", "2")


@pytest.fixture(autouse=True)
def _few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four samplers and one schedule, which take a second."""
    chosen = {name: samplers()[name] for name in ("ancestral", "ddim", "dopri", "heun")}
    monkeypatch.setattr(sampler_bench, "samplers", lambda: chosen)
    monkeypatch.setattr(sampler_bench, "CASES", sampler_bench.CASES[:1])


def test_known_data(tmp_path: Path) -> None:
    said = done("bench", "samplers", *FEW, cwd=tmp_path).out
    out = tmp_path / "runs" / "bench-samplers"
    assert "With 2 evaluations the least error has" in said
    assert "runs/bench-samplers/samplers.html" in said
    record = json.loads((out / "samplers.json").read_text())
    assert record["budgets"] == [2, 4]
    assert "model" not in record
    (case,) = record["mixture"]
    assert {solved["sampler"] for solved in case["solutions"]} == {"ddim", "dopri", "heun"}
    assert all(solved["evaluations"] <= solved.get("budget", 1000) for solved in case["solutions"])
    assert "heun" in (out / "samplers.html").read_text()


def test_json_is_the_file_and_nothing_else(tmp_path: Path) -> None:
    said = done("bench", "samplers", *FEW, "--json", "--out", "here", cwd=tmp_path)
    assert json.loads(said.out) == json.loads((tmp_path / "here" / "samplers.json").read_text())


def test_a_trained_model(project: Path, tmp_path: Path) -> None:
    """The same noise as `carrara sample` with these seeds; ddim on its finest grid comes nearest."""
    words = ["--model", project / "carrara-pics" / "system", "--prompt", "a red circle", "--prompt", "a blue square"]
    said = done(
        "bench",
        "samplers",
        *FEW,
        *words,
        "--count",
        "3",
        "--guidance",
        "2",
        "--out",
        tmp_path / "bench",
        "--json",
        cwd=project,
    )
    model = json.loads(said.out)["model"]
    assert model["rows"] == 3
    assert model["prompts"] == ["a red circle", "a blue square"]
    assert "uniform" in model["grids"]
    assert model["guidance"]["scale"] == 2
    ddim = {solved["budget"]: solved["error"] for solved in model["solutions"] if solved["sampler"] == "ddim"}
    assert 0 < ddim[4] < model["scale"]
    assert "a red circle" in (tmp_path / "bench" / "samplers.html").read_text()


def test_a_model_that_is_not_finite(project: Path, tmp_path: Path) -> None:
    shutil.copytree(project / "carrara-pics" / "system", tmp_path / "system")
    folder = tmp_path / "system" / "generator"
    tensors = load_file(folder / "weights.safetensors")
    name = max(tensors, key=lambda name: tensors[name].numel())
    save_file({**tensors, name: torch.full_like(tensors[name], torch.nan)}, folder / "weights.safetensors")
    component = json.loads((folder / "component.json").read_text())
    component["files"]["weights.safetensors"]["bytes"] = (folder / "weights.safetensors").stat().st_size
    (folder / "component.json").write_text(json.dumps(component))
    said = run("bench", "samplers", *FEW, "--model", "system", "--prompt", "x", cwd=tmp_path)
    assert said.code == 4
    assert "not finite" in said.err
