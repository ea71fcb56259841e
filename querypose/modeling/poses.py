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
        image_B1 = torch.arange(len(scores_BN), device=scores_BN.device)[:, None]

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
        best = self.best(num_poses)
        results = []
        for index, (sample, image_size) in enumerate(zip(samples, image_sizes, strict=True)):
            scores_N = best.scores_BQ[index]
            matrix, output_size = output_frame(sample, image_size)
            matrix_23 = torch.from_numpy(matrix).to(scores_N, non_blocking=True)
            keypoints_NK3 = best.keypoints_BQK3[index]
            xy_NKD = _mapped(keypoints_NK3[..., :2], matrix_23)
            instances = Instances(output_size)
            kept_N = scores_N > score_threshold
            if best.boxes_BQ4 is None:
                bound_D = xy_NKD.new_tensor(output_size[::-1])
                inside_NKD = xy_NKD.clamp(min=torch.zeros_like(bound_D), max=bound_D)
                instances.pred_boxes = Boxes(torch.cat([inside_NKD.amin(1), inside_NKD.amax(1)], dim=-1))
            else:
                # The box around the four mapped corners, because a frame may be rotated.
                corners_N4D = _mapped(
                    best.boxes_BQ4[index][:, [0, 1, 2, 1, 2, 3, 0, 3]].unflatten(1, (4, 2)), matrix_23
                )
                instances.pred_boxes = Boxes(torch.cat([corners_N4D.amin(1), corners_N4D.amax(1)], dim=-1))
                instances.pred_boxes.clip(output_size)
                is_box_N = (best.boxes_BQ4[index][:, 2:] > best.boxes_BQ4[index][:, :2]).all(-1)
                kept_N = kept_N & is_box_N & instances.pred_boxes.nonempty()
            instances.scores = scores_N
            instances.pred_classes = torch.zeros_like(scores_N, dtype=torch.long)
            instances.pred_keypoints = torch.cat([xy_NKD, keypoints_NK3[..., 2:]], dim=-1)
            if best.visibilities_BQK is not None:
                instances.pred_visibilities = best.visibilities_BQK[index]
            results.append(instances[kept_N.nonzero().squeeze(1)])
        return results


def _mapped(xy: Tensor, matrix_23: Tensor) -> Tensor:
    """Points (…, 2) under an affine map; as sums, because a GPU may round a matrix product's factors to TF32."""
    return (xy[..., None, :] * matrix_23[:, :2]).sum(-1) + matrix_23[:, 2]
