"""The app answers its own client, within its limits."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from querypose.deployment import PoseEstimator
from tests.deployment.models import noise, tiny_package
from tests.scripts import load_script

gradio_client = pytest.importorskip("gradio_client")
httpx = pytest.importorskip("httpx")
pytest.importorskip("gradio")
pytestmark = pytest.mark.filterwarnings("ignore")  # of gradio and what it brings


@pytest.fixture(scope="module")
def model() -> PoseEstimator:
    return PoseEstimator(tiny_package("POET"), device="cpu")


@pytest.fixture(scope="module")
def client(model: PoseEstimator, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    app = load_script("tools/app.py")
    page = app.build(app.App({"one": model, "two": model}, tmp_path_factory.mktemp("downloads"), max_pixels=20_000))
    options = app.launch_options(app.parse_arguments(["one", "--max-megabytes", "1"]))
    _, url, _ = page.launch(**{**options, "server_port": None}, prevent_thread_lock=True, quiet=True)
    yield gradio_client.Client(url, verbose=False)
    page.close()


def find(client: Any, path: Path, second: str = "two") -> Any:
    return client.predict(gradio_client.handle_file(str(path)), "one", second, 0.0, api_name="/find")


def test_it_finds_what_the_model_finds(client: Any, model: PoseEstimator, tmp_path: Path) -> None:
    Image.fromarray(noise(64, 96)).save(tmp_path / "photo.png")
    first, second, download, words = find(client, tmp_path / "photo.png")
    expected = model(tmp_path / "photo.png")
    found = json.loads(Path(download).read_text())
    np.testing.assert_allclose([pose["score"] for pose in found["two"]], expected.scores)
    assert Image.open(first).size == Image.open(second).size == (96, 64)
    assert f"one: {len(expected)} poses" in words
    assert find(client, tmp_path / "photo.png", second="none")[1] is None


def test_large_and_foreign_files_are_refused(client: Any, tmp_path: Path) -> None:
    Image.fromarray(noise(200, 200)).save(tmp_path / "wide.png")
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "heavy.png").write_bytes(np.random.default_rng(0).bytes(2 * 10**6))
    for name, words in (("wide", "20,000 pixels"), ("text", ""), ("heavy", "")):
        with pytest.raises(Exception) as raised:  # noqa: PT011  # the client's errors are of many kinds
            find(client, tmp_path / f"{name}.png")
        assert words in str(raised.value)
        assert "Traceback" not in str(raised.value)


def test_no_file_of_the_server_can_be_read(client: Any, tmp_path: Path) -> None:
    secret = tmp_path / "secret.png"
    Image.fromarray(noise(16, 16)).save(secret)
    address = client.src.rstrip("/") + "/gradio_api"
    # Past the client, which would upload the file: as somebody who names a file of the server.
    given = {"path": str(secret), "meta": {"_type": "gradio.FileData"}}
    event = httpx.post(f"{address}/call/find", json={"data": [given, "one", "none", 0.0]}).json()["event_id"]
    answer = httpx.get(f"{address}/call/find/{event}").text
    assert "event: error" in answer
    assert "Traceback" not in answer
    for route in (f"file={secret}", "file=/etc/passwd", "file=tools/app.py"):
        assert httpx.get(f"{address}/{route}").status_code in (403, 404)
