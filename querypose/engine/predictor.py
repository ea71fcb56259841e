"""Poses of single images, for the demo and for scripts."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from querypose.d2 import CfgNode, Instances, build_model, configurable
from querypose.data import Pipeline, build_pipeline
from querypose.engine.ema import load_evaluation_weights, require_weights
from querypose.engine.inference import InferenceModel
from querypose.modeling import Layer, PoseModel


class PosePredictor:
    """Runs a model of any meta-architecture on images as evaluation would: by the same pipeline."""

    @configurable
    def __init__(self, *, model: PoseModel | InferenceModel, pipeline: Pipeline) -> None:
        """Takes plain arguments; `PosePredictor(cfg)` builds the model and loads MODEL.WEIGHTS.

        Args:
            model: takes samples of the pipeline and gives [{"instances"}]; it is set to evaluation.
            pipeline: that of the evaluation.
        """
        self.model = model.eval()
        self._pipeline = pipeline

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Builds the model of `cfg` and loads its weights; averaged ones with SOLVER.EMA.ENABLED.

        Raises:
            ConfigError: there is no file MODEL.WEIGHTS.
        """
        require_weights(cfg.MODEL.WEIGHTS)  # before the model is built, which takes longer
        model = build_model(cfg)
        load_evaluation_weights(model, cfg.MODEL.WEIGHTS, use_average=cfg.SOLVER.EMA.ENABLED, random_weights=True)
        return {
            "model": InferenceModel(cfg, model, in_place=True),
            "pipeline": build_pipeline(cfg, is_train=False),
        }

    @torch.inference_mode()
    def __call__(
        self,
        image: NDArray[np.uint8],
        boxes_xyxy: NDArray[np.floating] | None = None,
        box_scores: NDArray[np.floating] | None = None,
    ) -> Instances:
        """The poses in an image.

        Args:
            image: (H, W, 3) RGB, 0..255.
            boxes_xyxy: (N, 4), N > 0, of the persons in it, for a model that is fed crops; None takes the image for
                the box of one person.
            box_scores: (N), with which such a model scores its poses; 1 by default.

        Returns:
            `scores`, `pred_classes`, `pred_keypoints` (N, K, 3) and, if the model predicts them, `pred_boxes` and
            `pred_visibilities` (N, K), in the frame of `image`, on the CPU.
        """
        samples = self.samples(image, boxes_xyxy)
        if box_scores is not None:
            samples = [{**sample, "box_score": score} for sample, score in zip(samples, box_scores, strict=True)]
        return Instances.cat([output["instances"].to("cpu") for output in self.model(samples)])

    @torch.inference_mode()
    def explain(
        self, image: NDArray[np.uint8], boxes_xyxy: NDArray[np.floating] | None = None, num_poses: int = 3
    ) -> list[tuple[NDArray[np.uint8], list[Layer]]]:
        """What led to the best poses of an image: what the model was fed, (H, W, 3) RGB, and layers over it.

        A model that is fed crops gives a pair for each person.

        Args:
            image: as of a call; so `boxes_xyxy`.
            boxes_xyxy: see there.
            num_poses: of a sample, at most.
        """
        samples = self.samples(image, boxes_xyxy)
        pictures = [sample["image"].permute(1, 2, 0).numpy() for sample in samples]
        step = -1 if self._pipeline.channel_order == "BGR" else 1
        return [
            (np.ascontiguousarray(picture[:, :, ::step]), layers)
            for picture, layers in zip(pictures, self.model.explain(samples, num_poses), strict=True)
        ]

    def samples(self, image: NDArray[np.uint8], boxes_xyxy: NDArray[np.floating] | None = None) -> list[dict[str, Any]]:
        """What the model is fed of an image; arguments as of a call."""
        records = self._pipeline.records_of_image((image.shape[0], image.shape[1]), boxes_xyxy)
        # An evaluation's pipeline draws nothing.
        return [self._pipeline.sample(record, np.random.default_rng(0), image) for record in records]
