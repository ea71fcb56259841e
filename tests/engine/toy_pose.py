"""A meta-architecture and a dataset so small that a whole training takes a second."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from querypose.config import get_cfg
from querypose.d2 import META_ARCH_REGISTRY, Boxes, CfgNode, Instances, configurable
from querypose.modeling import Component, PoseModel
from querypose.modeling.pose_model import Batch, num_instances
from querypose.skeleton import COCO_SKELETON, Skeleton, skeleton_of_datasets

HEIGHT, WIDTH = 48, 64
NUM_KEYPOINTS = COCO_SKELETON.num_keypoints


@META_ARCH_REGISTRY.register()
class ToyPose(PoseModel):
    """One person per image from the image's mean colors; its losses are sums over persons, divided as QueryPose's."""

    scale: Tensor
    components: dict[str, Component] = {}  # noqa: RUF012  # the contract's property, of nothing

    @configurable
    def __init__(self, *, skeleton: Skeleton = COCO_SKELETON, device: str = "cpu") -> None:
        super().__init__(skeleton=skeleton, pixel_mean=[0.0] * 3, pixel_std=[255.0] * 3)
        num_keypoints = skeleton.num_keypoints
        self.hidden = nn.Linear(3 * 2 * 2, 16)
        self.norm = nn.LayerNorm(16)
        self.flow = nn.Linear(16, num_keypoints * 2)
        nn.init.zeros_(self.flow.weight)
        self.register_buffer("scale", torch.ones(()))
        self.unit_of_loss = 1.0
        self.to(device)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        return {
            "skeleton": skeleton_of_datasets(cfg.DATASETS.TRAIN or cfg.DATASETS.TEST),
            "device": cfg.MODEL.DEVICE,
        }

    def loss_normalizers(self, batch: Batch) -> dict[str, Tensor]:
        return {"persons": num_instances(batch)}

    def keypoints(self, batch: Batch) -> Tensor:
        """In units of the image, (B, K, 2)."""
        images = [item["image"].to(self.scale) / 255 for item in batch]
        colors = torch.stack([F.adaptive_avg_pool2d(image, (2, 2)).flatten() for image in images])
        hidden = F.relu(self.norm(self.hidden(colors)))
        return (self.flow(hidden) * self.scale).view(len(batch), self.skeleton.num_keypoints, 2) + 0.5

    def losses(self, batch: Batch, normalizers: Mapping[str, Tensor]) -> dict[str, Tensor]:
        keypoints = self.keypoints(batch)
        loss_near, loss_far = keypoints.float().sum() * 0, keypoints.float().sum() * 0
        for points, item in zip(keypoints.to(self.scale.dtype), batch, strict=True):
            height, width = item["image"].shape[1:]
            for target in item["instances"].gt_keypoints.tensor.to(points):
                error = (points - target[:, :2] / target.new_tensor([width, height]))[target[:, 2] > 0]
                loss_near = loss_near + error.abs().sum() * self.unit_of_loss
                loss_far = loss_far + error.square().sum()
        num_persons = normalizers["persons"].clamp(min=1)
        return {"loss_keypoint": loss_near / num_persons, "loss_keypoint_0": loss_far / num_persons}

    def predict(self, batch: Batch) -> list[Instances]:
        return [self.person(points, item) for points, item in zip(self.keypoints(batch), batch, strict=True)]

    def person(self, keypoints: Tensor, item: Mapping[str, Any]) -> Instances:
        size = item["height"], item["width"]
        points = keypoints * keypoints.new_tensor([size[1], size[0]])
        instances = Instances(size)
        instances.pred_keypoints = torch.cat((points, torch.ones_like(points[:, :1])), dim=1)[None]
        instances.pred_boxes = Boxes(torch.cat((points.amin(0), points.amax(0)))[None])
        instances.scores = torch.tensor([0.9])
        instances.pred_classes = torch.zeros(1, dtype=torch.long)
        return instances


def pose_of_image(index: int) -> list[tuple[int, int]]:
    """COCO coordinates of the person of image `index`: a zigzag that moves with the image."""
    return [(10 + 2 * keypoint + index % 3, 8 + (keypoint * 7) % 30) for keypoint in range(NUM_KEYPOINTS)]


def write_toy_dataset(folder: Path, num_images: int = 6) -> Path:
    """A COCO-keypoints json with its images, in `folder`; gives the json."""
    folder.mkdir(parents=True, exist_ok=True)
    images, annotations = [], []
    for index in range(num_images):
        Image.new("RGB", (WIDTH, HEIGHT), (40 * index, 255 - 40 * index, 90)).save(folder / f"{index}.png")
        images.append({"id": index + 1, "file_name": f"{index}.png", "width": WIDTH, "height": HEIGHT})
        points = pose_of_image(index)
        low, high = [min(axis) for axis in zip(*points, strict=True)], [max(axis) for axis in zip(*points, strict=True)]
        width, height = high[0] - low[0], high[1] - low[1]
        annotations.append(
            {
                "id": index + 1,
                "image_id": index + 1,
                "category_id": 1,
                "iscrowd": 0,
                "bbox": [*low, width, height],
                "area": width * height,
                "num_keypoints": NUM_KEYPOINTS,
                "keypoints": [number for x, y in points for number in (x, y, 2)],
            }
        )
    category = {"id": 1, "name": "person", "keypoints": list(COCO_SKELETON.keypoints), "skeleton": []}
    json_file = folder / "toy.json"
    json_file.write_text(json.dumps({"images": images, "annotations": annotations, "categories": [category]}))
    return json_file


def write_toy_config(folder: Path, **solver: Any) -> Path:
    """A config file that trains ToyPose on the toy dataset into `folder`/output; gives it."""
    json_file = write_toy_dataset(folder / "data")
    custom = {"name": "toy", "json": str(json_file), "images": str(json_file.parent), "skeleton": "coco"}
    config = {
        "VERSION": 2,
        "OUTPUT_DIR": str(folder / "output"),
        "SEED": 1,
        "LOG_PERIOD": 5,
        "MODEL": {"META_ARCHITECTURE": "ToyPose", "DEVICE": "cpu"},
        "DATASETS": {"TRAIN": ["toy"], "TEST": ["toy"], "CUSTOM": [custom]},
        "DATALOADER": {"NUM_WORKERS": 0},
        "INPUT": {
            "MIN_SIZE_TRAIN": [HEIGHT],
            "MIN_SIZE_TEST": HEIGHT,
            "RANDOM_FLIP": "none",
            "CROP": {"PROBABILITY": 0.0},
        },
        "SOLVER": {
            "IMS_PER_BATCH": 4,
            "BASE_LR": 0.05,
            "WARMUP_ITERS": 0,
            "MAX_ITER": 10,
            "STEPS": [],
            "CHECKPOINT_PERIOD": 5,
            "LR_FACTORS": [["flow.", 2.0]],
            **solver,
        },
    }
    config_file = folder / "toy.yaml"
    config_file.write_text(json.dumps(config))
    return config_file


def toy_batch(num_persons: Sequence[int], seed: int = 0) -> list[dict[str, Any]]:
    """A training batch of random images with that many random persons, some keypoints unlabelled."""
    from querypose.d2 import Keypoints

    generator = torch.Generator().manual_seed(seed)
    batch = []
    for index, count in enumerate(num_persons):
        keypoints = torch.rand(count, NUM_KEYPOINTS, 3, generator=generator)
        keypoints[..., :2] *= torch.tensor([WIDTH, HEIGHT])
        keypoints[..., 2] = (keypoints[..., 2] > 0.3).float() * 2
        instances = Instances((HEIGHT, WIDTH))
        instances.gt_boxes = Boxes(torch.tensor([0.0, 0.0, WIDTH, HEIGHT]).repeat(count, 1))
        instances.gt_classes = torch.zeros(count, dtype=torch.long)
        instances.gt_keypoints = Keypoints(keypoints)
        image = torch.randint(0, 256, (3, HEIGHT, WIDTH), generator=generator, dtype=torch.uint8)
        batch.append({"image": image, "instances": instances, "height": HEIGHT, "width": WIDTH, "image_id": index})
    return batch


def toy_model(seed: int = 0, dtype: torch.dtype = torch.float64) -> ToyPose:
    torch.manual_seed(seed)
    return ToyPose().to(dtype).train()


def toy_cfg(config_file: Path) -> CfgNode:
    cfg = get_cfg()
    cfg.merge_from_file(str(config_file))
    return cfg
