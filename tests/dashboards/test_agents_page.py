"""Page Agents in a real browser: who is held back short of a revocation, and why."""

from __future__ import annotations

import pytest
from playwright.sync_api import expect

from ingest.events import StatementDefined
from tests.dashboards.house import ALICE, Gateway, House, Screen, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def test_an_agent_that_a_finding_holds_back_says_so_and_is_released(house: House, gateway: Gateway, screen: Screen) -> None:
    name = house.agent("held-back")
    house.post("/v1/responses", {"detector": "*", "agent": name, "response": "approval"}, by=ALICE)
    under = gateway.session(name)
    text = "DELETE FROM public.orders"
    deed = StatementDefined(1, text, "full", len(text), "f" * 16, ("DELETE",), ("public.orders",), (), unbounded=True)
    gateway.writer.add(name, deed, under)
    gateway.writer.began(under, 1, 1)
    gateway.writer.finished(under, 1, rows=5000)
    gateway.record()
    until(lambda: any(each["agent"] == name for each in house.get("/v1/responses").json()["held"]), "its finding holds it")
    screen.open(f"/agents?agent={name}")
    held = screen.table("restraint-held")
    expect(held).to_contain_text("each of its statements is refused until it is released")
    expect(screen.table("agents").locator("tr.row", has_text=name)).to_contain_text("held")
    screen.shot("held")
    held.get_by_role("button", name="The finding").click()
    expect(screen.table("numbers")).to_contain_text("5,000")
    screen.open(f"/agents?agent={name}")
    house.post(f"/v1/agents/{name}/throttle", {"per_minute": 30, "reason": "too fast for the report"})
    expect(screen.table("restraint-throttled")).to_contain_text("30 a minute at each gateway")
    expect(screen.table("restraint-throttled")).to_contain_text("too fast for the report")
    held.get_by_role("button", name="Release").click()
    expect(held).to_have_count(0)
    screen.page.get_by_role("button", name="Take the throttle back").click()
    expect(screen.table("restraint-throttled")).to_have_count(0)
    expect(screen.table("agents").locator("tr.row", has_text=name)).to_contain_text("active")
    told = house.get("/v1/responses").json()
    assert name not in [each["agent"] for each in (*told["held"], *told["throttled"])]
