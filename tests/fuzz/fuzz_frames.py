"""Any bytes are a frame, which is encoded as it was decoded, or FrameInvalid; nothing else comes out."""

from __future__ import annotations

import contextlib

from ingest.frames import FrameInvalid, decode, encode


def one_input(data: bytes) -> None:
    with contextlib.suppress(FrameInvalid):
        frame = decode(data)
        assert decode(encode(frame)) == frame
