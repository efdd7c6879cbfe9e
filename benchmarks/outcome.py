"""What a benchmark hands back: tables, goals, notes, and what it had to leave out."""

from __future__ import annotations

from dataclasses import dataclass, field

from benchmarks.harness import Goal, Table

__all__ = ["Outcome"]


@dataclass
class Outcome:
    """Filled while a benchmark runs."""

    notes: tuple[str, ...] = ()
    tables: list[Table] = field(default_factory=list)
    goals: list[Goal] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)

    def skip(self, what: str, why: str) -> None:
        """Notes what is not measured, and why."""
        self.skipped[what] = why
