#!/usr/bin/env python
"""Prints the keypoint figures of a results file in the COCO format, whoever made it.

    python tools/evaluate_results.py --annotations person_keypoints_val2017.json --results res.json --skeleton coco
    python tools/evaluate_results.py --annotations test.json --results res.json --skeleton crowdpose --crowdpose

The protocol is the standard one: all images of the annotation file, the 20 best results of each, no rescoring.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from querypose.config import add_import_argument, load_config
from querypose.engine import report_user_errors
from querypose.evaluation import Protocol, evaluate_oks, format_metrics, read_ground_truth, read_json
from querypose.skeleton import BUILTIN_SKELETONS, Skeleton, SkeletonError


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
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
        "--crowdpose", action="store_true",
        help="CrowdPose's protocol: AP of easy, medium and hard crowdIndex, areas from the boxes",
    )  # fmt: skip
    parser.add_argument("--config-file", metavar="F", help="a YAML file that has the skeleton in DATASETS.SKELETONS")
    add_import_argument(parser)
    return parser.parse_args(arguments)


def find_skeleton(name: str, config_file: str | None, imports: Sequence[str] = ()) -> Skeleton:
    """The skeleton of that name, of the config or built in.

    Raises:
        SkeletonError: there is none.
    """
    skeletons = dict(BUILTIN_SKELETONS)
    if config_file is not None:
        for entry in load_config(config_file, imports=imports).DATASETS.SKELETONS:
            skeleton = Skeleton.from_dict(entry)
            skeletons[skeleton.name] = skeleton
    if name not in skeletons:
        hint = "" if config_file else " One of your own stands in a YAML file: give it by --config-file."
        raise SkeletonError(f"There is no skeleton {name!r}; known: {', '.join(skeletons)}.{hint}")
    return skeletons[name]


def main(arguments: argparse.Namespace) -> None:
    """Evaluates and prints."""
    skeleton = find_skeleton(arguments.skeleton, arguments.config_file, arguments.imports)
    protocol: Protocol = "crowdpose" if arguments.crowdpose else "coco"
    ground_truth = read_ground_truth(read_json(arguments.annotations), skeleton, protocol, name=arguments.annotations)
    for note in ground_truth.notes():
        print(f"note: {note}", file=sys.stderr)
    results = read_json(arguments.results)
    metrics = evaluate_oks(ground_truth, results, skeleton, protocol, detections_name=arguments.results)
    print(
        format_metrics(
            metrics,
            f"{arguments.results}: {len(results)} results, {len(ground_truth.image_numbers)} images, "
            f"{len(ground_truth.annotations)} persons, protocol of {protocol}, in percent:",
        )
    )


if __name__ == "__main__":
    parsed = parse_arguments()
    with report_user_errors("evaluate_results.py"):
        main(parsed)
