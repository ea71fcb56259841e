"""The one reader of COCO-keypoints annotations: from a json to arrays and a list of its problems.

`read_annotations` checks every field that training, evaluation or the tools use. They all take its `PoseAnnotations`,
so that none of them accepts a file that another one refuses.

Coordinates in the arrays are those of the file: keypoints are pixel indices (the center of the first pixel is 0), boxes
are continuous. `PoseAnnotations.record` adds 0.5 to the keypoints, so that they are continuous too.

Letters of shapes: I images, N annotations, K keypoints.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from querypose.d2 import BoxMode
from querypose.data.image_io import ImageReadError, read_image_size
from querypose.data.json_files import JsonError, read_json
from querypose.data.problems import DatasetError, Problem, errors_of
from querypose.data.shards import ShardError, is_index, open_shards
from querypose.paths import FileNameError, path_within, short
from querypose.skeleton import Skeleton

# Boxes and keypoints may be outside their image by this much, in pixels: hand-made annotations often are.
SIZE_TOLERANCE = 2.0
PIXEL_INDEX_TO_CONTINUOUS = 0.5
# A person's area as a share of its box. CrowdPose's own evaluation uses it for every person, the COCO protocol here and
# training for annotations without `area`.
AREA_OF_BOX = 0.53
# Numbers from here on count as infinite, here and in results: their squares could overflow.
INFINITE = 1e100


@dataclass
class PoseAnnotations:
    """The content of a json: its valid part as arrays, and the problems of the rest.

    Images are sorted by id, annotations by image, and within an image as in the file. Only annotations of the category
    whose keypoints are the skeleton's are here.

    Attributes:
        path: of the json.
        image_root: folder of the images, or the index of their shards; None where only the annotations matter.
        skeleton: of the keypoints.
        problems: in the order of the file's parts: images, categories, annotations.
        has_images: whether the images' folder is there, or all of their shards.
        category_id: the id that the json gives to the category.
        category: its name.
        has_annotations: False for the json of a test split, which has no field "annotations".
        image_ids: ascending (I).
        file_names: as in the json (I).
        sizes_hw: height and width (I, 2); swapped ones are corrected.
        crowd_indices: `crowdIndex` of the images (I), NaN where there is none.
        ids: of the annotations (N).
        image_indices: which image each belongs to (N), ascending.
        boxes_xywh: as in the file (N, 4).
        boxes_xyxy: clipped to the image (N, 4).
        is_usable: whether a clipped box is not empty (N); training leaves the others out.
        is_crowd: whether it is a region with many persons (N).
        keypoints: x, y (pixel indices), visibility (N, K, 3).
        num_keypoints: of the file, or without the field the number of labeled keypoints (N). It decides which persons
            an evaluation ignores; CrowdPose's does not count head and neck.
        areas: of the file (N), NaN where there is none.
        head_sizes: `head_size` of the file (N), in pixels, NaN where there is none; PCKh divides by it.
        segmentations: of crowds and of persons without a keypoint, which some models leave out of their losses, by id
            of the annotation: polygons or RLE, as in the file.
    """

    path: str
    image_root: str | None
    skeleton: Skeleton
    problems: list[Problem] = field(default_factory=list)
    has_images: bool = False
    category_id: int = 0
    category: str = ""
    has_annotations: bool = False
    image_ids: list[int] = field(default_factory=list)
    file_names: list[str] = field(default_factory=list)
    sizes_hw: NDArray[np.int64] = field(default_factory=lambda: np.zeros((0, 2), dtype=np.int64))
    crowd_indices: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    ids: list[int] = field(default_factory=list)
    image_indices: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    boxes_xywh: NDArray[np.float64] = field(default_factory=lambda: np.zeros((0, 4)))
    boxes_xyxy: NDArray[np.float64] = field(default_factory=lambda: np.zeros((0, 4)))
    is_usable: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, dtype=bool))
    is_crowd: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, dtype=bool))
    keypoints: NDArray[np.float64] = field(init=False)
    num_keypoints: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    areas: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    head_sizes: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    segmentations: dict[int, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.keypoints = np.zeros((0, self.skeleton.num_keypoints, 3))

    def require_sound(self) -> PoseAnnotations:
        """Returns itself.

        Raises:
            DatasetError: the file has errors; names the first one and their number.
        """
        if errors := errors_of(self.problems):
            more = (
                f" (This is the first of {len(errors)} errors. tools/check_dataset.py lists all of them.)"
                if len(errors) > 1
                else ""
            )
            raise DatasetError(errors[0].message + more)
        return self

    def of_image(self, index: int) -> slice:
        """Where the annotations of an image are in the arrays."""
        first, last = np.searchsorted(self.image_indices, (index, index + 1))
        return slice(int(first), int(last))

    def image_file(self, index: int) -> str:
        """The path of an image, as `read_image` takes it."""
        return os.path.join(self.image_root or "", self.file_names[index])

    def record(self, index: int) -> dict[str, Any]:
        """An image as a dict in detectron2's format, with `sample_id`.

        Its `annotations` are dicts of id, bbox (x, y, w, h, inside the image), bbox_mode, keypoints (flat x, y, v;
        continuous coordinates), category_id (0), iscrowd and area; those of `segmentations` have theirs. A test split
        without annotations has no such key.
        """
        height, width = self.sizes_hw[index].tolist()
        record: dict[str, Any] = {
            "file_name": self.image_file(index),
            "height": height,
            "width": width,
            "image_id": self.image_ids[index],
            "sample_id": self.image_ids[index],
        }
        if not self.has_annotations:
            return record
        place = self.of_image(index)
        boxes_xywh = self.boxes_xyxy[place].copy()
        boxes_xywh[:, 2:] -= boxes_xywh[:, :2]
        keypoints = self.keypoints[place].copy()
        keypoints[:, :, :2] += PIXEL_INDEX_TO_CONTINUOUS
        of_boxes = AREA_OF_BOX * self.boxes_xywh[place, 2:].prod(axis=1)
        areas = np.where(np.isnan(self.areas[place]), of_boxes, self.areas[place])
        rows = zip(
            self.ids[place], areas.tolist(), boxes_xywh.tolist(),
            keypoints.reshape(-1, 3 * self.skeleton.num_keypoints).tolist(),
            self.is_crowd[place].tolist(), self.is_usable[place].tolist(), strict=True,
        )  # fmt: skip
        record["annotations"] = [
            {
                "id": id,
                "bbox": box,
                "bbox_mode": BoxMode.XYWH_ABS,
                "keypoints": flat,
                "category_id": 0,
                "iscrowd": int(is_crowd),
                "area": area,
                **({"segmentation": self.segmentations[id]} if id in self.segmentations else {}),
            }
            for id, area, box, flat, is_crowd, is_usable in rows
            if is_usable
        ]
        return record

    def records(self) -> list[dict[str, Any]]:
        """Every image, see `record`."""
        return [self.record(index) for index in range(len(self.image_ids))]


def read_annotations(json_file: str | Path, image_root: str | Path | None, skeleton: Skeleton) -> PoseAnnotations:
    """Reads and checks a COCO-keypoints json; `problems` of the result has everything that is wrong with it.

    Args:
        json_file: the json.
        image_root: folder of its images, or the index of their shards. An image is opened only if its boxes fit the
            size with height and width swapped, and not the size in the json. With None no image is opened.
        skeleton: the expected keypoints.
    """
    file = PoseAnnotations(str(json_file), None if image_root is None else str(image_root), skeleton)
    reader = _Reader(file)
    document = reader.read_document()
    if document is None:
        return file
    if file.image_root is not None:
        file.has_images = reader.find_images(file.image_root)
    reader.read_images(document["images"])
    file.has_annotations = "annotations" in document
    if reader.find_category(document.get("categories", [])) and file.has_annotations:
        reader.read_annotations(document["annotations"])
    return file


class _Reader:
    """Fills a `PoseAnnotations` from the parts of a json, and notes the problems in it."""

    def __init__(self, file: PoseAnnotations) -> None:
        self.file = file
        self.skeleton = file.skeleton
        self.category_ids: set[int] = set()
        self.index_of_image: dict[int, int] = {}
        # Images with an error of their own: their annotations are not reported too.
        self.broken_images: set[int] = set()

    def error(self, kind: str, id: str, what: str, remedy: str) -> None:
        """Adds a problem for which the file is refused."""
        self.file.problems.append(Problem("error", kind, self.file.path, id, what, remedy))

    def warning(self, kind: str, id: str, what: str, remedy: str) -> None:
        """Adds a problem that is corrected, or whose annotation is left out."""
        self.file.problems.append(Problem("warning", kind, self.file.path, id, what, remedy))

    def read_document(self) -> dict[str, Any] | None:
        """The content of the json, or None where it is not a COCO json."""
        path = Path(self.file.path)
        if not path.is_file():
            self.error(
                "no annotation file", "", f"there is no annotation file {self.file.path!r}",
                "see datasets/README.md for the place of each dataset; the environment variable DETECTRON2_DATASETS is "
                "the folder of all datasets",
            )  # fmt: skip
            return None
        wrong = remedy = ""
        document: Any = None
        try:
            document = read_json(path)
        except JsonError as error:
            wrong, remedy = error.what, error.remedy
        else:
            if not isinstance(document, dict) or not isinstance(document.get("images"), list):
                wrong, remedy = "it is not a COCO json: the list 'images' is missing", "name the right file"
            for name in ("annotations", "categories"):
                if not wrong and not isinstance(document.get(name, []), list):
                    wrong, remedy = f"it is not a COCO json: {name!r} is not a list", "name the right file"
        if wrong:
            self.error("not a COCO json", "", wrong, remedy)
            return None
        return dict(document)

    def find_images(self, image_root: str) -> bool:
        """Whether the folder is there, or all of the shards are."""
        if not is_index(image_root):
            if not os.path.isdir(image_root):
                self.error(
                    "no image folder", "", f"there is no image folder {image_root!r}",
                    "put the images there, or set DETECTRON2_DATASETS to the folder that holds your datasets",
                )  # fmt: skip
                return False
            return True
        try:
            faults = open_shards(image_root).faults()
        except ShardError as error:
            faults = [error]
        for fault in faults:
            self.error("shard that cannot be read", "", fault.what, fault.remedy)
        return not faults

    def read_images(self, images: Sequence[Any]) -> None:
        """Fills the arrays of images."""
        if not images:
            self.error("no images", "", "its list 'images' is empty", "name the right file")
        found: dict[int, dict[str, Any]] = {}
        for image in images:
            if not isinstance(image, dict) or not is_integer(image.get("id")):
                what = f"image {short(image)} has no integer 'id'"
                self.error("image without id", "", what, "give each image an integer 'id'")
                continue
            id = f"image {image['id']}"
            if image["id"] in found:
                what = f"two images have the id {image['id']}"
                self.error("duplicate image id", id, what, "give each image its own id")
                continue
            if not isinstance(image.get("file_name"), str) or not image["file_name"]:
                self.error("image without file", id, f"{id} has no 'file_name'", "add the name of its file")
            elif (problem := _file_name_problem(self.file.image_root, image["file_name"])) is not None:
                self.error("name of no image", id, f"'file_name' of {id}: {problem.what}", problem.remedy)
            elif wrong := [side for side in ("height", "width") if not _is_size(image.get(side))]:
                self.error(
                    "image without size", id,
                    f"{id} ({image['file_name']}) has {wrong[0]} {short(image.get(wrong[0]))}",
                    "write its size in pixels, an integer > 0",
                )  # fmt: skip
            else:
                found[image["id"]] = image
                continue
            self.broken_images.add(image["id"])
        file = self.file
        file.image_ids = sorted(found)
        self.index_of_image = {image_id: index for index, image_id in enumerate(file.image_ids)}
        of_index = [found[image_id] for image_id in file.image_ids]
        file.file_names = [image["file_name"] for image in of_index]
        file.sizes_hw = np.array([(image["height"], image["width"]) for image in of_index], np.int64).reshape(-1, 2)
        file.crowd_indices = np.array([_number_or_nan(image.get("crowdIndex")) for image in of_index], np.float64)
        id_of_name: dict[str, int] = {}
        for image_id, file_name in zip(file.image_ids, file.file_names, strict=True):
            first = id_of_name.setdefault(file_name, image_id)
            if first != image_id:
                self.warning(
                    "image listed twice", f"image {image_id}",
                    f"image {image_id} is the same file as image {first}, {file_name!r}",
                    "both are used; better put all annotations of an image under one id",
                )  # fmt: skip

    def find_category(self, categories: Sequence[Any]) -> bool:
        """Finds the category whose keypoints are those of the skeleton, in its order; False where that is an error."""
        file, skeleton = self.file, self.skeleton
        for category in categories:
            if not isinstance(category, dict) or not is_integer(category.get("id")):
                what = f"category {short(category)} has no integer 'id'"
                self.error("category without id", "", what, "give each category an integer 'id'")
                return False
            if category.get("keypoints") and not isinstance(category["keypoints"], list):
                what = f"category {category.get('name')!r} has the keypoints {short(category['keypoints'])}"
                remedy = "write the list of the keypoints' names"
                self.error("other skeleton", f"category {category['id']}", what, remedy)
                return False
        self.category_ids = {category["id"] for category in categories}
        with_keypoints = [category for category in categories if category.get("keypoints")]
        fitting = [category for category in with_keypoints if tuple(category["keypoints"]) == skeleton.keypoints]
        if not with_keypoints and (len(categories) == 1 or not file.has_annotations):
            fitting = list(categories[:1])  # without names; their number is checked with the annotations
        if len(fitting) == 1:
            file.category_id, file.category = fitting[0]["id"], str(fitting[0].get("name", fitting[0]["id"]))
            return True
        if len(fitting) > 1:
            what = f"{len(fitting)} categories have the keypoints of skeleton {skeleton.name!r}; allowed: one"
            self.error("category twice", "", what, "merge the categories, or split the file")
        elif not with_keypoints:
            what = f"none of its {len(categories)} categories has 'keypoints'"
            keypoints = ", ".join(skeleton.keypoints)
            remedy = f"add one with those of skeleton {skeleton.name!r}, in this order: {keypoints}"
            self.error("no category with keypoints", "", what, remedy)
        else:
            remedy = "use the skeleton of this dataset, or add it to DATASETS.SKELETONS"
            self.error("other skeleton", "", _describe_mismatch(with_keypoints[0], skeleton), remedy)
        return False

    def read_annotations(self, annotations: Sequence[Any]) -> None:
        """Fills the arrays of annotations."""
        file, K = self.file, self.skeleton.num_keypoints
        chosen = [annotation for annotation in self._of_category(annotations) if self._has_valid_fields(annotation)]
        chosen, boxes_xywh = self._numbers_of(chosen, "bbox", 4, "x, y, width, height")
        meaning = f"x, y, v of each of the {K} keypoints of skeleton {self.skeleton.name!r}"
        chosen, keypoints, boxes_xywh = self._numbers_of(chosen, "keypoints", 3 * K, meaning, boxes_xywh)
        keypoints = keypoints.reshape(-1, K, 3)
        is_sound = self._check_visibilities(chosen, keypoints[..., 2]) & self._check_box_sizes(chosen, boxes_xywh)
        image_indices = np.array([self.index_of_image[annotation["image_id"]] for annotation in chosen], np.int64)
        # Stable: the order of the file decides between equal scores in an evaluation.
        order = np.argsort(image_indices, kind="stable")
        order = order[is_sound[order]]
        chosen = [chosen[index] for index in order.tolist()]
        file.ids = [annotation["id"] for annotation in chosen]
        file.image_indices, file.keypoints, file.boxes_xywh = image_indices[order], keypoints[order], boxes_xywh[order]
        file.is_crowd = np.array([bool(annotation.get("iscrowd", 0)) for annotation in chosen], bool)
        file.areas = np.array([_number_or_nan(annotation.get("area")) for annotation in chosen], np.float64)
        file.head_sizes = np.array([_number_or_nan(annotation.get("head_size")) for annotation in chosen], np.float64)
        labeled = np.count_nonzero(file.keypoints[..., 2] > 0, axis=1).tolist()
        stated = [annotation.get("num_keypoints") for annotation in chosen]
        counts = [count if number is None else number for number, count in zip(stated, labeled, strict=True)]
        file.num_keypoints = np.array(counts, np.int64)
        self._correct_swapped_sizes()
        self._take_segmentations(chosen)
        self._check_keypoints_inside()
        self._clip_boxes()

    def _take_segmentations(self, annotations: Sequence[Mapping[str, Any]]) -> None:
        """Keeps the segmentations of crowds and of persons without a keypoint."""
        file = self.file
        is_labeled = (file.keypoints[..., 2] > 0).any(axis=1) & ~file.is_crowd
        for index in np.flatnonzero(~is_labeled).tolist():
            id, segmentation = file.ids[index], annotations[index].get("segmentation")
            if not segmentation:
                continue
            if is_segmentation(segmentation, file.sizes_hw[file.image_indices[index]].tolist()):
                file.segmentations[id] = segmentation
            else:
                what = f"'segmentation' of annotation {id} is neither polygons nor an RLE of the size of its image"
                self.warning("segmentation that is none", f"annotation {id}", what, "its box stands in for it")

    def _of_category(self, annotations: Sequence[Any]) -> Iterator[dict[str, Any]]:
        """The annotations of the category, each with an id of its own."""
        seen: set[int] = set()
        num_others = 0
        for annotation in annotations:
            if not isinstance(annotation, dict) or not is_integer(annotation.get("id")):
                what = f"an annotation has no integer 'id': {short(annotation)}"
                self.error("annotation without id", "", what, "give each annotation an integer 'id'")
                continue
            id = annotation["id"]
            if id in seen:
                what = f"two annotations have the id {id}"
                self.error("duplicate annotation id", f"annotation {id}", what, "give each annotation its own id")
                continue
            seen.add(id)
            category_id = annotation.get("category_id")
            if not isinstance(category_id, int | float) or category_id not in self.category_ids:
                what = f"annotation {id} has the category_id {short(category_id)}, which is not in 'categories'"
                self.error("unknown category id", f"annotation {id}", what, "add the category, or correct the id")
            elif category_id == self.file.category_id:
                yield annotation
            else:
                num_others += 1
        if num_others:
            what = (
                f"{num_others} of {len(annotations)} annotations are of another category than {self.file.category_id}"
            )
            self.warning("annotations of another category", "", what, "they are left out")

    def _has_valid_fields(self, annotation: Mapping[str, Any]) -> bool:
        """Whether the file has the image, and whether the fields with a single number are valid."""
        id, image_id = f"annotation {annotation['id']}", annotation.get("image_id")
        if not is_integer(image_id) or image_id not in self.index_of_image:
            if not is_integer(image_id) or image_id not in self.broken_images:
                what = f"{id} has the image_id {short(image_id)}, which is not in 'images'"
                self.error("unknown image id", id, what, "add the image, or remove the annotation")
            return False
        is_crowd, area, count = annotation.get("iscrowd", 0), annotation.get("area"), annotation.get("num_keypoints")
        if is_crowd not in (0, 1):
            what, remedy = f"'iscrowd' of {id} is {short(is_crowd)}", "allowed: 0 (a person), 1 (a crowd)"
            self.error("iscrowd other than 0, 1", id, what, remedy)
        elif area is not None and not (_number_or_nan(area) >= 0):
            what, remedy = f"'area' of {id} is {short(area)}", "allowed: a finite number >= 0, or no field 'area'"
            self.error("area that is no area", id, what, remedy)
        elif count is not None and not (is_integer(count) and 0 <= count < 2**31):
            what = f"'num_keypoints' of {id} is {short(count)}"
            remedy = "allowed: an integer >= 0, or no field 'num_keypoints'"
            self.error("num_keypoints that is no such number", id, what, remedy)
        else:
            return True
        return False

    def _numbers_of(
        self, annotations: list[dict[str, Any]], name: str, length: int, meaning: str, *others: NDArray[np.float64]
    ) -> tuple[Any, ...]:
        """Keeps the annotations whose field `name` is a list of `length` finite numbers.

        Returns:
            those annotations, their numbers (N, length), and their rows of `others`.
        """
        rows, has_length = [], np.zeros(len(annotations), dtype=bool)
        for index, annotation in enumerate(annotations):
            values = annotation.get(name)
            if name == "keypoints" and annotation.get("iscrowd", 0) and not values:
                values = [0] * length  # a crowd has none
            if isinstance(values, list) and len(values) == length:
                rows.append(values)
                has_length[index] = True
                continue
            found = f"{len(values)} numbers" if isinstance(values, list) else short(values)
            self.error(
                f"wrong number of values in {name}", f"annotation {annotation['id']}",
                f"{name!r} of annotation {annotation['id']} (image {annotation['image_id']}) is {found}",
                f"it must be {length} numbers: {meaning}",
            )  # fmt: skip
        kept = np.flatnonzero(has_length)
        is_finite = _rows_of_finite_numbers(rows)
        for index in kept[~is_finite].tolist():
            annotation = annotations[index]
            self.error(
                f"not a finite number in {name}", f"annotation {annotation['id']}",
                f"{name!r} of annotation {annotation['id']} (image {annotation['image_id']}) has a value that is not a "
                "finite number", "correct it" + "; a keypoint that is not labeled is 0, 0, 0" * (name == "keypoints"),
            )  # fmt: skip
        kept = kept[is_finite]
        numbers = np.array([rows[row] for row in np.flatnonzero(is_finite).tolist()], np.float64).reshape(-1, length)
        return [annotations[index] for index in kept.tolist()], numbers, *(other[kept] for other in others)

    def _check_visibilities(
        self, annotations: Sequence[Mapping[str, Any]], visibilities: NDArray[np.float64]
    ) -> NDArray[np.bool_]:
        """Whether each annotation's (N, K) are all 0, 1 or 2."""
        is_allowed = np.isin(visibilities, (0, 1, 2))
        is_sound = np.asarray(is_allowed.all(axis=1))
        for index in np.flatnonzero(~is_sound).tolist():
            keypoint = int(np.argmin(is_allowed[index]))
            id = f"annotation {annotations[index]['id']}"
            self.error(
                "visibility other than 0, 1, 2", id,
                f"keypoint number {keypoint} of {id} has the visibility {visibilities[index, keypoint]:g}",
                "allowed: 0 (not labeled), 1 (labeled, hidden), 2 (visible)",
            )  # fmt: skip
        return is_sound

    def _check_box_sizes(
        self, annotations: Sequence[Mapping[str, Any]], boxes_xywh: NDArray[np.float64]
    ) -> NDArray[np.bool_]:
        """Whether each width and height is not negative."""
        is_sound = np.asarray((boxes_xywh[:, 2:] >= 0).all(axis=1))
        for index in np.flatnonzero(~is_sound).tolist():
            id = f"annotation {annotations[index]['id']}"
            what = f"the box ({_numbers(boxes_xywh[index])}) of {id} has a negative size"
            self.error("box of negative size", id, what, "write x, y, width, height with width and height >= 0")
        return is_sound

    def _correct_swapped_sizes(self) -> None:
        """Corrects swapped height and width of images, as CrowdPose has some, where the boxes show that they are.

        An image is opened only if its boxes fit the swapped size and not the size in the json. Other swapped sizes are
        found when the image is read (`querypose.data.image_checks`).
        """
        file = self.file
        if not file.has_images:
            return
        extents = np.zeros((len(file.image_ids), 2))
        np.maximum.at(extents, file.image_indices, file.boxes_xywh[:, :2] + file.boxes_xywh[:, 2:])
        is_within = (extents <= file.sizes_hw[:, ::-1] + SIZE_TOLERANCE).all(axis=1)
        is_within_transposed = (extents <= file.sizes_hw + SIZE_TOLERANCE).all(axis=1)
        for index in np.flatnonzero(~is_within & is_within_transposed).tolist():
            image_id, (height, width) = file.image_ids[index], file.sizes_hw[index].tolist()
            id = f"image {image_id}"
            not_fitting = f"the boxes of {id} do not fit its size, {width}x{height}"
            try:
                is_swapped = read_image_size(file.image_file(index)) == (width, height)
            except ImageReadError as error:
                what = f"{not_fitting}, and its file cannot be read to compare: {error.what}"
                self.error("boxes do not fit the size", id, what, error.remedy)
                continue
            if is_swapped:
                file.sizes_hw[index] = width, height
                what = f"{not_fitting}: the json has swapped height and width"
                self.warning("height and width swapped", id, what, "corrected from the image")

    def _check_keypoints_inside(self) -> None:
        """Warns of labeled keypoints that are outside the image by more than the tolerance."""
        file = self.file
        sizes_wh = file.sizes_hw[file.image_indices, ::-1]
        positions = file.keypoints[..., :2] + PIXEL_INDEX_TO_CONTINUOUS
        outside = (positions < -SIZE_TOLERANCE) | (positions > sizes_wh[:, None] + SIZE_TOLERANCE)
        is_outside = outside.any(axis=-1) & (file.keypoints[..., 2] > 0)
        for index in np.flatnonzero(is_outside.any(axis=1)).tolist():
            id, numbers = f"annotation {file.ids[index]}", ", ".join(map(str, np.flatnonzero(is_outside[index])))
            self.warning(
                "labeled keypoints outside the image", id,
                f"the keypoints number {numbers} of {id} are labeled, but outside {self._image_of(index)}",
                "training treats them as not labeled",
            )  # fmt: skip

    def _clip_boxes(self) -> None:
        """Clips the boxes to their images, and marks those that are empty then."""
        file = self.file
        # From corners to sizes and back rounds; records are made from the corners.
        corners = file.boxes_xywh.copy()
        corners[:, 2:] += corners[:, :2]
        sizes_whwh = np.tile(file.sizes_hw[file.image_indices, ::-1], 2)
        file.boxes_xyxy = np.clip(corners, 0, sizes_whwh)
        is_empty = np.asarray((file.boxes_xyxy[:, 2:] <= file.boxes_xyxy[:, :2]).any(axis=1))
        file.is_usable = np.logical_not(is_empty)
        is_clipped = (file.boxes_xyxy != corners).any(axis=1) & ~is_empty
        for is_wrong, kind, what, remedy in (
            (is_clipped, "box outside the image", "is partly outside", "the box is clipped"),
            (is_empty, "empty box", "is empty, or outside", "training leaves this annotation out"),
        ):
            for index in np.flatnonzero(is_wrong).tolist():
                id, box = f"annotation {file.ids[index]}", _numbers(file.boxes_xywh[index])
                self.warning(kind, id, f"the box ({box}) of {id} {what} {self._image_of(index)}", remedy)

    def _image_of(self, index: int) -> str:
        image = int(self.file.image_indices[index])
        height, width = self.file.sizes_hw[image]
        return f"image {self.file.image_ids[image]}, {width}x{height}"


def is_integer(value: Any) -> bool:
    """Whether a json's value is an integer."""
    return isinstance(value, int) and not isinstance(value, bool)


def _is_size(value: Any) -> bool:
    return is_integer(value) and 0 < value < 2**31


def _number_or_nan(value: Any) -> float:
    """A finite number of a json; NaN for anything else."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < INFINITE
    return float(value) if is_number else np.nan


def _rows_of_finite_numbers(rows: list[list[Any]]) -> NDArray[np.bool_]:
    """Which rows hold finite numbers and nothing else."""
    try:
        array = np.array(rows)
        if array.ndim == 2 and array.dtype.kind in "iuf":
            return np.asarray((np.abs(array) < INFINITE).all(axis=1))
    except ValueError:  # one of them holds a list
        pass
    return np.array([not any(np.isnan(_number_or_nan(value)) for value in row) for row in rows], dtype=bool)


def is_segmentation(value: Any, size_hw: Sequence[int]) -> bool:
    """Whether a json's `segmentation` is a list of polygons, or an RLE for an image of that height and width."""
    if isinstance(value, list):
        return all(
            isinstance(polygon, list)
            and len(polygon) >= 6
            and len(polygon) % 2 == 0
            and not any(np.isnan(_number_or_nan(coordinate)) for coordinate in polygon)
            for polygon in value
        )
    if not isinstance(value, dict) or value.get("size") != list(size_hw):
        return False
    counts = value.get("counts")
    if isinstance(counts, list):
        return all(is_integer(count) and count >= 0 for count in counts) and sum(counts) == size_hw[0] * size_hw[1]
    return isinstance(counts, str) and len(counts) > 0


def _file_name_problem(image_root: str | None, name: str) -> FileNameError | None:
    try:
        path_within(image_root or "", name, "")
    except FileNameError as error:
        return error
    return None


def _numbers(values: NDArray[np.float64]) -> str:
    return ", ".join(f"{value:g}" for value in values)


def _describe_mismatch(category: Mapping[str, Any], skeleton: Skeleton) -> str:
    names = tuple(category["keypoints"])
    if len(names) != skeleton.num_keypoints:
        return (
            f"category {category.get('name')!r} has {len(names)} keypoints, but skeleton {skeleton.name!r} has "
            f"{skeleton.num_keypoints}"
        )
    index = next(index for index, name in enumerate(names) if name != skeleton.keypoints[index])
    return (
        f"category {category.get('name')!r} has other keypoints, or another order, than skeleton {skeleton.name!r}: "
        f"number {index} is {names[index]!r} in the file and {skeleton.keypoints[index]!r} in the skeleton"
    )
