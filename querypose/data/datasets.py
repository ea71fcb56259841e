"""Registration of pose datasets: a COCO-keypoints json, a folder of images and a skeleton.

`register_builtin_datasets` registers the known names under one root folder, `register_custom_datasets` those of a
config, `register_pose_dataset` any. Registration touches no file; a dataset is read when it is used.
"""

from __future__ import annotations

import colorsys
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from querypose.d2 import CfgNode, DatasetCatalog, MetadataCatalog
from querypose.data.coco import PoseAnnotations, read_annotations
from querypose.data.problems import DatasetError, count_by_kind, errors_of
from querypose.paths import check_name, path_within, short
from querypose.skeleton import BUILTIN_SKELETONS, COCO_SKELETON, CROWDPOSE_SKELETON, MPII_SKELETON, Skeleton

SYNTHETIC_SPLITS = ("train", "val", "test", "hard_train", "hard_val", "hard_test")
_CUSTOM_FIELDS = {"name", "json", "images", "skeleton"}
_OPTIONAL_CUSTOM_FIELDS = {"evaluator"}


class _Builtin(NamedTuple):
    """A dataset of a usual name; paths are relative to the root."""

    name: str
    json_file: str
    image_root: str
    skeleton: Skeleton
    evaluator: str = "coco"


def _builtins() -> list[_Builtin]:
    coco = [
        _Builtin(f"keypoints_coco_2017_{split}", f"coco/annotations/{json_file}", f"coco/{images}", COCO_SKELETON)
        for split, json_file, images in (
            ("train", "person_keypoints_train2017.json", "train2017"),
            ("val", "person_keypoints_val2017.json", "val2017"),
            ("test-dev", "image_info_test-dev2017.json", "test2017"),
        )
    ]
    crowdpose = [
        _Builtin(
            f"crowdpose_{split}", f"crowdpose/json/crowdpose_{split}.json", "crowdpose/images", CROWDPOSE_SKELETON,
            "crowdpose",
        )
        for split in ("train", "val", "trainval", "test")
    ]  # fmt: skip
    # `tiny` is a part of `train`. A photo of `lsp` has one person, so that its crowd index is always 0 and CrowdPose's
    # easy/medium/hard would be one split; hence COCO's metric. The mosaics have real crowd indices.
    lsp = [
        _Builtin(f"{name}_{split}", f"{folder}/{split}.json", f"{folder}/{images}", CROWDPOSE_SKELETON, evaluator)
        for name, folder, evaluator in (("lsp", "lsp", "coco"), ("lsp_multi", "lsp-multi", "crowdpose"))
        for split, images in (("train", "train"), ("val", "val"), ("tiny", "train"))
    ]
    macaque = [
        _Builtin(f"macaque_{split}", f"macaque/{split}.json", "macaque/images", COCO_SKELETON)
        for split in ("train", "val")
    ]
    mpii = [
        _Builtin(f"mpii_{split}", f"mpii/{split}.json", "mpii/images", MPII_SKELETON, "pckh")
        for split in ("train", "val")
    ]
    return [*coco, *crowdpose, *lsp, *macaque, *mpii]


def datasets_root() -> Path:
    """The folder that holds the datasets: the environment variable DETECTRON2_DATASETS, or `datasets`."""
    return Path(os.environ.get("DETECTRON2_DATASETS", "datasets")).expanduser()


def register_builtin_datasets(root: str | Path | None = None) -> None:
    """Registers every known name with its files under `root` (default: `datasets_root()`); touches no file."""
    root = datasets_root() if root is None else Path(root)
    for dataset in _builtins():
        register_pose_dataset(
            dataset.name, root / dataset.json_file, root / dataset.image_root, dataset.skeleton, dataset.evaluator
        )
    for split in SYNTHETIC_SPLITS:
        folder = root / "synthetic" / split
        register_pose_dataset(
            f"synthetic_{split}", folder / "annotations.json", folder / "images", COCO_SKELETON,
            prepare=partial(_draw_synthetic, split, folder),
        )  # fmt: skip


def _draw_synthetic(split: str, folder: Path) -> None:
    # Imported here: who never uses these people does not load the code that draws them.
    from querypose.data.synthetic import make_synthetic_split

    make_synthetic_split(split, folder)


def register_pose_dataset(
    name: str,
    json_file: str | Path,
    image_root: str | Path,
    skeleton: Skeleton,
    evaluator: str = "coco",
    prepare: Callable[[], object] | None = None,
) -> None:
    """Registers a dataset under a name; a dataset that had this name before is replaced.

    Args:
        name: what DATASETS.TRAIN and DATASETS.TEST call it.
        json_file: COCO-keypoints json.
        image_root: folder of its images, or the address of a `shards.json` of datasets/make_shards.py.
        skeleton: what its keypoints are.
        evaluator: name of its metric in METRIC_REGISTRY: "coco" (AP, APm, APl), "crowdpose" (AP easy, medium, hard; the
            json needs crowdIndex), or one of your own.
        prepare: called before the json is read, to make or fetch the files.
    """
    former = MetadataCatalog.get(name) if name in MetadataCatalog.list() else None
    rules = [
        (skeleton.keypoints[first], skeleton.keypoints[second], tuple(round(255 * part) for part in color))
        for index, (first, second) in enumerate(skeleton.edges)
        for color in [colorsys.hsv_to_rgb(index / len(skeleton.edges), 1, 1)]
    ]
    if former is not None and getattr(former, "skeleton", skeleton) == skeleton:
        # detectron2 registers some of our names too; pictures keep the colors that its users know.
        rules = getattr(former, "keypoint_connection_rules", rules)
    for catalog in (DatasetCatalog, MetadataCatalog):
        if name in catalog.list():
            catalog.remove(name)
    DatasetCatalog.register(name, _CatalogEntry(name, str(json_file), str(image_root), skeleton, prepare))
    MetadataCatalog.get(name).set(
        json_file=str(json_file),
        image_root=str(image_root),
        evaluator_type=evaluator,
        skeleton=skeleton,
        keypoint_names=list(skeleton.keypoints),
        keypoint_flip_map=[
            (skeleton.keypoints[left], skeleton.keypoints[right]) for left, right in skeleton.flip_pairs
        ],
        keypoint_connection_rules=rules,  # what detectron2's Visualizer joins, and in which color
        # As in nearly every pose json; replaced by the json's own values when it is read.
        thing_classes=["person"],
        thing_dataset_id_to_contiguous_id={1: 0},
    )


class _CatalogEntry:
    """How DatasetCatalog loads a dataset; the json is read once, and again only after it has changed."""

    def __init__(
        self, name: str, json_file: str, image_root: str, skeleton: Skeleton, prepare: Callable[[], object] | None
    ) -> None:
        self._name = name
        self._files = (json_file, image_root)
        self._skeleton = skeleton
        self._prepare = prepare
        self._annotations: PoseAnnotations | None = None
        self._state_of_file: tuple[int, int] | None = None
        self._has_warned = False

    def __call__(self) -> list[dict[str, Any]]:
        """The records of the dataset; logs what is corrected in them or left out.

        Raises:
            DatasetError: the files are missing, malformed, or do not fit the skeleton.
        """
        annotations = self.annotations().require_sound()
        if not self._has_warned:
            for line in count_by_kind(annotations.problems):
                logging.getLogger(__name__).warning("%s", line)
            self._has_warned = True
        metadata = MetadataCatalog.get(self._name)
        for field, value in (
            ("thing_classes", [annotations.category]),
            ("thing_dataset_id_to_contiguous_id", {annotations.category_id: 0}),
        ):
            if getattr(metadata, field) != value:
                delattr(metadata, field)  # metadata refuses to change a value
                setattr(metadata, field, value)
        return annotations.records()

    def annotations(self) -> PoseAnnotations:
        """The content of the json, with its problems if it has any."""
        if self._prepare is not None:
            self._prepare()
        json_file, image_root = self._files
        state = None
        if os.path.isfile(json_file):
            stat = os.stat(json_file)
            state = (stat.st_mtime_ns, stat.st_size)
        # A file with errors is read again: the error may have been in the folder of images, and mended there.
        if self._annotations is None or errors_of(self._annotations.problems) or state != self._state_of_file:
            self._annotations = read_annotations(json_file, image_root, self._skeleton)
            self._state_of_file = state
            self._has_warned = False
        return self._annotations


def dataset_annotations(name: str) -> PoseAnnotations:
    """The annotations of a registered dataset, with their problems if they have any; the json is read once.

    Raises:
        DatasetError: there is no dataset of that name that was registered by `register_pose_dataset`, or it cannot make
            its files.
    """
    entry = DatasetCatalog[name] if name in DatasetCatalog.list() else None
    if not isinstance(entry, _CatalogEntry):
        raise DatasetError(f"There is no pose dataset {name!r}. Register it with register_pose_dataset.")
    return entry.annotations()


def register_custom_datasets(cfg: CfgNode) -> None:
    """Registers the datasets of DATASETS.CUSTOM, with the skeletons of DATASETS.SKELETONS and the built-in ones.

    Raises:
        DatasetError: an entry lacks a field, has an unknown one, names an unknown skeleton, or takes a name that is
            taken.
        SkeletonError: an entry of DATASETS.SKELETONS contradicts itself.
    """
    skeletons = dict(BUILTIN_SKELETONS)
    for entry in cfg.DATASETS.SKELETONS:
        skeleton = Skeleton.from_dict(entry)
        if skeleton.name in skeletons:
            raise DatasetError(
                f"DATASETS.SKELETONS: the name {skeleton.name!r} is already used; choose another than "
                f"{', '.join(skeletons)}."
            )
        skeletons[skeleton.name] = skeleton
    taken = {dataset.name for dataset in _builtins()} | {f"synthetic_{split}" for split in SYNTHETIC_SPLITS}
    for entry in cfg.DATASETS.CUSTOM:
        name = _check_custom(entry, skeletons, taken)
        taken.add(name)
        register_pose_dataset(
            name, entry["json"], entry["images"], skeletons[entry["skeleton"]], entry.get("evaluator", "coco")
        )


def _check_custom(entry: Mapping[str, Any], skeletons: Mapping[str, Skeleton], taken: set[str]) -> str:
    """The name of an entry of DATASETS.CUSTOM."""
    where = f"DATASETS.CUSTOM, entry {short(entry.get('name', '?'))}"
    if missing := _CUSTOM_FIELDS - entry.keys():
        raise DatasetError(f"{where}: the fields {sorted(missing)} are missing; add them.")
    if unknown := entry.keys() - _CUSTOM_FIELDS - _OPTIONAL_CUSTOM_FIELDS:
        known = sorted(_CUSTOM_FIELDS | _OPTIONAL_CUSTOM_FIELDS)
        raise DatasetError(f"{where}: unknown fields {sorted(map(str, unknown))}; allowed: {known}.")
    for field, value in entry.items():
        check_name(value, f"{where}: {field}")
    path_within("", entry["name"], f"{where}: name")  # an evaluation of several datasets has a folder for each
    if entry["skeleton"] not in skeletons:
        raise DatasetError(
            f"{where}: there is no skeleton {entry['skeleton']!r}; known: {', '.join(skeletons)}. Add your own to "
            "DATASETS.SKELETONS."
        )
    if entry["name"] in taken:
        raise DatasetError(f"{where}: another dataset has this name; choose another name.")
    return str(entry["name"])


def load_datasets(
    names: Sequence[str], *, require_persons: bool = False, min_visible_keypoints: int = 0
) -> list[dict[str, Any]]:
    """All images of some registered datasets, for the loader.

    Args:
        names: registered datasets.
        require_persons: leave out images without an annotated person (crowd regions do not count), as training does
            with DATALOADER.FILTER_EMPTY_ANNOTATIONS.
        min_visible_keypoints: persons with fewer of them do not count either (DATALOADER.MIN_VISIBLE_KEYPOINTS).

    Raises:
        DatasetError: a dataset is unknown or has no annotations where persons are required, or no image is left.
    """
    records = []
    for name in names:
        if name not in DatasetCatalog.list():
            raise DatasetError(
                f"There is no dataset {name!r}; known: {', '.join(sorted(DatasetCatalog.list()))}. Add your own to "
                "DATASETS.CUSTOM."
            )
        of_dataset = DatasetCatalog.get(name)
        if not isinstance(of_dataset, list):  # a stream might have no end
            raise DatasetError(
                f"Dataset {name!r} gives a {type(of_dataset).__name__}, not a list of dicts. Register a function that "
                "returns a list, or give the trainer a loader of your own in build_train_loader."
            )
        if require_persons and not any("annotations" in record for record in of_dataset):
            raise DatasetError(
                f"Dataset {name!r} has no annotations, so that no model can be trained on it. Remove it from "
                "DATASETS.TRAIN."
            )
        records += of_dataset
    if not require_persons:
        return records

    def counts(person: Mapping[str, Any]) -> bool:
        num_visible = sum(visibility > 1 for visibility in person["keypoints"][2::3]) if min_visible_keypoints else 0
        return not person["iscrowd"] and num_visible >= min_visible_keypoints

    kept = [record for record in records if any(map(counts, record["annotations"]))]
    if not kept:
        raise DatasetError(
            f"No image of {', '.join(names)} can be trained on: none of {len(records)} has an annotated person"
            f"{f' with {min_visible_keypoints} visible keypoints' if min_visible_keypoints else ''}. Check the json, "
            "or set DATALOADER.FILTER_EMPTY_ANNOTATIONS False to train on empty images."
        )
    return kept
