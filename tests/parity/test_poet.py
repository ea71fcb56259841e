"""POET beside the authors' code: transformer and heads, matching, losses, gradients, post-processing, targets."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from querypose.checkpoint import convert_poet_official
from querypose.d2 import Boxes, Instances, Keypoints
from querypose.data.transforms import GeometricTransform, crop, horizontal_flip, resize, rotate, shortest_edge_size
from querypose.modeling.poet.meta_arch import poses_in_images
from querypose.modeling.poet.pose_vector import PoseTargets
from querypose.modeling.targets import PersonTargets
from querypose.skeleton import COCO_SKELETON
from tests.parity.poet_golden import (
    LOSSES,
    NUM_KEYPOINTS,
    WEIGHTS,
    PoetFixture,
    criterion,
    normalizers,
    outputs_of,
)

# Relative to the largest entry: forward and losses, gradients. The float32 limits are those of the fixture's README.
TOLERANCES = {torch.float64: (1e-6, 1e-6), torch.float32: (1e-5, 1e-4)}
CASES = ("people", "zero_in_one", "more_people_than_queries")


def assert_near(actual: Tensor, expected: Tensor, tolerance: float) -> None:
    scale = max(1.0, expected.abs().max().item()) if expected.numel() else 1.0
    torch.testing.assert_close(actual.to(expected), expected, rtol=0, atol=tolerance * scale)


@pytest.fixture(params=TOLERANCES, ids=str)
def open_fixture(request: pytest.FixtureRequest) -> Callable[[str], PoetFixture]:
    return lambda name: PoetFixture(name, request.param)


def test_position_encoding(open_fixture: Callable[[str], PoetFixture]) -> None:
    fixture = open_fixture("poet_head_d256")
    model = fixture.pose_transformer()
    position_BHWC = model.position_encoding(~fixture["in/feature_mask"], fixture.dtype)
    assert_near(position_BHWC.permute(0, 3, 1, 2), fixture["in/pos"], 1e-5)


def test_transformer_and_heads(open_fixture: Callable[[str], PoetFixture]) -> None:
    fixture = open_fixture("poet_head_d256")
    forward, _ = TOLERANCES[fixture.dtype]
    model, is_image = fixture.pose_transformer(), ~fixture["in/feature_mask"]
    memory: list[Tensor] = []
    model.transformer.encoder_layers[-1].register_forward_hook(lambda module, args, out: memory.append(out))
    with torch.no_grad():
        outputs = model(fixture["in/features"], is_image, True)
    assert_near(memory[0].transpose(1, 2).unflatten(2, is_image.shape[1:]), fixture["out/memory"], forward)
    expected = outputs_of(fixture["out/logits"], fixture["out/kpts"])
    assert_near(outputs.logits_SBQC, expected.logits_SBQC, forward)
    for ours, theirs in zip(
        (outputs.poses_SBQ.center_D, outputs.poses_SBQ.offset_KD, outputs.poses_SBQ.visibility_K),
        (expected.poses_SBQ.center_D, expected.poses_SBQ.offset_KD, expected.poses_SBQ.visibility_K),
        strict=True,
    ):
        assert_near(ours, theirs, forward)


@pytest.mark.parametrize("weights", WEIGHTS)
def test_losses_and_gradients_of_the_whole_head(open_fixture: Callable[[str], PoetFixture], weights: str) -> None:
    fixture = open_fixture("poet_head_d256")
    forward, backward = TOLERANCES[fixture.dtype]
    model, targets = fixture.pose_transformer(), fixture.targets("in/")
    features = fixture["in/features"].requires_grad_()
    outputs = model(features, ~fixture["in/feature_mask"], True)
    losses = criterion(weights)
    cost = losses.cost(outputs, targets)
    matches = losses.match(outputs, targets)
    unweighted = losses.unweighted_losses(outputs, targets, matches, normalizers(losses, targets, outputs))
    check_losses(fixture, weights, unweighted, forward)
    total = torch.stack([WEIGHTS[weights][name] * loss.sum() for name, loss in unweighted.items()]).sum()
    for layer in range(2):
        for image, count in enumerate(targets.counts):
            assert_near(cost[layer, image, :, :count], fixture[f"{weights}/cost/layer{layer}/img{image}"], forward)
    assert_near(total, fixture[f"{weights}/loss_total"], forward)
    total.backward()

    # Every eighth of 2048 channels: they are combinations of the 256 of the projection.
    assert features.grad is not None
    assert_near(features.grad[:, ::8], fixture[f"{weights}/grad/features"], backward)
    checked = gradients_by_their_names(model, fixture)
    names = [name for name in fixture.keys(f"{weights}/grad/") if name != "features"]
    assert len(names) > 10
    for name in names:
        assert_near(checked[name], fixture[f"{weights}/grad/{name}"], backward)
    for name in fixture.keys(f"{weights}/gradnorm/"):
        if name != "transformer.decoder.layers.0.self_attn.in_proj_weight":  # zero but for rounding
            assert_near(checked[name].norm(), fixture[f"{weights}/gradnorm/{name}"], 10 * backward)


def gradients_by_their_names(model: torch.nn.Module, fixture: PoetFixture) -> dict[str, Tensor]:
    """The name of every parameter is found by converting a state dict of names."""
    theirs = list(fixture.keys("w_int8/"))
    ours = convert_poet_official({name: torch.tensor(index) for index, name in enumerate(theirs)})
    gradients = {f"pose_transformer.{name}": parameter.grad for name, parameter in model.named_parameters()}
    return {theirs[int(index)]: gradients[name] for name, index in ours.items()}  # type: ignore[misc]  # all have one


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("case", CASES)
def test_criterion(open_fixture: Callable[[str], PoetFixture], case: str, weights: str) -> None:
    fixture = open_fixture("poet_criterion")
    forward, backward = TOLERANCES[fixture.dtype]
    logits, vectors = fixture[f"{case}/in/logits"].requires_grad_(), fixture[f"{case}/in/kpts"].requires_grad_()
    outputs, targets = outputs_of(logits, vectors), fixture.targets(f"{case}/in/")
    losses = criterion(weights)
    with torch.no_grad():
        cost = losses.cost(outputs, targets)
    for layer in range(len(cost)):
        for image, count in enumerate(targets.counts):
            expected = fixture[f"{case}/{weights}/cost/layer{layer}/img{image}"]
            assert_near(cost[layer, image, :, :count], expected, forward)
    matches = losses.match(outputs, targets)
    for layer, found in enumerate(matches):
        stored = fixture.matches(f"{case}/{weights}/", layer, targets.counts)
        for name in ("image_R", "query_R", "person_R", "slot_R"):
            assert torch.equal(getattr(found, name), getattr(stored, name)), name
    unweighted = losses.unweighted_losses(outputs, targets, matches, normalizers(losses, targets, outputs))
    check_losses(fixture, f"{case}/{weights}", unweighted, forward)
    total = torch.stack([WEIGHTS[weights][name] * loss.sum() for name, loss in unweighted.items()]).sum()
    assert_near(total, fixture[f"{case}/{weights}/loss_total"], forward)
    total.backward()
    assert_near(logits.grad, fixture[f"{case}/{weights}/grad/logits"], backward)  # type: ignore[arg-type]  # asked for
    assert_near(vectors.grad, fixture[f"{case}/{weights}/grad/kpts"], backward)  # type: ignore[arg-type]  # asked for


def check_losses(fixture: PoetFixture, prefix: str, unweighted: dict[str, Tensor], tolerance: float) -> None:
    num_layers = len(unweighted["loss_cls"])
    suffixes = [*(f"_{layer}" for layer in range(num_layers - 1)), ""]
    for ours, theirs in LOSSES.items():
        assert_near(unweighted[ours], torch.stack([fixture[f"{prefix}/loss/{theirs}{s}"] for s in suffixes]), tolerance)


@pytest.mark.parametrize("weights", WEIGHTS)
def test_persons_without_a_pose_cost_what_they_should(open_fixture: Callable[[str], PoetFixture], weights: str) -> None:
    """Their matcher zeroes the visibilities of other queries for such persons; all other costs and losses agree."""
    case = "invisible_center"
    fixture = open_fixture("poet_criterion")
    forward, _ = TOLERANCES[fixture.dtype]
    outputs = outputs_of(fixture[f"{case}/in/logits"], fixture[f"{case}/in/kpts"])
    targets = fixture.targets(f"{case}/in/")
    labels = torch.split(fixture[f"{case}/in/tgt_labels"], list(targets.counts))
    losses = criterion(weights)
    cost, has_pose = losses.cost(outputs, targets), targets.has_pose_BG
    num_queries = cost.shape[2]
    people_before, damaged = 0, set()
    for image, count in enumerate(targets.counts):
        damaged |= {divmod(people_before + p, num_queries) for p in range(count) if not has_pose[image, p]}
        people_before += count
    assert damaged
    probability = outputs.logits_SBQC.softmax(-1)
    differing = 0
    for layer in range(len(cost)):
        for image, count in enumerate(targets.counts):
            stored = fixture[f"{case}/{weights}/cost/layer{layer}/img{image}"]
            ours = cost[layer, image, :, :count].clone()
            for person, label in enumerate(labels[image].tolist()):
                # Their label of such a person follows from its nose, ours from its having no visible keypoint.
                ours_label = 1 if has_pose[image, person] else 0
                ours[:, person] += probability[layer, image, :, ours_label] - probability[layer, image, :, label]
            for query in range(num_queries):
                if (image, query) in damaged:
                    differing += int(not torch.allclose(ours[query], stored[query], atol=1e-3))
                else:
                    assert_near(ours[query], stored[query], forward)
    assert differing


def test_post_processing(open_fixture: Callable[[str], PoetFixture]) -> None:
    fixture = open_fixture("poet_postprocess")
    outputs = outputs_of(fixture["in/logits"][None], fixture["in/kpts"][None])
    sizes = [(int(height), int(width)) for height, width in fixture["in/target_sizes_hw"]]
    # Images of 1 x 1 pixel: the scale to the output frame is theirs.
    poses = poses_in_images(outputs, [(1, 1)] * len(sizes))
    samples = [{"height": height, "width": width} for height, width in sizes]
    results = poses.to_instances(samples, [(1, 1)] * len(sizes), num_poses=6)
    visibilities = fixture["in/kpts"][..., 2:].unflatten(-1, (-1, 3))[..., 2]
    assert sum(map(len, results)) < fixture["out/scores"].numel()
    for image, instances in enumerate(results):
        is_person = fixture["out/labels"][image] == 1
        scores, order = fixture["out/scores"][image][is_person].sort(descending=True)
        assert_near(instances.scores, scores, 1e-6)
        expected = fixture["out/keypoints"][image][is_person][order].unflatten(-1, (-1, 3))
        assert_near(instances.pred_keypoints, expected, 1e-6)
        assert_near(instances.pred_visibilities, visibilities[image][is_person][order], 1e-6)


def test_targets(open_fixture: Callable[[str], PoetFixture]) -> None:
    fixture = open_fixture("poet_targets")
    height, width = (int(side) for side in fixture["raw/image_hw"])
    keypoints = fixture["raw/keypoints"][fixture["raw/iscrowd"] == 0].unflatten(-1, (-1, 3))
    keypoints[..., :2] = keypoints[..., :2].clamp(min=torch.zeros(2), max=torch.tensor([width, height]))
    targets = pose_targets(keypoints, (height, width), fixture.dtype)
    check_targets(targets, fixture["normalize/keypoints"])


@pytest.mark.parametrize("stage", ["hflip", "crop", "resize", "resize_max", "rotate"])
def test_targets_after_augmentation(open_fixture: Callable[[str], PoetFixture], stage: str) -> None:
    """Their targets of the augmented image are ours of the keypoints that our transforms move."""
    fixture = open_fixture("poet_targets")
    height, width = (int(side) for side in fixture["raw/image_hw"])
    transforms: dict[str, Callable[[], GeometricTransform]] = {
        "hflip": lambda: horizontal_flip((height, width)),
        "crop": lambda: crop((height, width), *(int(fixture["crop/region_ijhw"][index]) for index in (1, 0, 3, 2))),
        "resize": lambda: resize((height, width), tuple(int(side) for side in fixture["resize/size"])),
        "resize_max": lambda: resize((height, width), shortest_edge_size((height, width), 800, 900)),
        "rotate": lambda: rotate((height, width), float(fixture["rotate/angle_deg"])),
    }
    transform = transforms[stage]()
    assert transform.output_size == tuple(int(side) for side in fixture[f"{stage}/size"])
    keypoints = fixture["raw/keypoints"][fixture["raw/iscrowd"] == 0].unflatten(-1, (-1, 3)).double()
    keypoints[..., :2] = keypoints[..., :2].clamp(min=torch.zeros(2), max=torch.tensor([width, height]))
    moved = torch.from_numpy(transform.apply_keypoints(keypoints.numpy(), COCO_SKELETON.flip_indices))
    targets = pose_targets(moved, transform.output_size, fixture.dtype)
    expected = fixture[f"{stage}/keypoints"].clone()
    normalize(expected, transform.output_size)
    if stage == "crop":  # it leaves persons out who have nothing visible; so they are in ours, but without a pose
        targets = PoseTargets(targets.poses_BG[:, targets.has_pose_BG[0]], targets.counts)
        expected = expected[expected[:, 2] > 0]
    check_targets(targets, expected)


def normalize(vectors: Tensor, size: tuple[int, int]) -> None:
    """Their last step, in place."""
    vectors[:, 0::3] /= size[1]
    vectors[:, 1::3] /= size[0]
    for column in (3, 4):
        vectors[:, column::3] = vectors[:, column::3] * 0.5 + 0.5


def pose_targets(keypoints: Tensor, size: tuple[int, int], dtype: torch.dtype) -> PoseTargets:
    persons = Instances(size)
    persons.gt_keypoints = Keypoints(keypoints.float())
    persons.gt_boxes = Boxes(torch.zeros(len(keypoints), 4))
    return PoseTargets.from_persons(PersonTargets.from_instances([persons], NUM_KEYPOINTS, torch.device("cpu"), dtype))


def check_targets(targets: PoseTargets, expected: Tensor) -> None:
    """Ours with theirs (N, 54), where they count."""
    has_pose = expected[:, 2] > 0
    poses = targets.poses_BG[0]
    assert torch.equal(targets.has_pose_BG[0], has_pose)
    assert_near(poses.center_D[has_pose], expected[has_pose, :2], 1e-5)
    keypoints = expected[:, 3:].unflatten(-1, (-1, 3))
    assert torch.equal(poses.visibility_K, keypoints[..., 2])
    visible = keypoints[..., 2] > 0
    assert_near(poses.offset_KD[visible], 2 * keypoints[visible][:, :2] - 1, 1e-5)
