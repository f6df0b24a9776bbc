"""What docker-compose.yml describes, as processes: two gateways, two workers, a watchdog, a collector, the API, the dashboard; one
Kafka, one PostgreSQL, and a real Keycloak."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
import pytest
import yaml

from ingest.events import StatementObserved
from pgwarden.cli import parser
from tests.keycloak import Keycloak, home
from tests.system.topology import COMPOSE, ROOT, Topology, services, until

if TYPE_CHECKING:
    from pgwarden.postgres import Postgres
    from tests.broker import Broker

ORDERS = {"schema": "public", "tables": ["orders"], "operations": ["select", "insert"]}


def test_the_roles_are_all_there() -> None:
    commands = [command[0] for command in services().values()]
    assert sorted(commands) == ["api", "collector", "dashboard", "gateway", "gateway", "watchdog", "worker", "worker"]


@pytest.mark.parametrize("service", services())
def test_every_command_and_health_check_is_one_that_pgwarden_has(service: str) -> None:
    parser().parse_args(services()[service])
    parser().parse_args(COMPOSE["services"][service]["healthcheck"]["test"][2:])


def test_nothing_secret_and_no_open_port_stands_in_the_file() -> None:
    text = (ROOT / "docker-compose.yml").read_text()
    assert "PASSWORD:" not in text
    for service in COMPOSE["services"].values():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ()))
        assert not service.get("privileged")


def test_every_folder_that_is_mounted_is_a_volume_that_is_declared() -> None:
    declared = set(COMPOSE["volumes"])
    mounted = {mount.split(":")[0] for service in COMPOSE["services"].values() for mount in service.get("volumes", ())}
    assert mounted == declared


def test_nobody_shares_the_network_of_a_process_that_may_start_anew() -> None:
    """A container whose network another one holds loses it when that one starts anew, and is reached by nobody from then on."""
    holders = {
        mode.partition(":")[2]
        for service in COMPOSE["services"].values()
        if (mode := service.get("network_mode", "none")) != "none"
    }
    assert holders == {"front"}
    assert COMPOSE["services"]["front"]["entrypoint"] == ["sleep", "infinity"]


def test_our_image_is_built_here_and_asked_of_no_registry() -> None:
    for name, service in COMPOSE["services"].items():
        if service["image"] == "pgwarden":
            assert ("build" in service) == (name == "setup")
            assert service.get("pull_policy") == ("never" if name != "setup" else None)


def test_setup_run_twice_changes_no_secret(tmp_path: Path) -> None:
    def run() -> dict[str, bytes]:
        subprocess.run([sys.executable, str(ROOT / "deploy/setup.py"), str(tmp_path)], check=True, env={"PYTHONPATH": str(ROOT)})
        return {str(path): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    assert run() == run()
    for path in tmp_path.rglob("*"):
        if path.is_file() and path.suffix != ".pem":
            assert path.stat().st_mode & 0o077 == 0, path


def test_the_realm_and_the_compose_file_are_what_their_readers_expect() -> None:
    realm = yaml.safe_load((ROOT / "deploy" / "realm.json").read_text())
    assert realm["realm"] == "agents"
    assert [client["clientId"] for client in realm["clients"]] == ["reporter"]


@pytest.fixture
def topology(
    needs: Callable[[str, bool], None], own_broker: Broker, postgres: Postgres, tmp_path: Path
) -> Iterator[tuple[Topology, Keycloak]]:
    needs("keycloak", home() is not None)
    made = Topology(
        tmp_path,
        (own_broker.bootstrap,),
        postgres.host,
        postgres.port,
        postgres.dsn("postgres"),
        "@issuer@",
        server_log=postgres.log_folder,
    )
    with Keycloak(tmp_path / "keycloak", tmp_path / "pgwarden" / "ca.pem") as keycloak:
        for file in (tmp_path / "pgwarden").glob("*.toml"):
            file.write_text(file.read_text().replace("@issuer@", keycloak.issuer))
        try:
            with made:
                yield made, keycloak
        finally:
            made.drop_database()


@pytest.mark.faults
@pytest.mark.kafka
@pytest.mark.timeout(600)
def test_the_whole_works_on_kafka_as_docker_compose_describes_it(topology: tuple[Topology, Keycloak]) -> None:
    house, keycloak = topology

    # An agent with an access token of a real Keycloak, through either gateway, as `docker compose run agent` does it.
    for gateway in ("gateway-1", "gateway-2"):
        address = f"127.0.0.1:{house.ports[gateway]}"
        done = subprocess.run(
            [sys.executable, str(ROOT / "deploy/connect.py"), str(house.folder / "pgwarden"), keycloak.issuer, address],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert "orders: (100,)" in done.stdout
        assert "permission denied" in done.stdout or "salaries" in done.stdout

    # An agent registered through the API works through both gateways; revoked, it ends on both, and the other does not notice.
    key, other_key = house.agent("clerk", ORDERS), house.agent("other", ORDERS)
    sessions = [house.connect("clerk", key, gateway) for gateway in ("gateway-1", "gateway-2")]
    with house.connect("other", other_key, "gateway-2") as other:
        for session in sessions:
            session.execute("SELECT count(*) FROM orders")
        answer = house.call("POST", "/v1/agents/clerk/revoke", {"reason": "enough"})
        assert answer["applied"] is True, answer
        for session in sessions:
            with pytest.raises(psycopg.errors.AdminShutdown):
                session.execute("SELECT 1")
        assert other.execute("SELECT 1").fetchone() == (1,)
        with pytest.raises(psycopg.OperationalError, match="28000|may not connect"):
            house.connect("clerk", key, "gateway-1")

    # The tables hold all of it, and the workers have ordered the ends that the gateways carried out.
    def told() -> bool:
        items = house.call("GET", "/v1/sessions", agent="clerk")["items"]
        return len(items) >= 2 and all(item["state"] == "killed" or item.get("closed_at") for item in items)

    until(told, "the tables tell the ends of both sessions")
    health = house.call("GET", "/v1/health")
    assert {gateway["gateway"] for gateway in health["gateways"]} == {"gateway-1", "gateway-2"}
    assert health["status"] == "ok", health["problems"]
    until(lambda: len([e for _, e in house.events("commands") if getattr(e, "agent", "") == "clerk"]) >= 2, "the workers' orders")

    # The collector's record reaches the tables through Kafka, what ran while it was killed too, and explains every session.
    house.kill9("collector")
    with house.connect("other", other_key, "gateway-1") as session:
        session.execute("SELECT 'while nobody looked'")
    house.launch("collector")
    house.wait_well("collector")

    def explained() -> bool:
        seen = house.call("GET", "/v1/observations/sessions", user_name="warden", limit=1000)["items"]
        audited = {item["session"] for item in seen if item["verdict"] == "audited"}
        opened = {item["session"] for item in house.call("GET", "/v1/sessions", limit=1000)["items"]}
        assert not [item for item in seen if item["verdict"] in ("shadow", "hijacked")]
        return audited >= opened and not [item for item in seen if item["verdict"] == "pending"]

    until(explained, "every session has its verdict", 60)
    ran = {event.text for _, event in house.events("witness") if isinstance(event, StatementObserved)}
    assert "SELECT 'while nobody looked'" in ran

    def sees() -> bool:
        (collector,) = house.call("GET", "/v1/coverage")["items"]
        assert collector["witness"] == "shop-log"
        return (collector["state"], collector["lost"]) == ("seeing", 0)

    until(sees, "the collector that was started anew reports that it sees, and lost nothing", 60)
    assert house.call("GET", "/v1/coverage/gaps", kind="lost")["items"] == []
