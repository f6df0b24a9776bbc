"""One house for all tests of the pages, and a browser for each file of them."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import BrowserContext, Dialog, Request, expect, sync_playwright

from tests.dashboards.house import CHROMIUM, FLAGS, WAIT_MS, Gateway, House, Screen, standing


@pytest.fixture(scope="session")
def house() -> Iterator[House]:
    with standing() as made:
        yield made


@pytest.fixture(scope="session")
def gateway(house: House) -> Iterator[Gateway]:
    made = Gateway(house.folder / "state", house.projected)
    yield made
    made.close()


@pytest.fixture(scope="module")
def browser(needs: Callable[[str, bool], None]) -> Iterator[BrowserContext]:
    """Ends with its file: for as long as its driver runs, no test in this process can run a loop of its own."""
    needs("chromium", Path(CHROMIUM).exists())
    with sync_playwright() as playwright, tempfile.TemporaryDirectory(prefix="pgwarden-browser-") as profile:
        context = playwright.chromium.launch_persistent_context(
            profile,
            executable_path=CHROMIUM,
            headless=True,
            args=list(FLAGS),
            viewport={"width": 1440, "height": 1000},
            timezone_id="Asia/Kolkata",
        )
        context.set_default_timeout(WAIT_MS)
        expect.set_options(timeout=WAIT_MS)
        yield context
        context.close()


@pytest.fixture(scope="module")
def warm(house: House, browser: BrowserContext) -> None:
    """The first page that a dashboard shows waits for what Python has to import, on two busy cores longer than any other."""
    page = browser.new_page()
    page.goto(house.url)
    page.locator(".st-key-figures .strip").wait_for(timeout=3 * WAIT_MS)
    page.close()


@pytest.fixture
def screen(house: House, browser: BrowserContext, warm: None) -> Iterator[Screen]:
    page = browser.new_page()
    made = Screen(page, house.url, [], [])

    def asked(request: Request) -> None:
        parts = urlsplit(request.url)
        if parts.scheme not in ("data", "blob") and parts.hostname != "127.0.0.1":
            made.strayed.append(request.url)

    def alerted(dialog: Dialog) -> None:
        made.alerts.append(dialog.message)
        dialog.dismiss()

    page.on("request", asked)
    page.on("dialog", alerted)
    yield made
    page.close()
    assert made.strayed == []
    assert made.alerts == []
