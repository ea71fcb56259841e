"""Running a model over a dataset, and what becomes of the figures."""

from __future__ import annotations

import logging
import math
import pprint
import sys
import time
from collections.abc import Callable, Iterator, Mapping, MutableSequence, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
from torch import nn

from querypose.d2.builtin import comm
from querypose.d2.builtin.config import CfgNode

_LOG_SECONDS = 5.0
_MAX_WARMUP = 5


class DatasetEvaluator:
    """Takes the outputs of a model batch by batch, and gives figures in the end."""

    def reset(self) -> None:
        """Before a dataset."""

    def process(self, inputs: Any, outputs: Any) -> None:
        """Takes one batch: the model's inputs and outputs, of the same length."""

    def evaluate(self) -> Any:
        """The figures, {task: {metric: value}}; None on processes other than the main one."""
        return None


class DatasetEvaluators(DatasetEvaluator):
    """Several evaluators as one."""

    def __init__(self, evaluators: Sequence[DatasetEvaluator]) -> None:
        self._evaluators = evaluators

    def reset(self) -> None:
        """Resets each."""
        for evaluator in self._evaluators:
            evaluator.reset()

    def process(self, inputs: Any, outputs: Any) -> None:
        """Gives the batch to each."""
        for evaluator in self._evaluators:
            evaluator.process(inputs, outputs)

    def evaluate(self) -> dict[str, Any]:
        """The figures of all.

        Raises:
            AssertionError: two evaluators give the same task.
        """
        results: dict[str, Any] = {}
        for evaluator in self._evaluators:
            figures = evaluator.evaluate()
            if not comm.is_main_process() or figures is None:
                continue
            for task, values in figures.items():
                if task in results:
                    raise AssertionError(f"Two evaluators give figures for {task!r}.")
                results[task] = values
        return results


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


def inference_on_dataset(
    model: Callable[[Any], Any],
    data_loader: Any,
    evaluator: DatasetEvaluator | list[DatasetEvaluator] | None,
    callbacks: Mapping[str, Callable[[], object]] | None = None,
) -> Any:
    """Runs a model over a loader and evaluates it; logs progress, rate and remaining time.

    Args:
        model: if a module, it is in evaluation mode meanwhile, and afterwards in the mode that it was in.
        data_loader: has a length.
        evaluator: one, several, or None to measure the speed alone.
        callbacks: functions to call "on_start", "before_inference", "after_inference" and "on_end".

    Returns:
        what the evaluator gives; an empty dict where it gives None.
    """
    total = len(data_loader)
    logging.getLogger(__name__).info("Start inference on %d batches", total)
    if evaluator is None or isinstance(evaluator, MutableSequence):
        evaluator = DatasetEvaluators(evaluator or [])
    evaluator.reset()

    def notify(moment: str) -> None:
        if callbacks is not None and moment in callbacks:
            callbacks[moment]()

    stopwatch = _Stopwatch(total)
    with inference_context(model), torch.no_grad():
        notify("on_start")
        batches = iter(data_loader)
        for index in range(total):
            with stopwatch.measure("Dataloading"):
                inputs = next(batches)
            with stopwatch.measure("Inference"):
                notify("before_inference")
                outputs = model(inputs)
                notify("after_inference")
                if torch.cuda.is_available():
                    torch.cuda.synchronize()
            with stopwatch.measure("Eval"):
                evaluator.process(inputs, outputs)
            stopwatch.batch_done(index, len(inputs))
        notify("on_end")
    stopwatch.log_total()
    results = evaluator.evaluate()
    return {} if results is None else results


@contextmanager
def inference_context(model: Any) -> Iterator[None]:
    """Sets a module to evaluation mode in the block; leaves anything else alone."""
    if not isinstance(model, nn.Module):
        yield
        return
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def print_csv_format(results: Mapping[str, Any]) -> None:
    """Logs figures in lines that can be copied into a table. Metrics with "-" in their names are left out."""
    if not isinstance(results, Mapping):
        raise AssertionError(f"Results are a dict, not a {type(results).__name__}.")
    logger = logging.getLogger(__name__)
    for task, figures in results.items():
        if not isinstance(figures, Mapping):
            logger.info("copypaste: %s=%s", task, figures)
            continue
        main = {name: value for name, value in figures.items() if "-" not in name}
        logger.info("copypaste: Task: %s", task)
        logger.info("copypaste: %s", ",".join(main))
        logger.info("copypaste: %s", ",".join(f"{value:.4f}" for value in main.values()))


def verify_results(cfg: CfgNode, results: Mapping[str, Any]) -> bool:
    """Compares figures with TEST.EXPECTED_RESULTS, [task, metric, value, tolerance]; ends the program if one differs.

    Raises:
        SystemExit: a figure differs by more than its tolerance, is missing or not finite.
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
