"""Errors that both engines raise."""

from __future__ import annotations

from querypose.errors import UserError


class CheckpointError(UserError, RuntimeError):
    """A checkpoint that cannot be written, read safely or used: names the file or the entries, and the remedy."""
