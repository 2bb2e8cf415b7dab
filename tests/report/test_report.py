"""The report: what it says, that it needs nothing else, and that a browser shows it."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cnnlab.errors import InputError
from cnnlab.loggers import MetricsCsv
from cnnlab.report import write_report
from cnnlab.run import Run
from cnnlab.writing import write_csv, write_json
from tests.conftest import Cnnlab

HOSTILE = "<script>alert(1)</script>"
NAMES = ["cat", HOSTILE, "a$b$ & 'c'"]


class Page(HTMLParser):
    """What a page consists of."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def made_run(folder: Path) -> Run:
    """A run's folder with the files that a tested classification leaves, written by hand."""
    run = Run(folder)
    folder.mkdir()
    run.config.write_text("model: {class_path: cnnlab.tasks.Classification, init_args: {network: simple_cnn}}\n")
    log = MetricsCsv(run.metrics)
    for step in range(30):
        log.log_metrics({"train/loss_step": 1 / (step + 1), "lr-AdamW/pg1": 0.1}, step)
    log.log_metrics({"val/loss": 0.5, "val/accuracy": 0.75}, 29)
    write_json(run.test, {"test/accuracy": 0.9375, "test/loss": 0.25})
    counts = [[8, 2, 0], [1, 9, 0], [0, 3, 7]]
    write_csv(
        run.table("confusion_matrix"),
        [{"truth": n, **dict(zip(NAMES, row, strict=True))} for n, row in zip(NAMES, counts, strict=True)],
    )
    write_csv(
        run.table("classes"),
        [{"class": n, "recall": r, "images": i} for n, r, i in zip(NAMES, (0.8, 0.9, 0.7), (9, 10, 100), strict=True)],
    )
    bins = [
        {"from": i / 4, "to": (i + 1) / 4, "images": 5 * i, "probability": i / 4, "accuracy": i / 4} for i in range(4)
    ]
    write_csv(run.table("reliability"), bins)
    write_json(
        run.environment,
        {
            "time": "2026-11-25",
            "recipe": {"name": "mnist", "changes": {"model.lr": [0.1, HOSTILE]}},
            "command": ["fit"],
        },
    )
    picture = run.errors("test").with_suffix("") / "01.png"
    picture.parent.mkdir(parents=True)
    Image.fromarray(np.full((28, 28), 90, dtype=np.uint8)).save(picture)
    error = {"kind": "worst", "index": 3, "path": f"photos/{HOSTILE}.png", "truth": HOSTILE, "predicted": "cat"}
    write_csv(run.errors("test"), [{**error, "probability": 0.99, "uncertainty": 0.01, "picture": "test/01.png"}])
    return run


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return made_run(tmp_path / "R")


def test_it_says_what_the_files_say(run: Run) -> None:
    write_report([run], run.report)
    page = Page(run.report)
    for said in ("0.9375", "simple_cnn", "recipe mnist", "model.lr", "truth", "99 %", "2026-11-25"):
        assert said in page.text
    charts = [attributes["aria-label"] or "" for attributes in page.all("svg")]
    assert any("train/loss_step from 1 to 0.03333" in said for said in charts)
    assert any("80.00% on the diagonal" in said for said in charts)
    # The pair that is confused most comes first.
    assert re.search(r"times\s*a\$b\$ & 'c'\s*<script>alert\(1\)</script>\s*3", page.text)


def test_hostile_names_are_text(run: Run) -> None:
    write_report([run], run.report)
    page = Page(run.report)
    assert len(page.all("script")) == 1
    assert HOSTILE in page.text
    assert "alert(1)" in run.report.read_text()
    assert HOSTILE not in run.report.read_text()


def test_it_needs_nothing_from_outside(run: Run) -> None:
    write_report([run], run.report)
    page = Page(run.report)
    for tag, attributes in page.tags:
        assert tag not in ("link", "iframe", "object", "embed")
        for name in ("src", "xlink:href", "href"):
            address = attributes.get(name) or ""
            if tag == "a":
                assert not re.match(r"[a-z]+:|//", address), address
            else:
                assert address.startswith(("data:", "#")) or not address, (tag, address)
    content = run.report.read_text()
    assert not re.search(r"url\((?!#)|@import", content)


def test_identifiers_are_unique_and_found(run: Run) -> None:
    write_report([run], run.report)
    content = run.report.read_text()
    identifiers = re.findall(r'\bid="([^"]+)"', content)
    assert len(identifiers) == len(set(identifiers))
    for wanted in re.findall(r'(?:href="|url\()#([^")]+)', content) + re.findall(r'aria-labelledby="([^"]+)"', content):
        assert wanted in identifiers


def test_several_runs_stand_side_by_side(run: Run, tmp_path: Path) -> None:
    other = made_run(tmp_path / "S")
    write_json(other.test, {"test/accuracy": 0.5, "test/loss": 0.125, "test/f1": 0.5})
    other.config.write_text(run.config.read_text().replace("simple_cnn", "resnet18"))
    write_report([run, other], tmp_path / "both.html")
    page = Page(tmp_path / "both.html")
    assert "resnet18" in page.text
    content = re.sub(r"\s+", "", (tmp_path / "both.html").read_text())
    # The better one of each figure is marked, whichever way is better.
    assert "<td><strong>0.9375</strong></td><td>0.5</td>" in content
    assert "<td>0.25</td><td><strong>0.125</strong></td>" in content
    assert not page.all("img")


def test_runs_of_one_name_are_told_apart(tmp_path: Path) -> None:
    runs = []
    for place in "ab":
        (tmp_path / place).mkdir()
        runs.append(made_run(tmp_path / place / "R"))
    write_report(runs, tmp_path / "both.html")
    page = Page(tmp_path / "both.html")
    (chart,) = [said["aria-label"] or "" for said in page.all("svg") if "val/loss" in (said["aria-label"] or "")]
    assert chart.count("from 0.5 to 0.5") == 2


def test_odd_files_spoil_nothing(run: Run, tmp_path: Path) -> None:
    run.table("confusion_matrix").write_text("")
    run.test.write_text("")
    (run.errors("test").with_suffix("") / "01.png").unlink()
    # A film-strip of many epochs is wider than WebP can be.
    run.pictures.mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (60, 17_000, 3), dtype=np.uint8)
    Image.fromarray(noise).save(run.pictures / "gradcam.png")
    strange = run.folder / "a#b 100%.csv"
    strange.touch()
    write_report([run], run.report)
    page = Page(run.report)
    assert "val/accuracy" in page.text
    assert [str(image["src"])[:22] for image in page.all("img")] == ["data:image/png;base64,"]
    assert "a%23b%20100%25.csv" in [link["href"] for link in page.all("a")]


def test_numbers_that_are_names_stay_names(run: Run) -> None:
    row = {"kind": "worst", "index": 1, "path": "", "truth": "2.0", "predicted": "1.5", "probability": 0.5}
    write_csv(run.errors("test"), [{**row, "uncertainty": 0.5, "picture": "test/01.png"}])
    write_report([run], run.report)
    assert re.search(r"truth: 2\.0\s*predicted: 1\.5\s*probability: 50 %", Page(run.report).text)


def test_what_is_not_there_is_left_out(tmp_path: Path) -> None:
    run = Run(tmp_path / "R")
    run.folder.mkdir()
    run.config.write_text("seed_everything: 0\n")
    write_report([run], run.report)
    text = Page(run.report).text
    assert "neither been tested nor validated" in text
    assert "Confusions" not in text


def test_nothing_but_a_report_is_overwritten(run: Run, tmp_path: Path) -> None:
    place = tmp_path / "thesis.html"
    place.write_text("<html>")
    with pytest.raises(InputError, match=r"thesis\.html exists and is no report"):
        write_report([run], place)
    assert place.read_text() == "<html>"
    write_report([run], run.report)
    write_report([run], run.report)
    with pytest.raises(InputError, match="is no run"):
        write_report([Run(tmp_path)], tmp_path / "a.html")


def test_the_command_writes_it_after_each_test(fit: Cnnlab, cnnlab: Cnnlab, tmp_path: Path) -> None:
    assert fit("--model.lr", "0.005").code == 0
    assert not (tmp_path / "R/report.html").exists()
    assert "report" in cnnlab("test", "R").out
    path = tmp_path / "R/report.html"
    text = Page(path).text
    assert f"{json.loads((tmp_path / 'R/test.json').read_text())['test/accuracy']:.4g}" in text
    # What the run changed of its recipe.
    assert re.search(r"model\.lr\s*0\.01\s*0\.005", text)
    path.unlink()
    assert cnnlab("test", "R", "--callbacks.report", "false").code == 0
    assert not path.exists()
    done = cnnlab("report", "R")
    assert done.code == 0
    assert path.is_file()
    assert cnnlab("report", "R", "R", "--out", "both.html").code == 0
    assert (tmp_path / "both.html").is_file()
    assert cnnlab("report", "elsewhere").code == 2
    assert "has no option --html" in cnnlab("report", "R", "--html").err


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Headless Chromium."""
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if found is None:
        pytest.skip("needs Chromium: make system-packages")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        running = driver.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield running
        running.close()


def opened(browser: Any, path: Path, **settings: Any) -> tuple[Any, list[str]]:
    """A page, and what it complained of or asked for."""
    page = browser.new_context(**settings).new_page()
    trouble: list[str] = []
    page.on("console", lambda message: trouble.append(message.text))
    page.on("pageerror", lambda error: trouble.append(str(error)))
    page.on("dialog", lambda dialog: trouble.append("a dialog"))
    page.on("request", lambda request: trouble.append(request.url) if "report.html" not in request.url else None)
    page.goto(path.as_uri())
    # Pictures in the page count as requests of their own.
    return page, [message for message in trouble if not message.startswith("data:")]


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1200])
def test_a_browser_shows_it(browser: Any, run: Run, scheme: str, width: int) -> None:
    run.pictures.mkdir()
    Image.new("RGB", (2000, 120)).save(run.pictures / "gradcam.png")
    many = {f"a class of a very long name, number {i}": i for i in range(40)}
    write_csv(run.table("confusion_matrix"), [{"truth": name, **many} for name in many])
    write_report([run], run.report)
    page, trouble = opened(browser, run.report, color_scheme=scheme, viewport={"width": width, "height": 800})
    assert trouble == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate("[...document.images].every(image => image.complete && image.naturalWidth > 0)")
    assert page.evaluate("document.images.length") == 2
    brightness = page.evaluate("getComputedStyle(document.body).backgroundColor.match(/[0-9]+/g).map(Number)")
    assert (sum(brightness) > 600) == (scheme == "light")
    # Charts are drawn in the page's color.
    ink = page.evaluate("getComputedStyle(document.querySelector('svg text')).fill.match(/[0-9]+/g).map(Number)")
    assert (sum(ink[:3]) < 300) == (scheme == "light")


@pytest.mark.slow
def test_tables_sort_by_mouse_and_keyboard(browser: Any, run: Run) -> None:
    write_report([run], run.report)
    page, _ = opened(browser, run.report)
    images = page.locator("table.sortable th button", has_text="images")

    def column() -> list[str]:
        return [str(text) for text in page.locator("table.sortable tbody td:last-child").all_inner_texts()]

    images.click()
    assert column() == ["9", "10", "100"]
    images.focus()
    page.keyboard.press("Enter")
    assert column() == ["100", "10", "9"]
    assert page.locator("th[aria-sort]").all_inner_texts()[0].startswith("images")
    page.locator("table.sortable th button", has_text="class").click()
    assert page.locator("table.sortable tbody th").all_inner_texts()[1:] == ["a$b$ & 'c'", "cat"]
