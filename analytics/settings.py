from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class AnalyticsSettings:
    directory: Path  # holds the tables, their lock and the snapshots for guarded SQL; all of it can be thrown away

    # The projector
    commit_interval_ms: int = 1000  # after a calm, at once; a commit of few rows takes 35 to 85 ms of CPU, nearly all planning
    finding_commit_interval_ms: int = 100  # the same where a finding waits to be shown: a shadow must stand there within 2 s
    batch_events_max: int = 20_000  # in one transaction, and what the last poll brought beyond it
    poll_records_max: int = 200  # frames, each of at most about 100 events
    threads: int = 1  # DuckDB's own; the gateway needs the cores
    memory_max_mb: int = 512

    # Rebuilding, which has the machine to itself but for the gateway
    rebuild_alone_records_max: int = 5_000  # a log with fewer is read by this process; starting others takes a second
    rebuild_workers: int = 2  # processes that decode and stage, while this one merges
    rebuild_chunk_records: int = 2_000  # staged by one worker at a time, or what one poll() of the log brings, if less
    rebuild_chunks_ahead: int = 16  # read and not merged: 4 MB of log each, and as much in files
    rebuild_batch_events: int = 1_000_000  # in one transaction; many row groups (122,880 rows) go to the file at once, past the WAL
    rebuild_threads: int = 2
    rebuild_memory_max_mb: int = 2_048

    # Enforcement
    tick_interval_ms: int = 100  # expiries are found this late at most
    orders_pending_max: int = 100_000  # one a live session; beyond it the runner stops with an error

    # Inspection: detectors, reconciliation, responses
    inspection_tick_ms: int = 100  # what a step waits for is found this late at most; a shadow session must be told within 2 s
    inspection_checkpoint_seconds: float = 30.0  # what a crash makes the steps read again
    inspection_frames_ahead_max: int = 500  # of one topic, read and not handed to a step
    inspection_ids_max: int = 200_000  # of findings and orders that are known to be recorded

    # Named questions
    question_seconds_max: float = 5.0
    questions_at_once: int = 2
    questions_waiting_max: int = 64
    answer_rows_max: int = 1_000
    answer_bytes_max: int = 4 * 2**20  # of text; what is beyond it comes with the next page
    answer_text_max: int = 16 * 2**10  # characters of one statement in a list; question `statement` gives all of it

    # Guarded SQL
    sql_bytes_max: int = 64 * 2**10  # 500,000 nested subqueries end the parser with a stack overflow: measured
    sql_rows_max: int = 10_000
    sql_answer_bytes_max: int = 8 * 2**20
    sql_seconds_max: float = 5.0
    sql_waiting_max: int = 8  # callers in line; each has at most one query
    sql_memory_max_mb: int = 256
    snapshot_age_seconds_min: float = 1.0  # an older snapshot is replaced before a query, if anything was committed since
    snapshot_rest_factor: int = 20  # and rests this many times as long as copying it took

    # Exports of a question's rows as a file
    export_rows_max: int = 100_000
    export_bytes_max: int = 64 * 2**20
    export_seconds_max: float = 30.0
    exports_waiting_max: int = 4  # callers in line; one is written at a time

    # Snapshots for whoever wants the tables in a program of theirs
    snapshot_interval_seconds: float = 900.0  # 0 = only when asked for; more while copying takes more than a twentieth of it
    snapshots_kept: int = 2  # each as large as the tables
    snapshot_free_bytes_min: int = 2 * 2**30  # that stay free on the disk, or none is taken
    snapshot_downloads_max: int = 2  # at once; each keeps its file on the disk, though it may be removed meanwhile
    snapshot_download_seconds_max: float = 3600.0  # of one; 100 GB at 30 MB/s


@dataclass(frozen=True, slots=True)
class ReconcileSettings:
    kill_shadow: bool = False  # end what no gateway opened and no source declares
    compare_addresses: bool = True  # False where something between gateway and server rewrites ports
    patience_ms: int = 750  # that a session which does not bear a gateway's name waits for a gateway's word
    lateness_seconds: float = 5.0  # that one which does waits, and a statement for its record
    record_lateness_seconds_max: float = 60.0  # that a gateway is waited for which says that its record is not with the brokers
    observation_lateness_seconds: float = 1.0  # beyond a collector's watermark
    restart_seconds: float = 60.0  # that a collector which ended in good order is waited for: what it resumes it has seen
    end_seconds: float = 60.0  # that a session which is over waits for the collector's word of its end
    sessions_max: int = 50_000  # of gateways, and as many of servers; those that ended first are forgotten first
    statements_max: int = 10_000  # of one session that wait for their counterpart, on each side
    waiting_max: int = 200_000  # the same of all sessions together, each collector's sight of them counted
    texts_max: int = 2_000  # of one session that are remembered
    text_characters_max: int = 1_000  # of a text's start, where a collector has cut it
    findings_per_session_max: int = 50  # of one kind; what is beyond is counted


@dataclass(frozen=True, slots=True)
class ResponsesSettings:
    age_seconds_max: int = 600  # an older finding is history, and not answered
    an_hour_max: int = 20  # answers, for all agents together
    throttle_per_minute: int = 30  # statements at each gateway, of an agent that a finding throttles
