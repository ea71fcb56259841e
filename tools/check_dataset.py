#!/usr/bin/env python
"""Lists every problem of datasets, with file, id and remedy: errors, and warnings (corrected, or left out).

    python tools/check_dataset.py --config-file configs/querypose/querypose_r50_fpn_1x.yaml
    python tools/check_dataset.py --dataset crowdpose_trainval --images pixels --output problems.json
    python tools/check_dataset.py --config-file F DATASETS.TRAIN "['mine']"

Checks DATASETS.TRAIN and DATASETS.TEST, and whether they share images. Exit code: 0 no error, 1 errors, 2 it could
not run.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from querypose.config import add_import_argument, load_config
from querypose.data import DatasetError, register_custom_datasets
from querypose.data.image_checks import ImageDepth
from querypose.data.problems import Problem, errors_of, summarize
from querypose.engine import report_user_errors, validate_datasets


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", metavar="F", help="YAML file that names the datasets")
    add_import_argument(parser)
    parser.add_argument(
        "--dataset", action="append", default=[], metavar="NAME", help="check this one instead; may be repeated"
    )
    parser.add_argument(
        "--images", choices=get_args(ImageDepth), default="header",
        help="how closely to look at the image files: not at all, at their headers (default; missing files, wrong "
        "sizes), or at every pixel (also truncated files, and the same picture under two names in training and test)",
    )  # fmt: skip
    parser.add_argument("--output", type=Path, metavar="PROBLEMS.json", help="write the full list to this file")
    parser.add_argument("--examples", type=int, default=3, metavar="N", help="of each kind of problem (default: 3)")
    parser.add_argument("--strict", action="store_true", help="exit with 1 on warnings too")
    parser.add_argument("--threads", type=positive, help="threads that read images (default: one a core)")
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="keys of the config")
    return parser.parse_args(arguments)


def positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is less than 1")
    return value


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse_arguments(arguments)
    cfg = load_config(options.config_file, options.opts, options.imports)
    register_custom_datasets(cfg)
    train = options.dataset or list(cfg.DATASETS.TRAIN)
    test = [] if options.dataset else list(cfg.DATASETS.TEST)
    if not [*train, *test]:
        raise DatasetError("No dataset is named: give --dataset NAME, or a --config-file with DATASETS.TRAIN.")
    problems = validate_datasets(
        train, test, options.images, cfg.TEST.METRICS, num_threads=options.threads, show_progress=True
    )
    errors = errors_of(problems)
    for line in summarize(problems, options.examples):
        print(line)
    print(f"{', '.join(dict.fromkeys([*train, *test]))}: {len(errors)} errors, {len(problems) - len(errors)} warnings")
    if options.output is not None:
        write_problems(options.output, problems)
    return 1 if errors or (options.strict and problems) else 0


def write_problems(path: Path, problems: Sequence[Problem]) -> None:
    """All of them, as a list of objects."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps([problem._asdict() for problem in problems], indent=1), encoding="utf-8")
    print(f"all of them: {path}")


if __name__ == "__main__":
    with report_user_errors("check_dataset.py"):
        sys.exit(main())
