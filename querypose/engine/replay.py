"""Runs a dumped iteration again, in one process, and finds the module in which the first infinity or NaN appears."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from querypose.config import is_integer, load_config
from querypose.config.merging import read_yaml
from querypose.d2 import CfgNode, CheckpointError, EventStorage, Instances, check_weights
from querypose.data import register_custom_datasets
from querypose.engine.dumps import read_dumps, set_random_state
from querypose.engine.trainer import PoseTrainer
from querypose.paths import short


class ProcessReplay(NamedTuple):
    """One process of the iteration.

    Attributes:
        images: `image_id` and `file_name` of each of its images.
        recorded: its losses by name, in the run.
        replayed: the same, now.
        first_output: the module whose output is the first that is not finite, and its input; None if all are finite.
        first_gradient: the same of the gradient of an output.
    """

    images: list[dict[str, Any]]
    recorded: dict[str, float]
    replayed: dict[str, float]
    first_output: str | None
    first_gradient: str | None


class Replay(NamedTuple):
    """An iteration that was run again, with the norm of each parameter's gradient before clipping, then and now."""

    iteration: int
    processes: list[ProcessReplay]
    recorded_norms: dict[str, float]
    replayed_norms: dict[str, float]

    @property
    def is_reproduced(self) -> bool:
        """Whether what was not finite then, loss by loss and gradient by gradient, is not finite now, and no other."""
        pairs = [(self.recorded_norms, self.replayed_norms)]
        pairs += [(process.recorded, process.replayed) for process in self.processes]
        return all(_non_finite(recorded) == _non_finite(replayed) for recorded, replayed in pairs)


def replay(folder: str | Path, device: str = "auto", imports: Sequence[str] = ()) -> Replay:
    """Runs the iteration of a dump again: same weights, batches, random numbers, precision and normalization.

    Synchronized BatchNorm is the exception: here every process has the statistics of its own batch.

    Args:
        folder: of the dump, `OUTPUT_DIR/dumps/iteration_N`.
        device: as MODEL.DEVICE.
        imports: the modules of IMPORTS of its config, as of --import. A dump alone imports nothing: it may come from
            elsewhere, and a module runs its code.

    Raises:
        CheckpointError: the dump is not whole, or needs modules that are not among `imports`.
        ConfigError: its config cannot be used here.
    """
    dumps = read_dumps(folder)
    if "model" not in dumps[0]:
        raise CheckpointError(f"{folder}/rank_0.pth has no weights. Copy the file again from the run's folder.")
    cfg = _config(dumps[0]["config"], device, imports)
    model = PoseTrainer.build_model(cfg)
    _load_weights(model, dumps[0]["model"], f"{folder}/rank_0.pth")
    model.progress = dumps[0].get("progress", 1.0)
    device_type = torch.device(cfg.MODEL.DEVICE).type
    step = PoseTrainer.build_train_step(cfg, model, (), PoseTrainer.build_optimizer(cfg, model))
    for dump in dumps:
        _require_batch(dump["batch"], step.pose_model.example_batch(num_instances=1)[0], f"{folder}")
    # This process stands for all: the sums over their batches, divided by their number.
    sums = step.pose_model.global_normalizers(*(dump["batch"] for dump in dumps))
    normalizers = {name: value / len(dumps) for name, value in sums.items()}
    gradients = [torch.zeros_like(parameter) for parameter in model.parameters()]
    processes = []
    for dump in dumps:
        set_random_state(dump["random_state"], torch.device(cfg.MODEL.DEVICE))
        step.optimizer.zero_grad()
        step.grad_scaler = torch.amp.GradScaler(
            device_type, init_scale=dump["loss_scale"], enabled=step.grad_scaler.is_enabled()
        )
        with EventStorage(dump["iteration"]), _first_non_finite(model) as first:
            names, values = step.accumulate_gradients(dump["batch"], normalizers)
        step.grad_scaler.unscale_(step.optimizer)
        for total, parameter in zip(gradients, model.parameters(), strict=True):
            if parameter.grad is not None:
                total += parameter.grad / len(dumps)
        losses = dict(zip(names, values.tolist(), strict=True))
        processes.append(
            ProcessReplay(dump["images"], dump["losses"], losses, first.get("output"), first.get("gradient"))
        )
    norms = {
        name: float(gradient.norm(cfg.SOLVER.CLIP_GRADIENTS.NORM_TYPE))
        for (name, _), gradient in zip(model.named_parameters(), gradients, strict=True)
        if name in dumps[0]["gradient_norms"]
    }
    return Replay(dumps[0]["iteration"], processes, dumps[0]["gradient_norms"], norms)


def format_replay(result: Replay) -> str:
    """The report that tools/replay.py prints."""
    lines = [f"Iteration {result.iteration}: values of the run, and values of this replay"]
    for rank, process in enumerate(result.processes):
        images = [f"{image.get('file_name', 'image')} (id {image.get('image_id', '?')})" for image in process.images]
        lines.append(f"process {rank}: {', '.join(images)}")
        for name, recorded in process.recorded.items():
            lines.append(f"  {name:24} {recorded:>14.6g} {process.replayed.get(name, math.nan):>14.6g}")
        lines.append(f"  first output that is not finite:   {process.first_output or 'none'}")
        lines.append(f"  first gradient that is not finite: {process.first_gradient or 'none'}")
    lines.append("norm of the gradient, by part of the model:")
    replayed_norms = _by_part(result.replayed_norms)
    for part, recorded in _by_part(result.recorded_norms).items():
        lines.append(f"  {part:40} {recorded:>14.6g} {replayed_norms[part]:>14.6g}")
    names = sorted(_non_finite(result.replayed_norms))
    shown = ", ".join(names[:5]) + (", …" if len(names) > 5 else "")
    count = f"{len(names)} of {len(result.replayed_norms)}"
    lines.append(f"parameters whose gradient is not finite: {count} {shown}".rstrip())
    lines.append(
        "Reproduced." if result.is_reproduced else "NOT reproduced: other losses or gradients are not finite now."
    )
    return "\n".join(lines)


def _non_finite(scalars: Mapping[str, float]) -> set[str]:
    return {name for name, value in scalars.items() if not math.isfinite(value)}


def _by_part(norms: Mapping[str, float], depth: int = 3) -> dict[str, float]:
    """The Euclidean norm of each part of the model, named by the first few components of its parameters' names."""
    squares: dict[str, float] = {}
    for name, norm in norms.items():
        part = ".".join(name.split(".")[:-1][:depth]) or name
        squares[part] = squares.get(part, 0.0) + norm**2
    return {part: math.sqrt(square) if math.isfinite(square) else square for part, square in squares.items()}


def _load_weights(model: nn.Module, weights: Any, source: str) -> None:
    """Raises CheckpointError where they are not those of the model; infinite ones may be why there is a dump."""
    check_weights(weights, model.state_dict(), source, allow_non_finite=True)
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise CheckpointError(f"{source} has weights of another model than its config's: {error}") from error


def _require_batch(batch: Sequence[Mapping[str, Any]], example: Mapping[str, Any], source: str) -> None:
    """Raises CheckpointError where a sample is not what the model takes, as a sample of noise shows it."""
    if not batch:
        raise CheckpointError(f"{source}: the dump of a process has no samples.")
    for index, sample in enumerate(batch):
        for name, needed in _tensors_by_name(example).items():
            found = _tensors_by_name(sample).get(name)
            is_like = (
                found is not None
                and found.layout is torch.strided
                and found.dim() == needed.dim()
                and found.is_complex() == needed.is_complex()
                and (name == "image" or found.dtype == needed.dtype)
                and (found.shape[0] == needed.shape[0] if name == "image" else found.shape[1:] == needed.shape[1:])
                and (name != "image" or found.numel() > 0)
            )
            if not is_like:
                what = "missing" if found is None else f"a tensor {found.dtype} {tuple(found.shape)}"
                raise CheckpointError(f"{source}: {name!r} of sample {index} is {what}; the dump is damaged.")
        for name in ("height", "width"):
            if name in example and not is_integer(sample.get(name)):
                raise CheckpointError(f"{source}: {name!r} of sample {index} is {short(sample.get(name))}.")


def _tensors_by_name(sample: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors of a sample and of the instances in it."""
    instances = sample.get("instances")
    fields = instances.get_fields() if isinstance(instances, Instances) else {}
    values = {**sample, **fields}
    plain = {name: getattr(value, "tensor", value) for name, value in values.items()}
    return {name: value for name, value in plain.items() if isinstance(value, Tensor)}


def _config(text: str, device: str, imports: Sequence[str]) -> CfgNode:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.yaml"
        path.write_text(text, encoding="utf-8")
        own = read_yaml(path).get("IMPORTS", [])
        if missing := [name for name in own if name not in imports]:
            options = " ".join(f"--import {name}" for name in missing)
            raise CheckpointError(f"The dump's config imports modules. If you trust them, name them: {options}")
        # The dump has the weights: no pretrained ones are looked for.
        cfg = load_config(path, ["MODEL.DEVICE", device, "MODEL.WEIGHTS", "", "MODEL.BACKBONE.PRETRAINED", "False"])
    register_custom_datasets(cfg)
    return cfg


@contextlib.contextmanager
def _first_non_finite(model: nn.Module) -> Iterator[dict[str, str]]:
    """Within the context, notes the first module whose `output`, or the `gradient` of whose output, is not finite.

    A module's forward hook runs after those of its parts, so that the innermost module is noted.
    """
    first: dict[str, str] = {}

    def check(label: str, module: nn.Module, inputs: Any, output: Any) -> None:
        tensors = list(_tensors(output))
        if not all(map(_is_finite, tensors)):
            fed = "finite" if all(map(_is_finite, _tensors(inputs))) else "not finite"
            first.setdefault("output", f"{label}, whose input is {fed}")
        for tensor in tensors:
            if tensor.requires_grad:
                tensor.register_hook(functools.partial(check_gradient, label))

    def check_gradient(label: str, gradient: Tensor) -> None:
        if not _is_finite(gradient):
            first.setdefault("gradient", f"{label}, at its output")

    handles = []
    for name, module in model.named_modules():
        label = f"{name or 'the model'} ({type(module).__name__})"
        handles.append(module.register_forward_hook(functools.partial(check, label)))
    try:
        yield first
    finally:
        for handle in handles:
            handle.remove()


def _is_finite(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() or bool(tensor.detach().isfinite().all())


def _tensors(value: Any) -> Iterator[Tensor]:
    """Every tensor in nested containers and dataclasses."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for entry in value.values():
            yield from _tensors(entry)
    elif isinstance(value, Sequence) and not isinstance(value, str | bytes):
        for entry in value:
            yield from _tensors(entry)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            yield from _tensors(getattr(value, field.name))
