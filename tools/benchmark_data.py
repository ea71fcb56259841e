#!/usr/bin/env python
"""Measures the parts of data loading: ways to decode and resize an image, and the memory of loader processes.

    python tools/benchmark_data.py images --folder coco/val2017 --num 200
    python tools/benchmark_data.py memory --num 100000 --workers 0 4 8

One thread each, since a loader process has one. `images` takes the alternatives in turn, image by image, so that their
ratios hold on a busy machine too. cv2 is among them where it is installed.
"""

from __future__ import annotations

import argparse
import importlib
import multiprocessing
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import torchvision
from PIL import Image
from torch.utils.data import Dataset

from querypose.config import load_config
from querypose.d2 import BoxMode, build_detection_train_loader
from querypose.data import PoseMapper, read_image
from querypose.data.transforms import resize
from querypose.skeleton import COCO_SKELETON

Alternatives = Mapping[str, Callable[[Any], object]]


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    images = commands.add_parser("images", help="decoding, resizing, and a whole training sample")
    images.add_argument("--folder", type=Path, required=True, help="folder of JPEG files")
    images.add_argument("--num", type=int, default=50, help="images to take (default: 50)")
    images.add_argument("--repeats", type=int, default=10, help="times that each is measured (default: 10)")
    images.add_argument("--size", type=int, nargs=2, default=(800, 1067), help="height and width to resize to")
    memory = commands.add_parser("memory", help="memory of all processes, for some numbers of loader processes")
    memory.add_argument("--num", type=int, default=100_000, help="images of the generated dataset (default: 100000)")
    memory.add_argument("--workers", type=int, nargs="+", default=[0, 4, 8], help="numbers of loader processes")
    memory.add_argument("--start", choices=["fork", "spawn"], default="fork", help="how loader processes start")
    memory.add_argument(
        "--storage", nargs="+", choices=["packed", "plain"], default=["packed", "plain"],
        help="packed: as this project keeps records; plain: as a list of dicts, which takes that much in every process",
    )  # fmt: skip
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures and prints a table in Markdown."""
    options = parse_arguments(arguments)
    torch.set_num_threads(1)
    if options.command == "memory":
        benchmark_memory(options.num, options.workers, options.start, options.storage)
        return
    paths = sorted(path for path in options.folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))
    if not paths:
        sys.exit(f"benchmark_data.py: error: there is no JPEG file in {str(options.folder)!r}")
    benchmark_images(paths[: options.num], tuple(options.size), options.repeats)


# ---- images ----------------------------------------------------------------------------------------------------------


def benchmark_images(paths: Sequence[Path], size: tuple[int, int], repeats: int) -> None:
    """Decoding of the files, resizing of their pixels to `size`, and a whole training sample with COCO's settings."""
    report("decode", measure(ways_to_decode(), paths, repeats))
    report(
        f"resize to {size[0]}x{size[1]}", measure(ways_to_resize(size), [read_image(path) for path in paths], repeats)
    )
    samples = measure({"PoseMapper, training (configs/Base-QueryPose)": training_mapper()}, records_of(paths), repeats)
    report("whole sample", samples)
    per_second = 1 / next(iter(samples.values()))
    print(f"\n{per_second:.0f} images a second and loader process; 16 of them: {16 * per_second:.0f}")


def ways_to_decode() -> Alternatives:
    """File -> RGB pixels. The first is what this project does."""
    ways: dict[str, Callable[[Any], object]] = {
        "read_image (Pillow)": read_image,
        "Pillow, JPEG decoded at half size": _decode_half,
        "torchvision.io": lambda path: torchvision.io.decode_jpeg(torchvision.io.read_file(str(path))),
    }
    if cv2 := _cv2():
        ways["cv2"] = lambda path: cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB)
    return ways


def _decode_half(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        image.draft("RGB", (image.width // 2, image.height // 2))
        return np.array(image)


def ways_to_resize(size: tuple[int, int]) -> Alternatives:
    """Pixels (H, W, 3) -> resized pixels. The first is what this project does."""
    height, width = size
    ways: dict[str, Callable[[Any], object]] = {
        "apply_image (F.interpolate, antialias)": lambda pixels: resize(pixels.shape[:2], size).apply_image(pixels),
        "the same on channels-first memory": lambda pixels: _interpolate(pixels, size, torch.contiguous_format),
        "the same in float32": lambda pixels: _interpolate(pixels, size, torch.contiguous_format, torch.float32),
        "Pillow, bilinear": lambda pixels: np.asarray(
            Image.fromarray(pixels).resize((width, height), Image.Resampling.BILINEAR)
        ),
    }
    if cv2 := _cv2():
        ways["cv2, bilinear (no antialiasing)"] = lambda pixels: cv2.resize(pixels, (width, height))
        ways["cv2, area"] = lambda pixels: cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA)
    return ways


def _interpolate(
    pixels: np.ndarray, size: tuple[int, int], layout: torch.memory_format, dtype: torch.dtype = torch.uint8
) -> torch.Tensor:
    image = torch.from_numpy(pixels).permute(2, 0, 1)[None].to(dtype).contiguous(memory_format=layout)
    return F.interpolate(image, size=size, mode="bilinear", antialias=True, align_corners=False)


def _cv2() -> Any:
    try:
        cv2 = importlib.import_module("cv2")
    except ImportError:
        return None
    cv2.setNumThreads(1)
    return cv2


def training_mapper() -> PoseMapper:
    """With the default INPUT section, which is COCO's."""
    cfg = load_config()
    cfg.DATASETS.TRAIN = ["keypoints_coco_2017_train"]
    return PoseMapper(cfg, is_train=True)


def records_of(paths: Sequence[Path]) -> list[dict[str, Any]]:
    """Records of the images, with four persons each."""
    records = []
    for index, path in enumerate(paths):
        with Image.open(path) as image:
            record = generated_record(index, np.random.default_rng(index), 4)
            records.append({**record, "file_name": str(path), "width": image.width, "height": image.height})
    return records


def measure(ways: Alternatives, inputs: Sequence[Any], repeats: int) -> dict[str, float]:
    """Median of the seconds that each alternative takes for an input."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torchvision's decoding is deprecated
        for repeat in range(repeats + 1):
            for number, value in enumerate(inputs):
                first = (repeat + number) % len(ways)  # whoever comes first finds the input in no cache
                for name, way in [*ways.items()][first:] + [*ways.items()][:first]:
                    start = time.perf_counter()
                    way(value)
                    if repeat:  # the first one warms up
                        seconds[name].append(time.perf_counter() - start)
    return {name: float(np.median(of_way)) for name, of_way in seconds.items()}


def report(title: str, seconds: Mapping[str, float]) -> None:
    """Rows of milliseconds, with the ratio to the first."""
    first = next(iter(seconds.values()))
    print(f"\n| {title} | ms an image | of the first |\n| --- | --- | --- |")
    for name, of_way in seconds.items():
        print(f"| {name} | {1e3 * of_way:.2f} | {of_way / first:.2f} |")


# ---- memory ----------------------------------------------------------------------------------------------------------


class PlainList(Dataset[Any]):
    """Records as Python has them: each read counts references in them, so that every process gets its own copy."""

    def __init__(self, records: list[dict[str, Any]]) -> None:
        self.records = records

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Any:
        return self.records[index]


def benchmark_memory(num_images: int, workers: Sequence[int], start: str, storages: Sequence[str]) -> None:
    """Memory of the main process and its loader processes after one pass over a generated dataset."""
    print(f"{num_images} images, loader processes by {start}\n")
    print("| records kept as | loader processes | memory (PSS), MiB | more than with the first number, MiB |")
    print("| --- | --- | --- | --- |")
    for name in storages:
        first = None
        for num_workers in workers:
            # A process of its own, which has nothing of what was measured before.
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
                total = pool.submit(memory_of_loading, name, num_images, num_workers, start).result()
            first = total if first is None else first
            print(f"| {name} | {num_workers} | {total:.0f} | {total - first:+.0f} |", flush=True)


def memory_of_loading(name: str, num_images: int, num_workers: int, start: str) -> float:
    """MiB that this process and its loader processes use after a pass over the records, shared memory counted once."""
    records = [generated_record(index, np.random.default_rng(index), 2) for index in range(num_images)]
    dataset: Any = records if name == "packed" else PlainList(records)
    del records
    loader = build_detection_train_loader(
        dataset, mapper=only_id, total_batch_size=100, aspect_ratio_grouping=False, num_workers=num_workers,
        **({"multiprocessing_context": start} if num_workers else {}),
    )  # fmt: skip
    del dataset
    batches = iter(loader)
    for _ in range(num_images // 100):
        next(batches)
    return sum(map(proportional_set_size, process_tree()))


def only_id(record: dict[str, Any]) -> int:
    """A sample that weighs nothing."""
    return int(record["image_id"])


def generated_record(index: int, generator: np.random.Generator, num_persons: int) -> dict[str, Any]:
    """A record such as `PoseAnnotations.record` gives."""
    K = COCO_SKELETON.num_keypoints
    return {
        "file_name": f"coco/train2017/{index:012d}.jpg",
        "height": 480,
        "width": 640,
        "image_id": index,
        "annotations": [
            {
                "id": num_persons * index + person,
                "bbox": [*generator.uniform(0, 100, 2).tolist(), *generator.uniform(50, 200, 2).tolist()],
                "bbox_mode": BoxMode.XYWH_ABS,
                "keypoints": np.column_stack([generator.uniform(0, 300, (K, 2)), np.full(K, 2.0)]).ravel().tolist(),
                "category_id": 0,
                "iscrowd": 0,
            }
            for person in range(num_persons)
        ],
    }


def process_tree() -> Iterator[int]:
    """This process and its children."""
    process = multiprocessing.current_process()
    assert process.pid is not None
    yield process.pid
    for children in Path(f"/proc/{process.pid}/task").glob("*/children"):
        yield from map(int, children.read_text().split())


def proportional_set_size(pid: int) -> float:
    """MiB of a process; what several share is divided among them."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024


if __name__ == "__main__":
    main()
