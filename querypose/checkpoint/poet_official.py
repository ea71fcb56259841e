"""State dicts of the POET authors' code, turned into this project's: every entry is renamed, and none is lost."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from querypose.checkpoint.backbones import BOTTOM_UP
from querypose.checkpoint.renaming import Rule, StateDict, rename_entries

ENCODER = r"transformer\.encoder\.layers\.(\d+)\."
DECODER = r"transformer\.decoder\.layers\.(\d+)\."
OUR_ENCODER = r"pose_transformer.transformer.encoder_layers.\1."
OUR_DECODER = r"pose_transformer.transformer.decoder_layers.\1."

# fmt: off
TRANSFORMER_RULES: tuple[Rule, ...] = (
    Rule(r"input_proj\.(.+)", r"pose_transformer.projection.\1"),
    Rule(r"query_embed\.weight", r"pose_transformer.transformer.queries"),
    Rule(r"class_embed\.(.+)", r"pose_transformer.class_head.\1"),
    # Three linear layers; in ours ReLUs lie between.
    Rule(r"kpt_embed\.layers\.0\.(.+)", r"pose_transformer.pose_head.0.\1"),
    Rule(r"kpt_embed\.layers\.1\.(.+)", r"pose_transformer.pose_head.2.\1"),
    Rule(r"kpt_embed\.layers\.2\.(.+)", r"pose_transformer.pose_head.4.\1"),
    Rule(r"transformer\.decoder\.norm\.(.+)", r"pose_transformer.transformer.decoder_norm.\1"),
    # ---- encoder ------------------------------------------------------------------------------------------------
    Rule(ENCODER + r"self_attn\.(.+)", OUR_ENCODER + r"self_attention.attention.\2"),
    Rule(ENCODER + r"norm1\.(.+)", OUR_ENCODER + r"self_attention.norm.\2"),
    Rule(ENCODER + r"linear1\.(.+)", OUR_ENCODER + r"feed_forward.expand.\2"),
    Rule(ENCODER + r"linear2\.(.+)", OUR_ENCODER + r"feed_forward.reduce.\2"),
    Rule(ENCODER + r"norm2\.(.+)", OUR_ENCODER + r"feed_forward.norm.\2"),
    # ---- decoder ------------------------------------------------------------------------------------------------
    Rule(DECODER + r"self_attn\.(.+)", OUR_DECODER + r"self_attention.attention.\2"),
    Rule(DECODER + r"norm1\.(.+)", OUR_DECODER + r"self_attention.norm.\2"),
    Rule(DECODER + r"multihead_attn\.(.+)", OUR_DECODER + r"cross_attention.attention.\2"),
    Rule(DECODER + r"norm2\.(.+)", OUR_DECODER + r"cross_attention.norm.\2"),
    Rule(DECODER + r"linear1\.(.+)", OUR_DECODER + r"feed_forward.expand.\2"),
    Rule(DECODER + r"linear2\.(.+)", OUR_DECODER + r"feed_forward.reduce.\2"),
    Rule(DECODER + r"norm3\.(.+)", OUR_DECODER + r"feed_forward.norm.\2"),
)
# torchvision's ResNet, which timm's is named after.
BACKBONE_RULES: tuple[Rule, ...] = (Rule(r"backbone\.0\.body\.(.+)", BOTTOM_UP + r"model.\1"),)
# fmt: on


def convert_poet_official(state_dict: Mapping[str, Tensor]) -> StateDict:
    """Turns a state dict of the authors' code into ours, for POET on a ResNet without a pyramid, DC5 or not.

    Args:
        state_dict: the entries of their model. Values are neither copied nor changed; meta tensors do.

    Returns:
        the entries of this project's model.

    Raises:
        CheckpointError: an entry is not known.
    """
    return rename_entries(state_dict, TRANSFORMER_RULES + BACKBONE_RULES, dead=())
