#!/usr/bin/env python
"""Trains the rows of an ablation table, and writes one table with their metrics beside those of the paper.

    python tools/ablate.py configs/ablations/table2a.yaml --dry-run
    python tools/ablate.py configs/ablations/lqr/table2.yaml --dry-run --image-size 512x512 MODEL.LQR.FLIP_TEST False
    python tools/ablate.py configs/ablations/table2a.yaml --base configs/querypose/querypose_tiny.yaml --max-iter 2000
    python tools/ablate.py configs/ablations/table2d.yaml --cluster slurm --partition gpu --gpus-per-node 8
    python tools/ablate.py configs/quickstart.yaml my/other.yaml --output output/compared

A row is a training by tools/train_net.py, which submitit starts: on this machine, or as a job of SLURM. After a stop,
run the same command again: finished rows are not run again, an interrupted or failed one goes on from its last
checkpoint, and one whose settings have changed is refused. A failed row does not end the others. After every row the
output folder gets table.md, table.csv and charts. Exit code: 0 all rows finished, 1 some failed, 2 nothing could be
done, 130 interrupted.
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
import yaml

from querypose.analysis.ablation import Ablation
from querypose.analysis.ablation_jobs import Cluster
from querypose.analysis.ablation_runs import plan_runs
from querypose.analysis.ablation_table import read_ablation
from querypose.analysis.complexity import parse_image_size
from querypose.config import add_import_argument
from querypose.engine import report_user_errors

FAILED_EXIT_CODE = 1
INTERRUPTED_EXIT_CODE = 130
_MAX_HOURS = 24 * 366
TRAIN_NET = Path(__file__).resolve().with_name("train_net.py")


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="%(prog)s FILE.yaml [FILE.yaml …] [options] [KEY VALUE …]",
    )
    parser.add_argument(
        "items", nargs="+", metavar="FILE.yaml | KEY VALUE",
        help="one table file (title, base, rows), or configs, each then a row; after them KEY VALUE pairs that change "
        "the config of all rows",
    )  # fmt: skip
    add_import_argument(parser)
    parser.add_argument(
        "--base", metavar="F",
        help="a config to change instead of the base of the rows: a smaller model, other data",
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
        "--output", type=Path, metavar="DIR", help="folder for all files (default: output/ablations/NAME)"
    )
    parser.add_argument("--dry-run", action="store_true", help="build every row, print parameters and GFLOPs, and end")
    parser.add_argument(
        "--image-size", type=parse_image_size, metavar="HxW",
        help="of the image that GFLOPs are counted on (default: that of a 480x640 photo, resized for testing)",
    )  # fmt: skip
    where = parser.add_argument_group("where rows train")
    where.add_argument("--cluster", choices=("local", "slurm"), default="local", help="default: %(default)s")
    where.add_argument(
        "--jobs", type=positive, metavar="N",
        help="rows at a time (default: on SLURM all; locally as many as the GPUs are enough for, without a GPU one); "
        "they share the cores of a machine",
    )  # fmt: skip
    where.add_argument(
        "--gpus-per-node", type=not_negative, metavar="N",
        help="GPUs of a row, all on one machine; 0 trains on the CPU (default: 1 where torch sees a GPU and on SLURM)",
    )  # fmt: skip
    where.add_argument("--partition", metavar="NAME", help="of SLURM")
    where.add_argument("--cpus", type=positive, metavar="N", help="CPU cores of a row on SLURM")
    where.add_argument(
        "--timeout", type=hours, default=24.0, metavar="HOURS",
        help="of a job on SLURM; a row that takes longer saves and goes on in another job (default: %(default)g)",
    )  # fmt: skip
    where.add_argument(
        "--slurm", action="append", default=[], type=parameter, metavar="NAME=VALUE",
        help="any other parameter of SLURM, as submitit names it: account=mine, qos=high, mem=64GB; may be repeated",
    )  # fmt: skip
    parsed = parser.parse_intermixed_args(arguments)
    count = next((index for index, item in enumerate(parsed.items) if not is_yaml(item)), len(parsed.items))
    parsed.files, parsed.opts = parsed.items[:count], parsed.items[count:]
    if not parsed.files:
        parser.error(f"name a table file or configs (*.yaml) first, not {parsed.items[0]!r}")
    return parsed


def is_yaml(item: str) -> bool:
    return item.endswith((".yaml", ".yml"))


def positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is less than 1")
    return value


def not_negative(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{value} is less than 0")
    return value


def hours(text: str) -> float:
    value = float(text)
    if not 0 < value <= _MAX_HOURS:
        raise argparse.ArgumentTypeError(f"{text} is not above 0 and at most {_MAX_HOURS} (a year)")
    return value


def seeds(text: str) -> list[int]:
    values = [int(part) for part in text.split(",")]
    if len(set(values)) < len(values) or min(values) < 0:
        raise argparse.ArgumentTypeError(f"{text!r} must be different numbers >= 0")
    return values


def parameter(text: str) -> tuple[str, Any]:
    """A name and a value, a number where it looks like one."""
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    try:
        return name, yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: the value is not valid YAML") from error


def visible_gpus() -> list[int]:
    """The GPUs that this process may use, as CUDA numbers them."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    if all(index.strip().isdecimal() for index in visible):  # else it is not set, or names GPUs by their UUIDs
        return [int(index) for index in visible]
    return list(range(torch.cuda.device_count()))


def make_cluster(arguments: argparse.Namespace) -> Cluster:
    """Where the command line says that rows train."""
    gpus = visible_gpus()
    share = arguments.gpus_per_node
    if share is None:
        share = int(arguments.cluster == "slurm" or bool(gpus))
    named = {"partition": arguments.partition, "cpus_per_task": arguments.cpus}
    return Cluster(
        arguments.cluster,
        jobs=arguments.jobs,
        gpus_per_node=share,
        gpus=gpus,
        hours=arguments.timeout,
        parameters={**{name: value for name, value in named.items() if value is not None}, **dict(arguments.slurm)},
    )


def end_on_sigterm(number: int, frame: Any) -> None:
    """`kill` ends the rows in order, as Ctrl-C does."""
    raise KeyboardInterrupt


def main(arguments: argparse.Namespace) -> int:
    table = read_ablation(arguments.files, arguments.base)
    output = arguments.output or Path("output") / "ablations" / table.name
    cluster = make_cluster(arguments)
    device = []
    if cluster.name == "slurm" or arguments.gpus_per_node is not None:  # "auto" would mean the device of this machine
        device = ["MODEL.DEVICE", "cuda" if cluster.gpus_per_node else "cpu"]
    runs = plan_runs(
        table, output, max_iter=arguments.max_iter, seeds=arguments.seeds, overrides=[*device, *arguments.opts],
        imports=arguments.imports,
    )  # fmt: skip
    ablation = Ablation(table, output, runs, arguments.image_size)
    if arguments.dry_run:
        print(ablation.dry_run())
        return 0
    signal.signal(signal.SIGTERM, end_on_sigterm)
    failed = ablation.run([sys.executable, str(TRAIN_NET)], cluster, report=functools.partial(print, flush=True))
    print(f"\n{ablation.report().markdown()}\nWritten to {output}.")
    if failed:
        print(f"error: {len(failed)} of {len(runs)} runs failed: {', '.join(run.label for run in failed)}")
    return FAILED_EXIT_CODE if failed else 0


if __name__ == "__main__":
    with report_user_errors("ablate.py"):
        try:
            sys.exit(main(parse_arguments()))
        except KeyboardInterrupt:
            print("\nInterrupted. To go on, run the same command again.", file=sys.stderr)
            sys.exit(INTERRUPTED_EXIT_CODE)
