"""Experiment trackers: Weights & Biases and MLflow, each through its own client, as further writers of a training."""

from __future__ import annotations

import importlib.util
import os
import re
import time
import uuid
from abc import abstractmethod
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from querypose.config import ConfigError
from querypose.d2 import CfgNode, EventWriter, get_event_storage, to_plain

_PACKAGES = {"TRACKING.WANDB": "wandb", "TRACKING.MLFLOW": "mlflow"}
# What MLflow takes at once, and as the value of a parameter.
_PARAMS_AT_ONCE, _PARAM_LENGTH = 100, 6000


def check_trackers(cfg: CfgNode) -> None:
    """Refuses a tracker whose client is not installed."""
    for key, package in _PACKAGES.items():
        if cfg.TRACKING[key.rpartition(".")[2]] and importlib.util.find_spec(package) is None:
            raise ConfigError(
                f"{key} needs the package {package}. Install it (pip install {package}), or set {key} ''."
            )


def build_trackers(cfg: CfgNode, continues: bool) -> list[TrackingWriter]:
    """The trackers that TRACKING names.

    Args:
        cfg: of the run; it is stored with it.
        continues: go on with the tracker's run of OUTPUT_DIR, if there is one.
    """
    trackers: list[TrackingWriter] = []
    if cfg.TRACKING.WANDB:
        trackers.append(
            WandbWriter(cfg.TRACKING.WANDB, Path(cfg.OUTPUT_DIR), to_plain(cfg, "config"), continues=continues)
        )
    if cfg.TRACKING.MLFLOW:
        trackers.append(
            MLflowWriter(cfg.TRACKING.MLFLOW, Path(cfg.OUTPUT_DIR), to_plain(cfg, "config"), continues=continues)
        )
    return trackers


class TrackingWriter(EventWriter):
    """Base of the trackers: hands every scalar on once. Pictures must be taken before TensorBoard forgets them.

    Args:
        folder: OUTPUT_DIR of the run; the file `id_file` in it keeps the tracker's id of the run.
        continues: use that id again.
        window: iterations that noisy scalars are smoothed over.
    """

    id_file: str

    def __init__(self, folder: Path, *, continues: bool, window: int = 20) -> None:
        self._folder = folder
        self._continues = continues
        self._window = window
        self._written = -1

    def write(self) -> None:
        storage = get_event_storage()
        rows: defaultdict[int, dict[str, float]] = defaultdict(dict)
        for name, (value, iteration) in storage.latest_with_smoothing_hint(self._window).items():
            if iteration > self._written:
                rows[iteration][name] = float(value)
        for iteration in sorted(rows):
            self.log(rows[iteration], iteration)
            self._written = iteration
        for name, image, iteration in storage._vis_data:
            self.log_image(name, image.permute(1, 2, 0).numpy(), iteration)

    @abstractmethod
    def log(self, scalars: Mapping[str, float], iteration: int) -> None:
        """Takes the scalars of an iteration."""

    @abstractmethod
    def log_image(self, name: str, image: Any, iteration: int) -> None:
        """Takes a picture, (H, W, 3) RGB."""

    def _known_id(self) -> str | None:
        path = self._folder / self.id_file
        return path.read_text().strip() if self._continues and path.is_file() else None

    def _keep_id(self, run_id: str) -> str:
        self._folder.mkdir(parents=True, exist_ok=True)
        (self._folder / self.id_file).write_text(run_id)
        return run_id


class WandbWriter(TrackingWriter):
    """Weights & Biases. Where and whether it sends anything is its client's affair: WANDB_MODE=offline keeps all here.

    Args:
        project: of the run.
        folder: OUTPUT_DIR; the client's files are in it.
        config: stored with the run.
        continues: see `TrackingWriter`.
    """

    id_file = "wandb_id"

    def __init__(self, project: str, folder: Path, config: Mapping[str, Any], *, continues: bool) -> None:
        import wandb

        super().__init__(folder, continues=continues)
        run_id = self._keep_id(self._known_id() or uuid.uuid4().hex[:12])
        self._image = wandb.Image
        self._run = wandb.init(
            project=project, name=folder.resolve().name, dir=str(folder), config=dict(config), id=run_id, resume="allow"
        )

    def log(self, scalars: Mapping[str, float], iteration: int) -> None:
        self._run.log(dict(scalars), step=iteration)

    def log_image(self, name: str, image: Any, iteration: int) -> None:
        # Its steps must not fall, and scalars of later iterations are written already.
        self._run.log({name: self._image(image, caption=f"iteration {iteration + 1}")})

    def close(self) -> None:
        self._run.finish()


class MLflowWriter(TrackingWriter):
    """MLflow, into a store of files in OUTPUT_DIR/mlruns, or where MLFLOW_TRACKING_URI says.

    Args:
        experiment: that the run belongs to.
        folder: OUTPUT_DIR.
        config: stored as the run's parameters.
        continues: see `TrackingWriter`.
    """

    id_file = "mlflow_id"

    def __init__(self, experiment: str, folder: Path, config: Mapping[str, Any], *, continues: bool) -> None:
        from mlflow.entities import Metric, Param
        from mlflow.tracking import MlflowClient

        super().__init__(folder, continues=continues)
        self._metric = Metric
        uri = os.environ.get("MLFLOW_TRACKING_URI")
        if uri is None:
            # The client calls plain files a thing of the past, and wants to hear that they are meant.
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
            uri = (folder / "mlruns").resolve().as_uri()
        self._client = MlflowClient(tracking_uri=uri)
        if (run_id := self._known_id()) is None:
            known = self._client.get_experiment_by_name(experiment)
            experiment_id = self._client.create_experiment(experiment) if known is None else known.experiment_id
            run = self._client.create_run(experiment_id, run_name=folder.resolve().name)
            run_id = self._keep_id(run.info.run_id)
            params = [Param(name, value[:_PARAM_LENGTH]) for name, value in _flat(config)]
            for first in range(0, len(params), _PARAMS_AT_ONCE):
                self._client.log_batch(run_id, params=params[first : first + _PARAMS_AT_ONCE])
        else:
            self._client.update_run(run_id, status="RUNNING")
        self._run_id = run_id

    def log(self, scalars: Mapping[str, float], iteration: int) -> None:
        now = round(1000 * time.time())
        metrics = [self._metric(_allowed(name), value, now, iteration) for name, value in scalars.items()]
        self._client.log_batch(self._run_id, metrics=metrics)

    def log_image(self, name: str, image: Any, iteration: int) -> None:
        self._client.log_image(self._run_id, image, f"{_allowed(name)}/{iteration + 1:07d}.png")

    def close(self) -> None:
        self._client.set_terminated(self._run_id)


def _flat(config: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    for name, value in config.items():
        rows += _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else [(f"{prefix}{name}", str(value))]
    return rows


def _allowed(name: str) -> str:
    """A name with MLflow's characters alone."""
    return re.sub(r"[^\w\-./ ]", "_", name)
