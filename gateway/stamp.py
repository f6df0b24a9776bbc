"""What an agent asked for at startup -> what the gateway asks of Postgres in its stead, with the agent's name on it."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from gateway.wire.messages import ProtocolViolation
from gateway.wire.startup import StartupMessage, read_options
from identity.principal import Principal
from identity.refusal import Refusal

PASSED_ON: Final = frozenset(
    {"datestyle", "timezone", "intervalstyle", "extra_float_digits", "bytea_output", "client_min_messages"}
)
"""Settings that change how values look, and nothing else: the only ones that a client may bring."""

LABELS: Final = ("pgwarden.task", "pgwarden.invocation", "pgwarden.on_behalf_of")
"""A client's own words about itself: recorded as unverified, never authority."""

LABEL_CHARACTERS_MAX: Final = 200
APPLICATION_NAME_BYTES_MAX: Final = 63  # NAMEDATALEN - 1

CONTROL_PREFIX: Final = "pgwarden/control/"
_DIGITS: Final = "0123456789abcdefghijklmnopqrstuvwxyz"
_PLAIN: Final = re.compile(r"[A-Za-z0-9_.-]+")  # PostgreSQL replaces what is not ASCII in an application name

WATCHED: Final = (
    "session_authorization",
    "is_superuser",
    "search_path",
    "standard_conforming_strings",
    "client_encoding",
    "application_name",
)
"""Reported by Postgres without being asked (GUC_REPORT). No allowed statement changes them, so a change is a way round us."""


@dataclass(frozen=True, slots=True)
class Request:
    """A StartupMessage, understood and found harmless."""

    user: str
    connection: str
    application_name: str
    settings: Mapping[str, str]
    labels: Mapping[str, str]


def request(startup: StartupMessage) -> Request | Refusal:
    """Raises ProtocolViolation."""
    settings: dict[str, str] = {}
    for name, value in startup.parameters.items():
        if name not in ("user", "database", "options"):
            settings[name.lower()] = value
    for name, value in read_options(startup.parameters.get("options", "")).items():
        if settings.setdefault(name, value) != value:
            raise ProtocolViolation(f"setting {name!a} stands twice with different values")
    user = startup.parameters.get("user", "")
    if not user:
        return Refusal("no user name specified in startup packet: connect with the agent's name as user")
    application_name = settings.pop("application_name", settings.pop("fallback_application_name", ""))
    labels: dict[str, str] = {}
    for name in LABELS:
        label = settings.pop(name, "")
        if len(label) > LABEL_CHARACTERS_MAX:
            return Refusal(f"{name} is longer than {LABEL_CHARACTERS_MAX} characters")
        if label:
            labels[name.removeprefix("pgwarden.")] = label
    encoding = settings.pop("client_encoding", "UTF8").strip("'\"").replace("-", "").replace("_", "").upper()
    if encoding not in ("UTF8", "UNICODE"):
        return Refusal("client_encoding must be UTF8, since statements are decided on their text")
    if settings.get("replication", "").lower() not in ("", "false", "off", "no", "0"):
        return Refusal("replication connections pass round every scope and are not served")
    settings.pop("replication", None)
    refused = sorted(settings.keys() - PASSED_ON)
    if refused:
        return Refusal(
            f"the setting {refused[0]} may not be brought along; allowed are {', '.join(sorted(PASSED_ON | set(LABELS)))}"
        )
    return Request(user, startup.parameters.get("database", user), application_name[:200], settings, labels)


def upstream_parameters(
    asked: Request, principal: Principal, session: str, *, role: str, database: str, search_path: Sequence[str]
) -> dict[str, str]:
    """The startup packet that Postgres sees. Startup values are the session's defaults, so RESET and DISCARD ALL return to them."""
    invocation = principal.invocation or asked.labels.get("invocation", "")
    return {
        "user": role,
        "database": database,
        "client_encoding": "UTF8",
        "application_name": stamped_application_name(principal.agent, session),
        "pgwarden.agent": principal.agent,
        "pgwarden.session": session,
        "pgwarden.invocation": invocation,
        # pg_temp last: it is searched first for tables otherwise, and a temporary table would take an allowed name
        "search_path": ", ".join([*(quote_identifier(schema) for schema in search_path), "pg_temp"]),
        "standard_conforming_strings": "on",
        "client_connection_check_interval": "1000",  # a backend whose gateway died notices within a second
        **asked.settings,
    }


def stamped_application_name(agent: str, session: str) -> str:
    name = f"pgwarden/{agent}"[: APPLICATION_NAME_BYTES_MAX - len(session) - 1]
    return f"{name}/{session}"


def bears(application_name: str, session: str) -> bool:
    """Whether a backend of this name is this session's."""
    return application_name.startswith("pgwarden/") and application_name.endswith(f"/{session}")


def control_name(gateway: str, boot: int) -> str:
    """The application name of this gateway's own connections in this boot, and of no other's."""
    end = f"/{_base36(boot)}"
    return CONTROL_PREFIX + _fitting(gateway, APPLICATION_NAME_BYTES_MAX - len(CONTROL_PREFIX) - len(end)) + end


def watchdog_name(name: str) -> str:
    prefix = "pgwarden/watchdog/"
    return prefix + _fitting(name, APPLICATION_NAME_BYTES_MAX - len(prefix))


def _fitting(name: str, bytes_max: int) -> str:
    """The name itself where it fits, else a part of it with a hash of the whole."""
    if len(name) <= bytes_max and _PLAIN.fullmatch(name):
        return name
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:12]
    return "".join(_PLAIN.findall(name))[: bytes_max - 13] + "~" + digest


def _base36(number: int) -> str:
    digits = ""
    while True:
        number, rest = divmod(number, 36)
        digits = _DIGITS[rest] + digits
        if not number:
            return digits


def quote_identifier(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
