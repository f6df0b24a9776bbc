"""What holds on every page: for people who hear it, for those who have a phone, and for text that wants to be more than text."""

from __future__ import annotations

import importlib.resources
from dataclasses import dataclass
from typing import Any, Final

import pytest
from playwright.sync_api import Page, ViewportSize, expect

from ingest.events import Stamp, StatementDefined
from tests.dashboards.house import ALICE, Gateway, House, Screen, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

AXE = importlib.resources.files("axe_playwright_python").joinpath("axe.min.js").read_text("utf-8")
PHONE: ViewportSize = {"width": 390, "height": 844}
LAPTOP: ViewportSize = {"width": 1280, "height": 800}


@dataclass(frozen=True, slots=True)
class Seen:
    """A session with something of everything in it, and what was found about it."""

    under: Stamp
    finding: str


@pytest.fixture(scope="module")
def seen(house: House, gateway: Gateway) -> Seen:
    name = house.agent("everywhere", "On every page")
    house.post(f"/v1/grants/{house.asked(name)}/approve", {}, by=ALICE)
    house.asked(name)
    under = gateway.session(name, client="127.0.0.1:50123")
    gateway.writer.defined(under, 1, "SELECT * FROM orders WHERE note = 'a rather long text, so that it has to be cut somewhere'")
    gateway.writer.began(under, 1, 1)
    gateway.writer.finished(under, 1)
    gateway.writer.denied(under, 2, 1, "No grant allows it.")
    text = "DELETE FROM public.orders"
    deed = StatementDefined(2, text, "full", len(text), "f" * 16, ("DELETE",), ("public.orders",), (), unbounded=True)
    gateway.writer.add(name, deed, under)
    gateway.writer.began(under, 3, 2)
    gateway.writer.finished(under, 3, rows=5000)
    gateway.writer.killed(under)
    gateway.writer.closed(under, "killed")
    gateway.session("everywhere")
    gateway.record()
    until(lambda: bool(found(house, name)), "a detector finds it")
    return Seen(under, found(house, name)[0])


def found(house: House, agent: str) -> list[str]:
    return [finding["finding"] for finding in house.get(f"/v1/findings?agent={agent}").json()["items"]]


# Each page, and the part of it by which one sees that it is there.
PAGES: Final = {
    "/": "rates",
    "/agents?agent={agent}": "grants",
    "/sessions": "sessions",
    "/sessions?session={session}": "timeline",
    "/statements?agent={agent}": "statements",
    "/statements?session={session}&execution=1": "whole-facts",
    "/findings": "findings",
    "/findings?finding={finding}": "evidence",
    "/coverage": "topics",
    "/sql": "schema",
}


@pytest.mark.parametrize("address", PAGES)
def test_every_page_passes_axe_and_fits_a_phone(house: House, seen: Seen, screen: Screen, address: str) -> None:
    screen.page.set_viewport_size(PHONE)
    screen.open(address.format(agent=seen.under.agent, session=seen.under.session, finding=seen.finding))
    expect(screen.table(PAGES[address]).locator("tr.row, dt").first).to_be_visible()
    expect(screen.page.get_by_text("Times in UTC")).to_be_visible()  # the foot is drawn last
    assert screen.page.evaluate("document.documentElement.scrollWidth - window.innerWidth") <= 0
    for frame in screen.page.locator(".frame.broad").all():
        assert frame.evaluate("frame => frame.scrollWidth - frame.clientWidth") <= 0
    assert violations(screen.page) == []
    screen.shot(f"{PAGES[address]}-phone")
    screen.page.set_viewport_size(LAPTOP)
    for reason in screen.page.locator("tr.row").get_by_text("No grant allows it.").all():  # behind a long text nobody would see it
        assert reason.evaluate(
            "reason => reason.getBoundingClientRect().right <= reason.closest('td').getBoundingClientRect().right"
        )
    screen.shot(PAGES[address])
    assert violations(screen.page) == []


def test_axe_would_see_what_is_wrong_inside_a_table(house: House, seen: Seen, screen: Screen) -> None:
    screen.open("/sessions")
    place = screen.table("sessions").locator("tr.row td").first
    expect(place).to_be_visible()
    place.evaluate("place => place.append(document.createElement('button'))")
    assert ["button-name" in each for each in violations(screen.page)] == [True]


def violations(page: Page) -> list[str]:
    if not page.evaluate("'axe' in window"):
        page.evaluate(AXE)
    told: dict[str, Any] = page.evaluate("axe.run(document, {resultTypes: ['violations']})")
    return [f"{each['id']}: {each['help']} {[node['target'] for node in each['nodes'][:3]]}" for each in told["violations"]]
