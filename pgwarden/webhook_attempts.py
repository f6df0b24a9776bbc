"""One attempt to deliver: what is signed and sent, what an answer means, when to try again. Pure; `webhooks.py` sends."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

from pgwarden.cloud_events import CONTENT_TYPE, CloudEvent

# Standard Webhooks 1.0, "Signature scheme": 24 to 64 bytes, in base64 behind this.
SECRET_PREFIX: Final = "whsec_"  # noqa: S105 - of every secret
SECRET_BYTES_MIN: Final = 24
SECRET_BYTES_MAX: Final = 64


@dataclass(frozen=True, slots=True)
class Taken:
    status: int


@dataclass(frozen=True, slots=True)
class Failed:
    reason: str  # of our own words alone: what a receiver says is not repeated
    wait_seconds: float = 0.0  # at least so long, as the receiver asked


Outcome: TypeAlias = Taken | Failed


def signing_key(secret: str) -> bytes | None:
    """None: it is no secret for webhooks."""
    if not secret.startswith(SECRET_PREFIX):
        return None
    try:
        key = base64.b64decode(secret.removeprefix(SECRET_PREFIX), validate=True)
    except (binascii.Error, ValueError):
        return None
    return key if SECRET_BYTES_MIN <= len(key) <= SECRET_BYTES_MAX else None


def headers(event: CloudEvent, keys: Sequence[bytes], at_seconds: int) -> Mapping[str, str]:
    """`keys`: the present one first; with two of them a receiver may hold either."""
    signed = b".".join((event.id.encode(), str(at_seconds).encode(), event.body))
    signatures = (base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode() for key in keys)
    return {
        "content-type": CONTENT_TYPE,
        "webhook-id": event.id,
        "webhook-timestamp": str(at_seconds),
        "webhook-signature": " ".join(f"v1,{signature}" for signature in signatures),
    }


def outcome(status: int, retry_after: str) -> Outcome:
    """Of an answer. Standard Webhooks 1.0, "Delivery success and failure": 2xx is taken, all else is not, redirects too."""
    if 200 <= status < 300:
        return Taken(status)
    wait_seconds = float(retry_after) if retry_after.isascii() and retry_after.isdigit() and len(retry_after) <= 6 else 0.0
    return Failed(f"it answered {status}", wait_seconds)


def pause_seconds(failures: int, chance: float, least: float, most: float, wished: float = 0.0) -> float:
    """Before the next attempt: twice as long after each failure, up to `most`.

    `chance` in [0, 1) takes up to half of it off: those who failed together do not come back together.
    """
    pause = min(most, least * 2.0 ** min(failures - 1, 60))
    return max(pause * (1 - chance / 2), min(wished, most))
