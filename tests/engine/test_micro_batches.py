from __future__ import annotations

import pytest
import torch

from querypose.engine.micro_batches import cut_batch, micro_batch_weights
from tests.engine.toy_pose import toy_batch

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("items", "parts", "lengths"), [(4, 2, [2, 2]), (5, 2, [2, 3]), (3, 3, [1, 1, 1]), (7, 1, [7])]
)
def test_a_batch_is_cut_in_order(items: int, parts: int, lengths: list[int]) -> None:
    batch = [{"image_id": index} for index in range(items)]
    pieces = cut_batch(batch, parts)
    assert [len(piece) for piece in pieces] == lengths
    assert [item["image_id"] for piece in pieces for item in piece] == list(range(items))


def test_more_micro_batches_than_images_are_refused() -> None:
    with pytest.raises(ValueError, match="2 images cannot be cut into 3 micro-batches"):
        cut_batch(toy_batch([1, 1]), 3)


@pytest.mark.parametrize(
    ("persons", "weights"),
    [
        ([1, 2, 3, 0], [3 / 6, 3 / 6]),
        ([1, 0, 4, 3], [1 / 8, 7 / 8]),
        ([0, 0, 2, 2], [1 / 4, 4 / 4]),  # no person: the criterion divides by 1, not by 0
        ([0, 0, 0, 0], [1.0, 1.0]),
    ],
)
def test_weights_are_ratios_of_the_normalizers(persons: list[int], weights: list[float]) -> None:
    pieces = cut_batch(toy_batch(persons), 2)
    torch.testing.assert_close(micro_batch_weights(pieces, CPU), torch.tensor(weights, dtype=torch.float64))


def test_a_batch_without_annotations_counts_images() -> None:
    pieces = cut_batch([{"image_id": index} for index in range(5)], 2)
    torch.testing.assert_close(micro_batch_weights(pieces, CPU), torch.tensor([0.4, 0.6], dtype=torch.float64))


def test_a_whole_batch_has_weight_one() -> None:
    assert micro_batch_weights([toy_batch([0, 3])], CPU).tolist() == [1.0]
