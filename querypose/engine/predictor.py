"""Poses of single images, for the demo and for scripts."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from querypose.d2 import CfgNode, Instances, build_model, configurable
from querypose.data.transforms import RandomResize
from querypose.engine.ema import load_evaluation_weights, require_weights
from querypose.engine.inference import InferenceModel


class PosePredictor:
    """Runs a model of any meta-architecture on images as evaluation would: same resizing, one image a batch."""

    @configurable
    def __init__(self, *, model: nn.Module, resize: RandomResize, channel_order: str) -> None:
        """Takes plain arguments; `PosePredictor(cfg)` builds the model and loads MODEL.WEIGHTS.

        Args:
            model: takes [{"image", "height", "width"}] and gives [{"instances"}]; it is set to evaluation.
            resize: of a single short side.
            channel_order: "RGB" or "BGR", what the model was trained with.
        """
        self.model = model.eval()
        self._resize = resize
        self._channel_order = channel_order

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Builds the model of `cfg` and loads its weights; averaged ones with SOLVER.EMA.ENABLED.

        Raises:
            ConfigError: there is no file MODEL.WEIGHTS.
        """
        require_weights(cfg.MODEL.WEIGHTS)  # before the model is built, which takes longer
        model = build_model(cfg)
        load_evaluation_weights(model, cfg.MODEL.WEIGHTS, use_average=cfg.SOLVER.EMA.ENABLED)
        return {
            "model": InferenceModel(cfg, model, in_place=True),
            "resize": RandomResize([cfg.INPUT.MIN_SIZE_TEST], cfg.INPUT.MAX_SIZE_TEST),
            "channel_order": cfg.INPUT.FORMAT,
        }

    @torch.inference_mode()
    def __call__(self, image: NDArray[np.uint8]) -> Instances:
        """The poses in an image.

        Args:
            image: (H, W, 3) RGB, 0..255.

        Returns:
            `scores`, `pred_classes`, `pred_keypoints` (N, K, 3) and, if the model predicts them, `pred_boxes` and
            `pred_visibilities` (N, K), in the frame of `image`, on the CPU.
        """
        height, width = image.shape[:2]
        # A resize to one size draws nothing.
        transform = self._resize.draw((height, width), np.random.default_rng(0))
        pixels = transform.apply_image(image if self._channel_order == "RGB" else image[:, :, ::-1])
        tensor = torch.from_numpy(pixels).permute(2, 0, 1).contiguous()
        (output,) = self.model([{"image": tensor, "height": height, "width": width}])
        return output["instances"].to("cpu")
