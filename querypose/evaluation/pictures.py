"""The same images drawn at every evaluation, as files, as an animation of the training, and for TensorBoard."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from querypose.d2 import get_event_storage
from querypose.data.coco import PIXEL_INDEX_TO_CONTINUOUS, PoseAnnotations
from querypose.data.image_io import ImageReadError, read_image
from querypose.evaluation.detections import Poses
from querypose.visualization import draw_poses, image_grid
from querypose.visualization.media import save_animation, save_image

_MAX_SIDE = 480


class EvaluationPictures:
    """Draws some images of a dataset, predictions beside ground truth.

    Of an image the best poses are drawn, as many as it has persons, at least one: what a threshold would hide early in
    a training is seen. A picture is `<image id>/<iteration>.jpg`, and all of an image together are `<image id>.gif`.

    Args:
        annotations: of the dataset.
        num_images: that are drawn, spread evenly.
        folder: for the pictures.
    """

    def __init__(self, annotations: PoseAnnotations, num_images: int, folder: Path) -> None:
        last = len(annotations.image_ids) - 1
        self._annotations = annotations
        self._images = np.unique(np.linspace(0, last, min(num_images, last + 1)).round().astype(int)).tolist()
        self.folder = folder

    def draw(self, of_image: Mapping[int, Poses]) -> None:
        """Draws the finished poses of an evaluation, by the place of their image in the annotations."""
        try:
            storage = get_event_storage()
        except AssertionError:  # nobody trains
            storage = None
        iteration = 0 if storage is None else storage.iter + 1
        for image in self._images:
            image_id = self._annotations.image_ids[image]
            try:
                picture = self._picture(image, of_image.get(image), f"iteration {iteration}" if iteration else "poses")
            except ImageReadError as error:
                logging.getLogger(__name__).warning("Image %s is not drawn: %s", image_id, error)
                continue
            save_image(self.folder / str(image_id) / f"{iteration:07d}.jpg", picture)
            files = sorted((self.folder / str(image_id)).glob("*.jpg"))
            save_animation(self.folder / f"{image_id}.gif", [read_image(file) for file in files])
            if storage is not None:
                storage.put_image(f"pictures/{image_id}", torch.from_numpy(picture.copy()).permute(2, 0, 1))

    def _picture(self, image: int, poses: Poses | None, title: str) -> NDArray[np.uint8]:
        file, skeleton = self._annotations, self._annotations.skeleton
        pixels = Image.fromarray(read_image(file.image_file(image)))
        scale = min(1.0, _MAX_SIDE / max(pixels.size))
        pixels = pixels.resize((max(1, round(pixels.width * scale)), max(1, round(pixels.height * scale))))
        canvas = np.asarray(pixels)
        truth = file.keypoints[file.of_image(image)]
        truth_xy = (truth[..., :2] + PIXEL_INDEX_TO_CONTINUOUS) * scale
        predicted = canvas
        if poses is not None and len(poses):
            best = poses[np.argsort(-poses.scores, kind="stable")[: max(1, len(truth))]]
            xy_NKD = (best.keypoints[..., :2] + PIXEL_INDEX_TO_CONTINUOUS) * scale
            predicted = draw_poses(canvas, xy_NKD, skeleton, scores=best.scores)
        if not file.has_annotations:
            return image_grid([predicted], titles=[title])
        annotated = draw_poses(canvas, truth_xy, skeleton, visibilities=truth[..., 2])
        return image_grid([predicted, annotated], columns=2, titles=[title, "ground truth"])
