"""State dicts of the SHaRPose authors' code, turned into this project's: every entry is renamed, and none is lost."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from querypose.checkpoint.renaming import Rule, StateDict, rename_entries

BLOCK = r"backbone\.blocks\.(\d+)\."
OUR_BLOCK = r"transformer.blocks.\1."

# fmt: off
RULES: tuple[Rule, ...] = (
    Rule(r"backbone\.(keypoint_tokens|quality_token)", r"transformer.\1"),
    Rule(r"backbone\.pos_embed_list\.0", r"transformer.coarse_positions"),
    Rule(r"backbone\.pos_embed_list\.1", r"transformer.fine_positions"),
    Rule(r"backbone\.patch_embed\.proj\.(.+)", r"transformer.patch_embedding.\1"),
    Rule(BLOCK + r"(norm[12]\..+)", OUR_BLOCK + r"\2"),
    Rule(BLOCK + r"attn\.qkv\.(.+)", OUR_BLOCK + r"qkv.\2"),
    Rule(BLOCK + r"attn\.proj\.(.+)", OUR_BLOCK + r"projection.\2"),
    Rule(BLOCK + r"mlp\.fc1\.(.+)", OUR_BLOCK + r"mlp.0.\2"),
    Rule(BLOCK + r"mlp\.fc2\.(.+)", OUR_BLOCK + r"mlp.2.\2"),
    Rule(r"backbone\.norm\.(.+)", r"transformer.norm.\1"),
    Rule(r"backbone\.reuse_block\.0\.(.+)", r"transformer.reuse.0.\1"),
    Rule(r"backbone\.reuse_block\.1\.fc1\.(.+)", r"transformer.reuse.1.0.\1"),
    Rule(r"backbone\.reuse_block\.1\.fc2\.(.+)", r"transformer.reuse.1.2.\1"),
    Rule(r"backbone\.quality_predictor\.norm\.(.+)", r"transformer.quality_predictor.norm.\1"),
    # Theirs have a dropout of 0 after every GELU.
    Rule(r"backbone\.quality_predictor\.mlp\.0\.(.+)", r"transformer.quality_predictor.mlp.0.\1"),
    Rule(r"backbone\.quality_predictor\.mlp\.3\.(.+)", r"transformer.quality_predictor.mlp.2.\1"),
    Rule(r"backbone\.quality_predictor\.mlp\.6\.(.+)", r"transformer.quality_predictor.mlp.4.\1"),
    Rule(r"keypoint_head\.heatmap_mlp\.(.+)", r"head.\1"),
)
# fmt: on


def convert_sharpose_official(state_dict: Mapping[str, Tensor]) -> StateDict:
    """Weights of the authors' code as those of `querypose.modeling.sharpose`.

    Raises:
        CheckpointError: an entry is not of their model.
    """
    renamed = rename_entries(state_dict, RULES, dead=())
    tables = ("keypoint_tokens", "quality_token", "coarse_positions", "fine_positions")
    converted = {name: value.squeeze(0) if name.endswith(tables) else value for name, value in renamed.items()}
    # Theirs counts as trained whenever no epoch is set, as in their test script.
    return {**converted, "transformer.quality_predictor.is_trained": torch.tensor(True)}
