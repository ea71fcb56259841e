"""A model as one file or folder: weights, config, skeleton and what there is to say about it.

`model.safetensors` is whole by itself: its header has the config (which says how images are prepared too), the skeleton
and metrics as text. The folder around it repeats them for people: `config.yaml`, `skeleton.json`, `README.md`. Nothing
in it is code, and nothing of it is run.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from querypose.config import ConfigError, config_of_mapping
from querypose.config.merging import parse_yaml, read_config_file
from querypose.d2 import META_ARCH_REGISTRY, CfgNode, CheckpointError, MetadataCatalog, build_model, check_weights
from querypose.data import register_custom_datasets
from querypose.deployment.model_card import model_card
from querypose.engine.ema import load_evaluation_weights
from querypose.modeling import PoseModel
from querypose.paths import path_within
from querypose.skeleton import Skeleton, skeleton_of_datasets

WEIGHTS_FILE = "model.safetensors"
_FORMAT = "querypose-1"
# Of a run's folder, the first that is there.
_RUN_CHECKPOINTS = ("model_final.pth", "model_best.pth")

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ModelPackage:
    """A trained model with all that it takes to run it.

    Attributes:
        model: with its weights, on the CPU.
        cfg: it was built from.
        skeleton: of its keypoints.
        metrics: by dataset or task, as its last evaluation gave them; empty where nobody measured.
        license_name: of the weights, as the Hub calls it, such as "cc-by-4.0"; "other" where nobody named one.
    """

    model: PoseModel
    cfg: CfgNode
    skeleton: Skeleton
    metrics: Mapping[str, Any] = field(default_factory=dict)
    license_name: str = "other"

    def save(self, folder: str | Path) -> Path:
        """Writes the folder; returns the path of the file that is whole by itself."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        config, skeleton = (
            yaml.safe_dump(_plain(self.cfg), sort_keys=False),
            json.dumps(asdict(self.skeleton), indent=1),
        )
        weights = {name: tensor.detach().cpu().contiguous() for name, tensor in self.model.state_dict().items()}
        header = {
            "format": "pt",
            "querypose": _FORMAT,
            "config": config,
            "skeleton": skeleton,
            "metrics": json.dumps(self.metrics),
            "license": self.license_name,
        }
        save_file(weights, folder / WEIGHTS_FILE, header)
        (folder / "config.yaml").write_text(config, encoding="utf-8")
        (folder / "skeleton.json").write_text(skeleton + "\n", encoding="utf-8")
        card = model_card(self.model, self.cfg, self.skeleton, self.metrics, self.license_name)
        (folder / "README.md").write_text(card, encoding="utf-8")
        return folder / WEIGHTS_FILE


def read_package(path: str | Path, device: str = "cpu") -> ModelPackage:
    """A model from a file or folder that `ModelPackage.save` wrote, from a checkpoint of a run, or from a run's folder.

    Args:
        path: `model.safetensors` or its folder; a folder of a run, of which `model_final.pth` counts, else
            `model_best.pth`, else the last checkpoint; or a checkpoint with `config.yaml` beside it.
        device: where the model computes.

    Raises:
        CheckpointError: there is no model, or it is damaged, or of another program.
        ConfigError: its config cannot be used here.
    """
    path = Path(path)
    if path.is_dir():
        path = _model_file(path)
    elif not path.is_file():
        raise CheckpointError(
            f"There is no model {str(path)!r}. Name a file, a folder of a run, or user/name on the Hub."
        )
    return _read_safetensors(path, device) if path.suffix == ".safetensors" else _read_run(path, device)


def _model_file(folder: Path) -> Path:
    names = [WEIGHTS_FILE, *_RUN_CHECKPOINTS]
    last = folder / "last_checkpoint"
    if last.is_file():
        names += last.read_text(encoding="utf-8", errors="replace").split("\n")[:1]
    for name in filter(None, names):
        if (path := path_within(folder, name, str(last))).is_file():
            return path
    raise CheckpointError(f"The folder {str(folder)!r} has no model: none of {', '.join(names)}. Name another folder.")


def _read_safetensors(path: Path, device: str) -> ModelPackage:
    try:
        with safe_open(path, "pt") as file:
            header = file.metadata() or {}
            if header.get("querypose") != _FORMAT:
                raise CheckpointError(
                    f"{path} is no model of tools/export.py --format safetensors: its header names no config. Export "
                    "the run again."
                )
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # it is no dict
        content, skeleton = parse_yaml(header["config"], f"{path}: its config"), skeleton_of_json(header["skeleton"])
        metrics = dict(json.loads(header["metrics"]))
    except ConfigError:
        raise
    except (SafetensorError, LookupError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(
            f"{path} is not a whole model file: copy or download it again. ({str(error).splitlines()[0]})"
        ) from error
    cfg = config_of_mapping(content, str(path))
    name = _register(skeleton)
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = [], [name]
    model = _built(cfg, device, path)
    _load_exactly(model, weights, path)
    return ModelPackage(model, cfg, skeleton, metrics, header.get("license", "other"))


def _read_run(path: Path, device: str) -> ModelPackage:
    config = path.parent / "config.yaml"
    if not config.is_file():
        raise CheckpointError(
            f"{path} has no config.yaml beside it. Name a file in a run's folder, or an exported one."
        )
    cfg = config_of_mapping(read_config_file(config), str(config))
    register_custom_datasets(cfg)
    model = _built(cfg, device, path)
    load_evaluation_weights(model, str(path), use_average=cfg.SOLVER.EMA.ENABLED)
    skeleton = skeleton_of_datasets([*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST])
    return ModelPackage(model, cfg, skeleton, _last_metrics(path.parent / "metrics.json"))


def _built(cfg: CfgNode, device: str, source: Path) -> PoseModel:
    if cfg.MODEL.META_ARCHITECTURE not in META_ARCH_REGISTRY:
        raise ConfigError(
            f"{source} is a model of {cfg.MODEL.META_ARCHITECTURE!r}, which is not registered. If you trust the "
            "project that defines it, import that first; no file brings code here."
        )
    cfg.MODEL.DEVICE, cfg.MODEL.WEIGHTS, cfg.MODEL.BACKBONE.PRETRAINED = device, "", False
    model = build_model(cfg)
    assert isinstance(model, PoseModel)
    return model.eval()


def _load_exactly(model: PoseModel, weights: dict[str, Tensor], path: Path) -> None:
    check_weights(weights, model.state_dict(), str(path))
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise CheckpointError(
            f"{path}: the weights are not those of its config. Export the run again. "
            f"({str(error).splitlines()[1].strip()})"
        ) from error


def skeleton_of_json(text: str) -> Skeleton:
    """The skeleton that `asdict` made a json of."""

    def tuples(value: Any) -> Any:
        return tuple(map(tuples, value)) if isinstance(value, list) else value

    fields = {name: tuples(value) for name, value in json.loads(text).items()}
    fields["part_schemes"] = {name: tuples(parts) for name, parts in fields["part_schemes"].items()}
    return Skeleton(**fields)


def _register(skeleton: Skeleton) -> str:
    """Names a dataset without images that has the skeleton, since models ask datasets for it."""
    digest = hashlib.sha256(json.dumps(asdict(skeleton)).encode()).hexdigest()
    name = f"packaged_{skeleton.name}_{digest[:8]}"
    MetadataCatalog.get(name).set(skeleton=skeleton, thing_dataset_id_to_contiguous_id={1: 0})
    return name


def _last_metrics(path: Path) -> dict[str, Any]:
    """The metrics of the last evaluation in a run's metrics.json."""
    if not path.is_file():
        return {}
    found: dict[str, Any] = {}
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = dict(json.loads(line))
        except (ValueError, TypeError, RecursionError):  # the run was killed while it wrote
            continue
        evaluated = {name: value for name, value in row.items() if name.rpartition("/")[2] in ("AP", "AP50", "AP75")}
        if evaluated:
            found = {**evaluated, "iteration": row.get("iteration")}
    return found


def _plain(node: Any) -> Any:
    if isinstance(node, dict):
        return {name: _plain(value) for name, value in node.items()}
    return [_plain(value) for value in node] if isinstance(node, list | tuple) else node
