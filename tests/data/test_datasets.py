from __future__ import annotations

import itertools
import logging
from pathlib import Path
from typing import Any

import pytest

from querypose.config import get_cfg
from querypose.d2 import CfgNode, DatasetCatalog, MetadataCatalog
from querypose.data import (
    DatasetError,
    dataset_annotations,
    load_datasets,
    register_builtin_datasets,
    register_custom_datasets,
    register_pose_dataset,
)
from querypose.data import datasets as datasets_module
from querypose.skeleton import COCO_SKELETON, CROWDPOSE_SKELETON, SkeletonError, skeleton_of_datasets
from tests.data.toy_dataset import TOY_SKELETON, count_reads, toy_annotation, toy_document, write_dataset

LAYOUT = {
    "keypoints_coco_2017_train": ("coco/annotations/person_keypoints_train2017.json", "coco/train2017", "coco"),
    "keypoints_coco_2017_val": ("coco/annotations/person_keypoints_val2017.json", "coco/val2017", "coco"),
    "keypoints_coco_2017_test-dev": ("coco/annotations/image_info_test-dev2017.json", "coco/test2017", "coco"),
    "crowdpose_train": ("crowdpose/json/crowdpose_train.json", "crowdpose/images", "crowdpose"),
    "crowdpose_val": ("crowdpose/json/crowdpose_val.json", "crowdpose/images", "crowdpose"),
    "crowdpose_trainval": ("crowdpose/json/crowdpose_trainval.json", "crowdpose/images", "crowdpose"),
    "crowdpose_test": ("crowdpose/json/crowdpose_test.json", "crowdpose/images", "crowdpose"),
    "lsp_train": ("lsp/train.json", "lsp/train", "coco"),
    "lsp_val": ("lsp/val.json", "lsp/val", "coco"),
    "lsp_tiny": ("lsp/tiny.json", "lsp/train", "coco"),
    "lsp_multi_train": ("lsp-multi/train.json", "lsp-multi/train", "crowdpose"),
    "lsp_multi_val": ("lsp-multi/val.json", "lsp-multi/val", "crowdpose"),
    "lsp_multi_tiny": ("lsp-multi/tiny.json", "lsp-multi/train", "crowdpose"),
    "synthetic_train": ("synthetic/train/annotations.json", "synthetic/train/images", "coco"),
    "synthetic_val": ("synthetic/val/annotations.json", "synthetic/val/images", "coco"),
    "synthetic_test": ("synthetic/test/annotations.json", "synthetic/test/images", "coco"),
    "synthetic_hard_train": ("synthetic/hard_train/annotations.json", "synthetic/hard_train/images", "coco"),
}


@pytest.mark.parametrize("name", LAYOUT)
def test_usual_names_are_registered_under_the_root(datasets_root: Path, name: str) -> None:
    json_file, image_root, evaluator = LAYOUT[name]
    metadata = MetadataCatalog.get(name)
    assert name in DatasetCatalog.list()
    assert metadata.json_file == str(datasets_root / json_file)
    assert metadata.image_root == str(datasets_root / image_root)
    assert metadata.evaluator_type == evaluator
    is_coco = name.startswith(("keypoints_coco", "synthetic"))
    assert metadata.skeleton is (COCO_SKELETON if is_coco else CROWDPOSE_SKELETON)
    assert metadata.keypoint_names == list(metadata.skeleton.keypoints)
    assert metadata.keypoint_flip_map[0] == (
        ("left_eye", "right_eye") if is_coco else ("left_shoulder", "right_shoulder")
    )
    assert metadata.thing_dataset_id_to_contiguous_id == {1: 0}
    rules = metadata.keypoint_connection_rules
    assert len(rules) > 10
    assert {name for first, second, _ in rules for name in (first, second)} <= set(metadata.keypoint_names)


def test_registration_touches_no_file(datasets_root: Path) -> None:
    assert list(datasets_root.iterdir()) == []


def test_root_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DETECTRON2_DATASETS", "/some/where")
    assert datasets_module.datasets_root() == Path("/some/where")
    monkeypatch.delenv("DETECTRON2_DATASETS")
    assert datasets_module.datasets_root() == Path("datasets")


def test_registering_again_replaces(datasets_root: Path) -> None:
    register_builtin_datasets(datasets_root)
    register_pose_dataset("toy", "a.json", "a", TOY_SKELETON)
    register_pose_dataset("toy", "b.json", "b", COCO_SKELETON, "crowdpose")
    metadata = MetadataCatalog.get("toy")
    assert (metadata.json_file, metadata.skeleton, metadata.evaluator_type) == ("b.json", COCO_SKELETON, "crowdpose")


def test_json_is_read_once_and_again_only_after_it_has_changed(
    datasets_root: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, engine_logs: None
) -> None:
    reads = count_reads(monkeypatch)
    json_file, images = write_dataset(datasets_root, toy_document(annotations=[toy_annotation(bbox=[-5, 5, 20, 9])]))
    register_pose_dataset("toy", json_file, images, TOY_SKELETON)
    with caplog.at_level(logging.WARNING):
        assert DatasetCatalog.get("toy") == dataset_annotations("toy").records() == load_datasets(["toy"])
    assert reads == [str(json_file)]
    assert caplog.text.count("partly outside") == 1
    write_dataset(datasets_root, toy_document(annotations=[]))
    assert not dataset_annotations("toy").ids
    assert len(reads) == 2


def test_annotations_of_what_is_no_pose_dataset(datasets_root: Path) -> None:
    with pytest.raises(DatasetError, match="There is no pose dataset 'gone'"):
        dataset_annotations("gone")


def test_loading_tells_the_metadata_the_category_of_the_json(datasets_root: Path) -> None:
    register_pose_dataset("toy", *write_dataset(datasets_root, toy_document()), TOY_SKELETON)
    assert len(DatasetCatalog.get("toy")) == 2
    assert len(DatasetCatalog.get("toy")) == 2
    assert MetadataCatalog.get("toy").thing_dataset_id_to_contiguous_id == {3: 0}
    assert MetadataCatalog.get("toy").thing_classes == ["toy"]


def _custom_config(folder: Path, **changes: Any) -> CfgNode:
    json_file, images = write_dataset(folder, toy_document())
    cfg = get_cfg()
    cfg.DATASETS.SKELETONS = [
        {"name": "toy", "keypoints": ["nose", "left", "right"], "flip_pairs": [["left", "right"]], "sigmas": [0.1] * 3,
         "edges": [["nose", "left"], ["nose", "right"]]}
    ]  # fmt: skip
    cfg.DATASETS.CUSTOM = [
        {"name": "my_toys", "json": str(json_file), "images": str(images), "skeleton": "toy", **changes}
    ]
    return cfg


def test_dataset_and_skeleton_from_yaml_alone(datasets_root: Path) -> None:
    (datasets_root / "experiment.yaml").write_text(
        "DATASETS: {SKELETONS: [{name: toy, keypoints: [nose, left, right], flip_pairs: [[left, right]],"
        " sigmas: [0.1, 0.1, 0.1]}],"
        f" CUSTOM: [{{name: my_toys, json: {datasets_root}/toy.json, images: {datasets_root}/images, skeleton: toy}}],"
        " TRAIN: [my_toys]}\n"
    )
    write_dataset(datasets_root, toy_document())
    cfg = get_cfg()
    cfg.merge_from_file(str(datasets_root / "experiment.yaml"))
    register_custom_datasets(cfg)
    register_custom_datasets(cfg)  # as a second process of the same run does
    assert skeleton_of_datasets(cfg.DATASETS.TRAIN).flip_indices == (0, 2, 1)
    assert len(load_datasets(cfg.DATASETS.TRAIN, require_persons=True)) == 1


def test_limbs_are_the_edges_of_the_skeleton_each_in_a_color(datasets_root: Path) -> None:
    register_pose_dataset("toy", "a.json", "a", TOY_SKELETON)
    rules = MetadataCatalog.get("toy").keypoint_connection_rules
    assert rules == [("nose", "left", (255, 0, 0)), ("nose", "right", (0, 255, 255))]
    register_pose_dataset("toy", "a.json", "a", COCO_SKELETON)
    assert len(MetadataCatalog.get("toy").keypoint_connection_rules) == len(COCO_SKELETON.edges)


def test_what_another_framework_says_of_limbs_stays(datasets_root: Path) -> None:
    MetadataCatalog.get("foreign").keypoint_connection_rules = [("nose", "left", (1, 2, 3))]
    for _ in range(2):
        register_pose_dataset("foreign", "a.json", "a", TOY_SKELETON)
        assert MetadataCatalog.get("foreign").keypoint_connection_rules == [("nose", "left", (1, 2, 3))]


def test_a_stream_is_not_read_to_its_end(datasets_root: Path) -> None:
    MetadataCatalog.get("stream")
    stream: Any = itertools.repeat({"file_name": "a.jpg"})
    DatasetCatalog.register("stream", lambda: stream)
    with pytest.raises(DatasetError, match="'stream' gives a repeat, not a list of dicts"):
        load_datasets(["stream"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"skeleton": "hand"}, "'my_toys': there is no skeleton 'hand'; known: coco, crowdpose, mpii, toy"),
        ({"name": "lsp_val"}, "'lsp_val': another dataset has this name"),
        ({"name": "synthetic_val"}, "'synthetic_val': another dataset has this name"),
        ({"image": "x"}, r"unknown fields \['image'\]; allowed: .*'evaluator', 'images', 'json'"),
    ],
)
def test_custom_entry_that_cannot_be_used(datasets_root: Path, changes: dict[str, str], message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        register_custom_datasets(_custom_config(datasets_root, **changes))


def test_custom_entries_that_clash_or_lack_a_field(datasets_root: Path) -> None:
    cfg = _custom_config(datasets_root)
    cfg.DATASETS.CUSTOM = cfg.DATASETS.CUSTOM * 2
    with pytest.raises(DatasetError, match="another dataset has this name"):
        register_custom_datasets(cfg)
    cfg = _custom_config(datasets_root)
    del cfg.DATASETS.CUSTOM[0]["json"]
    with pytest.raises(DatasetError, match=r"'my_toys': the fields \['json'\] are missing"):
        register_custom_datasets(cfg)
    cfg = _custom_config(datasets_root)
    cfg.DATASETS.SKELETONS[0]["name"] = "coco"
    with pytest.raises(DatasetError, match=r"DATASETS\.SKELETONS: the name 'coco' is already used"):
        register_custom_datasets(cfg)
    cfg.DATASETS.SKELETONS[0]["sigmas"] = [0.1]
    with pytest.raises(SkeletonError):
        register_custom_datasets(cfg)


def test_images_without_persons_are_left_out_on_request(datasets_root: Path) -> None:
    register_pose_dataset("toy", *write_dataset(datasets_root, toy_document()), TOY_SKELETON)
    assert [record["image_id"] for record in load_datasets(["toy"])] == [2, 7]
    assert [record["image_id"] for record in load_datasets(["toy"], require_persons=True)] == [7]
    assert len(load_datasets(["toy", "toy"], require_persons=True)) == 2
    # Its person has one visible keypoint.
    assert len(load_datasets(["toy"], require_persons=True, min_visible_keypoints=1)) == 1
    with pytest.raises(DatasetError, match="an annotated person with 2 visible keypoints"):
        load_datasets(["toy"], require_persons=True, min_visible_keypoints=2)


def test_datasets_on_which_nothing_can_be_trained(datasets_root: Path) -> None:
    crowd_only = toy_document(annotations=[toy_annotation(iscrowd=1)])
    register_pose_dataset("crowd", *write_dataset(datasets_root / "crowd", crowd_only), TOY_SKELETON)
    with pytest.raises(DatasetError, match="No image of crowd can be trained on: none of 2 has an annotated person"):
        load_datasets(["crowd"], require_persons=True)
    test_split = toy_document()
    del test_split["annotations"]
    register_pose_dataset("test", *write_dataset(datasets_root / "test", test_split), TOY_SKELETON)
    assert len(load_datasets(["test"])) == 2
    with pytest.raises(DatasetError, match="'test' has no annotations"):
        load_datasets(["test"], require_persons=True)
    with pytest.raises(DatasetError, match=r"no dataset 'tset'; known: .*lsp_val.*DATASETS\.CUSTOM"):
        load_datasets(["tset"])
    with pytest.raises(DatasetError, match=r"no annotation file .*lsp/val\.json"):
        load_datasets(["lsp_val"])


def test_lsp_loads_from_the_shared_layout(shared_data: Path, datasets_root: Path) -> None:
    register_builtin_datasets(shared_data)
    images_and_persons = {
        name: (len(records), sum(len(record["annotations"]) for record in records))
        for name, records in ((name, DatasetCatalog.get(name)) for name in LAYOUT if name.startswith("lsp"))
    }
    assert images_and_persons == {
        "lsp_train": (1500, 1500), "lsp_val": (300, 300), "lsp_tiny": (16, 16),
        "lsp_multi_train": (500, 1696), "lsp_multi_val": (100, 340), "lsp_multi_tiny": (8, 24),
    }  # fmt: skip
