"""Valid inputs of every tool, damaged at random: each is used, or refused in one line; nothing hangs or leaks out.

    python -m tests.tools.generated_inputs --minutes 20 --seed 7      # of all tools; --tool demo for one of them

An example is (tool, seed), which says all: a failure names it, and `--tool T --seed S --examples 1` repeats it.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import copy
import csv
import functools
import io
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import numpy as np
import torch
import yaml
from PIL import Image
from scipy.io import savemat

from querypose.d2 import DatasetCatalog, MetadataCatalog
from querypose.skeleton import COCO_SKELETON
from tests.engine.toy_pose import NUM_KEYPOINTS, ToyPose, toy_model, write_toy_config
from tests.loggers import restored_loggers
from tests.parity.sharpose_golden import IMAGE_SIZE, SharposeFixture
from tests.scripts import ROOT, run_script

# Generous: the machine may be busy, and what hangs does so for ever.
MAX_SECONDS = 180
MAX_BYTES = 2**31

WEIRD: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2, 2**31, 2**63, 10**30, -0.5, 0.5, 1e-300, 1e308, float("nan"), float("inf"), "", "x",
    "0", "../../victim/evil", "/etc/passwd", "..", "a\0b", "\ud800", "é…✓", "9" * 5000, "x" * 300, [], [[]], {}, [None],
    [1, 2], ["p9"], {"a": 1}, {"name": "x"}, [{"name": "RandomFlip", "probability": 7}],
)  # fmt: skip


class Tool(NamedTuple):
    """A command line that works.

    Attributes:
        script: of the repository.
        prepare: writes its inputs into a folder; gives the arguments, and the files that may be damaged.
        exit_codes: besides 0 and 2, those that it documents.
    """

    script: str
    prepare: Callable[[Path], tuple[list[str], list[Path]]]
    exit_codes: tuple[int, ...] = ()


def toy_config(folder: Path) -> Path:
    config_file = write_toy_config(folder)
    config = json.loads(config_file.read_text())
    config |= {"KEEP_FREED_MEMORY": False, "TEST": {"EVAL_PERIOD": 1}}
    config["INPUT"]["AUGMENTATIONS"] = [{"name": "RandomFlip", "probability": 0.5}]
    config["DATASETS"]["SKELETONS"] = [
        {
            "name": "mine",
            "keypoints": ["a", "b", "c"],
            "sigmas": [0.1, 0.1, 0.1],
            "flip_pairs": [["a", "b"]],
            "edges": [["a", "c"]],
            "part_schemes": {"two": [["a", "b"], ["c"]]},
            "default_part_scheme": "two",
            "upper_body": ["a"],
            "head_segment": ["a", "c"],
        }
    ]
    config_file.write_text(json.dumps(config))
    return config_file


def toy_weights(folder: Path) -> Path:
    torch.save({"model": toy_model(dtype=torch.float32).state_dict(), "iteration": 3}, folder / "w.pth")
    return folder / "w.pth"


def toy_results(folder: Path) -> Path:
    keypoints = [number for index in range(NUM_KEYPOINTS) for number in (float(5 * index % 60), 5.0, 1.0)]
    results = [
        {
            "image_id": index,
            "category_id": 1,
            "keypoints": keypoints,
            "score": 0.5,
            "bbox": [1.0, 2.0, 30.0, 20.0],
        }
        for index in (1, 2)
    ]
    (folder / "res.json").write_text(json.dumps(results))
    return folder / "res.json"


# Bounds of the work that a damaged config may ask for: they come last, so that they win.
BOUNDED = [
    "SOLVER.MAX_ITER", "2", "SOLVER.IMS_PER_BATCH", "2", "DATALOADER.NUM_WORKERS", "0", "SOLVER.CHECKPOINT_PERIOD", "2",
]  # fmt: skip


def train(folder: Path) -> tuple[list[str], list[Path]]:
    config_file = toy_config(folder)
    inputs = [config_file, folder / "data" / "toy.json", folder / "data" / "0.png", toy_weights(folder)]
    return ["--config-file", str(config_file), "MODEL.WEIGHTS", str(folder / "w.pth"), *BOUNDED], inputs


def evaluate(folder: Path) -> tuple[list[str], list[Path]]:
    arguments, inputs = train(folder)
    return ["--eval-only", *arguments], inputs


def evaluate_results(folder: Path) -> tuple[list[str], list[Path]]:
    config_file, results = toy_config(folder), toy_results(folder)
    annotations = folder / "data" / "toy.json"
    arguments = ["--annotations", str(annotations), "--results", str(results), "--skeleton", "coco"]
    return [*arguments, "--config-file", str(config_file)], [config_file, results, annotations, results, annotations]


def analyze_results(folder: Path) -> tuple[list[str], list[Path]]:
    config_file, results = toy_config(folder), toy_results(folder)
    arguments = ["--dataset", "toy", "--results", str(results), "--config-file", str(config_file)]
    arguments += ["--output", str(folder / "errors.json")]
    return arguments, [config_file, results, folder / "data" / "toy.json"]


def export(folder: Path) -> tuple[list[str], list[Path]]:
    config_file, weights = toy_config(folder), toy_weights(folder)
    run_folder = folder / "run"
    run_folder.mkdir()
    weights.rename(run_folder / "model_0000001.pth")
    config_file.rename(run_folder / "config.yaml")
    (run_folder / "last_checkpoint").write_text("model_0000001.pth")
    (run_folder / "metrics.json").write_text(json.dumps({"iteration": 1, "keypoints/AP": 5.0}) + "\n")
    arguments = [str(run_folder), "--format", "safetensors", "--output", str(folder / "exported")]
    return arguments, list(run_folder.iterdir())


def export_again(folder: Path) -> tuple[list[str], list[Path]]:
    run(TOOLS["export"], export(folder)[0])
    file = folder / "exported" / "model.safetensors"
    return [str(file), "--format", "safetensors", "--output", str(folder / "again")], [file]


def doctor(folder: Path) -> tuple[list[str], list[Path]]:
    config_file = toy_config(folder)
    arguments = ["--config-file", str(config_file), "--output", str(folder / "page"), "--minutes", "0.01"]
    return [*arguments, "--only", "areas"], [config_file, folder / "data" / "toy.json", folder / "data" / "0.png"]


def report(folder: Path) -> tuple[list[str], list[Path]]:
    arguments, inputs = visualize_results(folder)
    run_folder = folder / "run"
    (run_folder / "inference").mkdir(parents=True)
    for name, place in (("toy.yaml", "config.yaml"), ("metrics.json", "metrics.json")):
        (folder / name).rename(run_folder / place)
    results = run_folder / "inference" / "coco_instances_results.json"
    (folder / "res.json").rename(results)
    arguments = [str(run_folder), "--output", str(folder / "report"), "--num", "2"]
    return arguments, [run_folder / "config.yaml", run_folder / "metrics.json", results, *inputs[3:]]


def visualize_results(folder: Path) -> tuple[list[str], list[Path]]:
    config_file, results, metrics = toy_config(folder), toy_results(folder), folder / "metrics.json"
    rows = [{"iteration": 10 * index, "total_loss": 3.0 / (index + 1), "keypoints/AP": 5.0} for index in range(5)]
    metrics.write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = ["--dataset", "toy", "--results", str(results), "--config-file", str(config_file)]
    arguments += ["--output", str(folder / "pictures"), "--num", "2", "--metrics", str(metrics)]
    return arguments, [config_file, results, metrics, folder / "data" / "toy.json", folder / "data" / "0.png"]


def visualize_data(folder: Path) -> tuple[list[str], list[Path]]:
    config_file = toy_config(folder)
    arguments = ["--config-file", str(config_file), "--output", str(folder / "pictures"), "--num", "2"]
    return arguments, [config_file, folder / "data" / "toy.json", folder / "data" / "0.png"]


def check_dataset(folder: Path) -> tuple[list[str], list[Path]]:
    config_file = toy_config(folder)
    arguments = ["--config-file", str(config_file), "--images", "pixels", "--output", str(folder / "problems.json")]
    return arguments, [config_file, folder / "data" / "toy.json", folder / "data" / "0.png"]


def convert(folder: Path) -> tuple[list[str], list[Path]]:
    """A small model of the SHaRPose authors' code."""
    config_file = folder / "sharpose.yaml"
    config = {
        "_BASE_": str(ROOT / "configs/Base-SHaRPose.yaml"),
        "MODEL": {"DEVICE": "cpu", "SHARPOSE": {"DIM": 48, "DEPTH": 4, "NUM_HEADS": 4, "PATCH_SIZE": 8}},
        "INPUT": {"PERSON_CROP": {"SIZE": list(IMAGE_SIZE)}},
    }
    config_file.write_text(json.dumps(config))
    torch.save({"state_dict": sharpose_weights(), "epoch": 3}, folder / "in.pth")
    arguments = ["--from", "sharpose-official", "--config-file", str(config_file)]
    return [*arguments, str(folder / "in.pth"), str(folder / "out.pth")], [config_file, folder / "in.pth"]


@functools.cache
def sharpose_weights() -> dict[str, torch.Tensor]:
    return SharposeFixture("tiny", torch.float32).weights()


def demo(folder: Path) -> tuple[list[str], list[Path]]:
    config_file, weights, results = toy_config(folder), toy_weights(folder), toy_results(folder)
    photo = folder / "data" / "0.png"
    arguments = ["--config-file", str(config_file), "--input", str(photo), "--output", str(folder / "out")]
    arguments += ["--boxes", str(results), "--results-json", str(folder / "poses.json"), "--box-threshold", "0.1"]
    return [*arguments, "--opts", "MODEL.WEIGHTS", str(weights)], [config_file, weights, photo, results]


def replay(folder: Path) -> tuple[list[str], list[Path]]:
    (folder / "dump").mkdir()
    shutil.copyfile(_dump(), folder / "dump" / "rank_0.pth")
    return [str(folder / "dump"), "--device", "cpu"], [folder / "dump" / "rank_0.pth"]


def ablate(folder: Path) -> tuple[list[str], list[Path]]:
    base, table = toy_config(folder), folder / "table.yaml"
    rows = [
        {"name": name, "title": name, "paper": {"AP": 64.2}, "config": {"SOLVER": {"BASE_LR": rate}}}
        for name, rate in (("slow", 0.01), ("fast", 0.1))
    ]
    table.write_text(json.dumps({"title": "T", "base": base.name, "rows": rows}))
    arguments = [str(table), "--dry-run", "--output", str(folder / "ablation"), "--max-iter", "2", "--seeds", "1"]
    return [*arguments, "--gpus-per-node", "0"], [table, table, base]


def prepare_lsp(folder: Path) -> tuple[list[str], list[Path]]:
    random_numbers = np.random.default_rng(0)
    joints = np.zeros((14, 3, 4))
    joints[:, :2] = random_numbers.uniform(10, 110, (14, 2, 4))
    joints[:, 2] = 1
    matrix, photo = io.BytesIO(), io.BytesIO()
    savemat(matrix, {"joints": joints})
    Image.new("RGB", (120, 120)).save(photo, "JPEG")
    with zipfile.ZipFile(folder / "lsp.zip", "w") as archive:
        archive.writestr("joints.mat", matrix.getvalue())
        for number in range(1, 5):
            archive.writestr(f"images/im{number:05d}.jpg", photo.getvalue())
    return [str(folder / "lsp.zip"), "--output", str(folder / "lsp")], [folder / "lsp.zip"]


def prepare_macaque(folder: Path) -> tuple[list[str], list[Path]]:
    images = folder / "v1" / "images"
    images.mkdir(parents=True)
    rows = [["image file name", "keypoints", "segmentation"]]
    for number in range(3):
        Image.new("RGB", (60, 50)).save(images / f"{number}.png")
        animal = [{"name": name.replace("_", " "), "position": [5, 6]} for name in COCO_SKELETON.keypoints]
        mask = [{"name": "macaque", "segment": [[1, 2], [30, 2], [30, 40]]}]
        rows.append([f"{number}.png", json.dumps([animal]), json.dumps([mask])])
    with (folder / "v1" / "annotations.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    inputs = [folder / "v1" / "annotations.csv"] * 3 + [images / "0.png"]
    return [str(folder / "v1"), "--output", str(folder / "macaque")], inputs


def prepare_mpii(folder: Path) -> tuple[list[str], list[Path]]:
    images = folder / "mpii" / "images"
    images.mkdir(parents=True)
    entries = []
    for number in range(3):
        Image.new("RGB", (320, 240)).save(images / f"{number}.jpg")
        joints = [[10.0 * index, 20.0 + index] for index in range(16)]
        entry = {"image": f"{number}.jpg", "center": [100.0, 90.0], "scale": 0.7, "joints": joints}
        entries.append({**entry, "joints_vis": [1] * 16})
    (folder / "train.json").write_text(json.dumps(entries))
    (folder / "val.json").write_text(json.dumps(entries[:1]))
    arguments = [str(folder / "train.json"), "--folder", str(folder / "mpii"), "--val-images", str(folder / "val.json")]
    return arguments, [folder / "train.json", folder / "val.json", images / "0.jpg"]


TOOLS: dict[str, Tool] = {
    "train": Tool("tools/train_net.py", train),
    "evaluate": Tool("tools/train_net.py", evaluate),
    "evaluate_results": Tool("tools/evaluate_results.py", evaluate_results),
    "analyze_results": Tool("tools/analyze_results.py", analyze_results),
    "doctor": Tool("tools/doctor.py", doctor, (1,)),  # 1: it found a fault
    "export": Tool("tools/export.py", export),
    "export_again": Tool("tools/export.py", export_again),
    "report": Tool("tools/report.py", report),
    "visualize_results": Tool("tools/visualize_results.py", visualize_results),
    "visualize_data": Tool("tools/visualize_data.py", visualize_data),
    "check_dataset": Tool("tools/check_dataset.py", check_dataset, (1,)),  # 1: the dataset has errors
    "convert": Tool("tools/convert_checkpoint.py", convert),
    "demo": Tool("tools/demo.py", demo, (1,)),  # 1: an image was skipped
    "replay": Tool("tools/replay.py", replay, (1,)),  # 1: not reproduced
    "ablate": Tool("tools/ablate.py", ablate, (1,)),  # 1: a row failed, where --dry-run was taken out
    "prepare_lsp": Tool("datasets/prepare_lsp.py", prepare_lsp),
    "prepare_macaque": Tool("datasets/prepare_macaque.py", prepare_macaque),
    "prepare_mpii": Tool("datasets/prepare_mpii.py", prepare_mpii),
}
VALID_EXIT_CODES = {"replay": 1}
"""Of undamaged inputs, where that is not 0: a replay does not find the fault that the run had, as it was put in from
outside."""

_dump_file: list[Path] = []


def _dump() -> Path:
    """The dump of a training whose loss became NaN, made once."""
    if not _dump_file:
        folder = Path(tempfile.mkdtemp(prefix="querypose-dump-"))
        losses = ToyPose.losses
        ToyPose.losses = lambda *given: {name: loss * float("nan") for name, loss in losses(*given).items()}
        try:
            run(Tool("tools/train_net.py", train), train(folder)[0])
        finally:
            ToyPose.losses = losses
        _dump_file.extend((folder / "output" / "dumps").glob("*/rank_0.pth"))
    return _dump_file[0]


# ---- damage ---------------------------------------------------------------------------------------------------------


def places(document: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to every value in nested lists and dicts."""
    entries: Any = document.items() if isinstance(document, dict) else ()
    if isinstance(document, list):
        entries = enumerate(document)
    for key, value in entries:
        yield (*path, key)
        yield from places(value, (*path, key))


def damaged_document(document: Any, draw: random.Random) -> Any:
    """With a value replaced, removed, doubled, or put in by another name."""
    document = copy.deepcopy(document)
    # Places near the root as often as the many leaves.
    by_depth = collections.defaultdict(list)
    for path in places(document):
        by_depth[len(path)].append(path)
    if not by_depth or draw.random() < 0.05:
        return draw.choice(WEIRD)
    *parents, key = draw.choice(by_depth[draw.choice(list(by_depth))])
    node = document
    for parent in parents:
        node = node[parent]
    change = draw.randrange(6)
    if change == 0:
        del node[key]
    elif change == 1 and isinstance(node, list):
        node.insert(key, copy.deepcopy(node[key]))
    elif change == 2 and isinstance(node, dict):
        node[draw.choice([7, "x", "../x", "\ud800", ""])] = node.pop(key)
    elif change == 3:
        node[key] = draw.choice([str(node[key]), [node[key]], {"a": node[key]}])
    else:
        node[key] = draw.choice(WEIRD)
    return document


def damaged_bytes(content: bytes, draw: random.Random) -> bytes:
    """Cut off, or with bytes changed, put in or left out."""
    damaged = bytearray(content)
    if draw.random() < 0.4:
        return content[: draw.randrange(len(content) + 1)]
    for _ in range(draw.choice([1, 1, 3, 30])):
        place = draw.randrange(len(damaged) + 1)
        noise = draw.randbytes(draw.choice([1, 1, 4, 16]))
        change = draw.randrange(3)
        if change == 0:
            damaged[place : place + len(noise)] = noise
        elif change == 1:
            damaged[place:place] = noise
        else:
            del damaged[place : place + len(noise)]
    return bytes(damaged)


def damaged_tensor(value: Any, draw: random.Random) -> Any:
    """A tensor of other numbers, another type or shape."""
    if not isinstance(value, torch.Tensor) or not value.numel():
        return draw.choice(WEIRD)
    changes: list[Callable[[], Any]] = [
        lambda: torch.full_like(value, float("nan")) if value.is_floating_point() else value.float(),
        lambda: value.to(torch.int64),
        lambda: value.to(torch.complex64),
        lambda: value.double() * 1e300,
        lambda: value.flatten()[:-1],
        lambda: value[None],
        lambda: value.to_sparse(),
        lambda: value.bool(),
    ]
    return draw.choice(changes)()


def damaged_checkpoint(content: Any, draw: random.Random) -> Any:
    if draw.random() < 0.5:
        return damaged_document(content, draw)
    content = copy.deepcopy(content)
    found = []
    for path in places(content):
        node = content
        for key in path[:-1]:
            node = node[key]
        if isinstance(node[path[-1]], torch.Tensor):
            found.append((node, path[-1]))
    node, key = draw.choice(found)
    node[key] = damaged_tensor(node[key], draw)
    return content


def damage(path: Path, draw: random.Random) -> None:
    """Damages a file: what it says, its bytes, or what it is."""
    content = path.read_bytes()
    how = draw.random()
    if how < 0.06:
        replace_by_something_else(path, draw)
        return
    if how > 0.35 and path.suffix not in (".png", ".jpg"):
        try:
            damage_content(path, content, draw)
        except Exception:  # it was damaged before and says nothing any more
            path.write_bytes(damaged_bytes(content, draw))
    else:
        path.write_bytes(damaged_bytes(content, draw))


def damage_content(path: Path, content: bytes, draw: random.Random) -> None:
    """Damages what a file says."""
    if path.suffix in (".json", ".yaml") and path.name != "metrics.json":
        write_damaged_json(path, damaged_document(json.loads(content), draw), draw)
    elif path.name == "metrics.json":
        rows = [json.loads(line) for line in content.splitlines()]
        path.write_text("".join(json.dumps(row) + "\n" for row in damaged_rows(rows, draw)))
    elif path.suffix == ".csv":
        rows = list(csv.reader(io.StringIO(content.decode())))
        with path.open("w", newline="", errors="surrogatepass") as file:
            csv.writer(file).writerows(damaged_csv(rows, draw))
    elif path.suffix == ".safetensors":
        path.write_bytes(damaged_safetensors(content, draw))
    elif path.suffix == ".pth":
        changed = damaged_checkpoint(torch.load(path, weights_only=True), draw)
        torch.save(changed, path)
    elif path.suffix == ".zip":
        write_damaged_zip(path, draw)


def damaged_safetensors(content: bytes, draw: random.Random) -> bytes:
    """With another header: eight bytes of its length, a json, and the numbers behind."""
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    metadata = header["__metadata__"]
    if draw.random() < 0.6:
        name = draw.choice(list(metadata))
        metadata[name] = draw.choice(["", "{}", "[]", "null", "a: [", "x", metadata[name][:-5], metadata[name] * 2])
    else:
        header = damaged_document(header, draw)
    written = json.dumps(header).encode()
    return len(written).to_bytes(8, "little") + written + content[8 + length :]


def damaged_rows(rows: Any, draw: random.Random) -> list[Any]:
    changed = damaged_document(rows, draw)
    return changed if isinstance(changed, list) else [changed]


def write_damaged_json(path: Path, document: Any, draw: random.Random) -> None:
    if path.suffix == ".yaml" and draw.random() < 0.3:
        with contextlib.suppress(yaml.YAMLError):  # not everything can be written
            path.write_text(yaml.safe_dump(document), errors="surrogatepass")
            return
    path.write_text(json.dumps(document))


def damaged_csv(rows: list[list[str]], draw: random.Random) -> list[list[str]]:
    rows = copy.deepcopy(rows)
    line = draw.randrange(len(rows))
    column = draw.randrange(len(rows[line]))
    cell = rows[line][column]
    if draw.random() < 0.5 and cell.startswith("["):
        rows[line][column] = json.dumps(damaged_document(json.loads(cell), draw))
    else:
        rows[line][column] = str(draw.choice(WEIRD)).replace("\ud800", "?")
    return rows


def write_damaged_zip(path: Path, draw: random.Random) -> None:
    with zipfile.ZipFile(path) as archive:
        members = [(name, archive.read(name)) for name in archive.namelist()]
    index = draw.randrange(len(members))
    name, content = members[index]
    change = draw.randrange(3)
    if change == 0:
        members[index] = (draw.choice(["../../victim/im00001.jpg", "/im00002.jpg", "im²3.jpg", "im99999.jpg"]), content)
    elif change == 1:
        members[index] = (name, damaged_bytes(content, draw))
    else:
        members.append(members[index])
    with warnings.catch_warnings(), zipfile.ZipFile(path, "w") as archive:
        warnings.simplefilter("ignore")  # a name may be there twice
        for name, content in members:
            archive.writestr(name, content)


def replace_by_something_else(path: Path, draw: random.Random) -> None:
    path.unlink()
    kind = draw.randrange(6)
    if kind == 0:
        os.mkfifo(path)
    elif kind == 1:
        path.mkdir()
    elif kind == 2:
        path.symlink_to(path.name)  # to itself
    elif kind == 3:
        path.write_bytes(b"")
    elif kind == 4:
        Image.new("RGB", (8, 8)).save(path, "EPS")


def damaged_arguments(arguments: list[str], draw: random.Random) -> list[str]:
    """One is replaced, left out, or doubled. What says where to write stays, so that nothing else is overwritten."""
    outputs = [index + 1 for index, word in enumerate(arguments) if word in ("--output", "--folder", "--results-json")]
    free = [index for index in range(len(arguments)) if index not in outputs and arguments[index] not in BOUNDED]
    index = draw.choice(free)
    texts = ["", "x", "-1", "nan", "inf", "1e400", "../x", "é", "\udce9", "/dev/null", "9" * 5000, "[1", "None", "-h"]
    change = draw.randrange(3)
    replacement = [[draw.choice(texts)], [], [arguments[index]] * 2][change]
    return [*arguments[:index], *replacement, *arguments[index + 1 :]]


# ---- running --------------------------------------------------------------------------------------------------------


class Outcome(NamedTuple):
    """What a tool did: its exit code, and what it wrote to stderr."""

    exit_code: int
    stderr: str


def run(tool: Tool, arguments: list[str], encoding: str = "utf-8") -> Outcome:
    """Runs a tool in this process, with a terminal of that encoding."""
    streams = [io.TextIOWrapper(io.BytesIO(), encoding=encoding, write_through=True) for _ in range(2)]
    determinism = torch.are_deterministic_algorithms_enabled()
    known = set(DatasetCatalog.list()), set(MetadataCatalog.list())
    with (
        restored_loggers(),
        contextlib.redirect_stdout(streams[0]),
        contextlib.redirect_stderr(streams[1]),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        try:
            exit_code = run_script(tool.script, *arguments)
        finally:
            torch.use_deterministic_algorithms(determinism)
            catalogs: tuple[Any, ...] = (DatasetCatalog, MetadataCatalog)
            for catalog, names in zip(catalogs, known, strict=True):
                for name in set(catalog.list()) - names:
                    catalog.remove(name)
    for stream in streams:
        stream.flush()
    return Outcome(exit_code, streams[1].buffer.getvalue().decode(encoding))


@contextlib.contextmanager
def time_limit(seconds: int) -> Iterator[None]:
    def stop(number: int, frame: FrameType | None) -> None:
        raise AssertionError(f"it took more than {seconds} s")

    former = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, former)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def check(name: str, seed: int, folder: Path) -> Outcome:
    """One example, in an empty folder.

    Raises:
        AssertionError: the tool broke a promise; or whatever error came out of it.
    """
    tool, draw = TOOLS[name], random.Random(f"{name} {seed}")
    (folder / "victim").mkdir(parents=True)
    (folder / "victim" / "evil").write_text("evil")
    (folder / "a" / "b").mkdir(parents=True)
    before = contents(folder)
    inputs_folder = folder / "a" / "b" / "inputs"
    inputs_folder.mkdir()
    arguments, inputs = tool.prepare(inputs_folder)
    if draw.random() < 0.12:
        arguments = damaged_arguments(arguments, draw)
    else:
        for _ in range(draw.choice([1, 1, 1, 2])):
            path = draw.choice(inputs)
            if path.is_file():
                damage(path, draw)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with time_limit(MAX_SECONDS):
        outcome = run(tool, arguments, draw.choice(["utf-8", "ascii", "latin-1"]))
    assert outcome.exit_code in (0, 2, *tool.exit_codes), outcome
    assert "Traceback" not in outcome.stderr, outcome
    assert "Logging error" not in outcome.stderr, outcome
    if outcome.exit_code == 2:
        program = Path(tool.script).name
        reports = [line for line in outcome.stderr.splitlines() if line.startswith(f"{program}: error: ")]
        assert len(reports) == 1, outcome
        assert len(reports[0]) > len(f"{program}: error: ") + 10, outcome
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory) * 1024 < MAX_BYTES, "it took too much memory"
    shutil.rmtree(inputs_folder)
    assert contents(folder) == before, "something outside of its folders was written"
    return outcome


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--examples", type=int, default=10**9, help="of each tool at most")
    parser.add_argument("--seed", type=int, default=0, help="the first")
    parser.add_argument("--tool", choices=list(TOOLS), action="append")
    options = parser.parse_args()
    end, counts, failures = time.monotonic() + 60 * options.minutes, collections.Counter[str](), 0
    names = options.tool or list(TOOLS)
    for seed in range(options.seed, options.seed + options.examples):
        for name in names:
            if time.monotonic() > end:
                break
            with tempfile.TemporaryDirectory() as folder:
                try:
                    outcome = check(name, seed, Path(folder))
                    counts[f"{name}: exit {outcome.exit_code}"] += 1
                except Exception as error:
                    failures += 1
                    print(f"FAILED --tool {name} --seed {seed} --examples 1", flush=True)
                    traceback.print_exception(error, limit=-6)
                    sys.stderr.flush()
        if time.monotonic() > end:
            break
    for name, count in sorted(counts.items()):
        print(f"{name:32} {count}")
    print(f"{counts.total() + failures} examples, {failures} failures")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
