"""From what the queries of any meta-architecture predict to `Instances`: the best poses in the wanted frame."""

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
    """The frame in which a sample's poses are wanted: the map to it, and its size.

    Args:
        sample: its `frame`, the `GeometricTransform` from the file's image to the model's, says how to come back.
            Without one, as DefaultPredictor of detectron2 gives it, the image is taken as resized from `height` and
            `width`, which by default are its own.
        image_size: height and width of the image that the model was given, without padding.

    Returns:
        float64 (2, 3), from (x, y, 1) of that image to x, y of the wanted frame; height and width of that.
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
            models that predict them, and `pred_boxes`, clipped to the frame: those that the model predicts, where poses
            with an empty one are left out; of other models the boxes around the keypoints, of which none decides.
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
                # The box around the four mapped corners: a frame may be turned.
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
    """Points (…, 2) under an affine map; as sums, since a GPU may round the factors of a matrix product to TF32."""
    return (xy[..., None, :] * matrix_23[:, :2]).sum(-1) + matrix_23[:, 2]
