"""Dumps: all that an iteration started from and what it gave, to run it again. One folder each, a file a process."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from querypose import d2
from querypose.d2 import Boxes, CheckpointError, Instances, Keypoints, atomic_write, comm, read_checkpoint
from querypose.data.transforms import GeometricTransform
from querypose.paths import short

# How structures that are no tensors are kept: `weights_only` loads no classes.
_WRAPPED: Mapping[str, type[Any]] = {"Boxes": Boxes, "Keypoints": Keypoints}


class DumpWriter:
    """Writes dumps into a folder, each as `iteration_N/rank_R.pth`; only that of the first process has the weights.

    Args:
        folder: OUTPUT_DIR/dumps.
        config: the run's config, as YAML.
        max_dumps: of a run; further ones are not written.
    """

    def __init__(self, folder: str | Path, config: str, max_dumps: int) -> None:
        self._folder = Path(folder)
        self._config = config
        self._max_dumps = max_dumps
        self._num_dumps = 0

    def write(
        self, content: Mapping[str, Any], batch: Sequence[Mapping[str, Any]], weights: Mapping[str, Tensor]
    ) -> Path | None:
        """Writes the file of this process; a dump that cannot be written is a message in the log, no error.

        Args:
            content: `iteration`, `progress`, `losses`, `gradient_norms`, `random_state`, `loss_scale`, in plain values
                and tensors.
            batch: of this process.
            weights: the model's state dict before the iteration.

        Returns:
            the folder, or None.
        """
        if self._num_dumps >= self._max_dumps:
            return None
        self._num_dumps += 1
        folder = self._folder / f"iteration_{content['iteration']:07d}"
        dump = {
            **content,
            "rank": comm.get_rank(),
            "world_size": comm.get_world_size(),
            "versions": {"engine": f"{d2.ENGINE} {d2.ENGINE_VERSION}", "torch": str(torch.__version__)},
            "config": self._config,
            "images": [{key: item[key] for key in ("image_id", "file_name") if key in item} for item in batch],
            "batch": [{key: _to_plain(value) for key, value in item.items()} for item in batch],
            **({"model": dict(weights)} if comm.is_main_process() else {}),
        }
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with atomic_write(folder / f"rank_{comm.get_rank()}.pth") as stream:
                torch.save(dump, stream)
        except OSError as error:
            logging.getLogger(__name__).error(
                f"Iteration {content['iteration']} could not be dumped into {folder}: {error}"
            )
            return None
        return folder


def read_dumps(folder: str | Path) -> list[dict[str, Any]]:
    """The dumps of all processes of an iteration, in order of rank, their batches as the model takes them.

    Raises:
        CheckpointError: there is none, one is missing or damaged, or one is not a dump.
    """
    paths = list(Path(folder).glob("rank_*.pth"))
    if not paths:
        raise CheckpointError(f"There is no dump in {str(folder)!r}. Name a folder such as output/dumps/iteration_N.")
    dumps = []
    for path in paths:
        dump = {"gradient_norms": {}, **read_checkpoint(path)}
        for name, is_allowed in _FIELDS.items():
            if name not in dump or not is_allowed(dump[name]):
                found = short(dump[name]) if name in dump else "missing"
                raise CheckpointError(f"{path} is not a dump of an iteration: its {name!r} is {found}.")
        try:
            dump["batch"] = [{key: _from_plain(value) for key, value in item.items()} for item in dump["batch"]]
        except (AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
            raise CheckpointError(f"{path} is not a dump of an iteration: its 'batch' is damaged ({error}).") from error
        dumps.append(dump)
    dumps.sort(key=lambda dump: dump["rank"])
    ranks = [dump["rank"] for dump in dumps]
    if ranks != list(range(dumps[0]["world_size"])):
        raise CheckpointError(
            f"{folder} has only the dumps of processes {ranks} of {dumps[0]['world_size']}. Copy those of the other "
            "machines into this folder."
        )
    return dumps


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**31


def _are_numbers(value: Any) -> bool:
    return isinstance(value, dict) and all(
        isinstance(name, str) and isinstance(number, float) for name, number in value.items()
    )


def _are_mappings(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(item, dict) and all(isinstance(key, str) for key in item) for item in value
    )


def _is_random_state(value: Any) -> bool:
    generator = torch.Generator()
    if not isinstance(value, dict) or not isinstance(value.get("cpu"), Tensor):
        return False
    try:
        generator.set_state(value["cpu"])
    except (RuntimeError, TypeError):
        return False
    return all(isinstance(state, Tensor) and state.dtype == torch.uint8 for state in value.values())


# What the file of a process must have, and whether a value is that.
_FIELDS: Mapping[str, Callable[[Any], bool]] = {
    "iteration": _is_count,
    "rank": _is_count,
    "world_size": _is_count,
    "config": lambda value: isinstance(value, str),
    "images": _are_mappings,
    "batch": _are_mappings,
    "losses": _are_numbers,
    "gradient_norms": _are_numbers,
    "random_state": _is_random_state,
    "loss_scale": lambda value: isinstance(value, int | float) and 0 < value < float("inf"),
}


def random_state(device: torch.device) -> dict[str, Tensor]:
    """The states of torch's generators that a forward pass draws from; read without waiting for the device."""
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def set_random_state(states: Mapping[str, Tensor], device: torch.device) -> None:
    """Takes what `random_state` gave, as far as this device has it."""
    torch.set_rng_state(states["cpu"])
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)


def _to_plain(value: Any) -> Any:
    if isinstance(value, Instances):
        fields = {name: _to_plain(field) for name, field in value.get_fields().items()}
        return {"Instances": fields, "image_size": list(value.image_size)}
    for name, wrapper in _WRAPPED.items():
        if isinstance(value, wrapper):
            return {name: value.tensor}
    if isinstance(value, GeometricTransform):
        sizes = {"source_size": list(value.source_size), "output_size": list(value.output_size)}
        return {"matrix": torch.from_numpy(value.matrix), **sizes}
    if isinstance(value, list | tuple):
        return type(value)(map(_to_plain, value))
    # What is left, such as a path, concerns no model: its text is enough.
    return value if value is None or isinstance(value, Tensor | bool | int | float | str) else str(value)


def _from_plain(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    if "Instances" in value:
        instances = Instances(tuple(value["image_size"]))
        for name, field in value["Instances"].items():
            instances.set(name, _from_plain(field))
        return instances
    if "matrix" in value:
        return GeometricTransform(value["matrix"].numpy(), tuple(value["source_size"]), tuple(value["output_size"]))
    ((name, tensor),) = value.items()
    return _WRAPPED[name](tensor)
