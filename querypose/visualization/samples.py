"""Drawing of samples as a model gets them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from querypose.skeleton import Skeleton
from querypose.visualization.poses import draw_poses


def image_of_sample(sample: Mapping[str, Any], channel_order: str) -> NDArray[np.uint8]:
    """RGB (H, W, 3); `channel_order` is that of the sample."""
    image = sample["image"].permute(1, 2, 0).numpy()
    return np.ascontiguousarray(image if channel_order == "RGB" else image[:, :, ::-1])


def draw_sample(sample: Mapping[str, Any], skeleton: Skeleton, channel_order: str) -> NDArray[np.uint8]:
    """The image of a sample with the boxes and keypoints of its instances, RGB (H, W, 3)."""
    instances = sample["instances"]
    keypoints = instances.gt_keypoints.tensor.numpy()
    return draw_poses(
        image_of_sample(sample, channel_order),
        keypoints[:, :, :2],
        skeleton,
        boxes=instances.gt_boxes.tensor.numpy(),
        visibilities=keypoints[:, :, 2],
    )
