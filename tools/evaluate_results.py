#!/usr/bin/env python
"""Prints the keypoint metrics of a results file in the COCO format, of this project or of any other.

    python tools/evaluate_results.py --annotations person_keypoints_val2017.json --results res.json --skeleton coco
    python tools/evaluate_results.py --annotations test.json --results res.json --skeleton crowdpose --metric crowdpose

The protocol is the standard one: all images of the annotation file, the 20 best results of each, no rescoring.
The annotations are read and checked as they are for a training.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from querypose.config import add_import_argument, load_config
from querypose.data import read_annotations
from querypose.data.problems import errors_of
from querypose.data.results import read_results
from querypose.data.validation import check_flips
from querypose.engine import report_user_errors
from querypose.evaluation import (
    METRIC_REGISTRY,
    detections_of,
    find_metric,
    format_metrics,
    require_persons,
    require_usable,
)
from querypose.skeleton import BUILTIN_SKELETONS, Skeleton, SkeletonError


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--annotations", required=True, metavar="GT.json", help="COCO keypoints annotations")
    parser.add_argument(
        "--results", required=True, metavar="RES.json",
        help="list of image_id, category_id, keypoints, score (and bbox: it then decides the area of a detection)",
    )  # fmt: skip
    parser.add_argument(
        "--skeleton", required=True, metavar="NAME",
        help=f"{', '.join(BUILTIN_SKELETONS)}, or one of DATASETS.SKELETONS in --config-file",
    )  # fmt: skip
    parser.add_argument(
        "--metric", default="coco", metavar="NAME",
        help=f"{', '.join(name for name, _ in METRIC_REGISTRY)}, or one of your own, with --import (default: coco). "
        "crowdpose: AP of easy, medium and hard crowdIndex, areas from the boxes",
    )  # fmt: skip
    parser.add_argument(
        "--config-file", metavar="F", help="a YAML file with the skeleton in DATASETS.SKELETONS, or with IMPORTS"
    )
    add_import_argument(parser)
    return parser.parse_args(arguments)


def find_skeleton(name: str, config_file: str | None, imports: Sequence[str] = ()) -> Skeleton:
    """The skeleton of that name, of the config or built in.

    Raises:
        SkeletonError: there is none, or its flips are wrong.
    """
    skeletons = dict(BUILTIN_SKELETONS)
    for entry in load_config(config_file, imports=imports).DATASETS.SKELETONS:
        skeleton = Skeleton.from_dict(entry)
        skeletons[skeleton.name] = skeleton
    if name not in skeletons:
        hint = "" if config_file else " For one of your own, name its YAML file: --config-file F."
        raise SkeletonError(f"There is no skeleton {name!r}; known: {', '.join(skeletons)}.{hint}")
    if errors := errors_of(check_flips(skeletons[name])):
        raise SkeletonError(errors[0].message)
    return skeletons[name]


def main(arguments: argparse.Namespace) -> None:
    skeleton = find_skeleton(arguments.skeleton, arguments.config_file, arguments.imports)
    metric = find_metric(arguments.metric, "--metric")
    annotations = read_annotations(arguments.annotations, None, skeleton).require_sound()
    require_persons(annotations)
    require_usable(annotations, {arguments.metric: metric})
    results = read_results(arguments.results, skeleton)
    metrics = metric(annotations, detections_of(results, annotations))
    print(
        format_metrics(
            metrics,
            f"{arguments.results}: {len(results)} results, {len(annotations.image_ids)} images, "
            f"{len(annotations.ids)} persons, metric {arguments.metric}, in percent:",
        )
    )


if __name__ == "__main__":
    with report_user_errors("evaluate_results.py"):
        main(parse_arguments())
