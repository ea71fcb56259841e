"""The tables of configs/ablations and their rows: complete, and each row a delta that fits another base too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.test_configs import CONFIGS, ROWS, TABLES, leaves

ABLATIONS = CONFIGS / "ablations"


def read(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text())


def test_every_row_is_in_a_table_and_every_table_has_its_rows() -> None:
    assert {table.parent for table in TABLES} == {ABLATIONS}
    named = [f"ablations/{row['config']}" for table in TABLES for row in read(table)["rows"]]
    assert sorted(named) == ROWS


@pytest.mark.parametrize("table", [table.name for table in TABLES])
def test_a_table_names_its_rows_and_the_figures_of_the_paper(table: str) -> None:
    content = read(ABLATIONS / table)
    assert set(content) == {"title", "rows"}
    names = [row["name"] for row in content["rows"]]
    assert len({*names}) == len(names) >= 2
    for row in content["rows"]:
        assert set(row) == {"name", "config", "paper"}
        assert all(isinstance(name, str) for name in (row["name"], row["config"]))
        assert all(0 < figure < 100 for figure in row["paper"].values())


@pytest.mark.parametrize("name", ROWS)
def test_a_row_is_a_delta_that_can_stand_on_another_base(name: str) -> None:
    own = read(CONFIGS / name)
    base = (ABLATIONS / own.pop("_BASE_")).resolve()
    assert base.is_file()
    assert ABLATIONS not in base.parents  # so that the row itself holds all that it changes
    keys = [key for key, _ in leaves(own)]
    assert keys
    assert all(key.startswith("MODEL.QUERYPOSE.") for key in keys)
