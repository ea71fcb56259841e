"""The doctor: a sound dataset is called sound, and for every check a dataset or model that is broken is diagnosed."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from torch import Tensor, nn

from querypose.analysis import doctor_training
from querypose.analysis.ceiling import ceilings
from querypose.analysis.doctor import CHECK_REGISTRY, Case, Finding, _with_sides, examine
from querypose.analysis.doctor_page import as_html, as_text, summary
from querypose.config import load_config
from querypose.d2 import META_ARCH_REGISTRY, configurable
from querypose.data import register_custom_datasets
from querypose.data.synthetic import PLAIN
from querypose.data.synthetic_figure import random_figure
from querypose.evaluation.detections import Detections, Poses
from querypose.evaluation.oks import coco
from querypose.modeling.pose_model import Batch
from querypose.skeleton import COCO_SKELETON
from tests.engine.toy_pose import ToyPose, write_toy_config
from tests.scripts import run_script
from tests.tiny import ARCHITECTURES, TINY_MODEL

WIDTH, HEIGHT = 160, 128
Break = Callable[[dict[str, Any]], None]


def people(num_images: int = 24) -> dict[str, Any]:
    """Two drawn persons in every image, without the drawing."""
    generator = np.random.default_rng(0)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image in range(1, num_images + 1):
        images.append({"id": image, "file_name": f"{image}.png", "width": WIDTH, "height": HEIGHT})
        for place in (40, 120):
            figure = random_figure(80, generator, front=PLAIN.front, back=PLAIN.back, turn=PLAIN.turn)
            points = np.array([joint[:2] for joint in figure.shifted(place, 70).joints.values()])
            points = points.clip(0, [WIDTH - 1, HEIGHT - 1])
            low, high = points.min(axis=0) - 2, points.max(axis=0) + 2
            visibility = generator.choice([1, 2], size=(len(points), 1), p=[0.2, 0.8])
            annotations.append(
                {
                    "id": len(annotations) + 1, "image_id": image, "category_id": 1, "iscrowd": 0,
                    "bbox": [*low.tolist(), *(high - low).tolist()],
                    "area": 0.5 * float((high - low).prod()),
                    "keypoints": np.concatenate([points, visibility], axis=1).ravel().tolist(),
                    "num_keypoints": len(points),
                }
            )  # fmt: skip
    category = {"id": 1, "name": "person", "keypoints": list(COCO_SKELETON.keypoints), "skeleton": []}
    return {"images": images, "annotations": annotations, "categories": [category]}


def case_of(folder: Path, change: Break = lambda document: None, *overrides: Any, minutes: float = 0.01) -> Case:
    """A case with a dataset of `people`, changed."""
    document = people()
    change(document)
    folder.mkdir(parents=True, exist_ok=True)
    for image in document["images"]:
        Image.new("RGB", (WIDTH, HEIGHT), (90, 120, 40 + image["id"])).save(folder / image["file_name"])
    (folder / "people.json").write_text(json.dumps(document))
    custom = [{"name": "people", "json": str(folder / "people.json"), "images": str(folder), "skeleton": "coco"}]
    base = [
        *("DATASETS.CUSTOM", custom, "DATASETS.TRAIN", ["people"], "DATASETS.TEST", ["people"]),
        *("INPUT.MIN_SIZE_TRAIN", [HEIGHT], "INPUT.MIN_SIZE_TEST", HEIGHT, "INPUT.CROP.PROBABILITY", 0.0),
        *("MODEL.META_ARCHITECTURE", "ToyPose", "MODEL.DEVICE", "cpu", "OUTPUT_DIR", str(folder / "output")),
    ]
    cfg = load_config(None, [str(word) for word in (*TINY_MODEL, *base, *overrides)])
    register_custom_datasets(cfg)
    return Case(cfg, minutes)


def find(case: Case, check: str) -> Finding:
    [(name, finding, _)] = examine(case, [check])
    assert name == check
    return finding


LABELS = ("labels", "boxes", "areas", "flip_pairs", "person_size", "sigmas", "ceiling")


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return case_of(tmp_path_factory.mktemp("sound"))


@pytest.mark.parametrize("check", LABELS)
def test_sound_labels_are_good(sound: Case, check: str) -> None:
    finding = find(sound, check)
    assert finding.verdict == "good", finding.text
    assert finding.advice == ""


def test_the_left_of_every_person_is_marked(sound: Case) -> None:
    sample = sound.samples[0]
    picture = find(sound, "labels").picture
    assert picture is not None
    assert (picture == (230, 30, 30)).all(axis=-1).any()
    nobody = {**sample, "instances": sample["instances"][:0]}
    assert not (_with_sides(nobody, sound) == (230, 30, 30)).all(axis=-1).any()


def _corners_as_boxes(document: dict[str, Any]) -> None:
    for person in document["annotations"]:
        x, y, width, height = person["bbox"]
        person["bbox"] = [x, y, x + width, y + height]


def _centers_as_corners(document: dict[str, Any]) -> None:
    for person in document["annotations"]:
        x, y, width, height = person["bbox"]
        person["bbox"] = [x + width / 2, y + height / 2, width, height]


def _no_areas(document: dict[str, Any]) -> None:
    for person in document["annotations"]:
        del person["area"]


def _areas_of_a_small_copy(document: dict[str, Any]) -> None:
    for person in document["annotations"]:
        person["area"] /= 100


def _tiny_people(document: dict[str, Any]) -> None:
    for person in document["annotations"]:
        person["bbox"] = [number / 10 for number in person["bbox"]]
        person["area"] /= 100
        keypoints = np.array(person["keypoints"]).reshape(-1, 3)
        keypoints[:, :2] /= 10
        person["keypoints"] = keypoints.ravel().tolist()


@pytest.mark.parametrize(
    ("check", "change", "verdict", "words"),
    [
        ("boxes", _corners_as_boxes, "bad", "read as x1, y1, x2, y2"),
        ("boxes", _centers_as_corners, "bad", "read as center x, center y"),
        ("areas", _no_areas, "unclear", "100% of the persons .* have no area"),
        ("areas", _areas_of_a_small_copy, "bad", "under 2 % of their box"),
        ("person_size", _tiny_people, "bad", "A person has [34] px"),
    ],
)
def test_broken_labels_are_diagnosed(tmp_path: Path, check: str, change: Break, verdict: str, words: str) -> None:
    finding = find(case_of(tmp_path, change), check)
    assert finding.verdict == verdict, finding.text
    assert re.search(words, finding.text), finding.text
    assert finding.advice


def _skeleton(**changes: Any) -> str:
    names = COCO_SKELETON.keypoints
    entry = {
        "name": "mine", "keypoints": list(names), "sigmas": list(COCO_SKELETON.sigmas),
        "flip_pairs": [[names[left], names[right]] for left, right in COCO_SKELETON.flip_pairs], **changes,
    }  # fmt: skip
    return str([entry])


def _with_skeleton(folder: Path, **changes: Any) -> Case:
    sound = case_of(folder)
    [custom] = sound.cfg.DATASETS.CUSTOM
    mine = ["DATASETS.SKELETONS", _skeleton(**changes), "DATASETS.CUSTOM", [{**custom, "skeleton": "mine"}]]
    return case_of(folder, lambda document: None, *mine)


def _pairs(exchange: Mapping[str, str]) -> list[list[str]]:
    names = COCO_SKELETON.keypoints
    return [
        [names[left], exchange.get(names[right], names[right])]
        for left, right in COCO_SKELETON.flip_pairs
        if exchange.get(names[right]) != ""
    ]


def test_swapped_flip_pairs_are_diagnosed_and_the_right_ones_named(tmp_path: Path) -> None:
    swapped = _pairs({"right_elbow": "right_knee", "right_knee": "right_elbow"})
    finding = find(_with_skeleton(tmp_path, flip_pairs=swapped), "flip_pairs")
    assert finding.verdict == "bad"
    assert "elbow" in finding.text
    assert "[left_elbow, right_elbow] and [" in finding.advice


def test_a_missing_flip_pair_is_diagnosed(tmp_path: Path) -> None:
    finding = find(_with_skeleton(tmp_path, flip_pairs=_pairs({"right_ankle": ""})), "flip_pairs")
    assert finding.verdict == "bad"
    assert "[left_ankle, right_ankle]" in finding.advice


def test_sides_that_disagree_within_persons_are_pointed_out(tmp_path: Path) -> None:
    def swap_hips_and_below(document: dict[str, Any]) -> None:
        for person in document["annotations"][::2]:
            keypoints = np.array(person["keypoints"]).reshape(-1, 3)
            for left, right in COCO_SKELETON.flip_pairs:
                if COCO_SKELETON.keypoints[left].endswith(("hip", "knee", "ankle")):
                    keypoints[[left, right]] = keypoints[[right, left]]
            person["keypoints"] = keypoints.ravel().tolist()

    assert find(case_of(tmp_path, swap_hips_and_below), "flip_pairs").verdict == "unclear"


def test_sigmas_of_another_unit_are_diagnosed(tmp_path: Path) -> None:
    case = _with_skeleton(tmp_path, sigmas=[4 * sigma for sigma in COCO_SKELETON.sigmas])
    assert find(case, "sigmas").verdict == "bad"


def test_errors_in_the_json_are_diagnosed(tmp_path: Path) -> None:
    def break_it(document: dict[str, Any]) -> None:
        document["annotations"][0]["image_id"] = 4711

    finding = find(case_of(tmp_path, break_it), "files")
    assert finding.verdict == "bad"
    assert "4711" in finding.text


def test_samples_without_persons_are_diagnosed(tmp_path: Path) -> None:
    case = case_of(tmp_path)
    case.samples = [{**sample, "instances": sample["instances"][:0]} for sample in case.samples]
    assert find(case, "labels").verdict == "bad"


# ------------------------------------------------------------------------------------------------- checks that train


def toy_case(folder: Path, minutes: float = 0.02, **solver: Any) -> Case:
    cfg = load_config(write_toy_config(folder, **solver), [])
    register_custom_datasets(cfg)
    return Case(cfg, minutes)


@META_ARCH_REGISTRY.register()
class HalfDeadToy(ToyPose):
    """Has layers that no loss reads."""

    @configurable
    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.forgotten = nn.Linear(3, 3)

    def losses(self, batch: Batch, normalizers: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return super().losses(batch, normalizers)


@pytest.fixture(scope="module", autouse=True)
def _unregister() -> Iterator[None]:
    yield
    del META_ARCH_REGISTRY._obj_map["HalfDeadToy"]


def test_a_sound_training_is_good(tmp_path: Path) -> None:
    case = toy_case(tmp_path, minutes=0.15)
    assert find(case, "gradients").verdict == "good"
    assert find(case, "learning_rate").verdict == "good"
    finding = find(case, "overfit")
    assert finding.verdict == "good", finding.text
    assert finding.picture is not None
    assert find(case, "matching").verdict == "good"
    assert find(case, "bystanders").verdict == "skipped"


def test_parts_without_a_gradient_are_named(tmp_path: Path) -> None:
    case = toy_case(tmp_path)
    case.cfg.MODEL.META_ARCHITECTURE = "HalfDeadToy"
    finding = find(case, "gradients")
    assert finding.verdict == "bad"
    assert "forgotten.bias, forgotten.weight" in finding.text


def test_a_learning_rate_of_10_is_diagnosed(tmp_path: Path) -> None:
    finding = find(toy_case(tmp_path, BASE_LR=10.0), "learning_rate")
    assert finding.verdict == "bad"
    assert "Set SOLVER.BASE_LR to about" in finding.advice


def test_a_model_that_learns_nothing_is_diagnosed(tmp_path: Path) -> None:
    finding = find(toy_case(tmp_path, BASE_LR=1e-12), "overfit")
    assert finding.verdict == "bad"
    assert "does not learn at all" in finding.advice


def test_predictions_that_collapsed_are_diagnosed(sound: Case) -> None:
    annotations = sound.train
    first = np.array([annotations.of_image(image).start for image in range(len(annotations.image_ids))])
    keypoints = np.repeat(annotations.keypoints[first], 4, axis=0)
    poses = Poses(keypoints, np.ones(len(keypoints)), np.repeat(annotations.boxes_xywh[first], 4, axis=0))
    sound.shared["learned"] = annotations, Detections(np.repeat(np.arange(len(first)), 4), poses)
    finding = find(sound, "matching")
    assert finding.verdict == "unclear"
    assert f"{len(first)} of {2 * len(first)} persons have to share" in finding.text


def test_unlabeled_bystanders_are_diagnosed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = case_of(tmp_path, lambda document: None, "MODEL.WEIGHTS", "given.pth")
    annotations = case.test
    poses = Poses(annotations.keypoints.copy(), np.linspace(1, 0.1, len(annotations.ids)), annotations.boxes_xywh)
    detections = Detections(annotations.image_indices, poses)
    only_one_labeled = doctor_training.subset(annotations, range(len(annotations.image_ids)))
    only_one_labeled.is_crowd[:] = False
    kept = np.arange(0, len(annotations.ids), 2)
    for name in doctor_training._OF_PERSONS:
        setattr(only_one_labeled, name, getattr(annotations, name)[kept])
    only_one_labeled.keypoints, only_one_labeled.image_indices = (
        annotations.keypoints[kept],
        annotations.image_indices[kept],
    )
    only_one_labeled.ids = [annotations.ids[index] for index in kept]
    monkeypatch.setattr(doctor_training, "predict_images", lambda _: (only_one_labeled, detections))
    finding = find(case, "bystanders")
    assert finding.verdict == "bad"
    assert "without such poses 100.0" in finding.text


def test_predictions_of_whole_images_come_with_the_labels_of_these_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = case_of(tmp_path, lambda document: None)
    monkeypatch.setattr(doctor_training, "_NUM_TEST_IMAGES", 3)
    annotations, detections = doctor_training.predict_images(case)
    assert annotations.image_ids == [1, 2, 3]
    assert annotations.image_indices.tolist() == [0, 0, 1, 1, 2, 2]
    assert np.array_equal(annotations.keypoints, case.test.keypoints[:6])
    assert detections.image_indices.tolist() == [0, 1, 2]  # ToyPose finds one person an image


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_model_can_be_examined(tmp_path: Path, architecture: str) -> None:
    overrides = ["MODEL.META_ARCHITECTURE", "QueryPose", *ARCHITECTURES[architecture], "SOLVER.IMS_PER_BATCH", 2]
    case = case_of(tmp_path, lambda document: None, *overrides, minutes=0.02)
    for check in ("gradients", "overfit", "matching"):
        finding = find(case, check)
        assert finding.verdict in ("good", "unclear"), f"{check}: {finding.text}"


# ------------------------------------------------------------------------------------------------------ the whole


def test_a_check_that_fails_leaves_the_others_alone(sound: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(case: Case) -> Finding:
        raise RuntimeError("no such luck")

    monkeypatch.setitem(CHECK_REGISTRY._obj_map, "areas", broken)
    findings = {name: finding for name, finding, _ in examine(sound, ["boxes", "areas", "sigmas"])}
    assert [finding.verdict for finding in findings.values()] == ["good", "failed", "good"]
    assert "RuntimeError: no such luck" in findings["areas"].text
    assert "test_doctor.py" in findings["areas"].advice


def test_ceilings_fall_with_the_error_and_bystanders_cost(sound: Case) -> None:
    rows = {row.fault: row for row in ceilings(sound.test)}
    assert rows["nothing"].AP == 100
    noisy = [rows[f"noise of {pixels:g} px an axis"] for pixels in (0.5, 1, 2, 4)]
    assert all(first.AP >= second.AP and first.OKS > second.OKS for first, second in itertools.pairwise(noisy))
    assert rows["left and right swapped for 50% of the persons"].AP < 60
    assert 0 < rows["the mean pose in the true box"].OKS < 60
    with_many, with_few = (rows[f"an unlabeled person found in {s}% of the images"].AP for s in (50, 10))
    assert with_many < with_few < 100
    doubled = {row.fault: row for row in ceilings(sound.test, scale=2.0)}
    assert doubled["noise of 2 px an axis"].AP == noisy[1].AP  # a pixel of the input is half a pixel of the file


def test_ceilings_are_the_metric_of_the_labels(sound: Case) -> None:
    annotations = sound.test
    poses = Poses(annotations.keypoints.copy(), np.ones(len(annotations.ids)), annotations.boxes_xywh)
    assert coco(annotations, Detections(annotations.image_indices, poses))["AP"] == ceilings(annotations)[0].AP


def test_page_and_text_have_verdict_steps_tables_and_pictures() -> None:
    picture = np.zeros((4, 4, 3), np.uint8)
    findings = {
        "fine": Finding("good", "Fine.", table=[["a"], ["1"]]),
        "boxes": Finding("bad", "Boxes <b>.", "Turn them.", [["read as", "IoU"], ["x & y", "0.5"]], picture),
    }
    page = as_html(findings, "my.yaml")
    assert page.index("id='boxes'") < page.index("id='fine'")
    assert "Boxes &lt;b&gt;." in page
    assert "<td>x &amp; y</td>" in page
    assert "<li><a href='#boxes'>boxes</a>: Turn them.</li>" in page
    assert "data:image/jpeg;base64," in page
    assert summary(findings) in page
    assert summary(findings).endswith("in which to mend it: boxes.")
    assert summary({"fine": findings["fine"]}).startswith("Nothing is wrong")
    assert "BAD      boxes: Boxes <b>." in as_text("boxes", findings["boxes"])
    assert "Next: Turn them." in as_text("boxes", findings["boxes"])


def test_the_tool_writes_a_page_and_says_by_its_exit_code_that_something_is_bad(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = str(write_toy_config(tmp_path))
    arguments = ["--config-file", config, "--output", str(tmp_path / "page"), "--only", "boxes"]
    assert run_script("tools/doctor.py", *arguments) == 0
    assert "GOOD     boxes" in capsys.readouterr().out
    assert "x, y, width, height" in (tmp_path / "page" / "doctor.html").read_text()
    document = json.loads((tmp_path / "data" / "toy.json").read_text())
    _corners_as_boxes(document)
    (tmp_path / "data" / "toy.json").write_text(json.dumps(document))
    assert run_script("tools/doctor.py", *arguments) == 1
    assert run_script("tools/doctor.py", *arguments[:-1], "gone") == 2
    assert "there is no such check" in capsys.readouterr().err
