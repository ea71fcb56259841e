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

from querypose.deployment import ImagePoses, PoseEstimator, web_export
from querypose.deployment.onnx_export import ExportError
from querypose.deployment.web_export import export_web
from tests.deployment.models import noise, tiny_package

pytest.importorskip("onnxscript")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--window-size=1200,800",
    "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream",
)  # fmt: skip
DROP = """
const done = arguments[arguments.length - 1];
document.querySelector("#status").textContent = "";
fetch("sample1.png").then((response) => response.blob()).then((blob) => {
  const data = new DataTransfer();
  data.items.add(new File([blob], arguments[0], { type: "image/png" }));
  document.querySelector("#stage").dispatchEvent(new DragEvent("drop", { dataTransfer: data, cancelable: true }));
  done();
});
"""
FIND = """
const done = arguments[arguments.length - 1];
const wait = () => window.querypose
  ? window.querypose.find("sample1.png").then(done, (error) => done(String(error)))
  : setTimeout(wait, 50);
wait();
"""


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("photo") / "photo.png"
    Image.fromarray(noise(64, 96, 1)).save(path)
    return path


@pytest.fixture(scope="module")
def page(photo: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The page of a tiny model, open in Chromium."""
    webdriver = pytest.importorskip("selenium.webdriver")
    if CHROMIUM is None or DRIVER is None:
        pytest.skip("there is no Chromium with its driver (apt install chromium chromium-driver)")
    folder = tmp_path_factory.mktemp("page")
    try:
        export_web(tiny_package("POET"), folder, samples=[photo])
    except ExportError as error:
        if "npm" not in str(error):
            raise
        pytest.skip(f"onnxruntime-web is not here: {error}")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    driver.set_script_timeout(120)
    driver.get(f"http://127.0.0.1:{server.server_port}")
    yield driver
    driver.quit()
    server.shutdown()
    server.server_close()


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serves quietly."""

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def expected(photo: Path) -> ImagePoses:
    poses: ImagePoses = PoseEstimator(tiny_package("POET"), device="cpu")(photo)
    assert len(poses) > 0
    return poses


def wait_for(page: Any, name: str, words: str) -> str:
    for _ in range(600):
        if words in (text := page.find_element("id", name).text):
            return str(text)
        threading.Event().wait(0.1)
    raise AssertionError(f"{name} says {text!r}, not {words!r}")


def set_threshold(page: Any, value: float) -> None:
    page.execute_script(
        "const t = document.querySelector('#threshold'); t.value = arguments[0]; t.dispatchEvent(new Event('input'))",
        value,
    )


def test_the_page_finds_what_python_finds(page: Any, expected: ImagePoses) -> None:
    found = page.execute_async_script(FIND)
    assert isinstance(found, dict), found
    keypoints = np.array([pose["keypoints"] for pose in found["poses"]])
    assert len(keypoints) == len(expected)
    np.testing.assert_allclose(keypoints[..., :2], expected.keypoints[..., :2], atol=0.5)
    np.testing.assert_allclose([pose["score"] for pose in found["poses"]], expected.scores, atol=1e-3)
    assert page.find_element("id", "backend").text == "WebAssembly (no WebGPU here)"


def test_samples_are_shown_above_the_threshold(page: Any, expected: ImagePoses) -> None:
    page.execute_script("document.querySelector('#samples img').click()")
    wait_for(page, "status", "Done.")
    assert "ms" in page.find_element("id", "time").text
    for threshold in (0.0, float(np.median(expected.scores)), 1.0):
        set_threshold(page, threshold)
        shown = int(page.find_element("id", "count").text)
        assert shown == (expected.scores >= round(threshold, 2)).sum()


def test_a_photo_is_dropped(page: Any, expected: ImagePoses) -> None:
    set_threshold(page, 0.0)
    page.execute_script("document.querySelector('#count').textContent = ''")
    page.execute_async_script(DROP, "photo.png")
    wait_for(page, "status", "Done.")
    assert page.find_element("id", "count").text == str(len(expected))
    page.execute_async_script(DROP.replace("[blob]", "['text']"), "text.png")
    wait_for(page, "status", "text.png is not a picture")


def test_the_webcam_runs_until_it_is_stopped(page: Any) -> None:
    """Chromium's own, which shows a green picture with a dial."""
    page.execute_script("document.querySelector('#time').textContent = ''")
    page.execute_script("document.querySelector('#camera').click()")
    wait_for(page, "time", "ms")
    assert page.find_element("id", "camera").text == "Stop"
    assert page.execute_script("return document.querySelector('#canvas').width") == 640
    page.execute_script("document.querySelector('#camera').click()")
    assert page.find_element("id", "camera").text == "Webcam"


def test_nothing_leaves_the_computer(page: Any) -> None:
    requested = page.execute_script("return performance.getEntriesByType('resource').map((entry) => entry.name)")
    assert requested
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
