"""From the predictions of queries to `Instances`: the best poses in the requested frame."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from querypose.d2 import Boxes, Instances
from querypose.modeling.images import ImageSize

NO_POSE = -torch.inf
"""The score of a query without a pose."""


def output_frame(sample: Mapping[str, Any], image_size: ImageSize) -> tuple[np.ndarray, ImageSize]:
    """The frame in which the poses of a sample are returned: the map to it, and its size.

    Args:
        sample: its `frame` is the `GeometricTransform` from the file's image to the model's; poses return by its
            inverse. A sample without one, as from detectron2's DefaultPredictor, is an image resized from `height` and
            `width`, by default its own.
        image_size: height and width of the model's image, without padding.

    Returns:
        float64 (2, 3), from (x, y, 1) of that image to x, y of the returned frame; height and width of that frame.
    """
    if "frame" in sample:
        to_file = sample["frame"].inverse()
        return to_file.matrix, to_file.output_size
    height, width = sample.get("height", image_size[0]), sample.get("width", image_size[1])
    return np.array([[width / image_size[1], 0.0, 0.0], [0.0, height / image_size[0], 0.0]]), (height, width)


@dataclass(frozen=True)
class QueryPoses:
    """A pose for every query of B images, in pixels of the input images.

    Attributes:
        scores_BQ: in [0, 1].
        keypoints_BQK3: x, y and a score in [0, 1] of every keypoint.
        boxes_BQ4: corners, of a model that predicts boxes.
        visibilities_BQK: in [0, 1], of a model that predicts whether a keypoint is visible.
    """

    scores_BQ: Tensor
    keypoints_BQK3: Tensor
    boxes_BQ4: Tensor | None = None
    visibilities_BQK: Tensor | None = None

    def best(self, num_poses: int) -> QueryPoses:
        """The `num_poses` poses of each image with the best scores, best first."""
        scores_BN, index_BN = self.scores_BQ.topk(min(num_poses, self.scores_BQ.shape[1]), dim=1)
        image_B1 = torch.arange(scores_BN.shape[0], device=scores_BN.device)[:, None]

        def of_best(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor[image_B1, index_BN]

        return QueryPoses(
            scores_BN, self.keypoints_BQK3[image_B1, index_BN], of_best(self.boxes_BQ4), of_best(self.visibilities_BQK)
        )

    def to_instances(
        self,
        samples: Sequence[Mapping[str, Any]],
        image_sizes: Sequence[ImageSize],
        num_poses: int,
        score_threshold: float = 0.0,
    ) -> list[Instances]:
        """The best poses, each sample's in its `output_frame`.

        Args:
            samples: the batch that the model was given.
            image_sizes: height and width of its images, without padding.
            num_poses: how many poses to keep of a sample.
            score_threshold: poses with a score not above it are left out.

        Returns:
            best pose first, with `scores`, `pred_classes`, `pred_keypoints` (N, K, 3), `pred_visibilities` (N, K) of
            models that predict them, and `pred_boxes`, clipped to the frame. Poses with an empty predicted box are
            left out. A model that predicts no boxes gets those around the keypoints, and no pose is left out then.
        """
        frames = [output_frame(sample, size) for sample, size in zip(samples, image_sizes, strict=True)]
        matrix_B23 = torch.from_numpy(np.stack([matrix for matrix, _ in frames]))
        size_BD = torch.tensor([size for _, size in frames])
        best = self.best(num_poses).in_frames(
            matrix_B23.to(self.scores_BQ, non_blocking=True), size_BD.to(self.scores_BQ, non_blocking=True)
        )
        assert best.boxes_BQ4 is not None
        results = []
        for index, (_, output_size) in enumerate(frames):
            instances = Instances(output_size)
            instances.scores = best.scores_BQ[index]
            instances.pred_classes = torch.zeros_like(instances.scores, dtype=torch.long)
            instances.pred_keypoints = best.keypoints_BQK3[index]
            instances.pred_boxes = Boxes(best.boxes_BQ4[index])
            if best.visibilities_BQK is not None:
                instances.pred_visibilities = best.visibilities_BQK[index]
            results.append(instances[(instances.scores > score_threshold).nonzero().squeeze(1)])
        return results

    def in_frames(self, matrix_B23: Tensor, size_BD: Tensor) -> QueryPoses:
        """The poses in other frames, with boxes that are clipped to them; the score of an empty box is `NO_POSE`.

        Args:
            matrix_B23: from (x, y, 1) of the input images to x, y of these frames.
            size_BD: height and width of these.

        Returns:
            with `boxes_BQ4`; those of a model that predicts none are around the keypoints.
        """
        xy_BQKD = _mapped(self.keypoints_BQK3[..., :2], matrix_B23)
        bound_B11D = size_BD.flip(-1)[:, None, None].to(xy_BQKD)
        scores_BQ = self.scores_BQ
        if self.boxes_BQ4 is None:
            corners_BQND = xy_BQKD
        else:
            # The box around the four mapped corners, because a frame may be rotated.
            corners_BQND = _mapped(self.boxes_BQ4[..., [0, 1, 2, 1, 2, 3, 0, 3]].unflatten(-1, (4, 2)), matrix_B23)
        corners_BQND = torch.minimum(corners_BQND.clamp(min=0), bound_B11D)
        boxes_BQ4 = torch.cat([corners_BQND.amin(2), corners_BQND.amax(2)], dim=-1)
        if self.boxes_BQ4 is not None:
            has_area_BQ = (self.boxes_BQ4[..., 2:] > self.boxes_BQ4[..., :2]).all(-1)
            has_area_BQ = has_area_BQ & (boxes_BQ4[..., 2:] > boxes_BQ4[..., :2]).all(-1)
            scores_BQ = torch.where(has_area_BQ, scores_BQ, NO_POSE)
        keypoints_BQK3 = torch.cat([xy_BQKD, self.keypoints_BQK3[..., 2:]], dim=-1)
        return QueryPoses(scores_BQ, keypoints_BQK3, boxes_BQ4, self.visibilities_BQK)


def _mapped(xy_BQND: Tensor, matrix_B23: Tensor) -> Tensor:
    """Points under their image's affine map; as sums, because a GPU may round a matrix product's factors to TF32."""
    matrix_B1123 = matrix_B23[:, None, None]
    return (xy_BQND[..., None, :] * matrix_B1123[..., :2]).sum(-1) + matrix_B1123[..., 2]
