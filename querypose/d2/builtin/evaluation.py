"""Running a model over a dataset, and what becomes of the metrics."""

from __future__ import annotations

import logging
import math
import pprint
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch

from querypose.d2.builtin import comm
from querypose.d2.builtin.config import CfgNode

_LOG_SECONDS = 5.0
_MAX_WARMUP = 5


class DatasetEvaluator:
    """Takes the outputs of a model batch by batch, and gives metrics in the end."""

    def reset(self) -> None:
        """Before a dataset."""

    def process(self, inputs: Any, outputs: Any) -> None:
        """Takes one batch: the model's inputs and outputs, of the same length."""

    def evaluate(self) -> Any:
        """The metrics, {task: {metric: value}}; None on processes other than the main one."""
        return None


class _Stopwatch:
    """Seconds per batch since the warm-up, and the progress line."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._warmup = min(_MAX_WARMUP, total - 1)
        self._last_log = time.perf_counter()
        self.restart()

    def restart(self) -> None:
        self.seconds = {"Dataloading": 0.0, "Inference": 0.0, "Eval": 0.0}
        self._start = time.perf_counter()
        self._images = 0

    @contextmanager
    def measure(self, phase: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[phase] += time.perf_counter() - start

    def batch_done(self, index: int, images: int) -> None:
        if index + 1 == self._warmup:
            self.restart()
            return
        self._images += images
        now = time.perf_counter()
        if now - self._last_log < _LOG_SECONDS:
            return
        self._last_log = now
        done = index + 1 - (self._warmup if index >= self._warmup else 0)
        per_batch = (now - self._start) / done
        phases = " ".join(f"{phase}: {seconds / done:.4f} s/iter." for phase, seconds in self.seconds.items())
        eta = timedelta(seconds=int(per_batch * (self._total - index - 1)))
        logging.getLogger(__name__).info(
            "Inference done %d/%d. %s Total: %.4f s/iter. %.1f img/s. ETA=%s",
            index + 1, self._total, phases, per_batch, self._images / (now - self._start), eta,
        )  # fmt: skip

    def log_total(self) -> None:
        logger = logging.getLogger(__name__)
        count = max(self._total - self._warmup, 1)
        devices = comm.get_world_size()
        for what, seconds in (
            ("Total inference time", time.perf_counter() - self._start),
            ("Total inference pure compute time", self.seconds["Inference"]),
        ):
            text = timedelta(seconds=int(seconds))
            logger.info("%s: %s (%.6f s / iter per device, on %d devices)", what, text, seconds / count, devices)


def inference_on_dataset(model: Callable[[Any], Any], data_loader: Any, evaluator: DatasetEvaluator) -> Any:
    """Runs a model over a loader and evaluates it; logs progress, rate and remaining time.

    Args:
        model: in evaluation mode.
        data_loader: has a length.
        evaluator: takes each batch and the model's outputs for it.

    Returns:
        what the evaluator gives; an empty dict where it gives None.
    """
    total = len(data_loader)
    logging.getLogger(__name__).info("Start inference on %d batches", total)
    evaluator.reset()
    stopwatch = _Stopwatch(total)
    with torch.no_grad():
        batches = iter(data_loader)
        for index in range(total):
            with stopwatch.measure("Dataloading"):
                inputs = next(batches)
            with stopwatch.measure("Inference"):
                outputs = model(inputs)
                if torch.cuda.is_available():
                    torch.cuda.synchronize()
            with stopwatch.measure("Eval"):
                evaluator.process(inputs, outputs)
            stopwatch.batch_done(index, len(inputs))
        next(batches, None)  # at the end of a loader its processes end, and so does a progress bar
    stopwatch.log_total()
    results = evaluator.evaluate()
    return {} if results is None else results


def print_csv_format(results: Mapping[str, Any]) -> None:
    """Logs metrics in lines that can be copied into a table. Metrics with "-" in their names are left out."""
    logger = logging.getLogger(__name__)
    for task, metrics in results.items():
        if not isinstance(metrics, Mapping):
            logger.info("copypaste: %s=%s", task, metrics)
            continue
        main = {name: value for name, value in metrics.items() if "-" not in name}
        logger.info("copypaste: Task: %s", task)
        logger.info("copypaste: %s", ",".join(main))
        logger.info("copypaste: %s", ",".join(f"{value:.4f}" for value in main.values()))


def verify_results(cfg: CfgNode, results: Mapping[str, Any]) -> bool:
    """Compares metrics with TEST.EXPECTED_RESULTS, [task, metric, value, tolerance]; ends the program if one differs.

    Raises:
        SystemExit: a metric differs by more than its tolerance, is missing or not finite.
    """
    expected = cfg.TEST.EXPECTED_RESULTS
    if not expected:
        return True
    logger = logging.getLogger(__name__)
    failed = []
    for task, metric, value, tolerance in expected:
        actual = results.get(task, {}).get(metric)
        if actual is None or not math.isfinite(actual) or abs(actual - value) > tolerance:
            failed.append(f"{task}/{metric} is {actual}, expected {value} ± {tolerance}")
    if failed:
        logger.error("Result verification failed! %s", "; ".join(failed))
        logger.error("Actual results: %s", pprint.pformat(results))
        sys.exit(1)
    logger.info("Results verification passed.")
    return True


def flatten_results_dict(results: Mapping[str, Any]) -> dict[str, Any]:
    """{"a": {"b": 1}} as {"a/b": 1}, at any depth."""
    flat: dict[str, Any] = {}
    for name, value in results.items():
        if isinstance(value, Mapping):
            flat.update({f"{name}/{inner}": entry for inner, entry in flatten_results_dict(value).items()})
        else:
            flat[name] = value
    return flat
