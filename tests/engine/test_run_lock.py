"""One run owns its OUTPUT_DIR, and a dead one gives it up."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from querypose.config import ConfigError
from querypose.engine import run_lock
from querypose.engine.run_lock import LOCK, own_output_dir
from tests.engine.toy_pose import write_toy_config
from tests.loggers import restored_loggers
from tests.scripts import run_script
from tests.test_user_errors import assert_reported


@pytest.fixture(autouse=True)
def _locks_given_up() -> Iterator[None]:
    yield
    run_lock._forget_locks()


def owner_of(folder: Path) -> tuple[int, int]:
    """A process that owns the folder, and a child of it that lives on; both wait for a signal."""
    read, write = os.pipe()
    owner = os.fork()
    if owner == 0:
        own_output_dir(folder)
        child = os.fork()
        if child:
            os.write(write, str(child).encode())
        signal.pause()
        os._exit(1)
    os.close(write)
    child = int(os.read(read, 20))
    os.close(read)
    return owner, child


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_folder_has_one_owner_until_it_is_dead(tmp_path: Path, number: int) -> None:
    """Also where a process that it has started, as of a data loader, outlives it."""
    owner, child = owner_of(tmp_path / "output")
    try:
        with pytest.raises(ConfigError, match=rf"another run is writing there \(process {owner} on .*, since "):
            own_output_dir(tmp_path / "output")
        own_output_dir(tmp_path / "other")
        os.kill(owner, number)
        os.waitpid(owner, 0)
        own_output_dir(tmp_path / "output")
        own_output_dir(str(tmp_path / "other" / ".." / "output"))  # again, by another name
    finally:
        os.kill(child, signal.SIGKILL)


@pytest.mark.parametrize("arguments", [[], ["--resume"], ["--eval-only", "--resume"]])
def test_a_second_run_in_the_folder_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    owner, child = owner_of(tmp_path / "output")
    try:
        with restored_loggers():
            exit_code = run_script("tools/train_net.py", "--config-file", str(write_toy_config(tmp_path)), *arguments)
        assert_reported(exit_code, ("OUTPUT_DIR", f"process {owner}", "choose another OUTPUT_DIR"), tmp_path, capsys)
        assert [file.name for file in (tmp_path / "output").iterdir()] == [LOCK]
    finally:
        for process in (child, owner):
            os.kill(process, signal.SIGKILL)
        os.waitpid(owner, 0)


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\0", b"x" * 5000])
def test_what_stands_in_the_file_does_not_matter(tmp_path: Path, content: bytes) -> None:
    (tmp_path / LOCK).write_bytes(content)
    own_output_dir(tmp_path)
    assert b"process" in (tmp_path / LOCK).read_bytes()


def test_a_file_system_without_locks_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def flock(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", flock)
    own_output_dir(tmp_path)
    assert "cannot be locked" in caplog.text
