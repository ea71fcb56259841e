"""What can be wrong with a dataset: one problem, and many of them in a form that can be read."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

Severity = Literal["error", "warning"]


class Problem(NamedTuple):
    """One thing that is wrong in one place.

    Attributes:
        severity: "error": the dataset is refused, or the image skipped; "warning": used as `remedy` says, or corrected.
        kind: what problems of this kind are counted under.
        file: the json or the image.
        id: what in the file, such as "annotation 12"; "" for the file as a whole.
        what: what is wrong, with the values that show it.
        remedy: what to do about it, or for a warning what is done about it.
    """

    severity: Severity
    kind: str
    file: str
    id: str
    what: str
    remedy: str

    @property
    def message(self) -> str:
        """All of it in one sentence."""
        where = "" if self.file in self.what else f"{self.file}: "
        return f"{where}{self.what}; {self.remedy}."


def errors_of(problems: Iterable[Problem]) -> list[Problem]:
    """The problems that are errors."""
    return [problem for problem in problems if problem.severity == "error"]


def summarize(problems: Sequence[Problem], num_examples: int = 3) -> list[str]:
    """Lines that count problems by kind, errors first and the most frequent first, with the first few of each."""
    groups: dict[tuple[Severity, str], list[Problem]] = {}
    for problem in problems:
        groups.setdefault((problem.severity, problem.kind), []).append(problem)
    lines = []
    for (severity, kind), group in sorted(groups.items(), key=lambda item: (item[0][0] != "error", -len(item[1]))):
        lines.append(f"{severity}: {kind}: {len(group)}")
        lines += [f"    {problem.message}" for problem in group[:num_examples]]
        if len(group) > num_examples:
            lines.append(f"    … and {len(group) - num_examples} more")
    return lines
