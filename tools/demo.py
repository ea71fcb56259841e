#!/usr/bin/env python
"""Draws a model's poses into photos, a video or the pictures of a camera.

    python tools/demo.py --config-file F --input photo.jpg --output out/ --opts MODEL.WEIGHTS model_final.pth
    python tools/demo.py --config-file F --input photos/ 'more/**/*.jpg' --output out/ --results-json out/poses.json …
    python tools/demo.py --config-file F --input walk.mp4 --output walk_poses.mp4 …
    python tools/demo.py --config-file F --input webcam --output me.mp4 …          (until Ctrl-C)
    python tools/demo.py --config-file configs/sharpose/sharpose_base_256x192.yaml --input photos/ --output out/ \
        --detector fasterrcnn_resnet50_fpn_v2 --attention …

A model that is fed crops of persons (SHaRPose) needs their boxes: --boxes or --detector; without them the whole image
is taken for the box of one person.

--attention also draws what the model looked at, whatever the model has to show: attention, boxes, points, patches, a
row a stage and a picture a pose, and an animation of the poses from stage to stage.

An image that cannot be read is named and skipped. Exit code: 0 all inputs drawn, 1 some were skipped, 2 nothing could
be done. Videos and cameras need OpenCV: pip install opencv-python-headless
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from querypose.config import add_import_argument, add_row_argument, load_config
from querypose.d2 import Instances, atomic_write
from querypose.data import ImageReadError, read_image, register_custom_datasets
from querypose.engine import report_user_errors
from querypose.engine.person_detection import FindPersons, boxes_of_file, detector
from querypose.engine.predictor import PosePredictor
from querypose.engine.setup import available_cores
from querypose.evaluation import dataset_category_ids, instances_to_results
from querypose.progress import progress
from querypose.skeleton import Skeleton, skeleton_of_datasets
from querypose.visualization import draw_poses, drawn_visibilities
from querypose.visualization.explanation import draw_explanation, draw_stages
from querypose.visualization.media import (
    MediaError,
    VideoReader,
    VideoWriter,
    is_video,
    list_images,
    output_paths,
    save_animation,
    save_image,
)

SKIPPED_EXIT_CODE = 1


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", required=True, metavar="F", help="the model's YAML file")
    add_import_argument(parser)
    add_row_argument(parser)
    parser.add_argument(
        "--input", required=True, nargs="+", metavar="INPUT",
        help="image files, folders, patterns; or one video file; or webcam, webcam:1, … for a camera",
    )  # fmt: skip
    parser.add_argument(
        "--output", required=True, type=Path, metavar="OUT",
        help="folder for the drawn images; for one image also a file name; for a video its file name or a folder",
    )  # fmt: skip
    parser.add_argument(
        "--confidence-threshold", type=float, default=0.3, metavar="T",
        help="draw poses of at least this score (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--draw-boxes", action="store_true", help="draw the boxes too, of a model that predicts them")
    source = parser.add_mutually_exclusive_group()
    source.add_argument(
        "--boxes", metavar="FILE",
        help="COCO results file with the boxes of persons, for a model that is fed crops; an image is known by its "
        "file_name or image_id, see --results-json",
    )  # fmt: skip
    source.add_argument(
        "--detector", metavar="D",
        help="what finds persons for a model that is fed crops: the YAML file of a model here that predicts boxes, or "
        "a detector of torchvision, such as fasterrcnn_resnet50_fpn_v2",
    )  # fmt: skip
    parser.add_argument(
        "--detector-weights", default="", metavar="FILE",
        help="checkpoint of the --detector; those of torchvision's are downloaded where none is named",
    )  # fmt: skip
    parser.add_argument(
        "--box-threshold", type=float, default=0.5, metavar="T",
        help="least score of a box of --boxes or --detector (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--attention", type=int, nargs="?", const=3, default=0, metavar="N",
        help="also draw what led to the N best poses of an image (of a crop: to its pose), stage by stage, as pictures "
        "and as an animation (GIF), beside the image's (default of N: %(const)s)",
    )  # fmt: skip
    parser.add_argument(
        "--results-json", type=Path, metavar="FILE",
        help="write all poses, whatever their score, as COCO results, while they are found. image_id is the number at "
        "the end of the file's name (000000000785.jpg: 785) if every image has one and all differ, else the position "
        "of the image from 1; of a video the number of the frame from 1. file_name is there as well",
    )  # fmt: skip
    parser.add_argument(
        "--opts", nargs=argparse.REMAINDER, default=[], metavar="KEY VALUE",
        help="changes to the config, such as MODEL.WEIGHTS model_final.pth; must come last",
    )  # fmt: skip
    return parser.parse_args(arguments)


Write = Callable[[Iterable[dict[str, Any]]], None]


@contextlib.contextmanager
def results_file(path: Path | None) -> Iterator[Write | None]:
    """Gives what adds results to a JSON list in `path`, one by one, so that a camera may run for days; or None.

    The file takes its name when the block ends.
    """
    if path is None:
        yield None
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path, "w") as stream:
        separator = "["

        def write(results: Iterable[dict[str, Any]]) -> None:
            nonlocal separator
            for result in results:
                stream.write(f"{separator}\n{json.dumps(result, default=np.ndarray.tolist)}")
                separator = ","

        yield write
        stream.write("[]\n" if separator == "[" else "\n]\n")


class Demo:
    """Predicts and draws."""

    def __init__(self, arguments: argparse.Namespace, write: Write | None) -> None:
        cfg = load_config(arguments.config_file, arguments.opts, arguments.imports, row=arguments.row)
        register_custom_datasets(cfg)
        datasets = [*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST]
        self.skeleton: Skeleton = skeleton_of_datasets(datasets)
        self.category_ids = dataset_category_ids(datasets[0])
        self.threshold: float = arguments.confidence_threshold
        self.with_boxes: bool = arguments.draw_boxes
        self.write = write
        self.find_persons: FindPersons | None = None
        if arguments.boxes:
            self.find_persons = boxes_of_file(arguments.boxes, arguments.box_threshold)
        elif arguments.detector:
            self.find_persons = detector(arguments.detector, arguments.detector_weights, arguments.box_threshold)
        if not cfg.MODEL.WEIGHTS:
            print(
                "warning: MODEL.WEIGHTS is empty, so the model is UNTRAINED and its poses mean nothing. "
                "Add: --opts MODEL.WEIGHTS path/to/model_final.pth",
                file=sys.stderr,
            )
        self.predictor = PosePredictor(cfg)

    def draw(
        self, image: NDArray[np.uint8], image_id: int, file_name: str, attention: tuple[Path, int] | None = None
    ) -> NDArray[np.uint8]:
        """The image with its poses; all of them go to the results, where there is a file for them.

        Args:
            image: (H, W, 3) RGB.
            image_id: for the results.
            file_name: of the image.
            attention: where what led to the poses is drawn, a folder and a beginning of file names, and of how many.

        Raises:
            MediaError: the model has nothing of the kind to show.
        """
        boxes = scores = None
        if self.find_persons is not None:
            boxes, scores = self.find_persons(image, image_id, file_name)
            if len(boxes) == 0:
                return image
        instances = self.predictor(image, boxes, scores)
        if attention is not None:
            self._draw_attention(image, boxes, *attention)
        if self.write is not None:
            results = instances_to_results(instances, image_id, self.category_ids, self.skeleton)
            self.write({**result, "file_name": file_name} for result in results)
        shown: Instances = instances[instances.scores >= self.threshold]
        keypoints_NK3 = shown.pred_keypoints.numpy()
        return draw_poses(
            image,
            keypoints_NK3[:, :, :2],
            self.skeleton,
            keypoint_scores=keypoints_NK3[:, :, 2],
            scores=shown.scores.numpy(),
            visibilities=drawn_visibilities(shown.pred_visibilities) if shown.has("pred_visibilities") else None,
            boxes=shown.pred_boxes.tensor.numpy() if self.with_boxes and shown.has("pred_boxes") else None,
        )

    def _draw_attention(
        self, image: NDArray[np.uint8], boxes: NDArray[np.floating] | None, path: Path, num_poses: int
    ) -> None:
        explained = self.predictor.explain(image, boxes, num_poses)
        for number, (picture, layers) in enumerate(explained, start=1):
            if not layers:
                raise MediaError("--attention: this model does not say what it looked at; see PoseModel.explain.")
            of_crop = f"_crop_{number}" if len(explained) > 1 else ""
            for name, drawn in draw_explanation(picture, layers, self.skeleton).items():
                save_image(path.with_name(f"{path.name}{of_crop}_{name}.png"), drawn)
            if frames := draw_stages(picture, layers, self.skeleton):
                save_animation(path.with_name(f"{path.name}{of_crop}_stages.gif"), frames)


def image_ids(images: Sequence[Path]) -> list[int]:
    """The numbers at the ends of the files' names if all have one and they differ, else 1, 2, …"""
    digits = [image.stem[len(image.stem.rstrip("0123456789")) :] for image in images]
    if all(digits) and len({int(number) for number in digits}) == len(images):
        return [int(number) for number in digits]
    return list(range(1, len(images) + 1))


def draw_images(demo: Demo, images: Sequence[Path], outputs: Sequence[Path], attention: int) -> int:
    """Draws every image, and what led to the `attention` best poses of it; returns how many had to be skipped."""
    skipped = 0
    items = zip(images, outputs, image_ids(images), strict=True)
    for path, output, image_id in progress(items, "poses", total=len(images)):
        try:
            image = read_image(path)
        except ImageReadError as error:
            tqdm.write(f"skipped: {error}", file=sys.stderr)
            skipped += 1
            continue
        led = (output.with_name(f"{output.stem}_attention"), attention) if attention else None
        save_image(output, demo.draw(image, image_id, str(path), led))
    return skipped


def draw_video(demo: Demo, reader: VideoReader, source: str, output: Path) -> None:
    with VideoWriter(output, reader.fps) as writer, contextlib.suppress(KeyboardInterrupt):
        frames = progress(reader, "poses", total=reader.num_frames, unit="frame")
        for number, frame in enumerate(frames, start=1):
            writer.write(demo.draw(frame, number, source))


def main(arguments: argparse.Namespace) -> int:
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(min(torch.get_num_threads(), available_cores()))
    sources: list[str] = arguments.input
    output: Path = arguments.output
    skipped = 0
    if any(map(is_video, sources)):
        if arguments.attention:
            raise MediaError("--attention draws that of images, not of a video.")
        if len(sources) > 1:
            raise MediaError(
                f"--input names a video or camera and {len(sources) - 1} more inputs. Give one video or camera alone."
            )
        with VideoReader(sources[0]) as reader:
            if not output.suffix:
                output = output / f"{Path(sources[0].replace(':', '')).stem}_poses.mp4"
            if output.exists() and Path(sources[0]).exists() and output.samefile(sources[0]):
                raise MediaError(f"The output {str(output)!r} would overwrite the input. Choose another --output.")
            with results_file(arguments.results_json) as write:
                draw_video(Demo(arguments, write), reader, sources[0], output)
        drawn = str(output)
    else:
        images = list_images(sources)
        outputs = output_paths(images, output)
        with results_file(arguments.results_json) as write:
            skipped = draw_images(Demo(arguments, write), images, outputs, arguments.attention)
        drawn = f"{len(images) - skipped} of {len(images)} images to {output}"
    print(f"Poses drawn: {drawn}" + (f"; {skipped} images could not be read." if skipped else "."))
    return SKIPPED_EXIT_CODE if skipped else 0


if __name__ == "__main__":
    with report_user_errors("demo.py"):
        sys.exit(main(parse_arguments()))
