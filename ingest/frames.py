"""Events become frames, and frames become events again. One frame is one record of the log.

Frames are numbered by `(writer, boot, topic)` from 0 without a hole, in the order in which they are appended: the number names the
frame, within its topic, for ever. `step` is the distance to the frame of the same writer and boot that stands before it *in the
same partition* (1 wherever a topic has a single partition), so that a reader of one partition can tell a lost frame from one that
went elsewhere: the frame before must have been number `seq - step`, and -1 means that there was none.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, get_args

import msgspec

from ingest.events import (
    CommandEvent,
    Event,
    FindingEvent,
    Frame,
    IdentityEvent,
    ObservationEvent,
    RecordRead,
    SessionEvent,
    Stamp,
    StatementEvent,
    Topic,
    WitnessEvent,
)
from ingest.log import Entry

VERSION: Final = 1

TOPIC_OF: Final[dict[type, Topic]] = {
    **dict.fromkeys(get_args(IdentityEvent), "identity"),
    **dict.fromkeys(get_args(SessionEvent), "sessions"),
    **dict.fromkeys(get_args(StatementEvent), "statements"),
    **dict.fromkeys(get_args(CommandEvent), "commands"),
    **dict.fromkeys(get_args(FindingEvent), "findings"),
    **dict.fromkeys(get_args(ObservationEvent), "observations"),
    **dict.fromkeys(get_args(WitnessEvent), "witness"),
    RecordRead: "looks",
}

EVENT_OVERHEAD_BYTES: Final = 112  # what the interpreter adds to a waiting event: a bytes, a Raw and a tuple (sys.getsizeof)

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Frame)


class FrameInvalid(Exception):
    """The bytes are not a frame that this version can read."""


def encode(frame: Frame) -> bytes:
    return _encoder.encode(frame)


def decode(data: bytes, topic: str = "") -> Frame:
    """Fields that a newer version added are passed over; an event that it added is not, for nothing may be dropped in silence.

    `topic`: the one that it was read from. Who may write one topic must not be able to grant or revoke through it.

    Raises:
        FrameInvalid: Not a frame, a frame of a newer version, one that names a stamp that it does not carry, or one with an event
            of another topic.
    """
    try:
        frame = _decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise FrameInvalid(str(error)) from error
    if frame.version != VERSION:
        raise FrameInvalid(f"frame version {frame.version}; this program reads version {VERSION}")
    stamps = len(frame.stamps)
    for stamp, event in frame.events:
        if not -1 <= stamp < stamps:
            raise FrameInvalid(f"stamp {stamp} of {stamps}")
        if topic and TOPIC_OF[type(event)] != topic:
            raise FrameInvalid(f"{type(event).__name__} does not belong to topic {topic}")
    return frame


def event_id(frame: Frame, index: int) -> str:
    """The name of one event, the same in every reading of the log: `<writer>/<boot>/<topic>/<seq>/<index>`."""
    topic = TOPIC_OF[type(frame.events[index][1])]
    return f"{frame.writer}/{frame.boot}/{topic}/{frame.seq}/{index}"


class _OpenFrame:
    __slots__ = ("events", "keep", "key", "places", "size", "stamps")

    def __init__(self, key: bytes) -> None:
        self.key = key
        self.stamps: list[msgspec.Raw] = []
        self.places: dict[int, int] = {}  # id(stamp) -> its index
        self.keep: list[Stamp] = []  # so that no other object takes a stamp's id while the frame is open
        self.events: list[tuple[int, msgspec.Raw]] = []
        self.size = 0


class Framer:
    """Collects events by topic and key, and cuts frames from them. The events of a key keep their order.

    `partition` says where the log will put a record of this topic and key.
    """

    def __init__(
        self,
        writer: str,
        boot: int,
        *,
        events_max: int,
        bytes_max: int,
        partition: Callable[[Topic, bytes], int] = lambda _t, _k: 0,
    ) -> None:
        self._writer = writer
        self._boot = boot
        self._events_max = events_max
        self._bytes_max = bytes_max
        self._partition = partition
        self._open: dict[tuple[Topic, str], _OpenFrame] = {}
        self._closed: list[Entry] = []
        self._next_seq: dict[Topic, int] = {}
        self._last_seq: dict[tuple[Topic, int], int] = {}

    def add(self, topic: Topic, key: str, event: Event, stamp: Stamp | None = None) -> int:
        """Return the bytes of memory that the event now holds. What cannot be encoded is refused here, and leaves no trace.

        Raises:
            ValueError: The event belongs to another topic, or holds text that is not Unicode or a number beyond 64 bits.
        """
        if TOPIC_OF[type(event)] != topic:
            raise ValueError(f"{type(event).__name__} belongs to topic {TOPIC_OF[type(event)]}, not {topic}")
        encoded = _encode(event)
        size = len(encoded)
        name = (topic, key)
        frame = self._open.get(name)
        if frame is None:
            frame = _OpenFrame(key.encode())
        elif len(frame.events) >= self._events_max or frame.size + size > self._bytes_max:
            frame = _OpenFrame(frame.key)
        place = -1
        if stamp is not None:
            known = frame.places.get(id(stamp))
            if known is None:
                encoded_stamp = _encode(stamp)
                place = frame.places[id(stamp)] = len(frame.stamps)
                frame.stamps.append(msgspec.Raw(encoded_stamp))
                frame.keep.append(stamp)
                frame.size += len(encoded_stamp)
                size += len(encoded_stamp)
            else:
                place = known
        if not frame.events:
            full = self._open.get(name)
            if full is not None:
                self._close(topic, full)
            self._open[name] = frame
        frame.events.append((place, msgspec.Raw(encoded)))
        frame.size += len(encoded)
        return size + EVENT_OVERHEAD_BYTES

    def cut(self) -> list[Entry]:
        """Close every open frame, and return all that were not returned before, in the order in which to append them."""
        for (topic, _), frame in self._open.items():
            self._close(topic, frame)
        self._open.clear()
        closed, self._closed = self._closed, []
        return closed

    def _close(self, topic: Topic, frame: _OpenFrame) -> None:
        seq = self._next_seq.get(topic, 0)
        place = (topic, self._partition(topic, frame.key))
        step = seq - self._last_seq.get(place, -1)
        value = _encoder.encode((VERSION, self._writer, self._boot, seq, frame.stamps, frame.events, step))
        self._next_seq[topic] = seq + 1
        self._last_seq[place] = seq
        self._closed.append(Entry(topic, frame.key, value))


def _encode(fact: Event | Stamp) -> bytes:
    try:
        return _encoder.encode(fact)
    except OverflowError as error:
        raise ValueError(f"{type(fact).__name__}: {error}") from error
