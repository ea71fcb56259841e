"""Training with images that cannot be used: skipped, counted, too many."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from querypose.data import ImageReadError, TooManyBadImagesError
from querypose.data.loading import Samples, data_loader
from querypose.data.pipelines import WholeImage
from querypose.data.training_order import Draw
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


def _samples(records: list[dict[str, Any]], max_bad_share: float | None = 0.5) -> Samples:
    return Samples(records, WholeImage(is_train=True, skeleton=TOY_SKELETON), max_bad_share)


def _draws(order: Sequence[int]) -> list[Draw]:
    return [Draw(record, (1, place)) for place, record in enumerate(order)]


def _ids(samples: Samples, num_workers: int, order: Sequence[int]) -> list[int]:
    draws = _draws(order)
    batches = [draws[first : first + 2] for first in range(0, len(draws), 2)]
    return [sample["image_id"] for batch in data_loader(samples, batches, num_workers) for sample in batch]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_bad_images_are_skipped_and_counted_once_over_all_processes(
    records: list[dict[str, Any]], num_workers: int
) -> None:
    samples = _samples(records)
    order = [*range(NUM_IMAGES)] * 3
    ids = _ids(samples, num_workers, order)
    assert not {3, 10, 17} & set(ids)
    assert [now for was, now in zip(order, ids, strict=True) if was not in (3, 10, 17)] == [
        was for was in order if was not in (3, 10, 17)
    ]
    assert samples.bad_images is not None
    assert samples.bad_images.count == 3


def test_which_image_takes_the_place_depends_on_the_place_alone(records: list[dict[str, Any]]) -> None:
    order = [3, 5, 10, 17, 3, 20, 10, 3]
    ids = _ids(_samples(records), 0, order)
    assert all(_ids(_samples(records), workers, order) == ids for workers in (1, 2))
    # Each place draws by itself, so that not one image takes the place of a bad one every time.
    assert len({ids[place] for place in (0, 4, 7)}) > 1
    assert [ids[1], ids[5]] == [5, 20]


def test_each_bad_image_is_one_warning_with_its_name_and_the_count(
    records: list[dict[str, Any]], caplog: pytest.LogCaptureFixture, engine_logs: None
) -> None:
    with caplog.at_level(logging.WARNING, "querypose"):
        _ids(_samples(records), 0, [*range(NUM_IMAGES)] * 2)
    messages = {record.getMessage() for record in caplog.records if record.name.startswith("querypose.data")}
    assert len(caplog.records) == len(messages) == 3
    for name, what in (
        ("3.jpg", "There is no image"),
        ("10.jpg", "cannot be decoded"),
        ("17.jpg", "but 40x30 in its json"),
    ):
        assert [message for message in messages if f"/{name}" in message and what in message]
    assert [message for message in messages if "(So far 3 of 24 training images are bad.)" in message]


def test_every_one_of_many_bad_images_is_counted(records: list[dict[str, Any]]) -> None:
    many = [{**records[0], "file_name": f"gone{index}.jpg"} if index % 2 else records[0] for index in range(600)]
    samples = _samples(many, 1.0)
    ids = _ids(samples, 0, [*range(600)] * 2)
    assert len(ids) == 1200
    assert samples.bad_images is not None
    assert samples.bad_images.count == 300


@pytest.mark.parametrize(("share", "is_allowed"), [(3 / 24, True), (2.9 / 24, False), (0.0, False)])
def test_more_than_the_share_is_an_error(records: list[dict[str, Any]], share: float, is_allowed: bool) -> None:
    if is_allowed:
        assert len(_ids(_samples(records, share), 0, range(NUM_IMAGES))) == NUM_IMAGES
        return
    with pytest.raises(TooManyBadImagesError, match=r"of 24 training images cannot be used .*MAX_BAD_IMAGES allows"):
        _ids(_samples(records, share), 0, range(NUM_IMAGES))


def test_error_of_a_loader_process_reaches_the_training(records: list[dict[str, Any]]) -> None:
    with pytest.raises(TooManyBadImagesError, match=r"check_dataset\.py --images pixels lists all of them"):
        _ids(_samples(records, 0.0), 2, range(NUM_IMAGES))


def test_folder_that_is_not_there_ends_training_at_once(records: list[dict[str, Any]], tmp_path: Path) -> None:
    many = [{**records[0], "file_name": f"{tmp_path}/gone{index}.jpg"} for index in range(1000)]
    with pytest.raises(TooManyBadImagesError, match=r"^\d+ of 1000 .* 20 in a row"):
        _ids(_samples(many), 0, range(1000))


def test_bad_image_in_evaluation_is_an_error_that_names_it(records: list[dict[str, Any]]) -> None:
    with pytest.raises(ImageReadError, match=r"There is no image '.*3\.jpg'"):
        _ids(_samples(records, None), 0, range(NUM_IMAGES))
