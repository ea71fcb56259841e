#!/usr/bin/env python
"""Draws the samples that a model gets: images, boxes and keypoints after augmentation, as PNG.

    python tools/visualize_data.py --config-file configs/quickstart.yaml --output output/data
    python tools/visualize_data.py --config-file F --num 40 --split test --output DIR DATASETS.TEST "['lsp_val']"

Writes overview.png (all in one picture) and one PNG per image. A filled joint is visible (v=2), a hollow one is labeled
but hidden (v=1). With --split test the images are those of the evaluation, without augmentation.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from querypose.config import add_import_argument, load_config
from querypose.d2 import CfgNode
from querypose.data import build_pipeline, register_custom_datasets
from querypose.data.loading import Samples
from querypose.data.training_order import Draw
from querypose.engine import report_user_errors
from querypose.skeleton import skeleton_of_datasets
from querypose.visualization import draw_sample, image_grid
from querypose.visualization.media import save_image

_OVERVIEW_CELL = (400, 320)


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", metavar="F", help="YAML file of the experiment (default: all defaults)")
    add_import_argument(parser)
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="folder for the pictures")
    parser.add_argument("--num", type=int, default=12, metavar="N", help="number of images (default: 12)")
    parser.add_argument("--split", choices=("train", "test"), default="train", help="DATASETS.TRAIN or DATASETS.TEST")
    parser.add_argument("--seed", type=int, default=0, help="seed of the choice of images and of the augmentation")
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="changes to the config")
    options = parser.parse_args(arguments)
    if options.num < 1:
        parser.error("--num must be 1 or more")
    return options


def visualize(cfg: CfgNode, split: str, num: int, seed: int, output: Path) -> None:
    """Draws `num` samples of a split into a folder; a record comes a second time only when there are no others."""
    is_train = split == "train"
    names = cfg.DATASETS.TRAIN if is_train else cfg.DATASETS.TEST
    pipeline = build_pipeline(cfg, is_train)
    records = pipeline.records(names)
    pipeline.skeleton = skeleton = skeleton_of_datasets(names)  # draws the annotations of a test split too
    samples = Samples([{"annotations": [], **record} for record in records], pipeline)  # which may have none
    order = np.random.default_rng(seed).permutation(len(records)).tolist()
    pictures, titles = [], []
    for count in range(num):
        sample = samples[Draw(order[count % len(order)], (seed, count))]
        picture = draw_sample(sample, skeleton, cfg.INPUT.FORMAT)
        titles.append(f"{Path(sample['file_name']).stem}, {picture.shape[1]}x{picture.shape[0]}")
        pictures.append(picture)
        save_image(output / f"{count:03d}_{Path(sample['file_name']).stem}.png", picture)
    save_image(output / "overview.png", image_grid(pictures, titles=titles, cell_size=_OVERVIEW_CELL))
    print(f"Drew {num} samples of {', '.join(names)} into {output}.")


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse_arguments(arguments)
    cfg = load_config(options.config_file, options.opts, options.imports)
    register_custom_datasets(cfg)
    visualize(cfg, options.split, options.num, options.seed, options.output)


if __name__ == "__main__":
    with report_user_errors("visualize_data.py"):
        main()
