"""The datasets of a config, validated before anything is trained on them."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from querypose.d2 import CfgNode, comm
from querypose.data import DatasetError, dataset_annotations
from querypose.data.image_checks import CHECKS, ImageDepth
from querypose.data.problems import Problem, errors_of, summarize
from querypose.data.validation import SHARED_IMAGES, check_datasets
from querypose.evaluation import EvaluationError, metrics_of_dataset, require_usable
from querypose.skeleton import skeleton_of_datasets


def validate_datasets(
    train: Sequence[str],
    test: Sequence[str],
    depth: ImageDepth,
    metrics: Sequence[str] = (),
    *,
    num_threads: int | None = None,
    show_progress: bool = False,
) -> list[Problem]:
    """As `querypose.data.validation.check_datasets`, and whether `test` can be evaluated.

    Args: see there; `metrics` are names besides those of the datasets themselves.

    Raises:
        SkeletonError, DatasetError: see `check_datasets`.
        EvaluationError: a metric is not registered.
    """
    problems = check_datasets(train, test, depth, num_threads=num_threads, show_progress=show_progress)
    for name in dict.fromkeys(test):
        annotations = dataset_annotations(name)
        for task, metric in metrics_of_dataset(name, metrics).items():
            if errors_of(annotations.problems):
                continue
            try:
                require_usable(annotations, {task: metric})
            except EvaluationError as error:
                kind = f"cannot be evaluated by the metric {getattr(metric, '__name__', task)!r}"
                remedy = error.remedy or "correct the json, or choose another metric"
                problems.append(Problem("error", kind, annotations.path, "", error.what.removesuffix("."), remedy))
    return problems


def require_sound_datasets(cfg: CfgNode, with_training: bool = True) -> None:
    """Looks at DATASETS.TRAIN and DATASETS.TEST as DATASETS.CHECK says, in the main process for all of them.

    What is merely corrected or left out is logged by whoever loads the dataset; here only images that are in both.

    Args:
        cfg: names the datasets.
        with_training: False for an evaluation alone, on a machine that may not have DATASETS.TRAIN.

    Raises:
        DatasetError: there are errors; lists them by kind. Raised in every process.
        SkeletonError: a name is not that of a pose dataset, or they are of several skeletons.
    """
    depth = CHECKS[cfg.DATASETS.CHECK]
    if depth is None:
        return
    train, test = list(cfg.DATASETS.TRAIN) if with_training else [], list(cfg.DATASETS.TEST)
    if names := [*train, *test]:
        skeleton_of_datasets(names)  # in every process, so that none waits for one that failed
    checks = comm.is_main_process()
    message = comm.all_gather(_errors_and_warnings(train, test, depth, cfg.TEST.METRICS) if checks else "")[0]
    if message:
        raise DatasetError(message)


def _errors_and_warnings(train: list[str], test: list[str], depth: ImageDepth, metrics: Sequence[str]) -> str:
    """The message for errors, "" where there are none; logs the warnings."""
    try:
        problems = validate_datasets(train, test, depth, metrics)
    except (DatasetError, EvaluationError) as error:
        return str(error)  # raised by every process, none of which waits for this one
    shared = [problem for problem in problems if problem.kind == SHARED_IMAGES]
    if shared:
        logging.getLogger(__name__).warning("%s", "\n".join(summarize(shared, num_examples=1)))
    errors = errors_of(problems)
    if not errors:
        return ""
    if len(errors) == 1:
        return errors[0].message
    return "\n".join(
        [
            f"{len(errors)} errors in the datasets {', '.join(dict.fromkeys([*train, *test]))} "
            "(tools/check_dataset.py lists all; DATASETS.CHECK off skips this check):",
            *summarize(errors),
        ]
    )
