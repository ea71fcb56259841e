#!/usr/bin/env python
"""Trains a model and evaluates it, or with --eval-only evaluates weights alone. The command line is detectron2's.

    python tools/train_net.py --config-file configs/quickstart.yaml
    python tools/train_net.py --config-file F --num-gpus 8 SOLVER.IMS_PER_BATCH 32 OUTPUT_DIR output/mine
    python tools/train_net.py --config-file F --resume
    python tools/train_net.py --config-file configs/ablations/table2a.yaml --row selective
    python tools/train_net.py --config-file F --eval-only MODEL.WEIGHTS output/mine/model_final.pth
    python tools/train_net.py --import my_project --config-file F
    torchrun --nproc-per-node 8 tools/train_net.py --config-file F

Without a GPU, --num-gpus N starts N processes on the CPU. Every KEY VALUE is explained in docs/config.md.
"""

from __future__ import annotations

import argparse
from datetime import timedelta
from typing import Any

from querypose.config import add_import_argument, add_row_argument
from querypose.d2 import default_argument_parser
from querypose.engine import PoseTrainer, add_timeout_argument, launch, report_user_errors, setup


def main(args: argparse.Namespace) -> dict[str, Any] | None:
    with report_user_errors("train_net.py"):
        cfg = setup(args)
        if args.eval_only:
            return PoseTrainer.evaluate_weights(cfg, resume=args.resume, random_weights=args.random_weights)
        trainer = PoseTrainer(cfg)
        trainer.resume_or_load(resume=args.resume)
        return trainer.train()


def run() -> None:
    parser = default_argument_parser(epilog=__doc__)
    add_import_argument(parser)
    add_row_argument(parser)
    add_timeout_argument(parser)
    parser.add_argument(
        "--random-weights", action="store_true", help="with --eval-only: evaluate without MODEL.WEIGHTS, for a test"
    )
    args = parser.parse_args()
    launch(main, args, timeout=timedelta(minutes=args.timeout))


if __name__ == "__main__":
    with report_user_errors("train_net.py"):
        run()
