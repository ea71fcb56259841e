"""The page finds the poses that Python finds."""

from __future__ import annotations

import functools
import http.server
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from querypose.deployment import PoseEstimator, web_export
from querypose.deployment.onnx_export import ExportError
from querypose.deployment.web_export import export_web
from tests.deployment.models import noise, tiny_package

pytest.importorskip("onnxscript")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--window-size=1200,800",
)  # fmt: skip


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Any]:
    webdriver = pytest.importorskip("selenium.webdriver")
    if CHROMIUM is None or DRIVER is None:
        pytest.skip("there is no Chromium with its driver (apt install chromium chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"--user-data-dir={tmp_path / 'profile'}"):
        options.add_argument(flag)
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    driver.set_script_timeout(120)
    yield driver
    driver.quit()


@pytest.fixture
def serve() -> Iterator[Any]:
    servers = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    def of(folder: Path) -> str:
        handler = functools.partial(Handler, directory=str(folder))
        servers.append(http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler))
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{servers[-1].server_port}"

    yield of
    for server in servers:
        server.shutdown()
        server.server_close()


def test_the_page_finds_what_python_finds(browser: Any, serve: Any, tmp_path: Path) -> None:
    Image.fromarray(noise(64, 96, 1)).save(tmp_path / "photo.png")
    try:
        page = export_web(tiny_package("POET"), tmp_path / "page", samples=[tmp_path / "photo.png"])
    except ExportError as error:
        if "npm" not in str(error):
            raise
        pytest.skip(f"onnxruntime-web is not here: {error}")
    expected = PoseEstimator(tiny_package("POET"), device="cpu")(tmp_path / "photo.png")
    browser.get(serve(page))
    found = browser.execute_async_script(
        "const done = arguments[arguments.length - 1];"
        "const wait = () => window.querypose ? window.querypose.find('sample1.png').then(done, (e) => done(String(e)))"
        " : setTimeout(wait, 50); wait();"
    )
    assert isinstance(found, dict), found
    keypoints = np.array([pose["keypoints"] for pose in found["poses"]])
    assert len(keypoints) == len(expected) > 0
    np.testing.assert_allclose(keypoints[..., :2], expected.keypoints[..., :2], atol=0.5)
    np.testing.assert_allclose([pose["score"] for pose in found["poses"]], expected.scores, atol=1e-3)
    browser.execute_script("document.querySelector('#samples img').click()")
    browser.execute_script(
        "const t = document.querySelector('#threshold'); t.value = 0; t.dispatchEvent(new Event('input'))"
    )
    for _ in range(100):
        if browser.find_element("id", "status").text == "Done.":
            break
        threading.Event().wait(0.1)
    assert browser.find_element("id", "count").text == str(len(expected))
    assert "ms" in browser.find_element("id", "time").text
    requested = browser.execute_script("return performance.getEntriesByType('resource').map((entry) => entry.name)")
    assert all(name.startswith(("http://127.0.0.1", "blob:", "data:")) for name in requested)


def test_a_runtime_that_cannot_be_had_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tiny_package("POET")
    with pytest.raises(ExportError, match="--runtime-folder"):
        export_web(package, tmp_path / "page", runtime_folder=tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ExportError, match="npm"):
        export_web(package, tmp_path / "page")
    cached = tmp_path / "cache" / "querypose" / f"onnxruntime-web-{web_export.RUNTIME_VERSION}.tgz"
    cached.write_bytes(b"something else")
    with pytest.raises(ExportError, match="Try again"):
        export_web(package, tmp_path / "page")
    assert not cached.exists()
