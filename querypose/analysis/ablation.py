"""An ablation from its table to its report."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from querypose.analysis.ablation_jobs import AblationJobs, Cluster
from querypose.analysis.ablation_report import AblationReport, dry_run_table
from querypose.analysis.ablation_runs import AblationRun, RunResult
from querypose.analysis.ablation_table import AblationTable
from querypose.analysis.complexity import Complexity, measure_complexity
from querypose.config import length_of_training
from querypose.data import load_datasets
from querypose.visualization.charts import Curve, plot_comparison, plot_rows


class Ablation:
    """The rows of a table, trained and reported in one folder.

    Args:
        table: the rows.
        output: the folder.
        runs: of `plan_runs`.
        image_size: height and width of the image that operations are counted on, as in `measure_complexity`.
    """

    def __init__(
        self,
        table: AblationTable,
        output: Path,
        runs: Sequence[AblationRun],
        image_size: tuple[int, int] | None = None,
    ) -> None:
        self.table = table
        self.output = output
        self.runs = list(runs)
        self.image_size = image_size

    @cached_property
    def complexities(self) -> dict[str, Complexity]:
        """Parameters and GFLOPs by name of the row; every row is built for it."""
        runs = {run.row.name: run for run in self.runs}
        return {name: measure_complexity(run.cfg, image_size=self.image_size) for name, run in runs.items()}

    def dry_run(self) -> str:
        return dry_run_table(self.table, self.complexities)

    def run(self, command: Sequence[str], cluster: Cluster, **options: Any) -> list[AblationRun]:
        """Builds every row, trains what has not finished, and writes the report after every run.

        Args:
            command: starts a training: `[python, train_net.py]`.
            cluster: where runs train.
            options: of `AblationJobs`.

        Returns:
            the runs that failed.

        Raises:
            ConfigError: a row or the cluster cannot be used.
        """
        self.output.mkdir(parents=True, exist_ok=True)
        # A row that cannot be built and data that is missing are known before any row trains; and data that is made on
        # first use is made once.
        self.write_report()
        for name in sorted({name for run in self.runs for name in (*run.cfg.DATASETS.TRAIN, *run.cfg.DATASETS.TEST)}):
            load_datasets([name])
        return AblationJobs(self.runs, self.output, command, cluster, on_finish=self.write_report, **options).run()

    def report(self) -> AblationReport:
        results: dict[str, list[RunResult]] = {}
        for run in self.runs:
            if run.is_finished:
                results.setdefault(run.row.name, []).append(run.result())
        cfg = self.runs[0].cfg
        notes = [
            f"Trained on {', '.join(cfg.DATASETS.TRAIN)}, evaluated on {', '.join(cfg.DATASETS.TEST[:1])}: "
            f"{length_of_training(cfg)}, batches of {cfg.SOLVER.IMS_PER_BATCH} images, on {cfg.MODEL.DEVICE}. "
            "The paper's metrics are those of its own data and schedule."
        ]
        return AblationReport(self.table, self.complexities, results, notes)

    def write_report(self) -> None:
        """table.md, table.csv; once there is an AP ap.png, and curves.png where it was evaluated on the way."""
        report = self.report()
        (self.output / "table.md").write_text(report.markdown(), encoding="utf-8")
        (self.output / "table.csv").write_text(report.csv(), encoding="utf-8")
        precisions = {"AP, measured": report.values("AP")}
        if any(row.paper.get("AP") for row in self.table.rows):
            precisions["AP, paper"] = [[row.paper["AP"]] if "AP" in row.paper else [] for row in self.table.rows]
        if any(precisions["AP, measured"]):
            plot_rows([row.title for row in self.table.rows], precisions, self.output / "ap.png")
        panels = {"AP (%)": report.curves("AP"), "mean OKS of a person's best pose (%)": report.curves("OKS")}
        panels = {title: curves for title, curves in panels.items() if any(map(_is_line, curves.values()))}
        if panels:
            unit = "CPU-seconds of training" if report.counts_cpu_time else "iteration"
            plot_comparison(panels, self.output / "curves.png", x_label=unit)


def _is_line(points: Curve) -> bool:
    return len(points) > 1
