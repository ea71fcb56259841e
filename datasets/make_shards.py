#!/usr/bin/env python
"""Packs the images of datasets into WebDataset shards: tar files, and an index with the place of every image.

    python datasets/make_shards.py keypoints_coco_2017_train --output shards/train2017
    python datasets/make_shards.py mine_train mine_val --config-file my.yaml --output shards/mine
    aws s3 sync shards/train2017 s3://bucket/train2017

Names datasets that share a folder of images. Their json files stay where they are; `images` of DATASETS.CUSTOM is then
shards/train2017/shards.json or s3://bucket/train2017/shards.json, and everything works as with the folder. Files are
copied byte for byte, so that a training on shards equals one on files.
"""

from __future__ import annotations

import argparse
import io
import json
import shutil
import sys
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from querypose.config import add_import_argument, load_config
from querypose.data import dataset_annotations, register_custom_datasets
from querypose.data.image_io import explained_read_errors, open_image
from querypose.data.shards import INDEX_NAME, VERSION
from querypose.engine import report_user_errors
from querypose.errors import UserError
from querypose.progress import progress

_MEGABYTE = 10**6


class MakeShardsError(UserError, ValueError):
    """Shards that cannot be made as asked: says why and the remedy."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Reads the command line and writes the shards; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("datasets", nargs="+", metavar="NAME", help="registered datasets that share their images")
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER", help="folder to write")
    parser.add_argument("--megabytes", type=float, default=256, help="size of a shard (default: 256)")
    parser.add_argument("--config-file", metavar="F", help="YAML file with datasets of your own")
    add_import_argument(parser)
    options = parser.parse_args(arguments)
    register_custom_datasets(load_config(options.config_file, imports=options.imports))
    num_images, num_shards = make_shards(options.datasets, options.output, options.megabytes)
    print(
        f"Wrote {num_images} images to {num_shards} shards. Set images of DATASETS.CUSTOM to "
        f"{options.output / INDEX_NAME}, or to its address where you copy the folder to."
    )
    return 0


def make_shards(datasets: Sequence[str], output: Path, megabytes: float) -> tuple[int, int]:
    """Packs every image of some datasets once, in the order of their ids.

    Args:
        datasets: names of registered datasets with one folder of images.
        output: folder to make; must not exist yet.
        megabytes: a shard ends with the image that makes it this large.

    Returns:
        number of images, and of shards.

    Raises:
        MakeShardsError: the output is there already, or the datasets do not share their images.
        DatasetError: a dataset cannot be used.
        ImageReadError: an image is missing.
    """
    if output.exists():
        raise MakeShardsError(f"{output} is there already; remove it or name another folder with --output.")
    if not megabytes > 0:
        raise MakeShardsError(f"--megabytes is {megabytes:g}; allowed: a number > 0.")
    annotations = [dataset_annotations(name).require_sound() for name in datasets]
    if len({file.image_root for file in annotations}) > 1:
        raise MakeShardsError(
            f"{', '.join(datasets)} have their images in different places; make shards for each place on its own."
        )
    # An image that several of them have is packed once.
    paths = {name: file.image_file(index) for file in annotations for index, name in enumerate(file.file_names)}
    output.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f".{output.name}-", dir=output.parent))
    try:
        unfinished.chmod(0o755)
        images = iter(progress(paths.items(), "shards", total=len(paths)))
        shards: dict[str, Any] = {}
        while sum(len(shard["images"]) for shard in shards.values()) < len(paths):
            name = f"{len(shards):06d}.tar"
            shards[name] = write_shard(unfinished / name, images, megabytes * _MEGABYTE)
        index = json.dumps({"version": VERSION, "shards": shards}, separators=(",", ":"))
        (unfinished / INDEX_NAME).write_text(index, encoding="utf-8")
        unfinished.rename(output)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return len(paths), len(shards)


def write_shard(path: Path, images: Iterator[tuple[str, str]], size: float) -> dict[str, Any]:
    """Writes a tar file of the next images.

    Args:
        path: of the shard.
        images: names and paths; those that are written are taken from it.
        size: of the images together, in bytes, that ends the shard.

    Returns:
        what the index says of it: its size, and where in it each image begins and how long it is.
    """
    num_bytes = 0
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for name, file in images:
            with explained_read_errors(file), open_image(file) as stream:
                content = stream.read()
            member = tarfile.TarInfo(name)  # of nobody and no time: the same images make the same shards
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
            num_bytes += member.size
            if num_bytes >= size:
                break
    with tarfile.open(path) as tar:
        places = {member.name: [member.offset_data, member.size] for member in tar}
    return {"bytes": path.stat().st_size, "images": places}


if __name__ == "__main__":
    with report_user_errors("make_shards.py"):
        sys.exit(main())
