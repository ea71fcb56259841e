"""Samples and loaders: random numbers of their own, records that are shared, every sample once, and dying processes."""

from __future__ import annotations

import errno
import itertools
import multiprocessing
import os
import random
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from querypose.config import get_cfg, import_modules
from querypose.d2 import CfgNode, comm
from querypose.data import (
    LoaderError,
    StoppedWaitingError,
    build_test_loader,
    build_train_loader,
    explain_loader_failures,
    loader_failures,
    register_pose_dataset,
    waiting_stops_if,
)
from querypose.data.augmentations import AUGMENTATION_REGISTRY
from querypose.data.loading import Samples, data_loader, seeded_generators
from querypose.data.pipelines import WholeImage
from querypose.data.training_order import Draw, TrainingOrder
from tests.data.toy_dataset import TOY_SKELETON, toy_document, write_dataset

SIZE, BATCH = 22, 4


def noise() -> tuple[float, float, float]:
    return random.random(), float(np.random.rand()), float(torch.rand(()))  # noqa: NPY002  # what users draw from


class Noise(WholeImage):
    """Gives the record's number and random numbers, of the generator and of the global ones."""

    def sample(self, record: dict[str, Any], generator: np.random.Generator, image: Any = None) -> Any:
        return record["id"], (generator.random(), *noise())


def records(count: int = SIZE) -> list[dict[str, Any]]:
    return [{"id": index, "file_name": f"{index}.jpg", "width": 10 + index % 3, "height": 11} for index in range(count)]


def noise_loader(num_workers: int = 0, grouping: bool = True) -> Any:
    groups = np.array([grouping and record["width"] > record["height"] for record in records()])
    return data_loader(Samples(records(), Noise(is_train=False)), TrainingOrder(groups, BATCH, 5), num_workers)


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("processes", [1, 2, 4])
@pytest.mark.parametrize("grouping", [True, False])
def test_samples_depend_neither_on_processes_nor_on_loader_processes(
    monkeypatch: pytest.MonkeyPatch, processes: int, num_workers: int, grouping: bool
) -> None:
    def drawn(processes: int, num_workers: int) -> list[Any]:
        shares = []
        monkeypatch.setattr(comm, "get_world_size", lambda: processes)
        for rank in range(processes):
            monkeypatch.setattr(comm, "get_rank", lambda rank=rank: rank)
            shares.append(list(itertools.islice(iter(noise_loader(num_workers, grouping)), 9)))
        return [[sample for share in batch for sample in share] for batch in zip(*shares, strict=True)]

    expected = drawn(1, 0)
    assert drawn(processes, num_workers) == expected
    values = Counter(value for batch in expected for _, noise in batch for value in noise)
    assert max(values.values()) == 1, "no two samples have the same random numbers"


def test_loading_leaves_the_generators_of_the_model_alone() -> None:
    with seeded_generators((1, 2)):
        expected = noise()
    with seeded_generators((1, 2)):
        next(iter(noise_loader()))
        assert noise() == expected


def test_spawned_loader_process_gets_a_handle_of_the_records_not_the_records() -> None:
    many = [{**record, "annotations": [[float(index)] * 51]} for index, record in enumerate(records(2000))]
    samples = Samples(many, Noise(is_train=False))
    assert len(ForkingPickler.dumps(many)) > 500_000
    handle = ForkingPickler.dumps(samples)
    assert len(handle) < 10_000
    assert ForkingPickler.loads(handle).record(1234) == many[1234]


def test_records_are_kept_where_nothing_counts_references() -> None:
    samples = Samples(records(), Noise(is_train=False))
    assert [samples.record(index) for index in range(SIZE)] == records()
    assert samples.record(3) is not samples.record(3)
    assert not any(isinstance(value, list | dict) for value in vars(samples).values())


class Misfortune(Noise):
    """Something happens to the process that makes the sample of one record."""

    def __init__(self, what: Callable[[], Any], record: int = 12) -> None:
        super().__init__(is_train=False)
        self.what = what
        self.record = record

    def sample(self, record: dict[str, Any], generator: np.random.Generator, image: Any = None) -> Any:
        if record["id"] == self.record:
            self.what()
        return {"id": record["id"], "image": torch.zeros(3, 64, 64, dtype=torch.uint8)}


def load(what: Callable[[], Any], num_workers: int = 2, timeout: float = 60.0, record: int = 12) -> list[Any]:
    """What a loader gives until something happens in one of its processes; none of them is left afterwards."""
    order = TrainingOrder(np.zeros(SIZE), BATCH, seed=1)
    loader = data_loader(Samples(records(), Misfortune(what, record)), order, num_workers, timeout)
    samples: list[Any] = []
    failure: Exception | None = None
    try:
        with explain_loader_failures():
            samples = list(itertools.islice(loader, 100))
    except Exception as error:
        failure = error.with_traceback(None)
        failure.__cause__ = failure.__context__ = None  # their frames would hold the loader
    del loader
    deadline = time.monotonic() + 60
    while multiprocessing.active_children() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not multiprocessing.active_children()
    if failure is not None:
        raise failure
    return samples


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def kill_soon() -> None:
    """While the process makes another sample, passes a batch on, or waits."""
    threading.Timer(random.random() / 100, kill).start()


@pytest.mark.parametrize("repetition", range(8))
def test_killed_loader_process_ends_with_a_message(repetition: int) -> None:
    what = kill_soon if repetition % 2 else kill
    with pytest.raises(LoaderError, match=r"killed, as a rule because .*out of memory\. Lower DATALOADER\.NUM_WORKERS"):
        load(what, num_workers=1 + repetition % 3, record=repetition)


def test_stopped_loader_process_is_given_up() -> None:
    begin = time.monotonic()
    with pytest.raises(LoaderError, match=r"no batch for 1\.5 s \(DATALOADER\.TIMEOUT\)"):
        load(lambda: os.kill(os.getpid(), signal.SIGSTOP), timeout=1.5)
    assert time.monotonic() - begin < 60, "and not at some time-out of torch"


def test_loader_process_that_sleeps_for_ever_is_given_up() -> None:
    with pytest.raises(LoaderError, match=r"DATALOADER\.TIMEOUT"):
        load(lambda: time.sleep(1000), timeout=1.0)


def test_a_stopped_loader_process_does_not_keep_a_loader_from_ending(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that has all that it needs ends, whatever became of a process that was to prepare more."""
    monkeypatch.setattr(loader_failures, "_END", 0.2)
    batches = iter(noise_loader(1))
    next(batches)
    [process] = multiprocessing.active_children()
    assert process.pid is not None
    os.kill(process.pid, signal.SIGSTOP)
    batches.close()
    process.join(60)  # it has been killed, and a busy machine takes its time
    assert not process.is_alive()


def test_waiting_ends_where_the_run_is_to_stop() -> None:
    with pytest.raises(StoppedWaitingError), waiting_stops_if(lambda: True):
        load(lambda: time.sleep(1000))


def _no_space(storage: Any) -> Any:
    raise RuntimeError("unable to write to file </torch_1_2_3>: No space left on device (28)")


def _no_descriptor(storage: Any) -> Any:
    raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))


@pytest.mark.parametrize(
    ("share", "remedy"), [(_no_space, r"shm-size=8g.*\(.*No space left"), (_no_descriptor, "ulimit -n")]
)
def test_samples_that_cannot_be_passed_on_end_with_a_message(
    share: Callable[[Any], Any], remedy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By default torch prints a traceback, drops the batch and waits for it for ever."""
    monkeypatch.setattr(torch.UntypedStorage, "_share_fd_cpu_", share)
    with pytest.raises(LoaderError, match=remedy):
        load(lambda: None)


def test_a_bus_error_is_shared_memory_that_is_full() -> None:
    with pytest.raises(LoaderError, match="shm-size"):
        load(lambda: os.kill(os.getpid(), signal.SIGBUS))


class ToldToStop(Noise):
    """Its process gets the signals of a cluster and of Ctrl-C at every record, and so does a thread of a library's."""

    def sample(self, record: dict[str, Any], generator: np.random.Generator, image: Any = None) -> Any:
        thread = threading.Thread(target=_take_signals, daemon=True)
        thread.start()
        for number in (signal.SIGTERM, signal.SIGINT):
            os.kill(os.getpid(), number)
            assert thread.ident is not None
            signal.pthread_kill(thread.ident, number)  # the system may choose any thread that does not block it
        return record["id"]


def _take_signals() -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, ())  # whatever the thread that started this one blocks
    time.sleep(1000)


def test_loader_processes_outlive_the_signals_that_stop_a_run() -> None:
    draws = [[Draw(index, (0,))] for index in range(SIZE)]
    loader = data_loader(Samples(records(), ToldToStop(is_train=False)), draws, 2)
    assert [sample for batch in loader for sample in batch] == list(range(SIZE))


@pytest.fixture
def toy_config(datasets_root: Path) -> CfgNode:
    """A dataset of two images."""
    register_pose_dataset("toy", *write_dataset(datasets_root, toy_document()), TOY_SKELETON)
    cfg = get_cfg()
    cfg.DATASETS.TEST = ["toy"]
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.INPUT.MIN_SIZE_TEST = 32
    return cfg


@pytest.mark.parametrize(("processes", "batch_size"), [(1, 1), (1, 2), (2, 1), (3, 5)])
def test_an_evaluation_has_every_sample_once_over_all_processes(
    toy_config: CfgNode, monkeypatch: pytest.MonkeyPatch, processes: int, batch_size: int
) -> None:
    toy_config.TEST.IMS_PER_BATCH = batch_size
    monkeypatch.setattr(comm, "get_world_size", lambda: processes)
    ids, batches = [], []
    for rank in range(processes):
        monkeypatch.setattr(comm, "get_rank", lambda rank=rank: rank)
        loader = build_test_loader(toy_config, "toy")
        batches += list(loader)
        assert len(loader) <= 2
    ids = [sample["sample_id"] for batch in batches for sample in batch]
    assert ids == [2, 7]
    assert max(map(len, batches)) <= batch_size


USERS_MODULE = """
from querypose.data.augmentations import AUGMENTATION_REGISTRY

@AUGMENTATION_REGISTRY.register()
class HomemadeNegative:
    def apply(self, image_CHW, generator):
        return 255 - image_CHW
"""


def test_spawned_loader_process_has_the_augmentation_of_an_imported_module(
    toy_config: CfgNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", sys.path.copy())
    monkeypatch.delitem(sys.modules, "homemade_negative", raising=False)  # and so what is imported here goes afterwards
    monkeypatch.setattr(AUGMENTATION_REGISTRY, "_obj_map", dict(AUGMENTATION_REGISTRY._obj_map))
    (tmp_path / "homemade_negative.py").write_text(USERS_MODULE)
    import_modules([str(tmp_path / "homemade_negative.py")])
    toy_config.DATASETS.TRAIN = ["toy"]
    toy_config.SOLVER.IMS_PER_BATCH = 1
    toy_config.SEED = 1

    def first_image(num_workers: int, augmentations: list[dict[str, str]]) -> torch.Tensor:
        toy_config.INPUT.AUGMENTATIONS = augmentations
        toy_config.DATALOADER.NUM_WORKERS = num_workers
        loader = build_train_loader(toy_config)
        if num_workers:
            loader.multiprocessing_context = "spawn"
        [sample] = next(iter(loader))
        return sample["image"]

    negative = [{"name": "RandomFlip"}, {"name": "HomemadeNegative"}]
    assert torch.equal(first_image(1, negative), 255 - first_image(0, negative[:1]))


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
