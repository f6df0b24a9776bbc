"""The half of the witness that talks: a user without privileges, who hands pieces of the ring to one client over a unix socket.

It parses no record. What it hands over stays in the ring until the client has it on disk, so neither its own end nor the client's
loses anything; while nobody reads, the ring fills, and what finds no room is counted and attributed by the spill ring.
"""

from __future__ import annotations

import logging
import mmap
import os
import select
import socket
import struct
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Final

import msgspec

from ingest.collectors.ebpf import layout, libbpf, messages
from ingest.collectors.ebpf.messages import Hello, LetGo, Malformed, Piece, Status, Unseen
from ingest.collectors.ebpf.ring import Ring

LOOK_SECONDS: Final = 0.02  # between two looks at the ring; a wake-up for each record costs the backend 11 us
IDLE_SECONDS: Final = 0.1  # without a new record, how often the client is told that there is none
STATUS_SECONDS: Final = 1.0
_SESSIONS_MAX: Final = 16_384  # of the program's map
UNSEEN_MAX: Final = 100  # kept for a client that is not there
_CREDENTIALS: Final = struct.Struct("3i")  # ucred: pid, uid, gid
_LETTING_GO_BYTES: Final = messages.HEAD.size + 32

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Maps:
    """Mapped and open before the privileges are given up."""

    ring: Ring
    spill: Ring
    counters: mmap.mmap
    made: mmap.mmap  # three numbers: when it was made, up to when all is recorded, and the wall clock then
    announced_fd: int
    ring_bytes: int
    nested: bool


@dataclass(slots=True)
class _Client:
    socket: socket.socket
    ring_sent: int
    spill_sent: int
    out: bytearray = field(default_factory=bytearray)  # a piece of each ring at most, and what all sessions were announced with
    came: bytearray = field(default_factory=bytearray)
    told_lost: int = 0
    announced_at: float = 0.0
    idle_at: float = 0.0
    status_at: float = 0.0
    unseen_sent: int = 0


class HandOver:
    def __init__(self, listener: socket.socket, words: int, maps: Maps, client_uid: int) -> None:
        """`words`: a file descriptor on which the privileged half says how it is, a Status or Unseen as JSON a line."""
        self._listener = listener
        self._words = words
        self._maps = maps
        self._client_uid = client_uid
        self._client: _Client | None = None
        self._unseen: deque[Unseen] = deque(maxlen=UNSEEN_MAX)
        self._status = Status(False, "it is starting", 0, 0, False, (), 0, 0, 0, 0, 0)
        self._said = bytearray()
        self._over: dict[bytes, int] = {}  # sessions that are over -> where the ring was at when that was noticed

    def run(self) -> None:
        """Until the privileged half is gone."""
        listener = self._listener.fileno()
        while True:
            watched = [listener, self._words]
            writing: list[int] = []
            if self._client is not None:
                watched.append(self._client.socket.fileno())
                writing = [self._client.socket.fileno()] if self._client.out else []
            readable, writable, _ = select.select(
                watched, writing, [], LOOK_SECONDS if self._client is not None else STATUS_SECONDS
            )
            if self._words in readable and not self._listen():
                return
            if listener in readable:
                self._accept()
            client = self._client
            if client is None:
                continue
            try:
                if client.socket.fileno() in readable:
                    self._take(client)
                if client.out and (writable or not writing):
                    self._send(client)
                if not client.out:
                    self._fill(client)
                    self._send(client)
                if not client.out and not readable:
                    time.sleep(LOOK_SECONDS)  # pieces are to be large: each costs the client a round
            except (OSError, Malformed) as error:
                _log.warning("the client is let go: %s", error)
                client.socket.close()
                self._client = None

    # -- the privileged half -------------------------------------------------------------------------------------------------------

    def _listen(self) -> bool:
        data = os.read(self._words, 65_536)
        if not data:
            return False
        self._said += data
        *lines, rest = bytes(self._said).split(b"\n")
        self._said = bytearray(rest)
        for line in lines:
            said = msgspec.json.decode(line, type=dict[str, msgspec.Raw])
            if "number" in said:
                self._unseen.append(msgspec.json.decode(line, type=Unseen))
            else:
                self._status = msgspec.json.decode(line, type=Status)
        return True

    # -- the client ----------------------------------------------------------------------------------------------------------------

    def _accept(self) -> None:
        peer, _ = self._listener.accept()
        _, uid, _ = _CREDENTIALS.unpack(peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
        if uid != self._client_uid:
            _log.warning("a process of user %d asked; only user %d is answered", uid, self._client_uid)
            peer.close()
            return
        if self._client is not None:  # the newest is the one that lives: an old one may hang
            self._client.socket.close()
        peer.setblocking(False)
        maps = self._maps
        client = _Client(peer, maps.ring.consumed, maps.spill.consumed)
        made_ns, recorded_ns, wall_us = struct.unpack_from("<QQq", maps.made)
        hello = Hello(messages.PROTOCOL, made_ns, recorded_ns, maps.ring_bytes, maps.nested, wall_us)
        client.out += messages.as_json(messages.HELLO, hello)
        self._announce(client)
        self._client = client

    def _announce(self, client: _Client) -> None:
        """All sessions of which the ring may hold records: their beginning was read before, or found no room."""
        client.announced_at = time.monotonic()
        client.told_lost = self._counters()[1]
        for key in libbpf.keys(self._maps.announced_fd, layout.NAME.size, _SESSIONS_MAX):
            record = libbpf.lookup(self._maps.announced_fd, key, layout.SESSION_BYTES)
            filled = record is not None and layout.HEADER.unpack_from(record)[4] == layout.SESSION
            if record is not None and filled and not self._read_to_its_end(key):
                client.out += messages.message(messages.KNOWN, record)

    def _read_to_its_end(self, key: bytes) -> bool:
        end = self._over.get(key)
        return end is not None and end <= self._maps.ring.consumed

    def _tidy(self) -> None:
        """Forget the sessions that are over, once nobody needs the ring's records of them any more."""
        produced = self._maps.ring.produced
        for key in libbpf.keys(self._maps.announced_fd, layout.NAME.size, _SESSIONS_MAX):
            if self._read_to_its_end(key):
                libbpf.delete(self._maps.announced_fd, key)
                del self._over[key]
            elif key not in self._over:
                record = libbpf.lookup(self._maps.announced_fd, key, layout.SESSION_BYTES)
                if record is not None and layout.HEADER.unpack_from(record)[5] & layout.OVER:
                    self._over[key] = produced

    def _counters(self) -> tuple[int, ...]:
        return struct.unpack_from(f"<{len(layout.COUNTERS)}Q", self._maps.counters)

    def _fill(self, client: _Client) -> None:
        maps, now = self._maps, time.monotonic()
        if now - client.status_at >= STATUS_SECONDS:
            client.status_at = now
            made, lost, unattributed, unreadable, full = self._counters()
            status = msgspec.structs.replace(
                self._status, made=made, lost=lost, unattributed=unattributed, unreadable_texts=unreadable, full_sessions=full
            )
            client.out += messages.as_json(messages.STATUS, status)
            self._tidy()
        for unseen in self._unseen:
            if unseen.number > client.unseen_sent:
                client.out += messages.as_json(messages.UNSEEN, unseen)
                client.unseen_sent = unseen.number
        as_of_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        spilled = maps.spill.produced  # read first: what is missing is told after all that came before it
        piece = maps.ring.read(client.ring_sent)
        if self._counters()[1] != client.told_lost and now - client.announced_at > IDLE_SECONDS:
            self._announce(client)
        if piece.data or now - client.idle_at >= IDLE_SECONDS:
            client.idle_at = now
            client.ring_sent = piece.end
            client.out += messages.piece(messages.RECORDS, Piece(as_of_ns if piece.caught_up else 0, piece.end, piece.data))
        if piece.caught_up and spilled > client.spill_sent:
            heads = maps.spill.read(client.spill_sent, min(spilled - client.spill_sent, 2**18))
            client.spill_sent = heads.end
            client.out += messages.piece(messages.SPILLED, Piece(as_of_ns, heads.end, heads.data))

    def _send(self, client: _Client) -> None:
        while client.out:
            try:
                sent = client.socket.send(client.out)
            except BlockingIOError:
                return
            del client.out[:sent]

    def _take(self, client: _Client) -> None:
        data = client.socket.recv(65_536)
        if not data:
            raise Malformed("it hung up")
        client.came += data
        while len(client.came) >= _LETTING_GO_BYTES:
            length, kind = messages.head(bytes(client.came[: messages.HEAD.size]))
            if kind != messages.LET_GO or length + messages.HEAD.size != _LETTING_GO_BYTES:
                raise Malformed(f"a message of kind {kind} and {length} bytes")
            self._let_go(client, messages.read_let_go(bytes(client.came[messages.HEAD.size : _LETTING_GO_BYTES])))
            del client.came[:_LETTING_GO_BYTES]

    def _let_go(self, client: _Client, said: LetGo) -> None:
        maps = self._maps
        if (
            not maps.ring.consumed <= said.ring_end <= client.ring_sent
            or not maps.spill.consumed <= said.spill_end <= client.spill_sent
        ):
            raise Malformed("it lets go of what it was not given")
        maps.ring.let_go(said.ring_end)
        maps.spill.let_go(said.spill_end)
        while self._unseen and self._unseen[0].number <= said.unseen:
            self._unseen.popleft()
        _, recorded_ns = struct.unpack_from("<QQ", maps.made)
        struct.pack_into("<Q", maps.made, 8, max(recorded_ns, min(said.recorded_ns, time.clock_gettime_ns(time.CLOCK_BOOTTIME))))
