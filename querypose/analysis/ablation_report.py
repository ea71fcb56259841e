"""What an ablation has shown: one table, in Markdown and CSV, beside the paper's metrics."""

from __future__ import annotations

import csv
import io
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tabulate import tabulate

from querypose.analysis.ablation_runs import RunResult
from querypose.analysis.ablation_table import AblationRow, AblationTable
from querypose.analysis.complexity import CONVENTION, Complexity
from querypose.visualization.charts import Curve

# Of a run's metrics these are shown; others only where the paper gives them.
_SHOWN = ("AP", "APm", "APl", "APE", "APM", "APH", "AP50")


@dataclass(frozen=True)
class Statistic:
    """Mean of a metric over seeds and its sample standard deviation (NaN of a single seed)."""

    mean: float
    spread: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Statistic:
        return cls(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else math.nan)

    def text(self, digits: int) -> str:
        """`mean`, or `mean ± spread`."""
        spread = "" if math.isnan(self.spread) else f" ± {self.spread:.{digits}f}"
        return f"{self.mean:.{digits}f}{spread}"


@dataclass(frozen=True)
class AblationReport:
    """A table with what is known of its rows.

    Attributes:
        table: the rows.
        complexities: by name of the row.
        results: of the finished runs, one per seed, by name of the row.
        notes: said under the table.
    """

    table: AblationTable
    complexities: Mapping[str, Complexity]
    results: Mapping[str, Sequence[RunResult]]
    notes: Sequence[str] = ()

    @property
    def metrics(self) -> tuple[str, ...]:
        """Metrics that the table shows of the runs: those of the paper, and the most common ones."""
        measured = {name for results in self.results.values() for result in results for name in result.metrics}
        return tuple(name for name in dict.fromkeys([*_SHOWN, *self.paper_metrics]) if name in measured)

    @property
    def paper_metrics(self) -> tuple[str, ...]:
        """Metrics that the paper gives for any row."""
        return tuple(dict.fromkeys(name for row in self.table.rows for name in row.paper))

    def values(self, metric: str) -> list[list[float]]:
        """A metric of every row, one value per seed that has it."""
        return [
            [run.metrics[metric] for run in self.results.get(row.name, ()) if metric in run.metrics]
            for row in self.table.rows
        ]

    def statistic(self, row: AblationRow, metric: str) -> Statistic | None:
        """A metric of a row over its seeds, None where no run has it."""
        values = self.values(metric)[self.table.rows.index(row)]
        return Statistic.of(values) if values else None

    @property
    def counts_cpu_time(self) -> bool:
        """Whether every finished run has counted its CPU-seconds."""
        runs = [run for results in self.results.values() for run in results]
        return bool(runs) and all(run.cpu_seconds is not None for run in runs)

    def curves(self, name: str) -> dict[str, Curve]:
        """`AP` or `OKS` by title of every row that was evaluated, the mean over its seeds.

        It goes over the iterations; where all runs have counted CPU-seconds, over these.
        """
        curves = {}
        for row in self.table.rows:
            runs = self.results.get(row.name, ())
            values: dict[float, list[float]] = {}
            for run in runs:
                for iteration, value in run.curves.get(name, ()):
                    values.setdefault(iteration, []).append(value)
            scale = 1.0
            if self.counts_cpu_time and runs:
                scale = statistics.fmean((run.cpu_seconds or 0.0) / max(run.iteration, 1) for run in runs)
            if values:
                curves[row.title] = [(scale * at, statistics.fmean(values[at])) for at in sorted(values)]
        return curves

    def seconds_per_step(self, row: AblationRow) -> float | None:
        values = [run.seconds_per_step for run in self.results.get(row.name, ()) if run.seconds_per_step]
        return statistics.median(values) if values else None

    def markdown(self) -> str:
        of_paper = self.paper_metrics
        heads = ["row", "params (M)", "GFLOPs", "s/step", *self.metrics, *(f"paper {name}" for name in of_paper)]
        lines = []
        for row in self.table.rows:
            complexity, seconds = self.complexities[row.name], self.seconds_per_step(row)
            ours = [self.statistic(row, name) for name in self.metrics]
            lines.append(
                [
                    row.title,
                    f"{complexity.num_parameters / 1e6:.2f}",
                    f"{complexity.gflops:.4g}",
                    "–" if seconds is None else f"{seconds:.3f}",
                    *("–" if metric is None else metric.text(1) for metric in ours),
                    *(f"{row.paper[name]:.1f}" if name in row.paper else "–" for name in of_paper),
                ]
            )
        table = tabulate(lines, heads, tablefmt="github", disable_numparse=True, colalign=_alignment(heads))
        return "\n".join([f"# {self.table.title}", "", table, "", *(f"* {note}" for note in self.all_notes), ""])

    @property
    def all_notes(self) -> list[str]:
        """How to read the numbers, then `notes`."""
        height, width = next(iter(self.complexities.values())).image_size
        seeds = max((len(runs) for runs in self.results.values()), default=0)
        spread = f"; mean ± standard deviation of {seeds} seeds" if seeds > 1 else ""
        return [
            f"AP in percent{spread}. GFLOPs of one {height}x{width} image: {CONVENTION}.",
            *self.notes,
        ]

    def csv(self) -> str:
        heads = ["row", "title", "parameters", "gflops", "seconds_per_step", "seeds"]
        metrics = tuple(dict.fromkeys([*self.metrics, *self.paper_metrics]))
        heads += [f"{name}{suffix}" for name in metrics for suffix in ("", "_spread", "_paper")]
        stream = io.StringIO()
        writer = csv.DictWriter(stream, heads, lineterminator="\n")
        writer.writeheader()
        for row in self.table.rows:
            complexity = self.complexities[row.name]
            line: dict[str, object] = {
                "row": row.name,
                "title": row.title,
                "parameters": complexity.num_parameters,
                "gflops": complexity.gflops,
                "seconds_per_step": self.seconds_per_step(row),
                "seeds": len(self.results.get(row.name, ())),
            }
            for name in metrics:
                if (metric := self.statistic(row, name)) is not None:
                    line[name] = metric.mean
                    line[f"{name}_spread"] = None if math.isnan(metric.spread) else metric.spread
                line[f"{name}_paper"] = row.paper.get(name)
            writer.writerow(line)
        return stream.getvalue()


def dry_run_table(table: AblationTable, complexities: Mapping[str, Complexity]) -> str:
    """Parameters and GFLOPs of every row, what they differ by from the first row, and in which parts."""
    first = complexities[table.rows[0].name]
    parts = [
        part
        for part in dict.fromkeys(part for row in table.rows for part in complexities[row.name].parts)
        if len({complexities[row.name].parameters.get(part, 0) for row in table.rows}) > 1
    ]
    heads = ["row", "params (M)", "+/-", "GFLOPs", "+/-", *(f"{part.rpartition('.')[2]} (M)" for part in parts)]
    lines = []
    for row in table.rows:
        complexity = complexities[row.name]
        lines.append(
            [
                row.title,
                f"{complexity.num_parameters / 1e6:.3f}",
                f"{(complexity.num_parameters - first.num_parameters) / 1e6:+.3f}",
                f"{complexity.gflops:.4g}",
                f"{complexity.gflops - first.gflops:+.3g}",
                *(f"{complexity.parameters.get(part, 0) / 1e6:.3f}" for part in parts),
            ]
        )
    height, width = first.image_size
    shown = tabulate(lines, heads, tablefmt="simple", disable_numparse=True, colalign=_alignment(heads))
    return f"{table.title}\n\n{shown}\n\nInference of one {height}x{width} image.\n{CONVENTION}."


def _alignment(heads: Sequence[str]) -> list[str]:
    return ["left", *["right"] * (len(heads) - 1)]
