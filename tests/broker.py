"""A real Apache Kafka for tests: brokers in KRaft mode, started from jars that Maven fetched, on loopback, gone with the tests.

`make kafka` brings the jars into .venv/kafka/lib; PGWARDEN_KAFKA_LIB names another folder. `python -m tests.broker` archives what a
broker's start loads of them.
"""

from __future__ import annotations

import base64
import contextlib
import datetime
import ipaddress
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Literal

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from ingest.log import topics
from ingest.settings import KafkaSettings
from pgwarden.postgres import die_with_parent

HOST: Final = "127.0.0.1"
HEAP_MB: Final = 384
CLASSES: Final = "classes.jsa"  # beside the jars: their classes as Java keeps them, with which a broker starts in half the time
START_SECONDS_MAX: Final = 120.0  # 3 to 5 s on a quiet machine
STOP_SECONDS_MAX: Final = 30.0
# Below the kernel's own range (ip_local_port_range, from 32768): else a connection to somebody takes the port of a broker that is
# down for a moment, and it cannot come back.
PORTS: Final = range(20_000, 32_000)
# Each is tried once: of a few thousand pairs, chosen one by one before anybody listens there, some would be the same port.
_untried: Final = iter(random.sample(PORTS, len(PORTS)))

USER: Final = "warden"
PASSWORD: Final = "canary-of-the-broker-password"

_READY: Final = "Kafka Server started"
_LOG4J: Final = """\
rootLogger.level=WARN
rootLogger.appenderRef.c.ref=C
appender.c.type=Console
appender.c.name=C
appender.c.layout.type=PatternLayout
appender.c.layout.pattern=%d %p %c - %m%n
logger.ready.name=kafka.server.KafkaRaftServer
logger.ready.level=INFO
"""


class BrokerFailed(Exception):
    """It could not be formatted, started or ended. Says what the broker's own log says last."""


def jars() -> Path | None:
    """The folder of Kafka's jars, where they are there and Java is too."""
    named = os.environ.get("PGWARDEN_KAFKA_LIB")
    folder = Path(named) if named else Path(__file__).parent.parent / ".venv" / "kafka" / "lib"
    found = next(folder.glob("kafka-clients-*.jar"), None) is not None and shutil.which("java") is not None
    return folder if found else None


def port() -> int:
    """A port that nobody listens on, and that nobody gets by chance while its broker is down."""
    for candidate in _untried:
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe, contextlib.suppress(OSError):
            probe.bind((HOST, candidate))
            return candidate
    raise BrokerFailed("no port is free")


@dataclass(frozen=True, slots=True)
class Certificates:
    """One authority, the brokers' certificate and a client's, as PEM files."""

    folder: Path

    @property
    def ca(self) -> Path:
        return self.folder / "ca.pem"

    @property
    def broker(self) -> Path:
        """Key and chain in one file, as Kafka's `ssl.keystore.location` wants it."""
        return self.folder / "broker.pem"

    @property
    def client(self) -> Path:
        return self.folder / "client.pem"

    @property
    def client_key(self) -> Path:
        return self.folder / "client.key"


def make_certificates(folder: Path) -> Certificates:
    made = Certificates(folder)
    folder.mkdir(parents=True, exist_ok=True)
    ca_key = ec.generate_private_key(ec.SECP256R1())
    ca_name = _name("test authority")
    ca = _certificate(ca_name, ca_key.public_key(), ca_name, ca_key, ca=True)
    made.ca.write_bytes(ca.public_bytes(serialization.Encoding.PEM))
    for name, certificate_file, key_file in (("broker", made.broker, made.broker), ("client", made.client, made.client_key)):
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = _certificate(_name(name), key.public_key(), ca_name, ca_key, ca=False)
        key_pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        key_file.touch(mode=0o600)
        key_file.write_bytes(key_pem)
        with certificate_file.open("ab") as file:
            file.write(certificate.public_bytes(serialization.Encoding.PEM))
    return made


class Broker:
    """One node, broker and controller in one. `start` from the thread that lives as long as it should: it dies with that thread.

    Listens in clear text at `bootstrap`; with certificates also at `sasl_bootstrap` (TLS; PLAIN, SCRAM-SHA-256 and SCRAM-SHA-512
    as USER with PASSWORD) and `tls_bootstrap` (TLS; a client certificate is required). Ports and data outlive every stop.
    """

    def __init__(
        self,
        directory: Path,
        lib: Path,
        *,
        certificates: Certificates | None = None,
        node: int = 1,
        heap_mb: int = HEAP_MB,
        cluster: str | None = None,
        listen_port: int = 0,
        controllers: Sequence[tuple[int, int]] = (),  # (node, port) of all nodes; () = of this one
        archive: Path | None = None,  # to write the classes to that it loads, as it ends
    ) -> None:
        self.directory = directory
        self.node = node
        self.port = listen_port or port()
        self._controller_port = dict(controllers).get(node) or port()
        self._controllers = controllers or ((node, self._controller_port),)
        self._sasl_port = port() if certificates else 0
        self._tls_port = port() if certificates else 0
        self._certificates = certificates
        self._lib = lib
        self._archive = archive
        self._heap_mb = heap_mb
        self._cluster = cluster or _cluster_id()
        self._process: subprocess.Popen[bytes] | None = None
        self._log_from = 0

    def __enter__(self) -> Broker:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.kill9()

    @property
    def bootstrap(self) -> str:
        return f"{HOST}:{self.port}"

    @property
    def sasl_bootstrap(self) -> str:
        return f"{HOST}:{self._sasl_port}"

    @property
    def tls_bootstrap(self) -> str:
        return f"{HOST}:{self._tls_port}"

    @property
    def certificates(self) -> Certificates:
        assert self._certificates is not None, "this broker was made without certificates"
        return self._certificates

    @property
    def data(self) -> Path:
        return self.directory / "data"

    @property
    def log_path(self) -> Path:
        """What the broker printed, over all its starts."""
        return self.directory / "kafka.log"

    @property
    def pid(self) -> int:
        """0 when it does not run."""
        return self._process.pid if self._process is not None and self._process.poll() is None else 0

    def start(self) -> None:
        """Return once it serves: first with empty data, later with what it had.

        Raises:
            BrokerFailed: Nothing runs.
        """
        self.launch()
        self.wait_ready()

    def launch(self) -> None:
        """Begin to start. A cluster's nodes are all launched before any of them can be ready."""
        if self.pid:
            return
        self.directory.mkdir(parents=True, exist_ok=True)
        (self.directory / "log4j2.properties").write_text(_LOG4J)
        configuration = self.directory / "server.properties"
        configuration.touch(mode=0o600)
        configuration.write_text("".join(f"{name}={value}\n" for name, value in self._properties()))
        if not (self.data / "meta.properties").exists():
            self._format(configuration)
        self._log_from = self.log_path.stat().st_size if self.log_path.exists() else 0
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                [*self._java(self._heap_mb, self._archive), "kafka.Kafka", str(configuration)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.directory,
                start_new_session=True,
                preexec_fn=die_with_parent(signal.SIGKILL),
            )

    def wait_ready(self) -> None:
        assert self._process is not None
        until = time.monotonic() + START_SECONDS_MAX
        while _READY not in self.said():
            if self._process.poll() is not None or time.monotonic() > until:
                self.kill9()
                raise BrokerFailed(f"broker {self.node} did not start: {self.said()[-2000:]}")
            time.sleep(0.02)

    def stop(self) -> None:
        """End it in good order (SIGTERM), and return once it is gone."""
        process = self._process
        if process is None:
            return
        if process.poll() is None:
            process.send_signal(signal.SIGCONT)
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(STOP_SECONDS_MAX)
        self.kill9()

    def kill9(self) -> None:
        """End it without a word, and return once it is gone. Its data stays."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait(STOP_SECONDS_MAX)

    def pause(self) -> None:
        """SIGSTOP: its sockets stay open, and nothing answers."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        self.pause()
        try:
            yield
        finally:
            self.resume()

    def restart(self) -> None:
        self.stop()
        self.start()

    def said(self) -> str:
        """What it printed since it was last started."""
        try:
            with self.log_path.open("rb") as log:
                log.seek(self._log_from)
                return log.read().decode("utf-8", "replace")
        except FileNotFoundError:
            return ""

    # -- making it ---------------------------------------------------------------------------------------------------------------

    def _properties(self) -> Iterator[tuple[str, object]]:
        listeners = {"PLAINTEXT": (self.port, "PLAINTEXT"), "CONTROLLER": (self._controller_port, "PLAINTEXT")}
        if self._certificates is not None:
            listeners |= {"SASL_SSL": (self._sasl_port, "SASL_SSL"), "SSL": (self._tls_port, "SSL")}
        addresses = ",".join(f"{name}://{HOST}:{number}" for name, (number, _) in listeners.items())
        copies = min(3, len(self._controllers))
        yield "process.roles", "broker,controller"
        yield "node.id", self.node
        yield "controller.quorum.voters", ",".join(f"{node}@{HOST}:{number}" for node, number in self._controllers)
        yield "controller.listener.names", "CONTROLLER"
        yield "listeners", addresses
        yield "advertised.listeners", addresses
        yield "listener.security.protocol.map", ",".join(f"{name}:{kind}" for name, (_, kind) in listeners.items())
        yield "inter.broker.listener.name", "PLAINTEXT"
        yield "log.dirs", self.data
        yield "auto.create.topics.enable", "false"  # what is missing must be seen to be missing
        yield "offsets.topic.replication.factor", copies
        yield "offsets.topic.num.partitions", 4
        yield "transaction.state.log.replication.factor", copies
        yield "transaction.state.log.min.isr", max(1, copies - 1)
        yield "transaction.state.log.num.partitions", 4
        yield "share.coordinator.state.topic.replication.factor", copies
        yield "share.coordinator.state.topic.min.isr", max(1, copies - 1)
        yield "group.initial.rebalance.delay.ms", 0
        yield "group.min.session.timeout.ms", 1000
        yield "broker.heartbeat.interval.ms", 500
        # A dead broker's partitions move after this long; one that was killed is let in again after it.
        yield "broker.session.timeout.ms", 3000 if len(self._controllers) == 1 else 6000
        # Small, since two cores and their memory are shared with everything else.
        yield "num.network.threads", 2
        yield "num.io.threads", 2
        yield "background.threads", 2
        yield "log.cleaner.dedupe.buffer.size", 4 * 2**20
        yield "log.index.size.max.bytes", 2**20
        yield "log.segment.delete.delay.ms", 1000  # a finished test's topics give their files back soon
        if (certificates := self._certificates) is None:
            return
        for name in ("sasl_ssl", "ssl"):
            yield f"listener.name.{name}.ssl.keystore.type", "PEM"
            yield f"listener.name.{name}.ssl.keystore.location", certificates.broker
            yield f"listener.name.{name}.ssl.truststore.type", "PEM"
            yield f"listener.name.{name}.ssl.truststore.location", certificates.ca
        yield "listener.name.ssl.ssl.client.auth", "required"
        yield "listener.name.sasl_ssl.sasl.enabled.mechanisms", "PLAIN,SCRAM-SHA-256,SCRAM-SHA-512"
        security = "org.apache.kafka.common.security"
        yield (
            "listener.name.sasl_ssl.plain.sasl.jaas.config",
            f'{security}.plain.PlainLoginModule required user_{USER}="{PASSWORD}";',
        )
        for mechanism in ("scram-sha-256", "scram-sha-512"):
            yield f"listener.name.sasl_ssl.{mechanism}.sasl.jaas.config", f"{security}.scram.ScramLoginModule required;"

    def _format(self, configuration: Path) -> None:
        users = []
        if self._certificates is not None:
            for mechanism in ("SCRAM-SHA-256", "SCRAM-SHA-512"):
                users += ["--add-scram", f"{mechanism}=[name={USER},password={PASSWORD}]"]
        command = ["kafka.tools.StorageTool", "format", f"--cluster-id={self._cluster}", "-c", str(configuration), *users]
        done = subprocess.run(
            [*self._java(128), *command],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=START_SECONDS_MAX,
            cwd=self.directory,
            check=False,
        )
        if done.returncode != 0:
            raise BrokerFailed(f"broker {self.node} was not formatted: {(done.stdout + done.stderr)[-2000:]}")

    def _java(self, heap_mb: int, archive: Path | None = None) -> list[str]:
        archived = self._lib / CLASSES
        sharing = f"-XX:ArchiveClassesAtExit={archive}" if archive else f"-XX:SharedArchiveFile={archived}"
        return [
            "java",
            *([sharing] if archive or archived.exists() else []),
            f"-Xms{min(heap_mb, 128)}m",
            f"-Xmx{heap_mb}m",
            "-XX:+UseSerialGC",
            "-XX:TieredStopAtLevel=1",  # starts in half the time of the optimizing compiler
            "-Djava.awt.headless=true",
            f"-Dlog4j2.configurationFile={self.directory / 'log4j2.properties'}",
            "-cp",
            f"{self._lib}/*",
        ]


class Cluster:
    """Several brokers of one cluster, each also a controller: with three, any one may be gone."""

    def __init__(self, directory: Path, lib: Path, count: int = 3, heap_mb: int = 256) -> None:
        controllers: list[tuple[int, int]] = [(node, port()) for node in range(1, count + 1)]
        cluster = _cluster_id()
        self.brokers: tuple[Broker, ...] = tuple(
            Broker(directory / f"broker-{node}", lib, node=node, heap_mb=heap_mb, cluster=cluster, controllers=controllers)
            for node, _ in controllers
        )

    def __enter__(self) -> Cluster:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for broker in self.brokers:
            broker.kill9()

    @property
    def bootstrap(self) -> tuple[str, ...]:
        return tuple(broker.bootstrap for broker in self.brokers)

    def start(self) -> None:
        try:
            for broker in self.brokers:
                broker.launch()
            for broker in self.brokers:
                broker.wait_ready()
        except BaseException:
            for broker in self.brokers:
                broker.kill9()
            raise


Listener = Literal["plaintext", "sasl", "tls"]

# Fewer than in production, so that a test's topics are made in a moment; several wherever a topic may have several.
PARTITIONS: Final = {
    "identity": 1,
    "commands": 1,
    "sessions": 2,
    "statements": 4,
    "findings": 2,
    "observations": 2,
    "witness": 2,
    "looks": 1,
    "checkpoints": 1,
}


def settings(broker: Broker | Cluster, prefix: str, listener: Listener = "plaintext") -> KafkaSettings:
    """As one test wants them: topics of its own, one copy of each on a single broker and three on a cluster."""
    if isinstance(broker, Cluster):
        copies = len(broker.brokers)
        return KafkaSettings(
            broker.bootstrap, False, topic_prefix=prefix, partitions=PARTITIONS, replication=copies, in_sync_min=max(1, copies - 1)
        )
    if listener == "plaintext":
        return KafkaSettings((broker.bootstrap,), False, topic_prefix=prefix, partitions=PARTITIONS, replication=1, in_sync_min=1)
    certificates = broker.certificates
    secure = KafkaSettings(
        (broker.sasl_bootstrap if listener == "sasl" else broker.tls_bootstrap,),
        True,
        ca_file=str(certificates.ca),
        certificate_file=str(certificates.client) if listener == "tls" else "",
        key_file=str(certificates.client_key) if listener == "tls" else "",
        sasl="SCRAM-SHA-512" if listener == "sasl" else "",
        user=USER if listener == "sasl" else "",
        password=(lambda: PASSWORD) if listener == "sasl" else str,
        topic_prefix=prefix,
        partitions=PARTITIONS,
        replication=1,
        in_sync_min=1,
    )
    return secure


def remove_topics(settings: KafkaSettings) -> None:
    """So that a session of a thousand tests does not end with a thousand tests' topics on one small broker."""
    from kafka import KafkaAdminClient

    from ingest.log.brokers import connected

    admin = connected(KafkaAdminClient, settings, settings.connect_seconds_max, 30.0)
    try:
        admin.delete_topics([one.name for one in topics.wanted(settings)], raise_errors=False)
    finally:
        admin.close()


def _cluster_id() -> str:
    return base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


def _certificate(
    name: x509.Name, key: ec.EllipticCurvePublicKey, issuer: x509.Name, issuer_key: ec.EllipticCurvePrivateKey, *, ca: bool
) -> x509.Certificate:
    now = datetime.datetime.now(datetime.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False)
    )
    if ca:
        usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
        builder = builder.add_extension(usage, critical=True)
    else:
        names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(HOST)), x509.DNSName("localhost")])
        builder = builder.add_extension(names, critical=False)
    return builder.sign(issuer_key, hashes.SHA256())


def archive_classes(lib: Path) -> None:
    """Let one broker start and end, and keep the classes that it loaded ("java" manual, -XX:ArchiveClassesAtExit)."""
    with tempfile.TemporaryDirectory() as folder, Broker(Path(folder), lib, archive=lib / CLASSES) as broker:
        broker.stop()


if __name__ == "__main__":
    archive_classes(Path(sys.argv[1]))
