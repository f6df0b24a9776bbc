"""The pages in a real browser, over the real API, on a real log."""

from __future__ import annotations

import httpx
import pytest
from playwright.sync_api import BrowserContext, Locator, expect

from dashboards import sql_examples
from tests import broker as brokers
from tests.dashboards.house import ACCESS_WORD, ALICE, RECORDS, Gateway, House, Screen, end, now_us

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def test_now_shows_who_is_connected_and_what_was_refused(house: House, gateway: Gateway, screen: Screen) -> None:
    under = gateway.session(house.agent("now-agent"), client="127.0.0.1:50123")
    gateway.writer.defined(under, 1, "SELECT * FROM orders")
    gateway.writer.defined(under, 2, "DROP TABLE orders", ("DROP TABLE",))
    for execution in range(1, 6):
        gateway.writer.began(under, execution, 1)
        gateway.writer.finished(under, execution)
    gateway.writer.denied(under, 6, 2, "No grant allows ddl on public.orders: ask for one.")
    gateway.writer.denied_connection("ghost", "no agent bears this name")
    gateway.record()
    gateway.states[under.session] = "in transaction"
    screen.open("/")
    session = screen.table("sessions").locator("tr.row", has_text="now-agent")
    expect(session).to_contain_text("127.0.0.1:50123")
    expect(session).to_contain_text("in transaction")
    expect(screen.table("figures")).to_contain_text("Recordingon")
    expect(screen.table("refusals").locator("tr.row", has_text="no agent bears this name")).to_contain_text("tried to connect")
    refusal = screen.table("refusals").locator("tr.row", has_text="now-agent")
    expect(refusal).to_contain_text("DROP TABLE orders")
    expect(refusal).to_contain_text("No grant allows ddl on public.orders")
    rate = screen.table("rates").locator("tr.row", has_text="now-agent")
    expect(rate.locator("svg rect.allowed")).to_have_count(1)
    expect(rate.locator("svg rect.refused")).to_have_count(1)
    screen.shot("now")


def test_what_happens_meanwhile_appears_by_itself(house: House, gateway: Gateway, screen: Screen) -> None:
    screen.open("/")
    expect(screen.table("figures")).to_contain_text("Live sessions")
    gateway.session(house.agent("late-agent"))
    gateway.record()
    expect(screen.table("sessions").locator("tr.row", has_text="late-agent")).to_be_visible()


def test_a_search_stands_in_the_address_and_can_be_opened_again(house: House, gateway: Gateway, screen: Screen) -> None:
    under = gateway.session(house.agent("searched"))
    gateway.writer.defined(under, 1, "SELECT needle FROM hay", relations=("public.hay",))
    gateway.writer.defined(under, 2, "SELECT straw FROM hay", relations=("public.hay",))
    gateway.writer.began(under, 1, 1)
    gateway.writer.finished(under, 1, rows=1234)
    gateway.writer.began(under, 2, 2)
    gateway.record()
    screen.open("/statements")
    rows = screen.table("statements").locator("tr.row", has_text="searched")
    expect(rows).to_have_count(2)
    screen.page.get_by_label("Text in the statement").fill("needle")
    screen.page.keyboard.press("Enter")
    expect(rows).to_have_count(1)
    expect(rows).to_contain_text("1,234")
    assert "text=needle" in screen.page.url
    screen.shot("search")
    screen.open("/statements?text=straw&agent=searched&relation=public.hay")
    expect(rows).to_have_count(1)
    expect(rows).to_contain_text("SELECT straw FROM hay")
    screen.open("/statements?text=no+such+statement+anywhere")
    expect(screen.table("statements")).to_contain_text("No statement fits. Take a filter away")


def test_older_statements_are_a_press_away(house: House, gateway: Gateway, screen: Screen) -> None:
    under = gateway.session(house.agent("busy"))
    gateway.writer.defined(under, 1, "SELECT page FROM book")
    for execution in range(1, 61):
        gateway.writer.began(under, execution, 1)
        gateway.writer.finished(under, execution, rows=execution)
    gateway.record()
    screen.open("/statements?agent=busy")
    rows = screen.table("statements").locator("tr.row", has_text="busy")
    expect(rows).to_have_count(50)
    screen.page.get_by_role("button", name="Older").click()
    expect(rows).to_have_count(10)
    screen.page.get_by_role("button", name="Newest").click()
    expect(rows).to_have_count(50)


def test_a_statement_leads_to_the_timeline_of_its_session(house: House, gateway: Gateway, screen: Screen) -> None:
    under = gateway.session(house.agent("traced"), task="month end")
    gateway.writer.defined(under, 1, "SELECT 'first'")
    gateway.writer.defined(under, 2, "DROP TABLE traced", ("DROP TABLE",))
    gateway.writer.began(under, 1, 1)
    gateway.writer.finished(under, 1, rows=3)
    gateway.writer.denied(under, 2, 2, "No grant allows ddl.")
    gateway.writer.closed(under)
    gateway.record()
    screen.open("/statements?agent=traced")
    screen.table("statements").locator("tr.row", has_text="SELECT 'first'").click()
    screen.page.get_by_role("button", name="Timeline of this session").locator("visible=true").click()
    timeline = screen.table("timeline")
    expect(timeline).to_contain_text("SELECT 'first'")
    expect(timeline).to_contain_text("No grant allows ddl.")
    expect(screen.table("session")).to_contain_text("month end")
    assert f"session={under.session}" in screen.page.url
    moments = timeline.locator("tr.row .mark").all_inner_texts()
    assert [moment.strip() for moment in moments] == ["opened", "ok", "refused", "closed"]
    screen.shot("timeline")


def test_the_kill_switch_revokes_through_the_api_and_shows_the_proof(house: House, gateway: Gateway, screen: Screen) -> None:
    name = house.agent("doomed", "Reads what it should not")
    house.post(f"/v1/grants/{house.asked(name)}/approve", {}, by=ALICE)
    under = gateway.session(name)
    gateway.record()
    screen.open(f"/agents?agent={name}")
    expect(screen.table("grants")).to_contain_text("select on public.orders")
    expect(screen.table("grants")).to_contain_text("alice")
    screen.page.get_by_role("button", name="Revoke …").click()
    expect(screen.page.get_by_text("Write a reason first")).to_be_visible()
    screen.page.get_by_label("Why should it be revoked?").fill("reads payroll")
    screen.page.keyboard.press("Enter")
    screen.page.get_by_role("button", name="Revoke …").click()
    expect(screen.table("confirm")).to_contain_text("1 live session")
    screen.shot("confirm")
    assert house.get(f"/v1/agents/{name}").json()["state"] == "active"  # one press is not enough
    screen.page.get_by_role("button", name="Revoke now").click()
    ending = screen.table("endings").locator("tr.row", has_text=under.session)
    expect(ending).to_contain_text("ending")
    told = house.get(f"/v1/agents/{name}").json()
    assert (told["state"], told["state_by"], told["state_reason"]) == ("revoked", "alice", "reads payroll")
    gateway.writer.now_us = now_us()
    gateway.writer.killed(under)
    gateway.writer.closed(under, "killed")
    gateway.record()
    expect(ending).to_contain_text("gone")
    expect(ending).to_contain_text("80.0 ms")
    expect(ending).not_to_contain_text("–")
    screen.shot("revoked")
    screen.page.get_by_label("Why may it act again?").fill("it was a mistake")
    screen.page.keyboard.press("Enter")
    screen.page.get_by_role("button", name="Reinstate").click()
    expect(screen.page.get_by_label("Why should it be revoked?")).to_be_visible()
    assert house.get(f"/v1/agents/{name}").json()["state"] == "active"


@pytest.mark.parametrize("width", [1280, 1440])
def test_on_the_screen_of_a_laptop_no_column_is_out_of_sight(house: House, gateway: Gateway, screen: Screen, width: int) -> None:
    name = house.agent(f"wide-{width}")
    house.post(f"/v1/grants/{house.asked(name)}/approve", {}, by=ALICE)
    under = gateway.session(name, client="127.0.0.1:50123")
    gateway.writer.defined(under, 1, "SELECT * FROM orders")
    gateway.writer.denied(under, 1, 1, "No grant allows it.")
    gateway.record()
    screen.page.set_viewport_size({"width": width, "height": 800})
    house.post(f"/v1/agents/{name}/revoke", {"reason": "to see its end"}, by=ALICE)
    gateway.writer.killed(under)
    gateway.writer.closed(under, "killed")
    gateway.record()
    shown = {"/": "sessions", f"/agents?agent={name}": "endings", f"/sessions?session={under.session}": "timeline"}
    gateway.session(house.agent(f"live-{width}"), client="127.0.0.1:50123")
    gateway.record()
    for path, key in {**shown, "/sessions": "sessions", "/statements": "statements"}.items():
        screen.open(path)
        expect(screen.table(key).locator("tr.row").first).to_be_visible()
        for frame in screen.page.locator(".frame").all():
            hidden = frame.evaluate("frame => frame.scrollWidth - frame.clientWidth")
            assert hidden <= 0, (path, width, frame.inner_text()[:60])


def test_what_was_asked_for_is_approved_or_denied_with_a_reason(house: House, screen: Screen) -> None:
    name = house.agent("asking")
    first, second = house.asked(name), house.asked(name)
    screen.open(f"/agents?agent={name}")
    expect(screen.page.get_by_role("button", name="Approve")).to_have_count(2)
    screen.shot("asking")
    screen.page.get_by_role("button", name="Approve").first.click()
    expect(screen.page.get_by_text("Approved.")).to_be_visible()
    expect(screen.page.get_by_role("button", name="Deny")).to_have_count(1)  # the other was decided
    screen.page.get_by_role("button", name="Deny").click()
    expect(screen.page.get_by_text("A denial is recorded with its reason")).to_be_visible()
    screen.page.get_by_placeholder("Reason for a denial").fill("not this quarter")
    screen.page.keyboard.press("Enter")
    screen.page.get_by_role("button", name="Deny").click()
    expect(screen.page.get_by_text("Denied.")).to_be_visible()
    states = {grant["grant"]: grant["state"] for grant in house.get(f"/v1/grants?agent={name}").json()["items"]}
    assert sorted(states[grant] for grant in (first, second)) == ["approved", "denied"]


HOSTILE = (
    "SELECT '<script>alert(1)</script><img src=x onerror=alert(2)>', "
    "'![x](http://evil.example/x.png) [link](http://evil.example/) **bold** :material/warning: $x^2$', "
    "'\x1b[2J\x07\u202etxt.exe\u200b'"
)


def test_hostile_text_is_shown_and_does_nothing(house: House, gateway: Gateway, screen: Screen) -> None:
    name = house.agent("hostile", "<img src=http://evil.example/a.png> ![x](http://evil.example/b.png)")
    under = gateway.session(name, task="![t](http://evil.example/t.png)", client="<b>127.0.0.1</b>:1")
    gateway.writer.defined(under, 1, HOSTILE)
    gateway.writer.defined(under, 2, "SELECT '" + "long " * 40_000 + "'")
    gateway.writer.denied(under, 1, 1, "<script>alert(3)</script> ![r](http://evil.example/r.png)")
    gateway.writer.began(under, 2, 2)
    gateway.record()

    def shown(place: Locator) -> None:
        expect(place).to_contain_text("<script>alert(1)</script><img src=x onerror=alert(2)>")
        expect(place).to_contain_text(
            "![x](http://evil.example/x.png) [link](http://evil.example/) **bold** :material/warning: $x^2$"
        )
        expect(place).to_contain_text("U+001B[2JU+0007U+202Etxt.exeU+200B")

    screen.open("/")
    shown(screen.table("refusals").locator("tr.row", has_text="hostile"))
    expect(screen.table("sessions").locator("tr.row", has_text="hostile")).to_contain_text("<b>127.0.0.1</b>:1")
    screen.open("/statements?agent=hostile")
    row = screen.table("statements").locator("tr.row", has_text="<script>")
    shown(row)
    row.click()
    whole = screen.table("statements").locator("tr.detail:visible")
    shown(whole.locator("pre"))
    expect(whole).to_contain_text("<script>alert(3)</script> ![r](http://evil.example/r.png)")
    screen.shot("hostile")
    row.click()
    long = screen.table("statements").locator("tr.row", has_text="long long")
    assert (long.bounding_box() or {"height": 0})["height"] < 40  # one line
    long.click()
    expect(screen.table("statements").locator("tr.detail:visible")).to_contain_text("183.6 kB more are not shown here")
    screen.page.get_by_role("button", name="Whole statement").locator("visible=true").click()
    expect(screen.page.get_by_test_id("stCode")).to_contain_text("long long '")  # its end
    screen.shot("whole")
    screen.open("/agents?agent=hostile")
    expect(screen.table("agent")).to_contain_text("<img src=http://evil.example/a.png> ![x](http://evil.example/b.png)")
    for made in ("script", "img", "a", "b", "iframe"):
        assert screen.table("agent").locator(made).count() == 0


def test_the_operator_key_never_reaches_the_browser(house: House, screen: Screen) -> None:
    seen: list[str] = []
    screen.page.on("websocket", lambda socket: socket.on("framereceived", lambda payload: seen.append(str(payload))))
    for path in ("/", "/agents", "/statements"):
        screen.open(path)
        screen.page.wait_for_timeout(1500)
    assert seen
    assert not any(ALICE in payload for payload in seen)
    assert ALICE not in (house.folder / "dashboard.log").read_text()


def test_a_log_that_takes_no_records_is_said_on_every_page(house: House, gateway: Gateway, screen: Screen) -> None:
    since_us = now_us() - 90_000_000
    gateway.log_state |= {"available": False, "since_us": since_us, "reason": "No space left on device", "refused": 12}
    try:
        banner = screen.table("watch").get_by_role("alert")
        for path in ("/agents", "/statements", "/"):
            screen.open(path)
            expect(banner).to_contain_text("Nothing can be recorded, so nothing is let through.")
            expect(banner).to_contain_text("No space left on device")
            expect(banner).to_contain_text("12 statements so far")
        expect(screen.table("figures")).to_contain_text("stopped")
        screen.shot("stopped")
    finally:
        gateway.log_state = dict(RECORDS)
    expect(banner).to_have_count(0)
    expect(screen.table("figures")).to_contain_text("Recordingon")


def test_an_api_that_is_down_is_said_and_its_return_is_noticed(house: House, screen: Screen) -> None:
    house.agent("before-the-outage")
    screen.open("/agents")
    expect(screen.table("agents")).to_contain_text("before-the-outage")
    house.stop_api()
    try:
        banner = screen.table("watch").get_by_role("alert")
        expect(banner).to_contain_text("cannot be reached")
        expect(banner).to_contain_text("Start it with `pgwarden api`")
        for path in ("/", "/sessions", "/findings", "/findings?finding=f-1", "/coverage", "/sql", "/statements"):
            screen.open(path)
            expect(banner).to_contain_text("cannot be reached")
            expect(banner).to_contain_text("Start it with `pgwarden api`")
            expect(screen.page.get_by_text("Times in UTC")).to_be_visible()  # the page was drawn to its end
            expect(screen.page.get_by_test_id("stException")).to_have_count(0)
        screen.shot("down")
    finally:
        house.start_api()
    expect(banner).to_have_count(0)
    expect(screen.page.get_by_label("Text in the statement")).to_be_visible()


def test_a_browser_without_the_access_word_sees_nothing(house: House, browser: BrowserContext) -> None:
    house.agent("hidden")
    access_file = house.folder / "access"
    access_file.touch(0o600)
    access_file.write_text(ACCESS_WORD)
    closed = House(house.folder, house.api_port, brokers.port())
    closed.start_dashboard(access_file)
    assert closed.dashboard is not None
    page = browser.new_page()
    try:
        page.goto(f"{closed.url}/agents")
        expect(page.get_by_text("This browser is not known here.")).to_be_visible()
        assert page.get_by_text("hidden").count() == 0
        page.get_by_label("Access word").fill("f" * 64)
        page.keyboard.press("Enter")
        expect(page.get_by_text("That access word is not right.")).to_be_visible()
        page.goto(f"{closed.url}/agents?access={ACCESS_WORD}")
        expect(page.locator(".st-key-agents").get_by_text("hidden", exact=True)).to_be_visible()
        assert ACCESS_WORD not in page.url
        page.reload()  # the browser is known from now on
        expect(page.locator(".st-key-agents").get_by_text("hidden", exact=True)).to_be_visible()
    finally:
        page.close()
        end(closed.dashboard)


def test_another_site_cannot_reach_it_under_its_own_name(house: House) -> None:
    socket = {
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==",
        "Sec-WebSocket-Version": "13",
    }
    own = f"127.0.0.1:{house.dashboard_port}"
    for host, origin in (("evil.example", "http://evil.example"), (own, "http://evil.example")):
        answer = httpx.get(f"{house.url}/_stcore/stream", headers={**socket, "Host": host, "Origin": origin})
        assert answer.status_code == 403, (host, origin)


def test_no_program_can_drive_it_over_plain_http(house: House) -> None:
    answer = httpx.post(f"{house.url}/_stcore/agent/interact", json={}, headers={"Host": f"127.0.0.1:{house.dashboard_port}"})
    assert answer.status_code == 403


def test_each_worked_example_of_page_sql_is_answered(house: House) -> None:
    for name, text in sql_examples.EXAMPLES.items():
        answer = house.post("/v1/sql", {"sql": text})
        assert answer["columns"], name


def test_sql_is_asked_and_its_answer_is_a_table_and_a_chart(house: House, gateway: Gateway, screen: Screen) -> None:
    house.agent("asked-about")
    gateway.record()
    screen.open("/sql")
    screen.page.get_by_role("textbox", name="SELECT").fill("select '<b>bold</b>' as text, 1000 + i as n from range(3) r(i)")
    screen.page.get_by_role("button", name="Run").click()
    answer = screen.table("answer")
    expect(answer.locator("tr.row")).to_have_count(3)
    expect(answer.locator("tr.row").first).to_contain_text("<b>bold</b>")
    expect(answer.locator("tr.row").last).to_contain_text("1,002")
    screen.page.get_by_role("radio", name="Chart").click()
    expect(screen.table("chart").locator("svg rect.bar")).to_have_count(3)
    screen.page.get_by_role("textbox", name="SELECT").fill("drop table agents")
    screen.page.get_by_role("button", name="Run").click()
    expect(screen.table("refused")).to_contain_text("Not answered.")
    expect(screen.table("history").locator("tr.row")).to_have_count(1)  # what was refused is not kept
