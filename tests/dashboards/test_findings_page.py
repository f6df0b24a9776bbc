"""The analyst's way, in a real browser: a finding appears, is read, and its agent is stopped."""

from __future__ import annotations

import pytest
from playwright.sync_api import expect

from tests.dashboards.house import ALICE, Gateway, House, Screen, now_us

pytestmark = [pytest.mark.slow, pytest.mark.timeout(150)]


def test_a_finding_appears_is_read_and_its_agent_is_stopped(house: House, gateway: Gateway, screen: Screen) -> None:
    name = house.agent("eraser", "Cleans up old carts")
    house.post(f"/v1/grants/{house.asked(name)}/approve", {}, by=ALICE)
    under = gateway.session(name)
    gateway.record()
    screen.open(f"/findings?agent={name}")
    expect(screen.table("findings")).to_contain_text("No finding fits.")
    gateway.writer.defined(under, 1, "DELETE FROM public.customers", ("DELETE",), ("public.customers",))
    gateway.writer.began(under, 1, 1)
    gateway.writer.finished(under, 1, rows=5000)
    gateway.record()
    row = screen.table("findings").locator("tr.row", has_text="without a condition")
    expect(row).to_be_visible()  # by itself
    expect(row).to_contain_text("critical")
    row.click()
    expect(screen.table("numbers")).to_contain_text("5,000")
    expect(screen.table("evidence")).to_contain_text("DELETE FROM public.customers")
    screen.shot("finding")
    screen.page.get_by_label("What do you make of it?").fill("nobody asked for it")
    screen.page.keyboard.press("Enter")
    screen.page.get_by_role("button", name="Confirm").click()
    expect(screen.table("finding")).to_contain_text("nobody asked for it")
    finding = screen.page.url
    screen.page.get_by_role("button", name="Read its session").click()
    replay = screen.table("replay")
    replay.get_by_role("button", name="Next moment").click()
    expect(replay.locator(".shown pre")).to_have_text("DELETE FROM public.customers")
    screen.page.goto(finding)
    screen.page.get_by_label("Why should it be revoked?").fill("deletes what it should not")
    screen.page.keyboard.press("Enter")
    screen.page.get_by_role("button", name="Revoke …").click()
    screen.page.get_by_role("button", name="Revoke now").click()
    ending = screen.table("endings").locator("tr.row", has_text=under.session)
    expect(ending).to_contain_text("ending")
    assert house.get(f"/v1/agents/{name}").json()["state_reason"] == "deletes what it should not"
    gateway.writer.now_us = now_us()
    gateway.writer.killed(under)
    gateway.writer.closed(under, "killed")
    gateway.record()
    expect(ending).to_contain_text("gone")
    expect(ending).to_contain_text("+80.0 ms")


def test_a_finding_that_is_not_there_is_said(house: House, screen: Screen) -> None:
    screen.open("/findings?finding=no-such-finding")
    expect(screen.table("refused")).to_contain_text("This finding is not to be seen.")
