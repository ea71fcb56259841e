"""The folder of a training as one finds it: finished, still going on, or ended early."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from querypose.config import ConfigError, get_cfg, load_config
from querypose.d2 import CfgNode
from querypose.evaluation import RESULTS_FILE, EvaluationError
from querypose.visualization.charts import Curve, read_metrics

CONFIG_FILE, METRICS_FILE = "config.yaml", "metrics.json"


@dataclass(frozen=True)
class Run:
    """What a run's folder holds.

    Attributes:
        folder: OUTPUT_DIR of the run.
        cfg: its config; None where there is none that can be read.
        curves: its scalars over the iterations.
        notes: what is missing or damaged, a sentence each.
    """

    folder: Path
    cfg: CfgNode | None
    curves: Mapping[str, Curve]
    notes: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """Of the folder."""
        return self.folder.resolve().name

    @property
    def last_iteration(self) -> int | None:
        """The last that was written, from 0."""
        return max((int(points[-1][0]) for points in self.curves.values() if points), default=None)

    def metrics(self) -> dict[str, tuple[float, int]]:
        """The last value of every metric of an evaluation, and its iteration."""
        lasts = {name: points[-1] for name, points in self.curves.items() if points}
        # The evaluation after the last iteration has a row of its own, one further.
        trained = max((int(iteration) for name, (iteration, _) in lasts.items() if "/" not in name), default=None)
        return {
            name: (value, int(iteration) if trained is None else min(int(iteration), trained))
            for name, (iteration, value) in lasts.items()
            if "/" in name
        }

    def results_file(self, dataset: str) -> Path | None:
        """The results of a dataset, if the run has written them."""
        folder = self.folder / "inference"
        several = self.cfg is not None and len(self.cfg.DATASETS.TEST) > 1
        path = folder / dataset / RESULTS_FILE if several else folder / RESULTS_FILE
        return path if path.is_file() else None


def read_run(folder: Path, imports: Sequence[str] = ()) -> Run:
    """Reads what there is.

    Raises:
        EvaluationError: the folder is none of a run.
    """
    if not (folder / CONFIG_FILE).is_file() and not (folder / METRICS_FILE).is_file():
        what = "There is no folder" if not folder.is_dir() else f"No {CONFIG_FILE} and no {METRICS_FILE} is in"
        raise EvaluationError(f"{what} {str(folder)!r}", "name OUTPUT_DIR of a training")
    notes: list[str] = []
    cfg = None
    try:
        cfg = load_config(folder / CONFIG_FILE, imports=imports)
    except (ConfigError, OSError, ValueError) as error:
        notes.append(f"The config cannot be read: {error}")
    curves: Mapping[str, Curve] = {}
    if (folder / METRICS_FILE).is_file():
        try:
            curves = read_metrics(folder / METRICS_FILE)
        except OSError as error:
            notes.append(f"The metrics cannot be read: {error}")
        else:
            notes += [] if curves else [f"The metrics cannot be read: no line of {METRICS_FILE} is a row of them."]
    else:
        notes.append("It has not written any metrics yet.")
    run = Run(folder, cfg, curves, notes)
    if cfg is not None and run.last_iteration is not None and run.last_iteration + 1 < cfg.SOLVER.MAX_ITER:
        done, total = run.last_iteration + 1, cfg.SOLVER.MAX_ITER
        notes.append(f"It is at iteration {done} of {total}: it is still going on, or it ended early.")
    return run


def flat(cfg: CfgNode) -> dict[str, str]:
    """Every key of a config with its value as text, but for OUTPUT_DIR."""

    def leaves(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
        for name, value in node.items():
            if isinstance(value, Mapping):
                yield from leaves(value, f"{prefix}{name}.")
            else:
                yield f"{prefix}{name}", str(value)

    return {name: value for name, value in leaves(cfg) if name != "OUTPUT_DIR"}


def config_rows(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """A row a key: default, the value of each run, and whether the runs differ; a single run: from the default."""
    defaults = flat(get_cfg())
    of_runs = [flat(run.cfg) if run.cfg is not None else {} for run in runs]
    names = sorted({name for values in of_runs for name in values})
    rows = []
    for name in names:
        values = [of_run.get(name) for of_run in of_runs]
        compared = values if len(runs) > 1 else [*values, defaults.get(name)]
        rows.append({"key": name, "default": defaults.get(name), "values": values, "differs": len({*compared}) > 1})
    return rows


def common_names(runs: Sequence[Run]) -> list[str]:
    """The names of runs; where they are alike, with as much of their paths as tells them apart."""
    names = [run.name for run in runs]
    if len({*names}) == len(names):
        return names
    paths = [str(run.folder.resolve()) for run in runs]
    if len({*paths}) < len(paths):
        raise EvaluationError(f"{paths[0]} was named twice", "name two different runs")
    root = os.path.commonpath(paths)
    return [os.path.relpath(path, root) for path in paths]
