"""Every tool with inputs that are damaged at random; `python -m tests.tools.generated_inputs` runs many more."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.tools.generated_inputs import TOOLS, VALID_EXIT_CODES, check, run

EXAMPLES = 5


@pytest.mark.parametrize("name", TOOLS)
def test_a_tool_uses_or_refuses_whatever_it_is_given(tmp_path: Path, name: str) -> None:
    (tmp_path / "valid").mkdir()
    outcome = run(TOOLS[name], TOOLS[name].prepare(tmp_path / "valid")[0])
    assert outcome.exit_code == VALID_EXIT_CODES.get(name, 0), outcome
    for seed in range(EXAMPLES):
        check(name, seed, tmp_path / str(seed))
