"""The converter of MacaquePose: format, split, boxes from masks, and what is wrong with a download."""

from __future__ import annotations

import csv
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from querypose.data import build_pipeline, register_builtin_datasets
from querypose.skeleton import COCO_SKELETON
from tests.data.toy_dataset import read_records
from tests.scripts import load_script, run_script
from tests.test_configs import load

SCRIPT = "datasets/prepare_macaque.py"
prepare_macaque = load_script(SCRIPT)
SQUARE = [[2.0, 3.0], [12.0, 3.0], [12.0, 8.0], [2.0, 8.0]]


def animal(**positions: list[float]) -> list[dict[str, Any]]:
    return [{"name": name, "position": positions.get(name)} for name in COCO_SKELETON.keypoints]


def write_download(folder: Path, rows: list[tuple[str, Any, Any]]) -> Path:
    (folder / "images").mkdir(parents=True)
    with (folder / "annotations.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(prepare_macaque.COLUMNS)
        for name, keypoints, masks in rows:
            writer.writerow([name, json.dumps(keypoints), json.dumps(masks)])
            Image.new("RGB", (40, 30), (9, 9, 9)).save(folder / "images" / name)
    return folder


@pytest.fixture
def download(tmp_path: Path) -> Path:
    mask = [{"name": "a", "segment": SQUARE}, {"name": "a", "segment": [[20.0, 20.0], [24.0, 20.0], [24.0, 25.0]]}]
    animals = [animal(nose=[3.5, 4.25], left_eye=[5, 6]), animal()]
    rows = [(f"{number}.png", animals, [mask, mask[:1]]) for number in range(10)]
    return write_download(tmp_path / "v1", rows)


def test_files_and_split(download: Path, tmp_path: Path) -> None:
    output = tmp_path / "macaque"
    assert prepare_macaque.main([str(download), "--output", str(output)]) == 0
    documents = {split: json.loads((output / f"{split}.json").read_text()) for split in ("train", "val")}
    names = {split: {image["file_name"] for image in document["images"]} for split, document in documents.items()}
    assert (len(names["train"]), len(names["val"])) == (8, 2)
    assert names["train"] | names["val"] == {f"{number}.png" for number in range(10)}
    ids = [annotation["id"] for document in documents.values() for annotation in document["annotations"]]
    assert sorted(ids) == list(range(1, 21))
    again = tmp_path / "again"
    prepare_macaque.prepare_macaque(download, again)
    assert (again / "val.json").read_text() == (output / "val.json").read_text()
    prepare_macaque.prepare_macaque(download, tmp_path / "other", seed=1)
    assert (tmp_path / "other" / "val.json").read_text() != (output / "val.json").read_text()


@pytest.mark.parametrize(("area", "expected"), [("box", [22.0 * 22.0, 50.0]), ("mask", [60.0, 50.0])])
def test_boxes_and_areas_are_those_of_the_masks(download: Path, tmp_path: Path, area: str, expected: Any) -> None:
    prepare_macaque.prepare_macaque(download, tmp_path / "macaque", area=area)
    first, second, *_ = json.loads((tmp_path / "macaque" / "train.json").read_text())["annotations"]
    assert first["bbox"] == [2.0, 3.0, 22.0, 22.0]
    assert second["bbox"] == [2.0, 3.0, 10.0, 5.0]
    assert [first["area"], second["area"]] == expected
    assert first["keypoints"][:6] == [3.5, 4.25, 2, 5, 6, 2]
    assert (first["num_keypoints"], second["num_keypoints"]) == (2, 0)
    assert not any(second["keypoints"])


def test_what_it_writes_is_what_the_project_reads(download: Path, tmp_path: Path) -> None:
    prepare_macaque.prepare_macaque(download, tmp_path / "macaque")
    records = read_records(tmp_path / "macaque" / "val.json", tmp_path / "macaque" / "images", COCO_SKELETON)
    assert len(records) == 2
    assert records[0]["annotations"][0]["keypoints"][:2] == [4.0, 4.75]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "annotations.csv").unlink(), "no annotations.csv"),
        (lambda folder: (folder / "annotations.csv").write_text("a,b,c\n"), "the columns of MacaquePose are"),
        (lambda folder: (folder / "images" / "3.png").unlink(), r"line 5: There is no image .*images/3.png"),
        (lambda folder: write_rows(folder, "[]", "[[]]"), "line 2: keypoints and segmentation do not describe"),
        (lambda folder: write_rows(folder, "[[]]", "[[]]"), "line 2: an animal has no mask"),
        (lambda folder: write_rows(folder, '[[{"name": "tail", "position": [1, 2]}]]', "[[]]"), "tail"),
    ],
)
def test_a_damaged_download_is_refused(download: Path, tmp_path: Path, damage: Any, message: str) -> None:
    damage(download)
    with pytest.raises(prepare_macaque.MacaqueError, match=message):
        prepare_macaque.prepare_macaque(download, tmp_path / "macaque")
    assert sorted(os.listdir(tmp_path)) == ["v1"]


def write_rows(folder: Path, keypoints: str, masks: str) -> None:
    with (folder / "annotations.csv").open("w", newline="") as file:
        csv.writer(file).writerows([prepare_macaque.COLUMNS, ["0.png", keypoints, masks]])


@pytest.mark.parametrize("name", ["../../victim/evil.png", "/etc/evil.png", "..", "a/../../evil.png", "a\0b.png", ""])
def test_a_name_that_leads_out_of_the_folder_is_refused(
    download: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "victim").mkdir()
    (tmp_path / "victim" / "evil.png").write_bytes((download / "images" / "0.png").read_bytes())
    text = (download / "annotations.csv").read_text().replace("0.png", name, 1)
    (download / "annotations.csv").write_text(text)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert run_script(SCRIPT, str(download), "--output", str(tmp_path / "macaque")) == 2
    assert "line 2" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_errors_of_the_user_are_one_line(download: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "there").mkdir()
    assert run_script(SCRIPT, str(download), "--output", str(tmp_path / "there")) == 2
    assert "there already" in capsys.readouterr().err
    assert run_script(SCRIPT, str(download), "--output", str(tmp_path / "new"), "--val-share", "1") == 2
    assert "--val-share is 1.0" in capsys.readouterr().err


def test_real_photos_run_through(shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The samples, written as the download has them; their boxes are one pixel larger by their convention."""
    samples = shared_data / "samples" / "macaque"
    document = json.loads((samples / "test_macaque.json").read_text())
    rows, boxes = [], {}
    for image in document["images"]:
        (annotation,) = [a for a in document["annotations"] if a["image_id"] == image["id"]]
        points = np.array(annotation["keypoints"]).reshape(-1, 3)
        named = zip(COCO_SKELETON.keypoints, points.tolist(), strict=True)
        keypoints = animal(**{name: [x, y] for name, (x, y, v) in named if v})
        masks = [
            {"name": "macaque", "segment": np.reshape(part, (-1, 2)).tolist()} for part in annotation["segmentation"]
        ]
        rows.append((image["file_name"], [keypoints], [masks]))
        boxes[image["file_name"]] = np.array(annotation["bbox"]) - [0, 0, 1, 1]
    download = write_download(tmp_path / "v1", [(name.replace(".jpg", ".png"), k, m) for name, k, m in rows])
    for name, *_ in rows:
        shutil.copyfile(samples / name, download / "images" / name.replace(".jpg", ".png"))
    prepare_macaque.prepare_macaque(download, tmp_path / "macaque", val_share=0.5)
    register_builtin_datasets(tmp_path)
    try:
        cfg = load("poet/poet_macaque_r50.yaml")
        for split in ("train", "val"):
            (record,) = read_records(
                tmp_path / "macaque" / f"{split}.json", tmp_path / "macaque" / "images", COCO_SKELETON
            )
            box = boxes[Path(record["file_name"]).name.replace(".png", ".jpg")]
            np.testing.assert_allclose(record["annotations"][0]["bbox"], box, atol=0.02)
            sample = build_pipeline(cfg, is_train=True).sample(record, np.random.default_rng(0))
            assert max(sample["image"].shape[1:]) <= 512
            assert (sample["instances"].gt_keypoints.tensor[..., 2] > 1).any(1).all()
    finally:
        register_builtin_datasets()
