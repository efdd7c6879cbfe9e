"""Whether a mutant was caught: by a test that failed as it should, and by nothing else."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from museum.exhibit import Exhibit
from museum.runner import Seen

__all__ = ["Verdict", "covered", "judged", "unsound"]

_ALWAYS = ("AssertionError", "Failed")  # pytest.fail and a pytest.raises that saw nothing raise `Failed`


@dataclass(frozen=True)
class Verdict:
    """Killed or not; `why` names the test that failed, or says what happened instead."""

    killed: bool
    why: str


def judged(exhibit: Exhibit, seen: Seen) -> Verdict:
    """What the run of an exhibit's tests against its overlay shows."""
    if seen.ended == "time":
        return Verdict(False, "its tests took too long and were ended")
    if seen.ended:
        return Verdict(False, f"its tests could not be run ({seen.ended})")
    for failure in seen.failures:
        if failure.when in ("setup", "call") and failure.exception in (*_ALWAYS, exhibit.raises):
            return Verdict(True, failure.test)
    if seen.failures:
        failure = seen.failures[0]
        return Verdict(
            False, f"{failure.test} ended in {failure.exception} ({failure.said}) instead of {exhibit.raises}"
        )
    return Verdict(False, f"{len(seen.passed)} tests passed")


def covered(target: str, tests: Iterable[str]) -> bool:
    """Whether a node id, or one that it stands for, is among the tests."""
    return any(test == target or test.startswith((f"{target}[", f"{target}::")) for test in tests)


def unsound(targets: Sequence[str], seen: Sequence[Seen]) -> list[str]:
    """A sentence for all that is wrong with the tests when nothing is: they have to pass, or they prove nothing."""
    said = []
    for one in seen:
        if one.ended:
            last = "\n".join(line for line in one.output.strip().split("\n")[-8:])
            said.append(f"the tests could not be run ({one.ended}):\n{last}")
        said += [f"{f.test} does not pass without any change: {f.exception}: {f.said}" for f in one.failures]
    passed = [test for one in seen for test in one.passed]
    if not said:
        said += [f"{target} was not run (skipped?)" for target in targets if not covered(target, passed)]
    return said
