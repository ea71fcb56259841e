"""A problem of a dataset, and summaries of many problems."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

from querypose.errors import UserError

Severity = Literal["error", "warning"]


class DatasetError(UserError, ValueError):
    """A dataset that cannot be used: names the file, the id in it if there is one, and the remedy."""


class Problem(NamedTuple):
    """One thing that is wrong in one place.

    Attributes:
        severity: "error": the dataset is refused, or the image skipped; "warning": `remedy` is what is done about it.
        kind: the name under which summaries count it.
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


def group_by_kind(problems: Iterable[Problem]) -> list[list[Problem]]:
    """Problems of one severity and kind together: errors first, then the most frequent kinds."""
    groups: dict[tuple[Severity, str], list[Problem]] = {}
    for problem in problems:
        groups.setdefault((problem.severity, problem.kind), []).append(problem)
    return sorted(groups.values(), key=lambda group: (group[0].severity != "error", -len(group)))


def summarize(problems: Iterable[Problem], num_examples: int = 3) -> list[str]:
    """Lines that count problems by kind, with the first few of each."""
    lines = []
    for group in group_by_kind(problems):
        lines.append(f"{group[0].severity}: {group[0].kind}: {len(group)}")
        lines += [f"    {problem.message}" for problem in group[:num_examples]]
        if len(group) > num_examples:
            lines.append(f"    … and {len(group) - num_examples} more")
    return lines


def count_by_kind(problems: Sequence[Problem], num_ids: int = 5) -> list[str]:
    """One line for each kind, for a log: the message of a single problem, else their number and first ids."""
    lines = []
    for group in group_by_kind(problems):
        first = group[0]
        if len(group) == 1:
            lines.append(first.message)
            continue
        ids = ", ".join(problem.id for problem in group[:num_ids]) + (", …" if len(group) > num_ids else "")
        lines.append(f"{first.file}: {first.kind}: {len(group)} times ({ids}); {first.remedy}.")
    return lines
