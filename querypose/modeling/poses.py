"""From what the queries of any meta-architecture predict to `Instances`: the best poses in the wanted frame."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from querypose.d2 import Boxes, Instances
from querypose.modeling.images import ImageSize


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
        image_sizes: Sequence[ImageSize],
        output_sizes: Sequence[ImageSize],
        num_poses: int,
        score_threshold: float = 0.0,
    ) -> list[Instances]:
        """The best poses in the frames that are wanted.

        Args:
            image_sizes: height and width that the model saw, a pair an image.
            output_sizes: height and width of the frame wanted, a pair an image.
            num_poses: how many poses to keep in an image.
            score_threshold: poses with a score not above it are left out.

        Returns:
            `Instances` an image, best pose first, with `scores`, `pred_classes`, `pred_keypoints` (N, K, 3), and, of
            models that predict them, `pred_boxes`, clipped to the frame, and `pred_visibilities` (N, K). Poses with an
            empty box are left out.
        """
        best = self.best(num_poses)
        results = []
        for image, ((height, width), output_size) in enumerate(zip(image_sizes, output_sizes, strict=True)):
            scores_N = best.scores_BQ[image]
            scale_3 = scores_N.new_tensor([output_size[1] / width, output_size[0] / height, 1.0])
            kept_N = scores_N > score_threshold
            instances = Instances(output_size)
            if best.boxes_BQ4 is not None:
                boxes = Boxes(best.boxes_BQ4[image] * scale_3[:2].repeat(2))
                boxes.clip(output_size)
                instances.pred_boxes = boxes
                kept_N = kept_N & boxes.nonempty()
            instances.scores = scores_N
            instances.pred_classes = torch.zeros_like(scores_N, dtype=torch.long)
            instances.pred_keypoints = best.keypoints_BQK3[image] * scale_3
            if best.visibilities_BQK is not None:
                instances.pred_visibilities = best.visibilities_BQK[image]
            results.append(instances[kept_N.nonzero().squeeze(1)])
        return results
