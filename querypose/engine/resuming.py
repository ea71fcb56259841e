"""What a run is to go on from, checked before any of it is used: kind of file, config, parameters, optimizer."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from querypose.config import KEYS, ConfigError, flatten
from querypose.d2 import CfgNode, CheckpointError

_logger = logging.getLogger(__name__)

# Buffers that follow from the config: a checkpoint without them is complete.
_CONFIG_BUFFERS = {"pixel_mean", "pixel_std"}
# What state of a wrong type or shape makes torch and the hooks raise.
_WRONG_STATE = (RuntimeError, ValueError, LookupError, TypeError, AttributeError, AssertionError, ArithmeticError)


def recorded_config(cfg: CfgNode) -> dict[str, Any]:
    """Every key by its dotted name: what a checkpoint keeps of the config."""
    return {name: _as_yaml(value) for name, value in flatten(cfg)}


def changed_keys(recorded: Mapping[str, Any], cfg: CfgNode) -> dict[str, tuple[Any, Any]]:
    """The keys whose values differ between a checkpoint and a config, with both values.

    A key that one of them does not know, since another version of the project wrote the checkpoint, is left out.
    """
    present = recorded_config(cfg)
    return {
        name: (recorded[name], value) for name, value in present.items() if name in recorded and recorded[name] != value
    }


def require_same_fixed_keys(changed: Mapping[str, tuple[Any, Any]], path: str) -> None:
    """Refuses changes that no run can go on with: `Key.is_fixed`.

    Raises:
        ConfigError: names each of those keys with both values.
    """
    refused = {name: values for name, values in changed.items() if name in KEYS and KEYS[name].is_fixed}
    if refused:
        raise ConfigError(
            f"--resume: the run of {path} began with other values of {_changes(refused)}. These keys cannot change "
            "while a run goes on. Restore them; or, to start another run, leave out --resume and choose another "
            "OUTPUT_DIR (MODEL.WEIGHTS can name this checkpoint)."
        )


def check_resumable(
    content: Mapping[str, Any], path: str, *, cfg: CfgNode, model: nn.Module, optimizer: torch.optim.Optimizer
) -> None:
    """Refuses a checkpoint that a run of this config cannot go on from; says which changed keys it obeys.

    Args:
        content: of the checkpoint, as it was read.
        path: of its file, for the message.
        cfg: of the run that is to go on.
        model: of that run, not wrapped.
        optimizer: of that run.

    Raises:
        CheckpointError: the file has no state of a training, or that of another model.
        ConfigError: a key that must stay has another value.
    """
    trainer = content.get("trainer")
    step = trainer.get("_trainer") if isinstance(trainer, Mapping) else None
    if not isinstance(step, Mapping) or "optimizer" not in step or not isinstance(content.get("model"), Mapping):
        raise CheckpointError(
            f"{path} holds weights alone, without optimizer and schedule, so that no training can go on from it. Write "
            "the name of another checkpoint into last_checkpoint; or, to begin a training with these weights, leave "
            "out --resume, choose another OUTPUT_DIR and name the file in MODEL.WEIGHTS."
        )
    recorded = content["run"].get("config", {}) if "run" in content else {}
    changed = changed_keys(recorded, cfg)
    require_same_fixed_keys(changed, path)
    problems = _model_problems(content["model"], model.state_dict())
    names = optimized_names(model, optimizer)
    problems = problems or _optimizer_problems(step, names, optimizer)
    if problems:
        since = f" Changed since then: {_changes(changed)}." if changed else ""
        raise CheckpointError(
            f"{path} has the state of another model than the config describes: {_some(problems)}.{since} Restore the "
            "config of the run (config.yaml, log.txt), or leave out --resume and choose another OUTPUT_DIR."
        )
    if changed:
        _logger.info(f"Changed since the checkpoint, and obeyed from now on: {_changes(changed)}.")


@contextlib.contextmanager
def restoring(path: str) -> Iterator[None]:
    """Within the context, an error over the content of a checkpoint becomes a `CheckpointError` that names the file."""
    try:
        yield
    except (ConfigError, CheckpointError):
        raise
    except _WRONG_STATE as error:
        raise CheckpointError(
            f"{path} cannot be resumed, because its content is not what a training saves ({type(error).__name__}: "
            f"{next(iter(str(error).splitlines()), '')}). Write the name of another checkpoint into last_checkpoint."
        ) from error


def optimized_names(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[str]:
    """The names of an optimizer's parameters, in the order in which its state numbers them."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    return [names[parameter] for group in optimizer.param_groups for parameter in group["params"]]


def load_optimizer_state(optimizer: torch.optim.Optimizer, names: Sequence[str], step: Mapping[str, Any]) -> None:
    """Gives every parameter the state that it had, by its name; groups, rates and decays stay those of the config.

    Args:
        optimizer: the receiver.
        names: of its parameters, in order.
        step: state of the training step: "optimizer", and "parameters" with the names in the order of then.
    """
    saved = _state_by_name(step, names)
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state = {
        number: {key: _with_layout_of(parameters[number], value) for key, value in saved[name].items()}
        for number, name in enumerate(names)
        if name in saved
    }
    numbers = iter(range(len(names)))
    groups = [{**group, "params": [next(numbers) for _ in group["params"]]} for group in optimizer.param_groups]
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def _with_layout_of(parameter: Tensor, value: Any) -> Any:
    """`value` with the strides of its parameter, which MODEL.CHANNELS_LAST may have changed.

    The fused AdamW of the CPU reads both in the order of memory, whatever their strides are.
    """
    if not isinstance(value, Tensor) or value.shape != parameter.shape or value.stride() == parameter.stride():
        return value
    return torch.empty_like(parameter, dtype=value.dtype, device=value.device).copy_(value)


def _state_by_name(step: Mapping[str, Any], names: Sequence[str]) -> dict[str, Mapping[str, Any]]:
    # Before names were saved, the order was that of an optimizer of the same config.
    saved_names = step.get("parameters", names)
    return {saved_names[number]: state for number, state in step["optimizer"]["state"].items()}


def _model_problems(saved: Mapping[str, Tensor], present: Mapping[str, Tensor]) -> list[str]:
    problems = [f"it has no {name}" for name in present if name not in saved and name not in _CONFIG_BUFFERS]
    problems += [f"{name} is not in the model" for name in saved if name not in present]
    for name, tensor in present.items():
        other = saved.get(name, tensor)
        if not isinstance(other, Tensor):
            problems.append(f"{name} is no tensor")
        elif other.shape != tensor.shape:
            problems.append(f"{name} is {list(other.shape)} there and {list(tensor.shape)} here")
        elif other.dtype != tensor.dtype:
            problems.append(f"{name} is {other.dtype} there and {tensor.dtype} here")
    return problems


def _optimizer_problems(step: Mapping[str, Any], names: Sequence[str], optimizer: torch.optim.Optimizer) -> list[str]:
    """What would not fit; the fused kernels of AdamW read beyond the end of a state that is too small."""
    sizes = [len(group["params"]) for group in optimizer.param_groups]
    if "parameters" not in step and [len(group["params"]) for group in step["optimizer"]["param_groups"]] != sizes:
        return ["its optimizer has other parameter groups"]
    saved_names = step.get("parameters", names)
    problems = [f"{name} was trained, and is not now" for name in saved_names if name not in names]
    problems += [f"{name} was not trained, and is now" for name in names if name not in saved_names]
    # A sharded optimizer has one of its own for the parameters of this process.
    if problems or not isinstance(getattr(optimizer, "optim", optimizer), torch.optim.Adam | torch.optim.AdamW):
        return problems
    parameters = dict(zip(names, (p for group in optimizer.param_groups for p in group["params"]), strict=True))
    for name, state in _state_by_name(step, names).items():
        shapes = {"step": torch.Size(), "exp_avg": parameters[name].shape, "exp_avg_sq": parameters[name].shape}
        problems += [
            f"the optimizer's {key} of {name} is not a float tensor of shape {list(shape)}"
            for key, shape in shapes.items()
            if not isinstance(state[key], Tensor) or state[key].shape != shape or not state[key].is_floating_point()
        ]
    return problems


def _changes(changed: Mapping[str, tuple[Any, Any]]) -> str:
    return "; ".join(f"{name} (was {before!r}, is {now!r})" for name, (before, now) in changed.items())


def _some(problems: Sequence[str], count: int = 3) -> str:
    return "; ".join(problems[:count]) + (f"; … ({len(problems)} in all)" if len(problems) > count else "")


def _as_yaml(value: Any) -> Any:
    """`value` with lists for tuples, which YAML does not know."""
    if isinstance(value, list | tuple):
        return [_as_yaml(element) for element in value]
    return {key: _as_yaml(element) for key, element in value.items()} if isinstance(value, dict) else value
