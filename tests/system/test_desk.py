"""The analyst's way through the whole: a finding appears, is read with its session, its agent is stopped, and the proof is seen."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from playwright.sync_api import Page, expect, sync_playwright

from tests.dashboards.house import CHROMIUM, FLAGS, WAIT_MS

DEED = "DELETE FROM app.carts"
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture
def page(needs: Callable[[str, bool], None]) -> Iterator[Page]:
    needs("chromium", Path(CHROMIUM).exists())
    with sync_playwright() as playwright, tempfile.TemporaryDirectory(prefix="pgwarden-browser-") as profile:
        context = playwright.chromium.launch_persistent_context(
            profile, executable_path=CHROMIUM, headless=True, args=list(FLAGS), viewport={"width": 1440, "height": 1000}
        )
        context.set_default_timeout(WAIT_MS)
        yield context.new_page()
        context.close()


@pytest.fixture
def server(up: Any) -> Iterator[psycopg.Connection[Any]]:
    """The database itself, as its superuser."""
    port = next(line for line in (up.state / "pgwarden.toml").read_text().splitlines() if line.startswith("port = ")).split()[2]
    password = (up.state / "postgres" / "superuser.password").read_text().strip()
    with psycopg.connect(
        host="127.0.0.1", port=port, dbname="shop", user="postgres", password=password, autocommit=True, connect_timeout=10
    ) as connection:
        yield connection


def as_migration(up: Any) -> psycopg.Connection[Any]:
    """Somebody who has got hold of the migration agent's key."""
    return psycopg.connect(
        host="127.0.0.1",
        port=up.base,
        dbname="shop",
        user="migration",
        password=(up.state / "agents" / "migration.key").read_text().strip(),
        sslmode="verify-full",
        sslrootcert=str(up.state / "tls" / "certificate.pem"),
        autocommit=True,
        connect_timeout=20,
    )


def test_a_finding_appears_is_read_and_its_agent_is_stopped_with_the_proof(
    up: Any, server: psycopg.Connection[Any], page: Page, wait_for: Callable[..., Any]
) -> None:
    def part(key: str) -> Any:
        return page.locator(f".st-key-{key}")

    def backends(pid: int) -> int:
        row = server.execute("SELECT count(*) FROM pg_stat_activity WHERE pid = %s", (pid,)).fetchone()
        return int(row[0]) if row is not None else -1

    def opened_on() -> list[str]:
        return [str(one["session"]) for one in up.items("/v1/sessions", agent="migration") if one["backend_pid"] == pid]

    expect.set_options(timeout=WAIT_MS)
    word = (up.state / "dashboard.access").read_text().strip()
    page.goto(f"{up.dashboard}/findings?agent=migration&access={word}")
    expect(page.get_by_label("Detector")).to_be_visible(timeout=3 * WAIT_MS)  # the first page waits for what Python has to import
    row = part("findings").locator("tr.row", has_text='a DELETE without a condition on "app.carts"')
    expect(row).to_have_count(0)
    client = as_migration(up)
    try:
        pid = client.info.backend_pid
        client.execute("CREATE TABLE app.carts AS SELECT id, customer, amount FROM public.orders")
        assert client.execute(DEED).rowcount == 5000
        assert backends(pid) == 1
        expect(row).to_be_visible()  # by itself
        expect(row).to_contain_text("critical")
        (session,) = wait_for(opened_on, WAIT_MS / 1000)
        row.click()
        expect(part("numbers")).to_contain_text("5,000")
        expect(part("evidence").locator("tr.row", has_text=DEED)).to_be_visible()
        finding = page.url
        page.get_by_role("button", name="Read its session").click()
        expect(part("session-heading")).to_contain_text(session)
        part("replay").get_by_role("button", name="Next moment").click()
        expect(part("replay").locator(".shown pre")).to_contain_text("CREATE TABLE app.carts")
        expect(part("timeline").locator("tr.row", has_text=DEED)).to_be_visible()

        page.goto(finding)
        page.get_by_label("Why should it be revoked?").fill("deletes what it should not")
        page.keyboard.press("Enter")
        page.get_by_role("button", name="Revoke …").click()
        page.get_by_role("button", name="Revoke now").click()
        ended = part("endings").locator("tr.row", has_text=session)
        expect(ended).to_contain_text("gone")
        wait_for(lambda: backends(pid) == 0, WAIT_MS / 1000)
        with pytest.raises(psycopg.OperationalError):
            client.execute("SELECT 1 FROM app.carts")
        ended.click()
        expect(part("ending-0").locator("li", has_text="Backend gone")).to_contain_text("+")
        expect(part("session-heading")).to_contain_text("killed")
        proof = up.get(f"/v1/sessions/{session}")
        assert proof["kill_cause"] == "agent revoked"
        assert proof["kill_backend_gone_at"]
        told = up.get("/v1/agents/migration")
        assert (told["state"], told["state_by"], told["state_reason"]) == ("revoked", "local", "deletes what it should not")
    finally:
        client.close()
        up.shell("pgwarden reinstate migration")
    wait_for(lambda: up.items("/v1/sessions", live="true", agent="migration"), WAIT_MS / 1000)
