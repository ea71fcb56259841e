"""The trainings of an ablation: one for each row and seed, and what they have come to.

On disk, in the folder of a row, for seed 1: `seed_1.yaml` (the whole config), `seed_1/` (what the training writes) and,
once it has finished, `seed_1.json` (its metrics).
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml

from querypose.analysis.ablation_table import AblationRow, AblationTable
from querypose.config import ConfigError, flatten, get_cfg, is_finite, is_integer
from querypose.config.merging import read_yaml
from querypose.d2 import CfgNode
from querypose.data import register_custom_datasets
from querypose.data.json_files import read_json
from querypose.evaluation import write_json
from querypose.paths import short
from querypose.visualization.charts import Curve, read_metrics

# They may differ between a run and its continuation.
_FREE_KEYS = {"OUTPUT_DIR", "LOG_PERIOD", "DATALOADER.NUM_WORKERS", "SOLVER.CHECKPOINT_PERIOD"}


@dataclass(frozen=True)
class RunResult:
    """What a training has come to.

    Attributes:
        iteration: how many iterations it has done.
        seconds_per_step: median, None where none was timed.
        metrics: the last evaluation, in percent.
        curves: AP and mean OKS (`AP`, `OKS`) after so many iterations, of every evaluation.
        cpu_seconds: of the training without its evaluations, where the hook CPUTime counts them.
    """

    iteration: int = 0
    seconds_per_step: float | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    curves: Mapping[str, Curve] = field(default_factory=dict)
    cpu_seconds: float | None = None

    @classmethod
    def of(cls, curves: Mapping[str, Curve], datasets: Sequence[str]) -> RunResult:
        """From the curves of a metrics.json; of several test datasets the first one counts."""
        dataset = f"{datasets[0]}/" if len(datasets) > 1 else ""
        prefix = f"{dataset}keypoints/"
        times = [seconds for _, seconds in curves.get("time", [])]
        return cls(
            iteration=int(curves["total_loss"][-1][0]) + 1 if "total_loss" in curves else 0,
            seconds_per_step=statistics.median(times) if times else None,
            metrics={
                name.removeprefix(prefix): points[-1][1] for name, points in curves.items() if name.startswith(prefix)
            },
            curves={
                name: [(iteration + 1, value) for iteration, value in curves[key]]
                for name, key in (("AP", f"{prefix}AP"), ("OKS", f"{dataset}progress/OKS"))
                if key in curves
            },
            cpu_seconds=curves["cpu_seconds"][-1][1] if "cpu_seconds" in curves else None,
        )

    @classmethod
    def read(cls, file: Path) -> RunResult:
        """From the json that `AblationRun.finish` wrote.

        Raises:
            JsonError, ConfigError: it is damaged.
        """
        content = read_json(file)
        is_of_numbers = {
            "iteration": is_integer,
            "seconds_per_step": lambda value: value is None or is_finite(value),
            "metrics": lambda value: isinstance(value, dict) and all(map(_is_number, value.values())),
            "curves": lambda value: isinstance(value, dict) and all(map(_is_curve, value.values())),
            "cpu_seconds": lambda value: value is None or is_finite(value),
        }
        if not isinstance(content, dict) or content.keys() != is_of_numbers.keys():
            raise ConfigError(f"{file} is not the result of a training; delete it, and the row goes on.")
        for name, is_allowed in is_of_numbers.items():
            if not is_allowed(content[name]):
                raise ConfigError(f"{file}: {name} is {short(content[name])}; delete the file, and the row goes on.")
        curves = {
            name: [(iteration, value) for iteration, value in points] for name, points in content["curves"].items()
        }
        return cls(**{**content, "curves": curves})


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)  # a metric may be NaN


def _is_curve(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(point, list) and len(point) == 2 and all(map(_is_number, point)) for point in value
    )


@dataclass(frozen=True)
class AblationRun:
    """The training of a row with a seed; `cfg.OUTPUT_DIR` is its folder."""

    row: AblationRow
    seed: int
    cfg: CfgNode

    @property
    def label(self) -> str:
        return f"{self.row.name} (seed {self.seed})"

    @property
    def folder(self) -> Path:
        """What the training writes into."""
        return Path(self.cfg.OUTPUT_DIR)

    def file(self, suffix: str) -> Path:
        """The file beside the folder that has its name and this suffix."""
        return self.folder.with_name(self.folder.name + suffix)

    @property
    def is_finished(self) -> bool:
        return self.file(".json").is_file()

    def result(self) -> RunResult:
        """What a finished training has come to.

        Raises:
            ConfigError: its file is damaged.
        """
        return RunResult.read(self.file(".json"))

    def progress(self) -> RunResult:
        """What a running or finished training has written so far."""
        metrics_json = self.folder / "metrics.json"
        if not metrics_json.is_file():
            return RunResult()
        return RunResult.of(read_metrics(metrics_json), self.cfg.DATASETS.TEST)

    def finish(self) -> None:
        """Keeps the result of a training that has ended, unless it has iterations before it."""
        result, solver = self.progress(), self.cfg.SOLVER
        # How many iterations epochs or minutes come to is known to the training alone.
        if result.iteration >= (1 if solver.MAX_MINUTES else max(1, solver.MAX_ITER)):
            write_json(self.file(".json"), asdict(result))

    def require_same_settings(self) -> None:
        """Refuses to go on with a run that was begun with other settings.

        Raises:
            ConfigError: names the keys.
        """
        if not self.file(".yaml").is_file():
            return
        # A key that was added to the project since then had its default.
        defaults = dict(flatten(get_cfg()))
        begun = {**defaults, **dict(flatten(read_yaml(self.file(".yaml"))))}
        present = dict(flatten(yaml.safe_load(self.cfg.dump())))
        changed = [key for key in present if key not in _FREE_KEYS and present[key] != begun.get(key)]
        if changed:
            changes = "; ".join(f"{key} was {begun.get(key)!r}, is {present[key]!r}" for key in changed[:5])
            raise ConfigError(
                f"Row {self.label} was begun in {self.folder} with other settings: {changes}. "
                "Restore them, choose another --output, or delete that folder's row."
            )


def plan_runs(
    table: AblationTable,
    output: Path,
    *,
    max_iter: int | None = None,
    seeds: Sequence[int] = (),
    overrides: Sequence[Any] = (),
    imports: Sequence[str] = (),
) -> list[AblationRun]:
    """Every training that a table stands for, seed by seed, with the datasets of its configs registered.

    Args:
        table: the rows.
        output: folder of the table; a row has a folder in it.
        max_iter: budget of a run; see `budget_overrides`.
        seeds: one run each; by default one with the config's SEED, or 1 where that is drawn.
        overrides: KEY VALUE pairs for all rows.
        imports: a user's modules, which add keys or what they name.

    Raises:
        ConfigError: a row's config cannot be used, or a run was begun with other settings.
    """
    runs = []
    wanted: Sequence[int | None] = seeds or [None]
    for seed in wanted:
        for row in table.rows:
            budget = [] if max_iter is None else budget_overrides(row.load(imports=imports), max_iter)
            cfg = row.load([*budget, *overrides], imports)
            if seed is not None or cfg.SEED < 0:
                cfg.SEED = 1 if seed is None else seed
            cfg.OUTPUT_DIR = str(output / row.name / f"seed_{cfg.SEED}")
            register_custom_datasets(cfg)
            cfg.freeze()
            runs.append(AblationRun(row, cfg.SEED, cfg))
    for run in runs:
        run.require_same_settings()
    return runs


def budget_overrides(cfg: CfgNode, max_iter: int) -> list[Any]:
    """KEY VALUE pairs that fit a schedule to another number of iterations.

    Steps keep their place in the schedule, if they are in the unit of its length; warm-up and checkpoint period are cut
    to a tenth of it.
    """
    solver = cfg.SOLVER
    tenth = max(1, max_iter // 10)
    length, steps = (solver.MAX_EPOCHS, solver.STEP_EPOCHS) if solver.MAX_EPOCHS else (solver.MAX_ITER, solver.STEPS)
    return [
        "SOLVER.MAX_ITER", max_iter,
        "SOLVER.MAX_MINUTES", 0.0,
        "SOLVER.STEPS", [max(1, int(step * max_iter // length)) for step in steps],
        "SOLVER.WARMUP_ITERS", min(solver.WARMUP_ITERS, tenth),
        "SOLVER.CHECKPOINT_PERIOD", min(solver.CHECKPOINT_PERIOD or tenth, tenth),
    ]  # fmt: skip
