#!/usr/bin/env python
"""Runs an iteration again whose loss or gradient was infinite or NaN, from the dump that the training wrote.

    python tools/replay.py output/dumps/iteration_0001234
    python tools/replay.py output/dumps/iteration_0001234 --device cpu

Prints the losses and the norms of the gradient, of the run and of this replay, and the module in which the first
infinity or NaN appears. Exit code: 0 if the same losses and gradients are not finite again, 1 if others are or none is,
2 if the dump cannot be used.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from querypose.config import add_import_argument
from querypose.engine import report_user_errors
from querypose.engine.replay import format_replay, replay

NOT_REPRODUCED_EXIT_CODE = 1


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dump", type=Path, metavar="DUMP", help="folder of the dump, OUTPUT_DIR/dumps/iteration_N")
    parser.add_argument("--device", default="auto", help="where to run it: auto (default), cpu, cuda, cuda:N")
    add_import_argument(parser)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse_arguments(arguments)
    result = replay(options.dump, options.device, options.imports)
    print(format_replay(result))
    return 0 if result.is_reproduced else NOT_REPRODUCED_EXIT_CODE


if __name__ == "__main__":
    with report_user_errors("replay.py"):
        sys.exit(main())
