"""fvcore's `Checkpointer`, which loads without running code and explains a checkpoint of another model."""

from __future__ import annotations

from typing import Any

from fvcore.common.checkpoint import Checkpointer
from torch import nn

from querypose.d2.builtin import comm
from querypose.d2.builtin.file_io import PathManager
from querypose.d2.errors import CheckpointError
from querypose.d2.files import read_checkpoint, refuse_pickle

# Buffers that follow from the config: a checkpoint without them is complete.
_CONFIG_BUFFERS = ("pixel_mean", "pixel_std")


class DetectionCheckpointer(Checkpointer):
    """Saves and loads a model, and anything else with `state_dict` and `load_state_dict`; only rank 0 writes.

    Deviates: detectron2 unpickles files of its model zoo, which can run any code, and converts their names, those of a
    path that ends in "?matching_heuristics=True" too. Here a file holds tensors and plain values under the model's own
    names, and one of which no weight fits the model is an error.
    """

    def __init__(
        self, model: nn.Module, save_dir: str = "", *, save_to_disk: bool | None = None, **checkpointables: Any
    ) -> None:
        """As detectron2's.

        Args:
            model: also one wrapped in DistributedDataParallel; its own names are saved either way.
            save_dir: folder of the checkpoints.
            save_to_disk: whether `save` writes; None: on rank 0.
            checkpointables: what else to save, by keyword.
        """
        if save_to_disk is None:
            save_to_disk = comm.is_main_process()
        super().__init__(model, save_dir, save_to_disk=save_to_disk, **checkpointables)
        self.path_manager = PathManager

    def _load_file(self, f: str) -> dict[str, Any]:
        refuse_pickle(f)
        loaded = read_checkpoint(f)
        return loaded if "model" in loaded else {"model": loaded}

    def _load_model(self, checkpoint: dict[str, Any]) -> Any:
        weights, names = checkpoint["model"], list(checkpoint["model"])
        incompatible = super()._load_model(checkpoint)  # takes out of `weights` what has another shape
        model_names = list(self.model.state_dict())
        if model_names and len(weights) == len(incompatible.unexpected_keys):
            raise CheckpointError(
                f"No weight in the checkpoint fits the model. The checkpoint has {_some(names)}; the model has "
                f"{_some(model_names)}. Take the config that the checkpoint was trained with."
            )
        wrong_shape = {name for name, _, _ in incompatible.incorrect_shapes}
        for name in list(incompatible.missing_keys):
            if name in _CONFIG_BUFFERS or name in wrong_shape:
                incompatible.missing_keys.remove(name)
        return incompatible


def _some(names: list[str], count: int = 3) -> str:
    shown = ", ".join(names[:count])
    return f"{shown}, … ({len(names)} keys)" if len(names) > count else shown or "no keys"
