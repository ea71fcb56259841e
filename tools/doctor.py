#!/usr/bin/env python
"""Why is my AP 0? Examines the labels, the config and some minutes of training, and says what to mend.

    python tools/doctor.py --config-file configs/quickstart.yaml
    python tools/doctor.py --config-file F --minutes 10 --output DIR MODEL.WEIGHTS output/mine/model_final.pth
    python tools/doctor.py --config-file F --only boxes flip_pairs person_size

Prints every check with its verdict (good, unclear, bad, failed, skipped) and writes a page with tables and pictures.
Exit code: 0 nothing bad, 1 something is, 2 it could not run. Each check is described in docs/doctor.md.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path

from querypose.analysis.doctor import CHECK_REGISTRY, Case, examine
from querypose.analysis.doctor_page import as_html, as_text, summary
from querypose.analysis.doctor_training import NUM_SAMPLES as NUM_SAMPLES  # registers the checks that train
from querypose.config import ConfigError, add_import_argument, load_config
from querypose.d2 import atomic_write
from querypose.data import register_custom_datasets
from querypose.engine import report_user_errors
from querypose.engine.setup import prepare_process


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", required=True, metavar="F", help="YAML file of the training")
    add_import_argument(parser)
    parser.add_argument("--output", type=Path, default=Path("output/doctor"), metavar="DIR", help="folder of the page")
    parser.add_argument("--minutes", type=float, default=3.0, help="that the checks may train in all (default: 3)")
    parser.add_argument(
        "--only", action="append", default=[], metavar="CHECK",
        help=f"make this check; may be repeated (default: all): {', '.join(name for name, _ in CHECK_REGISTRY)}",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, help="of everything random")
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="changes to the config")
    options = parser.parse_args(arguments)
    if not 0 < options.minutes < math.inf:
        parser.error("--minutes must be a number above 0")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse_arguments(arguments)
    cfg = load_config(options.config_file, options.opts, options.imports)
    if unknown := [name for name in options.only if name not in CHECK_REGISTRY]:
        known = ", ".join(name for name, _ in CHECK_REGISTRY)
        raise ConfigError(f"--only {unknown[0]}: there is no such check; choose one of: {known}.")
    if not cfg.DATASETS.TRAIN:
        raise ConfigError("DATASETS.TRAIN is empty, so that there is nothing to examine. Name a dataset there.")
    register_custom_datasets(cfg)
    cfg.freeze()
    prepare_process(cfg)
    findings = {}
    for name, finding, seconds in examine(Case(cfg, options.minutes, options.seed), options.only):
        findings[name] = finding
        print(f"{as_text(name, finding)} ({seconds:.0f} s)", flush=True)
    print(f"\n{summary(findings)}")
    options.output.mkdir(parents=True, exist_ok=True)
    page = options.output / "doctor.html"
    with atomic_write(page, "w") as stream:
        stream.write(as_html(findings, options.config_file))
    print(f"The page with tables and pictures: {page}")
    return int(any(finding.verdict in ("bad", "failed") for finding in findings.values()))


if __name__ == "__main__":
    with report_user_errors("doctor.py"):
        sys.exit(main())
