"""The progress bar: on a terminal with a rate and an ETA, silent elsewhere."""

from __future__ import annotations

import io
import sys

import pytest

from querypose.progress import progress, progress_bar


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_shows_how_far_and_how_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    assert list(progress([1, 2], "reading")) == [1, 2]
    with progress_bar("trainings", total=1, unit="training") as bar:
        bar.update()
    shown = terminal.getvalue()
    assert "reading: 100%" in shown
    assert "2/2" in shown
    assert "image/s" in shown
    assert "trainings: 100%" in shown
    terminal.truncate(0)
    assert list(progress([1], "reading", shown=False)) == [1]
    assert terminal.getvalue() == ""


def test_elsewhere_it_is_silent(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(progress(iter([1, 2]), "reading", total=2)) == [1, 2]
    assert capsys.readouterr() == ("", "")
