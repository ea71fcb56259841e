"""What a job of an ablation does: one training, in a process of its own."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence

import cloudpickle
import submitit

# Jobs get the class itself, not its name: they need not import this package, and with it torch, beside the training.
cloudpickle.register_pickle_by_value(sys.modules[__name__])

_SECONDS_TO_SAVE = 80  # SLURM gives 90 from its signal to the end of the job


class Training(submitit.helpers.Checkpointable):
    """A job: runs a training, which goes on from its last checkpoint if there is one.

    When the job's time is up, or the cluster takes its machine back, the training saves and ends, and the job is put
    back into the queue.

    Args:
        command: starts the training.
        environment: variables that it gets besides those of the job.
    """

    def __init__(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        self.command = list(command)
        self.environment = dict(environment)

    def __call__(self) -> int:
        """Trains; gives the exit code of the training."""
        # The signal at which submitit calls `checkpoint` reaches the training too, which must outlive it to save.
        former = signal.signal(signal.SIGUSR2, signal.SIG_IGN)
        self.process = subprocess.Popen(self.command, env={**os.environ, **self.environment})
        signal.signal(signal.SIGUSR2, former)
        signal.signal(signal.SIGTERM, lambda number, frame: self.process.terminate())
        try:
            # Not `wait`, which would hold a lock that `checkpoint`, called by a signal in this very thread, needs.
            while (exit_code := self.process.poll()) is None:
                time.sleep(0.1)
        finally:
            self.process.terminate()
        return exit_code

    def checkpoint(self) -> submitit.helpers.DelayedSubmission:
        """Ends the training, which saves; gives the job that goes on."""
        self.process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(_SECONDS_TO_SAVE)
        return submitit.helpers.DelayedSubmission(Training(self.command, self.environment))
