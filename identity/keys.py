"""In comes an issuer's row; out come the keys that it signs with, fetched and kept. The only network that identity touches."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias
from urllib.parse import urlsplit

import certifi
import httpx

from identity.refusal import Refusal
from identity.settings import IssuerRules, KeysSettings, loopback
from identity.strict_json import json_object
from identity.tokens import KeySet, key_set

_Source: TypeAlias = tuple[str, str, str, tuple[str, ...], str, bool]


@dataclass(frozen=True, slots=True)
class IssuerState:
    """What is known of an issuer's keys, to be shown."""

    issuer: str
    keys: int
    age_seconds: float | None  # since they were fetched; None when they never were
    degraded: str  # why the last fetch failed; "" when it did not


class JwksCache:
    """The keys of all issuers, by what the rows say of where they are. Owned by one event loop."""

    def __init__(self, settings: KeysSettings | None = None, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._settings = settings or KeysSettings()
        self._monotonic = monotonic
        self._entries: dict[_Source, _Entry] = {}

    async def keys(self, rules: IssuerRules, kid: str) -> KeySet | Refusal:
        """Return the issuer's keys, fetching them when they are missing, old, or do not hold `kid`.

        Calls may overlap: one fetch serves all that wait. An outage leaves the keys as they were until `hard_ttl_seconds`; then,
        and before the first fetch, nobody is verified.
        """
        entry = self._entry(rules)
        if entry.due(kid, self._monotonic(), self._settings):
            await self._refresh(entry, rules, kid)
        found = entry.usable(self._monotonic(), self._settings)
        if found is not None:
            return found
        return Refusal(f"no keys of issuer {rules.name}: {entry.failure or 'they are too old'}")

    def states(self) -> tuple[IssuerState, ...]:
        now = self._monotonic()
        return tuple(
            IssuerState(
                issuer=entry.issuer,
                keys=len(entry.keys.keys) if entry.keys else 0,
                age_seconds=None if entry.keys is None else max(0.0, now - entry.fetched_at),
                degraded=entry.failure,
            )
            for entry in self._entries.values()
        )

    async def close(self) -> None:
        """Abandon fetches that are under way; whoever waits for one is cancelled."""
        tasks = [entry.task for entry in self._entries.values() if entry.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _entry(self, rules: IssuerRules) -> _Entry:
        source = (rules.issuer, rules.jwks_uri, rules.jwks, rules.jwks_hosts, rules.ca_file, rules.insecure_http)
        entry = self._entries.get(source)
        if entry is None:
            entry = self._entries[source] = _Entry(rules.issuer)
            if rules.jwks:
                entry.fixed(key_set(rules.jwks.encode("utf-8")))
        return entry

    async def _refresh(self, entry: _Entry, rules: IssuerRules, kid: str) -> None:
        if entry.task is None:
            now = self._monotonic()
            if entry.keys is not None and not entry.keys.knows(kid):
                entry.unknown_kid_at = now
            entry.task = asyncio.create_task(self._fetch_into(entry, rules), name=f"keys of {rules.name}")
        # shielded: a client that hangs up must not take the keys from the others that wait
        await asyncio.shield(entry.task)

    async def _fetch_into(self, entry: _Entry, rules: IssuerRules) -> None:
        try:
            if entry.tls is None and not rules.insecure_http:
                entry.tls = _tls(rules)
            async with asyncio.timeout(self._settings.fetch_seconds_max):
                fetched = await _fetched(rules, entry.tls, self._settings)
        except TimeoutError:
            fetched = Refusal(f"no answer within {self._settings.fetch_seconds_max:g} s")
        except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:  # OSError: ca_file, and TLS itself
            fetched = Refusal(f"{type(error).__name__}: {str(error)[:200]}")
        finally:
            entry.task = None
        entry.take(fetched, self._monotonic(), self._settings)


class _Entry:
    """One source's keys and when to look again. Times are the cache's monotonic clock's."""

    __slots__ = ("failure", "failures", "fetched_at", "is_fixed", "issuer", "keys", "retry_at", "task", "tls", "unknown_kid_at")

    def __init__(self, issuer: str) -> None:
        self.issuer = issuer
        self.keys: KeySet | None = None
        self.is_fixed = False
        self.fetched_at = 0.0
        self.failure = ""
        self.failures = 0
        self.retry_at = float("-inf")
        self.unknown_kid_at = float("-inf")
        self.task: asyncio.Task[None] | None = None
        self.tls: ssl.SSLContext | None = None

    def due(self, kid: str, now: float, settings: KeysSettings) -> bool:
        if self.is_fixed:
            return False
        old = self.keys is None or now - self.fetched_at >= settings.soft_ttl_seconds
        if old and (self.task is not None or now >= self.retry_at):
            return True
        # A key that was made a moment ago signs at once (Keycloak): an unknown kid is worth one look, not one each
        if self.keys is None or self.keys.knows(kid):
            return False
        return self.task is not None or now - self.unknown_kid_at >= settings.unknown_kid_interval_seconds

    def usable(self, now: float, settings: KeysSettings) -> KeySet | None:
        if self.is_fixed or now - self.fetched_at < settings.hard_ttl_seconds:
            return self.keys
        return None

    def fixed(self, keys: KeySet | Refusal) -> None:
        self.is_fixed = True
        self.keys, self.failure = (None, keys.reason) if isinstance(keys, Refusal) else (keys, "")

    def take(self, fetched: KeySet | Refusal, now: float, settings: KeysSettings) -> None:
        if isinstance(fetched, Refusal):
            wait = min(settings.retry_seconds_max, settings.retry_seconds_min * 2.0 ** min(self.failures, 16))
            self.failures += 1
            self.retry_at = now + wait
            self.failure = fetched.reason
        else:
            # An empty set is believed: that is what an issuer publishes that has taken its last key away
            self.keys, self.fetched_at = fetched, now
            self.failures, self.retry_at = 0, float("-inf")
            self.failure = "" if fetched.keys else "it publishes no key that can verify"


def _tls(rules: IssuerRules) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=rules.ca_file or certifi.where())
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


async def _fetched(rules: IssuerRules, tls: ssl.SSLContext | None, settings: KeysSettings) -> KeySet | Refusal:
    async with httpx.AsyncClient(
        verify=tls if tls is not None else True,
        follow_redirects=False,  # CVE-2026-102267: a redirect leads to where the row does not
        trust_env=False,  # no proxy and no netrc that the configuration does not name
        headers={"Accept": "application/json", "Accept-Encoding": "identity"},  # 1 MB stays 1 MB
        # a TLS handshake that stalls ends by httpx's own limit: cancelled by ours, it would leave its socket behind
        timeout=httpx.Timeout(settings.fetch_seconds_max, connect=settings.fetch_seconds_max / 3),
    ) as client:
        jwks_uri = rules.jwks_uri or await _discovered(client, rules, settings)
        if isinstance(jwks_uri, Refusal):
            return jwks_uri
        document = await _document(client, jwks_uri, settings)
        return document if isinstance(document, Refusal) else key_set(document)


async def _discovered(client: httpx.AsyncClient, rules: IssuerRules, settings: KeysSettings) -> str | Refusal:
    parts = urlsplit(rules.issuer)
    origin, path = f"{parts.scheme}://{parts.netloc}", parts.path.rstrip("/")
    reasons: list[str] = []
    for url in (
        f"{origin}{path}/.well-known/openid-configuration",  # OIDC Discovery §4
        f"{origin}/.well-known/oauth-authorization-server{path}",  # RFC 8414 §3.1
    ):
        document = await _document(client, url, settings)
        if isinstance(document, Refusal):
            reasons.append(document.reason)
            continue
        metadata = json_object(document)
        if isinstance(metadata, Refusal):
            return Refusal(f"{url} is {metadata.reason}")
        # OIDC Discovery §4.3, RFC 8414 §3.3. Keycloak takes its issuer from the Host header: two names are two issuers.
        if metadata.get("issuer") != rules.issuer:
            return Refusal(f"{url} is the metadata of another issuer than the row's; compare them letter by letter")
        jwks_uri = metadata.get("jwks_uri")
        if not isinstance(jwks_uri, str):
            return Refusal(f"{url} names no jwks_uri")
        return _on_an_allowed_host(jwks_uri, rules)
    return Refusal("; ".join(reasons))


def _on_an_allowed_host(jwks_uri: str, rules: IssuerRules) -> str | Refusal:
    try:
        parts = urlsplit(jwks_uri)
        host = parts.hostname or ""
    except ValueError:
        return Refusal("jwks_uri is not a URL")
    if parts.scheme != "https" and not (parts.scheme == "http" and rules.insecure_http and loopback(host)):
        return Refusal("jwks_uri is not an https URL")
    if parts.username is not None or not host:
        return Refusal("jwks_uri is not a plain URL")
    if host != urlsplit(rules.issuer).hostname and host not in rules.jwks_hosts:
        return Refusal(f"jwks_uri leads to {host[:100]!a}, which is neither the issuer's host nor in jwks_hosts")
    return jwks_uri


async def _document(client: httpx.AsyncClient, url: str, settings: KeysSettings) -> bytes | Refusal:
    async with client.stream("GET", url) as response:
        if response.status_code != 200:
            return Refusal(f"{url} answered {response.status_code}")
        if response.headers.get("Content-Encoding", "identity") != "identity":
            return Refusal(f"{url} answered compressed, though asked not to")
        received = bytearray()
        async for chunk in response.aiter_raw():
            received += chunk
            if len(received) > settings.document_bytes_max:
                return Refusal(f"{url} answered more than {settings.document_bytes_max} bytes")
        return bytes(received)
