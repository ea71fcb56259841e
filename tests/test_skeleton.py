"""Skeletons are consistent, and inconsistent ones are refused with the keypoint's name."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from querypose.skeleton import BUILTIN_SKELETONS, COCO_SKELETON, Skeleton, SkeletonError, skeleton_of_datasets

STICK: dict[str, Any] = {
    "name": "stick",
    "keypoints": ["head", "left_hand", "right_hand", "foot"],
    "sigmas": [0.05, 0.1, 0.1, 0.1],
    "flip_pairs": [["left_hand", "right_hand"]],
    "edges": [["head", "foot"]],
    "part_schemes": {"halves": [["head", "left_hand", "right_hand"], ["foot"]]},
}


@pytest.mark.parametrize("name", BUILTIN_SKELETONS)
def test_flipping_twice_changes_nothing_and_swaps_left_and_right(name: str) -> None:
    skeleton = BUILTIN_SKELETONS[name]
    flip = skeleton.flip_indices
    assert [flip[index] for index in flip] == list(range(skeleton.num_keypoints))
    mirrored = {"left": "right", "right": "left"}
    for index, keypoint in enumerate(skeleton.keypoints):
        side, _, joint = keypoint.partition("_")
        expected = f"{mirrored[side]}_{joint}" if side in mirrored else keypoint
        assert skeleton.keypoints[flip[index]] == expected


def test_from_dict_translates_names_to_indices() -> None:
    skeleton = Skeleton.from_dict(STICK)
    assert skeleton.flip_pairs == ((1, 2),)
    assert skeleton.edges == ((0, 3),)
    assert skeleton.parts() == ((0, 1, 2), (3,))
    assert skeleton.parts("joint") == ((0,), (1,), (2,), (3,))


def _named_parts(skeleton: Skeleton, scheme: str) -> set[frozenset[str]]:
    return {frozenset(skeleton.keypoints[index] for index in part) for part in skeleton.parts(scheme)}


def _sides(*joints: str) -> set[frozenset[str]]:
    return {frozenset(f"{side}_{joint}" for joint in joints) for side in ("left", "right")}


@pytest.mark.parametrize("name", ["coco", "crowdpose"])
def test_builtin_part_schemes_are_those_of_figure_4(name: str) -> None:
    """(a) a part a keypoint, (b) the head whole, (c) whole where rigid, (d) head and limbs; CrowdPose's likewise."""
    skeleton = BUILTIN_SKELETONS[name]
    head = frozenset(keypoint for keypoint in skeleton.keypoints if _is_of_the_head(keypoint))
    assert set(skeleton.part_schemes) == {"joint", "head+joints", "rigid", "limb"}
    assert _named_parts(skeleton, "joint") == {frozenset([keypoint]) for keypoint in skeleton.keypoints}
    joints = {frozenset([keypoint]) for keypoint in {*skeleton.keypoints} - head}
    assert _named_parts(skeleton, "head+joints") == {head} | joints
    shoulders, hips = (frozenset({f"left_{joint}", f"right_{joint}"}) for joint in ("shoulder", "hip"))
    rigid = {head, shoulders, hips} | _sides("elbow", "wrist") | _sides("knee", "ankle")
    assert _named_parts(skeleton, "rigid") == rigid == _named_parts(skeleton, "")
    limbs = _sides("shoulder", "elbow", "wrist") | _sides("hip", "knee", "ankle")
    assert _named_parts(skeleton, "limb") == {head} | limbs


def _is_of_the_head(keypoint: str) -> bool:
    return keypoint.partition("_")[2] in ("eye", "ear") or keypoint in ("nose", "head", "neck")


def test_the_paper_s_numbers_of_parts() -> None:
    counts = {
        name: [len(skeleton.parts(scheme)) for scheme in ("joint", "head+joints", "rigid", "limb")]
        for name, skeleton in BUILTIN_SKELETONS.items()
        if skeleton.part_schemes
    }
    assert counts == {"coco": [17, 13, 7, 5], "crowdpose": [14, 13, 7, 5]}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, ((0, 1, 2), (3,))),  # the first one of its own
        ({"default_part_scheme": "joint"}, ((0,), (1,), (2,), (3,))),
        ({"part_schemes": {}}, ((0,), (1,), (2,), (3,))),
    ],
)
def test_a_skeleton_from_yaml_has_a_default_scheme(
    change: dict[str, Any], expected: tuple[tuple[int, ...], ...]
) -> None:
    assert Skeleton.from_dict({**STICK, **change}).parts() == expected


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sigmas": [0.1]}, "sigmas must be 4 numbers in"),
        ({"sigmas": [0.1, 0.1, 0.1, 0.0]}, "sigmas must be 4 numbers in"),
        ({"keypoints": ["a", "a"], "flip_pairs": [], "edges": [], "part_schemes": {}}, "different names"),
        ({"flip_pairs": [["left_hand", "right_ear"]]}, "'right_ear' is not one of its keypoints"),
        ({"flip_pairs": [["left_hand", "right_hand"], ["head", "right_hand"]]}, "'right_hand' is in more than one"),
        ({"edges": [["head"]]}, r"edges is \[\['head'\]\]; allowed: a list of pairs"),
        ({"part_schemes": {"p": [["head", "left_hand", "right_hand"]]}}, "'p' does not have keypoint 'foot'"),
        (
            {"part_schemes": {"p": [["head", "left_hand", "right_hand"], ["foot", "head"]]}},
            "'p' has more than once keypoint 'head'",
        ),
        ({"part_schemes": {"p": [["head", "left_hand"], [], ["right_hand", "foot"]]}}, "'p' has an empty part"),
        (
            {"part_schemes": {"p": ["head", "foot"]}},
            "part_schemes is .*; allowed: names with lists of parts, each part a list of",
        ),
        ({"part_schemes": {"p": None}}, "part_schemes is .*; allowed: names with lists"),
        ({"part_schemes": [["head", "foot"]]}, "part_schemes is .*; allowed: names with lists"),
        ({"default_part_scheme": "thirds"}, "no part scheme 'thirds'; known: halves, joint"),
        ({"upper_body": ["head", "tail"]}, "'tail' is not one of its keypoints"),
        ({"head_segment": ["head"]}, r"head_segment is \['head'\]; allowed: two keypoints"),
        ({"color": "red"}, r"unknown fields \['color'\]"),
    ],
)
def test_an_inconsistent_skeleton_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(SkeletonError, match=message):
        Skeleton.from_dict({**STICK, **change})


def test_a_missing_field_is_named() -> None:
    with pytest.raises(SkeletonError, match=r"'stick' .* \['sigmas'\] are missing"):
        Skeleton.from_dict({name: value for name, value in STICK.items() if name != "sigmas"})


def test_an_index_out_of_range_is_refused() -> None:
    with pytest.raises(SkeletonError, match="part scheme 'p' has index 17"):
        dataclasses.replace(COCO_SKELETON, part_schemes={"p": ((17,),)}, default_part_scheme="p")


def test_datasets_share_one_skeleton() -> None:
    assert skeleton_of_datasets(["keypoints_coco_2017_train", "keypoints_coco_2017_val"]) == COCO_SKELETON
    with pytest.raises(SkeletonError, match="'keypoints_coco_2017_val' and 'crowdpose_test' have different skeletons"):
        skeleton_of_datasets(["keypoints_coco_2017_val", "crowdpose_test"])
    with pytest.raises(SkeletonError, match=r"no pose dataset 'coco_val'; known: .*crowdpose_test"):
        skeleton_of_datasets(["coco_val"])
    with pytest.raises(SkeletonError, match=r"DATASETS\.TRAIN and DATASETS\.TEST are empty"):
        skeleton_of_datasets([])
