"""Every benchmark runs in its rehearsal, and both sides of a comparison compute the same. Speed is not asserted."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from benchmarks.harness import Options, Record, Row, read
from benchmarks.run import NAMES, main, perform

# The peers' own warnings are theirs to mend.
pytestmark = pytest.mark.filterwarnings("ignore")


PEERS = {
    "sampling": ("diffusers", "lucidrains"),
    "training_step": ("diffusers", "lucidrains"),
    "stable_diffusion": ("diffusers",),
}


@pytest.fixture(scope="module", params=PEERS)
def rehearsed(request: pytest.FixtureRequest) -> Record:
    return perform(request.param, Options(quick=True))


def rows(record: Record) -> list[Row]:
    return [row for table in record.tables for row in table.rows]


def test_everything_is_measured(rehearsed: Record) -> None:
    assert rehearsed.quick and rehearsed.tables and rehearsed.notes
    assert any(row.name.startswith("carrara") for row in rows(rehearsed))
    assert all(math.isfinite(time) and time > 0 for row in rows(rehearsed) for time in row.rounds)
    for peer in PEERS[rehearsed.benchmark]:
        measured = any(row.name.startswith(peer) for row in rows(rehearsed))
        assert measured or any(what.startswith(peer) for what in rehearsed.skipped)
    assert {"torch", "python", "carrara"} <= rehearsed.facts["versions"].keys()
    assert {"amx_bf16", "avx512_bf16"} <= rehearsed.facts["machine"]["flags"].keys()


def test_ratios_are_to_the_peer(rehearsed: Record) -> None:
    for table in rehearsed.tables:
        times = {row.name: row.rounds for row in table.rows}
        for row in table.rows:
            assert (row.ratio is None) == (row.peer is None)
            if row.ratio and row.peer:
                ratios = [a / b for a, b in zip(row.rounds, times[row.peer], strict=True)]
                assert min(ratios) <= row.ratio.median <= max(ratios)


def test_both_sides_sample_the_same() -> None:
    pytest.importorskip("diffusers")
    from benchmarks.sampling import _carrara, _difference, _diffusers

    from benchmarks import peers

    ours, theirs = peers.pair(peers.TINY)
    noise = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    assert theirs is not None
    assert _difference(_carrara(ours.eval(), noise, 3)(), _diffusers(theirs.eval(), noise, 3)()) < 1e-5


def test_mixed_precision_is_what_it_says() -> None:
    """Several Accelerators live in one process, each in its own precision."""
    pytest.importorskip("diffusers")
    pytest.importorskip("accelerate")
    from benchmarks import peers

    models = {name: peers.accelerator(name).prepare(torch.nn.Linear(2, 2)) for name in ("no", "bf16")}
    exact = torch.tensor([[1.0, 2.0**-12]])
    with torch.no_grad():
        for model in models.values():
            torch.nn.init.ones_(model.weight)
            torch.nn.init.zeros_(model.bias)
        assert models["no"](exact)[0, 0] == 1 + 2.0**-12
        assert models["bf16"](exact)[0, 0] == 1


def test_startup(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By its command, as a person would: a table is printed, and the file is written where it is wanted."""
    out = tmp_path / "startup.json"
    main(["startup", "--quick", "--rounds", "1", "--out", str(out)])
    said = capsys.readouterr().out
    assert "carrara --help" in said and "rehearsal" in said
    record = read(out)
    assert record.facts["command"] == "python -m benchmarks.run startup --rounds 1 --quick"
    assert [row.name for row in rows(record)][:3] == ["python", "import torch", "import carrara"]


def test_a_rehearsal_leaves_the_results_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks import run

    monkeypatch.setattr(run, "perform", lambda name, options, command: record_of(name))
    monkeypatch.setattr(run, "write", lambda record, path: pytest.fail(f"wrote {path}"))
    main(["sampling", "--quick"])


def record_of(name: str) -> Record:
    return Record(name, "", True, 0.0, {"machine": {"processor": ""}, "threads": 1}, ())


def test_unknown_names_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["speed"])
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert all(name in said for name in NAMES)
