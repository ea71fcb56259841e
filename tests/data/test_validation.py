"""The validator: one data set with everything wrong, and each check for itself."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from querypose.data import DatasetError, register_pose_dataset
from querypose.data.image_checks import ImageDepth
from querypose.data.problems import Problem, errors_of, summarize
from querypose.data.validation import SHARED_IMAGES, check_datasets, check_flips
from querypose.skeleton import BUILTIN_SKELETONS, SkeletonError
from tests.data.toy_dataset import TOY_SKELETON, read_records, toy_annotation, toy_document, write_dataset

Register = Callable[..., str]


@pytest.fixture
def register(datasets_root: Path) -> Register:
    """Writes a toy data set of a name, registers it under that name, and returns the name."""

    def write_and_register(name: str, document: Any) -> str:
        register_pose_dataset(name, *write_dataset(datasets_root / name, document), TOY_SKELETON)
        return name

    return write_and_register


def kinds(problems: list[Problem]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for problem in problems:
        found.setdefault(problem.kind, []).append(problem.id)
    return found


def test_sound_data_set_has_no_problem(register: Register) -> None:
    assert check_datasets([register("sound", toy_document())], depth="pixels") == []


def test_everything_wrong_is_found_in_one_pass(register: Register, datasets_root: Path) -> None:
    keypoints = toy_annotation()["keypoints"]
    document = toy_document(
        images=[
            *toy_document()["images"],
            {"id": 2, "file_name": "again.png", "width": 3, "height": 3},
            {"id": 8, "file_name": "a.png", "width": 40, "height": 30},
            {"id": 9, "file_name": "gone.png", "width": 40, "height": 30},
            {"id": 10, "file_name": "empty.png", "width": 40, "height": 30},
            {"id": 11, "file_name": "b.png", "width": 31, "height": 40},
            {"id": 12, "file_name": "c.png", "width": 30, "height": None},
            {"file_name": "d.png", "width": 30, "height": 40},
        ],
        annotations=[
            toy_annotation(id=1),
            toy_annotation(id=1),
            toy_annotation(id=2, keypoints=keypoints[:6]),
            toy_annotation(id=3, keypoints=[*keypoints[:8], 3]),
            toy_annotation(id=4, keypoints=[float("nan"), *keypoints[1:]]),
            toy_annotation(id=5, bbox=[35, 5, 20, 10]),
            toy_annotation(id=6, bbox=[50, 5, 20, 10]),
            toy_annotation(id=7, bbox=[5, 5, 0, 10]),
            toy_annotation(id=8, image_id=77),
            toy_annotation(id=9, category_id=5),
            toy_annotation(id=10, image_id=12),
            toy_annotation(id=11, keypoints=[90, 8, 2, *keypoints[3:]]),
            toy_annotation(id=12, iscrowd=2),
            {"image_id": 7},
        ],
    )
    name = register("wrong", document)
    (datasets_root / "wrong" / "images" / "empty.png").touch()
    problems = check_datasets([name])
    assert kinds(errors_of(problems)) == {
        "duplicate image id": ["image 2"],
        "image without size": ["image 12"],
        "image without id": [""],
        "duplicate annotation id": ["annotation 1"],
        "annotation without id": [""],
        "wrong number of values in keypoints": ["annotation 2"],
        "visibility other than 0, 1, 2": ["annotation 3"],
        "not a finite number in keypoints": ["annotation 4"],
        "unknown image id": ["annotation 8"],
        "unknown category id": ["annotation 9"],
        "iscrowd other than 0, 1": ["annotation 12"],
        "unreadable image": ["image 9", "image 10"],
        "size differs from the json": ["image 11"],
    }
    assert kinds([problem for problem in problems if problem.severity == "warning"]) == {
        "image listed twice": ["image 8", "image 11"],
        "labeled keypoints outside the image": ["annotation 11"],
        "box outside the image": ["annotation 5"],
        "empty box": ["annotation 6", "annotation 7"],
    }
    for problem in problems:
        assert problem.remedy
        assert str(datasets_root) in problem.file
        assert problem.kind == "unreadable image" or problem.id.rpartition(" ")[2] in problem.what


def test_loader_refuses_by_the_same_check_and_counts_the_rest(register: Register, datasets_root: Path) -> None:
    name = register("wrong", toy_document(annotations=[toy_annotation(keypoints=[1]), toy_annotation(id=2, bbox=[])]))
    first, second = check_datasets([name])
    with pytest.raises(DatasetError) as caught:
        read_records(datasets_root / name / "toy.json", datasets_root / name / "images", TOY_SKELETON)
    assert {first.id, second.id} == {"annotation 1", "annotation 2"}
    assert str(caught.value).startswith(first.message)
    assert "the first of 2 errors. tools/check_dataset.py lists all" in str(caught.value)


def test_truncated_image_is_found_where_pixels_are_read(register: Register, datasets_root: Path) -> None:
    images = [{**image, "file_name": image["file_name"].replace("png", "jpg")} for image in toy_document()["images"]]
    name = register("cut", toy_document(images=images))
    for path in (datasets_root / "cut" / "images").glob("*.png"):
        with Image.open(path) as image:
            image.save(path.with_suffix(".jpg"))
    path = datasets_root / "cut" / "images" / "a.jpg"
    path.write_bytes(path.read_bytes()[:-200])
    assert check_datasets([name], depth="header") == []
    (problem,) = check_datasets([name], depth="pixels")
    assert (problem.kind, problem.id) == ("unreadable image", "image 7")
    assert "download it again" in problem.remedy
    assert check_datasets([name], depth="pixels", num_threads=1) == [problem]


def test_swapped_height_and_width_are_a_warning(register: Register, datasets_root: Path) -> None:
    document = toy_document(annotations=[toy_annotation(bbox=[3, 3, 36, 20])])
    for image in document["images"]:
        image["width"], image["height"] = image["height"], image["width"]
    # Image 7 is betrayed by its box, image 2 has none.
    name = register("swapped", document)
    problems = check_datasets([name])
    assert kinds(problems) == {"height and width swapped": ["image 7", "image 2"]}
    assert not errors_of(problems)


def test_image_that_exif_turns_and_the_json_does_not_is_an_error(register: Register, datasets_root: Path) -> None:
    name = register("exif", toy_document(annotations=[toy_annotation(bbox=[3, 3, 36, 20])]))
    path = datasets_root / "exif" / "images" / "a.png"
    exif = Image.Exif()
    exif[0x0112] = 6
    with Image.open(path) as image:
        image.save(path, exif=exif)
    (problem,) = errors_of(check_datasets([name]))
    assert problem.kind == "annotations ignore the EXIF rotation"


@pytest.mark.parametrize("depth", ["none", "header", "pixels"])
def test_images_in_two_splits(register: Register, datasets_root: Path, depth: ImageDepth) -> None:
    document = toy_document()
    train = register("train", document)
    json_file = datasets_root / "val.json"
    json_file.write_text(json.dumps({**document, "images": document["images"][:1]}))
    register_pose_dataset("val", json_file, datasets_root / "train" / "images", TOY_SKELETON)
    (shared,) = check_datasets([train], ["val"], depth)
    assert (shared.kind, shared.id, shared.severity) == (SHARED_IMAGES, "image 7", "warning")
    assert "image 7 of 'val' is image 7 of 'train'" in shared.what


def test_the_same_picture_under_another_name_is_found_where_pixels_are_read(
    register: Register, datasets_root: Path
) -> None:
    train = register("train", toy_document())
    shutil.copytree(datasets_root / "train" / "images", datasets_root / "copies")
    (datasets_root / "copies" / "a.png").rename(datasets_root / "copies" / "z.png")
    document = toy_document(images=[{"id": 1, "file_name": "z.png", "width": 40, "height": 30}], annotations=[])
    json_file = datasets_root / "val.json"
    json_file.write_text(json.dumps(document))
    register_pose_dataset("val", json_file, datasets_root / "copies", TOY_SKELETON)
    assert check_datasets([train], ["val"], "header") == []
    assert kinds(check_datasets([train], ["val"], "pixels")) == {SHARED_IMAGES: ["image 1"]}


def test_training_and_testing_on_the_same_data_set_is_one_warning(register: Register) -> None:
    name = register("both", toy_document())
    (problem,) = check_datasets([name], [name])
    assert problem.kind == SHARED_IMAGES
    assert "'both' is in DATASETS.TRAIN and in DATASETS.TEST" in problem.what


def test_missing_json_and_missing_folder(datasets_root: Path) -> None:
    json_file, images = write_dataset(datasets_root, toy_document())
    register_pose_dataset("no_json", datasets_root / "gone.json", images, TOY_SKELETON)
    register_pose_dataset("no_folder", json_file, datasets_root / "gone", TOY_SKELETON)
    assert list(kinds(check_datasets(["no_json", "no_folder"]))) == ["no annotation file", "no image folder"]
    with pytest.raises(SkeletonError, match="no pose dataset 'unknown'"):
        check_datasets(["unknown"])


@pytest.mark.parametrize("skeleton", [*BUILTIN_SKELETONS.values(), TOY_SKELETON], ids=lambda skeleton: skeleton.name)
def test_flips_pair_in_known_skeletons(skeleton: Any) -> None:
    assert check_flips(skeleton) == []


def test_flips_that_do_not_pair() -> None:
    forgotten = dataclasses.replace(TOY_SKELETON, flip_pairs=())
    assert [problem.id for problem in check_flips(forgotten)] == ["keypoint left", "keypoint right"]
    crossed = dataclasses.replace(TOY_SKELETON, flip_pairs=((0, 1),))
    assert "should make 'left' into 'right', but it makes it 'nose'" in check_flips(crossed)[0].message


def test_summary_counts_by_kind_errors_first() -> None:
    problems = [Problem("warning", "w", "f", "", f"w{index}", "r") for index in range(5)]
    problems += [Problem("error", "e", "f", "", "e0", "r")]
    assert summarize(problems, num_examples=2) == [
        "error: e: 1", "    f: e0; r.", "warning: w: 5", "    f: w0; r.", "    f: w1; r.", "    … and 3 more"
    ]  # fmt: skip


@pytest.mark.parametrize("folder", ["coco", "crowdpose", "macaque"])
def test_real_samples_have_no_error(shared_data: Path, datasets_root: Path, folder: str) -> None:
    path = shared_data / "samples" / folder
    skeleton = BUILTIN_SKELETONS["crowdpose" if folder == "crowdpose" else "coco"]
    register_pose_dataset("sample", path / f"test_{folder}.json", path, skeleton)
    assert errors_of(check_datasets(["sample"], depth="pixels")) == []
