"""The one reader of COCO-keypoints annotations: a json becomes arrays, and a list of all that is wrong with it.

`read_annotations` checks every field that training, evaluation or the tools use. They all take its `PoseAnnotations`,
so that none of them accepts a file that another one refuses.

Coordinates: the arrays hold what the file says. Its keypoints are pixel indices (the center of the first pixel is 0),
its boxes are continuous. `PoseAnnotations.record` makes the keypoints continuous too: it adds 0.5.

Letters of shapes: I images, N annotations, K keypoints.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from querypose.d2 import BoxMode
from querypose.data.image_io import ImageReadError, read_image_size
from querypose.data.problems import DatasetError, Problem, errors_of
from querypose.skeleton import Skeleton

# A box or keypoint may leave its image by this much, in pixels, before the image's size is doubted.
SIZE_TOLERANCE = 2.0
PIXEL_INDEX_TO_CONTINUOUS = 0.5
# Numbers from here on count as infinite: their squares could overflow.
_INFINITE = 1e100


@dataclass
class PoseAnnotations:
    """What a json holds: its sound part as arrays, and the problems of the rest.

    Images are sorted by id, annotations by image, and within an image as in the file. Only annotations of the category
    whose keypoints are the skeleton's are here.

    Attributes:
        path: of the json.
        image_root: folder of the images; None where only the annotations matter.
        skeleton: of the keypoints.
        problems: in the order of the file's parts: images, categories, annotations.
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
        num_keypoints: of the file where it says so, else the number of labeled ones (N). It decides which persons an
            evaluation ignores, and CrowdPose leaves head and neck out of it.
        areas: of the file (N), NaN where there is none.
        head_sizes: `head_size` of the file (N), in pixels, NaN where there is none; PCKh divides by it.
    """

    path: str
    image_root: str | None
    skeleton: Skeleton
    problems: list[Problem] = field(default_factory=list)
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

    def __post_init__(self) -> None:
        self.keypoints = np.zeros((0, self.skeleton.num_keypoints, 3))

    def require_sound(self) -> PoseAnnotations:
        """Returns itself.

        Raises:
            DatasetError: the file has errors; says the first one and how many there are.
        """
        if errors := errors_of(self.problems):
            more = f" (The first of {len(errors)} errors; tools/check_dataset.py lists all.)" if len(errors) > 1 else ""
            raise DatasetError(errors[0].message + more)
        return self

    def of_image(self, index: int) -> slice:
        """Where the annotations of an image are in the arrays."""
        first, last = np.searchsorted(self.image_indices, (index, index + 1))
        return slice(int(first), int(last))

    def record(self, index: int) -> dict[str, Any]:
        """An image as a dict in detectron2's format, with `sample_id`.

        Its `annotations` are dicts of id, bbox (x, y, w, h, inside the image), bbox_mode, keypoints (flat x, y, v;
        continuous coordinates), category_id (0) and iscrowd. A test split without annotations has no such key.
        """
        height, width = self.sizes_hw[index].tolist()
        record: dict[str, Any] = {
            "file_name": os.path.join(self.image_root or "", self.file_names[index]),
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
        rows = zip(
            self.ids[place], boxes_xywh.tolist(), keypoints.reshape(-1, 3 * self.skeleton.num_keypoints).tolist(),
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
            }
            for id, box, flat, is_crowd, is_usable in rows
            if is_usable
        ]
        return record

    def records(self) -> list[dict[str, Any]]:
        """Every image, see `record`."""
        return [self.record(index) for index in range(len(self.image_ids))]


def read_annotations(json_file: str | Path, image_root: str | Path | None, skeleton: Skeleton) -> PoseAnnotations:
    """Reads and checks a COCO-keypoints json; whatever is wrong with it stands in `problems`.

    Args:
        json_file: the json.
        image_root: folder of its images. One is opened only where its boxes fit the transposed size alone. None opens
            none, for a use to which the images' sizes do not matter.
        skeleton: what the keypoints of the json must be.
    """
    file = PoseAnnotations(str(json_file), None if image_root is None else str(image_root), skeleton)
    reader = _Reader(file)
    document = reader.read_document()
    if document is None:
        return file
    if file.image_root is not None and not os.path.isdir(file.image_root):
        reader.error(
            "no image folder", "", f"there is no image folder {file.image_root!r}",
            "put the images there, or set DETECTRON2_DATASETS to the folder that holds your datasets",
        )  # fmt: skip
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
        # Images with an error of their own; nothing is said of their annotations.
        self.broken_images: set[int] = set()

    def error(self, kind: str, id: str, what: str, remedy: str) -> None:
        """Notes what the file is refused for."""
        self.file.problems.append(Problem("error", kind, self.file.path, id, what, remedy))

    def warning(self, kind: str, id: str, what: str, remedy: str) -> None:
        """Notes something that is corrected or left out."""
        self.file.problems.append(Problem("warning", kind, self.file.path, id, what, remedy))

    def read_document(self) -> dict[str, Any] | None:
        """The content of the json with its lists, None where there is none."""
        path = Path(self.file.path)
        if not path.is_file():
            self.error(
                "no annotation file", "", f"there is no annotation file {self.file.path!r}",
                "datasets/README.md says where each dataset goes, and DETECTRON2_DATASETS names the folder that holds "
                "them",
            )  # fmt: skip
            return None
        wrong = remedy = ""
        document: Any = None
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            wrong, remedy = f"it cannot be read ({error.strerror})", "make it readable"
        except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
            wrong, remedy = f"it is not valid json ({error})", "download or write it again"
        else:
            if not isinstance(document, dict) or not isinstance(document.get("images"), list):
                wrong, remedy = "it is not a COCO json: it lacks the list 'images'", "name the right file"
            for name in ("annotations", "categories"):
                if not wrong and not isinstance(document.get(name, []), list):
                    wrong, remedy = f"{name!r} is not a list", "write the file again"
        if wrong:
            self.error("not a COCO json", "", wrong, remedy)
            return None
        return dict(document)

    def read_images(self, images: Sequence[Any]) -> None:
        """Fills the arrays of images."""
        if not images:
            self.error("no images", "", "it lists no images", "name the right file")
        found: dict[int, dict[str, Any]] = {}
        for image in images:
            if not isinstance(image, dict) or not is_integer(image.get("id")):
                self.error("image without id", "", f"image {_short(image)} has no integer 'id'", "number the images")
                continue
            id = f"image {image['id']}"
            if image["id"] in found:
                self.error("duplicate image id", id, f"two images have the id {image['id']}", "give each its own")
                continue
            if not isinstance(image.get("file_name"), str) or not image["file_name"]:
                self.error("image without file", id, f"{id} has no 'file_name'", "name its file")
            elif wrong := [side for side in ("height", "width") if not _is_size(image.get(side))]:
                self.error(
                    "image without size", id,
                    f"{id} ({image['file_name']}) has {wrong[0]} {_short(image.get(wrong[0]))}",
                    "write its size in pixels, an integer above 0",
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
                    "both are used; annotations of one image belong under one id",
                )  # fmt: skip

    def find_category(self, categories: Sequence[Any]) -> bool:
        """Finds the category whose keypoints are those of the skeleton, in its order; False where that is an error."""
        file, skeleton = self.file, self.skeleton
        for category in categories:
            if not isinstance(category, dict) or not is_integer(category.get("id")):
                what = f"category {_short(category)} has no integer 'id'"
                self.error("category without id", "", what, "number the categories")
                return False
            if category.get("keypoints") and not isinstance(category["keypoints"], list):
                what = f"category {category.get('name')!r} has the keypoints {_short(category['keypoints'])}"
                self.error("other skeleton", f"category {category['id']}", what, "it needs the list of their names")
                return False
        self.category_ids = {category["id"] for category in categories}
        with_keypoints = [category for category in categories if category.get("keypoints")]
        fitting = [category for category in with_keypoints if tuple(category["keypoints"]) == skeleton.keypoints]
        if not with_keypoints and (len(categories) == 1 or not file.has_annotations):
            fitting = list(categories[:1])  # it names no keypoints, and their number is checked with the annotations
        if len(fitting) == 1:
            file.category_id, file.category = fitting[0]["id"], str(fitting[0].get("name", fitting[0]["id"]))
            return True
        if len(fitting) > 1:
            what = f"{len(fitting)} categories have the keypoints of skeleton {skeleton.name!r}, and one is read"
            self.error("category twice", "", what, "merge them, or split the file")
        elif not with_keypoints:
            what = f"none of its {len(categories)} categories has 'keypoints'"
            keypoints = ", ".join(skeleton.keypoints)
            remedy = f"it needs one with those of skeleton {skeleton.name!r}, in this order: {keypoints}"
            self.error("no category with keypoints", "", what, remedy)
        else:
            remedy = "name the skeleton of this dataset, or add it to DATASETS.SKELETONS"
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
        # Stable: within an image the order of the file stays, which decides between equal scores.
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
        self._check_keypoints_inside()
        self._clip_boxes()

    def _of_category(self, annotations: Sequence[Any]) -> Iterator[dict[str, Any]]:
        """The annotations with an id of their own that are of the category."""
        seen: set[int] = set()
        num_others = 0
        for annotation in annotations:
            if not isinstance(annotation, dict) or not is_integer(annotation.get("id")):
                what = f"an annotation has no integer 'id': {_short(annotation)}"
                self.error("annotation without id", "", what, "number the annotations")
                continue
            id = annotation["id"]
            if id in seen:
                what = f"two annotations have the id {id}"
                self.error("duplicate annotation id", f"annotation {id}", what, "give each its own")
                continue
            seen.add(id)
            category_id = annotation.get("category_id")
            if not isinstance(category_id, int | float) or category_id not in self.category_ids:
                what = f"annotation {id} has the category_id {_short(category_id)}, which the file does not list"
                self.error("unknown category id", f"annotation {id}", what, "add the category, or name another")
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
        """Whether the image is of the file, and whether the fields that are single numbers are what they must be."""
        id, image_id = f"annotation {annotation['id']}", annotation.get("image_id")
        if not is_integer(image_id) or image_id not in self.index_of_image:
            if not is_integer(image_id) or image_id not in self.broken_images:
                what = f"{id} is of image {_short(image_id)}, which the file does not list"
                self.error("unknown image id", id, what, "add the image or remove the annotation")
            return False
        is_crowd, area, count = annotation.get("iscrowd", 0), annotation.get("area"), annotation.get("num_keypoints")
        if is_crowd not in (0, 1):
            what, remedy = f"'iscrowd' of {id} is {_short(is_crowd)}", "allowed: 0 (a person), 1 (a region with many)"
            self.error("iscrowd other than 0, 1", id, what, remedy)
        elif area is not None and not (_number_or_nan(area) >= 0):
            what, remedy = f"'area' of {id} is {_short(area)}", "allowed: a finite number >= 0, or no 'area' at all"
            self.error("area that is no area", id, what, remedy)
        elif count is not None and not (is_integer(count) and 0 <= count < 2**31):
            what = f"'num_keypoints' of {id} is {_short(count)}"
            remedy = "allowed: an integer >= 0, or no 'num_keypoints' at all"
            self.error("num_keypoints that is no such number", id, what, remedy)
        else:
            return True
        return False

    def _numbers_of(
        self, annotations: list[dict[str, Any]], name: str, length: int, meaning: str, *others: NDArray[np.float64]
    ) -> tuple[Any, ...]:
        """Keeps the annotations whose field of that name is a list of so many finite numbers.

        Returns:
            those annotations, their numbers (N, length), and their rows of `others`.
        """
        rows, has_length = [], np.zeros(len(annotations), dtype=bool)
        for index, annotation in enumerate(annotations):
            values = annotation.get(name)
            if name == "keypoints" and annotation.get("iscrowd", 0) and not values:
                values = [0] * length  # a region with many persons has none
            if isinstance(values, list) and len(values) == length:
                rows.append(values)
                has_length[index] = True
                continue
            found = f"{len(values)} numbers" if isinstance(values, list) else _short(values)
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
                f"{name!r} of annotation {annotation['id']} (image {annotation['image_id']}) has a value that is not "
                "finite or no number", "correct it, or write 0, 0, 0 for a keypoint that is not labeled",
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
            self.error("box of negative size", id, what, "it must be x, y, width, height with sizes >= 0")
        return is_sound

    def _correct_swapped_sizes(self) -> None:
        """Corrects images whose height and width the json has swapped, where a box betrays it.

        CrowdPose has such images. Only those are opened whose boxes fit the transposed size and not the stated one; the
        others are recognized when they are read (`querypose.data.image_checks`).
        """
        file = self.file
        if file.image_root is None or not os.path.isdir(file.image_root):
            return
        extents = np.zeros((len(file.image_ids), 2))
        np.maximum.at(extents, file.image_indices, file.boxes_xywh[:, :2] + file.boxes_xywh[:, 2:])
        is_within = (extents <= file.sizes_hw[:, ::-1] + SIZE_TOLERANCE).all(axis=1)
        is_within_transposed = (extents <= file.sizes_hw + SIZE_TOLERANCE).all(axis=1)
        for index in np.flatnonzero(~is_within & is_within_transposed).tolist():
            image_id, (height, width) = file.image_ids[index], file.sizes_hw[index].tolist()
            id, not_fitting = (
                f"image {image_id}",
                f"the boxes of image {image_id} do not fit its size, {width}x{height}",
            )
            try:
                is_swapped = read_image_size(os.path.join(file.image_root, file.file_names[index])) == (width, height)
            except ImageReadError as error:
                what = f"{not_fitting}, and the image cannot tell which is right: {error.what}"
                self.error("boxes do not fit the size", id, what, error.remedy)
                continue
            if is_swapped:
                file.sizes_hw[index] = width, height
                what = f"{not_fitting}: height and width are swapped in the file"
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
                f"the keypoints number {numbers} of {id} are labeled and outside {self._image_of(index)}",
                "they are taken for not labeled in training",
            )  # fmt: skip

    def _clip_boxes(self) -> None:
        """Clips the boxes to their images, and notes which are empty then."""
        file = self.file
        # Corners and sizes are not exchanged without rounding; records have always been made from the corners.
        corners = file.boxes_xywh.copy()
        corners[:, 2:] += corners[:, :2]
        sizes_whwh = np.tile(file.sizes_hw[file.image_indices, ::-1], 2)
        file.boxes_xyxy = np.clip(corners, 0, sizes_whwh)
        is_empty = np.asarray((file.boxes_xyxy[:, 2:] <= file.boxes_xyxy[:, :2]).any(axis=1))
        file.is_usable = np.logical_not(is_empty)
        is_clipped = (file.boxes_xyxy != corners).any(axis=1) & ~is_empty
        for is_wrong, kind, what, remedy in (
            (is_clipped, "box outside the image", "reaches outside", "it is clipped"),
            (is_empty, "empty box", "is empty or outside", "this person is left out"),
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
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < _INFINITE
    return float(value) if is_number else np.nan


def _rows_of_finite_numbers(rows: list[list[Any]]) -> NDArray[np.bool_]:
    """Which rows hold finite numbers and nothing else."""
    try:
        array = np.array(rows)
        if array.ndim == 2 and array.dtype.kind in "iuf":
            return np.asarray((np.abs(array) < _INFINITE).all(axis=1))
    except ValueError:  # one of them holds a list
        pass
    return np.array([not any(np.isnan(_number_or_nan(value)) for value in row) for row in rows], dtype=bool)


def _short(value: Any, length: int = 120) -> str:
    text = repr(value)
    return text if len(text) <= length else text[: length - 1] + "…"


def _numbers(values: NDArray[np.float64]) -> str:
    return ", ".join(f"{value:g}" for value in values)


def _describe_mismatch(category: Mapping[str, Any], skeleton: Skeleton) -> str:
    names = tuple(category["keypoints"])
    if len(names) != skeleton.num_keypoints:
        return (
            f"category {category.get('name')!r} has {len(names)} keypoints, skeleton {skeleton.name!r} has "
            f"{skeleton.num_keypoints}"
        )
    index = next(index for index, name in enumerate(names) if name != skeleton.keypoints[index])
    return (
        f"category {category.get('name')!r} has other keypoints than skeleton {skeleton.name!r}, or in another order: "
        f"number {index} is {names[index]!r} in the file and {skeleton.keypoints[index]!r} in the skeleton"
    )
