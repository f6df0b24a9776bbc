"""[webhooks.NAME] and [metrics]: what is taken, and what is said of what is not."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest

from pgwarden.config import Address, Config, ConfigInvalid, loads

SECRET = "whsec_" + base64.b64encode(b"canary-of-a-webhook-secret").decode()
CANARY = "canary-in-a-url"
ENVIRON = {"SECRET": SECRET, "NO_SECRET": "canary-of-another-kind", "SHORT": "whsec_c2hvcnQ="}
GOOD = f"""\
[webhooks.pager]
url = "https://alerts.example/pgwarden?token={CANARY}"
secret = "env:SECRET"
"""


def load(text: str) -> Config:
    return loads(text, Path("/nowhere/pgwarden.toml"), ENVIRON)


def test_a_webhook_needs_a_url_and_a_secret_alone() -> None:
    made = load(GOOD).webhooks["pager"]
    assert made.url.endswith(CANARY)
    assert made.secret.reveal() == SECRET
    assert (made.secret_previous, made.ca_file, made.attempts, made.timeout_seconds) == (None, None, 0, 15.0)
    assert made.events == ("findings", "kills", "revocations", "blindness")
    assert (made.severity, made.source) == ("warning", "/pgwarden")


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/x", "http://localhost/", "http://[::1]:80/", "https://a.example:8443/b?c=d"])
def test_a_url_that_can_be_used(url: str) -> None:
    assert load(GOOD.replace(f"https://alerts.example/pgwarden?token={CANARY}", url)).webhooks["pager"].url == url


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("https://", "http://", "webhooks.pager.url cannot be used; write https: the events would cross the network in clear text"),
        ("https://", "ftp://", "webhooks.pager.url cannot be used; write a URL, as https://alerts.example/pgwarden"),
        ("https://", "https://olga:pw@", "webhooks.pager.url cannot be used; write it without a user"),
        ("alerts.example", "10.0.0.300", "webhooks.pager.url cannot be used; write a URL"),
        ("alerts.example/", "alerts.example:99999/", "webhooks.pager.url cannot be used; write a URL"),
        ("/pgwarden", "/#part", "webhooks.pager.url cannot be used; write it without a user"),
        ("env:SECRET", "env:NO_SECRET", "which holds no secret for webhooks; write"),
        ("env:SECRET", "env:SHORT", "which holds no secret for webhooks; write"),
        ("env:SECRET", SECRET, "webhooks.pager.secret is a literal"),
        ('secret = "env:SECRET"\n', "", "webhooks.pager.secret is missing"),
        ("[webhooks.pager]", "[webhooks.Pager]", "webhooks.Pager is no name for a webhook"),
        ("[webhooks.pager]", '[webhooks.pager]\nevents = ["kill"]', 'holds "kill", which is no kind of event; write "kills"'),
        ("[webhooks.pager]", "[webhooks.pager]\nevents = []", "webhooks.pager.events is empty"),
        ("[webhooks.pager]", '[webhooks.pager]\nseverity = "warn"', "which is none of info, warning, critical"),
        ("[webhooks.pager]", "[webhooks.pager]\nattempts = -1", "webhooks.pager.attempts is -1"),
        ("[webhooks.pager]", "[webhooks.pager]\nretries = 3", 'has no setting "retries"'),
        (
            "[webhooks.pager]",
            '[metrics]\nlisten = "0.0.0.0:8474"\n[webhooks.pager]',
            "metrics.listen is 0.0.0.0:8474, which other machines",
        ),
        (
            "[webhooks.pager]",
            '[metrics]\nlisten = "127.0.0.1:8470"\n[webhooks.pager]',
            "metrics.listen is 127.0.0.1:8470, as api.listen is",
        ),
    ],
)
def test_a_wrong_line_is_named_with_its_remedy(old: str, new: str, said: str) -> None:
    assert GOOD.count(old) >= 1
    with pytest.raises(ConfigInvalid) as caught:
        load(GOOD.replace(old, new, 1))
    shown = str(caught.value)
    assert said in shown
    assert "canary" not in shown
    assert SECRET not in shown


def test_there_are_not_more_webhooks_than_a_log_can_have_readers() -> None:
    tables = "".join(GOOD.replace("pager", f"pager-{n}") for n in range(17))
    with pytest.raises(ConfigInvalid, match="more than 16"):
        load(tables)


def test_metrics_are_off_until_their_table_is_written() -> None:
    assert load("").metrics is None
    metrics = load("[metrics]\n").metrics
    assert metrics is not None
    assert metrics.listen == Address("127.0.0.1", 8474)


def test_remote_metrics_are_warned_of() -> None:
    config = load('[metrics]\nlisten = "0.0.0.0:8474"\nallow_remote = true\n')
    assert any("other machines can reach it in clear text, the names of agents included" in str(one) for one in config.warnings)
