"""Which inspection steps the API runs, and how their responses become commands."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Final

from analytics import detection, responses
from analytics.detection import Detection
from analytics.inspection import Inspection, Respond
from analytics.inspector import Act
from analytics.reconcile import Reconcile
from analytics.reconciliation import findings
from analytics.responses import Responses
from identity.commands import OURSELVES, Rejected
from identity.registrar import Registrar, Unrecorded
from pgwarden.config import Config

DETECTORS: Final = detection.DETECTORS | findings.SEVERITY.keys() | {responses.LIMITED}
"""The names under which findings are raised: what may be muted, and answered, but for what `analytics.nobody` names."""

_log: Final = logging.getLogger("pgwarden.api")


def inspections(config: Config) -> Sequence[Callable[[], Inspection]]:
    """Each makes a step that knows nothing yet."""
    return (Detection, lambda: Reconcile(config.reconcile), lambda: Responses(config.responses))


def acting(registrar: Registrar) -> Act:
    """A response takes the road of an operator's command: decided, recorded, followed by the gateways."""

    async def act(response: Respond) -> bool:
        outcome = await registrar.carry_out(response.command, response.key, OURSELVES)
        if isinstance(outcome, Unrecorded):
            _log.error("a response waits for the log: %s", outcome.reason)
            return False
        if isinstance(outcome, Rejected):
            _log.warning("response %s was not carried out: %s", response.key, outcome.error)
        return True

    return act
