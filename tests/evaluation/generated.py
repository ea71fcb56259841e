"""Generated annotations and detections, of every kind that a keypoint evaluation treats in a way of its own."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from querypose.data import PoseAnnotations, read_annotations
from querypose.evaluation import METRIC_REGISTRY, read_detections
from querypose.skeleton import Skeleton


def read(content: Any, skeleton: Skeleton) -> PoseAnnotations:
    """The content of an annotation file, read as from a file `gt.json`."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "gt.json"
        path.write_text(json.dumps(content))
        return read_annotations(path, None, skeleton).require_sound()


def evaluate(content: Any, results: Any, skeleton: Skeleton, metric: str = "coco") -> dict[str, float]:
    """A metric of results against the content of an annotation file."""
    annotations = read(content, skeleton)
    metrics: dict[str, float] = METRIC_REGISTRY.get(metric)(annotations, read_detections(results, annotations))
    return metrics


def generate(
    skeleton: Skeleton, seed: int, num_images: int = 40, *, with_boxes: bool = False
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A COCO keypoints file and results for it.

    Persons: large and small, some without a labeled keypoint, some crowd regions, some with a single keypoint.
    Detections: near a person, between two, anywhere, twice the same; up to 25 an image; scores that often tie; images
    with none, and images without persons that have some.
    """
    random = np.random.default_rng(seed)
    K = skeleton.num_keypoints
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    for index in range(num_images):
        image_id = int(7 * (num_images - index) + 3)  # neither from 1 nor in order
        images.append(
            {
                "id": image_id,
                "file_name": f"{image_id}.jpg",
                "width": 640,
                "height": 480,
                "crowdIndex": float(random.uniform()),
            }
        )
        persons = []
        for _ in range(random.integers(0, 6)):
            width, height = random.uniform(15, 260, 2)
            x, y = random.uniform(0, 380), random.uniform(0, 220)
            keypoints = np.stack([x + random.uniform(0, width, K), y + random.uniform(0, height, K)], axis=1).round()
            visibility = random.integers(0, 3, K)
            kind = random.choice(["plain", "unlabeled", "crowd", "single"], p=[0.75, 0.1, 0.07, 0.08])
            if kind != "plain":
                visibility[:] = 0
            if kind == "single":
                visibility[random.integers(K)] = 2
            labeled = np.concatenate([keypoints * (visibility > 0)[:, None], visibility[:, None]], axis=1)
            annotations.append(
                {
                    "id": 5 * len(annotations) + 11,
                    "image_id": image_id,
                    "category_id": 1,
                    "bbox": [float(x), float(y), float(width), float(height)],
                    "area": float(width * height * random.uniform(0.3, 0.9)),
                    "iscrowd": int(kind == "crowd"),
                    "num_keypoints": int((visibility > 0).sum()),
                    "keypoints": labeled.reshape(-1).tolist(),
                }
            )
            persons.append((keypoints, float(np.sqrt(width * height))))
        for _ in range(random.choice([0, 3, 12, 25])):
            kind = random.choice(["near", "between", "anywhere", "again"]) if persons else "anywhere"
            keypoints, size = persons[random.integers(len(persons))] if persons else (np.zeros((K, 2)), 1.0)
            if kind == "near":
                keypoints = keypoints + random.normal(0, random.choice([0.02, 0.06, 0.12]), (K, 2)) * size
            elif kind == "between":
                keypoints = (keypoints + persons[random.integers(len(persons))][0]) / 2
            elif kind == "anywhere":
                keypoints = random.uniform(0, 400, (K, 2))
            result = {
                "image_id": image_id,
                "category_id": 1,
                "keypoints": np.concatenate([keypoints, np.ones((K, 1))], axis=1).reshape(-1).tolist(),
                "score": float(random.integers(1, 30)) / 30,
            }
            if with_boxes:
                low, high = keypoints.min(axis=0) - 4, keypoints.max(axis=0) + 4
                result["bbox"] = [*low.tolist(), *(high - low).tolist()]
            results.append(result)
    return {
        "info": {},
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 1, "name": "person"}],
    }, results


def perfect_results(ground_truth: dict[str, Any]) -> list[dict[str, Any]]:
    """The labeled poses as results."""
    return [
        {
            "image_id": annotation["image_id"],
            "category_id": annotation["category_id"],
            "keypoints": list(annotation["keypoints"]),
            "score": 0.9,
        }
        for annotation in ground_truth["annotations"]
        if any(annotation["keypoints"][2::3])
    ]


def damaged_results(ground_truth: dict[str, Any], seed: int) -> list[dict[str, Any]]:
    """The annotated poses, shifted by some per cent of the person's size, some twice, some lost, some elsewhere."""
    random = np.random.default_rng(seed)
    results = []
    for annotation in ground_truth["annotations"]:
        for _ in range(random.integers(0, 4)):
            keypoints = np.array(annotation["keypoints"], dtype=float).reshape(-1, 3)
            size = np.sqrt(annotation["bbox"][2] * annotation["bbox"][3])
            keypoints[:, :2] += random.normal(0, random.choice([0.005, 0.02, 0.05]), (len(keypoints), 2)) * size
            results.append(
                {
                    "image_id": annotation["image_id"],
                    "category_id": annotation["category_id"],
                    "keypoints": keypoints.reshape(-1).tolist(),
                    "score": round(float(random.uniform()), 1),
                }
            )
    return results
