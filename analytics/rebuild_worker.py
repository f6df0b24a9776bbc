"""Records come in on standard input; the rows that they stage go into Parquet files, and their frames' names to standard output.

Run by `rebuild`, several at once: decoding and staging is half of a rebuild, and Python does it on one core a process. Messages are
MessagePack behind their length. A worker ends when its input does, so that none outlives a rebuild that is killed.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import BinaryIO, Final

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from analytics.projections.projection import Cell, Row
from analytics.projections.schema import STAGES
from analytics.rebuild_lines import LENGTH, Head, Staged, Task
from analytics.staging import staged
from ingest.frames import FrameInvalid, decode
from ingest.log import Record

_ARROW: Final[Mapping[str, pa.DataType]] = {
    "VARCHAR": pa.string(),
    "BIGINT": pa.int64(),
    "BOOLEAN[]": pa.list_(pa.bool_()),
    "VARCHAR[]": pa.list_(pa.string()),
    "BIGINT[]": pa.list_(pa.int64()),
}


def stage(task: Task) -> Staged:
    heads: list[Head] = []
    frames = []
    invalid = ""
    for topic, partition, offset, at_us, value in task.records:
        try:
            frame = decode(value, topic)
        except FrameInvalid as error:
            invalid = str(error)
            break
        heads.append(Head(frame.writer, frame.boot, frame.seq, frame.step, len(frame.events)))
        frames.append((Record(topic, partition, offset, at_us, b"", value), frame))
    files = {}
    for name, rows in staged(frames).items():
        files[name] = str(Path(task.folder) / f"{task.number}.{name}.parquet")
        _write(files[name], STAGES[name].columns, rows)
    return Staged(heads, files, invalid)


def _write(path: str, kinds: Mapping[str, str], rows: Sequence[Row]) -> None:
    arrays = [_array([row.get(name) for row in rows], kind) for name, kind in kinds.items()]
    # Read once, a moment later: neither small nor indexed, but quick to write.
    pq.write_table(pa.table(arrays, list(kinds)), path, compression="none", write_statistics=False)


def _array(cells: Sequence[Cell], kind: str) -> pa.Array:
    try:
        return pa.array(cells, _ARROW[kind])
    except OverflowError:  # beyond BIGINT, of which the store makes NULL where it reads JSON
        return pa.array([_fitting(cell) for cell in cells], _ARROW[kind])


def _fitting(cell: Cell) -> Cell:
    if isinstance(cell, tuple):
        return tuple(None if isinstance(item, int) and item >= 2**63 else item for item in cell)
    return None if isinstance(cell, int) and cell >= 2**63 else cell


def receive(source: BinaryIO) -> bytes | None:
    head = source.read(LENGTH.size)
    if len(head) < LENGTH.size:
        return None
    (size,) = LENGTH.unpack(head)
    body = source.read(size)
    return body if len(body) == size else None


def main() -> None:
    source, sink = sys.stdin.buffer, os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # whatever a library prints is no answer
    pa.set_cpu_count(1)
    gc.disable()  # nothing here is a cycle; looking for one in a million rows takes longer than decoding them (measured)
    decoder = msgspec.msgpack.Decoder(Task)
    while (message := receive(source)) is not None:
        answer = msgspec.msgpack.encode(stage(decoder.decode(message)))
        sink.write(LENGTH.pack(len(answer)) + answer)
        sink.flush()


if __name__ == "__main__":
    main()
