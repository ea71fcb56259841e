"""Images and persons drawn at random: something to compute on where no data set is at hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from querypose.d2 import Boxes, Instances, Keypoints
from querypose.skeleton import Skeleton

ImageSize = tuple[int, int]
CATEGORY_ID = 1


def random_poses(random: np.random.Generator, count: int, size: ImageSize, num_keypoints: int) -> np.ndarray:
    """(count, K, 3) keypoints x, y in pixels and visibility 2, each pose within a box of 10 to 60 % of the image."""
    bounds = np.array([size[1], size[0]])
    extent = random.uniform(0.1, 0.6, (count, 1, 2)) * bounds
    corner = random.uniform(0, 1, (count, 1, 2)) * (bounds - extent)
    points = corner + random.uniform(0, 1, (count, num_keypoints, 2)) * extent
    return np.concatenate([points, np.full((count, num_keypoints, 1), 2.0)], axis=2)


def random_batch(
    random: np.random.Generator, num_images: int, size: ImageSize, persons: int, skeleton: Skeleton
) -> list[dict[str, Any]]:
    """A training batch of noise, in detectron2's form; good for inference too.

    Args:
        random: what draws.
        num_images: B.
        size: height and width of every image, in pixels.
        persons: in every image.
        skeleton: gives K.
    """
    batch = []
    for _ in range(num_images):
        poses = torch.from_numpy(random_poses(random, persons, size, skeleton.num_keypoints)).float()
        instances = Instances(size)
        instances.gt_boxes = Boxes(torch.cat([poses[..., :2].amin(1), poses[..., :2].amax(1)], dim=1))
        instances.gt_classes = torch.zeros(persons, dtype=torch.long)
        instances.gt_keypoints = Keypoints(poses)
        image = torch.from_numpy(random.integers(0, 256, (3, *size), dtype=np.uint8))
        batch.append({"image": image, "height": size[0], "width": size[1], "instances": instances})
    return batch


def random_coco(
    random: np.random.Generator, num_images: int, size: ImageSize, persons: int, skeleton: Skeleton
) -> dict[str, Any]:
    """Content of a COCO-keypoints file; args as of `random_batch`. Images are named `1.jpg` and so on."""
    images = [
        {"id": index, "file_name": f"{index}.jpg", "height": size[0], "width": size[1]}
        for index in range(1, num_images + 1)
    ]
    annotations: list[dict[str, Any]] = []
    for image in images:
        for pose in random_poses(random, persons, size, skeleton.num_keypoints):
            low, extent = pose[:, :2].min(0), np.ptp(pose[:, :2], axis=0)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image["id"],
                    "category_id": CATEGORY_ID,
                    "iscrowd": 0,
                    "bbox": [*low.tolist(), *extent.tolist()],
                    "area": float(extent.prod() * 0.6),
                    "num_keypoints": skeleton.num_keypoints,
                    "keypoints": pose.reshape(-1).tolist(),
                }
            )
    category = {"id": CATEGORY_ID, "name": "person", "keypoints": list(skeleton.keypoints), "skeleton": []}
    return {"images": images, "annotations": annotations, "categories": [category]}


def random_detections(random: np.random.Generator, coco: dict[str, Any], per_image: int) -> list[dict[str, Any]]:
    """Results for a COCO-keypoints file: in every image the annotated poses, shifted a little, again and again."""
    poses: dict[Any, list[np.ndarray]] = {image["id"]: [] for image in coco["images"]}
    for annotation in coco["annotations"]:
        poses[annotation["image_id"]].append(np.array(annotation["keypoints"]).reshape(-1, 3))
    detections = []
    for image_id, of_image in poses.items():
        for index in range(per_image if of_image else 0):
            pose = of_image[index % len(of_image)].copy()
            pose[:, :2] += random.normal(0, 0.1, (len(pose), 2)) * np.ptp(pose[:, :2], axis=0)
            detections.append(
                {
                    "image_id": image_id,
                    "category_id": CATEGORY_ID,
                    "keypoints": pose.reshape(-1).tolist(),
                    "score": float(random.uniform()),
                }
            )
    return detections
