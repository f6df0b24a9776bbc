"""Page Findings in a real browser."""

from __future__ import annotations

import pytest
from playwright.sync_api import expect

from ingest.events import StatementDefined
from tests.dashboards.house import Gateway, House, Screen, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

HOSTILE = "public.<img src=x onerror=alert(1)>**b**\x1b[2J\u202e$x$"
QUOTED = "public.<img src=x onerror=alert(1)>**b**\\u001b[2J\\u202e$x$"  # by the detector, in its sentence
SHOWN = "public.<img src=x onerror=alert(1)>**b**U+001B[2JU+202E$x$"


def test_a_finding_that_is_not_there_is_said(house: House, screen: Screen) -> None:
    screen.open("/findings?finding=no-such-finding")
    expect(screen.table("refused")).to_contain_text("This finding is not to be seen.")


def test_hostile_text_in_a_finding_is_shown_and_does_nothing(house: House, gateway: Gateway, screen: Screen) -> None:
    agent = f"<script>alert(2)</script>{'very long ' * 40}"  # no name that can be registered: but the record may say anything
    under = gateway.session(agent, task=HOSTILE, client="<b>127.0.0.1</b>:1")
    text = f"DELETE FROM {HOSTILE}"
    gateway.writer.add(
        agent, StatementDefined(1, text, "full", len(text), "f" * 16, ("DELETE",), (HOSTILE,), (), unbounded=True), under
    )
    gateway.writer.began(under, 1, 1)
    gateway.writer.finished(under, 1, rows=5000)
    gateway.record()

    def found() -> list[str]:
        items = house.get("/v1/findings?detector=unbounded+statement").json()["items"]
        return [each["finding"] for each in items if each["session"] == under.session]

    until(lambda: bool(found()), "a detector finds it")
    screen.open("/findings")
    row = screen.table("findings").locator("tr.row", has_text="onerror")
    expect(row).to_contain_text(QUOTED)
    expect(row).to_contain_text("<script>alert(2)</script>")
    screen.shot("hostile-findings")
    screen.open(f"/findings?finding={found()[0]}")
    expect(screen.table("page")).to_contain_text(QUOTED)
    expect(screen.table("evidence").locator("tr.row").first).to_contain_text(SHOWN)
    note = "<img src=x onerror=alert(3)> ![n](http://evil.example/n.png)"
    screen.page.get_by_label("What do you make of it?").fill(note)
    screen.page.keyboard.press("Enter")
    screen.page.get_by_role("button", name="Acknowledge").click()
    expect(screen.table("history")).to_contain_text(note)
    screen.shot("hostile-finding")
    for key in ("page", "finding", "numbers", "evidence", "history"):
        for made in ("script", "img", "a", "b", "iframe"):
            assert screen.table(key).locator(made).count() == 0, (key, made)
    screen.page.set_viewport_size({"width": 390, "height": 844})
    assert screen.page.evaluate("document.documentElement.scrollWidth - window.innerWidth") <= 0


def test_a_findings_place_in_the_log_leads_to_the_statement_that_stands_there(
    house: House, gateway: Gateway, screen: Screen
) -> None:
    under = gateway.session(house.agent("placed"))
    gateway.writer.defined(under, 1, "SELECT 'before'")
    gateway.writer.began(under, 1, 1)
    gateway.writer.finished(under, 1)
    text = "DELETE FROM public.orders"
    deed = StatementDefined(2, text, "full", len(text), "f" * 16, ("DELETE",), ("public.orders",), (), unbounded=True)
    gateway.writer.add("placed", deed, under)
    gateway.writer.began(under, 2, 2)
    gateway.writer.finished(under, 2, rows=5000)
    gateway.record()

    def found() -> list[dict[str, list[str]]]:
        told: list[dict[str, list[str]]] = house.get("/v1/findings?agent=placed").json()["items"]
        return told

    until(lambda: bool(found()), "a detector finds it")
    (finding,) = found()
    place = finding["offsets"][-1]
    events = house.get(f"/v1/records/{place}").json()["items"]
    assert set(finding["evidence"]) <= {each["event"] for each in events}
    for nowhere in ("statements/0/999999999", "statements/7/0", "elsewhere/0/0", "statements/0/-1", "statements/0/%31x"):
        answer = house.get(f"/v1/records/{nowhere}")
        assert answer.status_code == 404, nowhere
        assert answer.json()["error"]
    screen.open(f"/findings?finding={finding['finding']}")
    screen.page.get_by_label("Where it stands in the log").click()
    screen.page.get_by_role("option", name=place).click()
    evidence = screen.table("record").locator("tr.row", has_text="the evidence")
    expect(evidence).to_have_count(1)
    screen.shot("evidence-record")
    evidence.click()
    expect(screen.table("whole-facts")).to_contain_text(under.session)
    assert f"session={under.session}" in screen.page.url
