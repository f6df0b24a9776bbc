"""Where the partitions of a log on Kafka begin and end, as the brokers said it last."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import queue
import threading
import time
from collections.abc import Sequence
from typing import Final

from ingest.log import LogUnavailable, Partition, Position
from ingest.log.brokers import connected, refused
from ingest.log.kafka_client import INSTALL
from ingest.log.kafka_threads import ABANDON_SECONDS, RETRIED_SECONDS, tell
from ingest.settings import KafkaSettings

try:
    from kafka import KafkaConsumer, TopicPartition
    from kafka.errors import KafkaError
except ImportError as error:
    raise ImportError(INSTALL) from error

_IDLE_SECONDS: Final = 1.0  # between two looks at the ends while nobody asks
_BEGINNINGS_SECONDS: Final = 10.0  # between two looks at the beginnings, which retention moves

_log = logging.getLogger(__name__)


class Question:
    def __init__(self, loop: asyncio.AbstractEventLoop, topic: str) -> None:
        self.loop = loop
        self.topic = topic
        self.done: asyncio.Future[dict[Partition, int]] = loop.create_future()
        self.done.add_done_callback(lambda done: done.cancelled() or done.exception())


class Questions:
    """The thread that asks the brokers where partitions begin and end, and what it knows of that by now."""

    def __init__(self, settings: KafkaSettings) -> None:
        """Blocks. Raises as KafkaLog.open()."""
        self._settings = settings
        self._consumer: KafkaConsumer | None = self._open(settings.connect_seconds_max)
        self._jobs: queue.SimpleQueue[Question | None] = queue.SimpleQueue()
        self._ending = False
        self._refreshing = False
        self._looked = 0.0
        self._looked_at_beginnings = 0.0
        self._ends: dict[Partition, int] = {}
        self._stored: dict[Partition, int] = {}  # the end as this process's appends know it; the loop's
        self._beginnings: dict[Partition, int] = {}
        self._problem = ""
        self.heard = time.monotonic()
        try:
            self._check()
            self._look()
        except BaseException:
            self._leave()
            raise
        self._thread = threading.Thread(target=self._run, name="log offsets", daemon=True)
        self._thread.start()

    # On the loop:

    async def ask(self, topic: str) -> dict[Partition, int]:
        if self._ending:
            raise LogUnavailable("the log is closed")
        question = Question(asyncio.get_running_loop(), topic)
        self._jobs.put(question)
        seconds = self._settings.answer_seconds_max
        try:
            async with asyncio.timeout(seconds):
                return await question.done
        except TimeoutError:
            why = f": {self._problem}" if self._problem else ""
            raise LogUnavailable(f"the brokers have not said within {seconds:g} s where {topic} ends{why}") from None

    def ends(self, topic: str) -> dict[Partition, int]:
        age_ms = (time.monotonic() - self._looked) * 1000
        if age_ms > self._settings.end_offsets_age_ms and not self._refreshing:
            self._refreshing = True
            self._jobs.put(None)
        ends = self._ends
        places = [(topic, number) for number in range(self._settings.partitions[topic])]
        return {place: max(ends[place], self._stored.get(place, 0)) for place in places}

    def beginnings(self, topic: str) -> dict[Partition, int]:
        return {(topic, number): self._beginnings[(topic, number)] for number in range(self._settings.partitions[topic])}

    def stored(self, positions: Sequence[Position]) -> None:
        """What this process appended it need not ask for."""
        for position in positions:
            place = (position.topic, position.partition)
            self._stored[place] = max(self._stored.get(place, 0), position.offset + 1)

    def end(self) -> None:
        self._ending = True
        self._jobs.put(None)

    def join(self, seconds: float) -> bool:
        self._thread.join(seconds)
        return not self._thread.is_alive()

    # On the thread:

    def _open(self, connect_seconds: float) -> KafkaConsumer:
        answer_seconds = self._settings.answer_seconds_max
        return connected(KafkaConsumer, self._settings, connect_seconds, answer_seconds, group_id=None, enable_auto_commit=False)

    def _check(self) -> None:
        assert self._consumer is not None
        missing = []
        for topic, count in self._settings.partitions.items():
            there = self._consumer.partitions_for_topic(self._settings.topic_prefix + topic)
            if not there:
                missing.append(self._settings.topic_prefix + topic)
            elif len(there) != count:
                raise ValueError(
                    f"the topic {self._settings.topic_prefix}{topic} has {len(there)} partitions and {count} are configured,"
                    f" which would change the place of keys; set {topic}_partitions = {len(there)} under [kafka]"
                )
        if missing:
            raise LogUnavailable(f"the brokers have no topic {', '.join(missing)}: run pgwarden topics apply")

    def _run(self) -> None:
        while not self._ending:
            questions: list[Question] = []
            with contextlib.suppress(queue.Empty):
                job = self._jobs.get(timeout=_IDLE_SECONDS)
                while True:
                    if job is not None:
                        questions.append(job)
                    job = self._jobs.get_nowait()
            if self._ending:
                break
            try:
                self._look()
            except Exception as error:
                self._notice(str(error))
                for question in questions:
                    self._answer(question, LogUnavailable(f"the brokers do not say where {question.topic} ends: {error}"))
                if not isinstance(error, (KafkaError, LogUnavailable)) or refused(error):
                    self._leave()
                time.sleep(RETRIED_SECONDS)
            else:
                self._notice("")
                for question in questions:
                    places = [(question.topic, number) for number in range(self._settings.partitions[question.topic])]
                    self._answer(question, {place: self._ends[place] for place in places})
            self._refreshing = False
        self._leave()

    def _look(self) -> None:
        if self._consumer is None:
            self._consumer = self._open(self._settings.answer_seconds_max)
        began = time.monotonic()
        answer_ms = round(self._settings.answer_seconds_max * 1000)
        prefix = self._settings.topic_prefix
        places = {
            TopicPartition(prefix + topic, number): (topic, number)
            for topic, count in self._settings.partitions.items()
            for number in range(count)
        }
        if began - self._looked_at_beginnings > _BEGINNINGS_SECONDS:
            found = self._consumer.beginning_offsets(list(places), timeout_ms=answer_ms)
            self._beginnings = {places[place]: offset for place, offset in found.items()}
            self._looked_at_beginnings = began
        ends = self._consumer.end_offsets(list(places), timeout_ms=answer_ms)
        self._ends = {places[place]: offset for place, offset in ends.items()}
        self._looked = self.heard = began

    def _answer(self, question: Question, result: dict[Partition, int] | LogUnavailable) -> None:
        def settle() -> None:
            if question.done.done():
                return
            if isinstance(result, LogUnavailable):
                question.done.set_exception(result)
            else:
                question.done.set_result(result)

        tell(question.loop, settle)

    def _leave(self) -> None:
        consumer, self._consumer = self._consumer, None
        if consumer is not None:
            consumer.close(autocommit=False, timeout_ms=round(ABANDON_SECONDS * 1000))

    def _notice(self, problem: str) -> None:
        if bool(problem) != bool(self._problem):
            if problem:
                _log.warning("the brokers do not answer: %s", problem)
            else:
                _log.warning("the brokers answer again")
        self._problem = problem
