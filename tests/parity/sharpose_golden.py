"""The SHaRPose authors' reference tensors, and our model with their weights."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from querypose.checkpoint import convert_sharpose_official
from querypose.d2 import Boxes, Instances, Keypoints
from querypose.modeling.sharpose.criterion import HeatmapCriterion
from querypose.modeling.sharpose.heatmaps import HeatmapHead
from querypose.modeling.sharpose.meta_arch import SHaRPose
from querypose.modeling.sharpose.quality import QualityPredictor
from querypose.modeling.sharpose.selection import PatchSelection
from querypose.modeling.sharpose.transformer import CoarseToFineTransformer
from querypose.skeleton import COCO_SKELETON
from tests.parity.stored import FIXTURES, read_arrays, read_text

IMAGE_SIZE, HEATMAP_SIZE = (64, 48), (16, 12)
NUM_CROPS = 3


class SharposeFixture:
    """One file, its results in one floating-point type."""

    def __init__(self, name: str, dtype: torch.dtype) -> None:
        self.arrays = read_arrays(FIXTURES / f"sharpose_{name}.xz")
        self.dtype = dtype

    def __getitem__(self, name: str) -> Tensor:
        tensor = torch.tensor(self.arrays[name])
        return tensor.to(self.dtype) if tensor.is_floating_point() else tensor

    def group(self, prefix: str) -> dict[str, Tensor]:
        return {name.removeprefix(prefix): self[name] for name in self.arrays if name.startswith(prefix)}

    @property
    def crops(self) -> Tensor:
        return self["image_int8"].to(self.dtype) * self["image_scale"]

    @property
    def batch(self) -> list[dict[str, Any]]:
        """What our model takes: positions in continuous pixels, half a pixel from theirs."""
        samples = []
        for crop, joints, visible in zip(self.crops, self["train.joints"], self["train.visible"], strict=True):
            instances = Instances(IMAGE_SIZE)
            instances.gt_boxes = Boxes(torch.tensor([[0.0, 0.0, *IMAGE_SIZE[::-1]]]))
            # Of a Keypoints' type, float32, in which the positions of the fixture are exact.
            instances.gt_keypoints = Keypoints(torch.cat([joints[:, :2] + 0.5, visible[:, :1]], dim=1)[None])
            samples.append({"image": crop, "instances": instances, "height": IMAGE_SIZE[0], "width": IMAGE_SIZE[1]})
        return samples

    def weights(self) -> dict[str, Tensor]:
        """By the authors' names."""
        scales = self.group("s/")
        return {name: value.to(self.dtype) * scales[name] for name, value in self.group("w/").items()}

    def model(self, **options: Any) -> SHaRPose:
        """As the authors' code has it, in evaluation mode; images come normalized."""
        model = SHaRPose(
            transformer=CoarseToFineTransformer(
                image_size=IMAGE_SIZE,
                num_keypoints=COCO_SKELETON.num_keypoints,
                dim=48,
                depth=4,
                num_heads=4,
                patch_size=8,
                selection=PatchSelection(alpha=0.5, rounding="ceil", all_keypoints=False),
                quality_predictor=QualityPredictor(48),
                drop_path=0.0,
            ),
            head=HeatmapHead(48, HEATMAP_SIZE),
            criterion=HeatmapCriterion(sigmas=torch.tensor(COCO_SKELETON.sigmas), swapped_axes=True),
            skeleton=COCO_SKELETON,
            pixel_mean=[0.0, 0.0, 0.0],
            pixel_std=[1.0, 1.0, 1.0],
            **options,
        )
        model.load_state_dict(convert_sharpose_official(self.weights()))
        return model.to(self.dtype).eval()


@dataclass(frozen=True)
class ListedParameter:
    """A line of a listing of the authors' parameters.

    Attributes:
        shape: of the tensor.
        lr_factor: of its learning rate.
        weight_decay: that their optimizer gives it.
    """

    shape: tuple[int, ...]
    lr_factor: float
    weight_decay: float


def read_parameters(listing: str) -> dict[str, ListedParameter]:
    """By the authors' names."""
    lines = [line for line in read_text(f"sharpose_params_{listing}.csv").splitlines() if not line.startswith("#")]
    return {
        name: ListedParameter(tuple(map(int, shape.split("x"))), float(lr_factor), float(weight_decay))
        for name, shape, _, lr_factor, weight_decay in csv.reader(lines)
    }


def converted_array(name: str, value: np.ndarray) -> tuple[str, Tensor]:
    """One entry of theirs under our name."""
    converted = convert_sharpose_official({name: torch.tensor(value)})
    return next(iter(converted.items()))
