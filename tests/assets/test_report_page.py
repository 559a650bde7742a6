"""The report in a real browser: no error, no request, filters, slider, keys, addresses, print."""

import importlib.util
import os
from pathlib import Path

import pytest

from fbmem_core.report.evidence import gather
from fbmem_core.report.page import write_report
from tests.core.evidence import KEY, drawn_store

PROJECT = Path(__file__).parents[2]


def _checker():
    spec = importlib.util.spec_from_file_location("check_report", PROJECT / "docs" / "check_report.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


CHECKER = _checker()
CHROMIUM = CHECKER.find_chromium()
AXE = next(
    (path for path in (Path(os.environ.get("FBMEM_AXE", "")), PROJECT / "node_modules/axe-core/axe.min.js")
     if path.is_file()), None
)  # fmt: skip
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: apt-get install chromium, or set CHROMIUM")


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    store = drawn_store(tmp_path_factory.mktemp("drawn"))
    return write_report(store, gather(store, KEY))


@needs_browser
def test_a_browser_finds_nothing_wrong_with_the_page(page):
    answer = CHECKER.check(page, axe=AXE, chromium=CHROMIUM)
    assert answer["all"] == 3
    assert answer["keys"]["blinks"] == "true"
    assert CHECKER.wrong(answer) == []


@needs_browser
def test_a_page_that_asks_for_something_or_fails_is_told_of(page, tmp_path):
    broken = page.read_text("utf-8").replace("</main>", '<script>missing();</script><img alt="" src="x.png"></main>')
    file = tmp_path / "broken.html"
    file.write_text(broken, "utf-8")
    lines = CHECKER.wrong(CHECKER.check(file, chromium=CHROMIUM))
    assert any(line.startswith("error: ") and "missing" in line for line in lines)
    assert any(line.startswith("request: ") for line in lines)


@needs_browser
def test_it_prints_with_its_cards_open(page, tmp_path):
    assert CHECKER.print_to_pdf(page, tmp_path / "report.pdf", chromium=CHROMIUM) >= 3
