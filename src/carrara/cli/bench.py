"""`carrara bench`: measurements of Carrara's own. `bench samplers`: how near each sampler comes, for how much work."""

from __future__ import annotations

import itertools
import json
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from carrara.cli.folders import require_writable
from carrara.cli.sampling import sampling_settings
from carrara.cli.voice import Counter, Voice, duration
from carrara.errors import RecipeError

if TYPE_CHECKING:
    from carrara.diffusion.generator import SamplingSettings
    from carrara.system import System

__all__ = ["samplers"]

_MOST = 500  # evaluations; the fine solutions take twenty times as many


def samplers(
    model: Annotated[
        Path | None, typer.Option(metavar="MODEL", help="Measure a trained model as well: a model folder.")
    ] = None,
    prompt: Annotated[
        list[str] | None, typer.Option(metavar="TEXT", help="What the model is to show; may be given several times.")
    ] = None,
    count: Annotated[int, typer.Option(metavar="N", min=1, help="Pictures of the model.")] = 16,
    guidance: Annotated[float | None, typer.Option(metavar="X", help="How much the prompt counts; 1 is off.")] = None,
    evaluations: Annotated[
        str, typer.Option(metavar="N,N,...", help="How many evaluations are allowed.")
    ] = "5,10,20,50",
    rows: Annotated[int, typer.Option(metavar="N", min=2, help="Draws of noise on known data.")] = 512,
    device: Annotated[str, typer.Option(metavar="NAME", help="Of the model: auto, cpu or cuda.")] = "auto",
    out: Annotated[Path, typer.Option(metavar="DIR", help="The folder for the report.")] = Path("runs/bench-samplers"),
    as_json: Annotated[bool, typer.Option("--json", help="Say what was measured as JSON.")] = False,
) -> None:
    """Measure every sampler: its error against the exact solution, for so many evaluations of the denoiser.

    On known data under four schedules, and with --model on a trained model. Writes samplers.html and samplers.json.
    """
    budgets = _budgets(evaluations)
    for name, given in {"--prompt": prompt, "--guidance": guidance}.items():
        if model is None and given is not None:
            raise RecipeError(f"{name} is for a trained model, and there is no --model")
    if guidance is not None and not math.isfinite(guidance):
        raise RecipeError(f"--guidance is {guidance}; give a finite number, such as 2.5")
    require_writable(out)
    voice, began = Voice(silent=as_json), time.monotonic()
    measured = {}
    if model is not None:
        system = _loaded(model, prompt, device)
        prompts = [text for _, text in zip(range(count), itertools.cycle(prompt or [""]), strict=False)]
        settings = sampling_settings(system, {"guidance": guidance}, None, voice)
        measured = {"model": {"path": str(model), **_of_model(system, settings, prompts, budgets, silent=as_json)}}
    record = {**_measured(budgets, rows, silent=as_json), **measured}
    written = _write(record, out)
    if as_json:
        voice.json(record)
        return
    for line in _sentences(record, budgets):
        voice.say(line)
    voice.say(f"{written} ({duration(time.monotonic() - began)})")


def _budgets(text: str) -> tuple[int, ...]:
    try:
        budgets = sorted({int(word) for word in text.split(",")})
    except ValueError as error:
        raise RecipeError(
            f'--evaluations is "{text}"; give numbers with commas between them, such as 5,10,20'
        ) from error
    if not 1 <= budgets[0] <= budgets[-1] <= _MOST:
        raise RecipeError(f'--evaluations is "{text}"; give numbers from 1 to {_MOST}')
    return tuple(budgets)


def _loaded(model: Path, prompts: Sequence[str] | None, device: str) -> System:
    from carrara.store import load
    from carrara.text import Unconditional
    from carrara.train.recipe import choose_device

    where = choose_device(device)
    system = load(model)
    for part in (system.text, system.generator, system.decoder):
        part.to(where)  # type: ignore[union-attr]
    if not prompts and not isinstance(system.text, Unconditional):
        raise RecipeError(f'give a prompt, such as: carrara bench samplers --model {model} --prompt "a red apple"')
    return system


def _measured(budgets: Sequence[int], rows: int, *, silent: bool) -> dict[str, Any]:
    import torch

    from carrara import __version__
    from carrara.evaluate.sampler_bench import CASES, measure_mixture

    found = []
    for case in CASES:
        with Counter(_expected(budgets, len(case.grids), 1), f"measurements ({case.name})", silent=silent) as counter:
            found.append(measure_mixture(case, rows, budgets, _counting(counter)))
    versions = {"carrara": __version__, "torch": torch.__version__}
    return {"format_version": 1, "budgets": list(budgets), "mixture": found, "versions": versions}


def _of_model(
    system: System, settings: SamplingSettings | None, prompts: Sequence[str], budgets: Sequence[int], *, silent: bool
) -> dict[str, Any]:
    from carrara.config import describe
    from carrara.evaluate.sampler_bench import measure_model, model_problem
    from carrara.store import kinds

    problem = model_problem(system, prompts, range(len(prompts)), settings)
    about = {"schedule": problem.process.schedule, "guidance": problem.guidance}
    said = {
        "prompts": list(dict.fromkeys(prompts)),
        **{name: describe(value, kinds()) for name, value in about.items()},
    }
    with Counter(_expected(budgets, 3, 0), "measurements (model)", silent=silent) as counter:
        return {**said, **measure_model(problem, budgets, _counting(counter))}


def _expected(budgets: Sequence[int], grids: int, distributions: int) -> int:
    """About how many measurements there will be: those of the deterministic samplers, and of all."""
    from carrara.evaluate.walks import kind_of, samplers

    every = [kind_of(walk) for walk in samplers().values()]
    return len(budgets) * (every.count("deterministic") * grids + len(every) * distributions)


def _counting(counter: Counter) -> Any:
    done = iter(range(1, 10**9))
    return lambda: counter.at(next(done))


def _write(record: Mapping[str, Any], out: Path) -> Path:
    from carrara.evaluate.sampler_page import page
    from carrara.store.atomic import write_file

    written = page(record).write(out / "samplers.html")
    write_file(out / "samplers.json", (json.dumps(record, indent=1, ensure_ascii=False) + "\n").encode())
    return written


def _sentences(record: Mapping[str, Any], budgets: Sequence[int]) -> list[str]:
    from carrara.evaluate.sampler_page import best_grids

    said = []
    cases = [*record["mixture"], *([record["model"]] if "model" in record else [])]
    for budget in budgets:
        said.append(f"With {budget} evaluations the least error has")
        for case in cases:
            for name, best in [*best_grids(case["solutions"], budget).items()][:1]:
                where = case.get("case") or case["path"]
                said.append(f"  {where:14} {name} on {best['grid']}: {best['error']:.2g} of {case['scale']:.2g}")
    return said
