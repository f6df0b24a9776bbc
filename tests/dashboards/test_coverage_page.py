"""Page Coverage in a real browser."""

from __future__ import annotations

import pytest
from playwright.sync_api import expect

from ingest.events import (
    ObservationGap,
    SessionObserved,
    SessionUnobserved,
    WitnessBlinded,
    WitnessReported,
    WitnessRestored,
    WitnessStarted,
    WitnessStopped,
)
from tests.dashboards.house import Gateway, House, Screen, now_us, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

HOSTILE = "<svg onload=alert(4)>![c](http://evil.example/c.png)\x1b[2J\u202egpj.exe\u200b"
SHOWN = "<svg onload=alert(4)>![c](http://evil.example/c.png)U+001B[2JU+202Egpj.exeU+200B"
LONG = "very-long-" * 30
MARKUP = "<svg onload=alert(5)>**b** [link](http://evil.example/)"


def test_hostile_text_that_a_collector_saw_is_shown_and_does_nothing(house: House, gateway: Gateway, screen: Screen) -> None:
    """All that a client says of itself to PostgreSQL, a collector's words, a gateway's agent, an operator's reason."""
    server, witness, begun_us = "db-hostile", f"log-{HOSTILE}", now_us()
    agent = f"agent-{HOSTILE}"  # no name that can be registered: but the record may say anything
    under = gateway.session(agent, connection="hostile", backend_pid=4712, backend_start_us=begun_us, upstream_port=41001)
    own = f"{begun_us // 1_000_000:x}.{4712:x}"
    gateway.record()
    begun_us = now_us()  # in the time of which there is a record
    add, key = gateway.writer.add, f"{server}/{own}"
    add(server, WitnessStarted(begun_us, witness, "log", server, ("hostile",), "statements", "0.1"))
    add(key, SessionObserved(begun_us, witness, server, own, 4712, under.role, "shop", "127.0.0.1:41001", HOSTILE))
    add(
        f"{server}/beef.1",
        SessionObserved(
            begun_us, witness, server, "beef.1", 7, f"user-{HOSTILE}", HOSTILE, f"{HOSTILE}:1", f"{HOSTILE}{LONG}",
            client_pid=9, client_uid=1000, client_exe=f"/tmp/{HOSTILE}{LONG}", client_cgroup_path=f"/{HOSTILE}",
        ),
    )  # fmt: skip
    add(server, ObservationGap(begun_us, witness, server, f"gap-{HOSTILE}", begun_us, begun_us + 1, 3, f"reason {HOSTILE}"))
    add(server, WitnessReported(begun_us, witness, "log", server, False, "blind", begun_us, 0, 2, 3, 0))
    add(server, WitnessBlinded(begun_us, witness, "log", server, begun_us, f"cannot see {HOSTILE}"))
    reason = f"nightly {MARKUP}"
    house.post(
        "/v1/sources", {"source": "hostile-words", "kind": "backup", "roles": ["backup"], "client": "local", "reason": reason}
    )
    gateway.record()

    def judged() -> dict[str, str]:
        items = house.get("/v1/observations/sessions").json()["items"]
        return {each["session_id"]: each["verdict"] for each in items if each["server"] == server}

    until(lambda: judged() == {own: "audited", "beef.1": "shadow"}, "both have a verdict")
    try:
        screen.open("/coverage")
        expect(screen.table("witnesses").locator("tr.row", has_text="db-hostile")).to_contain_text(f"log-{SHOWN}")
        expect(screen.table("gaps")).to_contain_text(f"blind: cannot see {SHOWN}")
        expect(screen.table("gaps")).to_contain_text(f"reason {SHOWN}")
        expect(screen.table("gaps")).to_contain_text(f"session gap-{SHOWN}")
        expect(screen.table("sources")).to_contain_text(reason)
        expect(screen.table("observed").locator("tr.row", has_text="audited")).to_contain_text(f"agent-{SHOWN}")
        shadow = screen.table("observed").locator("tr.row", has_text="shadow")
        expect(shadow).to_contain_text(f"user-{SHOWN} from {SHOWN}:1")
        expect(shadow).to_contain_text(f"/tmp/{SHOWN}very-long-")
        shadow.click()
        told = screen.table("observed").locator("tr.detail:visible")
        expect(told).to_contain_text(f"/tmp/{SHOWN}{LONG} ")
        expect(told).to_contain_text(f"/{SHOWN}")
        screen.shot("hostile-coverage")
        for part in ("witnesses", "gaps", "observed", "sources", "figures"):
            for made in ("script", "img", "a", "b", "iframe", "svg"):
                assert screen.table(part).locator(made).count() == 0, (part, made)
        for width in (390, 1280):
            screen.page.set_viewport_size({"width": width, "height": 844})
            assert screen.page.evaluate("document.documentElement.scrollWidth - window.innerWidth") <= 0, width
            for frame in screen.page.locator(".frame").all():
                assert frame.evaluate("frame => frame.scrollWidth - frame.clientWidth") <= 0, (width, frame.inner_text()[:60])
        screen.shot("hostile-coverage-1280")
        found = house.get("/v1/findings?detector=shadow").json()["items"][0]["finding"]
        screen.open(f"/findings?finding={found}")
        expect(screen.page.get_by_text("What is nobody's is not muted")).to_be_visible()
        expect(screen.page.get_by_role("button", name="Acknowledge")).to_be_visible()
        expect(screen.page.get_by_role("button", name="Mute", exact=True)).to_have_count(0)
    finally:  # what has ended is no trouble that other pages would tell of
        for session_id in (own, "beef.1"):
            add(f"{server}/{session_id}", SessionUnobserved(now_us(), witness, server, session_id))
        add(server, WitnessRestored(now_us(), witness, "log", server, begun_us))
        add(server, WitnessStopped(now_us(), witness, "log", server))
        gateway.writer.closed(under)
        gateway.record()
