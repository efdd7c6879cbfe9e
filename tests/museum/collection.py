"""All exhibits, room by room."""

from __future__ import annotations

from museum import data, foreign, measures, precision, samplers, schedules, training
from museum.exhibit import Exhibit

__all__ = ["EXHIBITS"]

EXHIBITS: tuple[Exhibit, ...] = (
    *schedules.EXHIBITS,
    *samplers.EXHIBITS,
    *foreign.EXHIBITS,
    *precision.EXHIBITS,
    *training.EXHIBITS,
    *data.EXHIBITS,
    *measures.EXHIBITS,
)
