"""The authors' checkpoints: every entry of the five listings finds its place, and nothing else does."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from querypose.checkpoint import convert_querypose_official, convert_state_dict
from querypose.checkpoint.backbones import BACKBONE_DEAD
from querypose.checkpoint.conversion import build_on_meta
from querypose.checkpoint.querypose_official import DECODER_DEAD
from querypose.checkpoint.renaming import rename_entries
from querypose.config import load_config
from querypose.d2 import CheckpointError
from querypose.skeleton import COCO_SKELETON
from tests.checkpoint.listings import CONFIGS, config_file, read_dead, read_listing, read_parameter_counts

PARTS = COCO_SKELETON.parts()


@pytest.mark.parametrize("listing", CONFIGS)
def test_listing_converts_without_leftover_and_loads_strictly(listing: str) -> None:
    cfg = load_config(config_file(listing), ["MODEL.DEVICE", "cpu"])
    converted = convert_state_dict("querypose-official", read_listing(listing), cfg)
    model = build_on_meta(cfg)
    model.load_state_dict(converted, strict=True, assign=True)

    counts, found = read_parameter_counts(listing), list(model.named_parameters())
    dead = counts["trainable but dead"]
    assert sum(value.numel() for _, value in found) == counts["total"] - dead
    assert sum(value.numel() for _, value in found if value.requires_grad) == counts["trainable"] - dead
    for column, prefixes in (
        ("box decoder", ("decoder.box_stages.",)),
        ("flow", ("criterion.flow.",)),
        ("queries", ("decoder.proposal_boxes", "decoder.instance_queries", "decoder.part_queries")),
    ):
        assert sum(value.numel() for name, value in found if name.startswith(prefixes)) == counts[column]


@pytest.mark.parametrize("listing", CONFIGS)
def test_dead_are_the_entries_without_gradient_and_a_constant(listing: str) -> None:
    entries = read_listing(listing)
    alive = rename_entries(entries, [(".+", r"\g<0>")], DECODER_DEAD + BACKBONE_DEAD)  # type: ignore[list-item]  # a pair is a rule
    assert sorted(entries.keys() - alive.keys()) == sorted([*read_dead(listing), "criterion.flow.flow.mask"])


def test_every_value_is_used_once() -> None:
    """Numbers every value of a stage's part layers; after the merge each number is there once."""
    prefix = "head.pose_head_series.0."
    entries = {
        name: value
        for name, value in read_listing("res50-light").items()
        if name.startswith(tuple(prefix + layer for layer in ("fc_coord", "fc_sigma", "residual_filter")))
    }
    first, numbered = 0, {}
    for name, value in entries.items():
        numbered[name] = torch.arange(first, first + value.numel()).view(value.shape)
        first += value.numel()
    converted = convert_querypose_official(numbered, PARTS)
    assert torch.equal(torch.cat([value.flatten() for value in converted.values()]).sort().values, torch.arange(first))

    # Left and right elbow and wrist, 7 and 9, are the third part: x, y, x, y.
    part = numbered[f"{prefix}fc_coord.2.linear.weight"]
    mean_weight = converted["decoder.keypoint_stages.0.regressor.mean_weight"]
    assert torch.equal(mean_weight[[7, 9]].flatten(0, 1), part)


def test_unknown_entry_is_named() -> None:
    with pytest.raises(CheckpointError, match=r"head\.head_series\.0\.surprise\.weight"):
        convert_querypose_official({"head.head_series.0.surprise.weight": torch.zeros(1)}, PARTS)


@pytest.mark.parametrize("damage", ["missing part", "other scheme"])
def test_parts_that_do_not_fit_the_skeleton_are_refused(damage: str) -> None:
    prefix = "head.pose_head_series.0.fc_coord"
    entries: dict[str, Tensor] = {
        f"{prefix}.{part}.linear.bias": torch.zeros(2 * len(keypoints)) for part, keypoints in enumerate(PARTS)
    }
    parts = PARTS
    if damage == "missing part":
        del entries[f"{prefix}.3.linear.bias"]
    else:
        parts = (PARTS[1], PARTS[0], *PARTS[2:])
    with pytest.raises(CheckpointError, match="PART_SCHEME"):
        convert_querypose_official(entries, parts)


@pytest.mark.parametrize(
    ("listing", "other", "hint"),
    [
        ("res50-light", "res50-full", "DYNAMIC_INTERACTION"),
        ("res50-full", "res50-light", "DYNAMIC_INTERACTION"),
        ("res50-light", "hrnet32-light", "MODEL.BACKBONE"),
    ],
)
def test_other_model_is_refused_with_a_hint(listing: str, other: str, hint: str) -> None:
    cfg = load_config(config_file(other), ["MODEL.DEVICE", "cpu"])
    with pytest.raises(CheckpointError, match=hint):
        convert_state_dict("querypose-official", read_listing(listing), cfg)


def test_other_size_is_refused() -> None:
    cfg = load_config(config_file("res50-light"), ["MODEL.DEVICE", "cpu", "MODEL.QUERYPOSE.NUM_QUERIES", "50"])
    with pytest.raises(CheckpointError, match=r"decoder.proposal_boxes \(100, 4\), not \(50, 4\)"):
        convert_state_dict("querypose-official", read_listing("res50-light"), cfg)
