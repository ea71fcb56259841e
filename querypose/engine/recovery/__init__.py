"""A run that survives: checkpoints that are whole, what a run needs to go on bit by bit, and stopping by signals."""

from __future__ import annotations

from querypose.engine.recovery.checkpointer import RunCheckpointer
from querypose.engine.recovery.hooks import KeepBest, SaveCheckpoints, WriteFigures
from querypose.engine.recovery.random_states import untouched_random_states
from querypose.engine.recovery.run_state import RunState
from querypose.engine.recovery.stop_signal import STOPPED_EXIT_CODE, signals_to_children

__all__ = [
    "STOPPED_EXIT_CODE",
    "KeepBest",
    "RunCheckpointer",
    "RunState",
    "SaveCheckpoints",
    "WriteFigures",
    "signals_to_children",
    "untouched_random_states",
]
