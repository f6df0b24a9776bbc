"""Page Findings in a real browser."""

from __future__ import annotations

import pytest
from playwright.sync_api import expect

from tests.dashboards.house import House, Screen

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def test_a_finding_that_is_not_there_is_said(house: House, screen: Screen) -> None:
    screen.open("/findings?finding=no-such-finding")
    expect(screen.table("refused")).to_contain_text("This finding is not to be seen.")
