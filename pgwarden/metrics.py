"""What the processes of a machine say of themselves -> metrics for Prometheus. docs/metrics.md describes each.

Nothing that an agent can write becomes a label, its name aside, which an operator gave it; and of names there are so many at most.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector, CollectorRegistry

from ingest.histogram import BOUNDS_SECONDS
from pgwarden.neighbours import Neighbour, wrong

Kind: TypeAlias = Literal["gauge", "counter", "histogram"]

AGENTS_MAX: Final = 200  # that have figures of their own, those with most sessions first
THINGS_MAX: Final = 200  # of which a process may name itself: connections, webhooks
OTHER: Final = "(other)"  # all the others together; no agent can bear it
_US: Final = 1e-6


@dataclass(frozen=True, slots=True)
class Described:
    """One metric: where it stands in a status, and what it means. A list counts as its length; what is negative is not known."""

    name: str
    kind: Kind
    process: str  # whose it is; "" = of every process
    path: str  # names, dotted
    sentence: str
    scale: float = 1.0
    each: str = ""  # where the things are that have one each: a list, or a mapping by name
    labels: Mapping[str, str] | None = None  # label -> field of the thing, "" = its name in the mapping


def _d(name: str, kind: Kind, process: str, path: str, sentence: str, scale: float = 1.0) -> Described:
    return Described(name, kind, process, path, sentence, scale)


_CONNECTION: Final = {"connection": ""}
_FINDING: Final = {"detector": "detector", "severity": "severity"}
_COLLECTOR: Final = {"collector": "collector", "kind": "kind", "server": "server"}
_WITNESS: Final = {"collector": "name", "server": "server"}
_WEBHOOK: Final = {"webhook": ""}
_INSPECTION: Final = {"inspection": ""}

METRICS: Final[tuple[Described, ...]] = (
    _d("pgwarden_process_up", "gauge", "", "", "1 while the process answers; 0 when it left its socket behind, or hangs."),
    _d("pgwarden_process_well", "gauge", "", "", "1 while it says that nothing is wrong with it: `pgwarden status` says what is."),
    _d("pgwarden_process_start_time_seconds", "gauge", "", "started_us", "When it started, since 1970.", _US),
    _d("pgwarden_record_available", "gauge", "", "log.available", "1 while what it records reaches the log."),
    _d("pgwarden_record_pending_bytes", "gauge", "", "log.pending_bytes", "Recorded, and not in the log yet."),
    _d(
        "pgwarden_record_append_seconds",
        "histogram",
        "",
        "appends",
        "From handing what waited together to the log until the log had it; an outage is one long append.",
    ),
    # -- gateway
    _d("pgwarden_gateway_statements_total", "counter", "gateway", "counters.statements", "Executions, refused ones included."),
    _d("pgwarden_gateway_statements_denied_total", "counter", "gateway", "counters.denied", "Executions that no grant allowed."),
    _d(
        "pgwarden_gateway_statements_unrecorded",
        "gauge",
        "gateway",
        "log.refused",
        "Statements refused in the outage of the log that goes on.",
    ),
    _d("pgwarden_gateway_sessions_opened_total", "counter", "gateway", "counters.sessions_opened", "Sessions that were let in."),
    _d(
        "pgwarden_gateway_sessions_denied_total",
        "counter",
        "gateway",
        "counters.sessions_denied",
        "Attempts to connect that were refused.",
    ),
    _d("pgwarden_gateway_sessions_killed_total", "counter", "gateway", "counters.killed", "Sessions that were made to end."),
    _d(
        "pgwarden_gateway_kills_unproven_total",
        "counter",
        "gateway",
        "counters.unproven",
        "Of these, whose backend was not seen gone in time.",
    ),
    _d("pgwarden_gateway_sessions_unproven", "gauge", "gateway", "unproven", "Sessions that must end now and are not proven gone."),
    _d(
        "pgwarden_gateway_kill_seconds",
        "histogram",
        "gateway",
        "kills",
        "From the record of what ends a session to the proof that its backend is gone.",
    ),
    _d(
        "pgwarden_gateway_decision_seconds",
        "histogram",
        "gateway",
        "decisions",
        "From a client's bytes to what is to be done about them, of one turn in 16 of each session: how long, not how many.",
    ),
    _d(
        "pgwarden_gateway_identity_timestamp_seconds",
        "gauge",
        "gateway",
        "identity_at_us",
        "The time of the newest change of identities that it acts on, since 1970.",
        _US,
    ),
    Described(
        "pgwarden_gateway_sessions",
        "gauge",
        "gateway",
        "",
        f"Live sessions by agent; beyond {AGENTS_MAX} agents the rest are `{OTHER}`.",
        labels={"agent": "agent"},
    ),
    Described(
        "pgwarden_gateway_connection_ready",
        "gauge",
        "gateway",
        "ready",
        "1 while the gateway can open sessions on this connection.",
        each="connections",
        labels=_CONNECTION,
    ),
    # -- relay
    _d("pgwarden_relay_backlog_bytes", "gauge", "relay", "backlog_bytes", "On this machine's disk, and not with the brokers."),
    _d("pgwarden_relay_backlog_records", "gauge", "relay", "backlog_records", "The same in records."),
    _d(
        "pgwarden_relay_contact_seconds",
        "gauge",
        "gateway",
        "relay.silent_seconds",
        "Since the gateway's relay heard from the brokers.",
    ),
    # -- watchdog
    _d("pgwarden_watchdog_caught_up", "gauge", "watchdog", "caught_up", "1 once it knows what was live when it began."),
    _d("pgwarden_watchdog_blind", "gauge", "watchdog", "blind", "How many things it has not seen for 5 s: the log, connections."),
    _d("pgwarden_watchdog_sessions", "gauge", "watchdog", "sessions", "Live sessions that it looks after."),
    _d("pgwarden_watchdog_sessions_untracked", "gauge", "watchdog", "untracked", "Live sessions beyond what it can look after."),
    _d("pgwarden_watchdog_sessions_due", "gauge", "watchdog", "must_end", "Sessions that must end, and whose end is not recorded."),
    _d("pgwarden_watchdog_sessions_ending", "gauge", "watchdog", "ending", "Sessions that it is ending itself."),
    _d(
        "pgwarden_watchdog_gateways_missed",
        "gauge",
        "watchdog",
        "missed",
        "Gateways without a connection to a database of theirs.",
    ),
    _d(
        "pgwarden_watchdog_reaped_total",
        "counter",
        "watchdog",
        "counters.reaped",
        "Sessions that it ended, and proved to have ended.",
    ),
    _d(
        "pgwarden_watchdog_kills_unproven_total",
        "counter",
        "watchdog",
        "counters.unproven",
        "Ends that it recorded without a proof.",
    ),
    _d(
        "pgwarden_watchdog_kill_seconds",
        "histogram",
        "watchdog",
        "kills",
        "As `pgwarden_gateway_kill_seconds`, of those that it ended.",
    ),
    # -- worker
    _d("pgwarden_worker_age_seconds", "gauge", "worker", "age_seconds", "Since it had read all that it has to read."),
    _d("pgwarden_worker_rebalancing", "gauge", "worker", "rebalancing", "1 while the workers share their work anew."),
    _d(
        "pgwarden_worker_sessions_lag_records",
        "gauge",
        "worker",
        "sessions.records_behind",
        "Of `sessions`, in the log and not weighed.",
    ),
    _d(
        "pgwarden_worker_identity_lag_records",
        "gauge",
        "worker",
        "identity.records_behind",
        "Of `identity`, in the log and not weighed.",
    ),
    _d(
        "pgwarden_worker_statements_lag_records",
        "gauge",
        "worker",
        "statements.records_behind",
        "Of `statements`, in the log and not counted.",
    ),
    _d("pgwarden_worker_sessions", "gauge", "worker", "sessions.live", "Live sessions in its partitions."),
    _d("pgwarden_worker_orders_pending", "gauge", "worker", "orders.pending", "Ends that it concluded, and that are not recorded."),
    _d("pgwarden_worker_orders_total", "counter", "worker", "orders.recorded", "Ends that it ordered."),
    # -- api
    _d("pgwarden_projection_lag_records", "gauge", "api", "projection.lag_records", "In the log, and not in the tables."),
    _d(
        "pgwarden_projection_lag_seconds",
        "gauge",
        "api",
        "projection.lag_seconds",
        "Since the tables held all of the log; 0 while they do.",
    ),
    _d("pgwarden_projection_commit_seconds", "histogram", "api", "projection.commits", "One commit to the tables."),
    _d("pgwarden_projection_standing", "gauge", "api", "projection.standing", "1 while the tables stand still for an error."),
    _d(
        "pgwarden_enforcement_lag_records",
        "gauge",
        "api",
        "enforcement.lag_records",
        "In the log, and not weighed; where no workers do it.",
    ),
    _d("pgwarden_enforcement_standing", "gauge", "api", "enforcement.standing", "1 while enforcement stands still for an error."),
    _d("pgwarden_enforcement_orders_pending", "gauge", "api", "enforcement.orders_pending", "Ends concluded, and not recorded."),
    _d("pgwarden_enforcement_sessions", "gauge", "api", "enforcement.live_sessions", "Live sessions, as enforcement sees them."),
    _d("pgwarden_log_gaps", "gauge", "api", "gaps", "How often frames are missing from the log."),
    Described(
        "pgwarden_inspection_lag_records",
        "gauge",
        "api",
        "lag_records",
        "In the log, and not seen by this inspection.",
        each="inspections",
        labels=_INSPECTION,
    ),
    Described(
        "pgwarden_inspection_standing",
        "gauge",
        "api",
        "standing",
        "1 while this inspection stands still for an error.",
        each="inspections",
        labels=_INSPECTION,
    ),
    Described(
        "pgwarden_inspection_effects_total",
        "counter",
        "api",
        "recorded",
        "Findings, and what followed from them, that this inspection recorded since the API started.",
        each="inspections",
        labels=_INSPECTION,
    ),
    # -- webhooks
    Described(
        "pgwarden_findings_open",
        "gauge",
        "api",
        "open",
        "Findings that nobody has acknowledged, confirmed or muted.",
        each="findings",
        labels=_FINDING,
    ),
    Described(
        "pgwarden_collector_seeing",
        "gauge",
        "api",
        "seeing",
        "1 while this collector sees what its server does, proven by its canary.",
        each="collectors",
        labels=_COLLECTOR,
    ),
    Described(
        "pgwarden_collector_observed_total",
        "counter",
        "api",
        "observed",
        "Observations that it recorded since it started.",
        each="collectors",
        labels=_COLLECTOR,
    ),
    Described(
        "pgwarden_collector_lost_total",
        "counter",
        "api",
        "lost",
        "Observations that it knows of and did not see.",
        each="collectors",
        labels=_COLLECTOR,
    ),
    Described(
        "pgwarden_collector_lag_seconds",
        "gauge",
        "api",
        "lag_us",
        "Of its last observation, from its end on the server to the record.",
        scale=_US,
        each="collectors",
        labels=_COLLECTOR,
    ),
    Described(
        "pgwarden_collector_complete_timestamp_seconds",
        "gauge",
        "api",
        "complete_us",
        "All that ended on the server before is on record, since 1970.",
        scale=_US,
        each="collectors",
        labels=_COLLECTOR,
    ),
    Described(
        "pgwarden_collector_canary_timestamp_seconds",
        "gauge",
        "api",
        "canary_us",
        "When the last canary that it saw was sent, since 1970.",
        scale=_US,
        each="collectors",
        labels=_COLLECTOR,
    ),
    Described(
        "pgwarden_witness_reached",
        "gauge",
        "collector",
        "witness.reached",
        "1 while this collector hears the witness.",
        each="collectors",
        labels=_WITNESS,
    ),
    Described(
        "pgwarden_witness_attached",
        "gauge",
        "collector",
        "witness.attached",
        "1 while its probes are in place, and it sees.",
        each="collectors",
        labels=_WITNESS,
    ),
    Described(
        "pgwarden_witness_records_total",
        "counter",
        "collector",
        "witness.made",
        "Records that its probes made since its ring was made.",
        each="collectors",
        labels=_WITNESS,
    ),
    Described(
        "pgwarden_witness_records_lost_total",
        "counter",
        "collector",
        "witness.lost",
        "Of these, that found no room in the ring; each is told as a gap.",
        each="collectors",
        labels=_WITNESS,
    ),
    Described(
        "pgwarden_witness_records_unattributed_total",
        "counter",
        "collector",
        "witness.unattributed",
        "Of these, whose session is not known, since the spill ring had no room either.",
        each="collectors",
        labels=_WITNESS,
    ),
    Described(
        "pgwarden_witness_texts_unreadable_total",
        "counter",
        "collector",
        "witness.unreadable_texts",
        "Statements whose text could not be read.",
        each="collectors",
        labels=_WITNESS,
    ),
    Described(
        "pgwarden_witness_sessions_unheld_total",
        "counter",
        "collector",
        "witness.full_sessions",
        "Sessions that found no room in its table.",
        each="collectors",
        labels=_WITNESS,
    ),
    Described(
        "pgwarden_webhook_deliveries_total",
        "counter",
        "webhooks",
        "delivered",
        "Events that the receiver took.",
        each="webhooks",
        labels=_WEBHOOK,
    ),
    Described(
        "pgwarden_webhook_failures_total",
        "counter",
        "webhooks",
        "failed",
        "Attempts that it did not take.",
        each="webhooks",
        labels=_WEBHOOK,
    ),
    Described(
        "pgwarden_webhook_given_up_total",
        "counter",
        "webhooks",
        "given_up",
        "Events that it did not take within `attempts`.",
        each="webhooks",
        labels=_WEBHOOK,
    ),
    Described(
        "pgwarden_webhook_lag_records",
        "gauge",
        "webhooks",
        "lag_records",
        "Of the log, not looked at for it yet.",
        each="webhooks",
        labels=_WEBHOOK,
    ),
    Described(
        "pgwarden_webhook_waiting_seconds",
        "gauge",
        "webhooks",
        "waiting_seconds",
        "How long the event that is next has been tried; 0 = none is.",
        each="webhooks",
        labels=_WEBHOOK,
    ),
    Described(
        "pgwarden_webhook_delivery_seconds",
        "histogram",
        "webhooks",
        "durations",
        "One attempt, whatever came of it.",
        each="webhooks",
        labels=_WEBHOOK,
    ),
)


def render(neighbours: Sequence[Neighbour], accept: str) -> tuple[bytes, str]:
    """The page and its content type: OpenMetrics for who accepts it, else Prometheus's text format."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Once(list(families(neighbours))))
    encoder, content_type = choose_encoder(accept)
    return encoder(registry), content_type


def families(neighbours: Sequence[Neighbour]) -> Iterator[Metric]:
    """Every metric of which there is something to say."""
    for described in METRICS:
        samples = [
            ({**_whose(described, one), **labels}, value)
            for one in neighbours
            if described.process in ("", one.process)
            for labels, value in _values(described, one)
        ]
        if samples:
            yield _family(described, samples)


class _Once(Collector):
    def __init__(self, found: Sequence[Metric]) -> None:
        self._found = found

    def collect(self) -> Iterable[Metric]:
        return self._found


_Value: TypeAlias = "float | Mapping[object, object]"


def label_names(described: Described) -> tuple[str, ...]:
    """As every sample of it bears them."""
    whose = ("process", "name") if not described.process else ("name",) if described.process == "worker" else ()
    return (*whose, *(described.labels or ()))


def _whose(described: Described, one: Neighbour) -> dict[str, str]:
    if not described.process:
        return {"process": one.process, "name": one.name}
    return {"name": one.name} if described.process == "worker" else {}


def _values(described: Described, one: Neighbour) -> Iterator[tuple[dict[str, str], _Value]]:
    match described.name:
        case "pgwarden_process_up":
            yield {}, float(one.status is not None)
            return
        case "pgwarden_process_well":
            yield {}, float(one.status is not None and not wrong(one.status))
            return
    if one.status is None:
        return
    if described.name == "pgwarden_gateway_sessions":
        for agent, sessions in _by_agent(one.status.get("sessions")):
            yield {"agent": agent}, float(sessions)
    elif described.each:
        for labels, thing in _things(described, _at(one.status, described.each)):
            yield from ((labels, value) for value in _value(described, _at(thing, described.path)))
    else:
        yield from (({}, value) for value in _value(described, _at(one.status, described.path)))


def _by_agent(sessions: object) -> Iterator[tuple[str, int]]:
    if not isinstance(sessions, list):
        return
    counted = Counter(str(one.get("agent", "")) for one in sessions if isinstance(one, Mapping))
    most = counted.most_common(AGENTS_MAX)
    yield from sorted(most)
    if rest := counted.total() - sum(count for _, count in most):
        yield OTHER, rest


def _things(described: Described, found: object) -> Iterator[tuple[dict[str, str], object]]:
    fields = described.labels or {}
    if isinstance(found, Mapping):
        named = [(str(name), thing) for name, thing in found.items()]
    else:
        named = [("", thing) for thing in found] if isinstance(found, list) else []
    for name, thing in named[:THINGS_MAX]:
        yield {label: str(_at(thing, field)) if field else name for label, field in fields.items()}, thing


def _at(found: object, path: str) -> object:
    for name in path.split(".") if path else ():
        if not isinstance(found, Mapping):
            return None
        found = found.get(name)
    return found


def _value(described: Described, found: object) -> Iterator[_Value]:
    if described.kind == "histogram":
        if isinstance(found, Mapping):
            yield found
    elif isinstance(found, list):
        yield float(len(found))
    elif isinstance(found, (bool, int, float)) and found >= 0:
        yield found * described.scale


def _family(described: Described, samples: Sequence[tuple[Mapping[str, str], _Value]]) -> Metric:
    labels = label_names(described)
    match described.kind:
        case "gauge":
            gauge = GaugeMetricFamily(described.name, described.sentence, labels=labels)
            for given, value in samples:
                assert isinstance(value, (int, float))
                gauge.add_metric([given[name] for name in labels], value)
            return gauge
        case "counter":
            counter = CounterMetricFamily(described.name.removesuffix("_total"), described.sentence, labels=labels)
            for given, value in samples:
                assert isinstance(value, (int, float))
                counter.add_metric([given[name] for name in labels], value)
            return counter
        case "histogram":
            histogram = HistogramMetricFamily(described.name, described.sentence, labels=labels)
            for given, value in samples:
                assert isinstance(value, Mapping)
                buckets, sum_seconds = _buckets(value)
                histogram.add_metric([given[name] for name in labels], buckets, sum_seconds)
            return histogram


def _buckets(facts: Mapping[object, object]) -> tuple[list[tuple[str, float]], float]:
    """Summed up, as Prometheus has them: each holds all that is not longer."""
    counts, total = facts.get("counts"), facts.get("sum_seconds")
    known = [count if isinstance(count, int) else 0 for count in counts] if isinstance(counts, list) else []
    known += [0] * (len(BOUNDS_SECONDS) + 1 - len(known))
    buckets: list[tuple[str, float]] = []
    below = 0
    for bound, count in zip((*map(str, BOUNDS_SECONDS), "+Inf"), known, strict=False):
        below += count
        buckets.append((bound, float(below)))
    return buckets, float(total) if isinstance(total, (int, float)) else 0.0
