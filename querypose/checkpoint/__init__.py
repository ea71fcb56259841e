"""Other people's weights, turned into this project's."""

from querypose.checkpoint.backbones import convert_pose_hrnet, convert_swin
from querypose.checkpoint.conversion import KINDS, convert_state_dict, load_state_dict_file, save_model
from querypose.checkpoint.poet_official import convert_poet_official
from querypose.checkpoint.querypose_official import convert_querypose_official
from querypose.checkpoint.sharpose_official import convert_sharpose_official

__all__ = [
    "KINDS",
    "convert_poet_official",
    "convert_pose_hrnet",
    "convert_querypose_official",
    "convert_sharpose_official",
    "convert_state_dict",
    "convert_swin",
    "load_state_dict_file",
    "save_model",
]
