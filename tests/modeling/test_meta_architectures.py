"""What every meta-architecture must do: gradients, edges, invariants, any skeleton, any precision, any backbone."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from querypose.d2 import META_ARCH_REGISTRY, build_model
from querypose.data.transforms import crop, resize, rotate
from querypose.modeling import PoseModel
from querypose.modeling.backbone import SWIN_ARCHS, SwinArch
from tests.tiny import (
    ARCHITECTURES,
    SHARPOSE,
    VERSIONS,
    WHOLE_IMAGES,
    exact_model,
    has_no_effect,
    random_batch,
    tiny_config,
)

COCO = 17
# Attention over windows, every branch fused into each, tokens of one size, a layout with channels last.
BACKBONES: dict[str, list[str]] = {
    "swin": ["MODEL.BACKBONE.NAME", "build_swin_fpn_backbone", "MODEL.BACKBONE.ARCH", "swin_t"],
    "hrnet": ["MODEL.BACKBONE.ARCH", "hrnet_w18_small", "MODEL.FPN.TYPE", "hrfpn"],
    "vit": ["MODEL.BACKBONE.ARCH", "test_vit"],
    "convnext": ["MODEL.BACKBONE.ARCH", "test_convnext"],
}


def _model(*overrides: str, dataset: str = "keypoints_coco_2017_val") -> PoseModel:
    model = build_model(tiny_config(*overrides, dataset=dataset))
    assert isinstance(model, PoseModel)
    return model


def _total(losses: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.stack(list(losses.values())).sum()


def test_every_registered_meta_architecture_is_tested() -> None:
    registered = {name: kind for name, kind in META_ARCH_REGISTRY if kind.__module__.startswith("querypose.")}
    assert {*registered} == {name.removesuffix("-Dense") for name in ARCHITECTURES}
    assert all(issubclass(kind, PoseModel) for kind in registered.values())


@pytest.mark.parametrize("version", VERSIONS)
def test_every_parameter_gets_a_gradient(version: str) -> None:
    model = _model(*VERSIONS[version])
    for name, parameter in model.named_parameters():
        if not parameter.any():  # timm starts the last norm of a residual branch at zero, which hides the branch
            nn.init.normal_(parameter)
        if name.endswith("proposal_boxes"):
            # Boxes of all sizes, so that every level of the pyramid is read, which stay about where they begin.
            parameter.data[:, 2:] = torch.linspace(0.1, 1.0, 6)[:, None]
        if name.endswith("box_deltas.weight"):
            parameter.data.mul_(0.01)
    size = (64, 96) if SHARPOSE[1] in VERSIONS[version] else (512, 512)
    losses = model(random_batch([3, 2], COCO, size))
    assert all(loss.isfinite() for loss in losses.values())
    _total(losses).backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    reached = {name for name, gradient in gradients.items() if gradient is not None}
    moved = {name for name, gradient in gradients.items() if gradient is not None and gradient.any()}
    assert reached == {*gradients}
    assert not [name for name in reached - moved if not has_no_effect(name)]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("persons", [[0, 0], [0, 3], [9, 1]])
def test_no_person_and_more_persons_than_queries(version: str, persons: list[int]) -> None:
    model = _model(*VERSIONS[version])
    losses = model(random_batch(persons, COCO))
    _total(losses).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    assert all(buffer.isfinite().all() for buffer in model.buffers())


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("visibility", [0.0, 1.0])
def test_persons_without_a_visible_keypoint(version: str, visibility: float) -> None:
    model, batch = _model(*VERSIONS[version]), random_batch([2, 1], COCO)
    keypoints = batch[0]["instances"].gt_keypoints.tensor
    keypoints[..., 2] = visibility
    keypoints[0, :, :2] = 1e9 if visibility == 0 else 3.0
    losses = model(batch)
    _total(losses).backward()
    assert all(loss.isfinite() for loss in losses.values())
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize("version", VERSIONS)
def test_a_batch_gives_what_single_images_give(version: str) -> None:
    model = _model(*VERSIONS[version]).double().eval()
    images = random_batch([1, 1, 1], COCO)
    with torch.no_grad():
        together = model(images)
        alone = [model([image])[0] for image in images]
    for one, other in zip(together, alone, strict=True):
        one, other = one["instances"], other["instances"]
        assert len(one) == len(other)
        torch.testing.assert_close(one.pred_keypoints, other.pred_keypoints, atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(one.scores, other.scores)


@pytest.mark.parametrize("architecture", WHOLE_IMAGES)
def test_the_content_of_batch_mates_changes_nothing(architecture: str) -> None:
    model = _model(*ARCHITECTURES[architecture]).double().eval()
    small, *mates = random_batch([1], COCO, (40, 50)) + random_batch([1, 1], COCO, (64, 96))
    with torch.no_grad():
        first, second = (model([small, mate])[0]["instances"] for mate in mates)
    torch.testing.assert_close(first.pred_keypoints, second.pred_keypoints)


@pytest.mark.parametrize("architecture", WHOLE_IMAGES)
def test_training_depends_on_the_order_of_persons_in_no_way(architecture: str) -> None:
    model = _model(*ARCHITECTURES[architecture]).double()
    batch = random_batch([3, 2], COCO)
    reordered = copy.deepcopy(batch)
    reordered[0]["instances"] = batch[0]["instances"][torch.tensor([2, 0, 1])]
    first, second = model(batch), copy.deepcopy(model)(reordered)
    for name in first:
        torch.testing.assert_close(first[name], second[name])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(("dataset", "num_keypoints"), [("keypoints_coco_2017_val", 17), ("crowdpose_val", 14)])
def test_builtin_skeletons_train_and_predict(architecture: str, dataset: str, num_keypoints: int) -> None:
    model = _model(*ARCHITECTURES[architecture], dataset=dataset)
    assert _total(model(random_batch([1], num_keypoints))).isfinite()
    with torch.no_grad():
        instances = model.eval()(random_batch([1], num_keypoints))[0]["instances"]
    assert instances.pred_keypoints.shape[1:] == (num_keypoints, 3)


@pytest.mark.parametrize("architecture", WHOLE_IMAGES)
@pytest.mark.parametrize("backbone", BACKBONES)
def test_backbones_of_every_kind_train_and_predict(
    architecture: str, backbone: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SWIN_ARCHS, "swin_t", SwinArch(embed_dim=8, depths=(1, 1, 1, 1), num_heads=(1, 2, 2, 4)))
    overrides = [*ARCHITECTURES[architecture], *BACKBONES[backbone]]
    if "hrfpn" in overrides and "['c5']" in overrides:  # a model of one map; that pyramid leaves none as it is
        overrides += ["MODEL.BACKBONE.OUT_FEATURES", "['p5']"]
    model, batch = _model(*overrides), random_batch([1, 2], COCO)
    _total(model(batch)).backward()
    moved = {
        name for name, parameter in model.get_submodule("backbone").named_parameters() if parameter.grad is not None
    }
    assert moved == {name for name, _ in model.get_submodule("backbone").named_parameters()}
    with torch.no_grad():
        assert all(len(output["instances"]) > 0 for output in model.eval()(batch))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_annotations_of_another_skeleton_are_refused(architecture: str) -> None:
    with pytest.raises(ValueError, match="has 17 keypoints, but the annotations of image 0 of the batch have 14"):
        _model(*ARCHITECTURES[architecture])(random_batch([1], 14))


@pytest.mark.parametrize("version", VERSIONS)
def test_more_persons_than_queries_in_bfloat16(version: str) -> None:
    model = _model(*VERSIONS[version])
    with torch.autocast("cpu", torch.bfloat16):
        losses = model(random_batch([9, 1], COCO))
    assert {loss.dtype for loss in losses.values()} == {torch.float32}
    assert _total(losses).isfinite()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_bfloat16_keeps_geometry_and_losses_in_float32(architecture: str) -> None:
    model, batch = _model(*ARCHITECTURES[architecture]), random_batch([2], COCO)
    reference = copy.deepcopy(model)(batch)
    with torch.autocast("cpu", torch.bfloat16):
        losses = model(batch)
    assert all(loss.dtype == torch.float32 for loss in losses.values())
    torch.testing.assert_close(_total(losses), _total(reference), atol=0, rtol=0.1)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        instances = model.eval()(batch)[0]["instances"]
    for field in instances.get_fields().values():
        tensor = getattr(field, "tensor", field)
        assert not tensor.is_floating_point() or tensor.dtype == torch.float32


@pytest.mark.parametrize("version", VERSIONS)
def test_inference_is_sorted_bounded_and_in_the_output_frame(version: str) -> None:
    model = _model("TEST.DETECTIONS_PER_IMAGE", "4", *VERSIONS[version]).eval()
    image = random_batch([1], COCO)[0]
    with torch.no_grad():
        (small,), (large,) = (model([image | size]) for size in ({}, {"height": 128, "width": 288}))
    instances = large["instances"]
    assert instances.image_size == (128, 288)
    assert len(instances) <= 4
    assert (instances.scores.diff() <= 0).all()
    scale = torch.tensor([3.0, 2.0, 1.0])
    torch.testing.assert_close(instances.pred_keypoints, small["instances"].pred_keypoints * scale)
    boxes = instances.pred_boxes.tensor
    assert (boxes >= 0).all()
    assert (boxes[:, 2] <= 288).all()
    assert (boxes[:, 3] <= 128).all()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_poses_come_back_through_the_frame_of_their_sample(architecture: str) -> None:
    """A file of 200 x 150 pixels, turned and cut: its corners and the model's are those of the frame."""
    model = exact_model(*ARCHITECTURES[architecture]).eval()
    sample = random_batch([1], COCO)[0]
    frame = rotate((200, 150), 30.0).then(crop((200, 150), 20, 10, 120, 80)).then(resize((80, 120), (64, 96)))
    with torch.no_grad():
        (seen,), (returned,) = (model.predict([item]) for item in (sample, sample | {"frame": frame}))
    assert returned.image_size == (200, 150)
    expected = frame.inverse().apply_coords(seen.pred_keypoints[..., :2].numpy())
    places = {round(score, 9): pose for score, pose in zip(seen.scores.tolist(), expected, strict=True)}
    returned_places = {
        round(score, 9): pose[:, :2]
        for score, pose in zip(returned.scores.tolist(), returned.pred_keypoints, strict=True)
    }
    in_both = places.keys() & returned_places.keys()  # a pose whose box lies outside of a frame is gone there
    assert in_both
    for score in in_both:
        np.testing.assert_allclose(returned_places[score], places[score], atol=1e-9 * np.abs(expected).max())


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_an_example_batch_trains_and_predicts(architecture: str) -> None:
    model = _model(*ARCHITECTURES[architecture])
    batch = model.example_batch((96, 128), num_images=2, num_instances=3)
    expected = (3, (3, 96, 128)) if architecture in WHOLE_IMAGES else (1, (3, 64, 96))
    assert [(len(sample["instances"]), tuple(sample["image"].shape)) for sample in batch] == [expected] * 2
    assert _total(model(batch)).isfinite()
    with torch.no_grad():
        assert all(len(output["instances"]) for output in model.eval()(model.example_batch()))


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("persons", [[3, 1], [0, 2], [9, 1], [0, 0]])
def test_losses_of_parts_add_up_to_those_of_the_batch(version: str, persons: list[int]) -> None:
    model, batch = exact_model(*VERSIONS[version]), random_batch(persons, COCO)
    whole, normalizers = model(batch), model.global_normalizers(*([image] for image in batch))
    parts = [model([image], normalizers) for image in batch]
    for name in whole:
        torch.testing.assert_close(sum(part[name] for part in parts), whole[name], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("architecture", WHOLE_IMAGES)
def test_poses_below_the_threshold_are_left_out(architecture: str) -> None:
    images = random_batch([1], COCO)
    with torch.no_grad():
        torch.manual_seed(0)
        every = _model(*ARCHITECTURES[architecture]).eval()(images)[0]["instances"]
        torch.manual_seed(0)
        bar = str(every.scores[len(every) // 2].item())
        model = _model("TEST.SCORE_THRESHOLD", bar, *ARCHITECTURES[architecture]).eval()
        best = model(images)[0]["instances"]
    assert len(every) > 1
    assert len(best) == int((every.scores > float(bar)).sum())


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_its_components_hold_what_it_consists_of(architecture: str) -> None:
    model = _model(*ARCHITECTURES[architecture])
    modules = {*model.modules()}
    for component in model.components.values():
        assert component.modules
        assert modules.issuperset(component.modules)
