"""Reading of a COCO-keypoints json: what in it can be used, and every problem of the rest.

`read_annotation_file` is the one place that judges such files. The loader (`querypose.data.coco_json`) refuses a file
with an error and logs the warnings, the validator (`querypose.data.validation`) lists them all.

Coordinates: keypoints of a json are pixel indices (COCO's convention: the centre of the first pixel is 0), here they
become continuous coordinates (that centre is 0.5), so 0.5 is added to x and y. This is the one place that does so; the
evaluator takes it off again when it writes results. Boxes are continuous in the json already.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from querypose.data.image_io import ImageReadError, read_image_size
from querypose.data.problems import Problem
from querypose.skeleton import Skeleton

_PIXEL_INDEX_TO_CONTINUOUS = 0.5
# A box or keypoint may leave its image by this much, in pixels, before the image's size is doubted.
SIZE_TOLERANCE = 2.0


@dataclass
class AnnotationFile:
    """What a json holds: the sound part of it, and the problems of the rest.

    Attributes:
        path: of the json.
        problems: in the order of the file's parts: images, categories, annotations.
        images: `id`, `file_name`, `height`, `width` of each by id, in the order of ids; swapped sizes corrected.
        broken_images: ids of images with an error of their own; nothing is said of their annotations.
        category_ids: of all its categories.
        category_id: the id that the json gives to the category whose keypoints are the skeleton's.
        category: its name.
        annotations: those of that category (N); None where the json has no field "annotations" (a test split).
        boxes: float64 (N, 4), corners, clipped to the image, not empty.
        keypoints: float64 (N, K, 3), continuous x and y, visibility.
    """

    path: str
    problems: list[Problem] = field(default_factory=list)
    images: dict[int, dict[str, Any]] = field(default_factory=dict)
    broken_images: set[int] = field(default_factory=set)
    category_ids: set[int] = field(default_factory=set)
    category_id: int = 0
    category: str = ""
    annotations: list[dict[str, Any]] | None = None
    boxes: np.ndarray = field(default_factory=lambda: np.empty((0, 4)))
    keypoints: np.ndarray = field(default_factory=lambda: np.empty((0, 0, 3)))

    def error(self, kind: str, id: str, what: str, remedy: str) -> None:
        """Notes an error."""
        self.problems.append(Problem("error", kind, self.path, id, what, remedy))

    def warning(self, kind: str, id: str, what: str, remedy: str) -> None:
        """Notes something that is corrected or left out."""
        self.problems.append(Problem("warning", kind, self.path, id, what, remedy))


def read_annotation_file(
    json_file: str | Path, skeleton: Skeleton, image_path: Callable[[str], str | Path]
) -> AnnotationFile:
    """Reads and judges a COCO-keypoints json.

    Args:
        json_file: the json.
        skeleton: what its keypoints must be.
        image_path: where the image of a `file_name` is; opened only where boxes betray a wrong size.
    """
    file = AnnotationFile(str(json_file))
    document = _read_document(file)
    if document is None:
        return file
    _read_images(file, document["images"])
    has_annotations = "annotations" in document
    has_category = _find_category(file, document.get("categories", []), skeleton, has_annotations)
    if has_annotations and has_category:
        _read_annotations(file, document["annotations"], skeleton, image_path)
    return file


def _read_document(file: AnnotationFile) -> dict[str, Any] | None:
    if not Path(file.path).is_file():
        file.error(
            "no annotation file", "", f"there is no annotation file {file.path!r}",
            "datasets/README.md says where each dataset goes, and DETECTRON2_DATASETS names the folder that holds them",
        )  # fmt: skip
        return None
    not_coco = ("not a COCO json", "")
    try:
        document = json.loads(Path(file.path).read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        file.error(*not_coco, f"it is not valid json ({error})", "download or write it again")
        return None
    if not isinstance(document, dict) or not isinstance(document.get("images"), list):
        file.error(*not_coco, "it is not a COCO json: it lacks the list 'images'", "name the right file")
        return None
    for name in ("annotations", "categories"):
        if not isinstance(document.get(name, []), list):
            file.error(*not_coco, f"{name!r} is not a list", "write the file again")
            return None
    return document


def _read_images(file: AnnotationFile, images: Sequence[Any]) -> None:
    if not images:
        file.error("no images", "", "it lists no images", "name the right file")
    found: dict[int, dict[str, Any]] = {}
    for image in images:
        if not isinstance(image, dict) or not is_id(image.get("id")):
            file.error("image without id", "", f"image {_short(image)} has no integer 'id'", "number the images")
            continue
        id = f"image {image['id']}"
        if image["id"] in found:
            file.error("duplicate image id", id, f"two images have the id {image['id']}", "give each its own")
            continue
        if not isinstance(image.get("file_name"), str) or not image["file_name"]:
            file.error("image without file", id, f"{id} has no 'file_name'", "name its file")
        elif wrong := [side for side in ("height", "width") if not is_id(image.get(side)) or image[side] <= 0]:
            file.error(
                "image without size", id,
                f"{id} ({image['file_name']}) has {wrong[0]} {_short(image.get(wrong[0]))}",
                "write its size in pixels, an integer above 0",
            )  # fmt: skip
        else:
            found[image["id"]] = image
        if image["id"] not in found:
            file.broken_images.add(image["id"])
    file.images = dict(sorted(found.items()))
    id_of_name: dict[str, int] = {}
    for image_id, image in file.images.items():
        first = id_of_name.setdefault(image["file_name"], image_id)
        if first != image_id:
            file.warning(
                "image listed twice", f"image {image_id}",
                f"image {image_id} is the same file as image {first}, {image['file_name']!r}",
                "both are used; annotations of one image belong under one id",
            )  # fmt: skip


def is_id(value: Any) -> bool:
    """Whether a json's value is an integer."""
    return isinstance(value, int) and not isinstance(value, bool)


def _short(value: Any, length: int = 120) -> str:
    text = repr(value)
    return text if len(text) <= length else text[: length - 1] + "…"


def _find_category(file: AnnotationFile, categories: Sequence[Any], skeleton: Skeleton, has_annotations: bool) -> bool:
    """Finds the category whose keypoints are those of the skeleton, in its order; False where that is an error."""
    for category in categories:
        if not isinstance(category, dict) or not is_id(category.get("id")):
            what = f"category {_short(category)} has no integer 'id'"
            file.error("category without id", "", what, "number the categories")
            return False
    file.category_ids = {category["id"] for category in categories}
    with_keypoints = [category for category in categories if category.get("keypoints")]
    for category in with_keypoints:
        if not isinstance(category["keypoints"], list):
            what = f"category {category.get('name')!r} has the keypoints {_short(category['keypoints'])}"
            file.error("other skeleton", f"category {category['id']}", what, "it needs the list of their names")
            return False
    fitting = [category for category in with_keypoints if tuple(category["keypoints"]) == skeleton.keypoints]
    if not with_keypoints and (len(categories) == 1 or not has_annotations):
        fitting = list(categories[:1])  # it names no keypoints, and their number is checked with the annotations
    if len(fitting) == 1:
        file.category_id, file.category = fitting[0]["id"], str(fitting[0].get("name", fitting[0]["id"]))
        return True
    if len(fitting) > 1:
        what = f"{len(fitting)} categories have the keypoints of skeleton {skeleton.name!r}, and one is read"
        file.error("category twice", "", what, "merge them, or split the file")
    elif not with_keypoints:
        what = f"none of its {len(categories)} categories has 'keypoints'"
        keypoints = ", ".join(skeleton.keypoints)
        file.error("no category with keypoints", "", what,
                   f"it needs one with those of skeleton {skeleton.name!r}, in this order: {keypoints}")  # fmt: skip
    else:
        remedy = "name the skeleton of this dataset, or add it to DATASETS.SKELETONS"
        file.error("other skeleton", "", _describe_mismatch(with_keypoints[0], skeleton), remedy)
    return False


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


def _read_annotations(
    file: AnnotationFile, annotations: Sequence[Any], skeleton: Skeleton, image_path: Callable[[str], str | Path]
) -> None:
    K = skeleton.num_keypoints
    chosen = [annotation for annotation in _of_category(file, annotations) if _has_place(file, annotation)]
    for annotation in chosen:
        if annotation.get("iscrowd", 0) and not annotation.get("keypoints"):
            annotation["keypoints"] = [0] * (3 * K)
    chosen = _with_numbers(file, chosen, "bbox", 4, "x, y, width, height")
    meaning = f"x, y, v of each of the {K} keypoints of skeleton {skeleton.name!r}"
    chosen = _with_numbers(file, chosen, "keypoints", 3 * K, meaning)
    keypoints = _array(chosen, "keypoints", 3 * K).reshape(-1, K, 3)
    is_sound = _check_visibilities(file, chosen, keypoints[..., 2])
    chosen = [chosen[index] for index in np.flatnonzero(is_sound).tolist()]
    keypoints = keypoints[is_sound]
    keypoints[..., :2] += _PIXEL_INDEX_TO_CONTINUOUS
    boxes = _array(chosen, "bbox", 4)
    boxes[:, 2:] += boxes[:, :2]
    _correct_swapped_sizes(file, chosen, boxes, image_path)
    sizes = np.array(
        [[file.images[annotation["image_id"]][side] for side in ("width", "height")] for annotation in chosen]
    ).reshape(-1, 2)
    _check_keypoints_inside(file, chosen, keypoints, sizes)
    boxes, is_kept = _clip_boxes(file, chosen, boxes, sizes)
    file.annotations = [chosen[index] for index in np.flatnonzero(is_kept).tolist()]
    file.boxes, file.keypoints = boxes[is_kept], keypoints[is_kept]


def _of_category(file: AnnotationFile, annotations: Sequence[Any]) -> list[dict[str, Any]]:
    seen: set[int] = set()
    chosen = []
    num_others = 0
    for annotation in annotations:
        if not isinstance(annotation, dict) or not is_id(annotation.get("id")):
            what = f"an annotation has no integer 'id': {_short(annotation)}"
            file.error("annotation without id", "", what, "number the annotations")
            continue
        id = annotation["id"]
        if id in seen:
            what = f"two annotations have the id {id}"
            file.error("duplicate annotation id", f"annotation {id}", what, "give each its own")
            continue
        seen.add(id)
        category_id = annotation.get("category_id")
        if not isinstance(category_id, int | float) or category_id not in file.category_ids:
            what = f"annotation {id} has the category_id {_short(category_id)}, which the file does not list"
            file.error("unknown category id", f"annotation {id}", what, "add the category, or name another")
        elif category_id == file.category_id:
            chosen.append(annotation)
        else:
            num_others += 1
    if num_others:
        what = f"{num_others} of {len(annotations)} annotations are of another category than {file.category_id}"
        file.warning("annotations of another category", "", what, "they are left out")
    return chosen


def _has_place(file: AnnotationFile, annotation: Mapping[str, Any]) -> bool:
    """Whether it is of an image of the file, and a person or a crowd."""
    id, image_id, is_crowd = f"annotation {annotation['id']}", annotation.get("image_id"), annotation.get("iscrowd", 0)
    if not is_id(image_id) or image_id not in file.images:
        if is_id(image_id) and image_id in file.broken_images:
            return False
        what = f"{id} is of image {_short(image_id)}, which the file does not list"
        file.error("unknown image id", id, what, "add the image or remove the annotation")
        return False
    if is_crowd not in (0, 1):
        what = f"'iscrowd' of {id} is {_short(is_crowd)}"
        file.error("iscrowd other than 0, 1", id, what, "allowed: 0 (a person), 1 (a region with many)")
        return False
    return True


def _with_numbers(
    file: AnnotationFile, annotations: list[dict[str, Any]], name: str, length: int, meaning: str
) -> list[dict[str, Any]]:
    """The annotations whose field of that name is a list of so many finite numbers."""
    of_length = []
    for annotation in annotations:
        values = annotation.get(name)
        if isinstance(values, list) and len(values) == length:
            of_length.append(annotation)
            continue
        found = f"{len(values)} numbers" if isinstance(values, list) else _short(values)
        file.error(
            f"wrong number of values in {name}", f"annotation {annotation['id']}",
            f"{name!r} of annotation {annotation['id']} (image {annotation['image_id']}) is {found}",
            f"it must be {length} numbers: {meaning}",
        )  # fmt: skip
    is_sound = _rows_of_finite_numbers([annotation[name] for annotation in of_length])
    for index in np.flatnonzero(~is_sound).tolist():
        annotation = of_length[index]
        file.error(
            f"not a finite number in {name}", f"annotation {annotation['id']}",
            f"{name!r} of annotation {annotation['id']} (image {annotation['image_id']}) has a value that is not "
            "finite or no number", "correct it, or write 0, 0, 0 for a keypoint that is not labelled",
        )  # fmt: skip
    return [of_length[index] for index in np.flatnonzero(is_sound).tolist()]


def _array(annotations: Sequence[Mapping[str, Any]], name: str, length: int) -> np.ndarray:
    return np.array([annotation[name] for annotation in annotations], dtype=np.float64).reshape(-1, length)


def _rows_of_finite_numbers(rows: list[list[Any]]) -> np.ndarray:
    """Which rows hold finite numbers and nothing else."""
    with contextlib.suppress(ValueError):  # one of them holds a list
        array = np.array(rows)
        if array.ndim == 2 and array.dtype.kind in "biuf":
            return np.asarray(np.isfinite(array).all(axis=1))
    return np.array([_are_finite_numbers(row) for row in rows], dtype=bool)


def _are_finite_numbers(values: list[Any]) -> bool:
    try:
        return all(isinstance(value, int | float) and np.isfinite(float(value)) for value in values)
    except OverflowError:  # an integer beyond the range of float
        return False


def _check_visibilities(
    file: AnnotationFile, annotations: Sequence[Mapping[str, Any]], visibilities: np.ndarray
) -> np.ndarray:
    """Whether each annotation's (N, K) are all 0, 1 or 2."""
    is_allowed = np.isin(visibilities, (0, 1, 2))
    is_sound = np.asarray(is_allowed.all(axis=1))
    for index in np.flatnonzero(~is_sound).tolist():
        keypoint = int(np.argmin(is_allowed[index]))
        id = f"annotation {annotations[index]['id']}"
        file.error(
            "visibility other than 0, 1, 2", id,
            f"keypoint number {keypoint} of {id} has the visibility {visibilities[index, keypoint]:g}",
            "allowed: 0 (not labelled), 1 (labelled, hidden), 2 (visible)",
        )  # fmt: skip
    return is_sound


def _correct_swapped_sizes(
    file: AnnotationFile,
    annotations: Sequence[Mapping[str, Any]],
    boxes_xyxy: np.ndarray,
    image_path: Callable[[str], str | Path],
) -> None:
    """Corrects images whose height and width the json has swapped, where a box betrays it.

    CrowdPose has such images. Only those are opened whose boxes fit the transposed size and not the stated one; the
    others are recognised when they are read (`querypose.data.image_checks`).
    """
    extents: dict[int, np.ndarray] = {}
    for annotation, box in zip(annotations, boxes_xyxy, strict=True):
        image_id = annotation["image_id"]
        extents[image_id] = np.maximum(extents.get(image_id, box[2:]), box[2:])
    for image_id, (right, bottom) in extents.items():
        image = file.images[image_id]
        height, width = image["height"], image["width"]
        fits = right <= width + SIZE_TOLERANCE and bottom <= height + SIZE_TOLERANCE
        fits_transposed = right <= height + SIZE_TOLERANCE and bottom <= width + SIZE_TOLERANCE
        if fits or not fits_transposed:
            continue
        id, not_fitting = f"image {image_id}", f"the boxes of image {image_id} do not fit its size, {width}x{height}"
        try:
            is_swapped = read_image_size(image_path(image["file_name"])) == (width, height)
        except ImageReadError as error:
            file.error("boxes do not fit the size", id, f"{not_fitting}, and the image cannot tell which is right",
                       str(error).rstrip("."))  # fmt: skip
            continue
        if is_swapped:
            image["height"], image["width"] = width, height
            file.warning("height and width swapped", id, f"{not_fitting}: height and width are swapped in the file",
                         "corrected from the image")  # fmt: skip


def _check_keypoints_inside(
    file: AnnotationFile, annotations: Sequence[Mapping[str, Any]], keypoints: np.ndarray, sizes_wh: np.ndarray
) -> None:
    """Warns of labelled keypoints beyond the image, by more than the tolerance."""
    outside = (keypoints[..., :2] < -SIZE_TOLERANCE) | (keypoints[..., :2] > sizes_wh[:, None] + SIZE_TOLERANCE)
    is_outside = outside.any(axis=-1) & (keypoints[..., 2] > 0)
    for index in np.flatnonzero(is_outside.any(axis=1)).tolist():
        id, (width, height) = f"annotation {annotations[index]['id']}", sizes_wh[index]
        numbers = ", ".join(map(str, np.flatnonzero(is_outside[index])))
        file.warning(
            "labelled keypoints outside the image", id,
            f"the keypoints number {numbers} of {id} are labelled and outside image {annotations[index]['image_id']}, "
            f"{width}x{height}", "they are taken for not labelled in training",
        )  # fmt: skip


def _clip_boxes(
    file: AnnotationFile, annotations: Sequence[Mapping[str, Any]], boxes_xyxy: np.ndarray, sizes_wh: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The boxes within their images, and which of them are not empty."""
    clipped = np.clip(boxes_xyxy, 0, np.tile(sizes_wh, 2))
    is_empty = (clipped[:, 2:] <= clipped[:, :2]).any(axis=1)
    is_clipped = (clipped != boxes_xyxy).any(axis=1) & ~is_empty
    for is_wrong, kind, what, remedy in (
        (is_clipped, "box outside the image", "reaches outside", "it is clipped"),
        (is_empty, "empty box", "is empty or outside", "this person is left out"),
    ):
        for index in np.flatnonzero(is_wrong).tolist():
            id, (width, height) = f"annotation {annotations[index]['id']}", sizes_wh[index]
            box = ", ".join(f"{value:g}" for value in annotations[index]["bbox"])
            image = f"image {annotations[index]['image_id']}, {width}x{height}"
            file.warning(kind, id, f"the box ({box}) of {id} {what} {image}", remedy)
    return clipped, ~is_empty
