"""The seam: which engine, and every name that the project relies on."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from querypose import d2

ROOT = Path(__file__).resolve().parents[2]


def _import_seam(engine: str, python_path: str = "") -> subprocess.CompletedProcess[str]:
    """Imports the seam in a fresh process, in which any warning is an error, and prints what it chose."""
    code = "import querypose.d2 as d2, sys; print(d2.ENGINE, d2.ENGINE_VERSION, 'fvcore.nn' in sys.modules)"
    environment = {name: value for name, value in os.environ.items() if name != "QUERYPOSE_ENGINE"}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), python_path, environment.get("PYTHONPATH", "")])
    if engine:
        environment["QUERYPOSE_ENGINE"] = engine
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code], env=environment, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("name", d2.__all__)
def test_has_name(name: str) -> None:
    assert hasattr(d2, name)


@pytest.mark.parametrize("name", ["IterationTimer", "LRScheduler", "PeriodicWriter", "EvalHook"])
def test_has_hook(name: str) -> None:
    assert issubclass(getattr(d2.hooks, name), d2.HookBase)


def test_names_come_from_the_active_engine() -> None:
    assert d2.ENGINE in ("builtin", "detectron2")
    assert d2.ENGINE_VERSION
    root = "detectron2" if d2.ENGINE == "detectron2" else "querypose.d2.builtin"
    for name in ("DefaultTrainer", "Instances", "DatasetEvaluator", "default_setup"):
        assert getattr(d2, name).__module__.startswith(root)


def test_builtin_can_be_forced_and_imports_without_warning() -> None:
    process = _import_seam("builtin")
    assert process.returncode == 0, process.stderr
    assert process.stdout.split()[0] == "builtin"
    assert process.stdout.split()[-1] == "False", "fvcore.nn warns on import and must stay out"


def test_default_is_the_engine_of_this_environment() -> None:
    process = _import_seam("")
    assert process.returncode == 0, process.stderr
    installed = subprocess.run(
        [sys.executable, "-c", "import detectron2.engine"], capture_output=True, cwd=ROOT, check=False
    )
    assert process.stdout.split()[0] == ("builtin" if installed.returncode else "detectron2")


def test_unknown_engine_is_refused_in_a_line() -> None:
    process = _import_seam("mmdet")
    assert process.returncode == 2
    [line] = process.stderr.splitlines()
    assert "error: QUERYPOSE_ENGINE is 'mmdet'; allowed: builtin, detectron2" in line


def test_forced_detectron2_that_is_broken_is_an_error(tmp_path: Path) -> None:
    package = tmp_path / "detectron2"
    package.mkdir()
    (package / "__init__.py").write_text("raise ImportError('not compiled')")
    process = _import_seam("detectron2", str(tmp_path))
    assert process.returncode == 2
    [line] = process.stderr.splitlines()
    assert "detectron2 cannot be imported (not compiled)" in line
    assert "set QUERYPOSE_ENGINE=builtin" in line


def test_broken_detectron2_gives_way_and_the_log_says_so(tmp_path: Path) -> None:
    package = tmp_path / "detectron2"
    package.mkdir()
    (package / "__init__.py").write_text("raise ImportError('not compiled')")
    process = _import_seam("", str(tmp_path))
    assert process.returncode == 0, process.stderr
    assert process.stdout.split()[0] == "builtin"
    assert "not compiled" in process.stderr


def test_folder_that_is_called_detectron2_is_not_detectron2(tmp_path: Path) -> None:
    if importlib.util.find_spec("detectron2"):
        pytest.skip("a real detectron2 on the path wins over a folder without __init__.py, as it should")
    (tmp_path / "detectron2").mkdir()
    process = _import_seam("", str(tmp_path))
    assert process.stdout.split()[0] == "builtin"
    assert process.stderr == ""


def test_no_other_module_imports_an_engine() -> None:
    statement = re.compile(r"^\s*(import|from) (detectron2\b|querypose\.d2\.builtin)", flags=re.M)
    offenders = []
    for folder in ("querypose", "tools", "datasets", "tests"):
        for file in (ROOT / folder).rglob("*.py"):
            inside = file.is_relative_to(ROOT / "querypose" / "d2") or file.is_relative_to(ROOT / "tests" / "d2")
            if not inside and statement.search(file.read_text()):
                offenders.append(str(file.relative_to(ROOT)))
    assert offenders == []
