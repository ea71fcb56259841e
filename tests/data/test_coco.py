from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image

from querypose.d2 import BoxMode
from querypose.data import DatasetError, PoseAnnotations, read_annotations
from querypose.data.problems import count_by_kind
from querypose.skeleton import COCO_SKELETON, CROWDPOSE_SKELETON
from tests.data.toy_dataset import TOY_SKELETON, read_records, toy_annotation, toy_document, write_dataset


def _read(folder: Path, document: Any) -> PoseAnnotations:
    return read_annotations(*write_dataset(folder, document), TOY_SKELETON).require_sound()


def _load(folder: Path, document: Any) -> list[dict[str, Any]]:
    return _read(folder, document).records()


def test_records_are_those_of_detectron2(tmp_path: Path) -> None:
    json_file, images = write_dataset(tmp_path, toy_document())
    nobody, somebody = read_records(json_file, images, TOY_SKELETON)
    assert nobody == {
        "file_name": str(images / "b.png"), "height": 40, "width": 30, "image_id": 2, "sample_id": 2,
        "annotations": [],
    }  # fmt: skip
    person, region = somebody["annotations"]
    assert person == {
        "id": 1, "bbox": [10.0, 5.0, 20.0, 15.0], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 0, "iscrowd": 0,
        "keypoints": [15.5, 8.5, 2.0, 25.75, 12.5, 1.0, 0.5, 0.5, 0.0],
    }  # fmt: skip
    assert region["iscrowd"] == 1
    annotations = read_annotations(json_file, images, TOY_SKELETON)
    assert (annotations.category_id, annotations.category) == (3, "toy")
    assert annotations.record(1) == somebody


def test_split_without_annotations_gives_images_alone(tmp_path: Path) -> None:
    document = toy_document(categories=[{"id": number, "name": str(number)} for number in range(1, 4)])
    del document["annotations"]
    records = _load(tmp_path, document)
    assert [record["image_id"] for record in records] == [2, 7]
    assert not any("annotations" in record for record in records)


def test_crowd_region_may_lack_keypoints_and_persons_may_lack_labels(tmp_path: Path) -> None:
    region = toy_annotation(id=2, iscrowd=1)
    del region["keypoints"]
    document = toy_document(annotations=[toy_annotation(keypoints=[0] * 9), region])
    persons = _load(tmp_path, document)[1]["annotations"]
    assert [person["keypoints"][2::3] for person in persons] == [[0, 0, 0]] * 2


def test_only_the_category_with_these_keypoints_is_read(tmp_path: Path) -> None:
    categories = [{"id": 1, "name": "dog", "keypoints": ["tail"]}, *toy_document()["categories"]]
    dog = toy_annotation(id=9, category_id=1, keypoints=[1, 1, 2])
    document = toy_document(categories=categories, annotations=[dog, toy_annotation()])
    annotations = _read(tmp_path, document)
    assert [person["id"] for record in annotations.records() for person in record["annotations"]] == [1]
    (problem,) = annotations.problems
    assert "1 of 2 annotations are of another category than 3" in problem.message


def test_category_without_names_is_taken_where_it_is_the_only_one(tmp_path: Path) -> None:
    assert len(_load(tmp_path, toy_document(categories=[{"id": 3, "name": "toy"}]))) == 2


def test_boxes_are_clipped_to_the_image_and_empty_ones_left_out_of_the_records(tmp_path: Path) -> None:
    boxes = {1: [-5, -5, 20, 15], 2: [30, 20, 15, 15], 3: [50, 50, 4, 4], 4: [5, 5, 0, 9]}
    document = toy_document(annotations=[toy_annotation(id=number, bbox=box) for number, box in boxes.items()])
    annotations = _read(tmp_path, document)
    persons = annotations.record(1)["annotations"]
    assert {person["id"]: person["bbox"] for person in persons} == {1: [0, 0, 15, 10], 2: [30, 20, 10, 10]}
    assert annotations.boxes_xywh.tolist() == list(boxes.values())  # an evaluation counts them all
    path = tmp_path / "toy.json"
    assert count_by_kind(annotations.problems) == [
        f"{path}: box outside the image: 2 times (annotation 1, annotation 2); the box is clipped.",
        f"{path}: empty box: 2 times (annotation 3, annotation 4); training leaves this annotation out.",
    ]


def test_arrays_are_those_of_the_file_sorted_by_image(tmp_path: Path) -> None:
    document = toy_document(annotations=[
        toy_annotation(id=5), toy_annotation(id=4, image_id=2, area=None), toy_annotation(id=3, num_keypoints=0),
    ])  # fmt: skip
    del document["annotations"][0]["num_keypoints"]
    document["images"][0]["crowdIndex"] = 0.25
    annotations = _read(tmp_path, document)
    assert (annotations.image_ids, annotations.ids) == ([2, 7], [4, 5, 3])
    assert annotations.image_indices.tolist() == [0, 1, 1]
    assert [annotations.of_image(index) for index in (0, 1)] == [slice(0, 1), slice(1, 3)]
    assert annotations.keypoints[1].ravel().tolist() == toy_annotation()["keypoints"]
    assert annotations.num_keypoints.tolist() == [2, 2, 0]
    np.testing.assert_array_equal(annotations.areas, [np.nan, 159, 159])
    np.testing.assert_array_equal(annotations.crowd_indices, [np.nan, 0.25])


def test_without_image_folder_no_image_is_opened(tmp_path: Path) -> None:
    json_file, _ = write_dataset(tmp_path, toy_document(annotations=[toy_annotation(bbox=[3, 3, 20, 36])]))
    (problem,) = read_annotations(json_file, None, TOY_SKELETON).problems
    assert problem.kind == "box outside the image"


def test_size_swapped_in_the_json_is_recognized_by_boxes_that_fit_only_the_image(tmp_path: Path) -> None:
    document = toy_document(annotations=[toy_annotation(bbox=[3, 3, 36, 20])])
    json_file, images = write_dataset(tmp_path, document)
    entry = document["images"][0]
    entry["width"], entry["height"] = entry["height"], entry["width"]
    json_file.write_text(json.dumps(document), encoding="utf-8")
    annotations = read_annotations(json_file, images, TOY_SKELETON)
    record = annotations.record(1)
    assert (record["height"], record["width"]) == (30, 40)
    assert record["annotations"][0]["bbox"] == [3, 3, 36, 20]
    (problem,) = annotations.problems
    assert "image 7 do not fit its size, 30x40: the json has swapped height and width; corrected" in problem.message


def test_box_that_leaves_an_image_of_the_stated_size_is_clipped_though_it_fits_the_transposed_size(
    tmp_path: Path,
) -> None:
    document = toy_document(annotations=[toy_annotation(bbox=[3, 3, 20, 36])])
    assert _load(tmp_path, document)[1]["annotations"][0]["bbox"] == [3, 3, 20, 27]


def test_image_that_could_tell_its_size_must_be_there(tmp_path: Path) -> None:
    json_file, images = write_dataset(tmp_path, toy_document(annotations=[toy_annotation(bbox=[3, 3, 20, 36])]))
    (images / "a.png").unlink()
    with pytest.raises(DatasetError, match=r"boxes of image 7 do not fit its size, 40x30.*There is no image"):
        read_records(json_file, images, TOY_SKELETON)


def _without(mapping: dict[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in mapping.items() if name != key}


def _image(**changes: Any) -> dict[str, Any]:
    return toy_document(images=[{**toy_document()["images"][0], **changes}], annotations=[])


def _annotation(**changes: Any) -> dict[str, Any]:
    return toy_document(annotations=[toy_annotation(**changes)])


def _category(**changes: Any) -> dict[str, Any]:
    return toy_document(categories=[{**toy_document()["categories"][0], **changes}])


BROKEN_FILES: dict[str, tuple[Any, str]] = {
    "truncated": (json.dumps(toy_document())[:200], "is not valid json .*download or create it again"),
    "empty": ("", "is not valid json"),
    "list": ("[]", "not a COCO json: the list 'images' is missing"),
    "no images field": (_without(toy_document(), "images"), "the list 'images' is missing"),
    "annotations not a list": (toy_document(annotations={}), "'annotations' is not a list"),
    "no images": (toy_document(images=[], annotations=[]), "list 'images' is empty"),
    "image id a text": (_image(id="7"), "no integer 'id'"),
    "image id twice": (toy_document(images=toy_document()["images"][:1] * 2), "two images have the id 7"),
    "image without name": (_image(file_name=None), "image 7 has no 'file_name'"),
    "image without size": (_image(height=None), r"image 7 \(a.png\) has height None"),
    "image of width 0": (_image(width=0), "width 0; write its size in pixels"),
    "category id missing": (_category(id=None), "category .* has no integer 'id'"),
    "other order": (
        _category(keypoints=["nose", "right", "left"]),
        "number 1 is 'right' in the file and 'left' in the skeleton; use the skeleton",
    ),
    "other number": (_category(keypoints=["nose", "left"]), "has 2 keypoints, but skeleton 'toy' has 3"),
    "no category": (toy_document(categories=[]), "none of its 0 categories has 'keypoints'.*nose, left, right"),
    "category twice": (toy_document(categories=toy_document()["categories"] * 2), "2 categories have the keypoints"),
    "annotation id missing": (_annotation(id=None), "an annotation has no integer 'id'"),
    "annotation id twice": (toy_document(annotations=[toy_annotation()] * 2), "two annotations have the id 1"),
    "unknown image": (_annotation(image_id=8), "annotation 1 has the image_id 8, which is not in 'images'; add"),
    "unknown category": (_annotation(category_id=4), "annotation 1 has the category_id 4, which is not in"),
    "no keypoints": (
        toy_document(annotations=[_without(toy_annotation(), "keypoints")]),
        "'keypoints' of annotation 1 .*is None; it must be 9 numbers",
    ),
    "two keypoints": (_annotation(keypoints=[1] * 6), r"annotation 1 \(image 7\) is 6 numbers; it must be 9 numbers"),
    "NaN keypoint": (_annotation(keypoints=[float("nan"), 1, 2] * 3), "annotation 1 .* a value that is not a finite"),
    "null keypoint": (_annotation(keypoints=[None, 1, 2] * 3), "annotation 1 .*has a value that is not a finite"),
    "text keypoint": (_annotation(keypoints=["x", 1, 2] * 3), "annotation 1 .*has a value that is not a finite"),
    "nested keypoint": (_annotation(keypoints=[[1], 1, 2] * 3), "annotation 1 .*has a value that is not a finite"),
    "visibility 3": (_annotation(keypoints=[1, 1, 2, 1, 1, 3, 0, 0, 0]), "number 1 of annotation 1 has the vis.* 3"),
    "no box": (toy_document(annotations=[_without(toy_annotation(), "bbox")]), "'bbox' of annotation 1"),
    "box of 3": (_annotation(bbox=[1, 2, 3]), "is 3 numbers; it must be 4 numbers: x, y, width, height"),
    "negative box": (_annotation(bbox=[5, 5, 4, -2]), r"box \(5, 5, 4, -2\) of annotation 1 has a negative size"),
    "visibility 1.5": (_annotation(keypoints=[1, 1, 1.5, 1, 1, 2, 0, 0, 0]), "annotation 1 has the visibility 1.5"),
    "visibility -1": (_annotation(keypoints=[1, 1, -1, 1, 1, 2, 0, 0, 0]), "annotation 1 has the visibility -1"),
    "iscrowd null": (_annotation(iscrowd=None), "'iscrowd' of annotation 1 is None; allowed: 0"),
    "area a text": (_annotation(area="12"), "'area' of annotation 1 is '12'; allowed: a finite number >= 0"),
    "area NaN": (_annotation(area=float("nan")), "'area' of annotation 1 is nan"),
    "area -1": (_annotation(area=-1), "'area' of annotation 1 is -1"),
    "num_keypoints": (_annotation(num_keypoints=-1), "'num_keypoints' of annotation 1 is -1; allowed: an integer >= 0"),
    "infinite box": (_annotation(bbox=[0, 0, float("inf"), 3]), "'bbox' .* is not a finite number; correct it\\."),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN_FILES)
def test_broken_file_is_one_clear_error(tmp_path: Path, name: str) -> None:
    document, message = BROKEN_FILES[name]
    with pytest.raises(DatasetError, match=message) as caught:
        _load(tmp_path, document)
    assert "toy.json" in str(caught.value)


def test_missing_json_and_missing_folder(tmp_path: Path) -> None:
    json_file, images = write_dataset(tmp_path, toy_document())
    with pytest.raises(DatasetError, match=r"no annotation file '.*gone\.json'; see datasets/README\.md"):
        read_records(tmp_path / "gone.json", images, TOY_SKELETON)
    with pytest.raises(DatasetError, match=r"no image folder .*set DETECTRON2_DATASETS"):
        read_records(json_file, tmp_path / "gone", TOY_SKELETON)


_json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 50) | st.floats(allow_nan=True) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=9) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=12,
)


@settings(
    max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    place=st.sampled_from(["images", "annotations", "categories"]),
    field=st.sampled_from(
        ["id", "image_id", "category_id", "bbox", "keypoints", "iscrowd", "file_name", "height", "width", "name", ""]
    ),
    value=_json_values,
)
@example(place="categories", field="keypoints", value=1)
def test_whatever_a_field_holds_the_file_loads_or_is_refused(
    tmp_path: Path, place: str, field: str, value: Any
) -> None:
    document = toy_document()
    json_file, images = write_dataset(tmp_path, document)
    if field:
        document[place][0][field] = value
    else:
        document[place] = value
    json_file.write_text(json.dumps(document), encoding="utf-8")
    try:
        records = read_records(json_file, images, TOY_SKELETON)
    except DatasetError as error:
        assert "toy.json" in str(error)  # noqa: PT017  # most documents load
    else:
        boxes = [person["bbox"] for record in records for person in record.get("annotations", ())]
        assert np.isfinite(np.array(boxes)).all()


def test_samples_of_coco_crowdpose_and_macaques_load(shared_data: Path) -> None:
    samples = shared_data / "samples"
    for folder, name, skeleton, persons in (
        ("coco", "test_coco", COCO_SKELETON, 14),
        ("crowdpose", "test_crowdpose", CROWDPOSE_SKELETON, 5),
        ("crowdpose", "test_crowdpose_repaired", CROWDPOSE_SKELETON, 5),
        ("macaque", "test_macaque", COCO_SKELETON, 2),
    ):
        records = read_records(samples / folder / f"{name}.json", samples / folder, skeleton)
        assert sum(len(record["annotations"]) for record in records) == persons
        for record in records:
            with Image.open(record["file_name"]) as image:
                assert image.size == (record["width"], record["height"])


def test_crowdpose_joints_of_head_and_outside_the_box_are_kept(shared_data: Path) -> None:
    folder = shared_data / "samples" / "crowdpose"
    records = read_records(folder / "test_crowdpose.json", folder, CROWDPOSE_SKELETON)
    (person,) = [person for record in records for person in record["annotations"] if person["id"] == 123803]
    head = np.array(person["keypoints"]).reshape(-1, 3)[CROWDPOSE_SKELETON.keypoints.index("head")]
    assert head.tolist() == [256.5, 27.5, 1]
    unlabeled = [person for record in records for person in record["annotations"] if not any(person["keypoints"][2::3])]
    assert [person["id"] for person in unlabeled] == [131039]


def test_mpii_sample_is_refused_with_a_clear_error(shared_data: Path) -> None:
    folder = shared_data / "samples" / "mpii"
    with pytest.raises(DatasetError, match="not a COCO json"):
        read_records(folder / "test_mpii.json", folder, COCO_SKELETON)
