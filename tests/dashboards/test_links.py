"""A press that leads to another page, while the page that is left draws parts of itself anew."""

from __future__ import annotations

import pytest
from playwright.sync_api import WebSocketRoute, expect

from tests.dashboards.house import ALICE, Gateway, House, Screen

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

LATE_MS = 25  # between two askings that come late
LATE = 60  # of them: for longer than the new page takes to be drawn


def test_a_page_that_was_left_does_not_empty_the_one_that_came(house: House, gateway: Gateway, screen: Screen) -> None:
    name = house.agent("left-behind")
    under = gateway.session(name)
    house.post(f"/v1/agents/{name}/revoke", {"reason": "to see its end"}, by=ALICE)
    gateway.writer.killed(under)
    gateway.writer.closed(under, "killed")
    gateway.record()
    held: list[str | bytes] = []
    holding = False
    lines: list[WebSocketRoute] = []

    def between(browser: WebSocketRoute) -> None:
        dashboard = browser.connect_to_server()
        lines.append(dashboard)
        browser.on_message(lambda message: held.append(message) if holding else dashboard.send(message))

    screen.page.route_web_socket("**/_stcore/stream", between)
    screen.open(f"/agents?agent={name}")
    row = screen.table("endings").locator("tr.row", has_text=under.session)
    expect(row).to_be_visible()
    holding = True
    screen.page.wait_for_timeout(2500)  # each part asks to be drawn anew
    late = list(held)
    held.clear()
    assert len(late) >= 2
    row.click()
    while not held:
        screen.page.wait_for_timeout(10)
    holding = False
    for message in held:
        lines[-1].send(message)
    for _ in range(LATE):
        for message in late:
            lines[-1].send(message)
        screen.page.wait_for_timeout(LATE_MS)
    expect(screen.table("session-heading")).to_contain_text(under.session)
    screen.page.wait_for_timeout(1000)
    expect(screen.table("timeline").locator("tr.row").first).to_be_visible()
    expect(screen.table("watch")).to_be_attached()
