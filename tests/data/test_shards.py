"""A dataset in shards is the one in files: the same samples in the same order, wherever the shards are."""

from __future__ import annotations

import itertools
import json
import logging
import socket
import tarfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import fsspec
import numpy as np
import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem
from PIL import Image

from querypose.config import get_cfg
from querypose.d2 import comm
from querypose.data import (
    DatasetError,
    ImageReadError,
    build_test_loader,
    build_train_loader,
    dataset_annotations,
    load_datasets,
    read_image,
    register_pose_dataset,
)
from querypose.data.image_io import read_image_size
from querypose.data.loading import Samples
from querypose.data.pipelines import WholeImage
from querypose.data.shards import ShardError, open_shards
from querypose.data.training_order import Draw
from querypose.data.validation import check_datasets
from tests.data.toy_dataset import TOY_SKELETON, toy_annotation
from tests.scripts import load_script, run_script

NUM_IMAGES = 11
NAMES = [f"{'indoors/' * (index % 2)}{index}.{'png' if index % 3 else 'jpg'}" for index in range(NUM_IMAGES)]


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return load_script("datasets/make_shards.py")


@pytest.fixture
def files(datasets_root: Path) -> Path:
    """A dataset `files` of several images and formats, some in a folder of their own; gives its folder."""
    generator = np.random.default_rng(0)
    (datasets_root / "images" / "indoors").mkdir(parents=True)
    images = []
    for index, name in enumerate(NAMES):
        height, width = (40, 30 + index) if index % 4 else (30, 40)
        pixels = generator.integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(datasets_root / "images" / name)
        images.append({"id": index, "file_name": name, "width": width, "height": height})
    document = {
        "categories": [{"id": 3, "name": "toy", "keypoints": list(TOY_SKELETON.keypoints)}],
        "images": images,
        "annotations": [toy_annotation(id=index, image_id=index) for index in range(NUM_IMAGES)],
    }
    (datasets_root / "toy.json").write_text(json.dumps(document))
    register_pose_dataset("files", datasets_root / "toy.json", datasets_root / "images", TOY_SKELETON)
    return datasets_root


@pytest.fixture
def shards(files: Path, script: ModuleType) -> Path:
    """The same images as dataset `shards`; gives the folder of the shards."""
    assert script.make_shards(["files"], files / "packed", megabytes=0.008) == (NUM_IMAGES, 4)
    register_pose_dataset("shards", files / "toy.json", files / "packed" / "shards.json", TOY_SKELETON)
    return files / "packed"


@pytest.fixture
def in_store(shards: Path) -> Iterator[str]:
    """As dataset `store` in an object store, which fsspec keeps in memory; gives the address of the folder."""
    store = MemoryFileSystem()
    store.put(str(shards), "/bucket/packed", recursive=True)
    register_pose_dataset("store", shards.parent / "toy.json", "memory://bucket/packed/shards.json", TOY_SKELETON)
    yield "memory://bucket/packed"
    store.rm("/bucket", recursive=True)


def samples_of(dataset: str, num_batches: int = 9, num_workers: int = 0) -> list[dict[str, Any]]:
    """The first augmented samples of a training, without the paths of their files."""
    cfg = get_cfg()
    cfg.merge_from_list(["DATASETS.TRAIN", f"['{dataset}']", "SEED", "3", "SOLVER.IMS_PER_BATCH", "4"])
    cfg.merge_from_list(
        ["INPUT.MIN_SIZE_TRAIN", "[24, 32]", "INPUT.CROP.MIN_SIZE", "[32]", "INPUT.CROP.SIZE", "[20, 30]"]
    )
    cfg.merge_from_list(["DATALOADER.NUM_WORKERS", str(num_workers)])
    samples = [sample for batch in itertools.islice(iter(build_train_loader(cfg)), num_batches) for sample in batch]
    for sample in samples:
        sample.pop("file_name")
    return samples


def assert_same_samples(ours: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> None:
    assert len(ours) == len(theirs) > 0
    for our, their in zip(ours, theirs, strict=True):
        assert our["image_id"] == their["image_id"]
        assert torch.equal(torch.as_tensor(our["image"]), torch.as_tensor(their["image"]))
        assert torch.equal(our["instances"].gt_keypoints.tensor, their["instances"].gt_keypoints.tensor)


def test_shards_are_webdataset_shards_of_equal_files(shards: Path) -> None:
    content: dict[str, bytes] = {}
    for shard in shards.glob("*.tar"):
        with tarfile.open(shard) as tar:
            content |= {member.name: stream.read() for member in tar if (stream := tar.extractfile(member)) is not None}
    assert content == {name: (shards.parent / "images" / name).read_bytes() for name in NAMES}
    index = open_shards(str(shards / "shards.json"))
    assert {name: index.content(name) for name in NAMES} == content
    assert not index.faults()


def test_the_same_images_make_the_same_shards(shards: Path, script: ModuleType) -> None:
    """Also made of shards; an image of several datasets is packed once."""
    script.make_shards(["files", "files"], shards.parent / "again", megabytes=0.008)
    script.make_shards(["shards"], shards.parent / "repacked", megabytes=0.008)
    for folder in ("again", "repacked"):
        for file in shards.iterdir():
            assert (shards.parent / folder / file.name).read_bytes() == file.read_bytes(), (folder, file.name)


def test_records_and_checks_are_those_of_files(in_store: str) -> None:
    expected = [{key: record[key] for key in record if key != "file_name"} for record in load_datasets(["files"])]
    for name in ("shards", "store"):
        records = load_datasets([name])
        np.testing.assert_array_equal(
            read_image(records[5]["file_name"]), read_image(load_datasets(["files"])[5]["file_name"])
        )
        assert [record.pop("file_name").partition("shards.json/")[2] for record in records] == NAMES
        assert records == expected
        assert check_datasets([name], depth="pixels") == []
    shared = [problem.what for problem in check_datasets(["files"], ["store"], depth="pixels")]
    assert len(shared) == NUM_IMAGES, "known again by their pixels"
    assert "memory://bucket/packed/shards.json/0.jpg" in dataset_annotations("store").image_file(0)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_samples_and_their_order_are_those_of_files(in_store: str, num_workers: int) -> None:
    expected = samples_of("files")
    assert_same_samples(samples_of("shards", num_workers=num_workers), expected)
    assert_same_samples(samples_of("store", num_workers=num_workers), expected)


def test_the_number_of_processes_changes_nothing(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = samples_of("files")
    monkeypatch.setattr(comm, "get_world_size", lambda: 2)
    shares = []
    for rank in range(2):
        monkeypatch.setattr(comm, "get_rank", lambda rank=rank: rank)
        shares.append(samples_of("shards"))
    first, second = shares
    together = [
        sample for begin in range(0, len(first), 2) for share in (first, second) for sample in share[begin:][:2]
    ]
    assert_same_samples(together, expected)


def test_evaluation_reads_every_image_once(in_store: str) -> None:
    cfg = get_cfg()
    cfg.merge_from_list(["INPUT.MIN_SIZE_TEST", "0", "TEST.IMS_PER_BATCH", "3", "DATALOADER.NUM_WORKERS", "0"])
    of_files, of_store = (
        [(sample["image_id"], sample["image"].sum()) for batch in build_test_loader(cfg, name) for sample in batch]
        for name in ("files", "store")
    )
    assert of_files == of_store
    assert len(of_files) == NUM_IMAGES


def test_an_image_that_no_shard_has_is_a_missing_image(shards: Path) -> None:
    with pytest.raises(ImageReadError, match=r"There is no image '.*packed/shards\.json/gone\.png'; check the folder"):
        read_image(f"{shards}/shards.json/gone.png")


def test_a_damaged_image_in_a_shard_is_a_damaged_image(shards: Path) -> None:
    index = open_shards(str(shards / "shards.json"))
    place = index._places["4.png"]
    content = bytearray((shards / place.shard).read_bytes())
    content[place.begin : place.begin + 8] = b"no image"
    (shards / place.shard).write_bytes(content)
    with pytest.raises(ImageReadError, match=r"4\.png' is not an image of a known format"):
        read_image_size(f"{shards}/shards.json/4.png")


def test_a_missing_or_truncated_shard_refuses_the_dataset_by_name(in_store: str) -> None:
    store = MemoryFileSystem()
    last = store.cat("/bucket/packed/000003.tar")
    store.pipe("/bucket/packed/000003.tar", last[:-512])
    with pytest.raises(
        DatasetError,
        match=rf"Shard 'memory://bucket/packed/000003\.tar' has {len(last) - 512} bytes, and not the {len(last)} of "
        r"'memory://bucket/packed/shards\.json'; copy it again, or make the shards again",
    ):
        load_datasets(["store"])
    store.rm("/bucket/packed/000001.tar")
    missing, truncated = check_datasets(["store"], depth="pixels")
    assert missing.what == "Shard 'memory://bucket/packed/000001.tar' is missing"
    assert truncated.what.startswith("Shard 'memory://bucket/packed/000003.tar' has")
    store.rm("/bucket/packed/shards.json")
    with pytest.raises(DatasetError, match=r"Index of shards 'memory://.*shards\.json' is missing; copy it again"):
        load_datasets(["store"])


@pytest.mark.parametrize("what", ["gone", "truncated"])
def test_a_shard_that_is_lost_during_a_training_ends_it(shards: Path, what: str) -> None:
    """It is no bad image, of which some may be skipped: then the run would go on with other samples."""
    samples = Samples(load_datasets(["shards"]), WholeImage(is_train=False), max_bad_images=1.0)
    shard = shards / "000002.tar"
    shard.write_bytes(shard.read_bytes()[:700])
    if what == "gone":
        shard.unlink()
    message = "is missing" if what == "gone" else r"gives \d+ of the \d+ bytes of image"
    with pytest.raises(ShardError, match=rf"Shard '.*packed/000002\.tar' {message}.*; copy it again"):
        [samples[Draw(index, (0, index))] for index in range(NUM_IMAGES)]
    assert samples.bad_images is not None
    assert samples.bad_images.count == 0


@pytest.mark.parametrize(
    ("shard", "why"),
    [("../000000.tar", "outside"), ("/etc/passwd", "absolute"), ("a::s3://b/c.tar", "elsewhere"), ("x.zip", "no tar")],
)
def test_an_index_names_shards_of_its_own_folder_alone(tmp_path: Path, shard: str, why: str) -> None:
    index = tmp_path / "shards.json"
    index.write_text(json.dumps({"version": 1, "shards": {shard: {"bytes": 9, "images": {"a.jpg": [0, 9]}}}}))
    with pytest.raises(ShardError, match=r"shards\.json' is no index of shards, or of another version; make it with"):
        open_shards(str(index))


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{", '{"version": 2, "shards": {}}', '{"version": 1, "shards": {"a.tar": {"bytes": 9, "images": [1]}}}',
     '{"version": 1, "shards": {"a.tar": {"bytes": 9, "images": {"a": [5, 5]}}}}',
     '{"version": 1, "shards": {"a.tar": {"bytes": 9, "images": {"a": [-1, 5]}}}}'],
)  # fmt: skip
def test_what_is_no_index_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "shards.json").write_text(content)
    with pytest.raises(ShardError, match=r"shards\.json' is no index of shards"):
        open_shards(str(tmp_path / "shards.json"))


def test_a_store_that_is_not_known_is_an_error_of_one_line() -> None:
    with pytest.raises(
        ShardError, match=r"'nowhere://a/shards\.json' cannot be read: Protocol not known: nowhere; check"
    ):
        open_shards("nowhere://a/shards.json")


def test_an_address_through_a_folder_that_is_named_like_an_index(tmp_path: Path) -> None:
    """Only a whole component of a path is the name of an index."""
    folder = tmp_path / "my_shards.json"
    folder.mkdir()
    Image.new("RGB", (8, 6), "red").save(folder / "a.png")
    assert read_image(folder / "a.png").shape == (6, 8, 3)


def test_the_command_line_says_what_to_write_into_the_config(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = files / "mine.yaml"
    skeleton = "{name: toy, keypoints: [nose, left, right], flip_pairs: [[left, right]], sigmas: [0.1, 0.1, 0.1]}"
    entry = f"{{name: mine, json: {files}/toy.json, images: {files}/images, skeleton: toy}}"
    config.write_text(f"DATASETS: {{SKELETONS: [{skeleton}], CUSTOM: [{entry}]}}")
    command = ("datasets/make_shards.py", "mine", "--config-file", str(config), "--output", str(files / "out"))
    assert run_script(*command) == 0
    assert f"Set images of DATASETS.CUSTOM to {files}/out/shards.json" in capsys.readouterr().out
    assert run_script(*command) == 2
    assert "is there already; remove it or name another folder" in capsys.readouterr().err


def test_shards_are_made_of_one_folder_and_of_images_that_are_there(files: Path, script: ModuleType) -> None:
    (files / "other").mkdir()
    register_pose_dataset("other", files / "toy.json", files / "other", TOY_SKELETON)
    with pytest.raises(script.MakeShardsError, match="files, other have their images in different places"):
        script.make_shards(["files", "other"], files / "packed", megabytes=1)
    with pytest.raises(script.MakeShardsError, match="--megabytes is 0"):
        script.make_shards(["files"], files / "packed", megabytes=0)
    (files / "images" / NAMES[7]).unlink()
    with pytest.raises(ImageReadError, match=r"There is no image .*7\.png"):
        script.make_shards(["files"], files / "packed", megabytes=1)
    assert not [path for path in files.iterdir() if "packed" in path.name], "nothing is left half done"


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of an S3-compatible server, as MinIO is one; nobody serves it yet."""
    s3fs = pytest.importorskip("s3fs", reason="s3fs is not installed: pip install -e .[s3]")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{address}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "anybody")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "anything")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    yield address
    s3fs.S3FileSystem.clear_instance_cache()


def test_shards_in_an_s3_store(s3: str, shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server_of_moto = pytest.importorskip("moto.server", reason="pip install 'moto[s3]' flask flask-cors")
    monkeypatch.setattr(logging.getLogger("werkzeug"), "disabled", True)
    host, port = s3.split(":")
    server = server_of_moto.ThreadedMotoServer(host, int(port), verbose=False)
    server.start()
    try:
        store = fsspec.filesystem("s3")
        store.mkdir("bucket")
        store.put(f"{shards}/", "s3://bucket/packed/", recursive=True)
        dataset = ("s3", shards.parent / "toy.json", "s3://bucket/packed/shards.json", TOY_SKELETON)
        register_pose_dataset(*dataset)
        assert check_datasets(["s3"], depth="header") == []
        expected = samples_of("files")
        for num_workers in (0, 2):
            assert_same_samples(samples_of("s3", num_workers=num_workers), expected)
        store.rm("s3://bucket/packed/000001.tar")
        with pytest.raises(ShardError, match=r"Shard 's3://bucket/packed/000001\.tar' is missing; copy it again"):
            samples_of("s3", num_workers=2)
        register_pose_dataset(*dataset)  # anew, as in another process
        [problem] = check_datasets(["s3"], depth="header")
        assert problem.what == "Shard 's3://bucket/packed/000001.tar' is missing"
    finally:
        server.stop()


def test_a_store_that_does_not_answer_is_an_error_of_one_line(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with pytest.raises(
        ShardError,
        match=rf"^Index of shards 's3://bucket/shards\.json' cannot be read: .*{s3}.*; check address, [^\n]*$",
    ):
        open_shards("s3://bucket/shards.json")
