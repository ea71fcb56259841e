"""State dicts of the QueryPose authors' code, turned into this project's.

Every entry of theirs is renamed, merged with others into one of ours, or stands in the list of entries that their code
never reads; anything else is an error, and so is an entry that is missing from a merge. That what comes out also is
what the model of a config wants is checked by loading it strictly, which `tools/convert_checkpoint.py` does.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from querypose.checkpoint.backbones import BACKBONE_DEAD, BACKBONE_RULES, flatten_position_indices
from querypose.checkpoint.renaming import Rule, StateDict, rename_entries
from querypose.d2 import CheckpointError

BOX_STAGE = r"head\.head_series\.(\d+)\."
KEYPOINT_STAGE = r"head\.pose_head_series\.(\d+)\."

# fmt: off
DECODER_RULES: tuple[Rule, ...] = (
    # ---- queries and flow ---------------------------------------------------------------------------------------
    Rule(r"init_proposal_boxes\.weight", "decoder.proposal_boxes"),
    Rule(r"init_proposal_features\.weight", "decoder.instance_queries"),
    Rule(r"part_query\.weight", "decoder.part_queries"),
    Rule(r"criterion\.flow\.flow\.s\.(.+)", r"criterion.flow.scale_nets.\1"),
    Rule(r"criterion\.flow\.flow\.t\.(.+)", r"criterion.flow.shift_nets.\1"),
    # ---- box decoder --------------------------------------------------------------------------------------------
    Rule(BOX_STAGE + r"self_attn\.(.+)", r"decoder.box_stages.\1.self_attention.attention.\2"),
    Rule(BOX_STAGE + r"norm1\.(.+)", r"decoder.box_stages.\1.self_attention.norm.\2"),
    Rule(BOX_STAGE + r"inst_interact\.dynamic_layer\.(.+)", r"decoder.box_stages.\1.interaction.generator.\2"),
    Rule(BOX_STAGE + r"inst_interact\.norm1\.(.+)", r"decoder.box_stages.\1.interaction.norm_inner.\2"),
    Rule(BOX_STAGE + r"inst_interact\.norm2\.(.+)", r"decoder.box_stages.\1.interaction.norm_outer.\2"),
    Rule(BOX_STAGE + r"inst_interact\.out_layer\.(.+)", r"decoder.box_stages.\1.interaction.out.\2"),
    Rule(BOX_STAGE + r"inst_interact\.norm3\.(.+)", r"decoder.box_stages.\1.interaction.norm_out.\2"),
    Rule(BOX_STAGE + r"norm2\.(.+)", r"decoder.box_stages.\1.norm.\2"),
    Rule(BOX_STAGE + r"linear1\.(.+)", r"decoder.box_stages.\1.feed_forward.expand.\2"),
    Rule(BOX_STAGE + r"linear2\.(.+)", r"decoder.box_stages.\1.feed_forward.reduce.\2"),
    Rule(BOX_STAGE + r"norm3\.(.+)", r"decoder.box_stages.\1.feed_forward.norm.\2"),
    Rule(BOX_STAGE + r"cls_module\.(.+)", r"decoder.box_stages.\1.cls_layers.\2"),
    Rule(BOX_STAGE + r"class_logits\.(.+)", r"decoder.box_stages.\1.cls_logit.\2"),
    Rule(BOX_STAGE + r"reg_module\.(.+)", r"decoder.box_stages.\1.reg_layers.\2"),
    Rule(BOX_STAGE + r"bboxes_delta\.(.+)", r"decoder.box_stages.\1.box_deltas.\2"),
    # ---- keypoint decoder ---------------------------------------------------------------------------------------
    Rule(KEYPOINT_STAGE + r"inst_convs\.(.+)", r"decoder.keypoint_stages.\1.convs.\2"),
    Rule(KEYPOINT_STAGE + r"part_embed_generator\.upsample\.0\.(.+)",
         r"decoder.keypoint_stages.\1.part_embedding.upsample.\2"),
    Rule(KEYPOINT_STAGE + r"part_embed_generator\.upsample\.1\.(.+)",
         r"decoder.keypoint_stages.\1.part_embedding.norm.\2"),
    Rule(KEYPOINT_STAGE + r"part_embed_generator\.LSA_conv\.(.+)",
         r"decoder.keypoint_stages.\1.part_embedding.attention.\2"),
    Rule(KEYPOINT_STAGE + r"part_embed_generator\.fc\.(.+)", r"decoder.keypoint_stages.\1.part_embedding.project.\2"),
    Rule(KEYPOINT_STAGE + r"updater\.fc1\.(.+)", r"decoder.keypoint_stages.\1.part_update.squeeze.\2"),
    Rule(KEYPOINT_STAGE + r"updater\.norm_fc1\.(.+)", r"decoder.keypoint_stages.\1.part_update.norm.\2"),
    Rule(KEYPOINT_STAGE + r"updater\.fc2\.(.+)", r"decoder.keypoint_stages.\1.part_update.gates.\2"),
    Rule(KEYPOINT_STAGE + r"kps_self_attn\.(.+)", r"decoder.keypoint_stages.\1.part_attention.attention.\2"),
    Rule(KEYPOINT_STAGE + r"self_attn_norm\.(.+)", r"decoder.keypoint_stages.\1.part_attention.norm.\2"),
    Rule(KEYPOINT_STAGE + r"linear1_l\.(.+)", r"decoder.keypoint_stages.\1.feed_forward.expand.\2"),
    Rule(KEYPOINT_STAGE + r"linear2_l\.(.+)", r"decoder.keypoint_stages.\1.feed_forward.reduce.\2"),
    Rule(KEYPOINT_STAGE + r"norm2_l\.(.+)", r"decoder.keypoint_stages.\1.feed_forward.norm.\2"),
    # ---- keypoint decoder, full version -------------------------------------------------------------------------
    Rule(KEYPOINT_STAGE + r"pose_decoder_inst_interact\.dynamic_layer\.(.+)",
         r"decoder.keypoint_stages.\1.refinement.interaction.generator.\2"),
    Rule(KEYPOINT_STAGE + r"pose_decoder_inst_interact\.norm1\.(.+)",
         r"decoder.keypoint_stages.\1.refinement.interaction.norm_inner.\2"),
    Rule(KEYPOINT_STAGE + r"pose_decoder_inst_interact\.norm2\.(.+)",
         r"decoder.keypoint_stages.\1.refinement.interaction.norm_outer.\2"),
    Rule(KEYPOINT_STAGE + r"pose_decoder_inst_interact\.out_layer\.(.+)",
         r"decoder.keypoint_stages.\1.refinement.interaction.out.\2"),
    Rule(KEYPOINT_STAGE + r"pose_decoder_inst_interact\.norm3\.(.+)",
         r"decoder.keypoint_stages.\1.refinement.interaction.norm_out.\2"),
    Rule(KEYPOINT_STAGE + r"inst_norm\.(.+)", r"decoder.keypoint_stages.\1.refinement.norm.\2"),
    Rule(KEYPOINT_STAGE + r"linear1\.(.+)", r"decoder.keypoint_stages.\1.refinement.feed_forward.expand.\2"),
    Rule(KEYPOINT_STAGE + r"linear2\.(.+)", r"decoder.keypoint_stages.\1.refinement.feed_forward.reduce.\2"),
    Rule(KEYPOINT_STAGE + r"norm2\.(.+)", r"decoder.keypoint_stages.\1.refinement.feed_forward.norm.\2"),
    # ---- one layer a part: merged afterwards --------------------------------------------------------------------
    Rule(KEYPOINT_STAGE + r"residual_filter\.(\d+)\.(weight|bias)",
         r"decoder.keypoint_stages.\1.instance_residual.\3#\2"),
    Rule(KEYPOINT_STAGE + r"fc_coord\.(\d+)\.linear\.(weight|bias)",
         r"decoder.keypoint_stages.\1.regressor.mean_\3#\2"),
    Rule(KEYPOINT_STAGE + r"fc_sigma\.(\d+)\.linear\.(weight|bias)",
         r"decoder.keypoint_stages.\1.regressor.sigma_\3#\2"),
)

DECODER_DEAD: tuple[str, ...] = (
    # The output projection of the part update is built and saved, but their forward pass returns before it.
    KEYPOINT_STAGE + r"updater\.(fc3|norm_fc3)\.(weight|bias)",
    # Which coordinates a coupling keeps: a constant, which ours computes.
    r"criterion\.flow\.flow\.mask",
)
# fmt: on

_MERGED = re.compile(r"(?P<name>.+)#(?P<part>\d+)")


def convert_querypose_official(state_dict: Mapping[str, Tensor], parts: Sequence[Sequence[int]]) -> StateDict:
    """Turns a state dict of the authors' code (either version, light or full, any of their backbones) into ours.

    Args:
        state_dict: the entries of their model, all of it or some (a decoder alone, say). Values are neither copied,
            where an entry is only renamed, nor changed; meta tensors do.
        parts: keypoint indices of each part, in the order of the authors' part layers: the part scheme of the skeleton
            that the model was trained on.

    Returns:
        the entries of this project's model.

    Raises:
        CheckpointError: an entry is neither known nor known to be dead, or entries of a part layer are missing or do
            not have the size of their part.
    """
    renamed = rename_entries(state_dict, DECODER_RULES + BACKBONE_RULES, DECODER_DEAD + BACKBONE_DEAD)
    converted, merges = {}, defaultdict[str, dict[int, Tensor]](dict)
    for name, value in renamed.items():
        if merged := _MERGED.fullmatch(name):
            merges[merged["name"]][int(merged["part"])] = value
        else:
            converted[name] = value
    for name, by_part in merges.items():
        converted[name] = _merge_parts(name, by_part, parts)
    return flatten_position_indices(converted)


def _merge_parts(name: str, by_part: Mapping[int, Tensor], parts: Sequence[Sequence[int]]) -> Tensor:
    """One entry from those of the single parts: stacked for the instance residual, by keypoint for the regressors."""
    if sorted(by_part) != list(range(len(parts))):
        raise CheckpointError(
            f"{name} needs layers of parts 0 to {len(parts) - 1}, one for each part of the skeleton's part scheme; the "
            f"checkpoint has parts {sorted(by_part)}. Choose the MODEL.QUERYPOSE.KEYPOINT.PART_SCHEME (and dataset) "
            f"that it was trained with."
        )
    values = [by_part[part] for part in range(len(parts))]
    if ".regressor." not in name:
        return torch.cat(values)
    for part, (value, keypoints) in enumerate(zip(values, parts, strict=True)):
        if len(value) != 2 * len(keypoints):
            raise CheckpointError(
                f"{name}: part {part} of the checkpoint regresses {len(value) // 2} keypoints, part {part} of the "
                f"skeleton's part scheme has {len(keypoints)}. Choose the MODEL.QUERYPOSE.KEYPOINT.PART_SCHEME that "
                f"it was trained with."
            )
    # A part's rows are x, y of its first keypoint, x, y of its second, ...
    by_keypoint = torch.cat([value.unflatten(0, (-1, 2)) for value in values])
    order = torch.tensor([keypoint for part in parts for keypoint in part])
    return by_keypoint[order.argsort().to(by_keypoint.device)]
