"""The synthetic people: drawn pictures with COCO-17 annotations, for a first run without any download.

Every picture has one to four jointed, clothed people of varied size and pose who hide each other, on a textured
background. A keypoint is visible (2), hidden behind somebody, something or the person's own body (1), or outside the
picture (0). Picture i of a split depends on the seed of the split and on i alone. Choices are tuned on `val`, and what
is reported is measured on `test`. In the `hard_` splits more persons turn away or are hidden. Files are made on first
use, made again when `VERSION` or a number below changes, and never seen half-made.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFilter
from torch.utils.data import DataLoader, Dataset

from querypose.data.problems import DatasetError
from querypose.data.synthetic_figure import PARTS, Figure, Painter, random_color, random_figure
from querypose.progress import progress
from querypose.skeleton import COCO_SKELETON

_logger = logging.getLogger(__name__)
_Record = tuple[dict[str, Any], list[dict[str, Any]]]  # of one picture, and of its persons

VERSION = 3  # raise it whenever a change of the drawing code changes the pictures


@dataclass(frozen=True)
class Difficulty:
    """How hard pictures are.

    Attributes:
        front: share of the persons that face the viewer.
        back: share of those that turn their back to the viewer; the others are seen from a side.
        turn: standard deviation of body and head from those views, in degrees.
        occluded: share of the pictures with a thing in front of somebody.
        max_overlap: of the boxes of two persons, as a share of the smaller one.
    """

    front: float = 0.78
    back: float = 0.1
    turn: float = 15.0
    occluded: float = 0.1
    max_overlap: float = 0.2


PLAIN = Difficulty()
HARD = Difficulty(front=0.5, back=0.2, turn=24.0, occluded=0.3, max_overlap=0.45)


@dataclass(frozen=True)
class Split:
    """Pictures that belong together; `seed` decides all of them."""

    seed: int
    num_images: int
    difficulty: Difficulty = PLAIN


SPLITS = {
    "train": Split(seed=1, num_images=4000),
    "val": Split(seed=2, num_images=100),
    "test": Split(seed=3, num_images=200),
    "hard_train": Split(seed=4, num_images=4000, difficulty=HARD),
    "hard_val": Split(seed=5, num_images=100, difficulty=HARD),
    "hard_test": Split(seed=6, num_images=200, difficulty=HARD),
}
IMAGE_WIDTH, IMAGE_HEIGHT = 320, 256
_JPEG_QUALITY = 92
_MIN_KEYPOINTS = 6  # labeled ones that a person must have in the picture
_MIN_SHOWN = 0.4  # share of a person's pixels that nothing may hide
_OCCLUDER = 255  # owner of the pixels of a thing in front; 0 is the background


def make_synthetic_split(split: str, folder: str | Path) -> None:
    """Makes `folder`/annotations.json and `folder`/images, unless they are there and up to date.

    Args:
        split: a key of `SPLITS`.
        folder: the folder of this split, made if need be; replaced as a whole.

    Raises:
        DatasetError: the folder cannot be written.
    """
    folder = Path(folder)
    parameters = {"version": VERSION, "size": [IMAGE_WIDTH, IMAGE_HEIGHT], **asdict(SPLITS[split])}
    if _is_up_to_date(folder, parameters):
        return
    start = time.perf_counter()
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(prefix=f".{split}-", dir=folder.parent))
    except OSError as error:
        raise DatasetError(
            f"The synthetic people cannot be drawn into {str(folder)!r}: {error.strerror}. Set DETECTRON2_DATASETS to "
            "a folder that can be written."
        ) from error
    try:
        _write_split(unfinished, SPLITS[split], parameters, f"synthetic people, {split}")
        _put_in_place(unfinished, folder, parameters)
    except OSError as error:
        raise DatasetError(f"The synthetic people cannot be written to {str(folder)!r}: {error}.") from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    _logger.info(
        "Drew %d pictures of synthetic people into %s in %.0f s.",
        SPLITS[split].num_images, folder, time.perf_counter() - start,
    )  # fmt: skip


def draw_scene(
    generator: np.random.Generator, difficulty: Difficulty = PLAIN
) -> tuple[Image.Image, list[dict[str, Any]]]:
    """One picture and the COCO annotations of its persons, without ids.

    Returns:
        RGB image, and dicts of bbox (x, y, w, h of the visible pixels), area (their number), keypoints (pixel indices,
        as COCO has them), num_keypoints.
    """
    while True:
        figures = _place_figures(generator, difficulty)
        is_occluded = generator.random() < difficulty.occluded
        occluder_at = generator.integers(len(figures) + 1) if is_occluded else None
        painter = Painter(_background(generator))
        for index, figure in enumerate(figures):
            figure.paint(painter, first_owner=_first_owner(index))
            if index == occluder_at:
                _paint_occluder(painter, generator)
        owners = painter.owners()
        if (len(figures) == 1 and not is_occluded) or all(
            _share_shown(figure, owners, index) >= _MIN_SHOWN for index, figure in enumerate(figures)
        ):
            persons = [_annotate(figure, owners, index) for index, figure in enumerate(figures)]
            if all(person["num_keypoints"] >= _MIN_KEYPOINTS for person in persons):
                return _camera(painter.picture(), generator), persons


def _is_up_to_date(folder: Path, parameters: dict[str, Any]) -> bool:
    json_file = folder / "annotations.json"
    try:
        return bool(json.loads(json_file.read_text(encoding="utf-8"))["info"]["parameters"] == parameters)
    except (OSError, json.JSONDecodeError, KeyError, TypeError):
        return False


def _put_in_place(unfinished: Path, folder: Path, parameters: dict[str, Any]) -> None:
    """Renames the finished folder; where another process was faster, its files (equal ones) stay."""
    outdated = unfinished.with_name(unfinished.name + "-outdated")
    try:
        if folder.exists() and not _is_up_to_date(folder, parameters):
            folder.rename(outdated)
        unfinished.rename(folder)
    except OSError:
        if not _is_up_to_date(folder, parameters):
            raise
    finally:
        shutil.rmtree(outdated, ignore_errors=True)


def _write_split(folder: Path, split: Split, parameters: dict[str, Any], description: str) -> None:
    (folder / "images").mkdir()
    folder.chmod(0o755)  # mkdtemp keeps others out
    pictures = _Pictures(folder, split)
    # With a generator of its own, so that a run draws the same numbers whether or not it had to draw the pictures.
    loader: DataLoader[_Record] = DataLoader(
        pictures, batch_size=None, num_workers=_num_workers(len(pictures)), generator=torch.Generator()
    )
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image, persons in progress(loader, f"Drawing {description}"):
        images.append(image)
        for person in persons:
            annotations.append(
                {"id": len(annotations) + 1, "image_id": image["id"], "category_id": 1, "iscrowd": 0, **person}
            )
    category = {
        "id": 1,
        "name": "person",
        "supercategory": "person",
        "keypoints": list(COCO_SKELETON.keypoints),
        "skeleton": [[first + 1, second + 1] for first, second in COCO_SKELETON.edges],
    }
    document = {
        "info": {"description": description, "parameters": parameters},
        "images": images,
        "annotations": annotations,
        "categories": [category],
    }
    with (folder / "annotations.json").open("w", encoding="utf-8") as stream:
        json.dump(document, stream)
        stream.flush()
        os.fsync(stream.fileno())


class _Pictures(Dataset[_Record]):
    """Item i draws and saves picture i + 1, and gives its entry in the json and its persons."""

    def __init__(self, folder: Path, split: Split) -> None:
        self._folder = folder
        self._split = split

    def __len__(self) -> int:
        return self._split.num_images

    def __getitem__(self, index: int) -> _Record:
        image_id = index + 1
        image, persons = draw_scene(np.random.default_rng([self._split.seed, image_id]), self._split.difficulty)
        file_name = f"{image_id:06d}.jpg"
        image.save(self._folder / "images" / file_name, quality=_JPEG_QUALITY)
        return {"id": image_id, "file_name": file_name, "height": image.height, "width": image.width}, persons


def _num_workers(num_images: int) -> int:
    """Processes that are worth their start for so many pictures."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, num_images // 200)


def _first_owner(index: int) -> int:
    return 1 + index * len(PARTS)


def _place_figures(generator: np.random.Generator, difficulty: Difficulty) -> list[Figure]:
    """One to four persons, far ones first, that overlap at most in part."""
    count = generator.choice([1, 2, 3, 4], p=[0.35, 0.35, 0.2, 0.1])
    placed: list[tuple[float, Figure]] = []
    boxes: list[tuple[float, float, float, float]] = []
    for _ in range(40 * count):
        if len(placed) == count:
            break
        kind = generator.random()
        if kind < 0.1 and count < 4:  # close to the camera, cut by the frame
            height = generator.uniform(230, 330)
        else:
            height = generator.uniform(140, 235) / (1 + 0.06 * (count - 1))
        figure = random_figure(height, generator, front=difficulty.front, back=difficulty.back, turn=difficulty.turn)
        x0, y0, x1, y1 = figure.bounds()
        # Mostly inside; sometimes, and where it is too tall, partly outside.
        slack = 0.25 if generator.random() < 0.25 else -0.04
        margin_x, margin_y = slack * (x1 - x0), slack * (y1 - y0)
        left = generator.uniform(-margin_x, max(IMAGE_WIDTH - (x1 - x0) + margin_x, 1 - margin_x))
        room = IMAGE_HEIGHT - (y1 - y0)
        if room < 0:  # the head stays in the picture
            top = generator.uniform(4, 0.12 * IMAGE_HEIGHT)
        else:
            top = generator.uniform(0.35 * room, room + max(margin_y, 0)) if room > 8 else room / 2
        box = (left, top, left + x1 - x0, top + y1 - y0)
        if max((_overlap(box, other) for other in boxes), default=0) > difficulty.max_overlap:
            continue
        boxes.append(box)
        placed.append((box[3], figure.shifted(left - x0, top - y0)))
    return [figure for _, figure in sorted(placed, key=lambda item: item[0])]


def _overlap(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> float:
    """Intersection over the smaller box."""
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    smaller = min((a[2] - a[0]) * (a[3] - a[1]), (b[2] - b[0]) * (b[3] - b[1]))
    return width * height / max(smaller, 1.0)


def _share_shown(figure: Figure, owners: np.ndarray, index: int) -> float:
    """Visible pixels of a person over those that it has alone in the picture."""
    alone = Painter(Image.new("RGB", (IMAGE_WIDTH, IMAGE_HEIGHT)), colors=False)
    figure.paint(alone, first_owner=_first_owner(index))
    return float(_mask(owners, index).sum()) / max(1.0, float((alone.owners() > 0).sum()))


def _mask(owners: np.ndarray, index: int) -> np.ndarray:
    first = _first_owner(index)
    return (owners >= first) & (owners < first + len(PARTS))


def _annotate(figure: Figure, owners: np.ndarray, index: int) -> dict[str, Any]:
    mask = _mask(owners, index)
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    x, y = int(columns[0]), int(rows[0])
    keypoints: list[float] = []
    for name in COCO_SKELETON.keypoints:
        joint = figure.joints[name]
        if not (0 <= joint[0] < IMAGE_WIDTH and 0 <= joint[1] < IMAGE_HEIGHT):
            keypoints += [0, 0, 0]
            continue
        part = int(owners[int(joint[1]), int(joint[0])]) - _first_owner(index)
        shown = figure.is_shown(name, PARTS[part] if 0 <= part < len(PARTS) else None)
        # A json has pixel indices: the center of the first pixel is 0, in the drawing it is 0.5.
        keypoints += [round(float(joint[0]) - 0.5, 2), round(float(joint[1]) - 0.5, 2), 2 if shown else 1]
    return {
        "bbox": [x, y, int(columns[-1]) + 1 - x, int(rows[-1]) + 1 - y],
        "area": int(mask.sum()),
        "keypoints": keypoints,
        "num_keypoints": sum(visibility > 0 for visibility in keypoints[2::3]),
    }


def _background(generator: np.random.Generator) -> Image.Image:
    """A wall and a floor of muted colors, blotches, things, and a texture."""
    width, height = IMAGE_WIDTH, IMAGE_HEIGHT
    top, bottom, ground = (_muted(random_color(generator)) for _ in range(3))
    ramp = np.linspace(0, 1, height, dtype=np.float32)[:, None, None]
    pixels = np.broadcast_to(top * (1 - ramp) + bottom * ramp, (height, width, 3)).copy()
    horizon = int(generator.uniform(0.45, 0.85) * height)
    pixels[horizon:] = ground * (0.75 + 0.25 * ramp[horizon:])
    for channels, strength in ((1, generator.uniform(0.1, 0.35)), (3, generator.uniform(0.0, 0.1))):
        pixels += _blotches(channels, generator) * strength
    image = Image.fromarray(_to_bytes(pixels))
    draw = ImageDraw.Draw(image)
    for _ in range(generator.integers(3, 12)):
        _draw_thing(draw, generator)
    image = image.filter(ImageFilter.GaussianBlur(generator.uniform(0, 1.6)))
    texture = generator.standard_normal((height, width, 1), dtype=np.float32) * generator.uniform(1, 8)
    return Image.fromarray(_to_bytes(np.asarray(image) + texture))


def _blotches(channels: int, generator: np.random.Generator) -> np.ndarray:
    """Smooth noise round 0, up to 128; float32 (H, W, channels)."""
    rows, columns = generator.integers(3, 16, size=2)
    planes = [
        Image.fromarray(generator.integers(0, 256, size=(rows, columns), dtype=np.uint8)).resize(
            (IMAGE_WIDTH, IMAGE_HEIGHT), Image.Resampling.BICUBIC
        )
        for _ in range(channels)
    ]
    return np.stack([np.asarray(plane, dtype=np.float32) for plane in planes], axis=-1) - 128


def _muted(color: tuple[int, int, int]) -> np.ndarray:
    values = np.array(color, dtype=np.float32)
    return values.mean() + (values - values.mean()) * 0.5


def _to_bytes(pixels: np.ndarray) -> np.ndarray:
    return np.clip(pixels, 0, 255).astype(np.uint8)


def _draw_thing(draw: ImageDraw.ImageDraw, generator: np.random.Generator) -> None:
    """A box, a ball, a gable, or a pole: poles have the shape of limbs, so that shape alone is no clue."""
    x, y = generator.uniform(0, IMAGE_WIDTH), generator.uniform(0, IMAGE_HEIGHT)
    width, height = generator.uniform(10, 90, size=2)
    color = random_color(generator)
    kind = generator.integers(4)
    if kind == 0:
        draw.rectangle((x, y, x + width, y + height), fill=color)
    elif kind == 1:
        draw.ellipse((x, y, x + width, y + width), fill=color)
    elif kind == 2:
        draw.polygon([(x, y + height), (x + width / 2, y), (x + width, y + height)], fill=color)
    else:
        tilt = generator.normal(0, 40)
        draw.line((x, y, x + tilt, y + 2 * height), fill=color, width=int(generator.integers(3, 12)))


def _paint_occluder(painter: Painter, generator: np.random.Generator) -> None:
    """A box or a post in front of those painted so far."""
    color = random_color(generator)
    if generator.random() < 0.5:
        width, height = generator.uniform(40, 110), generator.uniform(25, 70)
        x, y = generator.uniform(-20, IMAGE_WIDTH - 20), IMAGE_HEIGHT - generator.uniform(0.5, 1.2) * height
    else:
        width, height = generator.uniform(8, 18), generator.uniform(120, IMAGE_HEIGHT)
        x, y = generator.uniform(0, IMAGE_WIDTH), IMAGE_HEIGHT - height
    corners = np.array([[x, y], [x + width, y], [x + width, y + height], [x, y + height]])
    painter.polygon(corners, (30, 30, 30), _OCCLUDER)
    painter.polygon(corners + np.array([[1, 1], [-1, 1], [-1, 0], [1, 0]]), color)


def _camera(image: Image.Image, generator: np.random.Generator) -> Image.Image:
    """Exposure, and the noise of a sensor."""
    pixels = np.asarray(image) * np.float32(generator.uniform(0.8, 1.15))
    pixels += generator.standard_normal((IMAGE_HEIGHT, IMAGE_WIDTH, 1), dtype=np.float32) * generator.uniform(0.5, 4)
    return Image.fromarray(_to_bytes(pixels))
