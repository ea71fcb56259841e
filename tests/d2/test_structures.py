"""Boxes, Keypoints, Instances, ImageList: closed forms and algebra."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch

from querypose.d2 import ENGINE, Boxes, BoxMode, ImageList, Instances, Keypoints


def _boxes() -> Boxes:
    return Boxes(torch.tensor([[0.0, 0.0, 4.0, 2.0], [1.0, 1.0, 3.0, 3.0], [-2.0, -2.0, 10.0, 20.0]]))


@pytest.mark.parametrize("kind", [list, tuple, np.array, torch.tensor])
def test_box_mode_round_trip(kind: type) -> None:
    box = kind([1.0, 2.0, 5.0, 9.0])
    many = box if isinstance(box, list | tuple) else box[None]
    converted = BoxMode.convert(many, BoxMode.XYXY_ABS, BoxMode.XYWH_ABS)
    assert type(converted) is type(many)
    assert np.allclose(np.asarray(converted).reshape(-1), [1, 2, 4, 7])
    back = BoxMode.convert(converted, BoxMode.XYWH_ABS, BoxMode.XYXY_ABS)
    assert np.allclose(np.asarray(back), np.asarray(many))
    assert np.allclose(np.asarray(many).reshape(-1), [1, 2, 5, 9]), "the input is left as it was"


def test_a_list_is_converted_in_float32_on_both_engines() -> None:
    converted = BoxMode.convert([0.1, 0.2, 0.3, 0.4], BoxMode.XYWH_ABS, BoxMode.XYXY_ABS)
    low, size = torch.tensor([0.1, 0.2]), torch.tensor([0.3, 0.4])
    assert converted == [*low.tolist(), *(low + size).tolist()]


def test_box_mode_values_are_those_that_dataset_dicts_hold() -> None:
    assert (int(BoxMode.XYXY_ABS), int(BoxMode.XYWH_ABS)) == (0, 1)


def test_area_centers_nonempty() -> None:
    boxes = _boxes()
    assert boxes.area().tolist() == [8.0, 4.0, 264.0]
    assert boxes.get_centers().tolist() == [[2.0, 1.0], [2.0, 2.0], [4.0, 9.0]]
    assert boxes.nonempty().tolist() == [True, True, True]
    assert boxes.nonempty(threshold=2.0).tolist() == [False, False, True]


def test_clip_takes_height_then_width_and_is_in_place() -> None:
    boxes = _boxes()
    boxes.clip((2, 3))
    assert boxes.tensor.tolist() == [[0, 0, 3, 2], [1, 1, 3, 2], [0, 0, 3, 2]]
    with pytest.raises(AssertionError):
        Boxes([[0.0, 0.0, float("nan"), 1.0]]).clip((2, 3))


def test_scale_and_inside_box() -> None:
    boxes = _boxes()
    assert boxes.inside_box((5, 5)).tolist() == [True, True, False]
    assert boxes.inside_box((18, 9), boundary_threshold=3).tolist() == [True, True, True]
    boxes.scale(2.0, 0.5)
    assert boxes.tensor[1].tolist() == [2.0, 0.5, 6.0, 1.5]


def test_boxes_index_cat_iterate() -> None:
    boxes = _boxes()
    assert len(boxes[1]) == 1
    assert len(boxes[:2]) == 2
    assert boxes[boxes.area() > 5].tensor.tolist() == boxes[torch.tensor([0, 2])].tensor.tolist()
    assert Boxes.cat([boxes[:1], boxes[1:]]).tensor.equal(boxes.tensor)
    assert len(Boxes.cat([])) == 0
    assert [tuple(box.shape) for box in boxes] == [(4,)] * 3
    clone = boxes.clone()
    clone.scale(0.0, 0.0)
    assert boxes.area()[0] == 8


def test_no_boxes() -> None:
    boxes = Boxes(torch.empty(0))
    assert boxes.tensor.shape == (0, 4)
    assert boxes.area().shape == (0,)
    with pytest.raises(AssertionError):
        Boxes(torch.zeros(2, 5))


def test_boxes_are_float32() -> None:
    assert Boxes(torch.zeros(1, 4, dtype=torch.float64)).tensor.dtype == torch.float32
    assert Boxes(np.zeros((1, 4))).tensor.dtype == torch.float32


def test_keypoints() -> None:
    keypoints = Keypoints(torch.arange(18.0).reshape(2, 3, 3))
    assert len(keypoints) == 2
    assert keypoints[torch.tensor([False, True])].tensor.equal(keypoints[1:].tensor)
    assert Keypoints.cat([keypoints[:1], keypoints[1:]]).tensor.equal(keypoints.tensor)
    assert keypoints.to("cpu").device == torch.device("cpu")
    assert Keypoints(np.zeros((2, 3, 3))).tensor.dtype == torch.float32
    with pytest.raises(AssertionError):
        Keypoints(torch.zeros(2, 3))


@pytest.mark.skipif(ENGINE == "detectron2", reason="its indexing by an integer fails with K > 1 on present torch")
def test_keypoints_by_integer() -> None:
    keypoints = Keypoints(torch.arange(18.0).reshape(2, 3, 3))
    assert keypoints[1].tensor.equal(keypoints[1:].tensor)


def _instances(count: int = 3) -> Instances:
    return Instances(
        (30, 40),
        boxes=Boxes(torch.arange(count * 4.0).reshape(count, 4)),
        scores=torch.arange(count) / 10,
        keypoints=Keypoints(torch.zeros(count, 2, 3)),
        names=[f"n{index}" for index in range(count)],
    )


def test_instances_fields() -> None:
    instances = _instances()
    assert instances.image_size == (30, 40)
    assert len(instances) == 3
    instances.labels = torch.ones(3)
    assert instances.has("labels")
    assert instances.get("labels") is instances.labels
    instances.remove("labels")
    assert not instances.has("labels")
    with pytest.raises(AttributeError):
        _ = instances.labels
    with pytest.raises(KeyError):
        instances.get("labels")
    with pytest.raises(AssertionError):
        instances.labels = torch.ones(2)
    assert sorted(instances.get_fields()) == ["boxes", "keypoints", "names", "scores"]


def test_instances_index() -> None:
    instances = _instances()
    assert len(instances[1]) == 1
    assert instances[-1].names == ["n2"]
    assert instances[1:].names == ["n1", "n2"]
    chosen = Instances((30, 40), scores=instances.scores, boxes=instances.boxes)[torch.tensor([True, False, True])]
    assert chosen.scores.tolist() == pytest.approx([0.0, 0.2])
    assert chosen.boxes.tensor[1].tolist() == [8, 9, 10, 11]
    reordered = Instances((30, 40), scores=instances.scores)[torch.tensor([2, 0])]
    assert reordered.scores.tolist() == pytest.approx([0.2, 0.0])
    with pytest.raises(IndexError):
        instances[3]


def test_instances_cat_undoes_indexing() -> None:
    instances = _instances()
    joined = Instances.cat([instances[:1], instances[1:]])
    assert joined.image_size == (30, 40)
    assert joined.scores.equal(instances.scores)
    assert joined.boxes.tensor.equal(instances.boxes.tensor)
    assert joined.names == instances.names
    with pytest.raises(AssertionError):
        Instances.cat([instances, Instances((1, 1), scores=torch.ones(1))])


def test_instances_without_a_field_have_no_length() -> None:
    with pytest.raises(NotImplementedError):
        len(Instances((1, 1)))


def test_instances_of_nobody() -> None:
    empty = _instances(0)
    assert len(empty) == 0
    assert len(Instances.cat([empty, _instances(2)])) == 2


def test_instances_to_copy_pickle() -> None:
    instances = _instances()
    moved = instances.to("cpu")
    assert moved.scores.equal(instances.scores)
    assert moved.names == instances.names
    assert copy.deepcopy(instances).scores.equal(instances.scores)
    assert pickle.loads(pickle.dumps(instances)).scores.equal(instances.scores)


def test_image_list_pads_right_and_below() -> None:
    first, second = torch.ones(3, 5, 4), 2 * torch.ones(3, 2, 6)
    images = ImageList.from_tensors([first, second], size_divisibility=4, pad_value=7.0)
    assert images.tensor.shape == (2, 3, 8, 8)
    assert images.image_sizes == [(5, 4), (2, 6)]
    assert len(images) == 2
    assert images[0].equal(first)
    assert images[1].equal(second)
    assert (images.tensor[0, :, 5:] == 7).all()
    assert (images.tensor[0, :, :, 4:] == 7).all()


def test_image_list_of_one_image_and_of_a_square() -> None:
    image = torch.rand(3, 5, 4)
    assert ImageList.from_tensors([image]).tensor[0].equal(image)
    square = ImageList.from_tensors([image], padding_constraints={"square_size": 16})
    assert square.tensor.shape == (1, 3, 16, 16)
    assert square.to(torch.float64).tensor.dtype == torch.float64


def test_image_list_refuses_nothing_and_unlike_channels() -> None:
    with pytest.raises(AssertionError):
        ImageList.from_tensors([])
    with pytest.raises(AssertionError):
        ImageList.from_tensors([torch.zeros(3, 2, 2), torch.zeros(1, 2, 2)])
