"""Which rows an ablation compares: those of a table file (see `config.tables`), or any configs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from querypose.config import ConfigError, flatten, load_config, read_table
from querypose.config.merging import read_yaml
from querypose.d2 import CfgNode


@dataclass(frozen=True)
class AblationRow:
    """One row: a config file with some keys changed.

    Attributes:
        name: its folder is called so.
        title: what the table calls it.
        config_file: the experiment that it changes.
        overrides: KEY VALUE pairs that make the row.
        paper: metrics that the paper gives for it, in percent.
    """

    name: str
    title: str
    config_file: Path
    overrides: tuple[Any, ...] = ()
    paper: Mapping[str, float] = field(default_factory=dict)

    def load(self, overrides: Sequence[Any] = (), imports: Sequence[str] = ()) -> CfgNode:
        """The row's config; `overrides` are KEY VALUE pairs that come last, `imports` a user's modules.

        Raises:
            ConfigError: names the row.
        """
        try:
            return load_config(self.config_file, [*self.overrides, *overrides], imports)
        except (ConfigError, FileNotFoundError) as error:
            raise ConfigError(f"Row {self.name!r}, which changes {self.config_file}: {error}") from error


@dataclass(frozen=True)
class AblationTable:
    """Rows that are compared with each other, under the name of their folder and a title."""

    name: str
    title: str
    rows: tuple[AblationRow, ...]


def read_ablation(files: Sequence[str | Path], base: str | Path | None = None) -> AblationTable:
    """The table in a table file, or one of which each config file is a row.

    Args:
        files: one table file, or configs.
        base: a config file that the rows change in place of their own: a smaller model, other data.

    Raises:
        ConfigError: a file is missing or malformed, a table file stands among others, or two configs have one name.
    """
    for file in files:
        if not Path(file).is_file():
            raise ConfigError(f"There is no file {str(file)!r}.")
    tables = [table for table in map(read_table, files) if table is not None]
    if tables and len(files) > 1:
        raise ConfigError(f"{tables[0].file} is a table file; give one table file alone, or configs alone.")
    if tables:
        (table,) = tables
        rows = tuple(
            AblationRow(row.name, row.title, Path(base or table.base), tuple(row.overrides), row.paper)
            for row in table.rows.values()
        )
        return AblationTable(table.file.stem, table.title, rows)
    rows = tuple(_row_of_config(Path(file), base) for file in files)
    names = [row.name for row in rows]
    if doubles := {name for name in names if names.count(name) > 1}:
        raise ConfigError(f"Configs of an ablation need different names; {', '.join(sorted(doubles))} is there twice.")
    name = names[0] if len(rows) == 1 else f"{names[0]}_and_{len(rows) - 1}_more"
    return AblationTable(name, "Comparison of configs", rows)


def _row_of_config(path: Path, base: str | Path | None) -> AblationRow:
    if base is None:
        return AblationRow(path.stem, path.stem, path)
    content = read_yaml(path)
    content.pop("_BASE_", None)
    return AblationRow(path.stem, path.stem, Path(base), tuple(part for pair in flatten(content) for part in pair))
