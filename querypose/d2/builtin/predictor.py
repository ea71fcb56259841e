"""One image in, its predictions out."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from querypose.d2.builtin.catalog import MetadataCatalog
from querypose.d2.builtin.checkpoint import DetectionCheckpointer
from querypose.d2.builtin.config import CfgNode
from querypose.d2.builtin.modeling import build_model


class DefaultPredictor:
    """A model with the weights of MODEL.WEIGHTS, for single images on one device.

    Attributes:
        cfg: the config.
        model: in evaluation mode.
        metadata: of the first dataset of DATASETS.TEST, if there is one.
    """

    def __init__(self, cfg: CfgNode) -> None:
        self.cfg = cfg.clone()
        self.model = build_model(self.cfg)
        self.model.eval()
        if len(cfg.DATASETS.TEST):
            self.metadata = MetadataCatalog.get(cfg.DATASETS.TEST[0])
        DetectionCheckpointer(self.model).load(cfg.MODEL.WEIGHTS)
        self.input_format = cfg.INPUT.FORMAT
        if self.input_format not in ("RGB", "BGR"):
            raise AssertionError(f"INPUT.FORMAT is {self.input_format!r}; allowed: 'RGB', 'BGR'.")

    def __call__(self, original_image: np.ndarray[Any, Any]) -> dict[str, Any]:
        """Predicts.

        Args:
            original_image: H x W x 3, uint8, in BGR order whatever INPUT.FORMAT is.

        Returns:
            the model's output for this image, in the frame of the original image.
        """
        image = original_image[:, :, ::-1] if self.input_format == "RGB" else original_image
        height, width = image.shape[:2]
        tensor = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
        size = resized_shape(height, width, self.cfg.INPUT.MIN_SIZE_TEST, self.cfg.INPUT.MAX_SIZE_TEST)
        if size != (height, width):
            tensor = F.interpolate(tensor[None], size=size, mode="bilinear", antialias=True)[0]
        with torch.no_grad():
            prediction: dict[str, Any] = self.model([{"image": tensor, "height": height, "width": width}])[0]
        return prediction


def resized_shape(height: int, width: int, min_size: int, max_size: int) -> tuple[int, int]:
    """(height, width) with the short side `min_size`, or less where the long side would exceed `max_size`.

    A `min_size` of 0 keeps the size.
    """
    if min_size == 0:
        return height, width
    scale = min(min_size / min(height, width), max_size / max(height, width))
    return int(height * scale + 0.5), int(width * scale + 0.5)
