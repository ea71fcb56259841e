"""What all tests share."""

from __future__ import annotations

import getpass
import importlib.util
import os
import signal
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings

from querypose import d2
from tests.loggers import restored_loggers

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


# The same examples on every machine, however slow it is.
settings.register_profile(
    "every machine", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("every machine")


def pytest_configure(config: pytest.Config) -> None:
    # The tests run side by side; more threads than cores would only get in each other's way.
    torch.set_num_threads(1)
    # What a shell starts in the background ignores Ctrl-C, and so would the processes that the tests interrupt.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # torch.compile takes from its cache also what was made for other instructions than ATEN_CPU_CAPABILITY allows.
    folder = f"torchinductor_{getpass.getuser()}_{torch.backends.cpu.get_cpu_capability()}"
    # An import has set it already.
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(Path(tempfile.gettempdir()) / folder)
    if importlib.util.find_spec("gradio") is not None:  # its loops and sockets live longer than the last test
        warnings.filterwarnings("ignore", "unclosed (event loop|<socket)", ResourceWarning)
    if d2.ENGINE == "detectron2":
        # It opens metrics.json when a trainer is built and closes it when training ends, and opens the config file for
        # the log without closing it: a trainer that is never trained warns.
        config.addinivalue_line("filterwarnings", "ignore:unclosed file:ResourceWarning")
        warnings.filterwarnings("ignore", "unclosed file", ResourceWarning)  # what lives longer than the last test


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _restored_loggers() -> Iterator[None]:
    with restored_loggers():
        yield


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real photos with annotations, which are not part of the repository."""
    if not SHARED_DATA.is_dir():
        pytest.skip("the real photos are not beside the repository (../shared/data)")
    return SHARED_DATA
