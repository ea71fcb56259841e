"""tools/train_net.py with the toy meta-architecture registered, for tests that start processes.

TOY_KILL_AT in the environment is an iteration in which the process kills itself as `kill -9` would.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import tests.engine.toy_pose  # noqa: F401  # registers it
from querypose.engine import TrainStep

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools"))

import train_net  # noqa: E402

if "TOY_KILL_AT" in os.environ:

    class MortalTrainStep(TrainStep):
        """Ends the process in the midst of an iteration."""

        def accumulate_gradients(self, batch):  # type: ignore[no-untyped-def]  # as the base class
            result = super().accumulate_gradients(batch)
            if self.iter == int(os.environ["TOY_KILL_AT"]):
                os.kill(os.getpid(), signal.SIGKILL)
            return result

    from querypose.engine import trainer

    trainer.TrainStep = MortalTrainStep  # type: ignore[misc]

if __name__ == "__main__":
    train_net.run()
