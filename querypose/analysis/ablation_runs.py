"""The trainings of an ablation: one for each row and seed, in a process of its own, resumed after a stop.

On disk, in the folder of a row, for seed 1: `seed_1.yaml` (the whole config), `seed_1/` (what the training writes),
`seed_1.log` (its screen) and, once it has finished, `seed_1.json` (its figures).
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import yaml

from querypose.analysis.ablation_table import AblationRow, AblationTable, budget_overrides, flatten, row_config
from querypose.config import ConfigError, get_cfg
from querypose.d2 import CfgNode
from querypose.data import register_custom_datasets
from querypose.engine.setup import available_cores
from querypose.evaluation import write_json
from querypose.visualization.charts import Curve
from querypose.visualization.plots import read_metrics

# They may differ between a run and its continuation.
_FREE_KEYS = {"OUTPUT_DIR", "LOG_PERIOD", "DATALOADER.NUM_WORKERS", "SOLVER.CHECKPOINT_PERIOD"}
_LOG_LINES_SHOWN = 5
_SECONDS_TO_END = 60  # a training may write a checkpoint first


@dataclass(frozen=True)
class RunFigures:
    """What a training has come to.

    Attributes:
        iteration: how many iterations it has done.
        seconds_per_step: median, None where none was timed.
        metrics: the last evaluation, in percent.
        ap_curve: AP after so many iterations, of every evaluation.
    """

    iteration: int = 0
    seconds_per_step: float | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    ap_curve: Curve = field(default_factory=list)


@dataclass(frozen=True)
class AblationRun:
    """The training of a row with a seed; `cfg.OUTPUT_DIR` is its folder."""

    row: AblationRow
    seed: int
    cfg: CfgNode

    @property
    def label(self) -> str:
        """For messages."""
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
        """Whether the figures are there."""
        return self.file(".json").is_file()

    def result(self) -> RunFigures:
        """The figures of the finished run."""
        return RunFigures(**json.loads(self.file(".json").read_text(encoding="utf-8")))

    def progress(self) -> RunFigures:
        """The figures that a running or finished training has written so far."""
        metrics_json = self.folder / "metrics.json"
        if not metrics_json.is_file():
            return RunFigures()
        return read_figures(read_metrics(metrics_json), self.cfg.DATASETS.TEST)

    def require_same_settings(self) -> None:
        """Refuses to go on with a run that was begun with other settings.

        Raises:
            ConfigError: names the keys.
        """
        if not self.file(".yaml").is_file():
            return
        # A key that was added to the project since then had its default.
        defaults = dict(flatten(get_cfg()))
        begun = {**defaults, **dict(flatten(yaml.safe_load(self.file(".yaml").read_text(encoding="utf-8"))))}
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
    base: str | Path | None = None,
    max_iter: int | None = None,
    seeds: Sequence[int] = (),
    overrides: Sequence[Any] = (),
) -> list[AblationRun]:
    """Every training that a table stands for, seed by seed, with the datasets of its configs registered.

    Args:
        table: the rows.
        output: folder of the table; a row has a folder in it.
        base: see `row_config`.
        max_iter: budget of a run; see `budget_overrides`.
        seeds: one run each; by default one with the config's SEED, or 1 where that is drawn.
        overrides: KEY VALUE pairs for all rows.

    Raises:
        ConfigError: a row's config cannot be used, or a run was begun with other settings.
    """
    runs = []
    wanted: Sequence[int | None] = seeds or [None]
    for seed in wanted:
        for row in table.rows:
            budget = [] if max_iter is None else budget_overrides(row_config(row, base), max_iter)
            cfg = row_config(row, base, [*budget, *overrides])
            if seed is not None or cfg.SEED < 0:
                cfg.SEED = 1 if seed is None else seed
            cfg.OUTPUT_DIR = str(output / row.folder / f"seed_{cfg.SEED}")
            register_custom_datasets(cfg)
            cfg.freeze()
            runs.append(AblationRun(row, cfg.SEED, cfg))
    for run in runs:
        run.require_same_settings()
    return runs


def read_figures(curves: Mapping[str, Curve], datasets: Sequence[str]) -> RunFigures:
    """The figures in a metrics.json; of several test datasets those of the first."""
    prefix = f"{datasets[0]}/keypoints/" if len(datasets) > 1 else "keypoints/"
    metrics = {name.removeprefix(prefix): points[-1][1] for name, points in curves.items() if name.startswith(prefix)}
    times = [seconds for _, seconds in curves.get("time", [])]
    return RunFigures(
        iteration=int(curves["total_loss"][-1][0]) + 1 if "total_loss" in curves else 0,
        seconds_per_step=statistics.median(times) if times else None,
        metrics=metrics,
        ap_curve=[(iteration + 1, value) for iteration, value in curves.get(f"{prefix}AP", [])],
    )


@dataclass(frozen=True)
class Slot:
    """A place where one run at a time can train.

    Attributes:
        arguments: for the training's command line.
        environment: variables that it gets besides the present ones.
    """

    arguments: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)


def make_slots(jobs: int = 1, gpus: Sequence[str] = (), gpus_per_row: int = 1) -> list[Slot]:
    """Slots that share the CPU's cores evenly, each with GPUs of its own where there are any.

    Args:
        jobs: number of slots without GPUs.
        gpus: ids as in CUDA_VISIBLE_DEVICES; then there are as many slots as they are enough for.
        gpus_per_row: how many a run trains on.

    Raises:
        ConfigError: there are fewer GPUs than one row is to have.
    """
    if not gpus:
        return [Slot(environment=_threads(jobs)) for _ in range(jobs)]
    groups = [gpus[first : first + gpus_per_row] for first in range(0, len(gpus) - gpus_per_row + 1, gpus_per_row)]
    if not groups:
        raise ConfigError(f"A row is to have {gpus_per_row} GPUs, but there are {len(gpus)}: {', '.join(gpus)}.")
    return [
        Slot(("--num-gpus", str(gpus_per_row)), {"CUDA_VISIBLE_DEVICES": ",".join(group), **_threads(len(groups))})
        for group in groups
    ]


def _threads(slots: int) -> dict[str, str]:
    if "OMP_NUM_THREADS" in os.environ:
        return {}
    return {"OMP_NUM_THREADS": str(max(1, available_cores() // slots))}


class AblationRunner:
    """Runs what has not finished yet, as many at a time as there are slots; a failure does not end the others.

    Args:
        runs: all of the ablation; the finished ones are left alone.
        command: starts a training: `[python, train_net.py]`.
        slots: where runs can train.
        report: takes the messages.
        on_finish: called after every run that finished.
        report_period: seconds between two reports of progress.
        poll_period: seconds between two looks at the processes.
        inherited_files: open files that the trainings are to hold as well.
    """

    def __init__(
        self,
        runs: Sequence[AblationRun],
        command: Sequence[str] = (sys.executable, "tools/train_net.py"),
        slots: Sequence[Slot] = (Slot(),),
        *,
        report: Callable[[str], None] = print,
        on_finish: Callable[[], None] = lambda: None,
        report_period: float = 30.0,
        poll_period: float = 0.5,
        inherited_files: Sequence[int] = (),
    ) -> None:
        self.runs = list(runs)
        self.command = list(command)
        self.slots = list(slots)
        self.report = report
        self.on_finish = on_finish
        self.report_period = report_period
        self.poll_period = poll_period
        self.inherited_files = tuple(inherited_files)
        self.failed: list[AblationRun] = []
        self._active: dict[int, tuple[AblationRun, subprocess.Popen[bytes]]] = {}

    def run(self) -> list[AblationRun]:
        """Trains; returns the runs that failed. Whatever interrupts it ends the trainings, which can be resumed."""
        waiting = deque(run for run in self.runs if not run.is_finished)
        if finished := len(self.runs) - len(waiting):
            self.report(f"{finished} of {len(self.runs)} runs have finished before and are not run again.")
        next_report = time.monotonic() + self.report_period
        try:
            while waiting or self._active:
                for index in range(len(self.slots)):
                    if index not in self._active and waiting:
                        run = waiting.popleft()
                        self._active[index] = (run, self._start(run, self.slots[index]))
                time.sleep(self.poll_period)
                for index, (run, process) in list(self._active.items()):
                    if process.poll() is not None:
                        del self._active[index]
                        self._end(run, process.returncode)
                if time.monotonic() >= next_report and self._active:
                    self._report_progress(waiting)
                    next_report = time.monotonic() + self.report_period
        finally:
            self._stop()
        return self.failed

    def _start(self, run: AblationRun, slot: Slot) -> subprocess.Popen[bytes]:
        run.folder.mkdir(parents=True, exist_ok=True)
        run.file(".yaml").write_text(run.cfg.dump(), encoding="utf-8")
        verb = "goes on" if (run.folder / "last_checkpoint").is_file() else "begins"
        self.report(f"{run.label} {verb}: {run.folder}")
        command = [*self.command, "--config-file", str(run.file(".yaml")), "--resume", *slot.arguments]
        with run.file(".log").open("ab") as log:
            return subprocess.Popen(
                command, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
                env={**os.environ, **slot.environment}, pass_fds=self.inherited_files,
            )  # fmt: skip

    def _end(self, run: AblationRun, exit_code: int) -> None:
        if exit_code:
            self.failed.append(run)
            lines = run.file(".log").read_text(encoding="utf-8", errors="replace").splitlines()[-_LOG_LINES_SHOWN:]
            shown = "".join(f"\n    {line}" for line in lines)
            self.report(f"{run.label} FAILED with exit code {exit_code}; {run.file('.log')} ends with:{shown}")
            return
        figures = run.progress()
        if figures.iteration < run.cfg.SOLVER.MAX_ITER:  # it was told to stop, and did so in order
            self.failed.append(run)
            self.report(f"{run.label} was stopped after {figures.iteration} iterations; it goes on next time.")
            return
        write_json(run.file(".json"), asdict(figures))
        ap = f"AP {figures.metrics['AP']:.1f}" if "AP" in figures.metrics else "not evaluated"
        self.report(f"{run.label} has finished: {ap} after {figures.iteration} iterations.")
        self.on_finish()

    def _stop(self) -> None:
        for _, process in self._active.values():
            process.terminate()
        for _, process in self._active.values():
            try:
                process.wait(_SECONDS_TO_END)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._active.clear()

    def _report_progress(self, waiting: Sequence[AblationRun]) -> None:
        known: list[float] = []
        active = []
        for run, _ in self._active.values():
            figures = run.progress()
            seconds = figures.seconds_per_step
            remaining = run.cfg.SOLVER.MAX_ITER - figures.iteration
            known += [seconds] if seconds else []
            active.append((run, figures, remaining, seconds))
        known += [run.result().seconds_per_step or 0.0 for run in self.runs if run.is_finished]
        known = [seconds for seconds in known if seconds]
        usual = statistics.median(known) if known else None
        for run, figures, _, seconds in active:
            self.report(f"  {run.label}: {describe_progress(figures, run.cfg.SOLVER.MAX_ITER, seconds)}")
        done = sum(run.is_finished for run in self.runs)
        total = f"{done} of {len(self.runs)} runs finished" + (f", {len(self.failed)} failed" if self.failed else "")
        if usual is not None:
            rest = [remaining * (seconds or usual) for _, _, remaining, seconds in active]
            rest += [run.cfg.SOLVER.MAX_ITER * usual for run in waiting]
            eta = max(*rest, sum(rest) / len(self.slots)) if len(rest) > 1 else rest[0]
            total += f"; training of all ends in {timedelta(seconds=int(eta))}"
        self.report(total)


def describe_progress(figures: RunFigures, max_iter: int, seconds_per_step: float | None) -> str:
    """Iterations done, time to go, the last AP."""
    parts = [f"iter {figures.iteration}/{max_iter}"]
    if seconds_per_step:
        parts.append(f"eta {timedelta(seconds=int(seconds_per_step * (max_iter - figures.iteration)))}")
    if "AP" in figures.metrics:
        parts.append(f"AP {figures.metrics['AP']:.1f}")
    return "  ".join(parts)
