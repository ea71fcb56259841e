"""Why is my AP 0? Checks of a config, its labels and its model, each with a verdict and the next step.

A check is a registered function from a `Case` to a `Finding`; a user's own are added like these:

    @CHECK_REGISTRY.register()
    def night_photos(case: Case) -> Finding:
        ...

Those that look at labels are here, those that train for some minutes in `querypose.analysis.doctor_training`. They know
no model by name. An error in one check is that check's finding and does not stop the others.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from querypose.analysis.ceiling import ceilings
from querypose.d2 import CfgNode, Registry
from querypose.data import build_pipeline, dataset_annotations
from querypose.data.coco import PoseAnnotations
from querypose.data.image_checks import CHECKS
from querypose.data.loading import Samples
from querypose.data.problems import errors_of, summarize
from querypose.data.training_order import Draw
from querypose.engine.dataset_check import validate_datasets
from querypose.skeleton import Skeleton, skeleton_of_datasets
from querypose.visualization import draw_sample, image_grid

Verdict = Literal["good", "unclear", "bad", "failed", "skipped"]

CHECK_REGISTRY = Registry("CHECK")
CHECK_REGISTRY.__doc__ = "Checks that tools/doctor.py makes, in this order."

_NUM_SAMPLES = 48
_NUM_PICTURES = 12
# OKS of an error of one pixel: below the first an AP is hardly possible, below the second it is hard.
_TINY_OKS, _SMALL_OKS = 0.8, 0.93
# Asymmetry of mean distances between keypoints, as a share of a person's size: that of no body, and that which chance
# (24 persons: 0.04) hardly reaches, and which counts where another pair takes a fifth of it away.
_NO_BODY, _HARDLY_CHANCE, _BETTER = 0.12, 0.045, 0.8
_MANY_TURNED = 0.15  # share of persons whose pairs disagree about where the left is


@dataclass(frozen=True)
class Finding:
    """What a check has found.

    Attributes:
        verdict: "good"; "bad": it explains a low AP; "unclear": look at it; "failed": the check ended with an error;
            "skipped": it needs something that is not there.
        text: what was measured, in a sentence or more.
        advice: what to do next; "" where there is nothing to do.
        table: heads and rows, if any.
        picture: (H, W, 3) uint8 RGB, if any.
    """

    verdict: Verdict
    text: str
    advice: str = ""
    table: Sequence[Sequence[str]] = ()
    picture: NDArray[np.uint8] | None = None


@dataclass
class Case:
    """What is examined: a config, and what checks need of it, made when the first one asks.

    Attributes:
        cfg: of the training.
        minutes: that the checks may train, all together.
        seed: of everything random.
    """

    cfg: CfgNode
    minutes: float = 3.0
    seed: int = 0
    shared: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def skeleton(self) -> Skeleton:
        return skeleton_of_datasets(self.cfg.DATASETS.TRAIN)

    @cached_property
    def train(self) -> PoseAnnotations:
        """The labels of the first of DATASETS.TRAIN."""
        return dataset_annotations(self.cfg.DATASETS.TRAIN[0]).require_sound()

    @cached_property
    def test(self) -> PoseAnnotations:
        """The labels of the first of DATASETS.TEST; of the training data where nothing is evaluated."""
        names = self.cfg.DATASETS.TEST
        return dataset_annotations(names[0]).require_sound() if names else self.train

    @cached_property
    def samples(self) -> list[dict[str, Any]]:
        """Some samples as the model gets them in training, drawn at random."""
        return draw_samples(self.cfg, _NUM_SAMPLES, self.seed)

    @cached_property
    def scale(self) -> float:
        """Pixels of the model's input a pixel of the files, median over `samples`."""
        return float(np.median([abs(np.linalg.det(sample["frame"].matrix[:, :2])) ** 0.5 for sample in self.samples]))


def draw_samples(cfg: CfgNode, count: int, seed: int) -> list[dict[str, Any]]:
    """Samples of DATASETS.TRAIN as training has them, of different records."""
    pipeline = build_pipeline(cfg, is_train=True)
    records = pipeline.records(cfg.DATASETS.TRAIN)
    chosen = np.random.default_rng(seed).permutation(len(records))[:count].tolist()
    samples = Samples([records[index] for index in chosen], pipeline, cfg.DATALOADER.MAX_BAD_IMAGES)
    return [samples[Draw(index, (seed, index))] for index in range(len(samples))]


def examine(case: Case, only: Sequence[str] = ()) -> Iterator[tuple[str, Finding, float]]:
    """Makes the checks one after the other; gives the name of each, its finding, and its seconds.

    Args:
        case: to examine.
        only: names of checks; by default all.
    """
    for name in only or [name for name, _ in CHECK_REGISTRY]:
        check: Callable[[Case], Finding] = CHECK_REGISTRY.get(name)
        start = time.perf_counter()
        try:
            finding = check(case)
        except Exception as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            finding = Finding(
                "failed",
                f"{type(error).__name__}: {error}",
                f"The check ended at {Path(where.filename).name}:{where.lineno}. If the message above names a mistake "
                "in config or data, mend that first; the other checks may depend on it.",
            )
        yield name, finding, time.perf_counter() - start


@CHECK_REGISTRY.register()
def files(case: Case) -> Finding:
    """Annotations and images: what tools/check_dataset.py finds."""
    cfg = case.cfg
    depth = CHECKS["files"]
    assert depth is not None
    problems = validate_datasets(list(cfg.DATASETS.TRAIN), list(cfg.DATASETS.TEST), depth, cfg.TEST.METRICS)
    lines = "; ".join(summarize(problems, num_examples=1))
    if errors_of(problems):
        return Finding("bad", lines, "Correct these errors first: tools/check_dataset.py lists all of them.")
    if problems:
        return Finding("unclear", lines, "Look at tools/check_dataset.py --images pixels.")
    return Finding("good", f"{len(case.train.image_ids)} images and {len(case.train.ids)} persons to train on.")


@CHECK_REGISTRY.register()
def labels(case: Case) -> Finding:
    """Labels drawn on the pictures that the model gets."""
    pictures = [_with_sides(sample, case) for sample in case.samples[:_NUM_PICTURES]]
    num_persons = [len(sample["instances"]) for sample in case.samples]
    is_empty = np.array(num_persons) == 0
    picture = image_grid(pictures, cell_size=(300, 240))
    text = (
        f"Samples after augmentation, with {np.mean(num_persons):.1f} persons each. Check by eye: skeletons lie on the "
        "persons, and the red dots are on each person's own left, in mirrored pictures too."
    )
    if is_empty.mean() > 0.3:
        advice = "Crop less (INPUT.CROP), or check that boxes and keypoints lie in the images."
        return Finding("bad", f"{text} {is_empty.mean():.0%} of the samples have nobody.", advice, picture=picture)
    return Finding("good", text, picture=picture)


@CHECK_REGISTRY.register()
def boxes(case: Case) -> Finding:
    """The convention of the boxes: COCO's is x, y, width, height of the upper left corner."""
    annotations = case.train
    labels_NK3 = annotations.keypoints
    is_used_N = ~annotations.is_crowd & ((labels_NK3[..., 2] > 0).sum(axis=1) >= 2)
    if not is_used_N.any():
        return Finding("bad", "No person has two labeled keypoints.", "Nothing can be learned from these labels.")
    numbers_N4, labels_NK3 = annotations.boxes_xywh[is_used_N], labels_NK3[is_used_N]
    is_labeled_NK1 = labels_NK3[..., 2:] > 0
    low_N2 = np.where(is_labeled_NK1, labels_NK3[..., :2], np.inf).min(axis=1)
    high_N2 = np.where(is_labeled_NK1, labels_NK3[..., :2], -np.inf).max(axis=1)
    first_N2, second_N2 = numbers_N4[:, :2], numbers_N4[:, 2:]
    readings = {
        "x, y, width, height": (first_N2, first_N2 + second_N2),
        "x1, y1, x2, y2": (first_N2, second_N2),
        "center x, center y, width, height": (first_N2 - second_N2 / 2, first_N2 + second_N2 / 2),
    }
    overlaps = {name: float(np.median(_iou(*corners, low_N2, high_N2))) for name, corners in readings.items()}
    table = [
        ["read as", "median IoU with the keypoints' extent"],
        *([name, f"{v:.2f}"] for name, v in overlaps.items()),
    ]
    best = max(overlaps, key=lambda name: overlaps[name])
    own = overlaps["x, y, width, height"]
    if overlaps[best] > own + 0.1:
        return Finding(
            "bad", f"The boxes fit the keypoints when they are read as {best}.",
            "Write bbox as x, y (upper left corner), width, height.", table,
        )  # fmt: skip
    if own < 0.3:
        advice = (
            "Compare some boxes with the pictures: other units, another size of the images, boxes of other persons?"
        )
        return Finding("bad", "The boxes do not fit the keypoints, however they are read.", advice, table)
    return Finding("good", "The boxes fit the keypoints as x, y, width, height.", table=table)


@CHECK_REGISTRY.register()
def areas(case: Case) -> Finding:
    """Areas, by which OKS forgives errors: COCO's are those of the person's mask, about half of the box."""
    annotations = case.test
    is_person_N = ~annotations.is_crowd
    given_N, box_N = annotations.areas[is_person_N], annotations.boxes_xywh[is_person_N, 2:].prod(axis=1)
    if not len(given_N):
        return Finding("bad", "There is nobody to evaluate on.", "Check DATASETS.TEST.")
    missing = np.isnan(given_N).mean()
    share_N = (given_N / np.maximum(box_N, 1e-9))[~np.isnan(given_N)]
    if len(share_N) and (share_N < 0.02).mean() > 0.05:
        return Finding(
            "bad", f"{(share_N < 0.02).mean():.0%} of the persons have an area of under 2 % of their box.",
            "OKS forgives them nothing. Write the pixels of the person into area, or leave the field out.",
        )  # fmt: skip
    if missing:
        return Finding(
            "unclear", f"{missing:.0%} of the persons of {annotations.path} have no area. 0.53 of the box stands in.",
            "Other programs give such persons the area 0, or none. Compare AP only with those that do the same.",
        )  # fmt: skip
    middle = float(np.median(share_N))
    text = f"Areas are {middle:.2f} of the boxes (COCO: 0.53)."
    if not 0.2 < middle <= 1.02:
        return Finding("bad", text, "Check the unit of area: pixels of the file's image, not of a resized one.")
    if middle > 0.85:
        return Finding(
            "unclear", text, "Areas of boxes forgive more than those of masks: AP is not comparable with COCO's."
        )
    return Finding("good", text)


@CHECK_REGISTRY.register()
def flip_pairs(case: Case) -> Finding:
    """Flip pairs against geometry: a mirror keeps the mean distances between the keypoints of a body."""
    annotations, skeleton = case.train, case.skeleton
    labels_NK3 = annotations.keypoints[~annotations.is_crowd]
    size_N = np.sqrt(np.maximum(annotations.boxes_xywh[~annotations.is_crowd, 2:].prod(axis=1), 1e-9))
    mean_KK, num_KK = _mean_distances(labels_NK3[..., :2] / size_N[:, None, None], labels_NK3[..., 2] > 0)
    if (num_KK[~np.eye(len(num_KK), dtype=bool)] < 10).mean() > 0.5:
        return Finding("unclear", "Fewer than ten persons have the same two keypoints: too few to tell.")
    asymmetry_K = _asymmetry(mean_KK, num_KK, skeleton.flip_indices)
    worst = np.argsort(-asymmetry_K)
    rows = [
        [skeleton.keypoints[k], skeleton.keypoints[skeleton.flip_indices[k]], f"{asymmetry_K[k]:.3f}"]
        for k in worst[:6]
    ]
    table = [["keypoint", "becomes in a mirror", "asymmetry"], *rows]
    better = _better_pairs(mean_KK, num_KK, skeleton)
    if asymmetry_K[worst[0]] > (_HARDLY_CHANCE if better else _NO_BODY):
        names = [skeleton.keypoints[k] for k in worst if asymmetry_K[k] > 0.7 * asymmetry_K[worst[0]]]
        return Finding(
            "bad", f"A mirror does not map the body onto itself: {', '.join(names)} are not where their partners are.",
            "Every mirrored picture teaches the wrong labels. Correct flip_pairs of the skeleton, or the order of its "
            f"keypoints{f'; {better} would fit better' if better else ''}.", table,
        )  # fmt: skip
    turned = _share_turned(labels_NK3, size_N, skeleton)
    text = (
        f"Mirrored bodies fit (asymmetry at most {asymmetry_K[worst[0]]:.3f}); within {turned:.0%} of the persons left "
        "and right disagree."
    )
    if turned > _MANY_TURNED:
        return Finding(
            "unclear", text,
            "Shoulders say that a person faces the camera, hips that it does not. Twisted people, or labels whose left "
            "is sometimes the viewer's: look at the pictures.", table,
        )  # fmt: skip
    return Finding("good", text, table=table)


@CHECK_REGISTRY.register()
def person_size(case: Case) -> Finding:
    """Size of the persons at the model's input, and what an error of one pixel there costs."""
    sizes = [np.sqrt(sample["instances"].gt_areas.numpy()) for sample in case.samples]
    size = float(np.median(np.concatenate(sizes)))
    sigmas_K = np.array(case.skeleton.sigmas)
    pixels = (0.5, 1.0, 2.0, 4.0)
    oks = {p: float(np.exp(-(p**2) / (2 * size**2 * (2 * sigmas_K) ** 2)).mean()) for p in pixels}
    height, width = np.median([sample["image"].shape[1:] for sample in case.samples], axis=0)
    table = [["px off at the input", *(f"{p:g}" for p in pixels)], ["OKS", *(f"{100 * oks[p]:.0f} %" for p in pixels)]]
    text = (
        f"A person has {size:.0f} px (square root of the area, median) in inputs of about {height:.0f} x "
        f"{width:.0f}. One pixel off in every keypoint is an OKS of {100 * oks[1.0]:.0f} %."
    )
    advice = "Larger inputs (INPUT.MIN_SIZE_TRAIN and MIN_SIZE_TEST), crops, or images cut round the persons."
    if oks[1.0] < _TINY_OKS:
        return Finding("bad", text, f"The persons are too small for these sigmas. {advice}", table)
    if oks[1.0] < _SMALL_OKS:
        return Finding("unclear", text, f"AP needs errors below two pixels here. {advice}", table)
    return Finding("good", text, table=table)


@CHECK_REGISTRY.register()
def sigmas(case: Case) -> Finding:
    """Sigmas, by which OKS forgives errors a keypoint."""
    values = np.array(case.skeleton.sigmas)
    rows = [[name, f"{value:.3f}"] for name, value in zip(case.skeleton.keypoints, values, strict=True)]
    text = f"From {values.min():.3f} to {values.max():.3f} (COCO: 0.025 of eyes to 0.107 of hips)."
    if values.min() < 0.01 or values.max() > 0.3:
        advice = (
            "A sigma is the spread of annotators as a share of the person's size. Twice COCO's formula, or half of it?"
        )
        return Finding("bad", text, advice, [["keypoint", "sigma"], *rows])
    return Finding("good", text)


@CHECK_REGISTRY.register()
def ceiling(case: Case) -> Finding:
    """The most that a model with one fault can reach on these labels: what to mend first, and what AP to expect."""
    rows = ceilings(case.test, case.scale, case.seed)
    table = [["fault, else perfect", "AP", "AP50", "AP75", "mean OKS"]]
    table += [[row.fault, *(f"{value:.1f}" for value in (row.AP, row.AP50, row.AP75, row.OKS))] for row in rows]
    text = f"{case.test.path}, errors in pixels of the input ({case.scale:.2f} of the file's)."
    if not rows[0].AP > 99.5:
        advice = "Perfect predictions do not reach AP 100: check areas, num_keypoints and iscrowd of the labels."
        return Finding("bad", f"{text} The labels themselves reach AP {rows[0].AP:.1f}.", advice, table)
    return Finding("good", f"{text} AP is blind below a mean OKS of about 55 %: watch progress/OKS.", table=table)


def _with_sides(sample: dict[str, Any], case: Case) -> NDArray[np.uint8]:
    """The sample with its labels, the left keypoint of every flip pair red."""
    picture = Image.fromarray(draw_sample(sample, case.skeleton, case.cfg.INPUT.FORMAT))
    draw, radius = ImageDraw.Draw(picture), max(1.5, 0.012 * min(picture.size))
    for keypoints in sample["instances"].gt_keypoints.tensor.tolist():
        for left, _ in case.skeleton.flip_pairs:
            x, y, visibility = keypoints[left]
            if visibility > 0:
                draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=(230, 30, 30))
    return np.asarray(picture)


def _iou(
    low: NDArray[np.float64], high: NDArray[np.float64], low_2: NDArray[np.float64], high_2: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Of boxes by their corners (…, 2)."""
    common = np.clip(np.minimum(high, high_2) - np.maximum(low, low_2), 0, None).prod(axis=-1)
    union = np.clip(high - low, 0, None).prod(axis=-1) + np.clip(high_2 - low_2, 0, None).prod(axis=-1) - common
    return np.asarray(common / np.maximum(union, 1e-9))


def _mean_distances(
    xy_NK2: NDArray[np.float64], is_labeled_NK: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Between all keypoints, over the persons that have both (K, K), and how many these are."""
    K = xy_NK2.shape[1]
    mean_KK, num_KK = np.zeros((K, K)), np.zeros((K, K), np.int64)
    for k in range(K):
        both_NK = is_labeled_NK & is_labeled_NK[:, [k]]
        distances_NK = np.linalg.norm(xy_NK2 - xy_NK2[:, [k]], axis=-1)
        num_KK[k] = both_NK.sum(axis=0)
        mean_KK[k] = np.where(both_NK, distances_NK, 0).sum(axis=0) / np.maximum(num_KK[k], 1)
    return mean_KK, num_KK


def _asymmetry(mean_KK: NDArray[np.float64], num_KK: NDArray[np.int64], mirror: Sequence[int]) -> NDArray[np.float64]:
    """How much the distances of each keypoint change when all are exchanged as a mirror does (K)."""
    order = np.array(mirror)
    is_known_KK = (num_KK >= 10) & (num_KK[order][:, order] >= 10)
    change_KK = np.where(is_known_KK, np.abs(mean_KK - mean_KK[order][:, order]), 0)
    return np.asarray(change_KK.sum(axis=1) / np.maximum(is_known_KK.sum(axis=1), 1))


def _better_pairs(mean_KK: NDArray[np.float64], num_KK: NDArray[np.int64], skeleton: Skeleton) -> str:
    """The exchange of two partners after which the body is most symmetrical, in words; "" where none helps much."""
    mirror = list(skeleton.flip_indices)
    best, words = _BETTER * _asymmetry(mean_KK, num_KK, mirror).sum(), ""
    for a in range(len(mirror)):
        for b in range(a + 1, len(mirror)):
            other = _with_pair(mirror, a, b)
            total = _asymmetry(mean_KK, num_KK, other).sum()
            if total < best:
                best, words = total, f"[{skeleton.keypoints[a]}, {skeleton.keypoints[b]}]"
                left_over = [k for k in (mirror[a], mirror[b]) if k not in (a, b)]
                if len(left_over) == 2 and other[left_over[0]] == left_over[1]:
                    words += " and [{}, {}]".format(*(skeleton.keypoints[k] for k in left_over))
    return words


def _with_pair(mirror: Sequence[int], a: int, b: int) -> list[int]:
    """The permutation with a and b as partners, and their former partners as another pair."""
    result = list(mirror)
    c, d = mirror[a], mirror[b]
    result[a], result[b] = b, a
    for k in {c, d} - {a, b}:
        result[k] = k
    if len({a, b, c, d}) == 4:
        result[c], result[d] = d, c
    return result


def _share_turned(labels_NK3: NDArray[np.float64], size_N: NDArray[np.float64], skeleton: Skeleton) -> float:
    """The share of persons of whose pairs, where they are clearly apart, some have the left on another side."""
    if not skeleton.flip_pairs:
        return 0.0
    left, right = np.array(skeleton.flip_pairs).T
    apart_NP = (labels_NK3[:, left, 0] - labels_NK3[:, right, 0]) / size_N[:, None]
    is_clear_NP = (labels_NK3[:, left, 2] > 0) & (labels_NK3[:, right, 2] > 0) & (np.abs(apart_NP) > 0.15)
    has_left_N, has_right_N = ((is_clear_NP & (sign * apart_NP > 0)).sum(axis=1) for sign in (1, -1))
    is_known_N = is_clear_NP.sum(axis=1) >= 2
    turned_N = np.minimum(has_left_N, has_right_N) >= np.maximum(0.4 * is_clear_NP.sum(axis=1), 1)
    return float(turned_N[is_known_N].mean()) if is_known_N.any() else 0.0
