"""`datasets/prepare_mpii.py`: a made-up .mat in MPII's structure, and a json of top-down codes."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from querypose.data.coco import read_annotations
from querypose.skeleton import MPII_SKELETON
from tests.scripts import load_script, run_script

WIDTH, HEIGHT = 320, 240

SCRIPT = "datasets/prepare_mpii.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return load_script(SCRIPT)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "mpii" / "images").mkdir(parents=True)
    for name in ("a.jpg", "b.jpg", "c.jpg", "test.jpg"):
        Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / "mpii" / "images" / name)
    return tmp_path / "mpii"


def rectangle(points: list[tuple[int, float, float, Any]] | None, scale: float = 0.5) -> dict[str, Any]:
    """A person with points (id, x, y, is_visible), 1-based; a head alone without points."""
    head = {"x1": 50, "y1": 20, "x2": 80, "y2": 60}  # diagonal 50
    if points is None:
        return head
    rows = [{"id": id, "x": x, "y": y, "is_visible": visible} for id, x, y, visible in points]
    return {**head, "scale": scale, "objpos": {"x": 101, "y": 91}, "annopoints": {"point": rows}}


def write_mat(path: Path, photos: list[tuple[str, bool, list[dict[str, Any]]]]) -> Path:
    annolist = [{"image": {"name": name}, "annorect": people} for name, _, people in photos]
    savemat(path, {"RELEASE": {"annolist": annolist, "img_train": [int(train) for _, train, _ in photos]}})
    return path


@pytest.fixture
def mat(tmp_path: Path) -> Path:
    empty = np.zeros((0, 0))
    return write_mat(
        tmp_path / "mpii.mat",
        [
            ("a.jpg", True, [rectangle([(9, 66, 21, empty), (0, 101, 181, 0), (5, 111, 186, 1)])]),
            ("b.jpg", True, [rectangle([(6, 101, 101, empty)], scale=9.0), rectangle(None)]),
            ("c.jpg", True, [rectangle([(6, 101, 101, 1)]), rectangle([(7, 31, 41, 1)])]),
            ("test.jpg", False, [rectangle(None)]),
        ],
    )


def test_mat(script: ModuleType, mat: Path, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "val.txt").write_text("c.jpg\n")
    assert script.main([str(mat), "--folder", str(folder), "--val-images", str(tmp_path / "val.txt")]) == 0
    train = read_annotations(folder / "train.json", folder / "images", MPII_SKELETON)
    val = read_annotations(folder / "val.json", folder / "images", MPII_SKELETON)
    assert not train.problems
    assert not val.problems
    assert (train.file_names, val.file_names) == (["a.jpg", "b.jpg"], ["c.jpg"])
    assert (len(train.ids), len(val.ids)) == (2, 2)
    first = train.keypoints[0]
    assert first[9].tolist() == [65, 20, 2]
    assert first[0].tolist() == [100, 180, 1]
    assert first[5].tolist() == [110, 185, 2]
    assert (first[[1, 2, 3, 4]] == 0).all()
    # 100 px about (100.5, 90.5 + 7.5), continuous.
    assert train.boxes_xywh[0].tolist() == [50.5, 48, 100, 100]
    assert train.boxes_xywh[1].tolist() == [0, 0, WIDTH, HEIGHT]
    (head_size,) = {person["head_size"] for person in json.loads((folder / "train.json").read_text())["annotations"]}
    assert head_size == pytest.approx(30)


def test_without_a_list_a_tenth_is_drawn(script: ModuleType, mat: Path, folder: Path) -> None:
    assert script.main([str(mat), "--folder", str(folder)]) == 0
    sizes = [len(json.loads((folder / f"{split}.json").read_text())["images"]) for split in ("train", "val")]
    assert sizes == [2, 1]


def test_json_of_top_down_codes(script: ModuleType, folder: Path, tmp_path: Path) -> None:
    joints, joints_vis = [[-1.0, -1.0]] * 16, [0] * 16
    joints[9], joints_vis[9] = [66.0, 21.0], 1
    person = {"image": "a.jpg", "center": [101.0, 91.0], "scale": 0.5, "joints": joints, "joints_vis": joints_vis}
    source = tmp_path / "mpii_val.json"
    source.write_text(json.dumps([person, {**person, "image": "b.jpg"}]))
    assert script.main([str(source), "--folder", str(folder), "--val-images", str(source)]) == 0
    val = read_annotations(folder / "val.json", folder / "images", MPII_SKELETON)
    assert not val.problems
    assert val.keypoints[0, 9].tolist() == [65, 20, 2]
    assert not val.keypoints[0, :9].any()
    assert val.boxes_xywh[0].tolist() == [50.5, 48, 100, 100]


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "there is no file"), (b"nothing", "is not MPII's file"), (b"", "is not MPII's file")],
)
def test_what_is_not_the_download_is_refused(
    folder: Path, tmp_path: Path, content: bytes | None, message: str, capsys: Any
) -> None:
    if content is not None:
        (tmp_path / "x.mat").write_bytes(content)
    assert run_script(SCRIPT, str(tmp_path / "x.mat"), "--folder", str(folder)) == 2
    assert message in capsys.readouterr().err


def test_missing_photos_are_named(mat: Path, folder: Path, capsys: Any) -> None:
    (folder / "images" / "b.jpg").unlink()
    assert run_script(SCRIPT, str(mat), "--folder", str(folder)) == 2
    assert "b.jpg" in capsys.readouterr().err
    assert not (folder / "train.json").exists()
