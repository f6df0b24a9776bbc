"""One session, replayed in a real browser."""

from __future__ import annotations

import pytest
from playwright.sync_api import expect

from tests.dashboards.house import Gateway, House, Screen

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def test_a_session_is_replayed_moment_by_moment(house: House, gateway: Gateway, screen: Screen) -> None:
    under = gateway.session(house.agent("replayed"))
    gateway.writer.defined(under, 1, "SELECT 'first'\nFROM orders")
    gateway.writer.defined(under, 2, "SELECT '<img src=x onerror=alert(1)>\u202e'")
    gateway.writer.began(under, 1, 1)
    gateway.writer.finished(under, 1, rows=7)
    gateway.writer.denied(under, 2, 2, "No grant allows it.")
    gateway.writer.now_us += 500_000
    gateway.writer.killed(under)
    gateway.writer.closed(under, "killed")
    gateway.record()
    screen.open(f"/sessions?session={under.session}")
    end = screen.table("ending-0")
    for label, time in (("Decided", "+10.0 ms"), ("Client closed", "+40.0 ms"), ("Backend gone", "+80.0 ms")):
        expect(end.locator("li", has_text=label)).to_contain_text(time)
    replay = screen.table("replay")
    expect(replay).to_contain_text("1 of 5")
    replay.get_by_role("button", name="Next moment").click()
    expect(replay.locator(".shown pre")).to_have_text("SELECT 'first'\nFROM orders")
    assert "step=2" in screen.page.url
    replay.get_by_role("slider").focus()
    screen.page.keyboard.press("ArrowRight")
    expect(replay.locator(".shown")).to_contain_text("No grant allows it.")
    expect(replay.locator(".shown pre")).to_have_text("SELECT '<img src=x onerror=alert(1)>U+202E'")
    screen.page.reload()  # as a colleague who got the address
    expect(replay).to_contain_text("3 of 5")
    replay.get_by_role("button", name="Play").click()
    expect(replay).to_contain_text("5 of 5")
    expect(replay.get_by_role("button", name="Play")).to_be_visible()  # it stops at the end


def test_a_session_that_is_not_there_is_said(house: House, screen: Screen) -> None:
    screen.open("/sessions?session=no-such-session")
    expect(screen.table("refused")).to_contain_text("no-such-session")


def test_times_are_the_browsers_with_utc_at_hand(house: House, gateway: Gateway, screen: Screen) -> None:
    under = gateway.session(house.agent("zoned"))
    gateway.record()
    opened = house.get(f"/v1/sessions/{under.session}").json()["opened_at"]
    screen.open(f"/sessions?session={under.session}")
    shown = screen.table("session").locator(".time").first
    # the tests' browser is in India, half an hour off every whole one
    expect(shown.locator(".clock")).not_to_contain_text(opened[11:19])
    expect(shown).to_contain_text(f"{opened[11:19]} UTC")
    screen.page.get_by_text("Times in UTC").click()
    expect(shown.locator(".clock")).to_contain_text(opened[11:19])
