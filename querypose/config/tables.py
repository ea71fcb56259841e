"""Tables of ablations: YAML files of which each row is an experiment, a base config with a few keys changed.

    title: "Table 2(a): iteration of the part queries"
    base: ../querypose/querypose_r50_fpn_1x_full.yaml
    rows:
      - name: summation                                    # what --row takes
        title: Summation                                   # in the printed table; the name by default
        paper: {AP: 64.2, APm: 60.1, APl: 71.7}            # metrics that the paper gives, in percent
        config: {MODEL: {QUERYPOSE: {KEYPOINT: {ITERATION: summation}}}}

`base` is relative to the file. A row names all the keys that it is about, also where the base has the same value: so it
works with another base too.
"""

from __future__ import annotations

import argparse
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from querypose.config.keys import ConfigError, is_finite
from querypose.config.merging import read_yaml
from querypose.paths import check_name, path_within

_NAME = re.compile(r"[\w.+-]+")


@dataclass(frozen=True)
class TableRow:
    """One experiment of a table.

    Attributes:
        name: identifies it in the table; also the name of its folder.
        title: what a printed table calls it.
        keys: what it changes, by dotted name of the key.
        paper: metrics that the paper gives for it, in percent.
    """

    name: str
    title: str
    keys: Mapping[str, Any]
    paper: Mapping[str, float] = field(default_factory=dict)

    @property
    def overrides(self) -> list[Any]:
        """`keys` as KEY VALUE pairs."""
        return [part for pair in self.keys.items() for part in pair]


@dataclass(frozen=True)
class Table:
    """The rows of a table file, by name, and the config that all of them change."""

    file: Path
    title: str
    base: Path
    rows: Mapping[str, TableRow]

    def row(self, name: str | None) -> TableRow:
        """The row of this name.

        Raises:
            ConfigError: there is none, or no name was given; names those that exist.
        """
        if name is None or name not in self.rows:
            problem = "has several rows" if name is None else f"has no row {name!r}"
            raise ConfigError(
                f"{self.file} is a table of ablations and {problem}. Choose one with --row: {', '.join(self.rows)}."
            )
        return self.rows[name]


def add_row_argument(parser: argparse.ArgumentParser) -> None:
    """Adds --row to a command line that has --config-file."""
    parser.add_argument("--row", metavar="NAME", help="the row to take where --config-file is a table of ablations")


def read_table(file: str | Path) -> Table | None:
    """Reads a table file; None where the file is something else, such as a config.

    Raises:
        ConfigError: names the row that is wrong, and what is wrong with it.
    """
    path = Path(file)
    content = read_yaml(path)
    if "rows" not in content:
        return None
    _check_keys(f"{path}:", content, required={"title", "base", "rows"}, optional=set())
    check_name(content["base"], f"{path}: base")
    base = path.parent / content["base"]
    if not base.is_file():
        raise ConfigError(f"{path}: there is no config file {str(base)!r}, which `base` names.")
    if not isinstance(content["rows"], list) or not content["rows"]:
        raise ConfigError(f"{path}: `rows` must be a list with at least one {{name: …, config: …}}.")
    rows: dict[str, TableRow] = {}
    for number, entry in enumerate(content["rows"], start=1):
        row = _parse_row(f"{path}: row {number}", entry)
        if row.name.lower() in map(str.lower, rows):
            raise ConfigError(f"{path}: two rows have the name {row.name!r}.")
        rows[row.name] = row
    return Table(path, str(content["title"]), base, rows)


def _parse_row(where: str, entry: Any) -> TableRow:
    if not isinstance(entry, dict):
        raise ConfigError(f"{where} is {entry!r}; write {{name: …, paper: {{AP: …}}, config: {{…}}}}.")
    _check_keys(where, entry, required={"name", "config"}, optional={"title", "paper"})
    name = entry["name"]
    if isinstance(name, bool) or not isinstance(name, str | int) or not _NAME.fullmatch(str(name)):
        raise ConfigError(
            f"{where}: its name is {name!r}; it must consist of letters, digits and _ . + - (YAML reads on, off, yes, "
            "no as true or false: put them in quotes)."
        )
    where = f"{where} ({name})"
    if not isinstance(entry["config"], dict) or not entry["config"]:
        raise ConfigError(f"{where}: config is {entry['config']!r}; write the keys that the row changes, {{KEY: …}}.")
    paper = entry.get("paper", {})
    if not isinstance(paper, dict):
        raise ConfigError(f"{where}: paper is {paper!r}; write {{AP: 64.9, …}}.")
    for metric, value in paper.items():
        if not is_finite(value):
            raise ConfigError(f"{where}: the paper's {metric} is {value!r}; it must be a number, in percent.")
    path_within("", str(name), f"{where}: name")  # of the folder of the row
    keys = list(flatten(entry["config"]))
    if doubles := [key for key, count in Counter(key for key, _ in keys).items() if count > 1]:
        raise ConfigError(f"{where}: {doubles[0]} is twice in its config; write it once.")
    return TableRow(str(name), str(entry.get("title", name)), dict(keys), paper)


def _check_keys(where: str, content: Mapping[Any, Any], required: set[str], optional: set[str]) -> None:
    if missing := sorted(required - content.keys()):
        raise ConfigError(f"{where} lacks {', '.join(missing)}.")
    if unknown := sorted(map(str, content.keys() - required - optional)):
        raise ConfigError(f"{where} has unknown {', '.join(unknown)}; known: {', '.join(sorted(required | optional))}.")


def flatten(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of every value in nested mappings."""
    for name, value in node.items():
        if isinstance(value, dict):
            yield from flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
