"""An OIDC access token as the password: a real issuer, a real driver."""

from __future__ import annotations

import base64
import json
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
import pytest

from ingest.events import AgentRevoked, GroupRevoked, SessionDenied, SessionKilled, SessionOpened, SubjectReinstated, SubjectRevoked
from pgwarden import dev_issuer
from pgwarden.dev_issuer import DevClient, DevIssuer, DevIssuerSettings

if TYPE_CHECKING:
    from conftest import Warden  # type: ignore[import-not-found]


@dataclass
class Issuer:
    url: str
    core: DevIssuer
    secrets: dict[str, str]

    def token(self, client: str, **asked: str) -> str:
        form = "&".join(f"{name}={value}" for name, value in {"grant_type": "client_credentials", **asked}.items())
        request = urllib.request.Request(f"{self.url}/token", form.encode())
        basic = base64.b64encode(f"{client}:{self.secrets[client]}".encode()).decode()
        request.add_header("Authorization", f"Basic {basic}")
        with urllib.request.urlopen(request, timeout=5) as answer:
            return str(json.load(answer)["access_token"])


def _issuer(folder: Path, lifetime_seconds: int) -> Iterator[Issuer]:
    secrets = {"client-a": "a" * 40, "client-b": "b" * 40}
    settings = DevIssuerSettings(
        folder=folder,
        clients=tuple(DevClient(name, secret, ("groups", "invocation", "task")) for name, secret in secrets.items()),
        port=0,
        lifetime_seconds=lifetime_seconds,
    )
    listening = dev_issuer.listener(settings)
    url = dev_issuer.url_of(settings, listening)
    core = DevIssuer(settings, url)
    serving = dev_issuer.server(core, settings)
    thread = threading.Thread(target=lambda: serving.run(sockets=[listening]))
    thread.start()
    try:
        yield Issuer(url, core, secrets)
    finally:
        serving.should_exit = True
        thread.join(10)


@pytest.fixture
def issuer(tmp_path: Path) -> Iterator[Issuer]:
    yield from _issuer(tmp_path / "issuer", 600)


@pytest.fixture
def hasty_issuer(tmp_path: Path) -> Iterator[Issuer]:
    yield from _issuer(tmp_path / "issuer", 3)


def _warden(make_warden: Callable[..., Warden], issuer: Issuer, leeway: int = 30) -> Warden:
    row = f'[issuers.dev]\nissuer = "{issuer.url}"\naudience = "pgwarden"\nalgorithms = ["ES256"]\ninsecure_http = true\nleeway_seconds = {leeway}\ninvocation = ["invocation"]\ntask = ["task"]\n'
    warden = make_warden(more=row)
    warden.agent("alpha", issuer=issuer.url, client="client-a")
    warden.agent("beta", issuer=issuer.url, client="client-b")
    return warden


def test_a_token_opens_a_session_of_its_agent_with_what_it_says(make_warden: Callable[..., Warden], issuer: Issuer) -> None:
    warden = _warden(make_warden, issuer)
    warden.keys["alpha"] = issuer.token("client-a", task="T-9", invocation="run-4")
    with warden.connect("alpha", options="-c pgwarden.task=forged") as connection:
        assert connection.execute("SELECT count(*) FROM orders").fetchone() == (100,)
    warden.stop()
    (opened,) = warden.session_events(SessionOpened)
    assert isinstance(opened, SessionOpened)
    assert (opened.method, opened.stamp.agent, opened.stamp.issuer) == ("token", "alpha", issuer.url)
    assert (opened.stamp.task, opened.stamp.invocation, opened.stamp.unverified) == ("T-9", "run-4", ())
    assert warden.keys["alpha"].encode() not in b"".join(
        path.read_bytes() for path in (warden.folder / "state").rglob("*") if path.is_file()
    )


def test_a_token_of_another_agent_or_no_token_is_refused(make_warden: Callable[..., Warden], issuer: Issuer) -> None:
    warden = _warden(make_warden, issuer)
    for credential in (issuer.token("client-b"), "garbage", issuer.token("client-a")[:-4] + "AAAA"):
        warden.keys["alpha"] = credential
        with pytest.raises(psycopg.OperationalError, match="authentication of agent alpha failed"):
            warden.connect("alpha")
    warden.stop()
    assert len(warden.session_events(SessionDenied)) == 3


def test_a_rotated_key_is_learned_at_once(make_warden: Callable[..., Warden], issuer: Issuer) -> None:
    warden = _warden(make_warden, issuer)
    warden.keys["alpha"] = issuer.token("client-a")
    warden.connect("alpha").close()
    issuer.core.rotate()
    warden.keys["alpha"] = issuer.token("client-a")
    warden.connect("alpha").close()


def test_a_session_ends_with_its_token(make_warden: Callable[..., Warden], hasty_issuer: Issuer) -> None:
    warden = _warden(make_warden, hasty_issuer, leeway=0)
    warden.keys["alpha"] = hasty_issuer.token("client-a")
    connection = warden.connect("alpha")
    assert connection.execute("SELECT 1").fetchone() == (1,)
    until = time.monotonic() + 10
    while not warden.session_events(SessionKilled) and time.monotonic() < until:
        time.sleep(0.1)
    (killed,) = warden.session_events(SessionKilled)
    assert isinstance(killed, SessionKilled)
    assert killed.cause == "token expired"
    assert 0 <= killed.decided_us - killed.requested_us < 1_000_000
    with pytest.raises(psycopg.OperationalError):
        warden.connect("alpha")
    connection.close()


def test_a_good_token_of_a_revoked_agent_gets_28000(make_warden: Callable[..., Warden], issuer: Issuer) -> None:
    warden = _warden(make_warden, issuer)
    warden.keys["alpha"] = issuer.token("client-a")
    warden.record(AgentRevoked(time.time_ns() // 1000, "alpha", "misbehaves", "olga"))
    warden.settle()
    with pytest.raises(psycopg.OperationalError, match="revoked"):
        warden.connect("alpha")
    warden.stop()
    (denied,) = warden.session_events(SessionDenied)
    assert isinstance(denied, SessionDenied)
    assert (denied.sqlstate, denied.agent) == ("28000", "alpha")


def _killed(warden: Warden, count: int) -> list[SessionKilled]:
    until = time.monotonic() + 10
    while True:
        found = [event for event in warden.session_events(SessionKilled) if isinstance(event, SessionKilled)]
        if len(found) >= count or time.monotonic() > until:
            return found
        time.sleep(0.02)


def test_a_group_that_is_revoked_ends_the_sessions_whose_token_names_it_and_no_other(
    make_warden: Callable[..., Warden], issuer: Issuer
) -> None:
    warden = _warden(make_warden, issuer)
    red, blue = issuer.token("client-a", groups="staff+red"), issuer.token("client-b", groups="staff+blue")
    warden.keys |= {"alpha": red, "beta": blue}
    alpha, beta = warden.connect("alpha"), warden.connect("beta")
    at_us = time.time_ns() // 1000
    warden.record(GroupRevoked(at_us, issuer.url, "red", "left the team", "olga"))
    (killed,) = _killed(warden, 1)
    assert (killed.agent, killed.cause, killed.requested_us) == ("alpha", "group revoked", at_us)
    with pytest.raises(psycopg.errors.AdminShutdown, match="left the team"):
        alpha.execute("SELECT 1")
    assert beta.execute("SELECT 1").fetchone() == (1,)
    with pytest.raises(psycopg.OperationalError, match="group revoked"):
        warden.connect("alpha")
    warden.keys["alpha"] = issuer.token("client-a", groups="staff")
    with warden.connect("alpha") as again:
        assert again.execute("SELECT 1").fetchone() == (1,)
    alpha.close()
    beta.close()
    warden.stop()
    opened = [event for event in warden.session_events(SessionOpened) if isinstance(event, SessionOpened)]
    assert [event.groups for event in opened] == [("staff", "red"), ("staff", "blue"), ("staff",)]


def test_a_subject_that_is_revoked_ends_its_sessions_and_opens_none(make_warden: Callable[..., Warden], issuer: Issuer) -> None:
    warden = _warden(make_warden, issuer)
    warden.keys |= {"alpha": issuer.token("client-a"), "beta": issuer.token("client-b")}
    with warden.connect("alpha") as alpha, warden.connect("beta") as beta:
        (subject,) = {
            event.stamp.subject
            for event in warden.session_events(SessionOpened)
            if isinstance(event, SessionOpened) and event.stamp.agent == "alpha"
        }
        warden.record(SubjectRevoked(time.time_ns() // 1000, "https://another.example", subject, "not this one", "olga"))
        warden.record(SubjectRevoked(time.time_ns() // 1000, issuer.url, subject, "stolen", "olga"))
        (killed,) = _killed(warden, 1)
        assert (killed.agent, killed.cause) == ("alpha", "subject revoked")
        with pytest.raises(psycopg.errors.AdminShutdown, match="stolen"):
            alpha.execute("SELECT 1")
        assert beta.execute("SELECT 1").fetchone() == (1,)
        with pytest.raises(psycopg.OperationalError, match="subject revoked"):
            warden.connect("alpha")
        warden.record(SubjectReinstated(time.time_ns() // 1000, issuer.url, subject, "found", "olga"))
        warden.settle()
        with warden.connect("alpha") as again:
            assert again.execute("SELECT 1").fetchone() == (1,)
