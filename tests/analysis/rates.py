"""A table of two rows, and a stand-in for tools/train_net.py that trains them in no time."""

from __future__ import annotations

from pathlib import Path

from tests.engine.toy_pose import write_toy_config

# Writes what a training writes, and what it was called with. A file `fail` beside its folder makes it fail; `hang`
# makes it wait for SIGTERM, at which it writes `saved` and ends as a training does.
FAKE_TRAINING = """
import json, os, signal, sys, time, yaml
cfg = yaml.safe_load(open(sys.argv[sys.argv.index("--config-file") + 1]))
folder = cfg["OUTPUT_DIR"]
beside = lambda name: os.path.exists(os.path.join(folder, "..", name))
def save_and_end(*_):
    open(os.path.join(folder, "saved"), "w").close()
    sys.exit(75)
signal.signal(signal.SIGTERM, save_and_end)
call = {"argv": sys.argv[1:], "gpus": os.environ.get("CUDA_VISIBLE_DEVICES"), "omp": os.environ.get("OMP_NUM_THREADS")}
open(os.path.join(folder, "calls.jsonl"), "a").write(json.dumps(call) + "\\n")
if beside("fail"):
    sys.exit("the disk is full")
while beside("hang"):
    time.sleep(0.05)
row = {"iteration": cfg["SOLVER"]["MAX_ITER"] - 1, "total_loss": 1.0, "time": 0.25}
with open(os.path.join(folder, "metrics.json"), "w") as stream:
    stream.write(json.dumps({"iteration": 1, "total_loss": 2.0, "time": 0.75, "keypoints/AP": 5.0}) + "\\n")
    stream.write(json.dumps({**row, "keypoints/AP": 100 * cfg["SOLVER"]["BASE_LR"] + cfg["SEED"]}) + "\\n")
"""


def write_rates(folder: Path) -> Path:
    """A table of two learning rates of the toy model."""
    config = write_toy_config(folder)
    table = folder / "rates.yaml"
    table.write_text(
        f"title: Rates\nbase: {config.name}\nrows:\n"
        "  - {name: slow, title: Slow, paper: {AP: 60.5}, config: {SOLVER: {BASE_LR: 0.1}}}\n"
        "  - {name: fast, title: Fast, paper: {AP: 61}, config: {SOLVER: {BASE_LR: 0.5}}}\n"
    )
    return table


def write_fake_training(folder: Path) -> Path:
    """The script that stands in for tools/train_net.py."""
    script = folder / "fake_training.py"
    script.write_text(FAKE_TRAINING)
    return script
