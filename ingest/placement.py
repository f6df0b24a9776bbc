"""Frames of one partition come in, in order; the same frames come out for several, each with the `step` of its new place.

`step` tells a reader of one partition where the writer's frame before it is (`frames.py`), so it is the one field that depends on
how many partitions there are. All the rest of a frame is passed on byte for byte: its name, its stamps, its events and their ids.
What readers would pass over, they need not be given: a frame that stands twice comes out once. A gap stays a gap.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import msgspec

from ingest.frames import VERSION, FrameInvalid
from ingest.log.partitioner import partition

_SEQ: Final = 3
_STEP: Final = 6
_raws: Final = msgspec.msgpack.Decoder(list[msgspec.Raw])
_number: Final = msgspec.msgpack.Decoder(int)
_text: Final = msgspec.msgpack.Decoder(str)
_encoder: Final = msgspec.msgpack.Encoder()


@dataclass(frozen=True, slots=True)
class Placed:
    partition: int
    value: bytes


class Placement:
    """Of one topic. `partitions` is how many it will have; `whole` says that the first frame given is the first there ever was."""

    def __init__(self, partitions: int, whole: bool) -> None:
        self._partitions = partitions
        self._whole = whole
        self._newest: dict[str, tuple[int, int]] = {}  # writer -> (boot, seq), as readers of the source have it
        self._last: dict[tuple[str, int], tuple[int, int]] = {}  # (writer, new partition) -> (boot, seq)
        self.repeated = 0  # frames that stood twice
        self.gaps = 0  # places where frames are missing

    def place(self, key: bytes, value: bytes) -> Placed | None:
        """Where this frame goes, and as what; None when it was there before. Call it with each frame, in the source's order.

        Raises:
            FrameInvalid: Not a frame, or one of another version.
        """
        try:
            fields = _raws.decode(value)
            version, boot, seq = (_number.decode(fields[index]) for index in (0, 2, _SEQ))
            writer = _text.decode(fields[1])
            step = _number.decode(fields[_STEP]) if len(fields) > _STEP else 1
        except (msgspec.DecodeError, UnicodeDecodeError, IndexError, RecursionError) as error:
            raise FrameInvalid(str(error)) from error
        if version != VERSION:
            raise FrameInvalid(f"frame version {version}; this program reads version {VERSION}")
        newest = self._newest.get(writer)
        before = newest[1] if newest is not None and newest[0] == boot else -1
        if newest is not None and newest[0] == boot and seq <= before:
            self.repeated += 1
            return None
        self._newest[writer] = (boot, seq)
        place = partition(key, self._partitions)
        last = self._last.get((writer, place))
        self._last[writer, place] = (boot, seq)
        if seq - step != before and (newest is not None or self._whole):
            # The frame before this one is missing, and nobody knows where it would have gone. Said as it was said, so that this
            # frame's reader, too, misses the one before.
            self.gaps += 1
        else:
            step = seq - (last[1] if last is not None and last[0] == boot else -1)
        if len(fields) > _STEP:
            fields[_STEP] = msgspec.Raw(_encoder.encode(step))
        else:
            fields.append(msgspec.Raw(_encoder.encode(step)))
        return Placed(place, _encoder.encode(fields))
