"""Loader processes that outlive the signals which stop a run."""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Any

from torch.utils.data import get_worker_info

# A loader process that is told to end does so after this many seconds, if its training process has not ended it before.
GRACE_SECONDS = 60


class ShieldedMapper:
    """A mapper whose loader process goes on when Ctrl-C or a cluster signals every process of a run.

    The training process then finishes its iteration and saves, for which it still needs its loader processes.
    """

    def __init__(self, mapper: Callable[[dict[str, Any]], Any]) -> None:
        self._mapper = mapper
        self._is_shielded = False

    def __call__(self, record: dict[str, Any]) -> Any:
        """What the mapper gives."""
        if not self._is_shielded:
            self._is_shielded = True
            if get_worker_info() is not None:
                # Here, at the first record: torch's loader processes set a handler of their own when they start.
                signal.signal(signal.SIGINT, signal.SIG_IGN)
                signal.signal(signal.SIGTERM, lambda *_: signal.alarm(GRACE_SECONDS))
        return self._mapper(record)
