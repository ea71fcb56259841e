"""Tables of ablations: which rows a table has, and the config that each row stands for.

A table file is YAML; paths in it are relative to it, figures are named as the evaluator names them, in percent:

    title: "Table 2(a): iteration of the part queries"
    rows:
      - {name: None, config: table2a_none.yaml, paper: {AP: 63.8, APm: 59.4, APl: 71.3}}
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from querypose.config import ConfigError, load_config
from querypose.d2 import CfgNode
from querypose.evaluation import METRICS

# What tables of papers give besides what the evaluator measures.
PAPER_ONLY_METRICS = ("bbox_AP",)
KNOWN_METRICS = (*dict.fromkeys(name for names in METRICS.values() for name in names), *PAPER_ONLY_METRICS)
_TABLE_KEYS = {"title", "rows"}
_ROW_KEYS = {"name", "config", "paper"}


@dataclass(frozen=True)
class AblationRow:
    """One row: a model under a name.

    Attributes:
        name: what the table calls it.
        config_file: its experiment.
        paper: figures that the paper gives for it, in percent.
    """

    name: str
    config_file: Path
    paper: Mapping[str, float] = field(default_factory=dict)

    @property
    def folder(self) -> str:
        """The name as that of a folder."""
        return re.sub(r"[^a-z0-9]+", "_", self.name.lower()).strip("_")


@dataclass(frozen=True)
class AblationTable:
    """Rows that are compared with each other, under the name of their folder and a title."""

    name: str
    title: str
    rows: tuple[AblationRow, ...]

    def __post_init__(self) -> None:
        """Refuses names that share a folder.

        Raises:
            ConfigError: names the two rows.
        """
        by_folder: dict[str, AblationRow] = {}
        for row in self.rows:
            other = by_folder.setdefault(row.folder, row)
            if other is not row or not row.folder:
                raise ConfigError(
                    f"{self.name}: rows {other.name!r} and {row.name!r} need names that differ in letters."
                )


def read_ablation(files: Sequence[str | Path]) -> AblationTable:
    """The table in a table file, or one of which each config file is a row.

    Raises:
        ConfigError: a file is missing or malformed, or a table file stands among others.
    """
    contents = {Path(file): _read_yaml(Path(file)) for file in files}
    tables = [path for path, content in contents.items() if "rows" in content]
    if tables and len(contents) > 1:
        raise ConfigError(f"{tables[0]} is a table file; give one table file alone, or configs alone.")
    if tables:
        return parse_table(tables[0], contents[tables[0]])
    rows = tuple(AblationRow(path.stem, path) for path in contents)
    name = rows[0].folder if len(rows) == 1 else f"{rows[0].folder}_and_{len(rows) - 1}_more"
    return AblationTable(name, "Comparison of configs", rows)


def parse_table(path: Path, content: Mapping[str, Any]) -> AblationTable:
    """The table that a table file holds.

    Args:
        path: of the file.
        content: its YAML.

    Raises:
        ConfigError: says which row and what is wrong with it.
    """
    _require(path, "the table", content, required={"rows"}, known=_TABLE_KEYS)
    entries = content["rows"]
    if not isinstance(entries, list) or not entries:
        raise ConfigError(f"{path}: rows must be a list of at least one {{name, config, paper}}.")
    rows = tuple(_parse_row(path, number, entry) for number, entry in enumerate(entries, start=1))
    return AblationTable(path.stem, str(content.get("title", path.stem)), rows)


def row_config(row: AblationRow, base: str | Path | None = None, overrides: Sequence[Any] = ()) -> CfgNode:
    """The config of a row.

    Args:
        row: the row.
        base: a config file on which the row's own keys are put, in place of the `_BASE_` that its file names.
        overrides: KEY VALUE pairs, which come last.

    Raises:
        ConfigError: names the row's file.
    """
    try:
        if base is None:
            return load_config(row.config_file, overrides)
        own_keys = {name: value for name, value in _read_yaml(row.config_file).items() if name != "_BASE_"}
        delta = [part for pair in flatten(own_keys) for part in pair]
        return load_config(base, [*delta, *overrides])
    except (ConfigError, FileNotFoundError) as error:
        raise ConfigError(f"Row {row.name} ({row.config_file}{f' on {base}' if base else ''}): {error}") from error


def budget_overrides(cfg: CfgNode, max_iter: int) -> list[Any]:
    """KEY VALUE pairs that fit a schedule to another number of iterations.

    SOLVER.STEPS keep their place in the schedule; warm-up and checkpoint period are cut to a tenth of it.
    """
    solver = cfg.SOLVER
    tenth = max(1, max_iter // 10)
    return [
        "SOLVER.MAX_ITER", max_iter,
        "SOLVER.STEPS", [step * max_iter // solver.MAX_ITER for step in solver.STEPS],
        "SOLVER.WARMUP_ITERS", min(solver.WARMUP_ITERS, tenth),
        "SOLVER.CHECKPOINT_PERIOD", min(solver.CHECKPOINT_PERIOD, tenth),
    ]  # fmt: skip


def _parse_row(path: Path, number: int, entry: Any) -> AblationRow:
    where = f"row {number}"
    if not isinstance(entry, dict):
        raise ConfigError(f"{path}: {where} is {entry!r}; write {{name: …, config: …, paper: {{AP: …}}}}.")
    _require(path, where, entry, required={"name", "config"}, known=_ROW_KEYS)
    name = str(entry["name"])
    config_file = path.parent / str(entry["config"])
    if not config_file.is_file():
        raise ConfigError(f"{path}: {where} ({name}): there is no config file {str(config_file)!r}.")
    paper = entry.get("paper") or {}
    if not isinstance(paper, dict):
        raise ConfigError(f"{path}: {where} ({name}): paper is {paper!r}; write {{AP: 64.9, …}}.")
    for metric, value in paper.items():
        if metric not in KNOWN_METRICS:
            raise ConfigError(f"{path}: {where} ({name}): paper has {metric!r}; known: {', '.join(KNOWN_METRICS)}.")
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ConfigError(f"{path}: {where} ({name}): the paper's {metric} is {value!r}, not a number.")
    return AblationRow(name, config_file, paper)


def _require(path: Path, where: str, content: Mapping[str, Any], required: set[str], known: set[str]) -> None:
    if missing := sorted(required - content.keys()):
        raise ConfigError(f"{path}: {where} lacks {', '.join(missing)}.")
    if unknown := sorted(map(str, content.keys() - known)):
        raise ConfigError(f"{path}: {where} has unknown {', '.join(unknown)}; known: {', '.join(sorted(known))}.")


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"There is no file {str(path)!r}.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path} must hold a mapping: a table (title, rows) or a config.")
    return content


def flatten(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of every value in nested mappings."""
    for name, value in node.items():
        if isinstance(value, dict):
            yield from flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
