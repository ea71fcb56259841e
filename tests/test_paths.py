"""Names that come from files: which path they become, and which are refused, in every place that takes them."""

from __future__ import annotations

import http.server
import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from querypose.config import ConfigError, read_table
from querypose.d2 import CheckpointError
from querypose.d2.download import download
from querypose.paths import FileNameError, open_regular_file, path_within


@given(
    name=st.one_of(
        st.text(max_size=30),
        st.lists(st.sampled_from(["..", ".", "", "a", "b.jpg", "~", "C:", "\\", "\0", "\ud800"])).map("/".join),
    )
)
@example(name="../../.profile")
@example(name="a/../../b")
@example(name="x" * 300)
def test_a_name_stays_in_its_folder_or_is_refused(name: str) -> None:
    try:
        path = path_within("/data/images", name, "a.json")
    except FileNameError as refusal:
        assert str(refusal).startswith("a.json: ")  # noqa: PT017  # some names are good
    else:
        assert os.path.normpath(path).startswith("/data/images/")
        os.fsencode(path)


@pytest.mark.parametrize("name", ["a.jpg", "train2017/a.jpg", "a b…é.jpg", "..a.jpg", "a..jpg", ".a", "12:30.jpg"])
def test_usual_names_are_taken(tmp_path: Path, name: str) -> None:
    assert path_within(tmp_path, name, "a.json") == tmp_path / name


@pytest.mark.parametrize("name", [None, 7, [], True, b"a"])
def test_what_is_no_text_is_refused(name: object) -> None:
    with pytest.raises(FileNameError, match="is no name of a file"):
        path_within("folder", name, "a.json")


def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(OSError, match="it is a"):
            open_regular_file(path)
    (tmp_path / "file").write_bytes(b"abc")
    (tmp_path / "link").symlink_to("file")  # links are their owner's
    with open_regular_file(tmp_path / "link") as stream:
        assert stream.read() == b"abc"


@pytest.mark.parametrize("name", ["..", "."])
def test_a_row_of_a_table_has_a_folder_of_its_own(tmp_path: Path, name: str) -> None:
    (tmp_path / "base.yaml").write_text("VERSION: 2")
    table = {"title": "t", "base": "base.yaml", "rows": [{"name": name, "config": {"SEED": 1}}]}
    (tmp_path / "table.yaml").write_text(json.dumps(table))
    with pytest.raises((FileNameError, ConfigError), match="name"):
        read_table(tmp_path / "table.yaml")


class _Answers(http.server.BaseHTTPRequestHandler):
    """Gives 9 bytes whatever is asked for, but cut off where the address says so; and a page that is not there."""

    def do_GET(self) -> None:  # the library's name
        self.send_response(404 if "absent" in self.path else 200)
        self.send_header("Content-Length", "90" if "cut" in self.path else "9")
        self.end_headers()
        self.wfile.write(b"evil code")

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Its address; the home folder of the test is tmp_path/home."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Answers) as listening:
        threading.Thread(target=listening.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{listening.server_port}"
        listening.shutdown()


@pytest.mark.parametrize(
    "path",
    ["/a/w.pth", "/../../.profile", "/%2e%2e/%2e%2e/.profile", "//..//..//.profile", "/a/w.pth?x=../../.profile"],
)
def test_a_download_stays_in_the_cache(server: str, tmp_path: Path, path: str) -> None:
    file = download(server + path)
    assert file.read_bytes() == b"evil code"
    files = [file for file in (tmp_path / "home").rglob("*") if file.is_file()]
    assert files == [file]
    assert file.is_relative_to(tmp_path / "home" / ".cache" / "querypose")
    assert download(server + path) == file


@pytest.mark.parametrize("path", ["/absent.pth", "/cut.pth", "/", "/a/..", "/a/."])
def test_a_download_that_fails_leaves_nothing(server: str, tmp_path: Path, path: str) -> None:
    with pytest.raises((CheckpointError, FileNameError), match="http://127"):
        download(server + path)
    assert not [file for file in tmp_path.rglob("*") if file.is_file()]


@pytest.mark.parametrize(
    "address",
    [
        "http://127.0.0.1:1/w.pth",
        "file:///etc/passwd",
        "ftp://a/b",
        "http://",
        "http://[/w.pth",
        "x://y",
        "http://a b/w",
    ],
)
def test_an_address_that_leads_nowhere_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises((CheckpointError, FileNameError)):
        download(address)
