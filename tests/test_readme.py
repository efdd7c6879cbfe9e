"""Every command and snippet of the README runs as it stands there (the demo itself in tests/demo)."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, re.DOTALL)


def blocks(language: str) -> list[str]:
    return [text for name, text in BLOCKS if name == language]


def test_the_python_of_the_first_sections_runs() -> None:
    names: dict[str, object] = {}
    for text in blocks("python"):
        if "runs/demo" not in text:
            exec(compile(text, "README.md", "exec"), names)  # noqa: S102 - our own README
    pictures = names["pictures"]
    assert pictures.shape == (2, 3, 16, 16)  # type: ignore[attr-defined]
    assert bool(pictures.isfinite().all())  # type: ignore[attr-defined]
    train_and_sample(names, "edm")
    train_and_sample(names, "flow")


def train_and_sample(names: dict[str, object], family: str) -> None:
    """The DDPM snippet's own lines, with the family's objects put in."""
    (ddpm,) = (text for text in blocks("python") if "ddpm = " in text)
    lines = ddpm.split("x = torch.rand")[1].splitlines()[1:]
    text = "\n".join(line for line in lines if not line.startswith("ddpm = "))
    text = text.replace("DenoisingLoss(Steps(1000))", f"{family}_loss").replace("ddpm", family)
    text = text.replace("SamplingSettings(ancestral, full)", f"{family}_settings")
    exec(compile(text, f"README.md ({family})", "exec"), names)  # noqa: S102
    assert bool(names["pictures"].isfinite().all())  # type: ignore[attr-defined]


def commands() -> list[list[str]]:
    found = []
    for text in blocks("bash"):
        for line in text.splitlines():
            words = shlex.split(line, comments=True)
            if words:
                found.append(words)
    return found


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for words in commands():
        if words[0] == "make":
            assert re.search(rf"^{words[1]}:", makefile, re.MULTILINE), words


@pytest.mark.parametrize("side, parts", [(64, ["decoder", "generator", "text"]), (24, ["generator", "text"])])
def test_ones_own_folder(side: int, parts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The commands for one's own folder, in their order, with a few steps a part; small pictures need no decoder."""
    import numpy as np
    from PIL import Image

    from carrara.cli import main

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CARRARA_CACHE", str(tmp_path / "cache"))
    rng = np.random.default_rng(0)
    (tmp_path / "photos").mkdir()
    for number in range(60):
        colour = rng.integers(0, 255, 3)
        pixels = np.full((side + 6, side, 3), colour, np.uint8)
        pixels[side // 6 : side // 2, side // 6 : side // 3 + number % (side // 2)] = 255 - colour
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{number}.png")
        (tmp_path / "photos" / f"{number}.txt").write_text(f"box {number % 7} of colour {int(colour[0]) // 32}")
    for words in commands():
        if words[0] == "carrara" and "runs/demo/system" not in words:
            arguments = words[1:]
            if arguments[0] == "train":
                few = ("minutes=0", "train.steps=3", "train.batch=8", "train.sample_every=0")
                arguments += [word for setting in few for word in ("--set", setting)] + ["--quiet"]
            monkeypatch.setattr("sys.argv", ["carrara", *arguments])
            with pytest.raises(SystemExit) as ended:
                main()
            assert ended.value.code in (0, None), words
    assert len(list((tmp_path / "samples").glob("*.png"))) >= 4
    assert sorted(path.stem for path in (tmp_path / "recipes").glob("*.toml")) == parts
