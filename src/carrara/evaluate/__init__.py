"""What a model makes, and how good it is: figures, charts, pictures and the page that shows them."""

from carrara.evaluate.card import card
from carrara.evaluate.grid import data_uri, png_bytes, sheet, strip, to_uint8
from carrara.evaluate.plot import Axis, Bars, Histogram, Lines, Sample, Scatter, Series
from carrara.evaluate.report import Blocks, KeyFigure, Report

__all__ = [
    "Axis",
    "Bars",
    "Blocks",
    "Histogram",
    "KeyFigure",
    "Lines",
    "Report",
    "Sample",
    "Scatter",
    "Series",
    "card",
    "data_uri",
    "png_bytes",
    "sheet",
    "strip",
    "to_uint8",
]
