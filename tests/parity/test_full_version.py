"""The full version in both of the authors' semantics, against an oracle written from reference_behaviour.md.

There are no reference tensors of it here, so the oracle is first compared with those of the light version. What it adds
for the full one is the dynamic interaction, which it shares with the box decoder, and the path of the refined query.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from querypose.modeling.query_pose.pose_decoder import StagePrediction
from querypose.modeling.targets import PersonTargets
from tests.parity.golden import Fixture, OfficialView, TinyPose, normalizers, relative_error
from tests.parity.published_decoder import Matching, PublishedDecoder, StageOutput

TOLERANCE = 1e-6
NUM_QUERIES = 3
FULL = ("MODEL.QUERYPOSE.NUM_QUERIES", str(NUM_QUERIES), "MODEL.QUERYPOSE.KEYPOINT.DYNAMIC_INTERACTION", "True")
SERIAL = ("MODEL.QUERYPOSE.INSTANCE_QUERY_ITERATION", "serial")
BOX = ("MODEL.QUERYPOSE.INSTANCE_QUERY_ITERATION", "box")
MATCHED = ("MODEL.QUERYPOSE.TRAIN_QUERIES", "matched")
ALL = ("MODEL.QUERYPOSE.TRAIN_QUERIES", "all")

WATCHED = (
    "init_proposal_features.weight",
    "head.pose_head_series.0.pose_decoder_inst_interact.norm3.weight",
    "head.pose_head_series.0.linear2.bias",
    "head.pose_head_series.0.updater.fc1.weight",
    "head.head_series.1.norm1.weight",
)
"""Parameters whose gradient tells how queries travel: the second and third only the refined query reaches."""


class FullFixture(Fixture):
    """The light fixture with few queries, and drawn weights for what the full version has besides."""

    def __init__(self, light: Fixture) -> None:
        self.arrays, self.names = light.arrays, light.names
        self.__dict__["state_dict"] = dict(light.state_dict)  # a cached property
        for stage in range(int(self["config/num_stages"])):
            for name, shape in refinement_shapes().items():
                value = torch.randn(shape) / math.sqrt(shape[-1]) if len(shape) > 1 else torch.randn(shape) * 0.1
                is_norm_weight = "norm" in name and name.endswith("weight")
                self.state_dict[f"head.pose_head_series.{stage}.{name}"] = value + 1 if is_norm_weight else value
        for name in ("init_proposal_boxes.weight", "init_proposal_features.weight"):
            self.state_dict[name] = self.state_dict[name][:NUM_QUERIES]


def refinement_shapes(dim: int = 256, dim_dynamic: int = 64, dim_hidden: int = 2048, num_tokens: int = 196) -> dict:
    """Entries of a keypoint stage that only the full version has."""
    interaction = "pose_decoder_inst_interact"
    linear = {
        f"{interaction}.dynamic_layer": (2 * dim * dim_dynamic, dim),
        f"{interaction}.out_layer": (dim, num_tokens * dim),
        "linear1": (dim_hidden, dim),
        "linear2": (dim, dim_hidden),
    }
    norms = {f"{interaction}.norm1": dim_dynamic, f"{interaction}.norm2": dim, f"{interaction}.norm3": dim}
    norms |= {"inst_norm": dim, "norm2": dim}
    weights: dict[str, tuple[int, ...]] = {f"{name}.weight": shape for name, shape in linear.items()}
    weights |= {f"{name}.bias": shape[:1] for name, shape in linear.items()}
    return weights | {f"{name}.{kind}": (width,) for name, width in norms.items() for kind in ("weight", "bias")}


@pytest.fixture(scope="module")
def full(tiny_light: Fixture) -> FullFixture:
    torch.manual_seed(0)
    return FullFixture(tiny_light)


def build_oracle(
    fixture: Fixture, *, refined_goes_on: bool, match: Matching | None = None, only_matched: bool = False
) -> PublishedDecoder:
    weights = {name: value.double() for name, value in fixture.state_dict.items()}
    for name in WATCHED:
        if name in weights:
            weights[name].requires_grad_()
    features, sizes = fixture.features(torch.float64), fixture.image_size_B4(torch.float64)
    return PublishedDecoder(weights, features, sizes, refined_goes_on, match, only_matched)


def matching(model: TinyPose, targets: PersonTargets) -> Matching:
    """The model's own matcher, for the oracle; other tests compare it with the authors'."""

    def match(logits_BQ: Tensor, boxes_BQ4: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        matches = model.matcher(logits_BQ, boxes_BQ4, targets)
        return matches.image_R, matches.query_R, matches.person_R

    return match


def test_the_oracle_agrees_with_the_authors_light_version(tiny_light: Fixture) -> None:
    golden = tiny_light.group("v1/train_stable/")
    model = TinyPose(tiny_light, torch.float64)
    match = matching(model, tiny_light.targets("stable", torch.float64))
    with torch.no_grad():
        stages = build_oracle(tiny_light, refined_goes_on=False, match=match, only_matched=True).run(2)
    for index, stage in enumerate(stages):
        assert relative_error(stage.logits_BQ[..., None], golden["logits"][index]) < TOLERANCE
        assert relative_error(stage.boxes_BQ4, golden["boxes"][index]) < TOLERANCE
        assert relative_error(stage.mean_RKD, golden["keypoints"][index][..., :2]) < TOLERANCE
        assert relative_error(stage.sigma_RKD, golden["sigma"][index]) < TOLERANCE


@pytest.mark.parametrize(
    ("refined_goes_on", "iteration"),
    [
        pytest.param(True, SERIAL, id="v0-refined-query-goes-on"),
        pytest.param(False, BOX, id="v1-refined-query-discarded"),
    ],
)
def test_inference(full: FullFixture, refined_goes_on: bool, iteration: tuple[str, ...]) -> None:
    model = TinyPose(full, torch.float64, *FULL, *iteration).eval()
    with torch.no_grad():
        expected = build_oracle(full, refined_goes_on=refined_goes_on).run(2)[-1]
        found = model.decoder.decode(full.features(torch.float64), full.image_size_B4(torch.float64))
    assert relative_error(found.logits_BQ, expected.logits_BQ) < TOLERANCE
    assert relative_error(found.boxes_BQ4, expected.boxes_BQ4) < TOLERANCE
    assert relative_error(found.mean_BQKD.flatten(0, 1), expected.mean_RKD) < TOLERANCE
    assert relative_error(found.sigma_BQKD.flatten(0, 1), expected.sigma_RKD) < TOLERANCE


@pytest.mark.parametrize(
    ("only_matched", "queries"),
    [pytest.param(False, ALL, id="v0-all-queries"), pytest.param(True, MATCHED, id="v1-matched-rows-refined")],
)
def test_training(full: FullFixture, only_matched: bool, queries: tuple[str, ...]) -> None:
    model = TinyPose(full, torch.float64, *FULL, *SERIAL, *queries).train()
    targets = full.targets("stable", torch.float64)
    found = model.decoder.decode_training(full.features(torch.float64), targets, model.matcher)
    oracle = build_oracle(full, refined_goes_on=True, match=matching(model, targets), only_matched=only_matched)
    expected = [as_prediction(stage, model, targets) for stage in oracle.run(2)]
    for ours, theirs in zip(found, expected, strict=True):
        assert relative_error(ours.logits_BQ, theirs.logits_BQ.detach()) < TOLERANCE
        assert relative_error(ours.boxes_BQ4, theirs.boxes_BQ4.detach()) < TOLERANCE
        assert relative_error(ours.mean_RKD, theirs.mean_RKD.detach()) < TOLERANCE
        assert relative_error(ours.sigma_RKD, theirs.sigma_RKD.detach()) < TOLERANCE
    gradients = []
    for stages, parameters in (
        (found, [OfficialView(full.state_dict, model).tensor(name) for name in WATCHED]),
        (expected, [oracle.weights[name] for name in WATCHED]),
    ):
        loss = torch.stack(list(model.criterion(stages, targets, normalizers(targets)).values())).sum()
        gradients.append(torch.autograd.grad(loss, parameters))
    for name, ours_gradient, theirs_gradient in zip(WATCHED, *gradients, strict=True):
        assert relative_error(ours_gradient, theirs_gradient) < TOLERANCE, name


def as_prediction(stage: StageOutput, model: TinyPose, targets: PersonTargets) -> StagePrediction:
    """What the criterion takes: poses of the matched rows."""
    matches = model.matcher(stage.logits_BQ, stage.boxes_BQ4, targets)
    rows = {
        (image, query): row
        for row, (image, query) in enumerate(zip(stage.image_R.tolist(), stage.query_R.tolist(), strict=True))
    }
    matched = [rows[pair] for pair in zip(matches.image_R.tolist(), matches.query_R.tolist(), strict=True)]
    return StagePrediction(stage.logits_BQ, stage.boxes_BQ4, matches, stage.mean_RKD[matched], stage.sigma_RKD[matched])
