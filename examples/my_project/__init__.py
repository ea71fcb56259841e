"""A project of one's own on QueryPose: importing it registers its parts, as importing a detectron2 project does."""

from my_project import (
    add_noise,
    arrows,
    dense_model,
    gaussian_window,
    limb_length_loss,
    pck,
    top_down_model,
    weight_norm_hook,
)

__all__ = [
    "add_noise",
    "arrows",
    "dense_model",
    "gaussian_window",
    "limb_length_loss",
    "pck",
    "top_down_model",
    "weight_norm_hook",
]
