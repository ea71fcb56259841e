"""Keys of the trainer's hooks and of the trackers."""

from __future__ import annotations

from querypose.config import Key, add_keys, list_of_names
from querypose.engine.hooks import HOOK_REGISTRY
from querypose.engine.trackers import check_trackers

# fmt: off
add_keys((
    Key("HOOKS", [], "hooks of your own, by their names in HOOK_REGISTRY", list_of_names(HOOK_REGISTRY)),
    Key("TRACKING.WANDB", "", "project of Weights & Biases that gets scalars, pictures and config; '' for none. "
        "WANDB_MODE=offline keeps them on this machine"),
    Key("TRACKING.MLFLOW", "", "experiment of MLflow that gets the same, in OUTPUT_DIR/mlruns or where "
        "MLFLOW_TRACKING_URI says; '' for none"),
), check_trackers)
# fmt: on
