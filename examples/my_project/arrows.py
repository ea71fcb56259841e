"""A skeleton of three keypoints, and a dataset of drawn arrows with it."""

from __future__ import annotations

import json
import math
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from querypose.data import datasets_root, register_pose_dataset
from querypose.skeleton import Skeleton

ARROW = Skeleton(
    name="arrow",
    keypoints=("tip", "left_end", "right_end"),
    # A mirror image turns the left end into a right one.
    flip_pairs=((1, 2),),
    sigmas=(0.08, 0.08, 0.08),
    edges=((0, 1), (0, 2)),
)
IMAGE_SIZE = 96


def draw_arrows(folder: Path, num_images: int, seed: int) -> None:
    """Writes `annotations.json` in COCO's keypoint format and the images beside it, unless they are there."""
    if (folder / "annotations.json").is_file():
        return
    (folder / "images").mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(seed)
    images: list[dict[str, object]] = []
    annotations: list[dict[str, object]] = []
    for image_id in range(num_images):
        image = Image.new("RGB", (IMAGE_SIZE, IMAGE_SIZE), tuple(generator.integers(60, 120, 3).tolist()))
        for _ in range(generator.integers(1, 3)):
            points = _draw_arrow(image, generator)
            (left, top), (right, bottom) = points.min(axis=0), points.max(axis=0)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": 1,
                    "bbox": [left, top, right - left, bottom - top],
                    "area": (right - left) * (bottom - top),
                    "iscrowd": 0,
                    "num_keypoints": len(points),
                    "keypoints": [value for x, y in points.tolist() for value in (x, y, 2)],
                }
            )
        image.save(folder / "images" / f"{image_id}.png")
        images.append({"id": image_id, "file_name": f"{image_id}.png", "height": IMAGE_SIZE, "width": IMAGE_SIZE})
    category = {"id": 1, "name": "arrow", "keypoints": list(ARROW.keypoints)}
    content = {"images": images, "annotations": annotations, "categories": [category]}
    (folder / "annotations.json").write_text(json.dumps(content))


def _draw_arrow(image: Image.Image, generator: np.random.Generator) -> np.ndarray:
    """Draws an arrow with a dark left arm and a bright right one, and gives its keypoints (3, 2) in pixels."""
    tip = generator.uniform(0.3, 0.7, 2) * IMAGE_SIZE
    length, direction = generator.uniform(0.2, 0.28) * IMAGE_SIZE, generator.uniform(-math.pi, math.pi)
    ends = [
        tip + length * np.array([math.cos(direction + side), math.sin(direction + side)])
        for side in (2.5, -2.5)  # radians to the left and to the right of where the arrow points
    ]
    draw = ImageDraw.Draw(image)
    for end, color in zip(ends, ((20, 20, 20), (240, 240, 240)), strict=True):
        draw.line([tuple(tip), tuple(end)], fill=color, width=3)
    return np.stack([tip, *ends])


for split, num_images, seed in (("train", 64, 0), ("val", 8, 1)):
    folder = datasets_root() / "arrows" / split
    register_pose_dataset(
        f"arrows_{split}",
        folder / "annotations.json",
        folder / "images",
        ARROW,
        # Called when the dataset is first used; a dataset that is there needs no such function.
        prepare=partial(draw_arrows, folder, num_images, seed),
    )
