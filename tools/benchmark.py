#!/usr/bin/env python
"""Measures the time of a training iteration, of inference and of loading, by part, and counts parameters and GFLOPs.

    python tools/benchmark.py --config-file configs/querypose/querypose_r50_fpn_1x.yaml --output before.json
    python tools/benchmark.py --config-file F --what inference --batch-size 8 --compare before.json
    python tools/benchmark.py MODEL.DEVICE cuda --config-file F --variant bf16 SOLVER.AMP.ENABLED True
    python tools/benchmark.py DATALOADER.NUM_WORKERS 8 --config-file configs/quickstart.yaml --what data
    python tools/benchmark.py MODEL.DEVICE cpu --config-file F --what operations

Every measurement runs in a process of its own, whose peak of memory is reported. The config and every --variant of it
take turns, step by step: so their ratios hold even if the machine's speed drifts. All of them are in memory at once.
`operations` tells what a CPU spends on convolutions, matrix products and all else in a training iteration, in core
seconds, and what it would spend at its best rates.
Times are medians, with quartiles. Weights are those of MODEL.WEIGHTS, or random; images and persons are random without
--real-data. KEY VALUE pairs that change all variants come before the options.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from querypose.analysis.benchmark import run_benchmark
from querypose.analysis.benchmark_report import format_benchmark, format_comparison, read_benchmark
from querypose.analysis.benchmark_subjects import SUBJECTS, Workload
from querypose.analysis.complexity import parse_image_size
from querypose.config import ConfigError, add_import_argument, add_row_argument
from querypose.engine import report_user_errors
from querypose.evaluation import write_json

DEFAULT = ("complexity", "train", "inference")
FAILED_EXIT_CODE = 1


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="%(prog)s [KEY VALUE …] --config-file F [options]",
    )
    parser.add_argument("opts", nargs="*", default=[], metavar="KEY VALUE", help="changes to the config")
    parser.add_argument(
        "--config-file", metavar="F", help="the YAML file to measure (default: the defaults of the project)"
    )
    add_import_argument(parser)
    add_row_argument(parser)
    parser.add_argument(
        "--what", nargs="+", choices=list(SUBJECTS), default=list(DEFAULT), metavar="WHAT",
        help=f"of {', '.join(SUBJECTS)} (default: {' '.join(DEFAULT)})",
    )  # fmt: skip
    parser.add_argument(
        "--variant", nargs="+", action="append", default=[], metavar=("NAME", "KEY VALUE"),
        help="also measure the config with these changes, under this name; may be given again and again",
    )  # fmt: skip
    parser.add_argument(
        "--iterations", type=positive, default=10, metavar="N", help="timed steps (default: %(default)s)"
    )
    parser.add_argument(
        "--warmup", type=int, default=2, metavar="N", help="steps before the timed ones (default: %(default)s)"
    )
    parser.add_argument(
        "--batch-size", type=positive, metavar="N",
        help="images of a step (default: 2 in training, 1 in inference, SOLVER.IMS_PER_BATCH in loading)",
    )  # fmt: skip
    parser.add_argument(
        "--image-size",
        type=parse_image_size,
        default=(800, 1066),
        metavar="HxW",
        help="of random images (default: 800x1066)",
    )
    parser.add_argument(
        "--persons", type=positive, default=4, metavar="N", help="in every random image (default: %(default)s)"
    )
    parser.add_argument(
        "--real-data", action="store_true", help="train and infer on batches of the config's own datasets"
    )
    parser.add_argument(
        "--depth", type=positive, default=2, metavar="N",
        help="names of a module's path that make a part: decoder.box_stages is 2 (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--trace", type=Path, metavar="DIR", help="also write a trace of a step by torch.profiler")
    parser.add_argument("--output", type=Path, metavar="FILE.json", help="write everything measured")
    parser.add_argument("--compare", metavar="FILE.json", help="print ratios to an earlier --output")
    return parser.parse_args(arguments)


def positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is less than 1")
    return value


def make_variants(arguments: argparse.Namespace) -> dict[str, Workload]:
    """The config as it is, named `config`, and its variants.

    Raises:
        ConfigError: two have the same name, or a config cannot be used.
    """
    variants: dict[str, Workload] = {}
    for name, *overrides in [["config"], *arguments.variant]:
        if name in variants:
            raise ConfigError(f"--variant {name}: there is another one of this name. Choose different names.")
        variants[name] = Workload(
            arguments.config_file,
            (*arguments.opts, *overrides),
            imports=tuple(arguments.imports),
            image_size=arguments.image_size,
            persons=arguments.persons,
            batch_size=arguments.batch_size,
            depth=arguments.depth,
            real_data=arguments.real_data,
            row=arguments.row,
        )
        variants[name].load()  # so that its errors are one line here
    return variants


def main(arguments: argparse.Namespace) -> int:
    other = read_benchmark(arguments.compare) if arguments.compare else None
    try:
        results = run_benchmark(
            make_variants(arguments), arguments.what,
            iterations=arguments.iterations, warmup=arguments.warmup, trace=arguments.trace,
        )  # fmt: skip
    except BrokenProcessPool:
        print(
            "benchmark.py: error: a measurement was killed. Perhaps the machine had no memory left (dmesg tells). "
            "Lower --batch-size or --image-size, or give fewer --variant.",
            file=sys.stderr,
        )
        return FAILED_EXIT_CODE
    print(f"\n{format_benchmark(results)}")
    if arguments.output is not None:
        write_json(arguments.output, results)
    if other is not None:
        print(f"\n{format_comparison(results, other, arguments.compare)}")
    return 0


if __name__ == "__main__":
    with report_user_errors("benchmark.py"):
        sys.exit(main(parse_arguments()))
