#!/usr/bin/env python
"""Trains and compares the rows of an ablation table, and writes one table of what came out beside the paper's figures.

    python tools/ablate.py configs/ablations/table2a.yaml --dry-run
    python tools/ablate.py configs/ablations/table2a.yaml --base configs/quickstart.yaml --max-iter 2000 --jobs 2
    python tools/ablate.py configs/ablations/table2d.yaml --gpus 0,1,2,3 --seeds 1,2,3 SOLVER.IMS_PER_BATCH 8
    python tools/ablate.py configs/quickstart.yaml my/other.yaml --output output/compared

A row is a training by tools/train_net.py in a process of its own. The same command again goes on after a stop: finished
rows are not run again, an interrupted or failed one goes on from its last checkpoint, and one whose settings have
changed is refused. A failing row does not end the others. Written into the output folder, after every row: table.md,
table.csv and plots. Exit code: 0 all rows finished, 1 some failed, 2 nothing could be done, 130 interrupted.
"""

from __future__ import annotations

import argparse
import functools
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from querypose.analysis.ablation import Ablation
from querypose.analysis.ablation_runs import make_slots, plan_runs
from querypose.analysis.ablation_table import read_ablation
from querypose.engine import report_user_errors

FAILED_EXIT_CODE = 1
INTERRUPTED_EXIT_CODE = 130
TRAIN_NET = Path(__file__).with_name("train_net.py")


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line; `files` and `opts` are told apart by the ending .yaml."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="%(prog)s FILE.yaml [FILE.yaml …] [options] [KEY VALUE …]",
    )
    parser.add_argument(
        "items", nargs="+", metavar="FILE.yaml | KEY VALUE",
        help="one table file (title, rows: name, config, paper), or configs, each then a row; after them KEY VALUE "
        "pairs that change the config of all rows",
    )  # fmt: skip
    parser.add_argument(
        "--base", metavar="F",
        help="a config on which every row's own keys are put, in place of the row's _BASE_: smaller model, other data",
    )  # fmt: skip
    parser.add_argument(
        "--max-iter", type=positive, metavar="N",
        help="iterations of a row. SOLVER.STEPS keep their place in the schedule; warm-up and checkpoint period become "
        "a tenth of it at most",
    )  # fmt: skip
    parser.add_argument(
        "--seeds", type=seeds, default=[], metavar="1,2,3",
        help="train every row once per seed; the table then has mean and spread (default: the config's SEED, else 1)",
    )  # fmt: skip
    parser.add_argument(
        "--output", type=Path, metavar="DIR", help="folder of everything written (default: output/ablations/NAME)"
    )
    parser.add_argument(
        "--jobs", type=positive, default=1, metavar="N",
        help="without GPUs: rows side by side, which share the cores (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--gpus", type=lambda text: text.split(","), metavar="0,1,…",
        help="GPUs to spread the rows over (default: all that torch sees); each row has --gpus-per-row of them",
    )  # fmt: skip
    parser.add_argument("--gpus-per-row", type=positive, default=1, metavar="N", help="default: %(default)s")
    parser.add_argument("--dry-run", action="store_true", help="build every row, print parameters and GFLOPs, and end")
    parser.add_argument(
        "--report-period", type=float, default=30.0, metavar="S",
        help="seconds between two reports of progress (default: %(default)g)",
    )  # fmt: skip
    parsed = parser.parse_intermixed_args(arguments)
    count = next((index for index, item in enumerate(parsed.items) if not is_yaml(item)), len(parsed.items))
    parsed.files, parsed.opts = parsed.items[:count], parsed.items[count:]
    if not parsed.files:
        parser.error(f"name a table file or configs (*.yaml) first, not {parsed.items[0]!r}")
    return parsed


def is_yaml(item: str) -> bool:
    """Whether an argument names a YAML file."""
    return item.endswith((".yaml", ".yml"))


def positive(text: str) -> int:
    """An integer >= 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is less than 1")
    return value


def seeds(text: str) -> list[int]:
    """Different integers >= 0, as in 1,2,3."""
    values = [int(part) for part in text.split(",")]
    if len(set(values)) < len(values) or min(values) < 0:
        raise argparse.ArgumentTypeError(f"{text!r} must be different numbers >= 0")
    return values


def visible_gpus() -> list[str]:
    """The ids of all GPUs that torch sees, as CUDA_VISIBLE_DEVICES names them."""
    if os.environ.get("CUDA_VISIBLE_DEVICES"):
        return os.environ["CUDA_VISIBLE_DEVICES"].split(",")
    return [str(index) for index in range(torch.cuda.device_count())]


def end_on_sigterm(number: int, frame: Any) -> None:
    """`kill` ends the rows in order, as Ctrl-C does."""
    raise KeyboardInterrupt


def main(arguments: argparse.Namespace) -> int:
    """Runs what the command line names; returns the exit code."""
    table = read_ablation(arguments.files)
    output = arguments.output or Path("output") / "ablations" / table.name
    runs = plan_runs(
        table, output,
        base=arguments.base, max_iter=arguments.max_iter, seeds=arguments.seeds, overrides=arguments.opts,
    )  # fmt: skip
    ablation = Ablation(table, output, runs)
    if arguments.dry_run:
        print(ablation.dry_run())
        return 0
    on_gpu = any(run.cfg.MODEL.DEVICE.startswith("cuda") for run in runs)
    gpus = arguments.gpus or (visible_gpus() if on_gpu else ())
    slots = make_slots(arguments.jobs, gpus, arguments.gpus_per_row)
    signal.signal(signal.SIGTERM, end_on_sigterm)
    report = functools.partial(print, flush=True)
    failed = ablation.run([sys.executable, str(TRAIN_NET)], slots, report=report, report_period=arguments.report_period)
    print(f"\n{ablation.report().markdown()}\nWritten to {output}.")
    if failed:
        print(f"error: {len(failed)} of {len(runs)} runs failed: {', '.join(run.label for run in failed)}")
    return FAILED_EXIT_CODE if failed else 0


if __name__ == "__main__":
    parsed_arguments = parse_arguments()
    with report_user_errors("ablate.py"):
        try:
            exit_code = main(parsed_arguments)
        except KeyboardInterrupt:
            print("\nInterrupted; the same command goes on.", file=sys.stderr)
            exit_code = INTERRUPTED_EXIT_CODE
    sys.exit(exit_code)
