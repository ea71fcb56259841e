"""The page of a report in a real browser: Debian's Chromium, driven by Selenium."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from querypose.analysis.report import write_report
from querypose.analysis.runs import read_run
from tests.analysis.report_runs import change_annotations, missing_nose, toy_config, toy_json, write_run

pytest.importorskip("plotly", reason="reports need the package plotly")
webdriver = pytest.importorskip("selenium.webdriver", reason="the page is tested with the package selenium")
CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None or DRIVER is None, reason="the page is tested in chromium with chromedriver"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]
# Without them Chromium calls home at every start.
FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
)  # fmt: skip
MARKUP = "<img src=x onerror='window.broken=1'>.png"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report of two runs; one image has markup for its name, one is missing."""
    folder = tmp_path_factory.mktemp("runs")
    config = toy_config(folder)
    data = toy_json(config).parent
    data.joinpath("5.png").unlink()
    data.joinpath("0.png").rename(data / MARKUP)
    change_annotations(config, lambda content: content["images"][0].update(file_name=MARKUP))
    runs = [write_run(folder, "first <b>", config, missing_nose), write_run(folder, "second", config)]
    return write_report([read_run(run) for run in runs], folder / "report")


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}", "--window-size=1600,1000"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture
def opened(browser: Any, page: Path) -> Any:
    """The browser with the page, which has drawn everything."""
    browser.get(page.as_uri())
    browser.set_script_timeout(60)
    browser.execute_async_script(
        "const done = arguments[0]; const wait = () => document.documentElement.dataset.ready ? done() "
        ": setTimeout(wait, 20); wait();"
    )
    return browser


def count(browser: Any, selector: str) -> int:
    """Elements that can be seen."""
    visible: int = browser.execute_script(
        "return [...document.querySelectorAll(arguments[0])].filter((node) => node.getClientRects().length).length",
        selector,
    )
    return visible


def choose(browser: Any, name: str, value: str) -> None:
    browser.execute_script(
        "const node = document.getElementById(arguments[0]); node.value = arguments[1];"
        "node.dispatchEvent(new Event(node.type === 'range' ? 'input' : 'change'));",
        f"filter-{name}",
        value,
    )


def press(browser: Any, key: str) -> None:
    webdriver.ActionChains(browser).send_keys(key).perform()


def text(browser: Any, selector: str) -> str:
    shown: str = browser.execute_script("return document.querySelector(arguments[0]).textContent", selector)
    return shown


def test_loads_from_the_disk_without_an_error_and_draws_every_chart(opened: Any) -> None:
    assert opened.get_log("browser") == []
    assert count(opened, ".chart .main-svg") >= 9
    assert "second less first <b>: +" in text(opened, "#difference")
    assert "1 of 6 images cannot be read" in text(opened, "#notes")
    requests = opened.execute_script("return performance.getEntriesByType('resource').map((entry) => entry.name)")
    assert all(url.startswith(("file:", "data:", "blob:")) for url in requests)


def test_names_from_files_are_no_markup(opened: Any) -> None:
    assert opened.execute_script("return window.broken") is None
    assert MARKUP in text(opened, "#gallery")
    assert count(opened, "h1 b") == count(opened, "#gallery img") == 0


def test_filters_by_kind_of_error_keypoint_and_size(opened: Any) -> None:
    everything = count(opened, ".thumb")
    assert everything == 6
    choose(opened, "kind", "miss")
    assert count(opened, ".thumb") == everything
    choose(opened, "keypoint", "1")  # only the nose, keypoint 0, is missed
    assert count(opened, ".thumb") == 0
    choose(opened, "keypoint", "0")
    choose(opened, "run", "1")  # the second run has no error
    assert count(opened, ".thumb") == 0
    choose(opened, "run", "0")
    choose(opened, "size", "large")
    assert count(opened, ".thumb") == 0
    choose(opened, "size", "")
    choose(opened, "score", "0.9")  # one detection is as sure
    assert count(opened, ".thumb") == 1


def test_sorts_by_the_loss_of_ap(opened: Any) -> None:
    choose(opened, "sort", "better")
    order = "return [...document.querySelectorAll('.thumb')].map((node) => Number(node.dataset.image))"
    better = opened.execute_script(order)
    choose(opened, "sort", "worse")
    assert opened.execute_script(order) == sorted(better, key=lambda image: -better.index(image)) or len(better) == 6
    losses = "return window.REPORT.images.toSorted((a, b) => b.runs[1].loss - a.runs[1].loss).map((image) => image.id)"
    choose(opened, "sort", "loss")
    assert opened.execute_script(order) == opened.execute_script(losses)


def test_keyboard_steps_toggles_zooms_and_closes(opened: Any) -> None:
    press(opened, webdriver.Keys.ARROW_RIGHT)
    assert opened.execute_script("return document.getElementById('viewer').open")
    assert text(opened, "#viewer-title").startswith("1 / 6")
    press(opened, webdriver.Keys.ARROW_RIGHT)
    assert text(opened, "#viewer-title").startswith("2 / 6")
    press(opened, webdriver.Keys.ARROW_LEFT)
    press(opened, webdriver.Keys.ARROW_LEFT)
    assert text(opened, "#viewer-title").startswith("6 / 6")
    assert count(opened, "#panels .prediction circle") > 0
    press(opened, "p")
    assert count(opened, "#panels .prediction circle") == 0
    assert count(opened, "#panels .truth circle") > 0
    press(opened, "t")
    assert count(opened, "#panels .truth circle") == 0
    press(opened, "p")
    press(opened, "t")
    assert count(opened, "#panels .prediction circle") > 0
    width = "return Number(document.querySelector('#panels svg').getAttribute('viewBox').split(' ')[2])"
    whole = opened.execute_script(width)
    press(opened, "+")
    assert opened.execute_script(width) == pytest.approx(0.8 * whole)
    views = opened.execute_script(
        "return [...document.querySelectorAll('#panels svg')].map((svg) => svg.getAttribute('viewBox'))"
    )
    assert len({*views}) == 1  # both runs show the same part
    press(opened, "0")
    assert opened.execute_script(width) == whole
    press(opened, webdriver.Keys.ESCAPE)
    assert not opened.execute_script("return document.getElementById('viewer').open")


def test_an_image_that_is_missing_has_its_skeletons_on_gray(opened: Any) -> None:
    missing = "return [...document.querySelectorAll('.thumb')].find((node) => !node.querySelector('svg image'))"
    thumb = opened.execute_script(missing)
    assert len(thumb.find_elements("css selector", ".prediction circle")) > 0
    opened.execute_script("arguments[0].click()", thumb)
    assert "the image cannot be read" in text(opened, "#panels")


def test_config_shows_what_differs_and_all_on_request(opened: Any) -> None:
    assert "No key" in text(opened, "#config")
    opened.execute_script("document.getElementById('config-differs').click()")
    assert count(opened, "#config tbody tr") > 100


@pytest.mark.parametrize("width", [400, 1600])
def test_fits_the_width_and_follows_light_and_dark(opened: Any, width: int) -> None:
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    opened.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    backgrounds = set()
    for scheme in ("light", "dark"):
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        opened.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        assert opened.execute_script("return document.documentElement.scrollWidth") <= width
        backgrounds.add(opened.execute_script("return getComputedStyle(document.body).backgroundColor"))
    assert len(backgrounds) == 2
    opened.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
