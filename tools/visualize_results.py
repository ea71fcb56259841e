#!/usr/bin/env python
"""Draws a results file beside the ground truth of its dataset, and the curves of the run.

    python tools/visualize_results.py --dataset synthetic_val --output output/quickstart/pictures \
        --results output/quickstart/inference/coco_instances_results.json --metrics output/quickstart/metrics.json

Writes overview.jpg (some images in one picture), one jpg per image, and with --metrics curves.png.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from querypose.config import add_import_argument, load_config
from querypose.d2 import MetadataCatalog
from querypose.data import dataset_annotations, load_datasets, read_image, register_custom_datasets
from querypose.data.results import read_results
from querypose.engine import report_user_errors
from querypose.evaluation import Poses, detections_of
from querypose.skeleton import Skeleton, skeleton_of_datasets
from querypose.visualization import draw_poses, drawn_visibilities, image_grid
from querypose.visualization.charts import plot_metrics
from querypose.visualization.media import save_image

# A results file holds COCO's coordinates, in which the center of the first pixel is 0; drawings want 0.5 there.
_PIXEL_CENTER = 0.5
_OVERVIEW_IMAGES = 6


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", required=True, metavar="NAME", help="registered name of the dataset")
    parser.add_argument("--results", required=True, metavar="RES.json", help="COCO results of it")
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="folder for the pictures")
    parser.add_argument("--num", type=int, default=12, metavar="N", help="images, spread evenly (default: %(default)s)")
    parser.add_argument(
        "--confidence-threshold", type=float, default=0.3, metavar="T",
        help="draw poses of at least this score (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--metrics", metavar="metrics.json", help="also draw the curves of this run")
    parser.add_argument("--config-file", metavar="F", help="a YAML file with the dataset in DATASETS.CUSTOM")
    add_import_argument(parser)
    return parser.parse_args(arguments)


def draw_results(image: NDArray[np.uint8], poses: Poses, skeleton: Skeleton, threshold: float) -> NDArray[np.uint8]:
    shown = poses[poses.scores >= threshold]
    return draw_poses(
        image,
        shown.keypoints[:, :, :2] + _PIXEL_CENTER,
        skeleton,
        keypoint_scores=shown.keypoints[:, :, 2],
        scores=shown.scores,
        visibilities=None if shown.visibilities is None else drawn_visibilities(shown.visibilities),
    )


def draw_annotations(
    image: NDArray[np.uint8], annotations: Sequence[dict[str, Any]], skeleton: Skeleton
) -> NDArray[np.uint8]:
    keypoints_NK3 = np.array([annotation["keypoints"] for annotation in annotations], dtype=np.float64)
    keypoints_NK3 = keypoints_NK3.reshape(-1, skeleton.num_keypoints, 3)
    return draw_poses(image, keypoints_NK3[:, :, :2], skeleton, visibilities=keypoints_NK3[:, :, 2])


def main(arguments: argparse.Namespace) -> None:
    register_custom_datasets(load_config(arguments.config_file, imports=arguments.imports))
    skeleton = skeleton_of_datasets([arguments.dataset])
    records = load_datasets([arguments.dataset])
    annotations = dataset_annotations(arguments.dataset)
    detections = detections_of(read_results(arguments.results, skeleton), annotations)
    chosen = np.unique(np.linspace(0, len(records) - 1, min(max(1, arguments.num), len(records))).round().astype(int))
    pictures, titles, written = [], [], {"overview.jpg"}
    for index in chosen.tolist():
        record = records[index]
        image = read_image(record["file_name"])
        sides = [draw_results(image, detections.of_image(index), skeleton, arguments.confidence_threshold)]
        names = ["predictions"]
        if "annotations" in record:
            sides.append(draw_annotations(image, record["annotations"], skeleton))
            names.append("ground truth")
        picture = image_grid(sides, columns=len(sides), titles=names)
        name = f"{Path(record['file_name']).stem}.jpg"
        if name in written:  # of another folder, or another format
            name = f"{Path(name).stem}-{record['image_id']}.jpg"
        written.add(name)
        save_image(arguments.output / name, picture)
        pictures += sides
        titles += names
    per_row = len(pictures) // len(chosen)
    overview = slice(0, per_row * _OVERVIEW_IMAGES)
    grid = image_grid(pictures[overview], columns=2 * per_row, titles=titles[overview], cell_size=(400, 300))
    save_image(arguments.output / "overview.jpg", grid)
    print(f"{len(chosen)} images of {MetadataCatalog.get(arguments.dataset).name} drawn to {arguments.output}")
    if arguments.metrics is not None:
        plot_metrics(arguments.metrics, arguments.output / "curves.png")
        print(f"curves of {arguments.metrics} drawn to {arguments.output / 'curves.png'}")


if __name__ == "__main__":
    with report_user_errors("visualize_results.py"):
        main(parse_arguments())
