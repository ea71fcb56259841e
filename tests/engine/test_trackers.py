"""Trackers: what they are given, and the real clients where they are installed."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from querypose.config import ConfigError, load_config
from querypose.d2 import EventStorage
from querypose.engine.trackers import TrackingWriter, build_trackers
from tests.engine.toy_pose import write_toy_config

pytestmark = pytest.mark.filterwarnings("ignore")  # the clients' own


class Notes(TrackingWriter):
    """Notes what it is given."""

    id_file = "notes_id"

    def __init__(self, folder: Path, *, continues: bool = False) -> None:
        super().__init__(folder, continues=continues)
        self.run_id = self._keep_id(self._known_id() or str(len(list(folder.iterdir()))))
        self.scalars: list[tuple[int, dict[str, float]]] = []
        self.images: list[tuple[str, tuple[int, ...], int]] = []

    def log(self, scalars: Mapping[str, float], iteration: int) -> None:
        self.scalars.append((iteration, dict(scalars)))

    def log_image(self, name: str, image: Any, iteration: int) -> None:
        self.images.append((name, image.shape, iteration))


def train(writer: TrackingWriter, first: int = 0) -> None:
    """Two iterations, written twice; then the writer is closed."""
    with EventStorage(first) as storage:
        for iteration in (first, first + 1):
            storage.iter = iteration
            storage.put_scalar("loss", 2.0 - iteration, smoothing_hint=False)
            storage.put_scalar("PCKh@0.1", 7.0, smoothing_hint=False)
            storage.put_image("pictures/1", torch.zeros(3, 4, 5, dtype=torch.uint8))
            writer.write()
            storage.clear_images()
            writer.write()
    writer.close()


def test_every_scalar_and_picture_is_given_once(tmp_path: Path) -> None:
    notes = Notes(tmp_path)
    train(notes)
    assert notes.scalars == [(0, {"loss": 2.0, "PCKh@0.1": 7.0}), (1, {"loss": 1.0, "PCKh@0.1": 7.0})]
    assert notes.images == [("pictures/1", (4, 5, 3), 0), ("pictures/1", (4, 5, 3), 1)]


def test_a_run_that_goes_on_keeps_its_id_and_a_new_one_has_another(tmp_path: Path) -> None:
    assert [Notes(tmp_path).run_id, Notes(tmp_path, continues=True).run_id, Notes(tmp_path).run_id] == ["0", "0", "1"]


@pytest.mark.parametrize(("key", "package"), [("WANDB", "wandb"), ("MLFLOW", "mlflow")])
def test_a_client_that_is_missing_is_named(key: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == package else find(name, *rest))
    with pytest.raises(ConfigError, match=f"TRACKING.{key} needs the package {package}"):
        load_config(None, [f"TRACKING.{key}", "poses", "DATASETS.TRAIN", "['synthetic_train']"])


def test_no_tracker_by_default(tmp_path: Path) -> None:
    assert build_trackers(load_config(write_toy_config(tmp_path)), continues=False) == []


def test_mlflow_has_scalars_pictures_and_config_in_plain_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlflow", reason="mlflow, an extra, is not installed")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    cfg = load_config(write_toy_config(tmp_path), ["TRACKING.MLFLOW", "poses"])
    for continues, first in ((False, 0), (True, 2)):
        (writer,) = build_trackers(cfg, continues=continues)
        train(writer, first)
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=(tmp_path / "output/mlruns").as_uri())
    experiment = client.get_experiment_by_name("poses")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.data.params["SOLVER.BASE_LR"] == "0.05"
    assert run.info.status == "FINISHED"
    assert [(metric.step, metric.value) for metric in client.get_metric_history(run.info.run_id, "loss")] == [
        (0, 2.0), (1, 1.0), (2, 0.0), (3, -1.0),
    ]  # fmt: skip
    assert run.data.metrics["PCKh_0.1"] == 7
    assert len(list((tmp_path / "output/mlruns").rglob("000000*.png"))) == 4


def test_wandb_writes_a_run_without_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb", reason="wandb, an extra, is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    cfg = load_config(write_toy_config(tmp_path), ["TRACKING.WANDB", "poses"])
    (writer,) = build_trackers(cfg, continues=False)
    train(writer)
    wandb.teardown()  # its process writes the file to its end
    (file,) = (tmp_path / "output/wandb").glob("offline-run-*/run-*.wandb")
    content = file.read_bytes()
    assert all(name in content for name in (b"loss", b"PCKh@0.1", b"BASE_LR"))
