"""Serving: many requests at once, in shared calls of the networks."""

from carrara.serve.calibration import Calibrated, calibrate
from carrara.serve.engine import Call, Cancelled, Engine, Late, Sizes, Ticket, Uniform
from carrara.serve.known_prompts import KnownPrompts
from carrara.serve.worker import Closed, Job, Worker

__all__ = [
    "Calibrated",
    "Call",
    "Cancelled",
    "Closed",
    "Engine",
    "Job",
    "KnownPrompts",
    "Late",
    "Sizes",
    "Ticket",
    "Uniform",
    "Worker",
    "calibrate",
]
