"""The page about a GPU, with the CPU in its place and a tiny model in that of the measured ones."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from querypose.analysis import gpu_report
from querypose.analysis.benchmark_subjects import InferenceSubject, TrainingSubject
from querypose.analysis.gpu_report import Case, Measured, Page, Part, Scope, Table
from querypose.config import load_config
from tests.tiny import TINY_MODEL


@pytest.fixture
def page(tmp_path: Path) -> Page:
    return Page(tmp_path / "gpu.md", tmp_path / "gpu.json")


def _scope(seconds: float = 600.0) -> Scope:
    return Scope("cpu", time.monotonic() + seconds, image_size=(64, 96), steps=1, overrides=tuple(TINY_MODEL))


def _table(scope: Scope) -> Table:
    return Table(["what", "ms"], [["this", "1.5"]], ["A note."])


def test_a_part_that_fails_leaves_the_others(page: Page) -> None:
    def fail(scope: Scope) -> Table:
        raise ValueError("no such kernel\nand more")

    assert not page.run([Part("First", 1, fail), Part("Second", 1, _table)], _scope(), report=lambda line: None)
    text = page.markdown.read_text()
    assert "**ValueError: no such kernel (test_gpu_report.py:" in text
    assert "| this   | 1.5  |" in text
    assert "A note." in text
    parts = json.loads(page.record.read_text())["parts"]
    assert [part.get("rows") for part in parts] == [None, [["this", "1.5"]]]


def test_the_page_is_there_after_every_part(page: Page) -> None:
    def interrupt(scope: Scope) -> Table:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        page.run([Part("First", 1, _table), Part("Second", 1, interrupt)], _scope(), report=lambda line: None)
    assert "## First" in page.markdown.read_text()
    assert "## Second" not in page.markdown.read_text()


def test_a_part_is_not_begun_without_time_for_it(page: Page) -> None:
    lines: list[str] = []
    assert not page.run([Part("Long", 700, _table), Part("Short", 1, _table)], _scope(), report=lines.append)
    assert "not begun: 700 s are needed" in lines[0]
    assert lines[1].endswith("done")


def test_a_part_whose_result_is_bad_makes_the_report_fail(page: Page) -> None:
    def bad(scope: Scope) -> Table:
        return Table(["tests"], [["FAILED test_x"]], is_good=False)

    assert not page.run([Part("Tests", 1, bad)], _scope(), report=lambda line: None)
    assert "FAILED test_x" in page.markdown.read_text()


@pytest.mark.parametrize("kind", [TrainingSubject, InferenceSubject])
def test_a_row_that_fails_leaves_the_others(kind: type[TrainingSubject] | type[InferenceSubject]) -> None:
    cases = [
        Case(gpu_report.POET, 2, "no such key", ("MODEL.NO_SUCH_KEY", "1")),
        Case(gpu_report.POET, 2, "float32", ("TF32", "none")),
    ]
    first, second = gpu_report._measure(kind, _scope(), cases, lambda case, measured: [f"{measured.timing.samples}"])
    assert "ConfigError" in first[-1]
    assert second[:3] == ["POET R50", "float32", "2"]
    assert float(second[3]) > 0
    assert second[-1] == "1"


def test_every_part_measures(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """All that is not the tests, a training and the loaders, which have tests of their own."""
    monkeypatch.setattr(gpu_report, "LIGHT", gpu_report.POET)  # a smaller tiny model
    measured = Measured(gpu_report.Timing.of([0.5]), 2.0, 1.0, 0.5)
    monkeypatch.setattr(Measured, "of", classmethod(lambda cls, subject, steps: measured))
    scope = _scope()
    training, inference = gpu_report.training_speed(scope), gpu_report.inference_speed(scope)
    assert {row[3] for row in training.rows} == {row[3] for row in inference.rows} == {"500.0"}
    assert all(float(row[-1]) > 0 for row in inference.rows)
    kernels = gpu_report.largest_kernels(scope)
    assert len(kernels.rows) == gpu_report.NUM_KERNELS
    assert sum(float(row[-1].rstrip("%")) for row in kernels.rows) <= 100.1


def test_peaks_of_the_machine_are_rates() -> None:
    flops, bytes_per_second = gpu_report.machine_peaks("cpu")
    assert set(flops) == {"float32", "TF32", "bfloat16"}
    assert min(*flops.values(), bytes_per_second) > 1e6


def test_the_short_training_takes_photos_from_the_folder_of_the_datasets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    assert gpu_report.training_data() == (gpu_report.DRAWN_PEOPLE, [])
    for dataset in ("lsp", "lsp-multi"):
        (tmp_path / dataset).mkdir()
    config_file, overrides = gpu_report.training_data()
    cfg = load_config(gpu_report.ROOT / config_file, overrides)
    assert cfg.DATASETS.TRAIN == ["lsp_train", "lsp_multi_train"]
    assert cfg.INPUT.MIN_SIZE_TEST == 192
