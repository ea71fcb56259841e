"""LQR, the meta-architecture: images in, losses or poses out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from querypose.d2 import META_ARCH_REGISTRY, Backbone, CfgNode, ImageList, Instances, build_backbone, configurable
from querypose.data.coco import AREA_OF_BOX
from querypose.modeling.backbone import BackboneError
from querypose.modeling.explanation import Layer
from querypose.modeling.images import image_cells
from querypose.modeling.loss_terms import LossTerm, LossTerms
from querypose.modeling.lqr.criterion import LQRCriterion
from querypose.modeling.lqr.decoding import joined_scales, mirrored_images, mirrored_maps, peaks
from querypose.modeling.lqr.explanation import explain_points
from querypose.modeling.lqr.keypoint_queries import KeypointQueries, KeypointQueryEncoding
from querypose.modeling.lqr.loss_terms import LQR_LOSS_REGISTRY
from querypose.modeling.lqr.pose_queries import PoseQueryEncoding, PoseScores
from querypose.modeling.lqr.regions import STRIDE, Regions, valid_cells
from querypose.modeling.lqr.sampling import cell_positions
from querypose.modeling.pose_model import Batch, Component, PoseModel
from querypose.modeling.poses import QueryPoses, output_frame
from querypose.modeling.targets import PersonTargets
from querypose.skeleton import Skeleton


@META_ARCH_REGISTRY.register()
class LQR(PoseModel):
    """Backbone, keypoint queries, pose queries and criterion.

    Args:
        backbone: gives one or more feature maps, the finest of them at stride 4.
        keypoint_queries: regresses a pose at every cell of it.
        pose_queries: scores these poses.
        criterion: compares both with the persons.
        skeleton: what the keypoints are.
        pixel_mean: per channel, range 0..255.
        pixel_std: per channel, range 0..255.
        radius: of a person's region, in cells.
        min_area: smaller persons are background, in square pixels of the file.
        detections_per_image: poses kept of an image.
        score_threshold: poses with a score not above it are left out; 0 leaves out none, since a score that is fitted
            by squares may lie below 0.
        peak_window: side of the window in which a pose must have the best score, in cells.
        flip_test: whether the maps of an image are averaged with those of its mirror image.
        test_scales: of the image in inference, 1 among them.
        extra_terms: further losses, by name.
    """

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        keypoint_queries: KeypointQueryEncoding,
        pose_queries: PoseQueryEncoding,
        criterion: LQRCriterion,
        skeleton: Skeleton,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        radius: float,
        min_area: float,
        detections_per_image: int,
        score_threshold: float = 0.0,
        peak_window: int = 5,
        flip_test: bool = True,
        test_scales: Sequence[float] = (1.0,),
        extra_terms: Mapping[str, LossTerm] | None = None,
    ) -> None:
        super().__init__(skeleton=skeleton, pixel_mean=pixel_mean, pixel_std=pixel_std)
        self.backbone = backbone
        self.keypoint_queries = keypoint_queries
        self.pose_queries = pose_queries
        self.criterion = criterion
        self.radius = radius
        self.min_area = min_area
        self.detections_per_image = detections_per_image
        self.score_threshold = score_threshold or -torch.inf
        self.peak_window = peak_window
        self.flip_test = flip_test
        self.test_scales = tuple(test_scales)
        self.extra_terms = LossTerms(extra_terms)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Builds the parts from MODEL.LQR."""
        lqr, loss = cfg.MODEL.LQR, cfg.MODEL.LQR.LOSS
        backbone = build_backbone(cfg)
        base = super().from_config(cfg)
        skeleton = base["skeleton"]
        sizes = {"in_channels": _general_channels(backbone), "num_keypoints": skeleton.num_keypoints}
        return {
            **base,
            "backbone": backbone,
            "keypoint_queries": KeypointQueryEncoding(
                **sizes,
                dim=lqr.KEYPOINT_DIM,
                num_points=lqr.NUM_POINTS,
                aggregation=lqr.AGGREGATION,
                has_queries=lqr.KEYPOINT_QUERIES,
            ),
            "pose_queries": PoseQueryEncoding(
                **sizes, dim=lqr.INSTANCE_DIM, places=lqr.POSE_QUERY, has_quality=lqr.QUALITY_BRANCH
            ),
            "criterion": LQRCriterion(
                skeleton=skeleton,
                label=lqr.LABEL,
                background_weight=lqr.BACKGROUND_WEIGHT,
                weights={
                    "loss_score": loss.SCORE_WEIGHT,
                    "loss_offset": loss.OFFSET_WEIGHT,
                    "loss_quality": loss.QUALITY_WEIGHT,
                },
            ),
            "radius": lqr.RADIUS,
            "min_area": lqr.MIN_AREA,
            "detections_per_image": cfg.TEST.DETECTIONS_PER_IMAGE,
            "score_threshold": cfg.TEST.SCORE_THRESHOLD,
            "peak_window": lqr.PEAK_WINDOW,
            "flip_test": lqr.FLIP_TEST,
            "test_scales": lqr.TEST_SCALES,
            "extra_terms": {name: LQR_LOSS_REGISTRY.build(name, cfg, skeleton=skeleton) for name in loss.EXTRA_TERMS},
        }

    @property
    def components(self) -> dict[str, Component]:
        """Backbone (the paper's trunk) and the two heads."""
        modules: dict[str, nn.Module] = {
            "backbone": self.backbone,
            "keypoint_queries": self.keypoint_queries,
            "pose_queries": self.pose_queries,
        }
        return {name: Component([module], varying_dims=(-2, -1)) for name, module in modules.items()}

    def loss_normalizers(self, batch: Batch) -> dict[str, Tensor]:
        """`cells` with an owner and a supervised score, `coordinates` labeled at owned cells; those of the terms."""
        sizes = [tuple(sample["image"].shape[-2:]) for sample in batch]
        height, width = (-(-max(sides) // STRIDE) for sides in zip(*sizes, strict=True))
        regions = self.regions(batch, (height, width), torch.device("cpu"))
        return {
            "cells": regions.num_scored().double(),
            "coordinates": regions.num_coordinates().double(),
            **self.extra_terms.normalizers(batch),
        }

    def losses(self, batch: Batch, normalizers: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """As `PoseModel.losses`; reads `gt_keypoints` and `gt_boxes`.

        `gt_areas` of `instances`, in square pixels of `image`, are the s² of the OKS; without them it is a share of the
        boxes. `valid_mask` (H, W) of a sample is False where no score is to be learned.
        """
        images = self.normalized_images(batch, self.backbone.size_divisibility)
        keypoints, scores = self._maps(images.tensor)
        regions = self.regions(batch, scores.score_BHW.shape[1:], self.device)
        losses = self.criterion(keypoints.keypoint_BKDHW, scores, regions, normalizers)
        extra_losses = self.extra_terms.losses(
            keypoints=keypoints, scores=scores, regions=regions, normalizers=normalizers
        )
        return {**losses, **extra_losses}

    def regions(self, batch: Batch, map_size: Sequence[int], device: torch.device) -> Regions:
        """The regions of the persons of a batch on a map of `map_size` (height, width)."""
        instances = [sample["instances"] for sample in batch]
        persons = PersonTargets.from_instances(instances, self.skeleton.num_keypoints, device, self.pixel_mean.dtype)
        area_BG = torch.zeros(persons.boxes_BG4.shape[:2], dtype=self.pixel_mean.dtype)
        is_large_BG = torch.zeros(area_BG.shape, dtype=torch.bool)
        for index, (sample, of_image) in enumerate(zip(batch, instances, strict=True)):
            area_G = of_image.gt_areas if of_image.has("gt_areas") else AREA_OF_BOX * of_image.gt_boxes.area()
            to_file, _ = output_frame(sample, of_image.image_size)
            is_large_G = area_G * abs(np.linalg.det(to_file[:, :2])) >= self.min_area
            area_BG[index, : len(area_G)], is_large_BG[index, : len(area_G)] = area_G, is_large_G
        masks = [(sample["instances"].image_size, sample.get("valid_mask")) for sample in batch]
        height, width = map_size
        area_BG, is_large_BG, is_valid_BHW = (
            tensor.to(device, non_blocking=True) for tensor in (area_BG, is_large_BG, valid_cells(masks, height, width))
        )
        return Regions.of_persons(persons, area_BG, is_large_BG, is_valid_BHW, self.radius)

    def predict(self, batch: Batch) -> list[Instances]:
        """As `PoseModel.predict`; keypoints have no score of their own, theirs are 1.

        Images of one size run as one batch, so that none sees another's padding. Poses of one person may come several
        times; the finishing step `pose_nms` keeps the best.
        """
        of_size: dict[tuple[int, ...], list[int]] = {}
        for index, sample in enumerate(batch):
            of_size.setdefault(tuple(sample["image"].shape[-2:]), []).append(index)
        results: dict[int, Instances] = {}
        for (height, width), indices in of_size.items():
            samples = [batch[index] for index in indices]
            poses = self._poses(samples)
            sizes = [(height, width)] * len(samples)
            instances = poses.to_instances(samples, sizes, self.detections_per_image, self.score_threshold)
            results.update(zip(indices, instances, strict=True))
        return [results[index] for index in range(len(batch))]

    def explain(self, batch: Batch, num_poses: int = 3) -> list[list[Layer]]:
        """As `PoseModel.explain`: scores, and how the best cells reach their keypoints; see `explain_points`.

        Each image runs by itself, at scale 1 and not mirrored.
        """
        layers = []
        for sample in batch:
            images = self.normalized_images([sample], self.backbone.size_divisibility)
            keypoints, scores = self._maps(images.tensor)
            ranking_BHW = scores.ranking_BHW
            is_image_BHW = image_cells(images, ranking_BHW.shape[1:])
            layers.append(explain_points(keypoints, ranking_BHW, is_image_BHW, self.peak_window, num_poses))
        return layers

    def _poses(self, samples: Batch) -> QueryPoses:
        """The peaks of images of one size at every scale."""
        scores, keypoints = [], []
        height, width = samples[0]["image"].shape[-2:]
        for scale in self.test_scales:
            size = [max(1, round(side * scale)) for side in (height, width)]
            resized = [{"image": _resized(sample["image"].to(self.pixel_mean), size)} for sample in samples]
            score_BQ, keypoints_BQKD = self._peaks(self.normalized_images(resized, self.backbone.size_divisibility))
            scores.append(score_BQ)
            keypoints.append(keypoints_BQKD * keypoints_BQKD.new_tensor([width / size[1], height / size[0]]))
        score_BQ, keypoints_BQKD = joined_scales(scores, keypoints, self.test_scales)
        return QueryPoses(score_BQ, F.pad(keypoints_BQKD, (0, 1), value=1.0))

    def poses(self, images: ImageList) -> QueryPoses:
        """As `PoseModel.poses`, of one scale."""
        score_BQ, keypoints_BQKD = self._peaks(images)
        return QueryPoses(score_BQ, F.pad(keypoints_BQKD, (0, 1), value=1.0))

    def _peaks(self, images: ImageList) -> tuple[Tensor, Tensor]:
        """Scores (B, Q) and keypoints (B, Q, K, D) of the peaks of one scale."""
        score_BHW, pose_BKDHW = self._score_and_pose(images.tensor)
        if self.flip_test:
            mirrored = self._score_and_pose(mirrored_images(images.tensor))
            other_BHW, other_BKDHW = mirrored_maps(*mirrored, self.skeleton.flip_indices)
            score_BHW, pose_BKDHW = (score_BHW + other_BHW) / 2, (pose_BKDHW + other_BKDHW) / 2
        is_image_BHW = image_cells(images, score_BHW.shape[1:])
        return peaks(score_BHW, pose_BKDHW, is_image_BHW, self.peak_window, self.detections_per_image)

    def _score_and_pose(self, image_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """What poses are chosen by, (B, H, W), and absolute poses in cells, (B, K, D, H, W)."""
        keypoints, scores = self._maps(image_BCHW)
        score_BHW = scores.ranking_BHW
        height, width = score_BHW.shape[1:]
        return score_BHW, keypoints.keypoint_BKDHW + cell_positions(height, width, score_BHW)

    def _maps(self, image_BCHW: Tensor) -> tuple[KeypointQueries, PoseScores]:
        finest_BCHW, *others = self.backbone(image_BCHW).values()
        size = finest_BCHW.shape[-2:]
        resized = [F.interpolate(x_BCHW, size=size, mode="bilinear", align_corners=False) for x_BCHW in others]
        general_BCHW = torch.cat([finest_BCHW, *resized], dim=1)
        keypoints = self.keypoint_queries(general_BCHW)
        return keypoints, self.pose_queries(general_BCHW, *keypoints)


def _resized(image_CHW: Tensor, size: Sequence[int]) -> Tensor:
    if image_CHW.shape[1:] == tuple(size):
        return image_CHW
    return F.interpolate(image_CHW[None], size=list(size), mode="bilinear", antialias=True, align_corners=False)[0]


def _general_channels(backbone: Backbone) -> int:
    """Channels of R_g: all maps of the backbone side by side."""
    shapes = backbone.output_shape()
    finest = next(iter(shapes.values()))
    if finest.stride != STRIDE:
        raise BackboneError(
            f"LQR needs a feature map at stride {STRIDE}, but the finest that the backbone gives has stride "
            f"{finest.stride}; name c2 or p2 in MODEL.BACKBONE.OUT_FEATURES, or leave that empty."
        )
    return sum(shape.channels or 0 for shape in shapes.values())
