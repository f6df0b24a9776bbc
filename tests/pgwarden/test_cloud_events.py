"""Which events are told to somebody outside, and how they look; what signs them; when an attempt is repeated."""

from __future__ import annotations

import base64
import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.events import (
    AgentRevoked,
    Event,
    FindingRaised,
    FindingRecurred,
    Frame,
    GrantNarrowed,
    Rule,
    Scope,
    SessionKilled,
    SessionOpened,
    StatementDenied,
    WitnessBlinded,
)
from pgwarden.cloud_events import ITEMS_MAX, TEXT_CHARACTERS_MAX, CloudEvent, cloud_event, is_wanted, topics
from pgwarden.webhook_attempts import Failed, Taken, headers, outcome, pause_seconds, signing_key
from pgwarden.webhook_kinds import KINDS
from tests.ingest.test_events import specimen

KILLED = SessionKilled(1_790_000_000_123_456, "s-1", "reporter", "agent revoked", 1, 2, 3, 4, 77, "odd")


def finding(severity: str) -> FindingRaised:
    return FindingRaised(1, "f-1", "hot_loop", "reporter", "s-1", severity, "It loops.", ())


def framed(*events: Event, writer: str = "gateway-1") -> Frame:
    return Frame(1, writer, 5, 9, (), tuple((-1, event) for event in events))


def told(event: Event, writer: str = "gateway-1") -> dict[str, object]:
    found: dict[str, object] = json.loads(cloud_event(framed(event, writer=writer), 0, "/pgwarden").body)
    return found


def test_a_kill_is_a_cloud_event_in_structured_mode() -> None:
    assert told(KILLED) == {
        "specversion": "1.0",
        "id": "gateway-1/5/sessions/9/0",
        "source": "/pgwarden",
        "type": "pgwarden.SessionKilled",
        "subject": "reporter",
        "time": "2026-09-21T14:13:20.123456Z",
        "datacontenttype": "application/json",
        "data": {
            "at_us": 1_790_000_000_123_456,
            "session": "s-1",
            "agent": "reporter",
            "cause": "agent revoked",
            "requested_us": 1,
            "decided_us": 2,
            "client_closed_us": 3,
            "backend_gone_us": 4,
            "backend_pid": 77,
            "reason": "odd",
        },
    }


def test_the_same_event_has_the_same_id_in_every_reading_and_no_full_stop_in_it() -> None:
    assert cloud_event(framed(KILLED, KILLED), 1, "/a") == cloud_event(framed(KILLED, KILLED), 1, "/a")
    assert told(KILLED, "watchdog-db.example.org-7")["id"] == "watchdog-db%2Eexample%2Eorg-7/5/sessions/9/0"


@pytest.mark.parametrize("kind", [one for one in get_args(Event) if isinstance(one, type)])
def test_every_event_could_be_told(kind: type[Event]) -> None:
    said = told(specimen(kind, "", 1))
    assert said["type"] == f"pgwarden.{kind.__name__}"
    assert isinstance(said["data"], dict)
    assert set(said["data"]) == set(kind.__struct_fields__)


def test_what_is_nested_is_told_by_name() -> None:
    scope = Scope("shop", (Rule("public", ("orders",), ("select",)),), (), (), False)
    data = told(GrantNarrowed(1, "g", "reporter", scope, "op", "less"))["data"]
    assert isinstance(data, dict)
    assert data["scope"]["rules"] == [{"schema": "public", "tables": ["orders"], "operations": ["select"]}]


def test_hostile_text_is_cut_and_stays_text() -> None:
    event = msgspec.structs.replace(finding("info"), summary='"}\u2028<script>' + "x" * 10_000, evidence=("e" * 9_000,) * 500)
    data = told(event)["data"]
    assert isinstance(data, dict)
    assert len(data["summary"]) == TEXT_CHARACTERS_MAX
    assert data["summary"].startswith('"}\u2028<script>x')
    assert [len(one) for one in data["evidence"]] == [TEXT_CHARACTERS_MAX] * ITEMS_MAX


@pytest.mark.parametrize(
    ("event", "kinds", "wanted"),
    [
        (KILLED, ("kills",), True),
        (KILLED, ("findings", "revocations", "blindness"), False),
        (AgentRevoked(1, "a", "r", "op"), ("revocations",), True),
        (WitnessBlinded(1, "w", "log", "main", 1, "r"), ("blindness",), True),
        (finding("info"), KINDS, False),
        (finding("warning"), KINDS, True),
        (finding("critical"), KINDS, True),
        (finding("worse than that"), KINDS, True),
        (FindingRecurred(1, "f-1", "reporter", 8, 1, "It loops on.", severity="critical"), ("findings",), True),
        (FindingRecurred(1, "f-1", "reporter", 8, 1, "It loops on.", severity="info"), ("findings",), False),
        (FindingRecurred(1, "f-1", "reporter", 8, 1, "It loops on."), ("findings",), True),
        (specimen(SessionOpened, "", 1), KINDS, False),
        (specimen(StatementDenied, "", 1), KINDS, False),
    ],
)
def test_what_was_asked_for_is_told(event: Event, kinds: tuple[str, ...], wanted: bool) -> None:
    assert is_wanted(event, kinds, "warning") is wanted  # type: ignore[arg-type]


def test_only_topics_that_can_hold_what_is_wanted_are_read() -> None:
    assert topics(("findings",)) == ("findings",)
    assert set(topics(("kills",))) == {"sessions", "observations"}
    assert set(topics(KINDS)) == {"findings", "sessions", "observations", "identity", "witness"}


# -- the signature -----------------------------------------------------------------------------------------------------------------


def test_a_signature_is_the_published_one() -> None:
    # The worked example that the libraries of Standard Webhooks are tested with.
    key = signing_key("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    assert key is not None
    signed = headers(CloudEvent("msg_p5jXN8AQM9LWM0D4loKWxJek", "t", b'{"test": 2432232314}'), [key], 1614265330)
    assert signed["webhook-signature"] == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
    assert (signed["webhook-id"], signed["webhook-timestamp"]) == ("msg_p5jXN8AQM9LWM0D4loKWxJek", "1614265330")


def test_two_keys_sign_while_they_change() -> None:
    event = CloudEvent("i", "t", b"{}")
    one, other = b"a" * 24, b"b" * 24
    both = headers(event, [one, other], 7)["webhook-signature"].split(" ")
    assert both == [headers(event, [key], 7)["webhook-signature"] for key in (one, other)]


def test_the_check_that_the_document_shows_takes_what_is_signed_and_nothing_else() -> None:
    document = (Path(__file__).parents[2] / "docs" / "webhooks.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", document, re.DOTALL)
    shown: dict[str, Callable[..., bool]] = {}
    exec(code, shown)
    secrets = ["whsec_" + base64.b64encode(letter * 24).decode() for letter in (b"a", b"b", b"c")]
    keys = [key for secret in secrets[:2] if (key := signing_key(secret)) is not None]
    now = int(time.time())
    event = CloudEvent("i", "t", b"{}")
    sent = headers(event, keys, now)
    assert [shown["is_genuine"](secret, sent, event.body) for secret in secrets] == [True, True, False]
    assert not shown["is_genuine"](secrets[0], sent, b"{ }")
    assert not shown["is_genuine"](secrets[0], {**sent, "webhook-id": "j"}, event.body)
    assert not shown["is_genuine"](secrets[0], headers(event, keys, now - 3_600), event.body)


@pytest.mark.parametrize("size", [24, 64])
def test_a_secret_of_the_specified_size_is_taken(size: int) -> None:
    assert signing_key("whsec_" + base64.b64encode(b"k" * size).decode()) == b"k" * size


@pytest.mark.parametrize(
    "secret",
    ["", "whsec_", "whsec_" + "A" * 28, "whsec_" + base64.b64encode(b"k" * 65).decode(), "whsec_" + "!" * 40, "A" * 40, "whsec_é"],
)
def test_what_is_no_secret_is_not_taken(secret: str) -> None:
    assert signing_key(secret) is None


# -- what came of an attempt ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [200, 202, 204, 299])
def test_2xx_is_taken(status: int) -> None:
    assert outcome(status, "9") == Taken(status)


@pytest.mark.parametrize("status", [100, 301, 307, 400, 401, 404, 410, 429, 500, 503])
def test_all_else_is_not(status: int) -> None:
    assert outcome(status, "") == Failed(f"it answered {status}")


@pytest.mark.parametrize(("said", "seconds"), [("120", 120), ("Wed, 21 Oct", 0), ("-1", 0), ("1e9", 0), ("9999999", 0), ("٣", 0)])
def test_a_receiver_may_ask_for_time(said: str, seconds: float) -> None:
    assert outcome(503, said) == Failed("it answered 503", seconds)


@given(st.integers(1, 100_000), st.floats(0, 1, exclude_max=True), st.floats(0, 1e9))
def test_a_pause_grows_within_its_bounds(failures: int, chance: float, wished: float) -> None:
    pause = pause_seconds(failures, chance, 1.0, 300.0)
    assert 0.5 <= pause <= 300
    assert pause <= pause_seconds(failures + 1, 0.0, 1.0, 300.0)
    assert pause >= min(300.0, 2.0 ** min(failures - 1, 60)) / 2
    assert pause_seconds(failures, chance, 1.0, 300.0, wished) <= 300
    assert pause_seconds(failures, chance, 1.0, 300.0, wished) >= min(wished, 300.0)
