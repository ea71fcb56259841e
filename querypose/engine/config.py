"""Keys of the trainer's hooks."""

from __future__ import annotations

from querypose.config import Key, add_keys, list_of_names
from querypose.engine.hooks import HOOK_REGISTRY

add_keys((Key("HOOKS", [], "hooks of your own, by their names in HOOK_REGISTRY", list_of_names(HOOK_REGISTRY)),))
