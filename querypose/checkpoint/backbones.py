"""Names of backbone weights: detectron2's ResNet, pose-HRNet and the original Swin Transformer, and ours.

Ours are those of the libraries that the backbones come from: timm's ResNet and HRNet (`bottom_up.model.…`), and
torchvision's Swin (`bottom_up.features.…`). They compute the same from the same weights; docs/deviations.md says where
not.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from querypose.checkpoint.renaming import Rule, StateDict, rename_entries

BOTTOM_UP = "backbone.bottom_up."
HRNET_MODULES = r"(conv[12]|bn[12]|layer1|transition[123]|stage[234])\.(.+)"

# fmt: off
RESNET_RULES: tuple[Rule, ...] = (
    Rule(r"stem\.conv1\.weight", r"model.conv1.weight"),
    Rule(r"stem\.conv1\.norm\.(.+)", r"model.bn1.\1"),
    *(
        rule
        for layer in range(1, 5)
        for rule in (
            Rule(rf"res{layer + 1}\.(\d+)\.conv(\d)\.weight", rf"model.layer{layer}.\1.conv\2.weight"),
            Rule(rf"res{layer + 1}\.(\d+)\.conv(\d)\.norm\.(.+)", rf"model.layer{layer}.\1.bn\2.\3"),
            Rule(rf"res{layer + 1}\.(\d+)\.shortcut\.weight", rf"model.layer{layer}.\1.downsample.0.weight"),
            Rule(rf"res{layer + 1}\.(\d+)\.shortcut\.norm\.(.+)", rf"model.layer{layer}.\1.downsample.1.\2"),
        )
    ),
)

HRNET_RULES: tuple[Rule, ...] = (Rule(HRNET_MODULES, r"model.\1.\2"),)

SWIN_RULES: tuple[Rule, ...] = (
    Rule(r"patch_embed\.proj\.(.+)", r"features.0.0.\1"),
    Rule(r"patch_embed\.norm\.(.+)", r"features.0.2.\1"),
    *(
        rule
        for layer in range(4)
        for rule in (
            Rule(rf"layers\.{layer}\.blocks\.(\d+)\.(norm[12]|attn)\.(.+)", rf"features.{2 * layer + 1}.\1.\2.\3"),
            Rule(rf"layers\.{layer}\.blocks\.(\d+)\.mlp\.fc1\.(.+)", rf"features.{2 * layer + 1}.\1.mlp.0.\2"),
            Rule(rf"layers\.{layer}\.blocks\.(\d+)\.mlp\.fc2\.(.+)", rf"features.{2 * layer + 1}.\1.mlp.3.\2"),
            Rule(rf"layers\.{layer}\.downsample\.(.+)", rf"features.{2 * layer + 2}.\1"),
        )
    ),
    Rule(r"norm([0-3])\.(.+)", r"norm\1.\2"),
)

PYRAMID_RULES: tuple[Rule, ...] = (
    # detectron2's FPN, and the authors' HRFPN and HRFPN_v1; named alike here.
    Rule(r"backbone\.(fpn_lateral[2-5]|fpn_output[2-5])\.(weight|bias)", r"backbone.\1.\2"),
    Rule(r"backbone\.(reduction_conv\.0)\.(weight|bias)", r"backbone.\1.\2"),
    Rule(r"backbone\.(fpn_conv\.[0-3]|lateral_conv\.[1-3])\.(weight|bias)", r"backbone.\1.\2"),
)

BACKBONE_DEAD: tuple[str, ...] = (
    # A fifth level that is computed and dropped (HRFPN_v1) or not computed (HRFPN); a lateral convolution of the
    # finest branch, which the reduction has already.
    r"backbone\.fpn_conv\.4\.(weight|bias)",
    r"backbone\.lateral_conv\.0\.weight",
)

POSE_HRNET_DEAD: tuple[str, ...] = (
    # The heat-map convolution.
    r"final_layer\.(weight|bias)",
)
POSE_HRNET_ABSENT = r"model\.stage4\.2\.fuse_layers\.[123]\..+"
"""Of our HRNet but not of pose-HRNet, whose last module fuses into the finest branch alone: stays initialized."""

SWIN_DEAD: tuple[str, ...] = (
    # The classifier with its norm; and masks, which follow from the size of the input.
    r"head\.(weight|bias)",
    r"norm\.(weight|bias)",
    r"layers\.\d+\.blocks\.\d+\.attn_mask",
)
SWIN_ABSENT = r"norm[0-3]\.(weight|bias)"
"""Of our Swin but not of an ImageNet classifier: the norms of the four outputs stay initialized."""
# fmt: on


BACKBONE_RULES: tuple[Rule, ...] = PYRAMID_RULES + tuple(
    Rule(BOTTOM_UP.replace(".", r"\.") + pattern, BOTTOM_UP + replacement)
    for pattern, replacement in RESNET_RULES + HRNET_RULES + SWIN_RULES
)


def convert_pose_hrnet(state_dict: Mapping[str, Tensor]) -> StateDict:
    """Weights of a pose-HRNet (`pose_hrnet_w32_384x288.pth`, …) as those of our backbone, `backbone.bottom_up.…`.

    Raises:
        CheckpointError: an entry is not of a pose-HRNet.
    """
    return rename_entries(state_dict, tuple(Rule(p, BOTTOM_UP + to) for p, to in HRNET_RULES), POSE_HRNET_DEAD)


def convert_swin(state_dict: Mapping[str, Tensor]) -> StateDict:
    """ImageNet weights of the original Swin Transformer as those of our backbone, `backbone.bottom_up.…`.

    Raises:
        CheckpointError: an entry is not of a Swin Transformer.
    """
    rules = tuple(Rule(pattern, BOTTOM_UP + replacement) for pattern, replacement in SWIN_RULES)
    return flatten_position_indices(rename_entries(state_dict, rules, SWIN_DEAD))


def flatten_position_indices(state_dict: Mapping[str, Tensor]) -> StateDict:
    """Swin's tables of relative positions (tokens, tokens) as torchvision has them, flat."""
    return {
        name: value.flatten() if name.endswith(".relative_position_index") else value
        for name, value in state_dict.items()
    }
