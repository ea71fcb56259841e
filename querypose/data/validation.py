"""The validator: every problem of registered datasets in one list."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, NamedTuple

from querypose.d2 import MetadataCatalog
from querypose.data.datasets import dataset_annotations
from querypose.data.image_checks import ImageDepth, check_images
from querypose.data.problems import Problem
from querypose.skeleton import Skeleton, skeleton_of_datasets

SHARED_IMAGES = "image in training and test data"


class _Checked(NamedTuple):
    """The valid images of a dataset, each with a digest of its pixels if they were read, and the problems."""

    records: list[dict[str, Any]]
    digests: list[str | None]
    problems: list[Problem]


def check_datasets(
    train: Sequence[str],
    test: Sequence[str] = (),
    depth: ImageDepth = "header",
    *,
    num_threads: int | None = None,
    show_progress: bool = False,
) -> list[Problem]:
    """Every problem of some datasets, and the images that are in training and test data.

    Args:
        train: names of registered datasets.
        test: the same.
        depth: how much of the images to check, see `check_images`.
        num_threads: see `map_in_threads`.
        show_progress: draw bars on stderr.

    Raises:
        SkeletonError: a name is not that of a pose dataset.
        DatasetError: a dataset that makes its files when it is first used cannot make them.
    """
    skeletons = {name: skeleton_of_datasets([name]) for name in dict.fromkeys([*train, *test])}
    checked = {
        name: _check_dataset(name, depth, num_threads=num_threads, show_progress=show_progress) for name in skeletons
    }
    problems = [problem for name in skeletons for problem in checked[name].problems]
    for skeleton in {skeleton.name: skeleton for skeleton in skeletons.values()}.values():
        problems += check_flips(skeleton)
    for train_name in dict.fromkeys(train):
        for test_name in dict.fromkeys(test):
            problems += _shared_images(train_name, checked[train_name], test_name, checked[test_name])
    return problems


def check_flips(skeleton: Skeleton) -> list[Problem]:
    """Keypoints with a side in their name that a flip leaves on that side: training would mix left and right."""
    problems = []
    for index, keypoint in enumerate(skeleton.keypoints):
        mirrored = _other_side(keypoint)
        partner = skeleton.keypoints[skeleton.flip_indices[index]]
        if mirrored in skeleton.keypoints and partner != mirrored:
            becomes = "does not change it" if partner == keypoint else f"makes it {partner!r}"
            problems.append(
                Problem(
                    "error", "flips that do not pair", f"skeleton {skeleton.name!r}", f"keypoint {keypoint}",
                    f"a flip should make {keypoint!r} into {mirrored!r}, but it {becomes}",
                    "pair the two in flip_pairs of DATASETS.SKELETONS",
                )
            )  # fmt: skip
    return problems


def _other_side(keypoint: str) -> str:
    for left, right in (("left", "right"), ("Left", "Right"), ("LEFT", "RIGHT")):
        for side, other in ((left, right), (right, left)):
            if side in keypoint:
                return keypoint.replace(side, other)
    return ""


def _check_dataset(name: str, depth: ImageDepth, *, num_threads: int | None, show_progress: bool) -> _Checked:
    annotations = dataset_annotations(name)
    records = annotations.records()
    if not annotations.has_images:  # this is among the problems already
        depth = "none"
    problems, digests = check_images(records, depth, name, num_threads=num_threads, show_progress=show_progress)
    return _Checked(records, digests, annotations.problems + problems)


def _shared_images(train_name: str, train: _Checked, test_name: str, test: _Checked) -> list[Problem]:
    """Images in training and test data, by their path, and by their pixels if these were read."""
    remedy = "metrics on training images are too high"
    if train_name == test_name:
        if not train.records:
            return []
        what = f"dataset {train_name!r} is in DATASETS.TRAIN and in DATASETS.TEST"
        return [Problem("warning", SHARED_IMAGES, str(MetadataCatalog.get(test_name).json_file), "", what, remedy)]
    trained: dict[str, dict[str, Any]] = {}
    for record, digest in zip(train.records, train.digests, strict=True):
        for key in _identities(record, digest):
            trained.setdefault(key, record)
    problems = []
    for record, digest in zip(test.records, test.digests, strict=True):
        same = next((trained[key] for key in _identities(record, digest) if key in trained), None)
        if same is not None:
            id = f"image {record['image_id']}"
            what = f"{id} of {test_name!r} is image {same['image_id']} of {train_name!r}, {str(same['file_name'])!r}"
            problems.append(Problem("warning", SHARED_IMAGES, str(record["file_name"]), id, what, remedy))
    return problems


def _identities(record: dict[str, Any], digest: str | None) -> list[str]:
    path = os.path.realpath(str(record["file_name"]))
    return [path] if digest is None else [path, digest]
