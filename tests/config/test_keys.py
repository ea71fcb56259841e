"""Keys that modules add, and the names that registries allow."""

from __future__ import annotations

import pytest

from querypose.config import ConfigError, Key, add_keys, get_cfg, keys, load_config, registered
from querypose.d2 import CfgNode, Registry


@pytest.fixture(autouse=True)
def _keys_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys, "_CHECKS", keys._CHECKS.copy())
    for name in ("KEYS", "OWNERS"):
        known = getattr(keys, name)
        for key in ("MODEL.MINE.WIDTH", "MODEL.MINE.KIND"):
            monkeypatch.setitem(known, key, None)  # which takes it out again in the end
            monkeypatch.delitem(known, key)


def test_an_added_key_is_in_the_config_and_checked() -> None:
    def check(cfg: CfgNode) -> None:
        if cfg.MODEL.MINE.WIDTH % 2:
            raise ConfigError(f"MODEL.MINE.WIDTH is {cfg.MODEL.MINE.WIDTH}; allowed: even numbers.")

    add_keys([Key("MODEL.MINE.WIDTH", 4, "width of mine")], check)
    assert get_cfg().MODEL.MINE.WIDTH == 4
    assert load_config(None, ["MODEL.MINE.WIDTH", "6"]).MODEL.MINE.WIDTH == 6
    with pytest.raises(ConfigError, match=r"MODEL.MINE.WIDTH is 5; allowed: even numbers"):
        load_config(None, ["MODEL.MINE.WIDTH", "5"])


@pytest.mark.parametrize(
    ("key", "message"),
    [
        (
            Key("SOLVER.GAMMA", 0.5, ""),
            r"test_keys adds the key SOLVER.GAMMA with the default 0.5, but querypose.config",
        ),
        (
            Key("SOLVER", 1, ""),
            r"test_keys adds the key SOLVER, but .* has added SOLVER\..*: one name cannot be a key and",
        ),
        (Key("SOLVER.GAMMA.START", 1, ""), r"SOLVER.GAMMA.START, but .*solver has added SOLVER.GAMMA: one name"),
    ],
)
def test_a_name_that_another_module_has_added(key: Key, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        add_keys([key])


def test_what_is_registered_later_is_allowed_too() -> None:
    registry, table = Registry("KINDS"), {"a": 1}
    of_registry, of_table = registered(registry), registered(table, without=["c"])
    assert of_registry.problem("KEY", "a") == "KEY is 'a'; allowed: ."
    registry.register(int)
    table.update(b=2, c=3)
    assert of_registry.problem("KEY", "int") is None
    assert of_table.problem("KEY", "b") is None
    assert of_table.problem("KEY", "c") == "KEY is 'c'; allowed: 'a', 'b'."
