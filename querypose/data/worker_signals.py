"""Loader processes that outlive the signals which stop a run."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from typing import Any

from torch.utils.data import get_worker_info


class ShieldedMapper:
    """A mapper whose loader process goes on when Ctrl-C or a cluster signals every process of a run.

    The training process then finishes its iteration and saves, for which it still needs its loader processes; they end
    when it tells them to, or has ended itself. (Where the system cannot tell who sent a signal, as on macOS, they die.)
    """

    def __init__(self, mapper: Callable[[dict[str, Any]], Any]) -> None:
        self._mapper = mapper
        self._is_shielded = not hasattr(signal, "sigwaitinfo")

    def __call__(self, record: dict[str, Any]) -> Any:
        """What the mapper gives."""
        if not self._is_shielded:
            self._is_shielded = True
            # Here, at the first record: torch's loader processes set a handler of their own when they start.
            if get_worker_info() is not None:
                signal.signal(signal.SIGINT, signal.SIG_IGN)
                signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
                threading.Thread(target=_end_when_told_by, args=(os.getppid(),), daemon=True).start()
        return self._mapper(record)


def _end_when_told_by(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)
