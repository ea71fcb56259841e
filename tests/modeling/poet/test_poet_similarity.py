"""POET's loss of OKS, in closed form."""

from __future__ import annotations

import math

import pytest
import torch

from querypose.modeling.poet.criterion import QueryOutputs
from querypose.modeling.poet.pose_vector import PoseVector
from querypose.modeling.poet.similarity_loss import SimilarityLoss
from querypose.modeling.pose_similarity import AREA_OF_BOX
from querypose.modeling.targets import Matches, PersonTargets
from querypose.skeleton import COCO_SKELETON

K = COCO_SKELETON.num_keypoints
PERSONS = {"persons": torch.tensor(1.0, dtype=torch.float64)}


@pytest.mark.parametrize("num_layers", [1, 3])
def test_one_minus_oks_of_the_matched_queries_of_every_layer(num_layers: int) -> None:
    center, offset = torch.rand(num_layers, 1, 2, 2), torch.rand(num_layers, 1, 2, K, 2) - 0.5
    offset.requires_grad_()
    poses = PoseVector(center, offset, torch.ones(num_layers, 1, 2, K))
    size = torch.tensor([100.0, 60.0])
    shift = torch.tensor([3.0, -4.0])
    truth = (center[0, 0, 1] + offset[0, 0, 1]).detach() * size
    if num_layers > 1:  # the later layers predict what the first does
        poses = PoseVector(*(value[:1].expand(num_layers, *value.shape[1:]) for value in vars(poses).values()))
    labeled = torch.arange(K) < 5
    truth[~labeled] = float("nan")
    persons = PersonTargets(
        boxes_BG4=torch.tensor([[[0.0, 0.0, 40.0, 50.0]]]),
        keypoints_BGKD=(truth + shift)[None, None],
        labelled_BGK=labeled[None, None],
        counts=(1,),
        image_size_B4=size.repeat(2)[None],
        visible_BGK=labeled[None, None],
    )
    zero, one = torch.zeros(1, dtype=torch.long), torch.ones(1, dtype=torch.long)
    outputs = QueryOutputs(torch.zeros(num_layers, 1, 2, 2), poses)
    loss = SimilarityLoss(COCO_SKELETON, oks_weight=2.0)(
        outputs=outputs,
        matches_S=[Matches(zero, one, zero, zero, is_complete=True)] * num_layers,
        persons=persons,
        normalizers=PERSONS,
    )
    area = AREA_OF_BOX * 40 * 50
    oks = sum(math.exp(-25 / (2 * area * (2 * sigma) ** 2)) for sigma in COCO_SKELETON.sigmas[:5]) / 5
    assert loss.item() == pytest.approx(2 * num_layers * (1 - oks), rel=1e-4)
    loss.backward()
    assert offset.grad is not None
    assert offset.grad.isfinite().all()
    assert offset.grad[0, 0, 1, :5].abs().sum() > 0
