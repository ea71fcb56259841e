"""One page that proves and measures everything on a GPU, written part by part while it runs.

A machine with a GPU may be lent for minutes only. So the parts that tell most come first, each is caught and timed by
itself, and the page is whole after every one of them.
"""

from __future__ import annotations

import gc
import logging
import math
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate

from querypose.analysis.benchmark import Timing, describe_machine
from querypose.analysis.benchmark_subjects import InferenceSubject, LoadingSubject, Subject, TrainingSubject, Workload
from querypose.analysis.complexity import Complexity, measure_complexity
from querypose.data import datasets_root
from querypose.evaluation import write_json
from querypose.visualization.charts import read_metrics

ROOT = Path(__file__).resolve().parents[2]
DRAWN_PEOPLE = "configs/quickstart.yaml"
TRAINING_PRECISIONS = {
    "float32": ("TF32", "none"),
    "TF32": ("TF32", "all"),
    "bfloat16": ("SOLVER.AMP.ENABLED", "True"),
}
INFERENCE_PRECISIONS = {
    "float32": ("TF32", "none"),
    "TF32": ("TF32", "all"),
    "bfloat16": ("TEST.PRECISION", "bfloat16"),
    "bfloat16, compiled": ("TEST.PRECISION", "bfloat16", "TEST.COMPILE", "True"),
}
BATCH_SIZES = (2, 4, 8)
LOADER_PROCESSES = (4, 8, 16)
NUM_KERNELS = 10
MIN_SECONDS = 15
"""A measurement is not begun with fewer left."""
HEADS = ("model", "precision", "images", "ms", "img/s", "peak GiB", "GPU busy")


@dataclass(frozen=True)
class Model:
    """One that is measured: its name, its config file under the root, and what of it is compiled in training."""

    name: str
    config_file: str
    components: Sequence[str]


LIGHT = Model(
    "QueryPose R50 light",
    "configs/querypose/querypose_r50_fpn_1x.yaml",
    ("backbone", "box_decoder", "keypoint_decoder"),
)
FULL = Model("QueryPose R50 full", "configs/querypose/querypose_r50_fpn_1x_full.yaml", LIGHT.components)
POET = Model("POET R50", "configs/poet/poet_r50.yaml", ("backbone",))


@dataclass(frozen=True)
class Case:
    """A row to measure: `model` with KEY VALUE pairs that make its precision."""

    model: Model
    batch_size: int
    precision: str
    overrides: Sequence[str]


@dataclass(frozen=True)
class Table:
    """What a part found: rows under heads, sentences below them, and whether it is as it should be."""

    heads: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()
    is_good: bool = True

    def __str__(self) -> str:
        table = tabulate(self.rows, self.heads, tablefmt="github", disable_numparse=True)
        return "\n\n".join([table, *self.notes])


@dataclass(frozen=True)
class Part:
    """A section of the page.

    Attributes:
        title: of the section.
        seconds: that it takes at the most; it is not begun with fewer left.
        run: gives the table; rows that were measured before an error or the end of the time are in it.
    """

    title: str
    seconds: float
    run: Callable[[Scope], Table]


@dataclass(frozen=True)
class Scope:
    """What is measured, and until when.

    Attributes:
        device: torch's name of it.
        deadline: of `time.monotonic`.
        image_size: height and width of the images of training and inference, in pixels.
        steps: timed ones of each measurement.
        overrides: KEY VALUE pairs for every config.
        minutes: of the short training.
    """

    device: str
    deadline: float
    image_size: tuple[int, int] = (800, 1066)
    steps: int = 10
    overrides: tuple[str, ...] = ()
    minutes: float = 3.0

    @property
    def left(self) -> float:
        """Seconds until the deadline."""
        return self.deadline - time.monotonic()

    def workload(self, config_file: str, batch_size: int, *overrides: str) -> Workload:
        return Workload(
            str(ROOT / config_file),
            ("MODEL.DEVICE", self.device, *self.overrides, *overrides),
            image_size=self.image_size,
            batch_size=batch_size,
        )


@dataclass
class Page:
    """The page and its json, written anew after every part.

    Attributes:
        markdown: file of the page.
        record: file of the same in json.
        sections: title -> text.
    """

    markdown: Path
    record: Path
    sections: dict[str, str] = field(default_factory=dict)
    _machine: dict[str, Any] = field(default_factory=describe_machine)
    _parts: list[dict[str, Any]] = field(default_factory=list)

    def run(self, parts: Sequence[Part], scope: Scope, report: Callable[[str], None] = print) -> bool:
        """Runs the parts in turn; whether all of them did what they should."""
        is_good = True
        for part in parts:
            start = time.monotonic()
            outcome: dict[str, Any] = {"title": part.title}
            if scope.left < part.seconds:
                outcome["error"] = f"not begun: {part.seconds:.0f} s are needed, {max(scope.left, 0):.0f} s were left"
            else:
                try:
                    table = part.run(scope)
                    outcome |= {"heads": table.heads, "rows": table.rows, "notes": table.notes}
                    self.sections[part.title] = str(table)
                    is_good = is_good and table.is_good
                except Exception as error:
                    logging.getLogger(__name__).debug("A part of the report failed", exc_info=True)
                    where = traceback.extract_tb(error.__traceback__)[-1]
                    message = str(error).strip().partition("\n")[0]
                    outcome["error"] = f"{type(error).__name__}: {message} ({Path(where.filename).name}:{where.lineno})"
            outcome["seconds"] = round(time.monotonic() - start, 1)
            if "error" in outcome:
                is_good = False
                self.sections[part.title] = f"**{outcome['error']}**"
            self._parts.append(outcome)
            self._write()
            report(f"{part.title} ({outcome['seconds']} s): {outcome.get('error', 'done')}")
        return is_good

    def _write(self) -> None:
        write_json(self.record, {"machine": self._machine, "parts": self._parts})
        lines = ["# On a GPU", "Written by `make gpu`; run it to write it for your machine."]
        lines.append(tabulate(self._machine.items(), ["", ""], tablefmt="github", disable_numparse=True))
        for part in self._parts:
            lines += [f"## {part['title']}", self.sections[part["title"]], f"{part['seconds']} s."]
        self.markdown.parent.mkdir(parents=True, exist_ok=True)
        self.markdown.write_text("\n\n".join(lines) + "\n", encoding="utf-8")


def all_parts(minutes: float) -> list[Part]:
    """Those of the page, the most telling first.

    Args:
        minutes: of the short training.
    """
    return [
        Part("Tests", 60, run_tests),
        Part("Training speed", 45, training_speed),
        Part("Inference speed", 45, inference_speed),
        Part("A short training", 60 * minutes + 45, short_training),
        Part("The largest kernels of a training step", 20, largest_kernels),
        Part("Loading", 30, loading_speed),
    ]


def run_tests(scope: Scope) -> Table:
    """Those marked `gpu`."""
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", "--no-header", "tests/gpu"]
    timeout = min(scope.left, 150)
    try:
        result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=timeout, check=False)
    except subprocess.TimeoutExpired as error:
        raise TimeoutError(f"the tests did not end within {timeout:.0f} s") from error
    lines = (result.stdout + result.stderr).strip().splitlines()
    failed = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
    return Table(["tests"], [[line] for line in failed + lines[-1:]], is_good=result.returncode == 0)


@dataclass(frozen=True)
class Measured:
    """Seconds of a step, its images, the peak of memory in GiB, and the share of a step in which a kernel runs."""

    timing: Timing
    images_per_second: float
    peak: float
    busy: float

    @classmethod
    def of(cls, subject: Subject, steps: int) -> Measured:
        for _ in range(3):
            subject.step()
        timing = Timing.of([subject.step() for _ in range(steps)])
        peak = subject.result()["peak_memory"] / 2**30
        busy = math.nan
        if torch.cuda.is_available():
            with torch.profiler.profile() as profile:
                seconds = subject.step()
            busy = sum(event.self_device_time_total for event in profile.key_averages()) / 1e6 / seconds
        return cls(timing, subject.images_per_step / timing.median, peak, busy)


def _measure(
    kind: Callable[[Workload], Subject],
    scope: Scope,
    cases: Sequence[Case],
    columns: Callable[[Case, Measured], Sequence[str]] = lambda case, measured: (),
) -> list[list[str]]:
    """A row of every case; of one that fails, for memory perhaps, the error."""
    rows = []
    for case in cases:
        row = [case.model.name, case.precision, str(case.batch_size)]
        _free_memory()
        try:
            if scope.left < MIN_SECONDS:
                raise TimeoutError("no time was left")
            subject = kind(scope.workload(case.model.config_file, case.batch_size, *case.overrides))
            measured = Measured.of(subject, scope.steps)
            del subject
            row += [
                f"{measured.timing.median * 1e3:.1f}", f"{measured.images_per_second:.1f}", f"{measured.peak:.2f}",
                f"{measured.busy:.0%}", *columns(case, measured),
            ]  # fmt: skip
        except Exception as error:
            row.append(f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}")
        rows.append(row)
    return rows


def _free_memory() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def training_speed(scope: Scope) -> Table:
    """A step of QueryPose, light and full, and of POET: every precision at one batch size, then the other sizes."""
    models = (LIGHT, FULL, POET)
    small, middle, large = BATCH_SIZES
    bfloat16 = TRAINING_PRECISIONS["bfloat16"]
    cases = [
        Case(model, middle, precision, overrides)
        for precision, overrides in TRAINING_PRECISIONS.items()
        for model in models
    ]
    cases += [Case(model, size, "bfloat16", bfloat16) for model in models for size in (small, large)]
    cases += [
        Case(model, middle, "bfloat16, compiled", (*bfloat16, "MODEL.COMPILE", str([*model.components])))
        for model in models
    ]
    rows = _measure(TrainingSubject, scope, cases)
    return Table(HEADS, rows, ["A step is forward, backward, clipping and AdamW, with 4 persons an image."])


def inference_speed(scope: Scope) -> Table:
    """Batches of 1 and 8; beside the time that arithmetic and memory traffic alone would take."""
    flops, bytes_per_second = machine_peaks(scope.device)
    complexities: dict[str, Complexity] = {}

    def limit(case: Case, measured: Measured) -> list[str]:
        file = case.model.config_file
        if file not in complexities:
            cfg = scope.workload(file, 1, "MODEL.DEVICE", "cpu").load()
            complexities[file] = measure_complexity(cfg, image_size=scope.image_size)
        precision = case.precision.partition(",")[0]
        arithmetic = case.batch_size * complexities[file].gflops * 1e9 / flops[precision]
        bytes_read = complexities[file].num_parameters * (2 if precision == "bfloat16" else 4)
        seconds = max(arithmetic, bytes_read / bytes_per_second)
        return [f"{seconds * 1e3:.2f}", f"{measured.timing.median / seconds:.1f}"]

    cases = [
        Case(model, size, precision, overrides)
        for precision, overrides in INFERENCE_PRECISIONS.items()
        for size in (1, 8)
        for model in (LIGHT, POET)
    ]
    rows = _measure(InferenceSubject, scope, cases, limit)
    peaks = ", ".join(f"{name} {value / 1e12:.1f} TFLOP/s" for name, value in flops.items())
    notes = [
        f"The limit is the longer of arithmetic at the rate of a large matrix product ({peaks}) and of reading the "
        f"weights once at {bytes_per_second / 1e9:.0f} GB/s.",
        "The weights are random, so all 100 queries of QueryPose are decoded, as the authors' code always does.",
    ]
    return Table([*HEADS, "limit ms", "times the limit"], rows, notes)


def machine_peaks(device: str, size: int = 4096) -> tuple[dict[str, float], float]:
    """FLOP/s of a matrix product by precision, and bytes/s of reading and writing memory, as measured."""
    size = size if device != "cpu" else 256
    before = torch.get_float32_matmul_precision()

    def rate(work: Callable[[], Any], amount: float) -> float:
        for _ in range(3):
            work()
        return amount / min(_seconds(work, device) for _ in range(5))

    flops = {}
    kinds = {
        "float32": ("highest", torch.float32),
        "TF32": ("high", torch.float32),
        "bfloat16": ("high", torch.bfloat16),
    }
    try:
        for name, (precision, dtype) in kinds.items():
            torch.set_float32_matmul_precision(precision)
            factor = torch.randn(size, size, device=device, dtype=dtype)
            flops[name] = rate(partial(torch.matmul, factor, factor), 2.0 * size**3)
    finally:
        torch.set_float32_matmul_precision(before)
    block = torch.zeros(size * size * 4, device=device)
    return flops, rate(block.clone, 2.0 * block.nbytes)


def _seconds(work: Callable[[], Any], device: str) -> float:
    wait = torch.cuda.synchronize if device != "cpu" else lambda: None
    wait()
    start = time.perf_counter()
    work()
    wait()
    return time.perf_counter() - start


def largest_kernels(scope: Scope) -> Table:
    """Where the time of a step of QueryPose light in bfloat16 goes."""
    _free_memory()
    workload = scope.workload(LIGHT.config_file, BATCH_SIZES[0], *TRAINING_PRECISIONS["bfloat16"])
    subject = TrainingSubject(workload)
    for _ in range(3):
        subject.step()
    with torch.profiler.profile() as profile:
        subject.step()
    events = profile.key_averages()
    time_of = "self_device_time_total" if scope.device != "cpu" else "self_cpu_time_total"
    kernels = [event for event in events if scope.device == "cpu" or event.device_type != torch.profiler.DeviceType.CPU]
    total = sum(getattr(event, time_of) for event in kernels)
    largest = sorted(kernels, key=lambda event: -getattr(event, time_of))[:NUM_KERNELS]
    rows = [
        [event.key[:100].replace("|", "/"), str(event.count), f"{getattr(event, time_of) / 1e3:.2f}",
         f"{getattr(event, time_of) / total:.1%}"]
        for event in largest
    ]  # fmt: skip
    return Table(["kernel", "calls", "ms", "share"], rows)


def loading_speed(scope: Scope) -> Table:
    """The training loader on the drawn people, which keeps a GPU fed or not."""
    rows = []
    for processes in LOADER_PROCESSES:
        if scope.left < MIN_SECONDS:
            break
        subject = LoadingSubject(scope.workload(DRAWN_PEOPLE, 16, "DATALOADER.NUM_WORKERS", str(processes)))
        for _ in range(processes):
            subject.step()
        seconds = sum(subject.step() for _ in range(2 * scope.steps))
        rows.append([str(processes), f"{2 * scope.steps * subject.images_per_step / seconds:.0f}"])
    return Table(["loader processes", "img/s"], rows, [f"The machine has {os.cpu_count()} cores."])


def short_training(scope: Scope) -> Table:
    """From random weights on real photos where they are there, else on drawn people; AP at each evaluation."""
    config_file, overrides = training_data()
    output = ROOT / "output" / "gpu_training"
    overrides += ["MODEL.DEVICE", scope.device, "OUTPUT_DIR", str(output), "MODEL.BACKBONE.PRETRAINED", "False"]
    overrides += ["SOLVER.MAX_MINUTES", str(scope.minutes), "TEST.EVAL_PERIOD", "200", *scope.overrides]
    command = [sys.executable, "tools/train_net.py", "--config-file", config_file, *overrides]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=scope.left, check=False)
    if result.returncode != 0:
        raise RuntimeError(result.stderr.strip().splitlines()[-1])
    curves = [curve for name, curve in read_metrics(output / "metrics.json").items() if name.endswith("keypoints/AP")]
    rows = [[f"{iteration + 1:.0f}", f"{precision:.2f}"] for iteration, precision in (curves[0] if curves else [])]
    return Table(["iteration", "AP"], rows, [f"`{config_file}`, {scope.minutes:g} minutes."])


def training_data() -> tuple[str, list[str]]:
    """The config of the short training, and its changes: for LSP at 192 px where the folder of the datasets has it."""
    folder = ROOT / datasets_root()
    if all((folder / photos).is_dir() for photos in ("lsp", "lsp-multi")):
        return "configs/lsp/querypose_r18.yaml", ["INPUT.MIN_SIZE_TRAIN", "(192,)", "INPUT.MIN_SIZE_TEST", "192"]
    return DRAWN_PEOPLE, []
