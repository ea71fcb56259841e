"""What QueryPose does that no other model does; `test_meta_architectures.py` has what all must do."""

from __future__ import annotations

import dataclasses
import itertools
import math

import pytest
import torch

from querypose.d2 import build_model
from querypose.layers import RegionPooler, box_cxcywh_to_xyxy
from querypose.modeling import QueryPose
from querypose.modeling.query_pose.initialization import grid_boxes
from querypose.modeling.query_pose.matcher import HungarianMatcher
from querypose.modeling.query_pose.pose_decoder import PosePrediction
from querypose.modeling.targets import Matches, PersonTargets
from tests.tiny import FULL_VERSION, QUERY_POSE_VERSIONS, keypoint_queries, random_batch, tiny_config

COCO = 17


def _model(*overrides: str, dataset: str = "keypoints_coco_2017_val") -> QueryPose:
    model = build_model(tiny_config(*overrides, dataset=dataset))
    assert isinstance(model, QueryPose)
    return model


def _total(losses: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.stack(list(losses.values())).sum()


def test_padding_is_not_read_as_image() -> None:
    model = _model().eval()
    seen: dict[str, list[torch.Tensor]] = {}
    model.decoder.box_pooler.register_forward_pre_hook(lambda module, args: seen.update(levels=args[0]))
    with torch.no_grad():
        model(random_batch([1], COCO, (40, 50)) + random_batch([1], COCO, (64, 96)))
    finest = seen["levels"][0]
    assert not finest[0, :, math.ceil(40 / 4) :].any()
    assert not finest[0, :, :, math.ceil(50 / 4) :].any()
    assert finest[0, :, : 40 // 4, : 50 // 4].any()
    assert finest[1].abs().sum(0).all()


def test_part_queries_follow_the_person_where_the_matches_change() -> None:
    """Handing a match over to another query must not mix up two persons' part queries."""
    model = _model()
    batch = random_batch([2], COCO)
    calls = itertools.count()
    real_matcher = model.matcher

    class SwappingMatcher(HungarianMatcher):
        def match_stages(
            self, logits_SBQ: torch.Tensor, boxes_SBQ4: torch.Tensor, targets: PersonTargets
        ) -> list[Matches]:
            matches_S = real_matcher.match_stages(logits_SBQ, boxes_SBQ4, targets)
            queries_S = torch.tensor([[4, 1], [1, 4]])
            return [dataclasses.replace(matches, query_R=queries_S[next(calls) % 2]) for matches in matches_S]

    model.matcher = SwappingMatcher()
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    for stage in model.decoder.keypoint_stages:
        stage.register_forward_hook(lambda module, args, out: seen.append((args[2].detach(), out[0].detach())))
    model(batch)
    (_, left_by_first), (given_to_second, _) = seen
    torch.testing.assert_close(given_to_second, left_by_first)


@pytest.mark.parametrize(
    ("overrides", "transfers"),
    [
        pytest.param([], 1, id="light"),
        pytest.param(FULL_VERSION, 1, id="full"),
        pytest.param([*FULL_VERSION, "MODEL.QUERYPOSE.TRAIN_QUERIES", "matched"], 2, id="full, matched"),
    ],
)
def test_matching_stops_the_host_only_where_a_stage_waits_for_it(overrides: list[str], transfers: int) -> None:
    model = _model(*overrides)
    calls = []

    class CountingMatcher(HungarianMatcher):
        def match_stages(
            self, logits_SBQ: torch.Tensor, boxes_SBQ4: torch.Tensor, targets: PersonTargets
        ) -> list[Matches]:
            calls.append(len(logits_SBQ))
            return super().match_stages(logits_SBQ, boxes_SBQ4, targets)

    model.matcher = CountingMatcher()
    model(random_batch([2], COCO))
    assert len(calls) == transfers


@pytest.mark.parametrize(("dataset", "num_keypoints"), [("keypoints_coco_2017_val", 17), ("crowdpose_val", 14)])
@pytest.mark.parametrize("scheme", ["joint", "head+joints", "rigid", "limb"])
def test_builtin_skeletons_train_and_predict(dataset: str, num_keypoints: int, scheme: str) -> None:
    model = _model("MODEL.QUERYPOSE.KEYPOINT.PART_SCHEME", scheme, dataset=dataset)
    assert _total(model(random_batch([1], num_keypoints))).isfinite()
    with torch.no_grad():
        instances = model.eval()(random_batch([1], num_keypoints))[0]["instances"]
    assert instances.pred_keypoints.shape[1:] == (num_keypoints, 3)


@pytest.mark.parametrize("iteration", ["none", "summation", "concatenation", "selective"])
def test_every_iteration_of_the_part_queries_trains(iteration: str) -> None:
    model = _model("MODEL.QUERYPOSE.KEYPOINT.ITERATION", iteration)
    _total(model(random_batch([2], COCO))).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert ("decoder.part_queries" in dict(model.named_parameters())) == (iteration != "none")


def test_without_deep_supervision_every_parameter_takes_part_and_earlier_heads_do_not_learn() -> None:
    model = _model("MODEL.QUERYPOSE.LOSS.DEEP_SUPERVISION", "False")
    _total(model(random_batch([2, 1], COCO))).backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert not [name for name, gradient in gradients.items() if gradient is None]
    first, *_, last = (gradients[name] for name in gradients if name.endswith("cls_logit.weight"))
    assert not torch.as_tensor(first).any()
    assert torch.as_tensor(last).any()


@pytest.mark.parametrize("query_type", ["part", "instance", "none"])
def test_which_queries_are_learned_depends_on_who_reads_them(query_type: str) -> None:
    interaction = "average_pooling" if query_type == "none" else "self_attention"
    model = _model(*keypoint_queries(query_type, interaction))
    assert ("decoder.part_queries" in dict(model.named_parameters())) == (query_type == "part")


@pytest.mark.parametrize("version", QUERY_POSE_VERSIONS)
def test_the_same_seed_gives_every_version_the_same_backbone_and_box_decoder(version: str) -> None:
    parameters = []
    for overrides in ([], QUERY_POSE_VERSIONS[version]):
        torch.manual_seed(3)
        parameters.append(dict(_model(*overrides).named_parameters()))
    shared = [name for name in parameters[0] if name.startswith(("backbone.", "decoder.box_stages."))]
    assert len(shared) > 100
    assert not [name for name in shared if not torch.equal(parameters[0][name], parameters[1][name])]


def test_serially_the_next_box_stage_gets_the_enhanced_instance_query() -> None:
    model = _model(*QUERY_POSE_VERSIONS["instance query, serial alone"]).eval()
    left: list[torch.Tensor] = []
    taken: list[torch.Tensor] = []
    for box_stage, keypoint_stage in zip(model.decoder.box_stages, model.decoder.keypoint_stages, strict=True):
        box_stage.register_forward_pre_hook(lambda module, args: taken.append(args[0]))
        keypoint_stage.register_forward_hook(lambda module, args, out: left.append(out[0]))
    with torch.no_grad():
        model(random_batch([1], COCO))
    torch.testing.assert_close(taken[1], left[0].view_as(taken[1]))


def test_under_autocast_all_but_geometry_flow_and_outputs_is_bfloat16() -> None:
    model = _model(*FULL_VERSION)
    in_float32 = set()

    def note(name: str, output: object) -> None:
        if isinstance(output, torch.Tensor) and output.dtype == torch.float32:
            in_float32.add(name)

    for name, layer in model.named_modules():
        if isinstance(layer, torch.nn.Conv2d | torch.nn.ConvTranspose2d | torch.nn.Linear | RegionPooler):
            layer.register_forward_hook(lambda layer, args, output, name=name: note(name, output))
    with torch.autocast("cpu", torch.bfloat16):
        _total(model(random_batch([2], COCO))).backward()
    assert model.criterion.flow is not None
    outputs = {f"decoder.box_stages.{stage}.{layer}" for stage in range(2) for layer in ("cls_logit", "box_deltas")}
    flow = {
        f"criterion.flow.{name}"
        for name, layer in model.criterion.flow.named_modules()
        if isinstance(layer, torch.nn.Linear)
    }
    assert in_float32 == {"decoder.box_pooler", "decoder.keypoint_pooler"} | outputs | flow
    assert all(parameter.grad is not None and parameter.grad.dtype == torch.float32 for parameter in model.parameters())


def test_scores_and_frames_in_closed_form() -> None:
    prediction = PosePrediction(
        logits_BQ=torch.tensor([[0.0, 20.0, 20.0]]),
        boxes_BQ4=torch.tensor([[[0.0, 0.0, 8.0, 8.0], [10.0, 20.0, 30.0, 60.0], [200.0, 0.0, 210.0, 9.0]]]),
        mean_BQKD=torch.tensor([0.0, 0.25]).expand(1, 3, 2, 2),
        sigma_BQKD=torch.tensor([[0.2, 0.4], [0.6, 0.8]]).expand(1, 3, 2, 2),
    )
    (instances,) = prediction.to_poses().to_instances([{"height": 200, "width": 300}], [(100, 100)], num_poses=3)
    # Keypoint scores are 1 - mean sigma; the third query's box is outside the image and goes.
    assert instances.scores.tolist() == pytest.approx([0.5, 0.25])
    assert instances.pred_keypoints[0, 0].tolist() == pytest.approx([20.0 * 3, 50.0 * 2, 0.7])
    assert instances.pred_keypoints[0, 1, 2].item() == pytest.approx(0.3)
    assert instances.pred_boxes.tensor[0].tolist() == pytest.approx([30.0, 40.0, 90.0, 120.0])


def test_levels_that_do_not_exist_are_refused() -> None:
    with pytest.raises(ValueError, match=r"KEYPOINT.IN_FEATURE has \['p9'\]"):
        _model("MODEL.QUERYPOSE.KEYPOINT.IN_FEATURE", "p9")


@pytest.mark.parametrize("num_boxes", [1, 6, 9, 12, 100])
def test_grid_boxes_cover_the_image_and_differ(num_boxes: int) -> None:
    boxes = box_cxcywh_to_xyxy(grid_boxes(num_boxes))
    assert len(boxes.unique(dim=0)) == len(boxes) == num_boxes
    points = torch.rand(200, 1, 2)
    if math.ceil(math.sqrt(num_boxes)) ** 2 == num_boxes:
        assert ((points >= boxes[:, :2]) & (points <= boxes[:, 2:])).all(-1).any(1).all()


def test_proposal_boxes_start_where_the_config_says() -> None:
    whole = _model().decoder.proposal_boxes
    assert whole.tolist() == [[0.5, 0.5, 1.0, 1.0]] * 6
    torch.testing.assert_close(_model("MODEL.QUERYPOSE.PROPOSAL_INIT", "grid").decoder.proposal_boxes, grid_boxes(6))


def test_class_scores_start_at_the_prior() -> None:
    model = _model("MODEL.QUERYPOSE.PRIOR_PROB", "0.02")
    biases = [value for name, value in model.named_parameters() if name.endswith("cls_logit.bias")]
    assert len(biases) == len(model.decoder.box_stages)
    for bias in biases:
        torch.testing.assert_close(bias.sigmoid(), torch.tensor([0.02]))
