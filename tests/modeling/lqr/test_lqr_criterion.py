"""Owners of cells, labels and losses, against loops over persons and cells, and against pycocotools."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor

from querypose.d2 import Boxes, Instances, Keypoints
from querypose.modeling.lqr.criterion import LQRCriterion, displacement_targets, object_keypoint_similarity
from querypose.modeling.lqr.pose_queries import PoseScores
from querypose.modeling.lqr.regions import Regions, gaussian_labels, valid_cells
from querypose.modeling.targets import PersonTargets
from querypose.skeleton import COCO_SKELETON

K = COCO_SKELETON.num_keypoints
SIZE = (120, 160)
H, W = 30, 40
WEIGHTS = {"loss_score": 1.0, "loss_offset": 1.0, "loss_quality": 1.0}


def persons_at(centers: list[tuple[float, float]]) -> Instances:
    """Persons whose labeled keypoints have their mean at given cells."""
    generator = torch.Generator().manual_seed(len(centers))
    cells_GKD = torch.randn(len(centers), K, 2, generator=generator, dtype=torch.float64) * 3
    cells_GKD = cells_GKD - cells_GKD.mean(1, keepdim=True) + torch.tensor(centers, dtype=torch.float64).view(-1, 1, 2)
    persons = Instances(SIZE)
    visibility_GK1 = torch.full((len(centers), K, 1), 2.0, dtype=torch.float64)
    persons.gt_keypoints = Keypoints(torch.zeros(len(centers), K, 3))  # which rounds to float32
    persons.gt_keypoints.tensor = torch.cat([4 * cells_GKD + 0.5, visibility_GK1], dim=-1)
    persons.gt_boxes = Boxes(torch.zeros(len(centers), 4))
    return persons


def regions_of(
    instances: list[Instances],
    areas: list[list[float]],
    masks: list[Tensor | None] | None = None,
    is_large: list[list[bool]] | None = None,
    radius: float = 4.0,
) -> Regions:
    persons = PersonTargets.from_instances(instances, K, torch.device("cpu"), torch.float64)
    area_BG = torch.zeros(persons.boxes_BG4.shape[:2], dtype=torch.float64)
    is_large_BG = torch.zeros(area_BG.shape, dtype=torch.bool)
    for index, of_image in enumerate(areas):
        area_BG[index, : len(of_image)] = torch.tensor(of_image)
        is_large_BG[index, : len(of_image)] = torch.tensor(is_large[index] if is_large else [True] * len(of_image))
    samples = [(SIZE, mask) for mask in masks or [None] * len(instances)]
    return Regions.of_persons(persons, area_BG, is_large_BG, valid_cells(samples, H, W), radius)


def owners(regions: Regions) -> np.ndarray:
    """The owner of every cell (B, H, W), -1 where there is none."""
    owner = np.full(regions.is_supervised_BHW.shape, -1)
    for b, g, n in regions.is_owned_BGN.nonzero().tolist():
        x, y = regions.position_BGND[b, g, n].long().tolist()
        assert owner[b, y, x] == -1
        owner[b, y, x] = g
    return owner


def criterion(**options: Any) -> LQRCriterion:
    arguments: dict[str, Any] = {"label": "cir", "background_weight": 0.1, "weights": WEIGHTS} | options
    return LQRCriterion(skeleton=COCO_SKELETON, **arguments).double()


def counts(regions: Regions) -> dict[str, Tensor]:
    return {"cells": regions.num_scored().double(), "coordinates": regions.num_coordinates().double()}


def perfect_displacements(regions: Regions) -> Tensor:
    """(B, K, D, H, W): at every owned cell the way to its owner's keypoints."""
    keypoint_BKDHW = torch.full((len(regions.area_BG), K, 2, H, W), 77.0, dtype=torch.float64)
    target_BGNKD = displacement_targets(regions)
    for b, g, n in regions.is_owned_BGN.nonzero().tolist():
        x, y = regions.position_BGND[b, g, n].long().tolist()
        keypoint_BKDHW[b, :, :, y, x] = target_BGNKD[b, g, n]
    return keypoint_BKDHW


def test_smaller_persons_own_what_regions_share_and_among_equals_the_later() -> None:
    centers = [(10.1, 10.2), (13.2, 11.1), (8.6, 12.3), (35.9, 29.4)]
    areas = [900.0, 400.0, 400.0, 50.0]
    owner = owners(regions_of([persons_at(centers)], [areas]))[0]
    for y in range(H):
        for x in range(W):
            near = [g for g, (cx, cy) in enumerate(centers) if math.hypot(x - cx, y - cy) < 4]
            assert owner[y, x] == min(near, key=lambda g: (areas[g], -g), default=-1)
    assert 30 < (owner == 1).sum() < (owner >= 0).sum()


def test_order_of_persons_changes_no_owner() -> None:
    centers, areas = [(10.0, 10.0), (13.2, 11.1), (8.6, 12.3)], [900.0, 400.0, 300.0]
    persons = persons_at(centers)
    order = [2, 0, 1]
    first = owners(regions_of([persons], [areas]))
    second = owners(regions_of([persons[torch.tensor(order)]], [[areas[index] for index in order]]))
    renamed = np.where(second >= 0, np.array([*order])[second], -1)
    assert (first == renamed).all()


def test_who_is_trained_on() -> None:
    """Small persons are background; about those whose keypoints all lie outside no score is learned."""
    persons = persons_at([(10.0, 10.0), (20.0, 10.0), (10.0, 20.0), (20.0, 20.0), (41.0, 10.0)])
    keypoints = persons.gt_keypoints.tensor
    keypoints[1, :, 2] = 0
    keypoints[1, :, :2] = torch.nan
    # Keypoints on both sides of the image, their mean inside.
    sign = torch.where(torch.arange(K) % 2 == 0, -1.0, 1.0)[:-1]
    keypoints[2, :-1, 0] = 40.5 + 800 * sign
    keypoints[2, -1, 2] = 0
    regions = regions_of([persons], [[100.0] * 5], is_large=[[True, True, True, False, True]])
    assert regions.is_positive_BG.tolist() == [[True, False, False, False, False]]
    unclear = ~regions.is_supervised_BHW[0]
    x, y = unclear.nonzero()[:, 1].double(), unclear.nonzero()[:, 0].double()
    assert unclear.sum() > 40
    assert (((x - 10) ** 2 + (y - regions.center_BGD[0, 2, 1]) ** 2) < 16).all()
    assert regions.is_scored_BGN[0, 0].sum() == regions.is_owned_BGN[0, 0].sum() > 40


def test_keypoints_outside_count_for_the_center_alone() -> None:
    persons = persons_at([(10.0, 10.0)])
    persons.gt_keypoints.tensor[0, 0, 0] = -4.0
    regions = regions_of([persons], [[100.0]])
    assert not regions.labeled_BGK[0, 0, 0]
    assert regions.labeled_BGK[0, 0, 1:].all()
    mean = (persons.gt_keypoints.tensor[0, :, 0].mean() - 0.5) / 4
    torch.testing.assert_close(regions.center_BGD[0, 0, 0], mean)
    assert regions.num_coordinates() == 2 * (K - 1) * regions.is_owned_BGN.sum()


def test_masked_cells_count_for_offsets_but_not_for_scores() -> None:
    mask = torch.ones(SIZE, dtype=torch.bool)
    mask[:, : 4 * 10] = False
    regions = regions_of([persons_at([(10.0, 10.0)])], [[100.0]], [mask])
    free = regions_of([persons_at([(10.0, 10.0)])], [[100.0]])
    assert 0 < regions.num_scored() < free.num_scored()
    assert regions.num_coordinates() == free.num_coordinates()
    score_BHW = torch.where(mask[::4, ::4], 0.0, 1e6)[None].double()
    losses = [
        criterion()(perfect_displacements(regions), PoseScores(scores), regions, counts(regions))
        for scores in (score_BHW, torch.zeros(1, H, W, dtype=torch.float64))
    ]
    assert losses[0]["loss_score"] == losses[1]["loss_score"] > 0


def test_annotations_as_predictions_lose_nothing_and_have_label_1() -> None:
    persons = persons_at([(10.0, 10.0), (13.0, 11.0), (30.0, 20.0)])
    persons.gt_keypoints.tensor[0, 3:9, 2] = 0
    regions = regions_of([persons], [[900.0, 400.0, 100.0]])
    keypoint_BKDHW = perfect_displacements(regions)
    error = regions.at_cells(keypoint_BKDHW) - displacement_targets(regions)
    owned = regions.is_owned_BGN
    oks_BGN = object_keypoint_similarity(error, regions, criterion().sigma_K)
    torch.testing.assert_close(oks_BGN[owned], torch.ones_like(oks_BGN[owned]))
    label_BHW, is_foreground_BHW = criterion().score_labels(oks_BGN, regions)
    assert (label_BHW.bool() == is_foreground_BHW).all()
    assert (is_foreground_BHW.numpy() == (owners(regions) >= 0)).all()
    losses = criterion()(keypoint_BKDHW, PoseScores(label_BHW), regions, counts(regions))
    assert losses["loss_offset"] == 0
    assert losses["loss_score"] == 0


def test_losses_are_those_of_a_loop_over_cells() -> None:
    generator = torch.Generator().manual_seed(3)
    instances = [persons_at([(10.0, 10.0), (13.0, 11.0)]), persons_at([(30.0, 20.0)])]
    instances[0].gt_keypoints.tensor[0, 3:9, 2] = 0
    regions = regions_of(instances, [[900.0, 400.0], [100.0]])
    keypoint_BKDHW = 3 * torch.randn(2, K, 2, H, W, generator=generator, dtype=torch.float64)
    score_BHW, quality_BHW = torch.randn(2, 2, H, W, generator=generator, dtype=torch.float64)
    losses = criterion()(keypoint_BKDHW, PoseScores(score_BHW, quality_BHW), regions, counts(regions))
    owner = owners(regions)
    score = offset = quality = num_cells = num_coordinates = 0.0
    for b, y, x in np.ndindex(2, H, W):
        if owner[b, y, x] < 0:
            score += 0.1 * score_BHW[b, y, x].item() ** 2
            continue
        g, oks, num_labeled = owner[b, y, x], 0.0, 0
        for k in range(K):
            if not regions.labeled_BGK[b, g, k]:
                continue
            num_labeled += 1
            error = keypoint_BKDHW[b, k, :, y, x] + torch.tensor([x, y]) - regions.keypoints_BGKD[b, g, k]
            area = [[900.0, 400.0], [100.0]][b][g] / 16
            oks += math.exp(-error.square().sum().item() / (2 * area * (2 * COCO_SKELETON.sigmas[k]) ** 2))
            offset += sum(0.5 * e * e if abs(e) < 1 else abs(e) - 0.5 for e in error.tolist())
        score += (score_BHW[b, y, x].item() - oks / num_labeled) ** 2
        quality += (quality_BHW[b, y, x].item() - oks / num_labeled) ** 2
        num_cells += 1
        num_coordinates += 2 * num_labeled
    assert losses["loss_score"].item() == pytest.approx(score / num_cells, rel=1e-6)
    assert losses["loss_offset"].item() == pytest.approx(offset / (num_coordinates + 1e-4), rel=1e-9)
    assert losses["loss_quality"].item() == pytest.approx(quality / num_cells, rel=1e-6)


def test_labels_are_the_oks_of_pycocotools() -> None:
    generator = torch.Generator().manual_seed(0)
    persons = persons_at([(10.0, 12.0), (30.0, 15.0)])
    persons.gt_keypoints.tensor[1, 5:11, 2] = 0
    areas = [1500.0, 800.0]
    regions = regions_of([persons], [areas])
    noise = torch.randn(1, K, 2, H, W, generator=generator, dtype=torch.float64)
    keypoint_BKDHW = perfect_displacements(regions) + noise
    error = regions.at_cells(keypoint_BKDHW) - displacement_targets(regions)
    oks_BGN = object_keypoint_similarity(error, regions, criterion().sigma_K)
    # In file pixels, as COCO's json has them: indices.
    keypoints = persons.gt_keypoints.tensor.clone()
    keypoints[..., :2] -= 0.5
    for g in range(2):
        cells = regions.is_owned_BGN[0, g].nonzero()[:, 0].tolist()[::7]
        poses = []
        for n in cells:
            x, y = regions.position_BGND[0, g, n].long().tolist()
            pose_KD = 4 * (keypoint_BKDHW[0, :, :, y, x] + torch.tensor([x, y]))
            poses.append(torch.cat([pose_KD, torch.ones(K, 1)], dim=1).flatten().tolist())
        found = coco_oks(keypoints[g].flatten().tolist(), areas[g], poses)
        np.testing.assert_allclose(oks_BGN[0, g, cells], found, atol=1e-6)
        assert 0.01 < found.mean() < 0.99


def coco_oks(keypoints: list[float], area: float, poses: list[list[float]]) -> np.ndarray:
    """The OKS of poses with one person, by pycocotools."""
    truth, found = COCO(), COCO()
    base = {"image_id": 1, "category_id": 1, "bbox": [0, 0, 50, 50], "area": area, "iscrowd": 0}
    for coco, objects in (
        (truth, [{**base, "id": 1, "keypoints": keypoints, "num_keypoints": K}]),
        (found, [{**base, "id": i + 1, "keypoints": pose, "score": 1 - i / 99} for i, pose in enumerate(poses)]),
    ):
        coco.dataset = {"images": [{"id": 1}], "categories": [{"id": 1}], "annotations": objects}
        coco.createIndex()
    evaluation = COCOeval(truth, found, "keypoints")
    evaluation.params.imgIds, evaluation.params.catIds = [1], [1]
    evaluation._prepare()
    return np.asarray(evaluation.computeOks(1, 1))[:, 0]


def test_the_label_has_no_gradient_of_its_own() -> None:
    regions = regions_of([persons_at([(10.0, 10.0)])], [[400.0]])
    keypoint_BKDHW = torch.randn(1, K, 2, H, W, dtype=torch.float64, requires_grad=True)
    scores = PoseScores(torch.zeros(1, H, W, dtype=torch.float64, requires_grad=True))
    losses = criterion()(keypoint_BKDHW, scores, regions, counts(regions))
    (gradient,) = torch.autograd.grad(losses["loss_score"], keypoint_BKDHW, allow_unused=True)
    assert gradient is None


def test_gaussians_are_drawn_in_their_windows() -> None:
    centers = [(10.3, 12.1), (30.2, 15.7)]
    label_BHW, is_drawn_BHW = gaussian_labels(regions_of([persons_at(centers)], [[400.0, 900.0]]))
    expected, drawn = np.zeros((H, W)), np.zeros((H, W), dtype=bool)
    for cx, cy in centers:
        for y in range(max(math.floor(cy - 13), 0), min(math.ceil(cy + 14), H)):
            for x in range(max(math.floor(cx - 13), 0), min(math.ceil(cx + 14), W)):
                expected[y, x] = max(expected[y, x], math.exp(-((x - cx) ** 2 + (y - cy) ** 2) / 32))
                drawn[y, x] = True
    np.testing.assert_allclose(label_BHW[0], expected, atol=1e-12)
    assert (is_drawn_BHW[0].numpy() == drawn).all()


def test_discrete_labels_are_1_in_all_regions() -> None:
    regions = regions_of([persons_at([(10.0, 10.0)])], [[400.0]])
    label_BHW, is_foreground_BHW = criterion(label="discrete").score_labels(torch.rand(regions.cell_BGN.shape), regions)
    assert (label_BHW.bool() == is_foreground_BHW).all()
    assert label_BHW.sum() == regions.num_scored()


@pytest.mark.parametrize("label", ["cir", "gaussian", "discrete"])
def test_nobody_leaves_the_background(label: Any) -> None:
    regions = regions_of([persons_at([]), persons_at([])], [[], []])
    score_BHW = torch.ones(2, H, W, dtype=torch.float64)
    zero = torch.zeros(2, K, 2, H, W, dtype=torch.float64)
    losses = criterion(label=label)(zero, PoseScores(score_BHW), regions, counts(regions))
    assert losses["loss_score"].item() == pytest.approx(0.1 * 2 * H * W)
    assert losses["loss_offset"] == 0


def test_only_crowds_leave_nothing() -> None:
    mask = torch.zeros(SIZE, dtype=torch.bool)
    regions = regions_of([persons_at([(10.0, 10.0)])], [[400.0]], [mask])
    losses = criterion()(
        perfect_displacements(regions), PoseScores(torch.ones(1, H, W, dtype=torch.float64)), regions, counts(regions)
    )
    assert losses["loss_score"] == 0
    assert regions.num_scored() == 0
