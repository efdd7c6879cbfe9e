"""The figures of the documentation and the README: pictures, tables and numbers come from docs/data/*.json alone.

    python docs/figures.py            draws docs/images/*.svg and fills the pages from the data
    python docs/figures.py --why      runs examples first, at full size: docs/data/why.json (five minutes)
    python docs/figures.py --target   the same for docs/data/target.json (ten minutes)

docs/choosing.md says which commands made the data of samplers; `python -m benchmarks.recipes NAME` makes that of
recipes in docs/data/results, `python -m benchmarks.emoji` and `python -m benchmarks.conditions` compare-emoji.json
and conditions.json in benchmarks/results: before they are there, their tables and pictures say so. A page holds
<!--NAME.PATH FORMAT-->number<!--/--> for a number, <!--error CASE SAMPLER GRID BUDGET-->number<!--/--> for the error
of a sampler, and <!--table NAME-->, <!--/table--> around a table, or what else is made of data; what stands between
is replaced. tests/test_docs.py checks that the pages and pictures are those of the data.
"""

from __future__ import annotations

import argparse
import functools
import json
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from carrara.evaluate.plot import Axis, Chart, Lines, Scatter, Series, number
from carrara.evaluate.sampler_page import best_grids, different, distance_chart, error_chart, rows_of
from carrara.evaluate.words import value_words, word

DOCS = Path(__file__).parent
BENCHMARKS = DOCS.parent / "benchmarks" / "results"
STOPS = (30, 100, 300, 1000, 3000, 10000)
SHARES = tuple(i / 16 for i in range(1, 17))

Rows = Sequence[Sequence[object]]


@functools.cache
def data(name: str) -> Any:
    """docs/data/NAME.json, or else benchmarks/results/NAME.json."""
    path = DOCS / "data" / f"{name}.json"
    path = path if path.is_file() else BENCHMARKS / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8"))


def measured_why() -> dict[str, Any]:
    """What the three examples measure, at full size."""
    sys.path.insert(0, str(DOCS.parent / "examples"))
    from plane import DATA, PROCESS
    from waves import known
    from why_bound import measure
    from why_correction import figures as correction
    from why_training import figures as training

    from carrara.rng import Rng

    x = DATA.sample(Rng.seeds(range(20000), "held-out"))
    formulas = [known(share) for share in SHARES]
    return {
        "shares": list(SHARES),
        "bound": [measure(DATA.denoiser(PROCESS), x, strides) for strides in (10, 30, 100, 300, 1000)],
        "training": training(STOPS, rows=20000, strides=50, points=150),
        "correction": correction(SHARES, rows=1024, strides=128),
        "known": {name: [row[name] for row in formulas] for name in formulas[0]},
    }


def measured_target() -> dict[str, Any]:
    """KL(data || model) of every choice of a parameterization and a weight, three trainings each."""
    sys.path.insert(0, str(DOCS.parent / "examples"))
    from choosing_target import CHOICES, figures

    return figures(CHOICES, steps=2000, seeds=3, strides=50, points=150)


def rounded(value: Any) -> Any:
    """Six digits are enough to write down."""
    if isinstance(value, dict):
        return {name: rounded(item) for name, item in value.items()}
    if isinstance(value, list):
        return [rounded(item) for item in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


# Charts


def why_charts() -> Iterator[tuple[str, Chart]]:
    """Those of docs/why.md."""
    why = data("why")
    strides = [row["strides"] for row in why["bound"]]
    sums = [row["prior"] + row["steps"] for row in why["bound"]]
    lines = [Series("gap of the bound", strides, [row["gap"] for row in why["bound"]])]
    lines.append(Series("sum of the divergences", strides, sums, dashed=True))
    yield "why-bound", Lines("The gap and its parts", lines, Axis("strides", log=True), Axis("nats"))
    best, *trained = why["training"]
    steps = [row["step"] for row in trained]
    lines = [
        Series("gap of the bound", steps, [row["gap"] for row in trained]),
        Series("KL(data || model)", steps, [row["kl"] for row in trained]),
        Series("gap, best denoiser", steps, [best["gap"]] * len(steps), dashed=True),
        Series("KL, best denoiser", steps, [best["kl"]] * len(steps), dashed=True),
    ]
    yield "why-training", Lines("Training", lines, Axis("steps of training", log=True), Axis("nats", log=True))
    for what, label in (("nats", "loss of log p(x), nats"), ("distance", "distance, rms")):
        found = {name: why["correction"][f"waves {name}"][what] for name in METHODS}
        lines = [Series(name, why["shares"], values) for name, values in found.items()]
        yield f"why-correction-{what}", Lines("What survives", lines, Axis("share of the work"), Axis(label))


METHODS = ("autoregressive", "ancestral", "deterministic")


def choosing_charts() -> Iterator[tuple[str, Chart]]:
    """Those of docs/choosing.md."""
    record = data("samplers")
    for case in record["mixture"]:
        name = case["case"].lower()
        yield f"choosing-{name}", error_chart(case, record["budgets"], case["case"])
    yield "choosing-distance", distance_chart(record["mixture"][0], record["budgets"], "Distance to the data")
    for name in ("guided", "unguided"):
        model = data(f"samplers-{name}")
        yield f"choosing-model-{name}", error_chart(model["model"], model["budgets"], "A trained model")


def results() -> list[dict[str, Any]]:
    """Every recipe that was run and measured."""
    paths = sorted((DOCS / "data" / "results").glob("*.json"))
    return [json.loads(path.read_text(encoding="utf-8")) for path in paths]


def results_charts() -> Iterator[tuple[str, Chart]]:
    """Those of docs/results.md: how far off the estimate is after so many bits, whatever the schedule."""
    profiles = [(found["name"], found["likelihood"]["bound_all_terms"]["bound"]["profile"]) for found in results()]
    lines = [Series(name.removesuffix("-cpu"), p["rate"], p["distortion"]) for name, p in profiles if "mnist" in name]
    axes = Axis("bits a dimension sent so far"), Axis("rms error, grey levels", log=True)
    yield "results-rate", Lines("Rate and distortion on MNIST", lines, *axes)
    yield from emoji_charts()


EMOJI = "compare-emoji"
COSTS = {
    "seconds_per_picture": "seconds a picture",
    "parameters": "parameters",
    "training_seconds": "seconds of training",
}


def emoji() -> Any:
    """The comparison of the emoji's generators; None before it is made."""
    return data(EMOJI) if (BENCHMARKS / f"{EMOJI}.json").is_file() else None


def emoji_charts() -> Iterator[tuple[str, Chart]]:
    """Prompt fidelity of the emoji's generators against what they cost."""
    rows = (emoji() or {"rows": []})["rows"]
    for cost, label in COSTS.items():
        known = [row for row in rows if cost in row]
        if known:
            names, costs = [row["name"] for row in known], [row[cost] for row in known]
            shares = [100 * row["prompt_fidelity_top1"] for row in known]
            title = f"Prompt fidelity against {label}"
            chart = Scatter(title, names, costs, shares, Axis(label, log=True), Axis("prompt fidelity, %"))
            yield f"results-emoji-{cost.replace('_', '-')}", chart


def drawn(chart: Chart) -> str:
    """A chart as a file of its own, on a light ground."""
    svg = chart.svg(760, 360)
    return svg.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" style="background:#fcfcfb" ', 1) + "\n"


# Tables


def bound_table() -> tuple[Sequence[str], Rows]:
    """Section 1 of docs/why.md."""
    header = ("strides", "E[−log p]", "bound", "gap", "prior KL", "step KLs", "gap − KLs")
    rows = []
    for row in data("why")["bound"]:
        rest = row["gap"] - row["prior"] - row["steps"]
        cells = [f"{row[name]:.3f}" for name in ("entropy", "bound", "gap")]
        rest_text = f"{rest:+.3f} ± {row['error']:.3f}".replace("-", "−")
        rows.append([row["strides"], *cells, number(row["prior"], 2), f"{row['steps']:.3f}", rest_text])
    return header, rows


def training_table() -> tuple[Sequence[str], Rows]:
    """Section 2: after more and more training, and the best denoiser last."""
    header = ("steps of training", "bound", "gap", "prior and step KLs", "KL(data ‖ model)")
    rows = []
    for row in [*data("why")["training"][1:], data("why")["training"][0]]:
        cells = [f"{value:.3f}" for value in (row["bound"], row["gap"], row["prior"] + row["steps"], row["kl"])]
        rows.append([f"{row['step']:,}" if row["step"] is not None else "the best denoiser", *cells])
    return header, rows


def correction_table() -> tuple[Sequence[str], Rows]:
    """Section 3, on waves."""
    why = data("why")
    header = ("share of the work", *(f"{name}: {what}" for name in METHODS for what in ("distance", "nats")))
    rows = []
    for i, share in enumerate(why["shares"]):
        if share in (1 / 16, 0.25, 0.5, 0.75, 0.875, 0.9375, 1):
            cells = [why["correction"][f"waves {name}"][what][i] for name in METHODS for what in ("distance", "nats")]
            rows.append([f"{share:.4g}", *(f"{value:.2f}".replace("-0.00", "0.00") for value in cells)])
    return header, rows


def known_table() -> tuple[Sequence[str], Rows]:
    """Section 3, on normal data: formula and measurement."""
    why = data("why")
    header = ("share of the work", *(f"{name}: {what}" for name in METHODS for what in ("formula", "measured")))
    rows = []
    for i, share in enumerate(why["shares"]):
        if share in (1 / 16, 0.25, 0.5, 0.75, 1):
            pairs = ((why["known"][name][i], why["correction"][f"normal {name}"]["distance"][i]) for name in METHODS)
            rows.append([f"{share:.4g}", *(f"{value:.3f}" for pair in pairs for value in pair)])
    return header, rows


def best_table() -> tuple[Sequence[str], Rows]:
    """Of each schedule and budget, the three samplers with the least error, each on its best grid."""
    record = data("samplers")
    header = ("schedule", *(f"{budget} evaluations" for budget in record["budgets"]))
    rows = []
    for case in record["mixture"]:
        cells = []
        for budget in record["budgets"]:
            best = list(best_grids(different(case["solutions"]), budget).items())[:3]
            cells.append("<br>".join(f"{name}, {found['grid']}: {number(found['error'], 2)}" for name, found in best))
        rows.append([case["case"], *cells])
    return header, rows


def errors_table(number_of_case: int) -> tuple[Sequence[str], Rows]:
    """Every sampler and grid on one schedule."""
    record = data("samplers")
    header = ("sampler", "grid", *map(str, record["budgets"]))
    return header, rows_of(record["mixture"][number_of_case]["solutions"], record["budgets"])


def distances_table() -> tuple[Sequence[str], Rows]:
    """Every sampler against the data, on the cosine schedule, and exact samples last."""
    record = data("samplers")
    case = record["mixture"][0]
    floor = f"{number(case['floor'], 2)} ± {number(case['floor_bar'], 1)}"
    rows = [*rows_of(case["distributions"], record["budgets"], grids=False)]
    return ("sampler", *map(str, record["budgets"])), [*rows, ("exact samples", *[floor] * len(record["budgets"]))]


def model_table() -> tuple[Sequence[str], Rows]:
    """The trained model on the uniform grid, with guidance and without."""
    guided, plain = data("samplers-guided"), data("samplers-unguided")
    budgets = guided["budgets"]
    found = [
        {row[0]: row[1:] for row in rows_of(_uniform(record["model"]["solutions"]), budgets, grids=False)}
        for record in (guided, plain)
    ]
    header = ("sampler", *(f"guided: {budget}" for budget in budgets), *(f"plain: {budget}" for budget in budgets))
    return header, [(name, *cells, *found[1][name]) for name, cells in found[0].items()]


def _uniform(found: Sequence[Any]) -> list[Any]:
    return [solved for solved in found if solved["grid"] == "uniform"]


def target_table() -> tuple[Sequence[str], Rows]:
    """KL(data || model) by parameterization and weight: mean and range of the trainings."""
    rows = []
    for name, values in data("target").items():
        predicted, weight = name.split(", ")
        mean = sum(values) / len(values)
        rows.append((predicted, weight, f"{mean:.3f}", f"{min(values):.3f} to {max(values):.3f}"))
    return ("what F is", "weight", "KL(data ‖ model)", "of three trainings"), rows


def results_table() -> tuple[Sequence[str], Rows]:
    """Every recipe that was run: what it cost, and bits a dimension of test pictures with their standard errors."""
    header = (
        "recipe",
        "steps",
        "seconds",
        "bound",
        "prior, reconstruction",
        "all terms",
        "ODE − bound",
        "uniform − bound",
    )
    rows = []
    for found in results():
        done, measured = found["training"]["done"], found["likelihood"]
        bounds = measured["bound"]["bound"], measured["bound_all_terms"]["bound"]
        ends = ", ".join(number(bounds[0]["parts"][name], 2) for name in ("prior", "reconstruction"))
        cells = [f"{each['bits_per_dim']:.3f} ± {each['std_error']:.3f}" for each in bounds]
        gaps = [measured[name]["ode"]["less_bound"] for name in ("ode", "ode_uniform")]
        more = [f"{gap['mean']:+.3f} ± {gap['std_error']:.3f}".replace("-", "−") for gap in gaps]
        rows.append([found["name"], done["step"], round(done["seconds"]), cells[0], ends, cells[1], *more])
    return header, rows


EMOJI_FIGURES = (
    "prompt_fidelity_top1", "prompt_fidelity_top1_contrastive", "kid", "fd", "coverage", "diversity", "memorised_share",
    "bits_per_dim", "seconds_per_picture", "parameters", "training_seconds",
)  # fmt: skip
DECODER_FIGURES = ("psnr_db", "above_bicubic_db", "ssim", "reconstruction_fd", "vocabulary_used", "perplexity",
                   "parameters")  # fmt: skip


def figure_table(rows: Sequence[Any], roots: Sequence[str]) -> tuple[Sequence[str], Rows]:
    """A row a thing that was measured, its figures with their intervals and marks; those that none has are left out."""
    network = emoji()["extractor"]
    slug = re.sub(r"[^a-z0-9]+", "_", network["name"].lower())
    names = [root if any(root in row for row in rows) else f"{root}_{slug}" for root in roots]
    names = [name for name in names if any(name in row for row in rows)]
    header = ("", *(word(name, network["name"]).label for name in names))
    return header, [[row["name"], *(_figure(name, row) for name in names)] for row in rows]


def _figure(name: str, row: Any) -> str:
    facts = {"figures": row, "intervals": row.get("intervals", {}), "marks": row.get("marks", {})}
    return value_words(name, facts).replace("-", "−") if name in row else "–"


def emoji_table() -> tuple[Sequence[str], Rows]:
    """The generators of emoji by one measure."""
    return figure_table(emoji()["rows"], EMOJI_FIGURES)


README_FIGURES = ("prompt_fidelity_top1", "kid", "seconds_per_picture")


def readme_emoji() -> str:
    """What the README shows: prompt fidelity, KID and seconds a picture, and pictures of the same prompts."""
    header, rows = figure_table(emoji()["rows"], README_FIGURES)
    lines = [[*header, "the same prompts and seeds"], ["---", *["--:"] * (len(header) - 1), "---"]]
    lines += [[*row, f"![{row[0]}](docs/images/emoji-{row[0]}.png)"] for row in rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def emoji_decoders_table() -> tuple[Sequence[str], Rows]:
    """What becomes of held-out pictures in their decoders."""
    return figure_table(emoji()["decoders"], DECODER_FIGURES)


def emoji_goals_table() -> tuple[Sequence[str], Rows]:
    """What was aimed at."""
    rows = [
        [goal["what"], number(goal["reached"], 3), number(goal["limit"], 3), "yes" if goal["met"] else "no"]
        for goal in emoji()["goals"]
    ]
    return ("goal", "reached", "limit", "met"), rows


def emoji_pictures() -> str:
    """Pictures of the same prompts and seeds, the data's own first, and what it cost."""
    found = emoji()
    names = ["data", *(row["name"] for row in found["rows"])]
    lines = ["| | |", "| --- | --- |", *(f"| {name} | ![{name}](images/emoji-{name}.png) |" for name in names)]
    machine = found["facts"]["machine"]
    said = ", ".join(found["prompts"])
    charts = "\n".join(f"![{chart.title}](images/{name}.svg)" for name, chart in emoji_charts())
    about = f"From the left: {said}."
    where = f"{found['samples']['count']:,} samples of each on {machine['processor']}, {machine['cores']} cores."
    return "\n\n".join(("\n".join(lines), about, where, charts))


OBEYED = {
    "edge_overlap": "edges that fall together, 1 is all",
    "layout_agreement": "pixels of the layout's colour",
    "relief_error": "error of the heights, of 1",
    "small_image_rms": "rms error of the small image",
    "likeness": "likeness to the picture given, 1 is the same",
    "hole_rms": "rms distance to the picture under the mask",
    "changed_outside": "pictures changed outside of the mask",
    "label_accuracy": "labels read by our classifier that are right",
}


def conditions() -> Any:
    """What models of conditions obey; None before it is measured."""
    return data("conditions") if (BENCHMARKS / "conditions.json").is_file() else None


def conditions_table() -> tuple[Sequence[str], Rows]:
    """A row a measure: told, and the same seeds under the caption alone; of classes, real pictures."""

    def cell(found: Any) -> str:
        return f"{found['mean']:.3f} ± {found['std_error']:.3f}".replace("-", "−") if found else "–"

    rows = []
    for row in conditions()["rows"]:
        for name, found in row["figures"].items():
            rows.append(
                [row["name"], round(row["training"]["seconds"]), OBEYED[name], cell(found["told"]),
                 cell(found.get("alone")), cell(found.get("real"))]
            )  # fmt: skip
    return ("recipe", "seconds", "measure", "told", "under the caption alone", "real pictures"), rows


def conditions_pictures() -> str:
    """What was given, what was made of it, the same seeds without it, and the pictures that it came from."""
    names = [row["name"] for row in conditions()["rows"]]
    return "\n\n".join(f"![{name}](images/condition-{name}.png)\n\n*{name}*" for name in names)


def dreambooth_table() -> tuple[Sequence[str], Rows]:
    """A row a method: prompt fidelity of the thing and of all others."""

    def cell(found: Any) -> str:
        return f"{100 * found['fidelity']:.0f} % ({100 * found['low']:.0f} to {100 * found['high']:.0f})"

    rows = [
        [row["name"], round(row["seconds"]) or "", cell(row["thing"]), cell(row["others"])]
        for row in data("dreambooth")["rows"]
    ]
    return ("", "seconds", f"\u201c{data('dreambooth')['thing']}\u201d", "other prompts"), rows


def parity_table() -> tuple[Sequence[str], Rows]:
    """A row a family and task: the greatest error by sampler."""
    found: dict[tuple[str, str], dict[str, float]] = {}
    for row in data("parity")["rows"]:
        errors = found.setdefault((row["family"], row["task"]), {})
        errors[row["sampler"]] = max(errors.get(row["sampler"], 0.0), row["max_error"])
    samplers = list(dict.fromkeys(sampler for errors in found.values() for sampler in errors))
    rows = [
        [*key, *(f"{errors[one]:.0e}" if one in errors else "" for one in samplers)] for key, errors in found.items()
    ]
    return ("family", "task", *samplers), rows


TABLES: dict[str, Callable[[], tuple[Sequence[str], Rows] | str]] = {
    "why-bound": bound_table,
    "why-training": training_table,
    "why-correction": correction_table,
    "why-known": known_table,
    "choosing-best": best_table,
    "choosing-cosine": lambda: errors_table(0),
    "choosing-linear-betas": lambda: errors_table(1),
    "choosing-flow": lambda: errors_table(2),
    "choosing-edm": lambda: errors_table(3),
    "choosing-distance": distances_table,
    "choosing-model": model_table,
    "choosing-target": target_table,
    "dreambooth": dreambooth_table,
    "parity": parity_table,
    "results-recipes": results_table,
    "results-emoji": emoji_table,
    "results-emoji-decoders": emoji_decoders_table,
    "results-emoji-goals": emoji_goals_table,
    "results-emoji-pictures": emoji_pictures,
    "readme-emoji": readme_emoji,
    "conditions": conditions_table,
    "conditions-pictures": conditions_pictures,
}
MEASURED = {
    "results-emoji": emoji,
    "readme-emoji": emoji,
    "conditions": conditions,
}  # what tables of these names are made of


def table(name: str) -> str:
    """A table of Markdown, without the lines around it; a sentence where its data are not there."""
    if any(name.startswith(prefix) and record() is None for prefix, record in MEASURED.items()):
        return "*Not measured yet.*"
    made = TABLES[name]()
    if isinstance(made, str):
        return made
    header, rows = made
    columns = zip(*rows, strict=True)
    marks = ["--:" if all(re.match(r"[−+]?\d|$", str(cell)) for cell in column) else "---" for column in columns]
    lines = [header, marks, *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


# Pages

_NUMBER = re.compile(r"<!--([a-z-]+\.[\w.-]+) ([^\s>]+)-->.*?<!--/-->")
_ERROR = re.compile(r"<!--error (\S+) (\S+) (\S+) (\d+)-->.*?<!--/-->")
_TABLE = re.compile(r"<!--table ([\w-]+)-->\n.*?<!--/table-->", re.DOTALL)


def filled(text: str) -> str:
    """The page with its numbers and tables from the data."""
    text = _TABLE.sub(lambda found: f"<!--table {found[1]}-->\n\n{table(found[1])}\n\n<!--/table-->", text)
    text = _ERROR.sub(lambda found: f"<!--error {' '.join(found.groups())}-->{_error(*found.groups())}<!--/-->", text)
    return _NUMBER.sub(lambda found: f"<!--{found[1]} {found[2]}-->{_value(found[1], found[2])}<!--/-->", text)


def _value(path: str, form: str) -> str:
    name, *keys = path.split(".")
    value = data(name)
    for key in keys:
        value = value[int(key)] if isinstance(value, list) else value[key if key in value else key.replace("_", " ")]
    return format(value, form).replace("-", "−")


def _error(case: str, sampler: str, grid: str, budget: str) -> str:
    """Of a schedule, or of the model with guidance and without, by the names of a measurement."""
    if case in ("guided", "unguided"):
        measured = data(f"samplers-{case}")["model"]
    else:
        (measured,) = (each for each in data("samplers")["mixture"] if each["case"] == case)
    wanted = (sampler, grid, int(budget))
    (error,) = (s["error"] for s in measured["solutions"] if (s["sampler"], s["grid"], s.get("budget")) == wanted)
    return number(error, 2)


PAGES = (
    *(DOCS / f"{name}.md" for name in ("why", "choosing", "results", "conditions", "stable-diffusion", "fine-tuning")),
    DOCS.parent / "README.md",
)


def made() -> dict[Path, str]:
    """Every picture and page as the data says it is."""
    charts = [*why_charts(), *choosing_charts(), *results_charts()]
    pictures = {DOCS / "images" / f"{name}.svg": drawn(chart) for name, chart in charts}
    pages = {path: filled(path.read_text(encoding="utf-8")) for path in PAGES}
    return {**pictures, **pages}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python docs/figures.py", description="The figures of the documentation.")
    measures = {"why": measured_why, "target": measured_target}
    for name in measures:
        parser.add_argument(f"--{name}", action="store_true", help=f"measure docs/data/{name}.json anew")
    for name, wanted in vars(parser.parse_args()).items():
        if wanted:
            text = json.dumps(rounded(measures[name]()), indent=1) + "\n"
            (DOCS / "data" / f"{name}.json").write_text(text, encoding="utf-8")
    for path, text in made().items():
        path.write_text(text, encoding="utf-8")
