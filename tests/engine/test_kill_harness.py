"""A part of the kills of `tests.engine.kill_harness`; all of them: python -m tests.engine.kill_harness ."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

from tests.engine.kill_harness import WRITERS, Harness, harness

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
EVERY = 26


@pytest.fixture(scope="module", params=WRITERS)
def tries(request: pytest.FixtureRequest) -> Iterator[Harness]:
    with harness("toy", request.param) as opened:
        yield opened


def test_a_run_that_is_killed_at_its_files_comes_to_the_same_end(tries: Harness) -> None:
    kinds = {name.split()[0] for name in tries.operations}
    assert kinds >= {"open", "write", "fsync", "replace", "unlink", "mkdir"}
    assert len(tries.operations) > 120
    for number in tries.kills(EVERY, offset=7):
        tries.kill_and_resume(number)


def test_so_does_one_that_is_killed_again_while_it_goes_on(tries: Harness) -> None:
    first = next(index for index, name in enumerate(tries.operations, 1) if name == "replace .model_0000003.pth.tmp")
    operations = tries.kill_and_resume(first)
    for second in range(5, len(operations), 60):
        tries.kill_and_resume(first, second)


def test_the_harness_notices_what_is_lost(tries: Harness) -> None:
    tries.kill_and_resume(len(tries.operations))
    metrics = tries.output / "metrics.json"
    metrics.write_text("".join(metrics.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(AssertionError):
        tries.check_end()
