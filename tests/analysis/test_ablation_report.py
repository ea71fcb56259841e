from __future__ import annotations

import csv
import io
import math
from dataclasses import replace
from pathlib import Path

import pytest

from querypose.analysis.ablation_report import AblationReport, Statistic, dry_run_table
from querypose.analysis.ablation_runs import RunResult
from querypose.analysis.ablation_table import AblationRow, AblationTable
from querypose.analysis.complexity import Complexity

ROWS = (
    AblationRow("none", "None", Path("base.yaml"), paper={"AP": 63.8, "APl": 71.3}),
    AblationRow("selective", "Selective", Path("base.yaml"), paper={"AP": 64.9, "bbox_AP": 56.9}),
)
TABLE = AblationTable("table2a", "Table 2(a)", ROWS)
COMPLEXITIES = {
    "none": Complexity({"backbone": 2_000_000, "decoder.stages": 500_000}, {"backbone": 4_000_000_000}, (128, 171)),
    "selective": Complexity(
        {"backbone": 2_000_000, "decoder.stages": 750_000}, {"backbone": 6_500_000_000}, (128, 171)
    ),
}
RESULTS = {
    "none": [
        RunResult(10, 0.5, {"AP": 20.0, "APm": 10.0, "AR": 30.0}, {"AP": [(5, 2.0), (10, 20.0)]}),
        RunResult(10, 0.7, {"AP": 23.0, "APm": 12.0, "AR": 31.0}, {"AP": [(5, 4.0), (10, 23.0)]}),
    ]
}
REPORT = AblationReport(TABLE, COMPLEXITIES, RESULTS, notes=["Trained on people."])


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_statistic() -> None:
    assert Statistic.of([1.0, 3.0]) == Statistic(2.0, math.sqrt(2))
    assert Statistic.of([1.0, 3.0]).text(1) == "2.0 ± 1.4"
    assert Statistic.of([4.0]).text(2) == "4.00"


def test_markdown() -> None:
    lines = REPORT.markdown().splitlines()
    assert lines[0] == "# Table 2(a)"
    heads, _, none, selective = (cells(line) for line in lines[2:6])
    assert heads == [
        "row",
        "params (M)",
        "GFLOPs",
        "s/step",
        "AP",
        "APm",
        "paper AP",
        "paper APl",
        "paper bbox_AP",
    ]
    assert none == ["None", "2.50", "4", "0.600", "21.5 ± 2.1", "11.0 ± 1.4", "63.8", "71.3", "–"]
    assert selective == ["Selective", "2.75", "6.5", "–", "–", "–", "64.9", "–", "56.9"]
    notes = "\n".join(lines[6:])
    assert "1 GMAC = 2 GFLOPs" in notes
    assert "128x171" in notes
    assert "Trained on people." in notes


def test_csv() -> None:
    none, selective = csv.DictReader(io.StringIO(REPORT.csv()))
    assert (none["row"], none["title"], none["seeds"]) == ("none", "None", "2")
    assert float(none["parameters"]) == 2_500_000
    assert float(none["gflops"]) == 4.0
    assert float(none["seconds_per_step"]) == pytest.approx(0.6)
    assert float(none["AP"]) == 21.5
    assert float(none["AP_spread"]) == pytest.approx(math.sqrt(4.5))
    assert float(none["AP_paper"]) == 63.8
    assert (selective["AP"], selective["AP_paper"], selective["seeds"]) == ("", "64.9", "0")


def test_curves_are_means_over_the_seeds() -> None:
    assert REPORT.curves("AP") == {"None": [(5, 3.0), (10, 21.5)]}
    assert REPORT.curves("OKS") == {}


def test_curves_go_over_cpu_seconds_where_all_runs_have_counted_them() -> None:
    timed = [replace(run, cpu_seconds=seconds) for run, seconds in zip(RESULTS["none"], (30.0, 50.0), strict=True)]
    report = AblationReport(TABLE, COMPLEXITIES, {"none": timed})
    assert report.curves("AP") == {"None": [(20, 3.0), (40, 21.5)]}
    half_timed = AblationReport(TABLE, COMPLEXITIES, {"none": [timed[0], RESULTS["none"][1]]})
    assert half_timed.curves("AP") == REPORT.curves("AP")


def test_dry_run() -> None:
    shown = dry_run_table(TABLE, COMPLEXITIES)
    rows = {
        line.split()[0]: line.split()[1:]
        for line in shown.splitlines()
        if line and line.split()[0].lower() in COMPLEXITIES
    }
    assert rows["None"] == ["2.500", "+0.000", "4", "+0", "0.500"]
    assert rows["Selective"] == ["2.750", "+0.250", "6.5", "+2.5", "0.750"]
    assert "stages (M)" in shown
    assert "backbone (M)" not in shown  # the same in all rows
    assert max(map(len, shown.splitlines())) <= 120
