"""Times variants of a config side by side: each in a process of its own, one step of each in turn.

So their ratios hold on a machine whose speed drifts, and the peak of each one's memory is its own.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import platform
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from querypose import d2
from querypose.analysis.benchmark_subjects import SUBJECTS, UNTIMED, Subject, Workload
from querypose.engine.setup import available_cores

MAX_PARTS_ROUNDS = 5
PAUSE = 0.02  # threads of the process that has just run still spin for a moment


@dataclass(frozen=True)
class Timing:
    """Seconds of a repeated step: median, quartiles and mean."""

    median: float
    lower_quartile: float
    upper_quartile: float
    mean: float
    samples: int

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Timing:
        """Of at least one sample; quartiles interpolate linearly between samples."""
        lower, median, upper = (float(value) for value in np.percentile(seconds, [25, 50, 75]))
        return cls(median, lower, upper, float(np.mean(seconds)), len(seconds))


class Worker:
    """A subject in a process of its own, which `close` ends.

    Args:
        what: a name in `SUBJECTS`.
        workload: what it works on.

    Raises:
        BrokenProcessPool: from any call, when the process was killed. What a subject raises is raised here.
    """

    _subject: Subject  # in the process

    def __init__(self, what: str, workload: Workload) -> None:
        self._pool = ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))
        self.images_per_step, self.steady = self._pool.submit(Worker._prepare, what, workload).result()

    def call(self, method: str, *args: Any) -> Any:
        return self._pool.submit(Worker._call, method, *args).result()

    def close(self) -> None:
        self._pool.shutdown()

    @staticmethod
    def _prepare(what: str, workload: Workload) -> tuple[int, bool]:
        logging.disable(logging.INFO)
        Worker._subject = SUBJECTS[what](workload)
        return Worker._subject.images_per_step, Worker._subject.steady

    @staticmethod
    def _call(method: str, *args: Any) -> Any:
        return getattr(Worker._subject, method)(*args)


def run_benchmark(
    variants: Mapping[str, Workload],
    whats: Sequence[str],
    *,
    iterations: int = 10,
    warmup: int = 2,
    trace: Path | None = None,
    report: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Measures every variant.

    Args:
        variants: workloads by name.
        whats: names in `SUBJECTS`.
        iterations: steps that are timed.
        warmup: steps before them.
        trace: folder for a trace of a step by torch.profiler, of everything that is timed; it opens in a browser
            (chrome://tracing, ui.perfetto.dev).
        report: takes a line about what is being measured.

    Returns:
        what the json holds: `machine`, and `variants`: name -> `workload` and a result for each of `whats`.

    Raises:
        BrokenProcessPool: a measurement was killed, for memory perhaps.
    """
    results: dict[str, dict[str, Any]] = {
        name: {"workload": {**asdict(workload), "overrides": list(workload.overrides)}}
        for name, workload in variants.items()
    }
    for what in whats:
        start = time.perf_counter()
        measured = measure_interleaved(what, variants, iterations, warmup, trace)
        report(f"{what}: {len(variants)} variants in {time.perf_counter() - start:.0f} s")
        for name, result in measured.items():
            results[name][what] = result
    return {"machine": describe_machine(), "variants": results}


def measure_interleaved(
    what: str, variants: Mapping[str, Workload], iterations: int, warmup: int, trace: Path | None = None
) -> dict[str, dict[str, Any]]:
    """One subject for every variant; forwards and backwards through the variants in turn."""
    workers: dict[str, Worker] = {}
    try:
        for name, workload in variants.items():
            workers[name] = Worker(what, workload)
        results = {}
        if what in UNTIMED:
            return {name: worker.call("result") for name, worker in workers.items()}
        samples = _rounds(workers, "step", iterations, warmup)
        # After the timed steps, which then had nothing looking on; the first one warms up.
        parts = _rounds(workers, "parts", min(iterations, MAX_PARTS_ROUNDS), warmup=1)
        for name, worker in workers.items():
            timing = Timing.of(samples[name])
            part_names = dict.fromkeys(part for sample in parts[name] for part in sample)
            results[name] = {
                "seconds": asdict(timing),
                "images_per_step": worker.images_per_step,
                "images_per_second": worker.images_per_step / (timing.median if worker.steady else timing.mean),
                "parts": {
                    part: asdict(Timing.of([sample.get(part, 0.0) for sample in parts[name]])) for part in part_names
                },
                **worker.call("result"),
            }
            if trace is not None:
                worker.call("trace", trace / f"{what}_{name}.json")
        return results
    finally:
        for worker in workers.values():
            worker.close()


def _rounds(workers: Mapping[str, Worker], method: str, iterations: int, warmup: int) -> dict[str, list[Any]]:
    samples: dict[str, list[Any]] = {name: [] for name in workers}
    for index in range(-warmup, iterations):
        for name in list(workers) if index % 2 == 0 else reversed(list(workers)):
            if len(workers) > 1:
                time.sleep(PAUSE)
            sample = workers[name].call(method)
            if index >= 0:
                samples[name].append(sample)
    return samples


def describe_machine() -> dict[str, Any]:
    """Hardware, versions, threads, and the commit of this project if it lies in a git repository."""
    return {
        "cpu": _cpu_name(),
        "cores": available_cores(),
        "threads": int(os.environ.get("OMP_NUM_THREADS", available_cores())),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "platform": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "engine": f"{d2.ENGINE} {d2.ENGINE_VERSION}",
        "commit": _commit(),
    }


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _commit() -> str | None:
    try:
        result = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12"],
            cwd=Path(__file__).parent, capture_output=True, text=True, check=False,
        )  # fmt: skip
    except FileNotFoundError:  # no git on this machine
        return None
    return result.stdout.strip() or None
