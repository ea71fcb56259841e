"""Training with images that cannot be used: skipped, counted, too many; and loader processes that die."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from torch.utils.data import Sampler

from querypose.d2 import ENGINE, build_detection_test_loader, build_detection_train_loader
from querypose.data import (
    ImageReadError,
    LoaderError,
    PoseMapper,
    SkipBadImages,
    TooManyBadImagesError,
    explain_loader_failures,
)
from tests.data.toy_dataset import TOY_SKELETON

NUM_IMAGES = 24


@pytest.fixture
def records(tmp_path: Path) -> list[dict[str, Any]]:
    """24 images; number 3 is missing, 10 truncated, 17 of another size."""
    for index in range(NUM_IMAGES):
        Image.effect_noise((40, 30), 80).convert("RGB").save(tmp_path / f"{index}.jpg")
    (tmp_path / "3.jpg").unlink()
    (tmp_path / "10.jpg").write_bytes((tmp_path / "10.jpg").read_bytes()[:-300])
    Image.new("RGB", (44, 30)).save(tmp_path / "17.jpg")
    return [
        {"file_name": str(tmp_path / f"{index}.jpg"), "image_id": index, "height": 30, "width": 40, "annotations": []}
        for index in range(NUM_IMAGES)
    ]


def _mapper(records: list[dict[str, Any]], max_bad_share: float = 0.5) -> SkipBadImages:
    mapper = PoseMapper(is_train=True, channel_order="RGB", transforms=[], skeleton=TOY_SKELETON)
    return SkipBadImages(mapper, len(records), max_bad_share)


class _InOrder(Sampler[int]):
    def __init__(self, order: Sequence[int]) -> None:
        self.order = order

    def __iter__(self) -> Iterator[int]:
        return iter(self.order)


def _loader(records: list[dict[str, Any]], mapper: Any, num_workers: int, order: Sequence[int] = ()) -> Iterator[Any]:
    return iter(
        build_detection_train_loader(
            records, mapper=mapper, sampler=_InOrder(order) if order else None, total_batch_size=2,
            aspect_ratio_grouping=False, num_workers=num_workers,
        )
    )  # fmt: skip


@pytest.mark.parametrize("num_workers", [0, 2])
def test_bad_images_are_skipped_and_counted_once_over_all_processes(
    records: list[dict[str, Any]], num_workers: int
) -> None:
    mapper = _mapper(records)
    order = [*range(NUM_IMAGES)] * 3
    batches = list(_loader(records, mapper, num_workers, order))
    ids = [sample["image_id"] for batch in batches for sample in batch]
    assert len(ids) == len(order)
    assert not {3, 10, 17} & set(ids)
    if num_workers == 0:
        assert [(was, now) for was, now in zip(order, ids, strict=True) if was != now and was not in (3, 10, 17)] == []
    assert mapper.num_bad == 3


@pytest.mark.skipif(ENGINE == "detectron2", reason="there it depends on what a loader process read before")
def test_which_image_takes_the_place_depends_on_the_image_alone(records: list[dict[str, Any]]) -> None:
    order = [3, 5, 10, 17, 3, 20, 10, 3]
    runs = [
        [sample["image_id"] for batch in _loader(records, _mapper(records), workers, order) for sample in batch]
        for workers in (0, 1, 2, 3)
    ]
    assert runs == [runs[0]] * 4
    assert runs[0][0] == runs[0][4] == runs[0][7]
    assert runs[0][2] == runs[0][6]
    assert [runs[0][1], runs[0][5]] == [5, 20]


def test_each_bad_image_is_one_warning_with_its_name_and_the_count(
    records: list[dict[str, Any]], caplog: pytest.LogCaptureFixture, engine_logs: None
) -> None:
    mapper = _mapper(records)
    with caplog.at_level(logging.WARNING, "querypose"):
        assert [mapper(record) is None for record in records * 2] == [index in (3, 10, 17) for index in range(24)] * 2
    messages = [record.getMessage() for record in caplog.records if record.name.startswith("querypose.data")]
    assert len(messages) == 3
    assert "There is no image" in messages[0]
    assert "10.jpg" in messages[1]
    assert "(3 of 24 training images are bad so far.)" in messages[2]


def test_every_one_of_many_bad_images_is_counted(records: list[dict[str, Any]]) -> None:
    many = [{**records[0], "file_name": f"gone{index}.jpg"} if index % 2 else records[0] for index in range(600)]
    mapper = _mapper(many, 0.5)
    assert sum(mapper(record) is None for record in many * 2) == 600
    assert mapper.num_bad == 300


@pytest.mark.parametrize(("share", "is_allowed"), [(3 / 24, True), (2.9 / 24, False), (0.0, False)])
def test_more_than_the_share_is_an_error(records: list[dict[str, Any]], share: float, is_allowed: bool) -> None:
    mapper = _mapper(records, share)
    if is_allowed:
        assert sum(mapper(record) is None for record in records) == 3
        return
    with pytest.raises(TooManyBadImagesError, match=r"of 24 training images cannot be used .*MAX_BAD_IMAGES allows"):
        list(map(mapper, records))


def test_error_of_a_loader_process_reaches_the_training(records: list[dict[str, Any]]) -> None:
    with pytest.raises(TooManyBadImagesError, match=r"check_dataset\.py --images pixels lists them all"):
        list(_loader(records, _mapper(records, 0.0), 2, range(NUM_IMAGES)))


def test_folder_that_is_not_there_ends_training_at_once(records: list[dict[str, Any]], tmp_path: Path) -> None:
    for path in tmp_path.glob("*.jpg"):
        path.unlink()
    many = [{**records[0], "file_name": f"{tmp_path}/gone{index}.jpg"} for index in range(1000)]
    with pytest.raises(TooManyBadImagesError, match=r"^20 of 1000 .* 20 in a row"):
        list(_loader(many, _mapper(many, 0.5), 0, range(1000)))


def test_bad_image_in_evaluation_is_an_error_that_names_it(records: list[dict[str, Any]]) -> None:
    mapper = PoseMapper(is_train=False, channel_order="RGB", transforms=[])
    with pytest.raises(ImageReadError, match=r"There is no image '.*3\.jpg'"):
        list(build_detection_test_loader(records, mapper=mapper))


class _KilledAt:
    """A mapper whose process is killed at one image, as the kernel does when memory runs out."""

    def __init__(self, image_id: int) -> None:
        self.image_id = image_id

    def __call__(self, record: dict[str, Any]) -> dict[str, Any]:
        if record["image_id"] == self.image_id:
            os.kill(os.getpid(), signal.SIGKILL)
        return record


def test_killed_loader_process_ends_with_a_message(records: list[dict[str, Any]]) -> None:
    with (
        pytest.raises(LoaderError, match=r"killed, as a rule because .*out of memory\. Lower DATALOADER\.NUM_WORKERS"),
        explain_loader_failures(),
    ):
        list(islice(_loader(records, _KilledAt(12), 2), 100))


@pytest.mark.parametrize(
    ("message", "remedy"),
    [
        ("DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that …", "--shm-size"),
        ("unable to write to file </torch_1_2_3>: No space left on device (28)", "--shm-size"),
        ("received 0 items of ancdata", "ulimit -n"),
        ("DataLoader worker (pid(s) 7, 8) exited unexpectedly", "out of memory"),
    ],
)
def test_failures_of_loaders_are_explained(message: str, remedy: str) -> None:
    with pytest.raises(LoaderError, match=remedy), explain_loader_failures():
        raise RuntimeError(message)


def test_other_errors_pass() -> None:
    error = RuntimeError("CUDA error: an illegal memory access was encountered")
    with pytest.raises(RuntimeError) as caught, explain_loader_failures():
        raise error
    assert caught.value is error
