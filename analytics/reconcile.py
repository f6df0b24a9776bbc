"""The gateways' record held against what collectors saw: verdicts on sessions, and findings where the two differ.

Here each event goes to the part that it concerns: `reconciliation/sessions.py` says whose a session is, `statements.py` and
`comparison.py` whether it ran what is on record, `state.py` holds what may still be asked for.

Both sides may be late, and neither is believed to be silent before its time: a collector tells by its watermark up to when its
word is whole, a gateway's word stands in the log a moment after what it tells of, or with the brokers, of which it tells itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from analytics.inspection import Effect
from analytics.reconciliation.alignment import Observed
from analytics.reconciliation.comparison import compare, settled
from analytics.reconciliation.sessions import (
    boot_known,
    judge,
    order,
    own_backend,
    session_observed,
    session_opened,
    session_unobserved,
    start_and_pid,
)
from analytics.reconciliation.state import SECOND, Held, Lane, Opened, Own
from analytics.reconciliation.statements import observe, observe_early, statement_recorded
from analytics.reconciliation.witnessed import Witness
from analytics.settings import ReconcileSettings
from ingest.collectors.collector import session_id
from ingest.events import (
    BackendOpened,
    Event,
    Frame,
    GatewayReported,
    GatewayStopped,
    ObservationGap,
    OutcomeResolved,
    SessionClosed,
    SessionObserved,
    SessionOpened,
    SessionUnobserved,
    SourceDeclared,
    SourceWithdrawn,
    StatementDefined,
    StatementDenied,
    StatementFinished,
    StatementObserved,
    StatementStarted,
    Topic,
    WatchdogConnected,
    WitnessBlinded,
    WitnessConnected,
    WitnessReported,
    WitnessRestored,
    WitnessStarted,
    WitnessStopped,
)
from ingest.frames import event_id
from ingest.log import Record

_START_US: Final = 2 * SECOND  # around a collector's start nothing is claimed

_COMPARE_US: Final = SECOND // 4  # between two looks at all that waits for a counterpart; sessions are judged at each tick


class Reconcile:
    """An inspection step; see analytics/inspection.py. One a process."""

    name = "reconcile"
    version = 1
    topics: tuple[Topic, ...] = ("identity", "sessions", "statements", "observations", "witness")

    def __init__(self, settings: ReconcileSettings) -> None:
        self._held = Held(settings)
        self._unordered = False
        self._compared_us = 0

    # -- the shell's side ------------------------------------------------------------------------------------------------------

    def step(self, record: Record, frame: Frame, now_us: int) -> Sequence[Effect]:
        held = self._held
        held.now_us = now_us
        if not held.state.since_us:
            held.state.since_us = record.at_us
        if record.topic in ("sessions", "statements"):
            held.state.written = max(held.state.written, record.at_us)
        place = f"{record.topic}/{record.partition}/{record.offset}"
        under: dict[int, Opened] = {}  # the sessions of the frame's stamps, as far as they were needed
        for index, (stamp, event) in enumerate(frame.events):
            match event:
                case StatementStarted() | StatementFinished() | StatementDefined() | StatementDenied() | OutcomeResolved():
                    if stamp < 0:
                        continue
                    if (opened := under.get(stamp)) is None:
                        opened = held.state.opened.get(frame.stamps[stamp].session)
                        if opened is None:
                            # Its opening may stand in another partition and come later; the stamp says all that is needed of it.
                            name = event_id(frame, index)
                            opened = session_opened(held, frame.stamps[stamp], record.at_us, frame.writer, place, name)
                        under[stamp] = opened
                    if opened.lanes:
                        statement_recorded(held, event, opened, place)
                case StatementObserved():
                    self._statement_observed(event, place, event_id(frame, index))
                case _:
                    self._take(event, frame, index, place)
        return self._given_out()

    def tick(self, now_us: int) -> Sequence[Effect]:
        held = self._held
        held.now_us = now_us
        if self._unordered:  # judged before this was wanted
            self._unordered = False
            for seen in held.state.seen.values():
                if seen.verdict in ("shadow", "hijacked") and held.gateways(seen.server, seen.session_id) is None:
                    order(held, seen)
        for key in list(held.pending):
            judge(held, key)
        for witness in held.state.witnesses.values():
            if witness.stopped_us and now_us - witness.stopped_us >= held.settings.restart_seconds * SECOND:
                self._no_longer_waited_for(witness)
        if now_us - self._compared_us >= _COMPARE_US:
            self._compared_us = now_us
            for session in list(held.busy):
                compare(held, session)
        held.forget()
        return self._given_out()

    def encode(self) -> bytes:
        return self._held.encode()

    def restore(self, data: bytes) -> None:
        self._held.restore(data)
        self._unordered = self._held.settings.kill_shadow

    def status(self) -> dict[str, int]:
        """How much is held, and what was counted since the record began; of COUNTED, what has happened."""
        state = self._held.state
        return {
            "gateway_sessions": len(state.opened),
            "server_sessions": len(state.seen),
            "sessions_pending": len(self._held.pending),
            "statements_waiting": self._held.waiting,
            "unseen_intervals": sum(len(witness.unseen) for witness in state.witnesses.values()),
            **state.counts,
        }

    def _given_out(self) -> Sequence[Effect]:
        effects, self._held.effects = self._held.effects, []
        return effects

    # -- events ----------------------------------------------------------------------------------------------------------------

    def _take(self, event: Event, frame: Frame, index: int, place: str) -> None:
        match event:
            case SourceDeclared():
                self._held.sources.declared(event)
            case SourceWithdrawn():
                self._held.sources.withdrawn(event)
            case SessionOpened():
                opened_by = session_opened(self._held, event.stamp, event.at_us, frame.writer, place, event_id(frame, index))
                boot_known(self._held, opened_by, frame.boot)
            case SessionClosed():
                if (opened := self._held.state.opened.get(event.session)) is not None and not opened.closed_us:
                    opened.closed_us = self._held.now_us
                    self._held.busy[event.session] = None
            case BackendOpened():
                own_backend(
                    self._held,
                    Own(
                        f"gateway {event.gateway}: {event.purpose}",
                        event.connection,
                        "",
                        session_id(event.backend_start_us, event.backend_pid) if event.backend_start_us else "",
                        event.backend_pid,
                        event.upstream_port,
                        event.at_us,
                        event.gateway if event.purpose == "control" else "",
                        event.boot,
                    ),
                    event.role,
                )
            case WatchdogConnected():
                name = session_id(event.backend_start_us, event.backend_pid) if event.backend_start_us else ""
                who = f"watchdog {event.watchdog}"
                own = Own(who, event.connection, "", name, event.backend_pid, event.upstream_port, event.at_us, "")
                own_backend(self._held, own, event.role)
            case WitnessConnected():
                who = f"collector {event.witness}: {event.purpose}"
                own = Own(who, "", event.server, event.session_id, event.backend_pid, 0, event.at_us, "")
                own_backend(self._held, own, "")
            case GatewayReported():
                whole_us = event.at_us if not event.backlog_bytes and not event.pending_bytes else 0
                self._held.state.reports[event.gateway] = (
                    max(whole_us, self._held.state.reports.get(event.gateway, (0, 0))[0]),
                    self._held.now_us,
                )
            case GatewayStopped():
                self._held.state.reports.pop(event.gateway, None)
            case WitnessStarted():
                self._witness_started(event)
            case WitnessStopped():
                self._witness_stopped(event)
            case WitnessReported():
                self._witness_reported(event)
            case WitnessBlinded():
                if (witness := self._held.witness(event.witness, event.server)) is not None:
                    witness.blinded(event.since_us, event.reason)
            case WitnessRestored():
                if (witness := self._held.witness(event.witness, event.server)) is not None:
                    witness.restored(event.at_us)
            case ObservationGap():
                if (witness := self._held.witness(event.witness, event.server)) is not None:
                    witness.missed(event.from_us, event.until_us, event.session_id, event.reason)
            case SessionObserved():
                session_observed(self._held, event, place, event_id(frame, index))
            case SessionUnobserved():
                session_unobserved(self._held, event)
            case _:
                pass

    # -- collectors ------------------------------------------------------------------------------------------------------------

    def _witness_started(self, event: WitnessStarted) -> None:
        key = f"{event.server}/{event.witness}"
        witness = self._held.state.witnesses.get(key)
        if witness is None:
            witness = self._held.state.witnesses[key] = Witness(
                event.witness, event.kind, event.server, event.connections, event.sees == "statements"
            )
        witness.connections, witness.statements = event.connections, event.sees == "statements"
        self._held.witnesses_changed()
        witness.began(event.at_us, event.resumed_us)
        for opened in self._held.state.opened.values():
            if opened.connection in witness.connections and witness.statements and not opened.closed_us:
                # What it ran before is no lane's; what it runs in this moment may be told or not.
                opened.lanes.setdefault(witness.name, Lane(ignore_us=(event.resumed_us or event.at_us) + _START_US))

    def _witness_stopped(self, event: WitnessStopped) -> None:
        witness = self._held.witness(event.witness, event.server)
        if witness is not None:
            witness.stopped_us = self._held.now_us

    def _no_longer_waited_for(self, witness: Witness) -> None:
        """It did not come back: what it may still have seen is excused, and the others' word is enough."""
        witness.running, witness.stopped_us = False, 0
        for opened in self._held.state.opened.values():
            if opened.connection in witness.connections and (lane := opened.lanes.pop(witness.name, None)) is not None:
                self._held.waiting -= lane.waiting
                for ran in lane.recorded:
                    settled(self._held, opened, witness.name, ran, "excused")

    def _witness_reported(self, event: WitnessReported) -> None:
        if (witness := self._held.witness(event.witness, event.server)) is not None:
            witness.complete_us = max(witness.complete_us, event.complete_us)
            witness.reported_us = max(witness.reported_us, event.at_us)
            witness.seeing = event.seeing

    def _statement_observed(self, event: StatementObserved, place: str, name: str) -> None:
        if event.source == "nested":
            return
        held = self._held
        held.count("statements_seen")
        if event.source == "audit" and (witness := held.witness(event.witness, event.server)) is not None:
            witness.audited_us = max(witness.audited_us, event.at_us)
        key = f"{event.server}/{event.session_id}"
        if key not in held.state.seen:  # it began before its collector looked
            start_us, pid = start_and_pid(event.session_id)
            began = SessionObserved(
                start_us, event.witness, event.server, event.session_id, pid, event.user, event.database, event.client, ""
            )
            session_observed(held, began, place, name)
        observed = Observed(
            event.sequence,
            event.at_us,
            held.now_us,
            f"{place} {name}",
            event.source,
            event.digest,
            event.text[: held.settings.text_characters_max],
            event.text_bytes,
            event.rows,
            event.sqlstate,
            event.outcome_known,
        )
        opened = held.gateways(event.server, event.session_id)
        if opened is not None:
            observe(held, opened, event.witness, observed)
            return
        seen = held.state.seen[key]
        if seen.verdict in ("", "unexplained"):
            observe_early(held, seen, event.witness, observed)
