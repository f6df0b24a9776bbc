"""A server's settings in; out come those that blind a collector of its log, or dim what it sees, each with what to do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from ingest.collectors.log_lines import Format

NAMES: Final = frozenset(
    {
        "logging_collector",
        "log_destination",
        "log_statement",
        "log_connections",
        "log_disconnections",
        "log_replication_commands",
        "log_min_messages",
        "log_min_error_statement",
        "log_timezone",
        "lc_messages",
        "log_rotation_age",
        "log_rotation_size",
        "log_truncate_on_rotation",
        "log_file_mode",
        "log_directory",
        "pgaudit.log",
        "pgaudit.log_rows",
    }
)
_ENGLISH: Final = ("", "C", "POSIX", "C.UTF-8", "C.utf8")
_ZONES: Final = ("UTC", "GMT", "Etc/UTC", "Etc/GMT", "Zulu", "Etc/Zulu", "Universal", "Etc/Universal", "UCT", "Etc/UCT")
_LOG_HIDES: Final = ("fatal", "panic")  # as log_min_messages
_ERROR_HIDES: Final = ("log", "fatal", "panic")  # as log_min_error_statement; `log` ranks above `error` there
_RELOAD: Final = "and run SELECT pg_reload_conf()"


@dataclass(frozen=True, slots=True)
class Override:
    """ALTER ROLE ... SET, ALTER DATABASE ... SET."""

    role: str  # "" = every role
    database: str  # "" = every database
    name: str
    value: str


@dataclass(frozen=True, slots=True)
class Shortcoming:
    blinds: bool  # statements would be missed; else something is seen late, or in less detail
    reason: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.reason}: {self.remedy}"


def shortcomings(kind: Format, settings: Mapping[str, str], overrides: Sequence[Override]) -> list[Shortcoming]:
    """What of `settings` is not there, because this role may not see it, is not judged."""
    found: list[Shortcoming] = []

    def wrong(blinds: bool, name: str, wanted: str, remedy: str = "") -> None:
        reason = f"{name} is {settings.get(name) or 'empty'}"
        found.append(Shortcoming(blinds, reason, remedy or f"set {name} = {wanted} in postgresql.conf, {_RELOAD}"))

    def given(name: str) -> str | None:
        return settings.get(name)

    if given("logging_collector") == "off":
        wrong(True, "logging_collector", "on", "set logging_collector = on in postgresql.conf, and restart the server")
    if (destination := given("log_destination")) is not None and kind not in [part.strip() for part in destination.split(",")]:
        wrong(True, "log_destination", f"'{kind}'")
    audits = {part.strip().lower() for part in settings.get("pgaudit.log", "").split(",")}
    if given("log_statement") not in (None, "all") and "all" not in audits:
        wrong(True, "log_statement", "all")
    if given("log_statement") not in (None, "all") and given("pgaudit.log_rows") == "on":
        # It then writes what a statement ran itself before the statement, and which of them the client sent cannot be told.
        wrong(True, "pgaudit.log_rows", "off", f"set log_statement = all, or pgaudit.log_rows = off, in postgresql.conf, {_RELOAD}")
    if given("log_min_messages") in _LOG_HIDES:
        wrong(True, "log_min_messages", "warning")
    if given("log_min_error_statement") in _ERROR_HIDES:
        wrong(True, "log_min_error_statement", "error")
    if (zone := given("log_timezone")) is not None and zone not in _ZONES:
        wrong(True, "log_timezone", "'UTC'")
    if (language := given("lc_messages")) is not None and language not in _ENGLISH and not language.startswith("en"):
        wrong(True, "lc_messages", "'C'")
    for name, wanted in (("log_connections", "on"), ("log_disconnections", "on"), ("log_replication_commands", "on")):
        if given(name) in ("off", ""):
            wrong(False, name, wanted)
    for override in overrides:
        if _hides(override, audits):
            whom = " in ".join(
                part
                for part in (
                    f"role {override.role}" if override.role else "every role",
                    f"database {override.database}" if override.database else "",
                )
                if part
            )
            reason = f"{override.name} is {override.value or 'empty'} for {whom}"
            found.append(Shortcoming(True, reason, f"take it back with ALTER ROLE or ALTER DATABASE ... RESET {override.name}"))
    return found


def _hides(override: Override, audits: set[str]) -> bool:
    value = override.value.strip("'").lower()
    match override.name:
        case "log_statement":
            return value != "all" and "all" not in audits
        case "log_min_messages":
            return value in _LOG_HIDES
        case "log_min_error_statement":
            return value in _ERROR_HIDES
        case "lc_messages":
            return override.value.strip("'") not in _ENGLISH and not value.startswith("en")
        case "pgaudit.log":
            return "all" in audits and "all" not in value
        case _:
            return False
