"""The report in headless Chromium, which is spoken to through a pipe."""

import base64
import contextlib
import io
import itertools
import json
import os
import shutil
import subprocess
import time

import numpy as np
import pytest
from PIL import Image

from limbeck.reports.compared import read_comparison
from limbeck.reports.page import report_page

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "chrome"))), None)
PATIENCE = 60  # seconds for any one answer

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed"),
]


class Browser:
    """Chromium over ``--remote-debugging-pipe``: JSON that ends in a zero byte, both ways."""

    def __init__(self, profile):
        # The browser reads its descriptor 3 and writes to its 4.
        (read, self.inlet), (self.outlet, write) = os.pipe(), os.pipe()

        def descriptors():
            os.dup2(read, 10), os.dup2(write, 11)
            os.dup2(10, 3), os.dup2(11, 4)

        self.process = subprocess.Popen(
            [
                *(CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu"),
                *("--no-first-run", "--hide-scrollbars", "--disable-background-networking"),
                *("--remote-debugging-pipe", f"--user-data-dir={profile}"),
            ],
            preexec_fn=descriptors,
            pass_fds=(3, 4),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(read), os.close(write)
        os.set_blocking(self.outlet, False)
        self.numbers, self.waiting, self.session, self.events = itertools.count(1), b"", None, []

    def close(self):
        os.close(self.inlet)
        self.process.terminate()
        self.process.wait(PATIENCE)
        os.close(self.outlet)

    def __call__(self, method, **parameters):
        """The answer to one command; what happens meanwhile is added to ``events``."""
        number = next(self.numbers)
        message = {"id": number, "method": method, "params": parameters}
        if self.session is not None:
            message["sessionId"] = self.session
        os.write(self.inlet, json.dumps(message).encode() + b"\0")
        answer = self._until(lambda said: said.get("id") == number)
        assert "error" not in answer, answer
        return answer["result"]

    def wait_for(self, event):
        return self._until(lambda said: said.get("method") == event)

    def _until(self, wanted):
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            if b"\0" not in self.waiting:
                try:
                    self.waiting += os.read(self.outlet, 2**20)
                except BlockingIOError:
                    time.sleep(0.005)
                continue
            text, _, self.waiting = self.waiting.partition(b"\0")
            said = json.loads(text)
            self.events.append(said)
            if wanted(said):
                return said
        raise TimeoutError("Chromium did not answer")

    def open(self, path, *, width=1280, height=900, scheme="light"):
        """Load a file at a size and in a colour scheme."""
        self.session, self.events = None, []
        target = self("Target.createTarget", url="about:blank")["targetId"]
        session = self("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self.session = session
        for domain in ("Page", "Runtime", "Log", "Network"):
            self(f"{domain}.enable")
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self("Emulation.setDeviceMetricsOverride", **size)
        feature = {"name": "prefers-color-scheme", "value": scheme}
        self("Emulation.setEmulatedMedia", features=[feature])
        self("Page.navigate", url=path.as_uri())
        self.wait_for("Page.loadEventFired")

    def value(self, expression):
        """What a JavaScript expression is in the page."""
        found = self("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def press(self, key):
        text = {"Enter": "\r"}.get(key, "")
        for kind in ("keyDown", "keyUp"):
            code = {"Enter": 13, "Tab": 9}[key]
            self(
                "Input.dispatchKeyEvent",
                type=kind,
                key=key,
                text=text if kind == "keyDown" else "",
                windowsVirtualKeyCode=code,
            )

    def screenshot(self, *, full=True):
        data = self("Page.captureScreenshot", captureBeyondViewport=full)["data"]
        return Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB")

    def seen(self, method):
        return [event["params"] for event in self.events if event.get("method") == method]


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with contextlib.closing(Browser(tmp_path_factory.mktemp("profile"))) as found:
        yield found


@pytest.fixture(scope="module")
def report(full, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(report_page(read_comparison(full)), encoding="utf-8")
    return path


def complaints(browser):
    """All that the page has said, and every request that left its file."""
    said = [
        browser.seen(event)
        for event in ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded")
    ]
    assert not browser.seen("Page.javascriptDialogOpening")
    requests = {request["request"]["url"] for request in browser.seen("Network.requestWillBeSent")}
    assert len(requests) == 1
    assert all(url.startswith("file://") for url in requests)
    return [found for events in said for found in events]


def column(browser, table, place):
    """The texts of a column, from top to bottom."""
    return browser.value(
        f"[...document.querySelectorAll('table')[{table}].tBodies[0].rows]"
        f".map(row => row.cells[{place}].textContent.trim())"
    )


def heading(browser, table, title):
    """Focus a heading's button; its place."""
    buttons = f"[...document.querySelectorAll('table')[{table}].tHead.querySelectorAll('button')]"
    place = browser.value(f"{buttons}.findIndex(button => button.textContent === '{title}')")
    browser.value(f"{buttons}[{place}].focus()")
    return place


@pytest.mark.parametrize("width", [390, 1280], ids=["phone", "desktop"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_fits_is_drawn_in_its_scheme_and_is_silent(browser, report, width, scheme):
    browser.open(report, width=width, scheme=scheme)
    assert browser.value("document.documentElement.scrollWidth") == width
    ground = np.asarray(browser.screenshot(full=False))[-1, 2]
    assert (ground.mean() < 60) if scheme == "dark" else (ground.mean() > 240)
    # Every picture has ink that stands out from its ground.
    for place in range(browser.value("document.querySelectorAll('.picture').length")):
        browser.value(f"document.querySelectorAll('.picture')[{place}].scrollIntoView()")
        assert np.asarray(browser.screenshot(full=False).convert("L")).std() > 5
    assert complaints(browser) == []


def test_a_table_is_sorted_by_a_click_and_by_the_keyboard(browser, report):
    browser.open(report)
    place = heading(browser, 0, "gain, points")
    names = column(browser, 0, 0)
    assert names == ["ce", "kd", "fitnet", "rkd", "full"]
    browser.press("Enter")
    assert column(browser, 0, 0) == ["fitnet", "rkd", "kd", "ce", "full"]  # nothing comes last
    sort = "document.querySelectorAll('table')[0].tHead.rows[0].cells[%d].getAttribute('aria-sort')"
    assert browser.value(sort % place) == "ascending"
    assert "Sorted by gain, points, ascending" in browser.value("said.textContent")
    browser.press("Enter")
    assert column(browser, 0, 0) == ["kd", "rkd", "fitnet", "ce", "full"]
    assert browser.value(sort % place) == "descending"
    by_name = heading(browser, 0, "taught by")
    browser.value("document.activeElement.click()")
    assert column(browser, 0, 0) == sorted(names)
    assert browser.value(sort % by_name) == "ascending"
    assert browser.value("document.querySelectorAll('[aria-sort]').length") == 1
    assert complaints(browser) == []


def test_every_table_can_be_reached_and_sorted_by_tab_and_enter(browser, report):
    browser.open(report, width=390)
    browser.value("document.querySelectorAll('details').forEach(d => { d.open = true; })")
    total = browser.value("document.querySelectorAll('thead button').length")
    assert total > 50
    assert browser.value("document.querySelectorAll('thead th').length") == total
    heading(browser, 0, "taught by")
    browser.press("Tab")
    assert browser.value("document.activeElement.textContent") == "family"
    browser.press("Enter")
    assert column(browser, 0, 1) == sorted(column(browser, 0, 1))


def test_on_paper_everything_is_unfolded_in_black_on_white(browser, report):
    browser.open(report, scheme="dark")
    folded = "document.querySelectorAll('details:not([open])').length"
    before = browser.value(folded)
    assert before > 0
    assert browser("Page.printToPDF", preferCSSPageSize=True)["data"]
    assert browser.value(folded) == before
    browser("Emulation.setEmulatedMedia", media="print")
    browser.value("dispatchEvent(new Event('beforeprint'))")
    assert browser.value(folded) == 0
    ground = browser.value("getComputedStyle(document.body).backgroundColor")
    assert ground == "rgb(255, 255, 255)"


def test_no_name_runs_anything(browser, write_full, tmp_path):
    bad = "</script><script>said.id='hacked'</script><img src=x onerror=\"said.id='hacked'\">"
    folder = write_full(
        titles={label: f"{bad}{label}" for label in ("ce", "kd", "fitnet", "rkd", "full")},
        class_names=[f"{bad}{k}" for k in range(6)],
    )
    path = tmp_path / "report.html"
    path.write_text(report_page(read_comparison(folder)), encoding="utf-8")
    browser.open(path)
    assert browser.value("said.id") == "said"
    assert browser.value("document.querySelectorAll('img').length") == 0
    assert browser.value("document.querySelectorAll('script').length") == 1
    assert column(browser, 0, 0)[1] == f"{bad}kd"
    assert complaints(browser) == []


@pytest.mark.parametrize("width", [390, 1280], ids=["phone", "desktop"])
def test_what_an_analysis_found_fits_and_its_pictures_show(
    browser, write_full, write_finding, tmp_path, width
):
    folder = write_full()
    write_finding(folder, "kd", "why", text="a rather long name " * 3)
    write_finding(folder, "kd", "fidelity")
    Image.new("RGB", (900, 40)).save(folder / "analysis" / "kd" / "fidelity-shot.png")
    path = tmp_path / "report.html"
    path.write_text(report_page(read_comparison(folder)), encoding="utf-8")
    browser.open(path, width=width)
    assert browser.value("document.documentElement.scrollWidth") == width
    shown = "[...document.images].map(i => [i.naturalWidth, i.clientWidth <= innerWidth])"
    assert browser.value(shown) == [[900, True]]
    allowed = {"file", "data"}
    urls = [request["request"]["url"] for request in browser.seen("Network.requestWillBeSent")]
    assert {url.partition(":")[0] for url in urls} <= allowed
    assert not browser.seen("Log.entryAdded")


def test_a_script_that_got_in_after_all_would_not_run(browser, report, tmp_path):
    """The policy itself, with a page into which one is put by force."""
    text = report.read_text(encoding="utf-8")
    path = tmp_path / "report.html"
    bad = "<script>document.title = 'hacked'</script><img src='http://localhost:1/x'>"
    path.write_text(text.replace("<main>", f"<main>{bad}"), encoding="utf-8")
    browser.open(path)
    assert browser.value("document.title") != "hacked"
    refused = " ".join(entry["entry"]["text"] for entry in browser.seen("Log.entryAdded"))
    assert refused.count("Content Security Policy") >= 2
