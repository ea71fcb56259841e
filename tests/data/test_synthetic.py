from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter

from querypose.d2 import DatasetCatalog
from querypose.data import DatasetError, synthetic
from querypose.data.datasets import SYNTHETIC_SPLITS
from querypose.data.synthetic import HARD, PLAIN, SPLITS, Split, draw_scene, make_synthetic_split
from querypose.data.synthetic_figure import PARTS, Figure, Painter, random_figure
from querypose.skeleton import COCO_SKELETON
from tests.data.toy_dataset import read_records

NAMES = COCO_SKELETON.keypoints


def _any_figure(height: float, generator: np.random.Generator) -> Figure:
    """Every view is as likely."""
    return random_figure(height, generator, front=0.25, back=0.25, turn=20.0)


@pytest.fixture
def small_splits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(synthetic, "SPLITS", {"train": Split(seed=1, num_images=6), "val": Split(seed=2, num_images=3)})


def _digest(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*")) if path.is_file()
    }  # fmt: skip


@pytest.fixture(scope="module")
def scenes() -> list[tuple[Image.Image, list[dict[str, Any]]]]:
    return [draw_scene(np.random.default_rng([11, index])) for index in range(40)]


def test_two_runs_write_the_same_bytes(tmp_path: Path, small_splits: None) -> None:
    make_synthetic_split("train", tmp_path / "a")
    make_synthetic_split("train", tmp_path / "b")
    digest = _digest(tmp_path / "a")
    assert len(digest) == 7
    assert digest == _digest(tmp_path / "b")


def test_several_processes_write_the_same_bytes_and_leave_the_random_numbers_alone(
    tmp_path: Path, small_splits: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_synthetic_split("train", tmp_path / "one")
    monkeypatch.setattr(synthetic, "_num_workers", lambda num_images: 2)
    before = torch.get_rng_state()
    make_synthetic_split("train", tmp_path / "two")
    assert torch.equal(torch.get_rng_state(), before)
    assert _digest(tmp_path / "one") == _digest(tmp_path / "two")


def test_splits_differ_and_an_image_does_not_depend_on_how_many_there_are(tmp_path: Path, small_splits: None) -> None:
    make_synthetic_split("train", tmp_path / "train")
    make_synthetic_split("val", tmp_path / "val")
    train, val = _digest(tmp_path / "train"), _digest(tmp_path / "val")
    assert not set(train.values()) & set(val.values())
    synthetic.SPLITS["train"] = Split(seed=1, num_images=2)
    make_synthetic_split("train", tmp_path / "fewer")
    fewer = _digest(tmp_path / "fewer")
    assert fewer["images/000002.jpg"] == train["images/000002.jpg"]
    assert len(fewer) == 3


def test_made_on_first_use_then_kept_and_made_again_after_a_change(
    datasets_root: Path, small_splits: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = datasets_root / "synthetic" / "val"
    assert not folder.exists()
    records = DatasetCatalog.get("synthetic_val")
    assert len(records) == 3
    assert all(Path(record["file_name"]).is_file() for record in records)
    times = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    DatasetCatalog.get("synthetic_val")
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == times
    monkeypatch.setattr(synthetic, "VERSION", synthetic.VERSION + 1)
    DatasetCatalog.get("synthetic_val")
    assert (folder / "annotations.json").stat().st_mtime_ns != times[folder / "annotations.json"]
    assert [path.name for path in folder.parent.iterdir()] == ["val"]


@pytest.mark.parametrize("content", ["", "[]", '{"info": {}}'])
def test_damaged_folder_is_made_again(tmp_path: Path, small_splits: None, content: str) -> None:
    make_synthetic_split("val", tmp_path / "val")
    good = _digest(tmp_path / "val")
    (tmp_path / "val" / "annotations.json").write_text(content)
    make_synthetic_split("val", tmp_path / "val")
    assert _digest(tmp_path / "val") == good


def test_nothing_half_made_is_left_where_drawing_fails(
    tmp_path: Path, small_splits: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full_disk(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full_disk)
    with pytest.raises(DatasetError, match=r"cannot be written to .*No space left"):
        make_synthetic_split("val", tmp_path / "val")
    assert list(tmp_path.iterdir()) == []


def test_folder_that_cannot_be_made_is_a_clear_error(tmp_path: Path, small_splits: None) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DatasetError, match=r"cannot be drawn into .*Set DETECTRON2_DATASETS to a folder"):
        make_synthetic_split("val", tmp_path / "file" / "val")


def test_process_that_finds_another_was_faster_leaves_its_files(
    tmp_path: Path, small_splits: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_split = synthetic._write_split

    def overtaken(*arguments: Any) -> None:
        write_split(*arguments)
        monkeypatch.setattr(synthetic, "_write_split", write_split)
        make_synthetic_split("val", tmp_path / "val")  # the other process, from start to end
        times.update({path: path.stat().st_mtime_ns for path in (tmp_path / "val").rglob("*")})

    times: dict[Path, int] = {}
    monkeypatch.setattr(synthetic, "_write_split", overtaken)
    make_synthetic_split("val", tmp_path / "val")
    assert len(times) == 5
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "val").rglob("*")} == times
    assert [path.name for path in tmp_path.iterdir()] == ["val"]


def test_every_registered_split_can_be_drawn_and_no_picture_is_in_two() -> None:
    assert tuple(SPLITS) == SYNTHETIC_SPLITS
    assert len({split.seed for split in SPLITS.values()}) == len(SPLITS)


def test_json_is_a_dataset_like_any_other(tmp_path: Path, small_splits: None) -> None:
    make_synthetic_split("train", tmp_path / "train")
    records = read_records(tmp_path / "train" / "annotations.json", tmp_path / "train" / "images", COCO_SKELETON)
    assert [record["image_id"] for record in records] == [1, 2, 3, 4, 5, 6]
    document = json.loads((tmp_path / "train" / "annotations.json").read_text())
    loaded = {person["id"]: person["bbox"] for record in records for person in record["annotations"]}
    assert loaded == {person["id"]: person["bbox"] for person in document["annotations"]}  # nothing was clipped


def test_annotations_agree_with_each_other(scenes: list[tuple[Image.Image, list[dict[str, Any]]]]) -> None:
    for image, persons in scenes:
        assert 1 <= len(persons) <= 4
        for person in persons:
            keypoints = np.array(person["keypoints"]).reshape(-1, 3)
            x, y, width, height = person["bbox"]
            assert 0 <= x < x + width <= image.width
            assert 0 <= y < y + height <= image.height
            assert 0.1 * width * height < person["area"] <= width * height
            assert person["num_keypoints"] == (keypoints[:, 2] > 0).sum() >= 6
            assert not keypoints[keypoints[:, 2] == 0].any()
            visible = keypoints[keypoints[:, 2] == 2, :2] + 0.5
            assert (visible >= [x - 0.1, y - 0.1]).all()  # what can be seen is inside the box of what can be seen
            assert (visible <= [x + width + 0.1, y + height + 0.1]).all()


def test_scenes_are_varied(scenes: list[tuple[Image.Image, list[dict[str, Any]]]]) -> None:
    persons = [person for _, of_image in scenes for person in of_image]
    visibilities = np.array([person["keypoints"][2::3] for person in persons])
    areas = np.array([person["area"] for person in persons])
    assert {len(of_image) for _, of_image in scenes} == {1, 2, 3, 4}
    assert set(np.unique(visibilities)) == {0, 1, 2}
    assert 0.6 < (visibilities == 2).mean() < 0.9
    assert ((areas > 32**2) & (areas < 96**2)).sum() > 20  # COCO's medium
    assert (areas > 96**2).sum() >= 4  # and large
    assert all(np.asarray(image).std() > 8 for image, _ in scenes)


def test_hard_pictures_hide_more_keypoints_and_show_more_backs(
    scenes: list[tuple[Image.Image, list[dict[str, Any]]]],
) -> None:
    hard = [draw_scene(np.random.default_rng([11, index]), HARD) for index in range(25)]
    hidden, noses = [], []
    for of_difficulty in (scenes, hard):
        visibilities = np.array([person["keypoints"][2::3] for _, persons in of_difficulty for person in persons])
        hidden.append((visibilities == 1).sum() / (visibilities > 0).sum())
        noses.append((visibilities[:, NAMES.index("nose")] == 2).mean())
    assert hidden[0] < 0.19 < hidden[1]
    assert noses[0] > 0.7 > noses[1]


def test_the_stated_share_of_persons_faces_the_viewer() -> None:
    generator = np.random.default_rng(0)
    facing = []
    for _ in range(400):
        figure = random_figure(100, generator, front=PLAIN.front, back=PLAIN.back, turn=0.0)
        facing.append(round(float(figure.head[2, 2])))
    assert np.mean(np.array(facing) == 1) == pytest.approx(PLAIN.front, abs=0.08)  # four standard deviations
    assert np.mean(np.array(facing) == -1) == pytest.approx(PLAIN.back, abs=0.06)


def test_the_mirrored_picture_is_that_of_the_mirrored_person() -> None:
    """Else a flip that exchanges the labels would teach what is wrong in the pictures that are not flipped."""
    width, height = 160, 200
    for seed in range(10):
        figure = _any_figure(150, np.random.default_rng(seed)).shifted(80, 100)
        pictures = []
        for person in (figure, _mirrored(figure, width)):
            painter = Painter(Image.new("RGB", (width, height), (90, 90, 90)))
            person.paint(painter, first_owner=1)
            pictures.append(np.asarray(painter.picture()).astype(int))
        difference = Image.fromarray(np.abs(pictures[0] - pictures[1][:, ::-1]).max(axis=-1).astype(np.uint8))
        differs = np.asarray(difference.filter(ImageFilter.MinFilter(3))) > 12  # edges are thinner: the grid cuts them
        assert differs.sum() < 0.03 * (painter.owners() > 0).sum(), seed


def _mirrored(figure: Figure, width: float) -> Figure:
    mirror, origin = np.array([-1.0, 1.0, 1.0]), np.array([float(width), 0.0, 0.0])
    joints = {
        NAMES[partner]: figure.joints[name] * mirror + origin
        for name, partner in zip(NAMES, COCO_SKELETON.flip_indices, strict=True)
    }
    toes = {"left": figure.toes["right"] * mirror + origin, "right": figure.toes["left"] * mirror + origin}
    head = figure.head * mirror * np.array([[-1.0], [1.0], [1.0]])
    return replace(figure, joints=joints, toes=toes, head=head, neck=figure.neck * mirror + origin)


def test_a_back_differs_from_a_front_at_the_torso() -> None:
    for seed in range(20):
        front, back = (
            random_figure(200, np.random.default_rng(seed), front=share, back=1 - share, turn=0.0) for share in (1, 0)
        )
        colors = []
        for figure in (front, back):
            figure = replace(figure, looks={**figure.looks, "rucksack": (255, 0, 255)}).shifted(150, 150)
            painter = Painter(Image.new("RGB", (300, 300)))
            figure.paint(painter, first_owner=1)
            colors.append((np.asarray(painter.picture()) == (255, 0, 255)).all(axis=-1).sum())
        assert colors[0] == 0 < colors[1]


def test_a_person_behind_another_has_hidden_keypoints() -> None:
    generator = np.random.default_rng(0)
    behind, before = _any_figure(180, generator), _any_figure(180, generator)
    behind, before = behind.shifted(100, 120), before.shifted(100, 120)
    alone, together = (Painter(Image.new("RGB", (200, 240))) for _ in range(2))
    behind.paint(alone, first_owner=1)
    behind.paint(together, first_owner=1)
    before.paint(together, first_owner=1 + len(PARTS))
    shown = [_shown(behind, painter.owners()) for painter in (alone, together)]
    assert shown[1] < shown[0]  # a proper subset
    assert {"left_shoulder", "right_shoulder"} - shown[1]


def _shown(figure: Figure, owners: np.ndarray) -> set[str]:
    shown = set()
    for name, (x, y, _) in figure.joints.items():
        part = int(owners[int(y), int(x)]) - 1
        if figure.is_shown(name, PARTS[part] if 0 <= part < len(PARTS) else None):
            shown.add(name)
    return shown


def test_face_is_shown_from_the_front_only() -> None:
    counts = {True: [0, 0], False: [0, 0]}
    for seed in range(200):
        figure = _any_figure(200, np.random.default_rng(seed))
        faces_viewer = bool(figure.head[2, 2] > 0.4)
        if abs(figure.head[2, 2]) < 0.4:
            continue
        counts[faces_viewer][0] += figure.is_shown("nose", "head")
        counts[faces_viewer][1] += 1
    assert counts[True][0] == counts[True][1] > 50
    assert counts[False][0] == 0 < counts[False][1]


def test_left_is_the_person_s_left() -> None:
    for seed in range(100):
        figure = _any_figure(200, np.random.default_rng(seed))
        left, right = (figure.joints[f"{side}_eye"] for side in ("left", "right"))
        nose, upright = figure.joints["nose"] - figure.neck, -figure.head[1][1]
        if upright > 0.7 and abs(nose[2]) > 0.05 * figure.height:
            # Whoever looks at the viewer has the left eye on the right of the picture.
            assert (left[0] > right[0]) == (nose[2] > 0)


def test_a_part_is_painted_where_its_joints_are() -> None:
    for seed in range(30):
        figure = _any_figure(150, np.random.default_rng(seed)).shifted(150, 150)
        painter = Painter(Image.new("RGB", (300, 300)))
        figure.paint(painter, first_owner=1)
        owners = painter.owners()
        assert set(np.unique(owners)) <= set(range(len(PARTS) + 1))
        for name in NAMES:
            column, row = figure.joints[name][:2].astype(int)
            assert owners[row - 1 : row + 2, column - 1 : column + 2].any(), name


def test_all_pictures_have_one_size(scenes: list[tuple[Image.Image, list[dict[str, Any]]]]) -> None:
    assert {image.size for image, _ in scenes} == {(synthetic.IMAGE_WIDTH, synthetic.IMAGE_HEIGHT)}
