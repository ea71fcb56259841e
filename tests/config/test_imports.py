"""Modules of a user's own: imported by name or by path before the config is checked, or refused in plain words."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from querypose.config import ConfigError, import_modules, keys, load_config
from querypose.d2 import META_ARCH_REGISTRY
from tests.engine.toy_pose import write_toy_config
from tests.scripts import ROOT

MODULE = """
from querypose.config import Key, add_keys
from querypose.d2 import META_ARCH_REGISTRY
from tests.engine.toy_pose import ToyPose

add_keys([Key("MODEL.HOMEMADE.SCALE", 1.0, "factor of the loss")])

@META_ARCH_REGISTRY.register()
class Homemade(ToyPose):
    @classmethod
    def from_config(cls, cfg):
        assert cfg.MODEL.HOMEMADE.SCALE == 3.0
        return super().from_config(cfg)
"""


@pytest.fixture(autouse=True)
def _as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    modules = set(sys.modules)
    yield
    for name in set(sys.modules) - modules:
        if getattr(sys.modules[name], "__file__", None) and str(tmp_path) in str(sys.modules[name].__file__):
            del sys.modules[name]
    keys.KEYS.pop("MODEL.HOMEMADE.SCALE", None)
    keys.OWNERS.pop("MODEL.HOMEMADE.SCALE", None)
    META_ARCH_REGISTRY._obj_map.pop("Homemade", None)


@pytest.mark.parametrize("name", ["homemade", "homemade.py", "../{folder}/homemade.py", "{absolute}/homemade.py"])
@pytest.mark.parametrize("place", ["command line", "yaml"])
def test_what_a_module_registers_and_its_keys_count(tmp_path: Path, name: str, place: str) -> None:
    Path("homemade.py").write_text(MODULE)
    name = name.format(folder=tmp_path.name, absolute=tmp_path)
    content = {"MODEL": {"META_ARCHITECTURE": "Homemade", "HOMEMADE": {"SCALE": 2.0}}}
    Path("mine.yaml").write_text(yaml.safe_dump(content if place == "command line" else {"IMPORTS": [name], **content}))
    cfg = load_config("mine.yaml", imports=[name] if place == "command line" else [])
    assert cfg.MODEL.HOMEMADE.SCALE == 2.0
    assert [name] == cfg.IMPORTS  # so that the config.yaml of a run imports it again


def test_a_package_is_imported_by_its_folder() -> None:
    Path("deep/kinds").mkdir(parents=True)
    Path("deep/kinds/__init__.py").write_text("from kinds import homemade")
    Path("deep/kinds/homemade.py").write_text(MODULE)
    assert load_config(None, ["MODEL.HOMEMADE.SCALE", "4"], ["deep/kinds"]).MODEL.HOMEMADE.SCALE == 4.0


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("absent_module", None, r"IMPORTS: there is no module 'absent_module', neither installed nor in the current"),
        ("absent/module.py", None, r"IMPORTS: absent/module.py does not exist .*current folder"),
        ("wrong.py", "import numpy.absent", r"IMPORTS: wrong.py raises ModuleNotFoundError .*wrong.py, line 1\)"),
        ("wrong", "\n\n1 / 0", r"wrong raises ZeroDivisionError when it is imported: division.*wrong.py, line 3"),
        ("wrong", "\n)", r"IMPORTS: wrong raises SyntaxError .*wrong.py, line 2\)"),
        (
            "json.py",
            "",
            r"IMPORTS: json.py cannot be imported, because Python knows another module 'json' .*Rename yours",
        ),
        ("my-module.py", "", r"IMPORTS: my-module.py is not a valid name of a module; rename it"),
        (
            "wrong",
            'from querypose.config import *\nadd_keys([Key("SOLVER.GAMMA", 9.0, "")])',
            r"IMPORTS: wrong: wrong adds the key SOLVER.GAMMA with the default 9.0, but querypose.config.solver has",
        ),
    ],
)
def test_a_module_that_cannot_be_used(name: str, content: str | None, message: str) -> None:
    if content is not None:
        Path(name if name.endswith(".py") else f"{name}.py").write_text(content)
    with pytest.raises(ConfigError, match=message):
        import_modules([name])


def test_a_folder_that_is_no_package() -> None:
    Path("folder").mkdir()
    with pytest.raises(ConfigError, match=r"IMPORTS: the folder ./folder has no __init__.py"):
        import_modules(["./folder"])


def test_imports_that_are_no_list_of_names() -> None:
    with pytest.raises(ConfigError, match=r"IMPORTS is 3; allowed: a list of names or paths of modules"):
        load_config(None, ["IMPORTS", "3"])


@pytest.mark.slow
def test_every_process_of_a_run_imports_it(tmp_path: Path) -> None:
    """Two spawned processes; the config.yaml that they leave imports it again."""
    Path("homemade.py").write_text(MODULE)
    arguments = ["--import", "homemade.py", "--num-gpus", "2", "--config-file", str(write_toy_config(tmp_path))]
    overrides = ["MODEL.META_ARCHITECTURE", "Homemade", "MODEL.HOMEMADE.SCALE", "3.0", "SOLVER.MAX_ITER", "1"]
    overrides += ["TEST.EVAL_PERIOD", "0", "DATASETS.TEST", "[]"]
    # The module takes its model from the tests, which only pytest finds by itself.
    paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    subprocess.run(
        [sys.executable, str(ROOT / "tools" / "train_net.py"), *arguments, *overrides],
        check=True,
        env={**os.environ, "PYTHONPATH": paths},
    )
    assert (tmp_path / "output" / "model_final.pth").is_file()
    assert load_config(tmp_path / "output" / "config.yaml").IMPORTS == ["homemade.py"]
