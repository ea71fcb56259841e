from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import scipy.io
from PIL import Image

from querypose.skeleton import CROWDPOSE_SKELETON
from tests.data.toy_dataset import read_records
from tests.scripts import load_script, run_script

NUM_PHOTOS = 12


@pytest.fixture(scope="module")
def prepare() -> ModuleType:
    """The script, which is in no package."""
    return load_script("datasets/prepare_lsp.py")


def _joints() -> np.ndarray:
    """(14, 3, N): an upright person, facing the viewer, whose parts lie further down from photo to photo."""
    upright = {
        "head": (100, 20), "neck": (100, 50), "left_shoulder": (120, 55), "right_shoulder": (80, 55),
        "left_elbow": (130, 80), "right_elbow": (70, 80), "left_wrist": (135, 105), "right_wrist": (65, 105),
        "left_hip": (112, 110), "right_hip": (88, 110), "left_knee": (114, 150), "right_knee": (86, 150),
        "left_ankle": (115, 190), "right_ankle": (85, 190),
    }  # fmt: skip
    order = (
        "right_ankle", "right_knee", "right_hip", "left_hip", "left_knee", "left_ankle", "right_wrist", "right_elbow",
        "right_shoulder", "left_shoulder", "left_elbow", "left_wrist", "neck", "head",
    )  # fmt: skip
    one = np.array([(*upright[name], 1.0) for name in order])
    joints = np.repeat(one[:, :, None], NUM_PHOTOS, axis=2)
    joints[:, 1] += np.arange(NUM_PHOTOS)
    joints[0, :, 1] = (-12.5, -3.0, 0.0)  # photo 2: right ankle not labeled, with LSP's negative placeholder
    joints[5, 0, 2] = 205.0  # photo 3: left ankle outside
    joints[5:, 2, 3] = 0  # photo 4: five joints
    joints[[2, 3], :, 4] = joints[[3, 2], :, 4]  # photo 5: hips mixed up
    return joints


def _files(joints: np.ndarray, count: int = NUM_PHOTOS) -> dict[str, bytes]:
    stream = io.BytesIO()
    scipy.io.savemat(stream, {"joints": joints})
    files = {"hr-lspet/joints.mat": stream.getvalue(), "hr-lspet/README.txt": b"read me"}
    for number in range(1, count + 1):
        image = Image.fromarray(np.random.default_rng(number).integers(0, 256, (220, 200, 3), dtype=np.uint8))
        stream = io.BytesIO()
        image.save(stream, format="JPEG")
        files[f"hr-lspet/images/im{number:05d}.jpg"] = stream.getvalue()
    return files


def _write_folder(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def _write_zip(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def _tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_zip_and_folder_give_the_same_dataset(tmp_path: Path, prepare: ModuleType) -> None:
    files = _files(_joints())
    prepare.prepare_lsp(_write_folder(tmp_path / "unpacked", files), tmp_path / "a", val_share=0.3)
    assert prepare.main([str(_write_zip(tmp_path / "lspet.zip", files)), "--output", str(tmp_path / "b"),
                         "--val-share", "0.3"]) == 0  # fmt: skip
    assert _tree(tmp_path / "a") == _tree(tmp_path / "b")
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == [
        "tiny.json", "train", "train.json", "val", "val.json"
    ]  # fmt: skip


def test_splits_are_disjoint_and_photos_are_copied_byte_for_byte(tmp_path: Path, prepare: ModuleType) -> None:
    files = _files(_joints())
    counts = prepare.prepare_lsp(_write_zip(tmp_path / "lspet.zip", files), tmp_path / "lsp", val_share=0.3)
    assert counts == {"train": 7, "val": 3, "tiny": counts["tiny"], "left out": 2}
    names = {}
    for split, images in (("train", "train"), ("val", "val"), ("tiny", "train")):
        records = read_records(tmp_path / "lsp" / f"{split}.json", tmp_path / "lsp" / images, CROWDPOSE_SKELETON)
        names[split] = {Path(record["file_name"]).name for record in records}
        for record in records:
            assert Path(record["file_name"]).read_bytes() == files[f"hr-lspet/images/{Path(record['file_name']).name}"]
            assert (record["height"], record["width"]) == (220, 200)
    assert not names["train"] & names["val"]
    assert names["tiny"] <= names["train"]
    assert names["train"] | names["val"] == {f"im{number:05d}.jpg" for number in range(1, 13) if number not in (4, 5)}


def test_joints_are_reordered_and_unusable_ones_cleared(tmp_path: Path, prepare: ModuleType) -> None:
    joints, photos = _joints(), _files(_joints())
    photo = prepare.read_photo(1, photos["hr-lspet/images/im00001.jpg"], joints[:, :, 0])
    by_name = dict(zip(CROWDPOSE_SKELETON.keypoints, photo.keypoints.tolist(), strict=True))
    assert by_name["head"] == [100, 20, 2]
    assert by_name["left_shoulder"] == [120, 55, 2]
    assert by_name["right_ankle"] == [85, 190, 2]
    second = prepare.read_photo(2, photos["hr-lspet/images/im00002.jpg"], joints[:, :, 1])
    third = prepare.read_photo(3, photos["hr-lspet/images/im00003.jpg"], joints[:, :, 2])
    for photo, cleared in ((second, "right_ankle"), (third, "left_ankle")):
        by_name = dict(zip(CROWDPOSE_SKELETON.keypoints, photo.keypoints.tolist(), strict=True))
        assert by_name.pop(cleared) == [0, 0, 0]
        assert all(visibility == 2 for _, _, visibility in by_name.values())


def test_bounding_box_in_closed_form(prepare: ModuleType) -> None:
    keypoints = np.zeros((14, 3))
    index = {name: number for number, name in enumerate(CROWDPOSE_SKELETON.keypoints)}
    keypoints[index["left_hip"]] = (60, 50, 2)
    keypoints[index["right_hip"]] = (40, 150, 2)
    # 20 wide, 100 high: 12% of the height, 6.5% of the longer side for the width.
    assert prepare.bounding_box(keypoints, 300, 300) == [33.5, 38.0, 33.0, 124.0]
    keypoints[index["head"]], keypoints[index["neck"]] = (40, 50, 2), (40, 130, 2)
    # The disc round the head has a radius of 20.
    assert prepare.bounding_box(keypoints, 300, 300) == [20.0, 30.0, 46.5, 132.0]
    assert prepare.bounding_box(keypoints, 140, 60) == [20.0, 30.0, 40.0, 110.0]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda files: files.pop("hr-lspet/joints.mat"), "has 0 files joints.mat"),
        (lambda files: files.pop("hr-lspet/images/im00003.jpg"), "lacks 1 of 12 photos, first im00003.jpg"),
        (lambda files: files.update(_files(_joints().transpose(1, 0, 2))), r"joints of shape \(3, 14, 12\)"),
        (lambda files: files.update(_files(np.zeros((14, 3, 12)))), "has 0 usable photos of 12"),
    ],
)
def test_incomplete_download_is_refused_and_nothing_written(
    tmp_path: Path, prepare: ModuleType, spoil: Any, message: str
) -> None:
    files = _files(_joints())
    spoil(files)
    with pytest.raises(prepare.LspError, match=message):
        prepare.prepare_lsp(_write_zip(tmp_path / "lspet.zip", files), tmp_path / "lsp")
    assert not (tmp_path / "lsp").exists()


def test_what_is_there_is_not_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "lsp").mkdir()
    assert run_script("datasets/prepare_lsp.py", str(tmp_path / "gone.zip"), "--output", str(tmp_path / "lsp")) == 2
    assert "is there already; remove it" in capsys.readouterr().err
    assert run_script("datasets/prepare_lsp.py", str(tmp_path / "gone.zip"), "--output", str(tmp_path / "new")) == 2
    assert "neither a folder nor a zip" in capsys.readouterr().err


def test_rules_are_those_of_the_shared_dataset(shared_data: Path, prepare: ModuleType) -> None:
    document = json.loads((shared_data / "lsp" / "train.json").read_text())
    assert tuple(document["categories"][0]["keypoints"]) == CROWDPOSE_SKELETON.keypoints
    images = {image["id"]: image for image in document["images"]}
    for person in document["annotations"]:
        image = images[person["image_id"]]
        keypoints = np.array(person["keypoints"], dtype=np.float64).reshape(-1, 3)
        box = prepare.bounding_box(keypoints, image["height"], image["width"])
        # Their boxes come from joints that are not rounded to 0.1 pixel.
        np.testing.assert_allclose(box, person["bbox"], atol=0.13)
        assert person["area"] == pytest.approx(0.53 * person["bbox"][2] * person["bbox"][3], abs=0.01)
        content = b"" if person["id"] > 60 else (shared_data / "lsp" / "train" / image["file_name"]).read_bytes()
        if content:
            joints = keypoints[[CROWDPOSE_SKELETON.keypoints.index(name) for name in prepare.LSP_JOINTS]]
            photo = prepare.read_photo(person["id"], content, joints)
            np.testing.assert_array_equal(photo.keypoints, keypoints)
            assert (photo.height, photo.width) == (image["height"], image["width"])
