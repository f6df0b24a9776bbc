"""Which answer belongs to which request. Each test reads like the conversation."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from gateway.wire.tracker import Execution, Portal, Tracker, TrackLost


@dataclass
class Story:
    """A tracker whose texts are strings; `ends` is what it reported."""

    ends: list[str] = field(default_factory=list)
    tracker: Tracker[str] = field(init=False)
    number: int = 0

    def __post_init__(self) -> None:
        self.tracker = Tracker(
            lambda execution, outcome, sqlstate, tag: self.ends.append(
                " ".join(filter(None, (execution.text, outcome, sqlstate, tag)))
            )
        )

    def run(self, text: str) -> Execution[str]:
        self.number += 1
        return Execution(self.number, text, 0)

    def query(self, *texts: str) -> None:
        self.tracker.sent_query([self.run(text) for text in texts])

    def extended(self, text: str, name: bytes = b"", *, sync: bool = True) -> None:
        self.tracker.sent_parse(name, text)
        portal = Portal(text)
        self.tracker.sent_bind(b"", portal)
        self.tracker.sent_execute(self.run(text), portal)
        if sync:
            self.tracker.sent_sync()


@pytest.fixture
def story() -> Story:
    return Story()


def test_statements_of_one_query_end_one_by_one(story: Story) -> None:
    story.query("a", "b", "c")
    story.tracker.received_complete("SELECT 1")
    story.tracker.received_error("22012")
    story.tracker.received_ready_for_query("I")
    assert story.ends == ["a ok SELECT 1", "b error 22012", "c skipped"]
    assert not story.tracker.busy


def test_an_error_in_a_pipeline_skips_to_its_sync_and_not_beyond(story: Story) -> None:
    story.extended("a", sync=False)
    story.extended("b")
    story.extended("c")
    tracker = story.tracker
    tracker.received_parse_complete()
    tracker.received_error("42P01")
    tracker.received_ready_for_query("I")
    tracker.received_parse_complete()
    tracker.received_bind_complete()
    tracker.received_complete("SELECT 0")
    tracker.received_ready_for_query("I")
    assert story.ends == ["a error 42P01", "b skipped", "c ok SELECT 0"]


def test_what_is_sent_after_an_error_and_before_the_sync_is_skipped(story: Story) -> None:
    tracker = story.tracker
    tracker.sent_parse(b"", "a")
    tracker.received_error("42601")
    story.extended("b")
    tracker.received_ready_for_query("I")
    assert story.ends == ["b skipped"]
    assert not tracker.statements


def test_a_statement_name_that_failed_to_parse_still_means_the_old_statement(story: Story) -> None:
    tracker = story.tracker
    tracker.sent_parse(b"s", "old")
    tracker.sent_sync()
    tracker.received_parse_complete()
    tracker.received_ready_for_query("I")
    tracker.sent_parse(b"s", "new")
    assert tracker.statements[b"s"] == "new"
    tracker.received_error("42P05")
    assert tracker.statements[b"s"] == "old"


def test_a_portal_run_in_pieces_is_one_execution(story: Story) -> None:
    tracker = story.tracker
    tracker.sent_parse(b"", "a")
    portal = Portal("a")
    tracker.sent_bind(b"", portal)
    execution = story.run("a")
    tracker.sent_execute(execution, portal)
    tracker.received_parse_complete()
    tracker.received_bind_complete()
    tracker.received_portal_suspended()
    assert portal.execution is execution
    assert not execution.ended
    tracker.sent_execute(execution, portal)
    tracker.sent_sync()
    tracker.received_complete("SELECT 5")
    tracker.received_ready_for_query("I")
    assert story.ends == ["a ok SELECT 5"]


def test_a_portal_left_before_its_end_is_recorded_as_suspended(story: Story) -> None:
    tracker = story.tracker
    story.extended("a")
    tracker.received_parse_complete()
    tracker.received_bind_complete()
    tracker.received_portal_suspended()
    tracker.received_ready_for_query("I")
    assert story.ends == ["a suspended"]


def test_a_copy_is_coming_until_the_server_asks_for_it_or_says_no(story: Story) -> None:
    tracker = story.tracker
    tracker.sent_query([story.run("copy"), story.run("copy too")], copies_in=True)
    assert tracker.copy_is_coming
    tracker.received_copy_in()
    assert (tracker.copying_in, tracker.copy_is_coming) == (True, False)
    tracker.sent_copy_end()
    assert tracker.copy_is_coming
    tracker.received_complete("COPY 3")
    tracker.received_error("42P01")
    tracker.received_ready_for_query("I")
    assert not tracker.copy_is_coming
    assert story.ends == ["copy ok COPY 3", "copy too error 42P01"]


def test_the_error_of_a_refused_message_is_replaced_and_others_are_not(story: Story) -> None:
    tracker = story.tracker
    story.query("a")
    tracker.sent_refusal(b"REFUSED", extended=False)
    assert tracker.received_error("22012") == b""
    tracker.received_ready_for_query("I")
    assert tracker.received_error("42601") == b"REFUSED"
    tracker.received_ready_for_query("I")
    assert story.ends == ["a error 22012"]


def test_a_refusal_behind_an_error_in_the_same_pipeline_is_skipped_with_it(story: Story) -> None:
    tracker = story.tracker
    story.extended("a", sync=False)
    tracker.sent_refusal(b"REFUSED", extended=True)
    tracker.sent_sync()
    assert tracker.received_error("42601") == b""
    tracker.received_ready_for_query("E")
    assert tracker.transaction == "E"
    assert not tracker.busy


def test_what_has_no_answer_when_the_connection_is_lost_is_unknown(story: Story) -> None:
    story.query("a", "b")
    story.tracker.received_complete("SELECT 1")
    story.tracker.lost()
    assert story.ends == ["a ok SELECT 1", "b unknown"]


def test_an_answer_that_nobody_asked_for_is_noticed(story: Story) -> None:
    with pytest.raises(TrackLost):
        story.tracker.received_complete("SELECT 1")
    story.query("a")
    story.tracker.received_complete("SELECT 1")
    with pytest.raises(TrackLost):
        story.tracker.received_complete("SELECT 1")


def test_an_error_that_comes_by_itself_belongs_to_nothing(story: Story) -> None:
    assert story.tracker.received_error("57P01") == b""
    assert not story.ends
