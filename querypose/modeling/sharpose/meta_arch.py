"""SHaRPose, the meta-architecture (AAAI 2024): a person's crop in, heat maps of two stages, losses or a pose out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from querypose.d2 import META_ARCH_REGISTRY, CfgNode, CheckpointError, ImageList, Instances, configurable
from querypose.layers import at_least_float32
from querypose.modeling.explanation import Layer, PatchLayer, PoseLayer, to_array
from querypose.modeling.images import ImageSize
from querypose.modeling.pose_model import Batch, Component, PoseModel
from querypose.modeling.poses import QueryPoses, output_frame
from querypose.modeling.sharpose.criterion import HeatmapCriterion, HeatmapTargets
from querypose.modeling.sharpose.heatmaps import (
    HeatmapHead,
    decode_heatmaps,
    flip_heatmaps,
    gaussian_heatmaps,
    touches_heatmap,
)
from querypose.modeling.sharpose.pretrained import from_vision_transformer, is_vision_transformer
from querypose.modeling.sharpose.quality import QualityPredictor
from querypose.modeling.sharpose.selection import PatchSelection
from querypose.modeling.sharpose.transformer import CoarseToFineTransformer
from querypose.modeling.targets import PersonTargets


@dataclass(frozen=True)
class StageOutputs:
    """What the stages give of B crops.

    Attributes:
        heatmaps: (B, K, H, W) of each stage, the coarse one first; the fine ones of a crop that was not refined are
            the coarse ones.
        quality_B: predicted for the coarse poses; None without a quality predictor.
        relevance_BT: of every coarse patch to the keypoints.
        refined_B: which crops went on to the fine stage.
    """

    heatmaps: list[Tensor]
    quality_B: Tensor | None
    relevance_BT: Tensor
    refined_B: Tensor


@META_ARCH_REGISTRY.register()
class SHaRPose(PoseModel):
    """Coarse-to-fine transformer, a head that gives heat maps, and what they learn from.

    Args:
        transformer: gives keypoint tokens.
        head: turns them into heat maps.
        criterion: weighs those in training.
        sigma: of the Gaussians that heat maps learn, in cells.
        quality_threshold: in inference, poses of at least this quality are not refined.
        quality_start: share of the training after which the quality loss counts.
        layer_decay: factor of the learning rate from each block to the one before it.
        kernel_size: of the blur before positions are read.
        flip_test: averages with the heat maps of the mirrored crop in inference.
        options: of `PoseModel`.
    """

    @configurable
    def __init__(
        self,
        *,
        transformer: CoarseToFineTransformer,
        head: HeatmapHead,
        criterion: HeatmapCriterion,
        sigma: float = 2.0,
        quality_threshold: float = 0.95,
        quality_start: float = 0.0,
        layer_decay: float = 1.0,
        kernel_size: int = 11,
        flip_test: bool = True,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.transformer = transformer
        self.head = head
        self.criterion = criterion
        self.sigma = sigma
        self.quality_threshold = quality_threshold
        self.quality_start = quality_start
        self.layer_decay = layer_decay
        self.kernel_size = kernel_size
        self.flip_test = flip_test

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Builds the parts from MODEL.SHARPOSE."""
        sharpose, quality = cfg.MODEL.SHARPOSE, cfg.MODEL.SHARPOSE.QUALITY
        height, width = cfg.INPUT.PERSON_CROP.SIZE
        base = super().from_config(cfg)
        skeleton = base["skeleton"]
        transformer = CoarseToFineTransformer(
            image_size=(height, width),
            num_keypoints=skeleton.num_keypoints,
            dim=sharpose.DIM,
            depth=sharpose.DEPTH,
            num_heads=sharpose.NUM_HEADS,
            patch_size=sharpose.PATCH_SIZE,
            coarse_scale=sharpose.COARSE_SCALE,
            fine_scale=sharpose.FINE_SCALE or None,
            selection=PatchSelection(sharpose.ALPHA, sharpose.ROUNDING, sharpose.ALL_KEYPOINTS),
            quality_predictor=QualityPredictor(sharpose.DIM, quality.ACTIVATION) if quality.ENABLED else None,
            reuse=sharpose.REUSE,
            kept_tokens=sharpose.KEPT_TOKENS,
            attention_from=sharpose.ATTENTION_FROM,
            attention_decay=sharpose.ATTENTION_DECAY,
            drop_path=sharpose.DROP_PATH_RATE,
            token_std=sharpose.TOKEN_INIT_STD,
        )
        return {
            **base,
            "transformer": transformer,
            "head": HeatmapHead(sharpose.DIM, (height // sharpose.HEATMAP.STRIDE, width // sharpose.HEATMAP.STRIDE)),
            "criterion": HeatmapCriterion(
                sigmas=torch.tensor(skeleton.sigmas),
                quality_weight=quality.WEIGHT,
                quality_distance=quality.DISTANCE,
                swapped_axes=quality.SWAPPED_AXES,
            ),
            "sigma": sharpose.HEATMAP.SIGMA,
            "quality_threshold": quality.THRESHOLD,
            "quality_start": quality.START,
            "layer_decay": sharpose.LAYER_DECAY,
            "kernel_size": sharpose.DECODING.KERNEL_SIZE,
            "flip_test": sharpose.DECODING.FLIP_TEST,
        }

    @property
    def components(self) -> dict[str, Component]:
        """The blocks, whose number of crops and of tokens differs between the stages, and the head."""
        return {
            "transformer": Component(list(self.transformer.blocks), varying_dims=(0, 1)),
            "head": Component([self.head], varying_dims=(0,)),
        }

    def lr_factor(self, name: str) -> float:
        """Less from block to block towards the input; patches, tokens and positions have least."""
        depth = len(self.transformer.blocks)
        _, _, of_transformer = name.rpartition("transformer.")
        part, _, rest = of_transformer.partition(".")
        if part == "blocks":
            return self.layer_decay ** (depth - int(rest.partition(".")[0]))
        if part in ("patch_embedding", "coarse_positions", "fine_positions", "keypoint_tokens", "quality_token"):
            return self.layer_decay ** (depth + 1)
        return 1.0

    @property
    def undecayed(self) -> tuple[str, ...]:
        """Positions and learned tokens."""
        names = ("coarse_positions", "fine_positions", "keypoint_tokens", "quality_token")
        return tuple(f"transformer.{name}" for name in names)

    def loss_normalizers(self, batch: Batch) -> dict[str, Tensor]:
        """`crops`, and `labelled_crops`: those with a keypoint that touches the heat map."""
        keypoint_BKD, labelled_BK = self.keypoints_on_heatmap(batch, torch.device("cpu"))
        touching_BK = labelled_BK & touches_heatmap(keypoint_BKD, self.head.size, self.sigma)
        return {
            "crops": torch.tensor(len(batch), dtype=torch.float64),
            "labelled_crops": touching_BK.any(dim=1).sum().double(),
        }

    def losses(self, batch: Batch, normalizers: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """As `PoseModel.losses`; reads `gt_keypoints` of `instances`. Every crop is refined."""
        heatmap_BKHW, valid_BK = gaussian_heatmaps(
            *self.keypoints_on_heatmap(batch, self.device), self.head.size, self.sigma
        )
        height, width = self.transformer.image_size
        outputs = self.stage_outputs(self._crops(batch))
        trains_quality = self.progress >= self.quality_start
        if trains_quality and self.transformer.quality_predictor is not None:
            self.transformer.quality_predictor.is_trained.fill_(True)
        return self.criterion(
            outputs.heatmaps,
            outputs.quality_B,
            HeatmapTargets(heatmap_BKHW, valid_BK, width / height),
            num_crops=normalizers["crops"],
            num_labelled=normalizers["labelled_crops"],
            trains_quality=trains_quality,
        )

    def predict(self, batch: Batch) -> list[Instances]:
        """As `PoseModel.predict`: one pose a crop, scored by the crop's `box_score` (1 without one).

        Beside the usual fields: `pred_areas` (1,) of the crop; `quality` (1,); `patch_relevance` and `refined_patches`
        (1, rows, columns) on the coarse grid; no patch is refined of a crop that the coarse stage was sure of.
        """
        poses, outputs = self._poses_and_outputs(self._crops(batch))
        scores = [float(crop.get("box_score", 1.0)) for crop in batch]
        poses = replace(poses, scores_BQ=poses.scores_BQ.new_tensor(scores)[:, None])
        results = poses.to_instances(
            batch, [self.transformer.image_size] * len(batch), num_poses=1, score_threshold=-1.0
        )
        rows, columns = self.transformer.coarse_grid
        refined_BT = self._refined_patches(outputs)
        height, width = self.transformer.image_size
        for index, (crop, instances) in enumerate(zip(batch, results, strict=True)):
            matrix, _ = output_frame(crop, (height, width))
            area = abs(float(np.linalg.det(matrix[:, :2]))) * (height - 1) * (width - 1)
            instances.pred_areas = poses.scores_BQ.new_tensor([area])
            instances.patch_relevance = outputs.relevance_BT[index].view(1, rows, columns)
            instances.refined_patches = refined_BT[index].view(1, rows, columns)
            if outputs.quality_B is not None:
                instances.quality = at_least_float32(outputs.quality_B[index, None])
        return results

    def poses(self, images: ImageList) -> QueryPoses:
        """As `PoseModel.poses`: one a crop, scored 1."""
        return self._poses_and_outputs(images.tensor)[0]

    def _poses_and_outputs(self, crop_BCHW: Tensor) -> tuple[QueryPoses, StageOutputs]:
        heatmap_BKHW, outputs = self.average_heatmaps(crop_BCHW)
        cell_BKD, value_BK = decode_heatmaps(heatmap_BKHW, self.kernel_size)
        xy_BKD = cell_BKD / self._cells_per_pixel(cell_BKD) + 0.5  # pixel i covers [i, i + 1)
        keypoints_BQK3 = torch.cat([xy_BKD, value_BK[..., None]], dim=-1)[:, None]
        return QueryPoses(torch.ones_like(keypoints_BQK3[:, :, 0, 0]), keypoints_BQK3), outputs

    def explain(self, batch: Batch, num_poses: int = 3) -> list[list[Layer]]:
        """As `PoseModel.explain`: the pose after each stage, and which patches the second one saw finely.

        A crop has one pose, whatever `num_poses` says; it is not mirrored.
        """
        outputs = self.stage_outputs(self._crops(batch))
        grid, refined_BT = self.transformer.coarse_grid, self._refined_patches(outputs)
        layers: list[list[Layer]] = [
            [
                PatchLayer(
                    name="patches",
                    relevance_HW=to_array(relevance_T.view(grid)),
                    is_refined_HW=np.asarray(refined_T.view(grid).cpu().numpy()),
                    ratio=max(self.transformer.ratio, 1),
                )
            ]
            for relevance_T, refined_T in zip(outputs.relevance_BT, refined_BT, strict=True)
        ]
        for stage, heatmap_BKHW in enumerate(outputs.heatmaps, start=1):
            cell_BKD, value_BK = decode_heatmaps(heatmap_BKHW, self.kernel_size)
            xy_BKD = cell_BKD / self._cells_per_pixel(cell_BKD) + 0.5
            for of_crop, xy_KD, value_K in zip(layers, xy_BKD, value_BK, strict=True):
                score = float(value_K.mean().clamp(0, 1))
                of_crop.append(PoseLayer(name="pose", stage=stage, pose=0, keypoints_KD=to_array(xy_KD), score=score))
        return layers

    def average_heatmaps(self, crop_BCHW: Tensor) -> tuple[Tensor, StageOutputs]:
        """The last heat maps (B, K, H, W), with `flip_test` averaged with those of the mirrored crops.

        Args:
            crop_BCHW: normalized.

        Returns:
            them, and the outputs of the stages; with `flip_test` the mirrored crops' follow the crops' in these.
        """
        if not self.flip_test:
            outputs = self.stage_outputs(crop_BCHW)
            return outputs.heatmaps[-1], outputs
        outputs = self.stage_outputs(torch.cat([crop_BCHW, crop_BCHW.flip(-1)]))
        heatmap_BKHW, num_crops = outputs.heatmaps[-1], crop_BCHW.shape[0]
        mirrored_BKHW = flip_heatmaps(heatmap_BKHW[num_crops:], self.skeleton.flip_indices)
        return (heatmap_BKHW[:num_crops] + mirrored_BKHW) / 2, outputs

    def stage_outputs(self, crop_BCHW: Tensor) -> StageOutputs:
        """Runs the coarse stage, and the fine one on all crops in training, else on those that seem to need it.

        Args:
            crop_BCHW: normalized.
        """
        coarse = self.transformer.coarse_stage(crop_BCHW)
        refined_B = torch.full((crop_BCHW.shape[0],), self.transformer.has_fine_stage, device=crop_BCHW.device)
        predictor = self.transformer.quality_predictor
        if predictor is not None and not self.training:
            assert coarse.quality_B is not None
            refined_B = refined_B & ((coarse.quality_B < self.quality_threshold) | ~predictor.is_trained)
        heatmaps = [self.head(coarse.keypoint_BKC)]
        if self.transformer.has_fine_stage and torch.compiler.is_exporting():
            # A graph does not choose crops: the fine stage sees all, and those that do not need it stay coarse.
            fine_BKHW = self.head(self.transformer.fine_stage(crop_BCHW, coarse))
            heatmaps.append(torch.where(refined_B[:, None, None, None], fine_BKHW, heatmaps[0]))
        elif self.transformer.has_fine_stage:
            # In training without a look at the device: all are refined.
            index_R = None if self.training else refined_B.nonzero().squeeze(1)
            if index_R is None or len(index_R) == len(crop_BCHW):
                heatmaps.append(self.head(self.transformer.fine_stage(crop_BCHW, coarse)))
            elif len(index_R) == 0:
                heatmaps.append(heatmaps[0])
            else:
                fine_RKC = self.transformer.fine_stage(crop_BCHW[index_R], coarse.of_images(index_R))
                heatmaps.append(heatmaps[0].index_copy(0, index_R, self.head(fine_RKC)))
        return StageOutputs(heatmaps, coarse.quality_B, coarse.relevance_BT, refined_B)

    def keypoints_on_heatmap(self, batch: Batch, device: torch.device) -> tuple[Tensor, Tensor]:
        """Position (B, K, 2), in cells, and whether it is annotated (B, K), of the keypoints of each crop's person."""
        instances = [sample["instances"] for sample in batch]
        persons = PersonTargets.from_instances(instances, self.skeleton.num_keypoints, device, self.pixel_mean.dtype)
        if persons.keypoints_BGKD.shape[1] == 0:  # augmentation has left no person in any of the crops
            empty_BKD = persons.keypoints_BGKD.new_zeros(len(batch), self.skeleton.num_keypoints, 2)
            return empty_BKD, torch.zeros_like(empty_BKD[..., 0], dtype=torch.bool)
        keypoint_BKD = persons.keypoints_BGKD[:, 0]
        return (keypoint_BKD - 0.5) * self._cells_per_pixel(keypoint_BKD), persons.labelled_BGK[:, 0]

    def example_batch(
        self, size: ImageSize | None = None, *, num_images: int = 1, num_instances: int = 0, seed: int = 0
    ) -> list[dict[str, Any]]:
        """Crops of the one size that the model takes, whatever `size` says, each of at most one person."""
        return super().example_batch(
            self.transformer.image_size, num_images=num_images, num_instances=min(num_instances, 1), seed=seed
        )

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: Any) -> None:
        """Takes the weights of a plain vision transformer too (MAE); see `from_vision_transformer`.

        Raises:
            CheckpointError: its tokens or patches have another size.
        """
        if not prefix and is_vision_transformer(state_dict):
            theirs, ours = state_dict["patch_embed.proj.weight"], self.transformer.patch_embedding.weight
            if theirs.shape != ours.shape:
                raise CheckpointError(
                    f"The vision transformer of MODEL.WEIGHTS embeds patches as {tuple(theirs.shape)}, the model of "
                    f"the config as {tuple(ours.shape)} (dimension, channels, height, width of a patch); see "
                    "MODEL.SHARPOSE.DIM and PATCH_SIZE."
                )
            rows, columns = self.transformer.coarse_grid
            ratio = self.transformer.ratio
            grids = [(rows, columns), (rows * ratio, columns * ratio)][: 2 if self.transformer.has_fine_stage else 1]
            weights = from_vision_transformer(state_dict, grids)
            state_dict.clear()
            state_dict.update({f"transformer.{name}": value for name, value in weights.items()})
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _crops(self, batch: Batch) -> Tensor:
        """The normalized crops (B, C, H, W).

        Raises:
            ValueError: one is not of the model's size.
        """
        for sample in batch:
            if tuple(sample["image"].shape[-2:]) != self.transformer.image_size:
                raise ValueError(
                    f"SHaRPose takes crops of {self.transformer.image_size} (height, width), not "
                    f"{tuple(sample['image'].shape[-2:])}; set INPUT.PIPELINE to person_crops."
                )
        return self.normalized_images(batch, 1).tensor

    def _cells_per_pixel(self, like: Tensor) -> Tensor:
        """Of x and y: the first and the last cell lie on the first and the last pixel (UDP)."""
        height, width = self.transformer.image_size
        rows, columns = self.head.size
        return like.new_tensor([(columns - 1) / (width - 1), (rows - 1) / (height - 1)])

    def _refined_patches(self, outputs: StageOutputs) -> Tensor:
        """Which coarse patches (B, T) the fine stage saw finely."""
        selected_BN, _ = self.transformer.selection.split(outputs.relevance_BT)
        selected_BT = torch.zeros_like(outputs.relevance_BT, dtype=torch.bool).scatter(1, selected_BN, True)
        return selected_BT & outputs.refined_B[:, None]
