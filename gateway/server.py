"""Sockets in, sessions out: the listener, the first bytes, TLS, login, limits, and the end of it all."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import secrets
import socket
import ssl
import time
from collections import Counter, deque
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

from gateway.admission import Admission, Denied
from gateway.channel import Channel, PeerGone, tune
from gateway.control import Backend, Control, ControlFailed
from gateway.conversation import Conversation, horizon
from gateway.kill import Ender
from gateway.pace import Pace
from gateway.recovery import Aftermath
from gateway.session import Session
from gateway.settings import GatewaySettings
from gateway.stamp import WATCHED, Request, request, upstream_parameters
from gateway.texts import Texts
from gateway.upstream import Target, Upstream, UpstreamRefused, connect
from gateway.wire import messages
from gateway.wire.messages import Error, ProtocolViolation
from gateway.wire.startup import (
    VERSION_3_0,
    VERSION_3_2,
    CancelRequest,
    GSSENCRequest,
    SSLRequest,
    StartupMessage,
    UnsupportedVersion,
    packet_length,
    read_packet,
)
from identity.principal import Principal
from identity.refusal import Refusal
from identity.registry import EVERYONE, Registry, Standing
from identity.scope import Authority
from ingest.clock import now_us
from ingest.events import (
    BackendOpened,
    GatewayReported,
    GatewayStarted,
    GatewayStopped,
    LogRecovered,
    RecordingStopped,
    SessionClosed,
    SessionDenied,
    SessionEndOrdered,
    SessionOpened,
    Stamp,
    StatementCancelled,
)
from ingest.histogram import Histogram
from ingest.log import EventLog, LogUnavailable, Partition
from ingest.log.segments import Recovery
from ingest.recorder import Recorder, RecorderState

_log = logging.getLogger(__name__)

_TLS_HANDSHAKE = 0x16  # a ClientHello's first byte: direct TLS, PostgreSQL 17 and later


@dataclass(frozen=True, slots=True)
class Place:
    """A connection that agents may ask for, and the gateway's own two connections to it: one to look, one kept free for kills."""

    target: Target
    watch: Control
    kill: Control


@dataclass(slots=True)
class Counters:
    sessions_opened: int = 0
    sessions_denied: int = 0
    killed: int = 0
    statements: int = 0
    denied: int = 0
    unproven: int = 0  # of those killed: no proof came within the time limit


class Gateway:
    """`serve` until cancelled or `drain`ed. Owned by one event loop."""

    def __init__(
        self,
        settings: GatewaySettings,
        places: Mapping[str, Place],
        registry: Registry,
        admission: Admission,
        recorder: Recorder,
        texts: Texts,
        tls: ssl.SSLContext,
        channel_binding: bytes | None,
        boot: int,
        version: str,
    ) -> None:
        self._settings = settings
        self._places = places
        self._enders = {name: Ender(place.kill, settings) for name, place in places.items()}
        self._registry = registry
        self._admission = admission
        self._recorder = recorder
        self._texts = texts
        self._tls = tls
        self._channel_binding = channel_binding
        self._boot = boot
        self._version = version
        self._conversations: dict[str, Conversation] = {}
        self._of_agent: dict[str, set[str]] = {}
        self._paces: dict[str, Pace] = {}  # of throttled agents
        self._cancel_keys: dict[tuple[int, bytes], str] = {}
        self._callable_names: dict[str, frozenset[str]] = {}
        self._logins: Counter[str] = Counter()
        self._turns: dict[str, asyncio.Semaphore] = {}
        self._failures: dict[str, deque[float]] = {}
        self._stray_cancels: dict[str, deque[float]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._listener: socket.socket | None = None
        self._draining = False
        self._epoch = 0
        # Sessions whose end some identity event demands and no proof shows yet, and when that was recorded.
        self._unproven: dict[str, int] = {}
        self._aftermath: Aftermath | None = None
        for name, place in places.items():
            for control in (place.watch, place.kill):
                control.tell(partial(self._control_opened, name))
        self._outage: tuple[int, str] | None = None
        self._refused_before = 0
        self._expired_until_us = now_us()
        self.counters = Counters()
        self.decisions = Histogram()  # of one turn in many: see Conversation
        self.kills = Histogram()  # from the record of what caused it to the proof
        self.why_stale: Callable[[], str] = str  # why the registry may not hold what was decided; "" while it does
        self.silent_seconds: Callable[[], float] | None = None  # since the brokers were heard; None where there are none
        self._unshipped: set[str] = set()  # sessions of whose opening the brokers have not been told
        recorder.on_availability = self._recording_changed

    # -- life ------------------------------------------------------------------------------------------------------------------

    def bind(self) -> int:
        """Take the port and return it; who connects before `listen` is refused. Raises OSError."""
        family = socket.AF_INET6 if ":" in self._settings.listen_host else socket.AF_INET
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setblocking(False)
        try:
            listener.bind((self._settings.listen_host, self._settings.listen_port))
        except OSError:
            listener.close()
            raise
        self._listener = listener
        return int(listener.getsockname()[1])

    async def started(self, recoveries: Sequence[Recovery]) -> None:
        """Record the start, which ends what an earlier boot left open, and what its crash left of the log. Returns once on disk."""
        for found in recoveries:
            if found.dropped_bytes or found.confirmed_batches:
                recovered = LogRecovered(
                    now_us(), self._settings.gateway, found.topic, found.partition, found.dropped_bytes, found.confirmed_batches
                )
                self._recorder.record("sessions", self._settings.gateway, recovered)
        await self._recorder.recorded(
            self._recorder.record(
                "sessions", self._settings.gateway, GatewayStarted(now_us(), self._settings.gateway, self._boot, self._version)
            )
        )

    async def recover(self, log: EventLog, bookmark: Path) -> None:
        """End what an earlier boot left behind, and record what became of it. To be called between `started` and `listen`.

        What cannot be proven over now, for want of its database, is tried again in the background.

        Raises:
            LogUnavailable: The log cannot be read, or takes no records.
        """
        targets = {name: place.target for name, place in self._places.items()}
        aftermath = Aftermath(log, self._recorder, self._registry, self._enders, targets, self._settings, self._boot, bookmark)
        await aftermath.read()
        for session, left in aftermath.abandoned.items():
            self._unproven[session] = left.opened.identity_at_us + 1
        for task in await aftermath.begin(self._proven):
            self._watch(task)
        await aftermath.mark()
        self._aftermath = aftermath

    def listen(self) -> None:
        """Raises OSError."""
        assert self._listener is not None
        self._listener.listen(512)  # a storm of short connections fills 128

    async def serve(self) -> None:
        """Accept until cancelled."""
        assert self._listener is not None
        loop = asyncio.get_running_loop()
        self._spawn(self._tick())
        self._spawn(self._read_catalogs())
        if self._aftermath is not None:
            self._spawn(self._aftermath.keep())
        for place in self._places.values():  # each by itself: a database that does not answer must not hold up another's
            self._spawn(_keep(place.watch))
            self._spawn(_keep(place.kill))
        while True:
            try:
                sock, address = await loop.sock_accept(self._listener)
            except OSError as error:
                if error.errno not in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.ECONNABORTED):
                    raise
                await asyncio.sleep(0.1)  # out of descriptors: those who are here must be able to end
                continue
            host = str(address[0])
            if sum(self._logins.values()) >= self._settings.logins_max or (
                self._logins[host] >= self._settings.logins_per_address_max + self._settings.logins_waiting_per_address_max
            ):
                sock.close()
                continue
            self._logins[host] += 1
            self._spawn(self._client(sock, host, f"{host}:{address[1]}"))

    async def drain(self) -> None:
        """No new sessions; those that are open are told and end."""
        self._draining = True
        if self._listener is not None:
            self._listener.close()
        ends = [conversation.finished for conversation in self._conversations.values()]
        for conversation in list(self._conversations.values()):
            conversation.stop(Error("57P01", "terminating connection: the gateway shuts down", fatal=True), "shutdown")
        if ends:
            await asyncio.wait(ends, timeout=2 * self._settings.kill_seconds_max)
        for task in list(self._tasks):
            task.cancel()
        with contextlib.suppress(LogUnavailable):
            self._recorder.record("sessions", self._settings.gateway, GatewayStopped(now_us(), self._settings.gateway, self._boot))

    # -- what the directory tells ------------------------------------------------------------------------------------------------

    def identity_changed(self, agent: str, at_us: int) -> None:
        """A fact about this agent, or about EVERYONE, was recorded at `at_us`: hold each session that it may concern against it.

        Each is reviewed once. When this returns, every further statement is held against what is true now, and what must end is
        ending; `identity_at_us` tells when it has ended.
        """
        self._epoch += 1
        authorities: dict[tuple[str, str], Authority | Refusal] = {}
        for session in list(self._conversations if agent == EVERYONE else self._of_agent.get(agent, ())):
            conversation = self._conversations[session]
            self._review(conversation, at_us, authorities)
            if conversation.killing:
                self._unproven.setdefault(session, at_us)

    @property
    def identity_at_us(self) -> int:
        """Everything recorded about identities up to then is done here: known to every login, each session held against it, and
        what it forbids proven over by the end of its backend. 0 = nothing yet.
        """
        return min((self._registry.identity_at_us, *(at_us - 1 for at_us in self._unproven.values())))

    def ordered(self, order: SessionEndOrdered) -> None:
        conversation = self._conversations.get(order.session)
        if conversation is not None:
            self._kill(conversation, order.cause, order.cause_at_us, order.reason)

    def _review(self, conversation: Conversation, at_us: int, authorities: dict[tuple[str, str], Authority | Refusal]) -> None:
        """`authorities` of this moment, by agent and connection."""
        moment = now_us()
        stamp = conversation.stamp
        rests_on = Standing(
            stamp.session,
            stamp.agent,
            stamp.issuer,
            stamp.subject,
            stamp.on_behalf_of,
            frozenset(conversation.principal.groups),
            stamp.grants,
            conversation.identity_at_us,
        )
        ending = self._registry.ending(rests_on, moment)
        if ending is not None:
            self._kill(conversation, ending.cause, ending.at_us or at_us, ending.reason)
            return
        place = (stamp.agent, stamp.connection)
        authority = authorities.get(place)
        if authority is None:
            search_path = self._places[stamp.connection].target.search_path
            authority = authorities[place] = self._registry.authority(stamp.agent, stamp.connection, search_path, moment)
        if isinstance(authority, Refusal):
            self._kill(conversation, "grant revoked", at_us, authority.reason)
            return
        self._restrain(conversation)
        forbidden = conversation.authorize(authority, self._epoch)
        if forbidden:
            self._kill(conversation, "grant narrowed", at_us, f"what this session does is no longer allowed: {forbidden}")

    def _restrain(self, conversation: Conversation) -> None:
        agent = conversation.stamp.agent
        restraints = self._registry.restraints
        hold = ""
        if agent in restraints.holds:
            # The reason is the operators': it may tell an agent how it was found out.
            hold = f"agent {agent} is held: its statements are refused until an operator releases it with pgwarden release {agent}"
        throttle = restraints.throttles.get(agent)
        if throttle is None:
            self._paces.pop(agent, None)
            conversation.restrain(hold, None)
            return
        pace = self._paces.get(agent)
        if pace is None:
            pace = self._paces[agent] = Pace(throttle.per_minute)
        pace.change(throttle.per_minute)
        conversation.restrain(hold, pace)

    def _kill(self, conversation: Conversation, cause: str, at_us: int, reason: str) -> None:
        if not conversation.killing:  # an order and the identity event that it follows both arrive
            _log.info("ending session %s of agent %s: %s", conversation.stamp.session, conversation.stamp.agent, cause)
        conversation.kill(cause, at_us, reason)

    # -- one client ------------------------------------------------------------------------------------------------------------

    async def _client(self, sock: socket.socket, host: str, address: str) -> None:
        channel: Channel | None = None
        conversation: Conversation | None = None
        try:
            turn = self._turns.setdefault(host, asyncio.Semaphore(self._settings.logins_per_address_max))
            async with asyncio.timeout(self._settings.login_seconds_max), turn:
                tune(sock, self._settings)
                channel = await self._first_bytes(sock)
                if channel is not None:
                    conversation = await self._login(channel, host, address)
        except (PeerGone, TimeoutError, ssl.SSLError, ConnectionError, OSError):
            pass  # scanners, probes and clients that changed their mind: nothing was proven and nothing promised
        except (ProtocolViolation, ValueError) as violation:
            code = "0A000" if isinstance(violation, UnsupportedVersion) else "08P01"
            if channel is not None:
                channel.write(messages.error_response(Error(code, str(violation), fatal=True)))
        finally:
            self._logins[host] -= 1
            if not self._logins[host]:
                del self._logins[host]
                self._turns.pop(host, None)
            if conversation is None:
                if channel is not None:
                    await channel.finish(0.5)
                else:
                    sock.close()
        if conversation is not None:
            await self._converse(conversation)

    async def _first_bytes(self, sock: socket.socket) -> Channel | None:
        """Clear-text requests up to TLS or the startup packet. None: the peer is no PostgreSQL client."""
        loop = asyncio.get_running_loop()
        asked_tls = asked_gss = False
        async with asyncio.timeout(self._settings.first_bytes_seconds_max):
            while True:
                if not asked_tls and not asked_gss:
                    await _readable(sock)
                    if sock.recv(1, socket.MSG_PEEK) == bytes([_TLS_HANDSHAKE]):
                        channel = await self._encrypted(sock)
                        if channel.tls is None or channel.tls.selected_alpn_protocol() != "postgresql":
                            # PostgreSQL demands it, lest another protocol's client be talked into speaking to a database
                            channel.abort()
                            return None
                        return channel
                header = await _exactly(sock, 8)
                if header[:1] != b"\0":
                    sock.close()
                    return None
                length = packet_length(header[:4], self._settings.startup_bytes_max)
                packet = read_packet(header) if length == 8 else None
                if isinstance(packet, SSLRequest) and not asked_tls:
                    asked_tls = True
                    _nothing_follows(sock)
                    await loop.sock_sendall(sock, b"S")
                    return await self._encrypted(sock)
                if isinstance(packet, GSSENCRequest) and not asked_gss:
                    asked_gss = True
                    _nothing_follows(sock)
                    await loop.sock_sendall(sock, b"N")
                    continue
                if packet is not None:
                    raise ProtocolViolation("the same request came twice")
                channel = await _in_the_clear(sock)
                channel.unread(header)
                return channel

    async def _encrypted(self, sock: socket.socket) -> Channel:
        channel = Channel()
        await asyncio.get_running_loop().connect_accepted_socket(
            lambda: channel, sock, ssl=self._tls, ssl_handshake_timeout=self._settings.first_bytes_seconds_max
        )
        return channel

    async def _login(self, channel: Channel, host: str, address: str) -> Conversation | None:
        header = await channel.read(4)
        length = packet_length(header, self._settings.startup_bytes_max)
        packet = read_packet(header + await channel.read(length - 4))
        if isinstance(packet, CancelRequest):
            await self._cancel(packet, host, address)
            return None
        if not isinstance(packet, StartupMessage):
            raise ProtocolViolation("a request for encryption came inside the connection")
        await self._slow_down(host)  # every refusal is recorded, and nobody may fill the disk with them
        version = _negotiated(packet, channel)
        asked = request(packet)
        if isinstance(asked, Refusal):
            self._failed(host)
            self._deny(channel, packet.parameters.get("user", ""), "", address, Denied("28000", asked.reason, asked.reason, ""))
            return None
        encrypted = channel.tls is not None
        if not encrypted and not (self._settings.clear_text_from_loopback and _loopback(host)):
            self._failed(host)
            told = "clear text is refused: connect with sslmode=require or better"
            self._deny(channel, asked.user, asked.connection, address, Denied("28000", told, told, ""))
            return None
        proven = await self._admission.prove(channel, asked, self._channel_binding if encrypted else None, encrypted)
        if isinstance(proven, Denied):
            self._failed(host)
            self._deny(channel, asked.user, asked.connection, address, proven)
            return None
        admitted = self._admitted(proven, asked)
        if isinstance(admitted, Denied):
            self._deny(channel, asked.user, asked.connection, address, admitted)
            return None
        return await self._open(channel, packet, asked, proven, address, version)

    def _admitted(self, principal: Principal, asked: Request) -> Authority | Denied:
        """Whether this proven principal may have a session on this connection now."""

        def denied(sqlstate: str, told: str, reason: str = "") -> Denied:
            return Denied(sqlstate, told, reason or told, principal.method, principal.agent)

        if self._draining:
            return denied("57P03", "the gateway is shutting down")
        if not self._recorder.available:
            return denied(
                "57P03", "sessions cannot be recorded now, so none is opened: try again later", self._recorder.state().reason
            )
        if stale := self.why_stale():
            return denied("57P03", "what was revoked may not be known here, so no session is opened: try again later", stale)
        place = self._places.get(asked.connection)
        moment = now_us()
        if 0 < principal.expires_at_us <= moment:
            return denied("28000", "the token has expired: get a new one")
        barred = self._registry.barred(principal)
        if barred is not None:
            told = f"{barred.cause}: agent {principal.agent} may not connect; ask an operator"
            return denied("28000", told, barred.reason)
        if place is None:
            return denied("3D000", f'connection "{asked.connection[:63]}" does not exist: use a connection\'s name as the database')
        if asked.connection not in self._callable_names:
            return denied("57P03", f"connection {asked.connection} is not ready: its database cannot be reached")
        if len(self._conversations) >= self._settings.connections_max:
            return denied("53300", f"the gateway holds {self._settings.connections_max} sessions, which is its limit")
        authority = self._registry.authority(principal.agent, asked.connection, place.target.search_path, moment)
        if isinstance(authority, Refusal):
            return denied("42501", f"{authority.reason}: ask an operator for a grant")
        return authority

    async def _open(
        self, channel: Channel, startup: StartupMessage, asked: Request, principal: Principal, address: str, version: int
    ) -> Conversation | None:
        place = self._places[asked.connection]
        session = f"{time.time_ns() // 1_000_000:012x}{secrets.token_hex(4)}"
        parameters = upstream_parameters(
            asked,
            principal,
            session,
            role=place.target.role,
            database=place.target.database,
            search_path=place.target.search_path,
        )
        try:
            upstream = await connect(place.target, version, parameters, self._settings)
        except UpstreamRefused as refused:
            self._deny(
                channel,
                asked.user,
                asked.connection,
                address,
                Denied(refused.sqlstate, "", refused.reason, principal.method, principal.agent),
                refused.response,
            )
            return None
        try:
            conversation = await self._agree(channel, startup, asked, principal, address, place, upstream, session)
        except BaseException:
            upstream.channel.abort()
            if not any(one.upstream is upstream for one in self._conversations.values()):
                self._backend_opened("refused", place.target.name, Backend(upstream.pid, 0), upstream.local_port)
            raise
        if conversation is None:
            upstream.channel.abort()
        return conversation

    def _control_opened(self, connection: str, backend: Backend, port: int) -> None:
        self._backend_opened("control", connection, backend, port)

    def _backend_opened(self, purpose: str, connection: str, backend: Backend, port: int) -> None:
        """Tell of a backend that is no agent's session. One that cannot be told is taken for a stranger's, and looked into."""
        role = self._places[connection].target.role
        event = BackendOpened(
            now_us(), self._settings.gateway, self._boot, purpose, connection, role, backend.pid, backend.start_us, port
        )
        with contextlib.suppress(LogUnavailable):
            self._recorder.record("sessions", self._settings.gateway, event)

    async def _agree(
        self,
        channel: Channel,
        startup: StartupMessage,
        asked: Request,
        principal: Principal,
        address: str,
        place: Place,
        upstream: Upstream,
        session: str,
    ) -> Conversation | None:
        try:
            backend_start_us = await place.watch.backend_start_us(upstream.pid)
        except ControlFailed as failed:
            told = f"connection {place.target.name} is not ready: try again later"
            denied = Denied("57P03", told, f"control connection: {failed}", principal.method, principal.agent)
            self._backend_opened("refused", place.target.name, Backend(upstream.pid, 0), upstream.local_port)
            self._deny(channel, asked.user, asked.connection, address, denied)
            return None
        # From here to the registration below nothing is awaited: a revocation is seen either by this check or by the registry of
        # sessions, never by neither.
        authority = self._admitted(principal, asked)
        if isinstance(authority, Denied):
            self._backend_opened("refused", place.target.name, Backend(upstream.pid, backend_start_us), upstream.local_port)
            self._deny(channel, asked.user, asked.connection, address, authority)
            return None
        stamp = Stamp(
            session,
            principal.agent,
            principal.subject,
            principal.issuer,
            principal.on_behalf_of,
            principal.actors,
            principal.invocation,
            principal.task,
            principal.unverified,
            tuple(grant.id for grant in authority.grants),
            tuple(grant.approver for grant in authority.grants),
            place.target.name,
            place.target.database,
            place.target.role,
            address,
            upstream.pid,
            backend_start_us,
            upstream.local_port,
        )
        core = Session(
            authority,
            self._epoch,
            place.target.durability,
            self._settings,
            self._texts.analyze,
            lambda: self._callable_names.get(place.target.name, frozenset()),
            {name: upstream.parameters[name] for name in WATCHED if name in upstream.parameters},
        )
        conversation = Conversation(
            channel,
            upstream,
            place.target,
            self._enders[place.target.name],
            self._recorder,
            stamp,
            principal,
            core,
            self._texts.analyze_elsewhere,
            self._settings,
            self.decisions,
        )
        conversation.identity_at_us = self._registry.identity_at_us
        if self._aftermath is not None:
            self._aftermath.opening(session)
        self._conversations[session] = conversation
        self._of_agent.setdefault(principal.agent, set()).add(session)
        self._restrain(conversation)
        self._cancel_keys[(upstream.pid, upstream.key)] = session
        deadline_us = _earliest(principal.expires_at_us, *(grant.expires_at_us for grant in authority.grants))
        tls = channel.tls
        try:
            ticket = self._recorder.record(
                "sessions",
                principal.agent,
                SessionOpened(
                    now_us(),
                    stamp,
                    principal.method,
                    principal.credential,
                    deadline_us,
                    asked.application_name,
                    (tls.version() or "") if tls is not None else "",
                    f"3.{startup.version & 0xFFFF}",
                    place.target.durability,
                    principal.groups,
                    conversation.identity_at_us,
                ),
            )
            if self.silent_seconds is not None:
                self._unshipped.add(session)
                self._recorder.brokers.when(ticket, lambda: self._unshipped.discard(session))
            if place.target.durability != "fast":
                async with asyncio.timeout(self._settings.record_seconds_max):
                    await horizon(self._recorder, place.target.durability).passed(ticket)
        except TimeoutError:
            self._never_began(conversation, "its opening could not be recorded in time")
            self._forget(conversation, upstream)
            told = "the record of this session is not safe yet, so it is not opened: try again later"
            denied = Denied("58030", told, told, principal.method, principal.agent)
            self._deny(channel, asked.user, asked.connection, address, denied)
            return None
        except BaseException:
            self._never_began(conversation, "its login was broken off")
            self._forget(conversation, upstream)
            raise
        self.counters.sessions_opened += 1
        channel.write(messages.AUTHENTICATION_OK + upstream.greeting)
        return conversation

    async def _converse(self, conversation: Conversation) -> None:
        try:
            conversation.begin()
            await asyncio.shield(conversation.finished)
        finally:
            self._forget(conversation, conversation.upstream)
            self.counters.statements += conversation.core.executions
            self.counters.denied += conversation.core.denied
            if (killed := conversation.killed) is not None:
                self.counters.killed += 1
                self.counters.unproven += not killed.backend_gone_us
                if killed.backend_gone_us:
                    self.kills.observe(max(0, killed.backend_gone_us - killed.requested_us) / 1e6)

    def _never_began(self, conversation: Conversation, reason: str) -> None:
        """Its opening is recorded, or may be, so its end is too."""
        if not conversation.killing:
            stamp = conversation.stamp
            event = SessionClosed(now_us(), stamp.session, stamp.agent, reason, "58030", 0, 0, 0, 0)
            with contextlib.suppress(LogUnavailable):
                self._recorder.record("sessions", stamp.agent, event)
                conversation.end_recorded = True

    def _forget(self, conversation: Conversation, upstream: Upstream) -> None:
        stamp = conversation.stamp
        if self._aftermath is not None:
            self._aftermath.over(stamp.session, recorded=conversation.end_recorded)
        self._conversations.pop(stamp.session, None)
        self._unshipped.discard(stamp.session)
        if stamp.session in self._unproven:
            if conversation.killed is not None and conversation.killed.backend_gone_us:
                del self._unproven[stamp.session]
            else:
                self._spawn(self._prove(stamp))
        self._cancel_keys.pop((upstream.pid, upstream.key), None)
        sessions = self._of_agent.get(stamp.agent, set())
        sessions.discard(stamp.session)
        if not sessions:
            self._of_agent.pop(stamp.agent, None)

    async def _prove(self, stamp: Stamp) -> None:
        """The session is over for us and for its client, and for its backend we could not tell in time."""
        backend = Backend(stamp.backend_pid, stamp.backend_start_us)
        gone_us = 0
        while not gone_us:
            await asyncio.sleep(self._settings.prove_again_seconds)
            gone_us = await self._enders[stamp.connection].end(backend)
        self._proven(stamp.session)

    def _proven(self, session: str) -> None:
        self._unproven.pop(session, None)

    # -- refusals --------------------------------------------------------------------------------------------------------------

    def _deny(
        self, channel: Channel, claimed: str, connection: str, address: str, denied: Denied, response: bytes | None = None
    ) -> None:
        """Tell the client, and record the attempt first."""
        self.counters.sessions_denied += 1
        event = SessionDenied(
            now_us(), claimed[:63], denied.agent, connection[:63], address, denied.sqlstate, denied.reason, denied.method
        )
        with contextlib.suppress(LogUnavailable):
            self._recorder.record("sessions", denied.agent or claimed[:63], event)
        channel.write(response or messages.error_response(Error(denied.sqlstate, denied.told, fatal=True)))

    def _failed(self, host: str) -> None:
        self._failures.setdefault(host, deque(maxlen=self._settings.failures_per_minute_max)).append(time.monotonic())

    async def _slow_down(self, host: str) -> None:
        failures = self._failures.get(host)
        if failures is None:
            return
        while failures and time.monotonic() - failures[0] > 60:
            failures.popleft()
        if not failures:
            del self._failures[host]
        elif len(failures) >= self._settings.failures_per_minute_max:
            await asyncio.sleep(self._settings.failure_delay_seconds)

    async def _cancel(self, packet: CancelRequest, host: str, address: str) -> None:
        """Answered with nothing, and closed only once the server has taken it: libpq waits for that (manual 54.2.8)."""
        session = self._cancel_keys.get((packet.pid, packet.key))
        conversation = self._conversations.get(session) if session is not None else None
        if conversation is None:
            strays = self._stray_cancels.setdefault(host, deque(maxlen=self._settings.cancels_per_minute_max))
            strays.append(time.monotonic())
            if len(strays) == strays.maxlen and time.monotonic() - strays[0] < 60:
                await asyncio.sleep(self._settings.failure_delay_seconds)
            return
        with contextlib.suppress(LogUnavailable):
            self._recorder.record(
                "sessions",
                conversation.stamp.agent,
                StatementCancelled(now_us(), conversation.stamp.session, conversation.stamp.agent, address),
            )
        await conversation.cancel()

    # -- recording -------------------------------------------------------------------------------------------------------------

    def _recording_changed(self, state: RecorderState) -> None:
        reason = "" if state.available else (state.reason or "the log does not answer")
        for conversation in self._conversations.values():
            conversation.recording(reason)
        refused = self.refused_unrecorded()
        if not state.available and self._outage is None:
            self._outage = (now_us(), reason)
            self._refused_before = refused
            _log.error("the log takes no records, so no statement is forwarded: %s", reason)
        elif state.available and self._outage is not None:
            since_us, why = self._outage
            self._outage = None
            _log.warning("the log takes records again")
            event = RecordingStopped(now_us(), self._settings.gateway, since_us, refused - self._refused_before, why)
            with contextlib.suppress(LogUnavailable):
                self._recorder.record("sessions", self._settings.gateway, event)

    def refused_unrecorded(self) -> int:
        return sum(conversation.core.unrecorded for conversation in self._conversations.values())

    # -- time ------------------------------------------------------------------------------------------------------------------

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(0.25)
            moment = now_us()
            for conversation in list(self._conversations.values()):
                conversation.tick()
                expires_at_us = conversation.principal.expires_at_us
                if 0 < expires_at_us <= moment:
                    self._kill(conversation, "token expired", expires_at_us, "the token that this session rests on has expired")
            for grant in self._registry.expired_between(self._expired_until_us, moment):
                self.identity_changed(grant.agent, grant.expires_at_us)
            self._expired_until_us = moment
            self._end_unheard_of(moment)

    def _end_unheard_of(self, moment: int) -> None:
        """What is revoked does not reach us, and of a session whose opening was not shipped no watchdog and no worker knows."""
        if not self._unshipped or self.silent_seconds is None:
            return
        silent = self.silent_seconds()
        if silent <= self._settings.unshipped_seconds_max:
            return
        for session in list(self._unshipped):
            if (conversation := self._conversations.get(session)) is not None and not conversation.killing:
                reason = f"nothing was heard of the brokers for {silent:.0f} s, and they have not heard of this session"
                self._kill(conversation, "not shipped", moment, reason)

    def _forget_failures(self) -> None:
        """What is older than the minute that counts."""
        oldest = time.monotonic() - 60
        for counted in (self._failures, self._stray_cancels):
            for host in [host for host, moments in counted.items() if moments[-1] < oldest]:
                del counted[host]

    async def _read_catalogs(self) -> None:
        while True:
            await self.read_catalogs()
            self._forget_failures()
            await asyncio.sleep(self._settings.catalog_seconds if len(self._callable_names) == len(self._places) else 1.0)

    async def read_catalogs(self) -> None:
        """Read the names of user-defined functions anew, and connect the connection that kills need."""
        for name, place in self._places.items():
            try:
                self._callable_names[name] = await place.watch.callable_names()
                await place.kill.keep()
            except ControlFailed as failed:
                _log.warning("connection %s: %s", name, failed)

    # -- status ----------------------------------------------------------------------------------------------------------------

    def report(self, backlog_bytes: int) -> GatewayReported:
        state, total = self._recorder.state(), self._totals()
        return GatewayReported(
            at_us=now_us(),
            gateway=self._settings.gateway,
            boot=self._boot,
            pid=os.getpid(),
            available=state.available,
            since_us=state.since_us,
            reason=state.reason,
            refused=self._refused_now(),
            pending_bytes=state.pending_bytes,
            backlog_bytes=backlog_bytes,
            identity_at_us=self.identity_at_us,
            sessions=len(self._conversations),
            statements=total.statements,
            denied=total.denied,
            sessions_opened=total.sessions_opened,
            sessions_denied=total.sessions_denied,
            killed=total.killed,
        )

    def needed(self) -> Mapping[Partition, int]:
        """From where on the next start may have to read the record; {} while that is not known."""
        return self._aftermath.needed() if self._aftermath is not None else {}

    def _refused_now(self) -> int:
        return self.refused_unrecorded() - self._refused_before if self._outage else 0

    def _totals(self) -> Counters:
        """With what the open sessions have counted so far."""
        live = self._conversations.values()
        return replace(
            self.counters,
            statements=self.counters.statements + sum(conversation.core.executions for conversation in live),
            denied=self.counters.denied + sum(conversation.core.denied for conversation in live),
        )

    def status(self) -> Mapping[str, object]:
        state, total = self._recorder.state(), self._totals()
        live = list(self._conversations.values())
        return {
            "identity_at_us": self.identity_at_us,
            "unproven": sorted(self._unproven),
            "log": {
                "available": state.available,
                "since_us": self._outage[0] if self._outage else 0,
                "reason": state.reason,
                "refused": self._refused_now(),
                "pending_bytes": state.pending_bytes,
            },
            "sessions": [
                {
                    "session": conversation.stamp.session,
                    "agent": conversation.stamp.agent,
                    "connection": conversation.stamp.connection,
                    "client": conversation.stamp.client,
                    "backend_pid": conversation.stamp.backend_pid,
                    "opened_us": conversation.opened_us,
                    "state": conversation.core.state,
                }
                for conversation in live
            ],
            "counters": asdict(total),
            "decisions": self.decisions.facts(),
            "kills": self.kills.facts(),
            "appends": self._recorder.appends.facts(),
            "connections": {name: {"ready": name in self._callable_names} for name in self._places},
        }

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        self._watch(asyncio.create_task(work))

    def _watch(self, task: asyncio.Task[None]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            asyncio.get_running_loop().call_exception_handler({"message": "a connection failed", "exception": error})


async def _keep(control: Control) -> None:
    """A gateway whose control connections are gone for seconds passes for dead: the watchdog ends its sessions."""
    while True:
        with contextlib.suppress(ControlFailed):
            await control.keep()
        await asyncio.sleep(1.0)


def _negotiated(startup: StartupMessage, channel: Channel) -> int:
    """The version that both sides speak from here on; tell the client where it is not the one it asked for."""
    if startup.version > VERSION_3_2 or startup.unknown_options:
        agreed = min(startup.version, VERSION_3_2)
        channel.write(messages.negotiate_protocol_version(VERSION_3_2, list(startup.unknown_options)))
    else:
        agreed = startup.version
    return agreed if agreed == VERSION_3_2 else VERSION_3_0  # 3.1 was never spoken


async def _in_the_clear(sock: socket.socket) -> Channel:
    channel = Channel()
    await asyncio.get_running_loop().connect_accepted_socket(lambda: channel, sock)
    return channel


async def _readable(sock: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()
    loop.add_reader(sock.fileno(), lambda: None if ready.done() else ready.set_result(None))
    try:
        await ready
    finally:
        loop.remove_reader(sock.fileno())


async def _exactly(sock: socket.socket, size: int) -> bytes:
    loop = asyncio.get_running_loop()
    data = b""
    while len(data) < size:
        more = await loop.sock_recv(sock, size - len(data))
        if not more:
            raise PeerGone
        data += more
    return data


def _nothing_follows(sock: socket.socket) -> None:
    """Bytes sent in the clear before the handshake must not pass for encrypted ones (CVE-2021-23214)."""
    try:
        waiting = sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except BlockingIOError:
        return
    if waiting:
        raise ProtocolViolation("received unencrypted data after a request for encryption")


def _loopback(host: str) -> bool:
    return host.startswith("127.") or host == "::1"


def _earliest(*moments_us: int) -> int:
    return min((moment for moment in moments_us if moment), default=0)
