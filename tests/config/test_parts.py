"""Parts that a config lists are built as it says, or refused by key, entry, argument and what is allowed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import pytest

from querypose.config import ConfigError, build_part, part_list
from querypose.d2 import Registry

PARTS = Registry("PARTS")


@PARTS.register()
class Blur:
    def __init__(
        self,
        strength: float,
        sizes: tuple[int, int] = (3, 5),
        channels: Sequence[str] = (),
        border: Literal["zero", "mirror"] = "zero",
        seed: int | None = None,
        *,
        skeleton: str = "",
    ) -> None:
        if strength < 0:
            raise ValueError(f"strength is {strength}; allowed: a number >= 0.")
        self.given = (strength, sizes, channels, border, seed, skeleton)


@pytest.mark.parametrize("registry", [PARTS, {"Blur": Blur}])
def test_it_is_built_with_values_as_its_annotations_say(registry: Any) -> None:
    entry = {"name": "Blur", "strength": 1, "sizes": [7, 9], "channels": ["r"], "border": "mirror", "seed": 4}
    built = build_part(registry, entry, "INPUT.PARTS", skeleton="coco", is_train=True)
    assert built.given == (1.0, (7, 9), ["r"], "mirror", 4, "coco")
    assert isinstance(built.given[0], float)


def test_what_an_entry_leaves_out_is_the_default() -> None:
    assert build_part(PARTS, {"name": "Blur", "strength": 0.5}, "INPUT.PARTS").given == (
        0.5,
        (3, 5),
        (),
        "zero",
        None,
        "",
    )


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("Blur", r"INPUT.PARTS is 'Blur'; allowed: \{name: "),
        ({"strength": 1}, r"INPUT.PARTS is .*; allowed: \{name: "),
        ({"name": "Blurr"}, r"INPUT.PARTS has the name 'Blurr'; allowed: 'Blur'\."),
        ({"name": "Blur"}, r"INPUT.PARTS does not give 'Blur' the argument 'strength'; it takes: strength: float, "),
        ({"name": "Blur", "strenght": 1}, r"'Blur' the argument 'strenght'; allowed: strength: float, sizes: "),
        ({"name": "Blur", "strength": "1"}, r"'strength' with '1'; allowed: strength: float\."),
        ({"name": "Blur", "strength": True}, r"'strength' with True; allowed: strength: float\."),
        ({"name": "Blur", "strength": 1, "sizes": [1]}, r"'sizes' with \[1\]; allowed: sizes: tuple\[int, int\] = \(3"),
        ({"name": "Blur", "strength": 1, "channels": "rgb"}, r"'channels' with 'rgb'; allowed: channels: Sequence"),
        ({"name": "Blur", "strength": 1, "border": "wrap"}, r"'wrap'; allowed: border: Literal\['zero', 'mirror'\]"),
        ({"name": "Blur", "strength": 1, "seed": 1.5}, r"'seed' with 1.5; allowed: seed: int | None = None\."),
        ({"name": "Blur", "strength": 1, "skeleton": "coco"}, r"the argument 'skeleton'; allowed: "),
        ({"name": "Blur", "strength": -1}, r"INPUT.PARTS has \{.*\}: strength is -1.0; allowed: a number >= 0"),
    ],
)
def test_what_cannot_be_built_is_refused(entry: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_part(PARTS, entry, "INPUT.PARTS", skeleton="coco")


def test_a_list_is_checked_entry_by_entry_before_anything_is_built() -> None:
    allowed = part_list(PARTS, given=["skeleton"])
    assert allowed.problem("KEY", []) is None
    assert allowed.problem("KEY", [{"name": "Blur", "strength": -1}]) is None
    assert "KEY is 3; allowed: a list of {name: …" in str(allowed.problem("KEY", 3))
    assert "KEY[1] has the name 'No'" in str(allowed.problem("KEY", [{"name": "Blur", "strength": 1}, {"name": "No"}]))
    assert "'skeleton'" in str(allowed.problem("KEY", [{"name": "Blur", "strength": 1, "skeleton": "coco"}]))
