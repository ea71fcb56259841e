"""The datasets of a config, validated before anything is trained on them."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from querypose.d2 import CfgNode, MetadataCatalog, comm
from querypose.data import DatasetError
from querypose.data.image_checks import CHECKS, ImageDepth
from querypose.data.problems import Problem, errors_of, summarize
from querypose.data.validation import SHARED_IMAGES, check_datasets
from querypose.evaluation import EvaluationError, read_ground_truth, read_json
from querypose.skeleton import skeleton_of_datasets


def validate_datasets(
    train: Sequence[str],
    test: Sequence[str],
    depth: ImageDepth,
    *,
    num_threads: int | None = None,
    show_progress: bool = False,
) -> list[Problem]:
    """As `querypose.data.validation.check_datasets`, and whether the annotations of `test` can be evaluated."""
    problems = check_datasets(train, test, depth, num_threads=num_threads, show_progress=show_progress)
    broken = {problem.file for problem in errors_of(problems)}
    for name in test:
        json_file = str(MetadataCatalog.get(name).json_file)
        if json_file not in broken and (problem := _check_evaluation(name, json_file)) is not None:
            problems.append(problem)
    return problems


def _check_evaluation(name: str, json_file: str) -> Problem | None:
    metadata = MetadataCatalog.get(name)
    try:
        content = read_json(json_file)
        if "annotations" in content:  # the figures of a split without them come from its server
            read_ground_truth(content, metadata.skeleton, metadata.evaluator_type, name=json_file)
    except EvaluationError as error:
        what, _, remedy = str(error).removesuffix(".").rpartition("; ")
        kind = f"cannot be evaluated by the protocol {metadata.evaluator_type!r}"
        return Problem("error", kind, json_file, "", what or remedy, remedy if what else "correct the json")
    return None


def require_sound_datasets(cfg: CfgNode) -> None:
    """Looks at DATASETS.TRAIN and DATASETS.TEST as DATASETS.CHECK says, in the main process for all of them.

    What is merely corrected or left out is logged by whoever loads the dataset; here only images that are in both.

    Raises:
        DatasetError: there are errors; lists them by kind. Raised in every process.
        SkeletonError: a name is not that of a pose dataset, or they are of several skeletons.
    """
    depth = CHECKS[cfg.DATASETS.CHECK]
    if depth is None:
        return
    if names := [*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST]:
        skeleton_of_datasets(names)  # in every process, so that none waits for one that failed
    message = comm.all_gather(_errors_and_warnings(cfg, depth) if comm.is_main_process() else "")[0]
    if message:
        raise DatasetError(message)


def _errors_and_warnings(cfg: CfgNode, depth: ImageDepth) -> str:
    """The message for errors, "" where there are none; logs the warnings."""
    train, test = list(cfg.DATASETS.TRAIN), list(cfg.DATASETS.TEST)
    problems = validate_datasets(train, test, depth)
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
