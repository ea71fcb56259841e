"""CrowdPose's evaluation written down once more, from its description and as plainly as possible: loops over lists.

It shares no code with the evaluation under test.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

OKS_THRESHOLDS = [0.5 + 0.05 * step for step in range(10)]
# The code's own floating-point numbers: with 100 persons a recall lies on a point, or just below it.
RECALL_POINTS = np.linspace(0.0, 1.0, 101).tolist()
MAX_DETECTIONS = 20


def crowdpose_figures(
    ground_truth: dict[str, Any], results: list[dict[str, Any]], sigmas: tuple[float, ...]
) -> dict[str, float]:
    """The nine figures in percent, NaN where there is nobody to find."""
    crowd_index = {image["id"]: image["crowdIndex"] for image in ground_truth["images"]}
    subsets = {
        "": list(crowd_index),
        "E": [image for image, value in crowd_index.items() if value < 0.2],
        "M": [image for image, value in crowd_index.items() if 0.2 <= value < 0.8],
        "H": [image for image, value in crowd_index.items() if value >= 0.8],
    }
    curves = {
        (subset, index): _precision_and_recall(ground_truth, results, sigmas, sorted(images), threshold)
        for subset, images in subsets.items()
        for index, threshold in enumerate(OKS_THRESHOLDS)
    }

    def mean(subset: str, which: int, indices: range) -> float:
        values = [curves[subset, index][which] for index in indices]
        return math.nan if math.isnan(values[0]) else 100 * sum(values) / len(values)

    everything, at_50, at_75 = range(10), range(0, 1), range(5, 6)
    return {
        "AP": mean("", 0, everything), "AP50": mean("", 0, at_50), "AP75": mean("", 0, at_75),
        "APE": mean("E", 0, everything), "APM": mean("M", 0, everything), "APH": mean("H", 0, everything),
        "AR": mean("", 1, everything), "AR50": mean("", 1, at_50), "AR75": mean("", 1, at_75),
    }  # fmt: skip


def object_keypoint_similarity(detection: dict[str, Any], person: dict[str, Any], sigmas: tuple[float, ...]) -> float:
    """Mean over the labeled keypoints of exp(-d² / (2 area (2 sigma)²)); the area is 0.53 of the person's box.

    A person without a labeled keypoint is compared by the distance of each keypoint to its box, enlarged by its own
    size on every side.
    """
    x, y, width, height = person["bbox"]
    area = 0.53 * width * height
    terms = []
    num_labeled = sum(visibility > 0 for visibility in person["keypoints"][2::3])
    for keypoint, sigma in enumerate(sigmas):
        found_x, found_y = detection["keypoints"][3 * keypoint : 3 * keypoint + 2]
        true_x, true_y, visibility = person["keypoints"][3 * keypoint : 3 * keypoint + 3]
        if num_labeled and visibility == 0:
            continue
        if num_labeled:
            squared = (found_x - true_x) ** 2 + (found_y - true_y) ** 2
        else:
            beside = max(0.0, x - width - found_x, found_x - (x + 2 * width))
            above = max(0.0, y - height - found_y, found_y - (y + 2 * height))
            squared = beside**2 + above**2
        terms.append(math.exp(-squared / (2 * area * (2 * sigma) ** 2)))
    return sum(terms) / len(terms)


def _precision_and_recall(
    ground_truth: dict[str, Any],
    results: list[dict[str, Any]],
    sigmas: tuple[float, ...],
    images: list[Any],
    threshold: float,
) -> tuple[float, float]:
    """Mean of the interpolated precision at 101 recalls, and the greatest recall."""
    outcomes: list[tuple[float, bool]] = []  # score, whether it is a hit; ignored detections are in neither
    num_persons = 0
    for image in images:
        persons = [person for person in ground_truth["annotations"] if person["image_id"] == image]
        num_persons += sum(not _is_ignored(person) for person in persons)
        best_first = sorted((result for result in results if result["image_id"] == image), key=lambda r: -r["score"])
        outcomes += _match(best_first[:MAX_DETECTIONS], persons, sigmas, threshold)
    if num_persons == 0:
        return math.nan, math.nan
    outcomes.sort(key=lambda outcome: -outcome[0])  # stable: equal scores stay in the order of the images
    precisions, recalls, hits = [], [], 0
    for rank, (_, is_hit) in enumerate(outcomes, start=1):
        hits += is_hit
        precisions.append(hits / rank)
        recalls.append(hits / num_persons)
    interpolated = [
        max((precision for precision, recall in zip(precisions, recalls, strict=True) if recall >= point), default=0.0)
        for point in RECALL_POINTS
    ]
    return sum(interpolated) / len(interpolated), recalls[-1] if recalls else 0.0


def _is_ignored(person: dict[str, Any]) -> bool:
    return person["num_keypoints"] == 0 or person.get("iscrowd", 0) == 1


def _match(
    detections: list[dict[str, Any]], persons: list[dict[str, Any]], sigmas: tuple[float, ...], threshold: float
) -> list[tuple[float, bool]]:
    """Each detection, best first, takes the most similar person that is left: an ignored one only where no other fits.

    A crowd region may be taken by any number of detections. A detection that takes an ignored person is not counted.
    """
    taken: set[int] = set()
    outcomes = []
    for detection in detections:
        choice = None
        for ignored in (False, True):
            candidates = [
                (object_keypoint_similarity(detection, person, sigmas), index)
                for index, person in enumerate(persons)
                if _is_ignored(person) == ignored and (index not in taken or person.get("iscrowd", 0) == 1)
            ]
            fitting = [candidate for candidate in candidates if candidate[0] >= threshold]
            if fitting:
                choice = max(fitting)[1]
                break
        if choice is None:
            outcomes.append((detection["score"], False))
            continue
        taken.add(choice)
        if not _is_ignored(persons[choice]):
            outcomes.append((detection["score"], True))
    return outcomes
