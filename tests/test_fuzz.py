"""Files of any content: each is used, or refused by its own kind of error that names it. Nothing else comes out."""

from __future__ import annotations

import copy
import io
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from querypose.config import KEYS, ConfigError, load_config
from querypose.d2 import CfgNode, CheckpointError, read_checkpoint
from querypose.data import DatasetError, read_annotations
from querypose.data.results import ResultsError
from querypose.data.shards import INDEX_NAME, ShardError, open_shards
from querypose.evaluation import METRICS, read_detections
from querypose.evaluation.oks import coco
from querypose.paths import FileNameError
from tests.data.toy_dataset import TOY_SKELETON, read_records, toy_annotation, toy_document, write_dataset
from tests.evaluation.generated import read

SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(), st.text(max_size=8),
    st.sampled_from([0, 1, -1, 0.5, 1e308, math.nan, math.inf, "", "coco", "1e-4", "[", "\0", "${x}"]),
)  # fmt: skip
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6) | st.integers(), inner, max_size=3),
    max_leaves=6,
)
NAMES = list(KEYS)
SECTIONS = sorted({name.rpartition(".")[0] for name in NAMES} - {""})
_fuzz = settings(
    deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


def nested(name: str, value: Any) -> Any:
    for part in reversed(name.split(".")):
        value = {part: value}
    return value


def refused_or_loaded(text: str | bytes, folder: Path, overrides: tuple[str, ...] = ()) -> CfgNode | None:
    path = folder / "fuzz.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8", errors="surrogatepass"))
    try:
        return load_config(path, overrides)
    except (ConfigError, FileNameError) as error:
        assert str(error)  # noqa: PT017  # some configs load
        return None


@settings(_fuzz, max_examples=300)
@given(name=st.sampled_from(NAMES + SECTIONS + ["_BASE_", "VERSION", "MODEL.NOT_A_KEY"]), value=VALUES)
@example(name="SOLVER.BASE_LR", value=1)
@example(name="_BASE_", value=["fuzz.yaml"])
@example(name="_BASE_", value=None)
def test_whatever_a_key_holds_the_config_loads_or_is_refused(tmp_path: Path, name: str, value: Any) -> None:
    cfg = refused_or_loaded(yaml.safe_dump(nested(name, value)), tmp_path)
    if cfg is None:
        return
    for key in KEYS.values():  # what is loaded keeps the types that the code relies on
        node: Any = cfg
        for part in key.name.split("."):
            node = node[part]
        expected = (list, tuple) if isinstance(key.default, list) else type(key.default)
        assert isinstance(node, expected), key.name


@settings(_fuzz, max_examples=150)
@given(
    text=st.one_of(st.text(max_size=60), st.binary(max_size=60), st.text("[]{}:,-&*!?|>'\"\n\t #%@ab1.", max_size=40))
)
@example(text="&a [*a]")
@example(text="SOLVER: &a {X: *a}")
@example(text="<<: [1]")
def test_whatever_a_config_file_holds_it_loads_or_is_refused(tmp_path: Path, text: str | bytes) -> None:
    refused_or_loaded(text, tmp_path)


@settings(_fuzz, max_examples=200)
@given(opts=st.lists(st.sampled_from(NAMES + SECTIONS) | st.text(max_size=12), max_size=5))
@example(opts=["SOLVER.STEPS", "[" * 200])
@example(opts=["SOLVER.STEPS", "9" * 5000])
@example(opts=["SOLVER.BASE_LR", "9" * 5000])
def test_whatever_the_command_line_holds_it_loads_or_is_refused(tmp_path: Path, opts: list[str]) -> None:
    refused_or_loaded("VERSION: 2", tmp_path, tuple(opts))


def places(document: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The way to every value in nested lists and dicts."""
    entries = (
        document.items() if isinstance(document, dict) else enumerate(document) if isinstance(document, list) else ()
    )
    found = [path] if path else []
    for key, value in entries:
        found += places(value, (*path, key))
    return found


def replaced(document: Any, path: tuple[Any, ...], value: Any) -> Any:
    document = copy.deepcopy(document)
    node = document
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = value
    return document


DOCUMENT = toy_document()


@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")  # of boxes as wide as floats go
@settings(_fuzz, max_examples=250)
@given(path=st.sampled_from(places(DOCUMENT)), value=VALUES)
@example(path=("images", 0, "id"), value=2**65)
@example(path=("annotations", 0, "bbox", 2), value=10**400)
@example(path=("annotations", 0, "bbox"), value=[1, 2, 3, "4"])
@example(path=("annotations", 0, "bbox"), value=[[1], [2], [3], [4]])
@example(path=("annotations", 0, "image_id"), value=[])
@example(path=("annotations", 0, "category_id"), value={})
def test_whatever_stands_anywhere_in_an_annotation_file(tmp_path: Path, path: tuple[Any, ...], value: Any) -> None:
    document = replaced(DOCUMENT, path, value)
    json_file, images = write_dataset(tmp_path, document)
    try:
        read_records(json_file, images, TOY_SKELETON)
    except DatasetError as refusal:
        assert "toy.json" in str(refusal)  # noqa: PT017  # most files load
    else:  # what training accepts can be evaluated
        annotations = read_annotations(json_file, images, TOY_SKELETON)
        found = {**RESULTS[0], "image_id": annotations.image_ids[0], "category_id": annotations.category_id}
        assert list(coco(annotations, read_detections([found], annotations))) == list(METRICS["coco"])


@settings(_fuzz, max_examples=100)
@given(start=st.integers(0, 400), noise=st.binary(max_size=8))
def test_an_annotation_file_with_noise_in_it(tmp_path: Path, start: int, noise: bytes) -> None:
    json_file, images = write_dataset(tmp_path, DOCUMENT)
    content = json_file.read_bytes()
    json_file.write_bytes(content[:start] + noise + content[start + len(noise) :])
    try:
        read_records(json_file, images, TOY_SKELETON)
    except DatasetError as refusal:
        assert "toy.json" in str(refusal)  # noqa: PT017


INDEX = {"version": 1, "shards": {"0.tar": {"bytes": 9, "images": {"a.png": [1, 4]}}}}


@settings(_fuzz, max_examples=100)
@given(path=st.sampled_from(places(INDEX)), value=VALUES)
def test_whatever_stands_anywhere_in_an_index_of_shards(tmp_path: Path, path: tuple[Any, ...], value: Any) -> None:
    (tmp_path / "0.tar").write_bytes(b"123456789")
    (tmp_path / INDEX_NAME).write_text(json.dumps(replaced(INDEX, path, value)), encoding="utf-8")
    try:
        shards = open_shards(str(tmp_path / INDEX_NAME))
        assert all(isinstance(fault, ShardError) for fault in shards.faults())
        assert shards.content("a.png") in b"123456789"
    except ShardError as refusal:
        assert str(tmp_path) in str(refusal)  # noqa: PT017  # some indices are read
    except FileNotFoundError as missing:
        assert missing.args == ("a.png",)  # noqa: PT017


RESULTS = [{"image_id": 7, "category_id": 3, "keypoints": [1.0] * 9, "score": 0.5, "bbox": [1.0, 1.0, 5.0, 5.0]}]
ANNOTATIONS = read(toy_document(annotations=[toy_annotation()]), TOY_SKELETON)


@settings(_fuzz, max_examples=150)
@given(path=st.sampled_from(places(RESULTS)), value=VALUES)
def test_whatever_stands_anywhere_in_a_results_file(path: tuple[Any, ...], value: Any) -> None:
    try:
        metrics = coco(ANNOTATIONS, read_detections(replaced(RESULTS, path, value), ANNOTATIONS, "res.json"))
    except ResultsError as refusal:
        assert "res.json" in str(refusal)  # noqa: PT017
    else:
        assert set(metrics) >= {"AP", "AP50", "AR"}


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")  # torch says so of what the noise looks like
@settings(_fuzz, max_examples=300)
@given(data=st.data())
@pytest.mark.parametrize("zipped", [True, False])
def test_a_checkpoint_with_noise_in_it_is_read_or_refused(tmp_path: Path, data: st.DataObject, zipped: bool) -> None:
    stream = io.BytesIO()
    content = {"model": {"a": torch.ones(3, 3), "b": torch.zeros(2)}, "iteration": 3}
    torch.save(content, stream, _use_new_zipfile_serialization=zipped)
    damaged = bytearray(stream.getvalue())
    if data.draw(st.booleans()):
        del damaged[data.draw(st.integers(0, len(damaged) - 1)) :]
    else:
        for _ in range(data.draw(st.integers(1, 6))):
            damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / "w.pth"
    path.write_bytes(damaged)
    try:
        assert isinstance(read_checkpoint(path), dict)
    except CheckpointError as refusal:
        assert "w.pth" in str(refusal)  # noqa: PT017
