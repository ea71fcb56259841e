"""An exponential moving average of a model's weights, and the choice of the weights that an evaluation uses.

A checkpoint of a run with SOLVER.EMA.ENABLED holds the trained weights under `model`, as always, and the average under
`ema`. Training goes on from the former; evaluation uses the latter where the config has SOLVER.EMA.ENABLED.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from querypose.config import ConfigError
from querypose.d2 import CheckpointError, check_weights
from querypose.engine.checkpointer import RunCheckpointer


class ExponentialMovingAverage:
    """Average of the trainable parameters and the floating-point buffers (BatchNorm statistics) of a model.

    Update n = 1, 2, … sets average = d average + (1 - d) weights with d = min(decay, n / (n + 9)): the ramp lets a
    short run forget its initialization.

    Args:
        model: whose weights are averaged; not wrapped in DistributedDataParallel.
        decay: share of the average that an update keeps once the ramp is over.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.num_updates = 0
        saved = model.state_dict().keys()
        # The model's own tensors, not copies, by their names in its state dict, each once.
        self._weights: dict[str, Tensor] = {
            **{name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad},
            **{name: buffer for name, buffer in model.named_buffers() if name in saved and buffer.is_floating_point()},
        }
        self._average = {name: weight.detach().clone() for name, weight in self._weights.items()}

    def decay_of_update(self, update: int) -> float:
        """Share of the average that the `update`-th update (1, 2, …) keeps."""
        return min(self.decay, update / (update + 9.0))

    @torch.no_grad()
    def update(self) -> None:
        self.num_updates += 1
        average_weights = get_ema_multi_avg_fn(self.decay_of_update(self.num_updates))
        average_weights(list(self._average.values()), list(self._weights.values()), None)

    @torch.no_grad()
    def reset(self) -> None:
        self.num_updates = 0
        for name, weight in self._weights.items():
            self._average[name].copy_(weight)

    @torch.no_grad()
    def copy_to_model(self) -> None:
        for name, weight in self._weights.items():
            weight.copy_(self._average[name])

    @contextlib.contextmanager
    def in_model(self) -> Iterator[None]:
        """Within the context the model has the averaged weights; afterwards its own again."""
        own = {name: weight.detach().clone() for name, weight in self._weights.items()}
        try:
            self.copy_to_model()
            yield
        finally:
            with torch.no_grad():
                for name, weight in self._weights.items():
                    weight.copy_(own[name])

    def state_dict(self) -> dict[str, Any]:
        """`num_updates`, and `weights`: name in the model's state dict -> average."""
        return {"num_updates": self.num_updates, "weights": dict(self._average)}

    @torch.no_grad()
    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restores what `state_dict` gave.

        Raises:
            CheckpointError: it belongs to another model: names keys that do not fit.
        """
        weights = _averaged_weights(state_dict, self._average)
        if missing := sorted(self._average.keys() - weights.keys()):
            raise CheckpointError(f"The averaged weights are those of another model: they have no {_some(missing)}.")
        for name, average in self._average.items():
            average.copy_(weights[name])
        self.num_updates = int(state_dict["num_updates"])


def _averaged_weights(state: Any, model_weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Those of an `ema` of a checkpoint, checked.

    Raises:
        CheckpointError: it is not what `ExponentialMovingAverage.state_dict` gives, or that of another model.
    """
    if not isinstance(state, Mapping) or not isinstance(state.get("num_updates"), int):
        raise CheckpointError("The averaged weights of the file ('ema') are damaged; set SOLVER.EMA.ENABLED False.")
    weights: Mapping[str, Tensor] = state.get("weights", {})
    check_weights(weights, model_weights, "The averaged weights")
    if unknown := sorted(weights.keys() - model_weights.keys()):
        raise CheckpointError(f"The averaged weights are those of another model: this one has no {_some(unknown)}.")
    for name, weight in weights.items():
        if weight.shape != model_weights[name].shape:
            raise CheckpointError(
                f"The averaged weights are those of another model: {name} is {list(weight.shape)} there "
                f"and {list(model_weights[name].shape)} here."
            )
    return weights


def _some(names: Sequence[str], count: int = 3) -> str:
    return ", ".join(names[:count]) + (f", … ({len(names)} in all)" if len(names) > count else "")


def require_weights(weights: str) -> None:
    """Refuses a MODEL.WEIGHTS that is not there; '' and addresses with a scheme pass.

    Raises:
        ConfigError: there is no such file.
    """
    if weights and "://" not in weights and not Path(weights).is_file():
        raise ConfigError(
            f"MODEL.WEIGHTS is {weights!r}; there is no such file. Correct the path; '' starts from random weights."
        )


class _ExactCheckpointer(RunCheckpointer):
    """Refuses weights that do not fit to the last entry: training may start from them, nothing evaluates them."""

    # Both engines call this method with what does not fit.
    def _log_incompatible_keys(self, incompatible: Any) -> None:
        shapes = [
            f"{name} {tuple(found)}, not {tuple(needed)}" for name, found, needed in incompatible.incorrect_shapes
        ]
        problems = (
            ("Missing in the file", incompatible.missing_keys),
            ("Of another shape", shapes),
            ("Not in the model", incompatible.unexpected_keys),
        )
        if found := [f"{what}: {_some(names)}." for what, names in problems if names]:
            raise CheckpointError(
                f"MODEL.WEIGHTS has the weights of another model than the config describes. {' '.join(found)} Use the "
                "config that the weights were trained with (config.yaml beside them): architecture, backbone and "
                "skeleton must be the same."
            )


def load_evaluation_weights(
    model: nn.Module,
    weights: str,
    *,
    use_average: bool,
    output_dir: str = "",
    resume: bool = False,
    random_weights: bool = False,
) -> None:
    """Loads the weights that an evaluation or a demo is to use.

    Args:
        model: the receiver.
        weights: MODEL.WEIGHTS.
        use_average: SOLVER.EMA.ENABLED: prefer the averaged weights, if the checkpoint has them.
        output_dir: OUTPUT_DIR, for `resume`.
        resume: load the last checkpoint of `output_dir`, if there is one, in place of `weights`.
        random_weights: where both are missing, leave the model as it is initialized.

    Raises:
        ConfigError: there is no such file, or no weights at all.
        CheckpointError: the file cannot be read, or its weights are of another model: of another architecture, another
            backbone, another skeleton.
    """
    checkpointer = _ExactCheckpointer(model, output_dir)
    if resume:
        weights = checkpointer.get_checkpoint_file() or weights
        if not weights:
            raise ConfigError(
                f"--eval-only --resume: OUTPUT_DIR ({output_dir}) has no checkpoint, and MODEL.WEIGHTS is ''. Name the "
                "weights to evaluate in MODEL.WEIGHTS."
            )
    if not weights and not random_weights:
        raise ConfigError(
            "MODEL.WEIGHTS is '': the model would have random weights, and its metrics would mean nothing. Name a "
            "checkpoint; or say --random-weights."
        )
    require_weights(weights)
    state = checkpointer.load(weights).get("ema")
    if not use_average or not weights:
        return
    logger = logging.getLogger(__name__)
    if state is None:
        logger.warning(f"SOLVER.EMA.ENABLED is True, but {weights} has no averaged weights. Using its trained weights.")
        return
    model_weights = model.state_dict()
    averaged = _averaged_weights(state, model_weights)
    with torch.no_grad():
        for name, weight in averaged.items():
            model_weights[name].copy_(weight)
    logger.info(f"Using the averaged weights of {weights} ({state['num_updates']} iterations).")
