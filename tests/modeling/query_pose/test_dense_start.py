"""The dense start: its targets in closed form, its peaks, and what it learns."""

from __future__ import annotations

import pytest
import torch

from querypose.modeling.query_pose.dense_start import MIN_SIGMA, PRIOR_PROB, DenseStart, dense_targets
from querypose.modeling.targets import PersonTargets
from tests.tiny import random_persons

STRIDE = 8
WEIGHTS = {"loss_start_cls": 1.0, "loss_start_bbox": 5.0, "loss_start_giou": 2.0}


def _targets(boxes: list[list[float]], size: tuple[int, int] = (64, 96)) -> PersonTargets:
    persons = random_persons(len(boxes), 3, size)
    persons.gt_boxes.tensor = torch.tensor(boxes).view(-1, 4)
    return PersonTargets.from_instances([persons], 3, torch.device("cpu"), torch.float32)


def _start(num_queries: int = 4) -> DenseStart:
    return DenseStart(in_feature="p3", stride=STRIDE, dim=6, num_queries=num_queries, weights=WEIGHTS)


def _sizes(*sizes: tuple[int, int]) -> torch.Tensor:
    return torch.tensor([[width, height] * 2 for height, width in sizes], dtype=torch.float32)


def test_a_center_and_the_cells_that_learn_its_box_in_closed_form() -> None:
    # Center (36, 28): cell (4, 3). A quarter of the box is 1.0 cells in x and 2.0 in y, of which 1.5 count.
    center, box, weight = dense_targets(_targets([[20.0, -4.0, 52.0, 60.0]]), 8, 12, STRIDE)
    assert center[0, 0, 3, 4] == 1
    assert (center == 1).sum() == 1
    sigma = MIN_SIGMA  # 0.12 of 4 cells is less
    assert center[0, 0, 3, 5].item() == pytest.approx(torch.tensor(-1 / (2 * sigma**2)).exp().item())
    rows, columns = weight[0].nonzero(as_tuple=True)
    assert sorted({*rows.tolist()}) == [2, 3, 4]
    assert (
        sorted({*columns.tolist()}) == [4, 5] or sorted({*columns.tolist()}) == [3, 4, 5] or {*columns.tolist()} == {4}
    )
    assert weight.sum().item() == pytest.approx(1.0)
    assert (box[weight > 0] == torch.tensor([20.0, -4.0, 52.0, 60.0])).all()


def test_a_cell_between_two_persons_learns_the_nearer_one() -> None:
    first, second = [0.0, 0.0, 64.0, 64.0], [16.0, 0.0, 80.0, 64.0]  # centers (32, 32) and (48, 32)
    _, box, weight = dense_targets(_targets([first, second]), 8, 12, STRIDE)
    learned = {tuple(value) for value in box[weight > 0].tolist()}
    assert learned == {tuple(first), tuple(second)}
    assert box[0, 4, 3].tolist() == first
    assert box[0, 4, 6].tolist() == second


def test_without_persons_nothing_is_learned_but_that_nobody_is_there() -> None:
    start, targets = _start(), _targets([])
    found = start({"p3": torch.randn(1, 6, 8, 12)}, targets.image_size_B4)
    losses = start.losses(found, targets, {"persons": torch.tensor(0.0, dtype=torch.float64)})
    assert losses["loss_start_cls"] > 0
    assert losses["loss_start_bbox"] == losses["loss_start_giou"] == 0
    torch.stack(list(losses.values())).sum().backward()
    assert all(parameter.grad is not None for parameter in (start.logits.weight, start.boxes.weight))


def test_queries_start_at_the_highest_local_maxima() -> None:
    start = _start(num_queries=2)
    logits = torch.full((1, 1, 8, 12), -4.0)
    logits[0, 0, 2, 3], logits[0, 0, 2, 4], logits[0, 0, 6, 9] = 2.0, 1.5, 1.0  # the second lies beside the first
    inside = torch.ones(1, 1, 8, 12, dtype=torch.bool)
    assert start._peaks(logits, inside).tolist() == [[2 * 12 + 3, 6 * 12 + 9]]


def test_cells_of_the_padding_are_no_start_even_where_there_are_fewer_cells_than_queries() -> None:
    start = _start(num_queries=7)
    feature = torch.randn(1, 6, 8, 12)
    feature[..., 1:, :], feature[..., 3:] = 0, 0  # 8 x 24 pixels are image: three cells
    alone = start({"p3": feature[..., :4, :4]}, _sizes((8, 24)))
    padded = start({"p3": feature}, _sizes((8, 24)))
    for first, second in zip(alone[:3], padded[:3], strict=True):
        torch.testing.assert_close(first, second)
    assert len(padded.boxes_BQ4[0].unique(dim=0)) == 3


def test_scores_start_at_the_prior_and_boxes_in_their_cells() -> None:
    start = _start()
    torch.nn.init.zeros_(start.conv.bias)  # type: ignore[arg-type]  # it has one
    found = start({"p3": torch.zeros(2, 6, 8, 12)}, _sizes((64, 96), (64, 96)))
    assert found.prior_BQ is not None
    torch.testing.assert_close(found.prior_BQ.sigmoid(), torch.full((2, 4), PRIOR_PROB))
    center = found.boxes_BQ4.unflatten(-1, (2, 2)).mean(-2) / STRIDE
    torch.testing.assert_close(center % 1, torch.full_like(center, 0.5))
    assert not found.boxes_BQ4.requires_grad
    assert found.query_BQC.requires_grad


def test_it_learns_to_find_a_person() -> None:
    torch.manual_seed(0)
    start, targets = _start(), _targets([[16.0, 8.0, 48.0, 56.0]])
    feature = torch.randn(1, 6, 8, 12)
    optimizer = torch.optim.Adam(start.parameters(), lr=0.02)
    for _ in range(150):
        found = start({"p3": feature}, targets.image_size_B4)
        losses = start.losses(found, targets, {"persons": torch.tensor(1.0, dtype=torch.float64)})
        optimizer.zero_grad()
        torch.stack(list(losses.values())).sum().backward()
        optimizer.step()
    torch.testing.assert_close(found.boxes_BQ4[0, 0], targets.boxes_BG4[0, 0], atol=4.0, rtol=0)
    assert found.prior_BQ is not None
    assert found.prior_BQ[0, 0] > found.prior_BQ[0, 1:].max() + 1
