"""tools/train_net.py with the toy meta-architecture registered, for tests that start processes.

TOY_KILL_AT in the environment is an iteration in which the process kills itself as `kill -9` would, TOY_HANG_AT one in
which it sleeps for good; TOY_FAULT_RANK is the process that does so, all of them unless it is set.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import tests.engine.toy_pose  # noqa: F401  # registers it
from querypose.d2 import comm
from querypose.engine import TrainStep, report_user_errors

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools"))

import train_net  # noqa: E402

if {"TOY_KILL_AT", "TOY_HANG_AT"} & os.environ.keys():

    class MortalTrainStep(TrainStep):
        """Ends the process in the midst of an iteration."""

        def accumulate_gradients(self, *given):  # type: ignore[no-untyped-def]  # as the base class
            result = super().accumulate_gradients(*given)
            if os.environ.get("TOY_FAULT_RANK", str(comm.get_rank())) == str(comm.get_rank()):
                if str(self.iter) == os.environ.get("TOY_KILL_AT"):
                    os.kill(os.getpid(), signal.SIGKILL)
                if str(self.iter) == os.environ.get("TOY_HANG_AT"):
                    time.sleep(3600)
            return result

    from querypose.engine import trainer

    trainer.TrainStep = MortalTrainStep  # type: ignore[misc]

if __name__ == "__main__":
    with report_user_errors("train_net.py"):
        train_net.run()
