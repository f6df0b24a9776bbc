"""`pgwarden webhooks test`: sends one receiver one event that says that nothing has happened."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time

from ingest.clock import now_us
from pgwarden.cloud_events import trial
from pgwarden.config import ConfigInvalid, WebhookConfig, load
from pgwarden.printable import printable
from pgwarden.webhook_attempts import Outcome, Taken
from pgwarden.webhooks import SenderSettings, attempt, client


def test(arguments: argparse.Namespace) -> int:
    try:
        config = load(arguments.config)
    except ConfigInvalid as invalid:
        print(invalid, file=sys.stderr)
        return 2
    webhook = config.webhooks.get(arguments.name)
    if webhook is None:
        known = ", ".join(sorted(config.webhooks)) or "none"
        print(f"pgwarden webhooks test: there is no [webhooks.{printable(arguments.name)}]; there is {known}", file=sys.stderr)
        return 2
    began = time.monotonic()
    came = asyncio.run(_send(webhook))
    took_ms = (time.monotonic() - began) * 1e3
    reason = "" if isinstance(came, Taken) else came.reason
    if arguments.json:
        print(json.dumps({"webhook": webhook.name, "taken": not reason, "reason": reason, "ms": round(took_ms, 1)}))
    elif reason:
        print(f"{webhook.name}: {printable(reason)}", file=sys.stderr)
    else:
        print(f"{webhook.name}: taken after {took_ms:.0f} ms")
    return 1 if reason else 0


async def _send(webhook: WebhookConfig) -> Outcome:
    event = trial(webhook.name, webhook.source, now_us())
    async with client(webhook) as http:
        return await attempt(http, webhook, event, int(time.time()), SenderSettings().answer_bytes_max)
