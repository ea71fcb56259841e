#!/usr/bin/env python
"""Finds the images of one folder that are in another one too, and takes them out of annotation files.

    python datasets/check_overlap.py crowdpose/images coco/val2017 --output overlap.json
    python datasets/check_overlap.py crowdpose/images coco/val2017 --output overlap.json \\
        --filter crowdpose/json/crowdpose_trainval.json crowdpose/json/crowdpose_trainval_not_in_coco_val.json

CrowdPose has images of COCO's val set: who trains on the one and evaluates on the other evaluates on training images.
The second command writes an annotation file without them, to be named in DATASETS.CUSTOM.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from querypose.data import DatasetError
from querypose.data.duplicates import HASHES, Overlap, find_overlap, without_images


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("first", type=Path, help="folder of images; --filter takes images of this one out")
    parser.add_argument("second", type=Path, help="the other folder")
    parser.add_argument("--output", type=Path, required=True, metavar="OVERLAP.json", help="receives the list of pairs")
    parser.add_argument(
        "--match", choices=HASHES, default="bytes",
        help="what makes two images the same: the bytes of the files (default), the decoded pixels, or that they look "
        "the same when shrunk, which also finds copies that were resized or compressed again",
    )  # fmt: skip
    parser.add_argument(
        "--max-distance", type=int, metavar="BITS",
        help=f"with --match similar: bits of 256 in which two images may differ (default: {HASHES['similar'][1]}; "
        "other photos differ in about 128)",
    )  # fmt: skip
    parser.add_argument(
        "--filter", nargs=2, type=Path, action="append", default=[], metavar=("IN.json", "OUT.json"),
        help="write a copy of an annotation file of the first folder without the images found; may be repeated",
    )  # fmt: skip
    parser.add_argument("--threads", type=int, help="threads that read images (default: one a core)")
    parsed = parser.parse_args(arguments)
    if parsed.max_distance is not None and (parsed.match != "similar" or parsed.max_distance < 0):
        parser.error("--max-distance goes with --match similar and is at least 0")
    return parsed


def main(arguments: list[str] | None = None) -> int:
    """Compares the folders, writes the files and returns the exit status: 1 where an image could not be read."""
    options = parse_arguments(arguments)
    image_hash, max_distance = HASHES[options.match]
    if options.max_distance is not None:
        max_distance = options.max_distance
    try:
        overlap = find_overlap(
            options.first, options.second, image_hash, max_distance, num_threads=options.threads, show_progress=True
        )
        write_overlap(overlap, options)
        first_names = [pair.first for pair in overlap.pairs]
        for source, target in options.filter:
            write_filtered(source, target, first_names)
    except (DatasetError, OSError) as error:
        print(f"check_overlap.py: error: {error}", file=sys.stderr)
        return 2
    for message in overlap.unreadable:
        print(f"not compared: {message}", file=sys.stderr)
    return 1 if overlap.unreadable else 0


def write_overlap(overlap: Overlap, options: argparse.Namespace) -> None:
    """Writes the list, and says how long it is."""
    content = {
        "first": str(options.first),
        "second": str(options.second),
        "match": options.match,
        "pairs": [pair._asdict() for pair in overlap.pairs],
        "unreadable": overlap.unreadable,
    }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(content, indent=1), encoding="utf-8")
    shared = len({pair.first for pair in overlap.pairs})
    print(
        f"{shared} of {overlap.num_first} images in {options.first} are among the {overlap.num_second} in "
        f"{options.second} (match: {options.match}); list: {options.output}"
    )


def write_filtered(source: Path, target: Path, file_names: list[str]) -> None:
    """Writes an annotation file without some images.

    Raises:
        DatasetError: the source is not a COCO json.
    """
    try:
        document = json.loads(source.read_text(encoding="utf-8"))
        kept = without_images(document, file_names)
    except (ValueError, KeyError, TypeError, AssertionError) as error:
        raise DatasetError(f"{source} is not a COCO json; --filter takes annotation files.") from error
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(kept), encoding="utf-8")
    num_left_out = len(document["images"]) - len(kept["images"])  # type: ignore[arg-type]  # a list, of `without_images`
    print(f"{target}: {num_left_out} of {len(document['images'])} images of {source} left out")


if __name__ == "__main__":
    sys.exit(main())
