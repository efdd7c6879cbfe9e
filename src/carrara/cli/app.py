"""The verbs in one place. Each lives in a module of its own, which imports what it needs when it is called."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from carrara import __version__
from carrara.cli.assemble import assemble
from carrara.cli.bench import samplers
from carrara.cli.check import check
from carrara.cli.compare import compare
from carrara.cli.demo import demo
from carrara.cli.doctor import doctor
from carrara.cli.evaluate import evaluate
from carrara.cli.export import export
from carrara.cli.import_ import import_
from carrara.cli.init import init
from carrara.cli.likelihood import likelihood
from carrara.cli.sample import sample
from carrara.cli.show import show
from carrara.cli.train import train

__all__ = ["app"]

_PLAIN: dict[str, Any] = {"help_option_names": ["-h", "--help"], "max_content_width": 100}
_ORDER = (
    "demo",
    "doctor",
    "data",
    "init",
    "train",
    "import",
    "assemble",
    "sample",
    "evaluate",
    "compare",
    "likelihood",
    "show",
    "bench",
)


class _Verbs(TyperGroup):
    """Lists the verbs in the order in which they are needed."""

    def list_commands(self, ctx: Any) -> list[str]:
        """The names, ours first."""
        return sorted(
            super().list_commands(ctx), key=lambda name: _ORDER.index(name) if name in _ORDER else len(_ORDER)
        )


app = typer.Typer(
    add_completion=False,
    cls=_Verbs,
    context_settings=_PLAIN,
    help="Diffusion models from a folder of pictures to a trained, measured generator.",
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
data = typer.Typer(context_settings=_PLAIN, rich_markup_mode=None)
bench = typer.Typer(context_settings=_PLAIN, rich_markup_mode=None)


@app.callback(invoke_without_command=True)
def _carrara(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Say the version and end.", is_eager=True)] = False,
) -> None:
    if version:
        print(f"carrara {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        print(context.get_help())


@data.callback(invoke_without_command=True)
def _data(context: typer.Context) -> None:
    """Look at pictures before training."""
    if context.invoked_subcommand is None:
        print(context.get_help())


@bench.callback(invoke_without_command=True)
def _bench(context: typer.Context) -> None:
    """Measure Carrara itself."""
    if context.invoked_subcommand is None:
        print(context.get_help())


app.add_typer(data, name="data", short_help="look at pictures before training: data check FOLDER")
data.command(short_help="report on a folder: counts, problems, sizes, captions")(check)
app.command(short_help="train the three parts on real pictures, with a report")(demo)
app.command(short_help="what this machine has, what is missing, how to mend it")(doctor)
app.command(short_help="write commented recipes for a folder of pictures")(init)
app.command(short_help="train one part; the same command again goes on")(train)
app.command("import", short_help="make a model of a Stable Diffusion folder or file")(import_)
app.command(short_help="write an imported model as diffusers does")(export)
app.command(short_help="put three trained parts together into a model")(assemble)
app.command(short_help="make pictures with a model")(sample)
app.command(short_help="how good a model's pictures are, against real ones")(evaluate)
app.command(short_help="models side by side, by one measure")(compare)
app.command(short_help="bits a dimension of pictures under a model")(likelihood)
app.command(short_help="what a model is, was trained on, and measured")(show)
app.add_typer(bench, name="bench", short_help="measure Carrara itself: bench samplers")
bench.command(short_help="how near each sampler comes to the exact solution")(samplers)
