"""What holds on every page: for people who hear it, for those who have a phone, and for text that wants to be more than text."""

from __future__ import annotations

import importlib.resources
from typing import Any

import pytest
from playwright.sync_api import Page, ViewportSize, expect

from ingest.events import Stamp
from tests.dashboards.house import ALICE, Gateway, House, Screen

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

AXE = importlib.resources.files("axe_playwright_python").joinpath("axe.min.js").read_text("utf-8")
PHONE: ViewportSize = {"width": 390, "height": 844}
LAPTOP: ViewportSize = {"width": 1280, "height": 800}


@pytest.fixture(scope="module")
def seen(house: House, gateway: Gateway) -> Stamp:
    """A session with something of everything in it."""
    name = house.agent("everywhere", "On every page")
    house.post(f"/v1/grants/{house.asked(name)}/approve", {}, by=ALICE)
    house.asked(name)
    under = gateway.session(name, client="127.0.0.1:50123")
    gateway.writer.defined(under, 1, "SELECT * FROM orders WHERE note = 'a rather long text, so that it has to be cut somewhere'")
    gateway.writer.began(under, 1, 1)
    gateway.writer.finished(under, 1)
    gateway.writer.denied(under, 2, 1, "No grant allows it.")
    gateway.writer.killed(under)
    gateway.writer.closed(under, "killed")
    gateway.session("everywhere")
    gateway.record()
    return under


def pages(under: Stamp) -> dict[str, str]:
    """Each page, and the part of it by which one sees that it is there."""
    return {
        "/": "rates",
        f"/agents?agent={under.agent}": "grants",
        "/sessions": "sessions",
        f"/sessions?session={under.session}": "timeline",
        f"/statements?agent={under.agent}": "statements",
        f"/statements?session={under.session}&execution=1": "whole-facts",
        "/findings": "findings",
        "/coverage": "topics",
        "/sql": "schema",
    }


def test_every_page_passes_axe_and_fits_a_phone(house: House, seen: Stamp, screen: Screen) -> None:
    wrong = []
    for path, part in pages(seen).items():
        screen.page.set_viewport_size(PHONE)
        screen.open(path)
        expect(screen.table(part).locator("table, dl").first).to_be_visible()
        beyond = screen.page.evaluate("document.documentElement.scrollWidth - window.innerWidth")
        assert beyond <= 0, path
        for frame in screen.page.locator(".frame.broad").all():
            assert frame.evaluate("frame => frame.scrollWidth - frame.clientWidth") <= 0, path
        screen.page.set_viewport_size(LAPTOP)
        screen.shot(part)
        wrong += [f"{path}: {each}" for each in violations(screen.page)]
    assert wrong == []


def violations(page: Page) -> list[str]:
    if not page.evaluate("'axe' in window"):
        page.evaluate(AXE)
    found: dict[str, Any] = page.evaluate("axe.run(document, {resultTypes: ['violations']})")
    return [
        f"{each['id']}: {each['help']} {[node['target'] for node in each['nodes'][:3]]}"
        for each in found["violations"]
        if each["impact"] in ("serious", "critical")
    ]
