"""People sign in to the dashboard through a real issuer, in a real browser; what they may, the API alone decides."""

from __future__ import annotations

import stat
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect

from tests.dashboards.house import WAIT_MS, Gateway, House

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def address(house: House) -> str:
    return house.start_sign_in()


@pytest.fixture
def somebody(browser: BrowserContext) -> Iterator[Page]:
    """A browser in which nobody has signed in yet."""
    whole = browser.browser
    assert isinstance(whole, Browser)
    context = whole.new_context(viewport={"width": 1280, "height": 900})
    context.set_default_timeout(WAIT_MS)
    yield context.new_page()
    context.close()


def sign_in(page: Page, name: str, password: str) -> None:
    page.get_by_role("button", name="Sign in").click()
    page.get_by_label("Name").fill(name)
    page.get_by_label("Password").fill(password)
    page.get_by_role("button", name="Sign in").click()


def test_a_shared_address_works_after_signing_in_and_what_is_done_bears_the_persons_name(
    house: House, gateway: Gateway, address: str, somebody: Page
) -> None:
    name = house.agent("signed-for")
    gateway.session(name)
    gateway.record()
    somebody.goto(f"{address}/agents?agent={name}")
    expect(somebody.get_by_role("button", name="Sign in")).to_be_visible()
    assert somebody.get_by_text(name).count() == 0
    sign_in(somebody, "rita", "a guess")
    expect(somebody.get_by_role("alert")).to_have_text("Name and password do not fit.")
    somebody.get_by_label("Name").fill("rita")
    somebody.get_by_label("Password").fill("the secret of rita")
    somebody.get_by_role("button", name="Sign in").click()
    expect(somebody.locator(".st-key-agent")).to_contain_text(name)
    assert somebody.url == f"{address}/agents?agent={name}"
    expect(somebody.locator(".st-key-who")).to_contain_text("rita, responder")
    somebody.get_by_label("Why should it be revoked?").fill("because rita says so")
    somebody.keyboard.press("Enter")
    somebody.get_by_role("button", name="Revoke …").click()
    somebody.get_by_role("button", name="Revoke now").click()
    expect(somebody.locator(".st-key-facts")).to_contain_text("dev:rita")
    assert house.get(f"/v1/agents/{name}").json()["state_by"] == "dev:rita"


def test_a_viewer_is_offered_nothing_that_a_viewer_may_not(house: House, address: str, somebody: Page) -> None:
    name = house.agent("looked-at")
    house.asked(name)
    somebody.goto(f"{address}/agents?agent={name}")
    sign_in(somebody, "vera", "the secret of vera")
    expect(somebody.get_by_text("Revoking and reinstating it is for responders and administrators.")).to_be_visible()
    expect(somebody.get_by_text("An administrator approves or denies it.")).to_be_visible()
    for button in ("Revoke …", "Approve", "Deny"):
        expect(somebody.get_by_role("button", name=button)).to_have_count(0)
    somebody.get_by_role("button", name="Sign out").click()
    expect(somebody.get_by_role("button", name="Sign in")).to_be_visible()


def test_what_signs_people_in_is_the_owners_alone_to_read(house: House, address: str) -> None:
    for file in (house.folder / "state" / "run" / "dashboard.toml", house.folder / "state" / "dashboard.cookie"):
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert "the secret of desk.secret" not in (house.folder / "sign-in.log").read_text()
