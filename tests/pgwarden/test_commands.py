"""The commands against the processes themselves: a gateway, an API, a PostgreSQL, and an agent that connects with psycopg."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import duckdb
import psycopg
import pytest

from identity import agent_keys
from pgwarden.cli import main
from tests import broker as brokers

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
ALICE, ALICE_SHA256 = agent_keys.create_operator_key()
BOB, BOB_SHA256 = agent_keys.create_operator_key()


class Database(Protocol):
    host: str
    port: int
    name: str
    role: str
    password: str


@dataclass
class House:
    """A running pgwarden, and the command line in its folder."""

    folder: Path
    gateway_port: int
    capsys: pytest.CaptureFixture[str]
    monkeypatch: pytest.MonkeyPatch

    def run(self, *line: str, by: str = ALICE) -> tuple[int, str, str]:
        self.monkeypatch.setenv("PGWARDEN_OPERATOR_KEY", by)
        self.monkeypatch.setenv("COLUMNS", "100")
        code = main(line)
        captured = self.capsys.readouterr()
        assert ALICE not in captured.out + captured.err
        return code, captured.out, captured.err

    def json(self, *line: str, by: str = ALICE) -> dict[str, object]:
        code, out, err = self.run(*line, "--json", by=by)
        assert (code, err) == (0, "")
        document: dict[str, object] = json.loads(out)
        return document

    def agent(self, name: str) -> str:
        """A registered agent with a grant to read orders; its key."""
        registered = self.json("agents", "register", name, "--description", "d", "--owner", "o", "--key")
        rule = "select on public.orders"
        asked = self.json("grants", "request", name, "--connection", "shop", "--allow", rule, "--reason", "work")
        self.json("grants", "approve", str(asked["grant"]), by=BOB)
        return str(registered["key"])

    def connected(self, agent: str, key: str) -> psycopg.Connection:
        """Once the gateway has read of the agent and its grant, which takes it some milliseconds."""
        end = time.monotonic() + 5
        while True:
            try:
                return self.connect(agent, key)
            except psycopg.OperationalError:
                if time.monotonic() > end:
                    raise
            time.sleep(0.05)

    def connect(self, agent: str, key: str) -> psycopg.Connection:
        return psycopg.connect(
            host="127.0.0.1", port=self.gateway_port, dbname="shop", user=agent, password=key, sslmode="require",
            connect_timeout=10, autocommit=True,
        )  # fmt: skip


@contextlib.contextmanager
def process(command: str, folder: Path, ready: Callable[[], object], wait_for: Callable[..., object]) -> Iterator[None]:
    with (folder / f"{command}.log").open("w") as log:
        running = subprocess.Popen(
            [sys.executable, "-m", "pgwarden", command, "-c", "pgwarden.toml"],
            cwd=folder, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=log, stderr=log,
        )  # fmt: skip
    try:
        wait_for(lambda: running.poll() is not None or ready(), 20.0)
        assert running.poll() is None, (folder / f"{command}.log").read_text()
        yield
    finally:
        running.send_signal(signal.SIGTERM)
        try:
            running.wait(10)
        except subprocess.TimeoutExpired:
            running.kill()
            running.wait()


@pytest.fixture
def house(
    tmp_path: Path,
    database: Database,
    wait_for: Callable[..., object],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[House]:
    gateway_port, api_port = brokers.port(), brokers.port()
    (tmp_path / "shop.password").write_text(database.password)
    (tmp_path / "shop.password").chmod(0o600)
    (tmp_path / "pgwarden.toml").write_text(f"""
state = "state"
[gateway]
listen = "127.0.0.1:{gateway_port}"
[api]
listen = "127.0.0.1:{api_port}"
[connections.shop]
host = "{database.host}"
port = {database.port}
database = "{database.name}"
user = "{database.role}"
password = "file:shop.password"
sslmode = "disable"
[operators.alice]
key_sha256 = "{ALICE_SHA256}"
[operators.bob]
key_sha256 = "{BOB_SHA256}"
""")
    monkeypatch.chdir(tmp_path)
    for name in ("PGWARDEN_API", "PGWARDEN_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    made = House(tmp_path, gateway_port, capsys, monkeypatch)
    with contextlib.ExitStack() as running:
        running.enter_context(process("api", tmp_path, lambda: made.run("agents")[0] == 0, wait_for))
        socket = tmp_path / "state" / "run" / "gateway.sock"
        running.enter_context(process("gateway", tmp_path, socket.exists, wait_for))
        yield made


def test_the_life_of_an_agent_on_the_command_line(house: House, wait_for: Callable[..., object]) -> None:
    code, out, _ = house.run("agents", "register", "reporter", "--description", "d", "--owner", "data team", "--key")
    assert code == 0
    (key,) = re.findall(r"^    (pgw_\S+)$", out, re.MULTILINE)
    allowed = ["--allow", "select on public.orders", "--for", "8h", "--reason", "the daily report"]
    code, out, _ = house.run("grants", "request", "reporter", "--connection", "shop", *allowed)
    assert code == 0
    (grant,) = re.findall(r"^another operator approves it with: pgwarden grants approve (\S+)$", out, re.MULTILINE)
    code, _, err = house.run("grants", "approve", grant)
    assert code == 1
    assert f"pgwarden: alice asked for grant {grant}; another operator must approve or deny it" in err
    code, out, _ = house.run("grants", "approve", grant, by=BOB)
    assert code == 0
    assert f"grant {grant} of reporter is approved\nit ends at 20" in out

    with house.connected("reporter", key) as connection:
        assert connection.execute("SELECT count(*) FROM orders").fetchone() == (100,)
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute("DELETE FROM orders -- \x1b[2J")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute("SELECT * FROM secrets")
        wait_for(lambda: "SELECT * FROM secrets" in house.run("audit", "reporter")[1])

        lines = house.run("audit", "reporter", "--since", "1h")[1].splitlines()
        assert re.match(r"TIME \(UTC\) +RESULT +ROWS +TOOK +STATEMENT$", lines[0])
        assert re.match(r"20\d\d-\d\d-\d\d \d\d:\d\d:\d\d  denied 42501 +-  +-  SELECT \* FROM secrets$", lines[1])
        assert re.match(r"    agent reporter may not ", lines[2])
        assert re.search(r"  denied 42501 +-  +-  DELETE FROM orders -- \\x1b\[2J$", "\n".join(lines), re.MULTILINE)
        assert re.search(r"  ok +1 +[\d.]+ [mµ]?s  SELECT count\(\*\) FROM orders$", lines[-1])
        assert all(line.isprintable() and len(line) <= 100 for line in lines)
        denied = house.json("audit", "reporter", "--denied")["items"]
        assert isinstance(denied, list)
        assert [row["text"] for row in denied] == ["SELECT * FROM secrets", "DELETE FROM orders -- \x1b[2J"]

        live = house.json("sessions", "--live", "--agent", "reporter")["items"]
        assert isinstance(live, list)
        assert [row["agent"] for row in live] == ["reporter"]
        session = live[0]["session"]
        assert session in house.run("sessions", "--live")[1]
        assert house.run("audit", "reporter", "--session", session)[1].splitlines() == lines
        page = house.json("audit", "reporter", "--limit", "2")
        rest = house.json("audit", "reporter", "--limit", "2", "--before", str(page["next"]))["items"]
        assert isinstance(rest, list)
        assert [row["decision"] for row in rest] == ["allow"]
        assert f"more: --before {page['next']}" in house.run("audit", "reporter", "--limit", "2")[1]

    code, out, _ = house.run("sql", "SELECT agent, decision, count(*) AS n FROM statements GROUP BY ALL ORDER BY ALL")
    assert (code, out) == (0, "agent     decision  n\nreporter  allow     1\nreporter  deny      2\n(2 rows)\n")
    counted = "SELECT agent, count(*) AS n FROM statements GROUP BY ALL"
    assert house.run("sql", counted, "--format", "csv")[:2] == (0, "agent,n\r\nreporter,3\r\n")
    assert house.json("sql", counted)["rows"] == [["reporter", 3]]
    for kind in ("parquet", "csv", "arrow"):
        file = house.folder / f"answer.{kind}"
        for _ in range(5):
            code, out, err = house.run("sql", counted, "--format", kind, "--output", str(file))
            if "ended by force" not in err:  # on a loaded machine: a query has a low priority, and 5 s
                break
        assert (code, out) == (0, ""), err
        assert err == f"{file}: 1 rows, {file.stat().st_size} bytes\n"
        assert file.stat().st_mode & 0o777 == 0o600
    with duckdb.connect() as connection:
        assert connection.execute(f"from '{house.folder}/answer.parquet'").fetchall() == [("reporter", 3)]
        assert connection.execute(f"from '{house.folder}/answer.csv'").fetchall() == [("reporter", 3)]
    code, _, err = house.run("sql", counted, "--output", str(house.folder / "answer.txt"))
    assert (code, "--output goes with --format csv, parquet or arrow" in err) == (2, True)
    code, _, err = house.run("sql", counted, "--format", "csv", "--output", "/nowhere/at/all.csv")
    assert (code, "cannot be written" in err) == (2, True)
    code, _, err = house.run("sql", "DROP TABLE statements")
    assert code == 1
    assert err.startswith("pgwarden: ")
    assert re.search(r"^reporter +active +data team .* 2 +20\d\d-", house.run("agents")[1], re.MULTILINE)
    assert "select on public.orders" in house.run("grants", "--agent", "reporter", "--state", "approved")[1]
    assert house.run("grants", "--state", "denied")[1] == "there is no such grant\n"
    assert house.run("health")[0] == 0
    taken = house.json("snapshot", str(house.folder / "mine.duckdb"))
    assert (taken["path"], (house.folder / "mine.duckdb").stat().st_mode & 0o777) == (str(house.folder / "mine.duckdb"), 0o600)
    with duckdb.connect(str(house.folder / "mine.duckdb"), read_only=True) as connection:
        assert connection.execute("select count(*) from statements").fetchone() is not None
    listed = house.run("snapshot", "--list")[1]
    assert re.search(rf"^{taken['snapshot']} +20\d\d-.* {taken['bytes']}$", listed, re.MULTILINE)
    again = house.json("snapshot", str(house.folder / "again.duckdb"), "--existing", str(taken["snapshot"]))
    assert (house.folder / "again.duckdb").read_bytes() == (house.folder / "mine.duckdb").read_bytes()
    assert (again["snapshot"], again["bytes"]) == (taken["snapshot"], taken["bytes"])
    code, _, err = house.run("snapshot", "/nowhere/at/all.duckdb")
    assert (code, "cannot be written" in err) == (2, True)
    assert len(house.json("snapshot", "--list")["items"]) == 1  # type: ignore[arg-type]  # what cannot be written is not taken
    code, _, err = house.run("snapshot", str(house.folder / "no.duckdb"), "--existing", "20200101T000000.000000Z")
    assert (code, "there is no snapshot 2020" in err, (house.folder / "no.duckdb").exists()) == (2, True, False)
    until = time.monotonic() + 5  # the tables follow the log
    while house.json("sessions", "--live", "--agent", "reporter")["items"] and time.monotonic() < until:
        time.sleep(0.05)
    code, out, _ = house.run("retire", "reporter", "--reason", "project over")
    assert (code, out) == (0, "reporter is retired; it can open no session\nno session was open\n")
    code, _, err = house.run("reinstate", "reporter")
    assert (code, err) == (1, "pgwarden: agent reporter was retired for good; register another agent\n")


def test_revoke_shows_the_proof_for_each_session_and_leaves_the_others(house: House, wait_for: Callable[..., object]) -> None:
    keys = {name: house.agent(name) for name in ("reporter", "other")}
    with contextlib.ExitStack() as open_:
        first = open_.enter_context(contextlib.closing(house.connected("reporter", keys["reporter"])))
        second = open_.enter_context(contextlib.closing(house.connected("reporter", keys["reporter"])))
        other = open_.enter_context(contextlib.closing(house.connected("other", keys["other"])))
        first.execute("BEGIN")
        first.execute("SELECT 1 FROM orders")
        wait_for(lambda: len(house.json("sessions", "--live")["items"]) == 3)  # type: ignore[arg-type]

        code, out, err = house.run("revoke", "reporter", "--reason", "odd queries")

        lines = out.splitlines()
        assert (code, err, len(lines)) == (0, "", 4)
        assert lines[0] == "reporter is revoked; it can open no session"
        assert re.match(r"SESSION +CONNECTION +REQUESTED \(UTC\) +DECIDED +CLIENT CLOSED +BACKEND GONE$", lines[1])
        for line in lines[2:]:
            assert re.search(r" shop +\d\d:\d\d:\d\d\.\d\d\d( +\+[\d.]+ (µs|ms|s)){3}$", line)
        for connection in (first, second):
            with pytest.raises(psycopg.OperationalError):
                connection.execute("SELECT 1 FROM orders")
        with pytest.raises(psycopg.OperationalError):
            house.connect("reporter", keys["reporter"])
        assert other.execute("SELECT count(*) FROM orders").fetchone() == (100,)

    document = house.json("revoke", "other", "--reason", "all of them")
    assert document["proven"] is True
    assert house.run("reinstate", "reporter", "--reason", "explained")[:2] == (0, "reporter is active again\n")
    with contextlib.closing(house.connected("reporter", keys["reporter"])) as connection:
        assert connection.execute("SELECT count(*) FROM orders").fetchone() == (100,)


def test_a_repeated_command_is_carried_out_once(house: House) -> None:
    line = ["agents", "register", "reporter", "--description", "d", "--owner", "o", "--key", "--idempotency-key", "once"]
    first, again = house.json(*line), house.json(*line)
    assert first["key_id"] == again["key_id"]
    assert again["key"] is None
    code, out, err = house.run(*line)
    assert (code, out) == (0, "reporter: registered\n")
    assert "The key was shown by the first call" in err


def test_a_refusal_holds_every_problem(house: House) -> None:
    line = ["grants", "request", "nobody", "--connection", "none", "--allow", "selct on public.a", "--reason", " "]
    code, _, err = house.run(*line)
    assert code == 1
    assert len(err.splitlines()) >= 4
    assert "selct" in err
    assert house.run("agents", "key", "nobody")[0] == 1


def test_one_problem_is_said_once(house: House) -> None:
    code, _, err = house.run(
        "grants", "request", "nobody", "--connection", "shop", "--allow", "select on public.a", "--reason", "r"
    )
    assert (code, err) == (1, 'pgwarden: agent: "nobody" is not registered; register it first\n')


def test_a_wrong_key_is_refused(house: House) -> None:
    code, _, err = house.run("agents", by=agent_keys.create_operator_key()[0])
    assert code == 2
    assert err.startswith("pgwarden: what is in env:PGWARDEN_OPERATOR_KEY opens nothing at http://127.0.0.1:")


def test_a_session_and_everything_are_revoked_with_proof_and_the_gateways_word(
    house: House, wait_for: Callable[..., object]
) -> None:
    keys = {name: house.agent(name) for name in ("reporter", "other")}
    with contextlib.ExitStack() as open_:
        first = open_.enter_context(contextlib.closing(house.connected("reporter", keys["reporter"])))
        second = open_.enter_context(contextlib.closing(house.connected("reporter", keys["reporter"])))
        other = open_.enter_context(contextlib.closing(house.connected("other", keys["other"])))
        wait_for(lambda: len(house.json("sessions", "--live")["items"]) == 3)  # type: ignore[arg-type]
        pid = first.execute("SELECT 1 FROM orders") and first.info.backend_pid
        (session,) = [
            row["session"] for row in house.json("sessions", "--live")["items"] if row["backend_pid"] == pid  # type: ignore[attr-defined]
        ]  # fmt: skip

        document = house.json("revoke", "--session", session, "--reason", "odd")
        assert (document["agent"], document["applied"], document["waiting_for"]) == ("reporter", True, [])
        assert (document["proven"], [row["session"] for row in document["sessions"]]) == (True, [session])  # type: ignore[attr-defined]
        with pytest.raises(psycopg.OperationalError):
            first.execute("SELECT 1 FROM orders")
        assert second.execute("SELECT count(*) FROM orders").fetchone() == (100,)

        code, out, err = house.run("revoke", "--all", "--reason", "attack")
        lines = out.splitlines()
        assert (code, err, lines[0], len(lines)) == (0, "", "everything is revoked; nobody can open a session", 4)
        for connection in (second, other):
            with pytest.raises(psycopg.OperationalError):
                connection.execute("SELECT 1 FROM orders")
        with pytest.raises(psycopg.OperationalError, match="all revoked"):
            house.connect("reporter", keys["reporter"])
    assert re.search(r"^all .* attack$", house.run("revocations")[1], re.MULTILINE)
    assert house.run("reinstate", "--all")[:2] == (0, "whoever is not revoked by name may act again\n")
    with contextlib.closing(house.connected("other", keys["other"])) as connection:
        assert connection.execute("SELECT count(*) FROM orders").fetchone() == (100,)
    code, _, err = house.run("revoke", "--group", "nowhere", "staff", "--reason", "x")
    assert (code, err) == (1, 'pgwarden: issuer: "nowhere" is not configured; configured are none\n')


def test_a_narrowed_grant_narrows_what_an_open_session_may_do(house: House) -> None:
    key = house.agent("reporter")
    both = ["--allow", "select, delete on public.orders", "--reason", "work"]
    grant = str(house.json("grants", "request", "reporter", "--connection", "shop", *both)["grant"])
    house.json("grants", "approve", grant, by=BOB)
    with contextlib.closing(house.connected("reporter", key)) as connection:
        end = time.monotonic() + 5
        while True:
            with contextlib.suppress(psycopg.errors.InsufficientPrivilege):
                connection.execute("DELETE FROM orders WHERE false")
                break
            assert time.monotonic() < end
        line = ["grants", "narrow", grant, "--connection", "shop", "--reason", "less"]
        code, _, err = house.run(*line, "--allow", "insert on public.orders")
        assert code == 1
        assert f"grant {grant} does not allow insert on public.orders now; leave it out, or ask for another grant" in err
        assert house.run(*line, "--allow", "select on public.orders")[:2] == (0, f"grant {grant} of reporter is narrowed\n")
        # Its answer says that every gateway acts on it: so does the very next statement.
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute("DELETE FROM orders WHERE false")
        assert connection.execute("SELECT count(*) FROM orders").fetchone() == (100,)


def test_a_looping_agent_is_found_and_revoked_by_itself_and_its_backend_is_gone(
    house: House, wait_for: Callable[..., object], database: Database
) -> None:
    key = house.agent("looper")
    chosen = house.json("responses", "choose", "hot loop", "revoke", "--of", "looper")
    assert (chosen["response"], chosen["operator"]) == ("revoke", "alice")
    connection = house.connected("looper", key)
    pid = connection.info.backend_pid
    began = time.monotonic()
    with pytest.raises(psycopg.OperationalError):
        while time.monotonic() - began < 90:  # 1,024 within one minute
            connection.execute("SELECT id FROM orders LIMIT 1")

    def found() -> object:
        items = house.json("findings", "--agent", "looper")["items"]
        assert isinstance(items, list)
        return items

    (finding,) = wait_for(found, 20.0)  # type: ignore[misc]
    assert (finding["detector"], finding["state"], finding["agent"]) == ("hot loop", "open", "looper")
    assert finding["offsets"]
    revoked = wait_for(lambda: house.json("revocations")["items"], 20.0)
    assert isinstance(revoked, list)
    assert [(row["name"], row["operator"]) for row in revoked] == [("looper", "pgwarden")]
    assert f"finding {finding['finding']} (hot loop)" in revoked[0]["reason"]
    with psycopg.connect(
        host=database.host, port=database.port, dbname=database.name, user=database.role, password=database.password
    ) as server:
        assert server.execute("SELECT count(*) FROM pg_stat_activity WHERE pid = %s", (pid,)).fetchone() == (0,)

    def proven() -> bool:
        (session,) = house.json("sessions", "--agent", "looper")["items"]  # type: ignore[misc]
        return session["state"] == "killed" and bool(session["kill_backend_gone_at"])

    assert wait_for(proven, 20.0)
    code, out, _ = house.run("findings", "acknowledge", str(finding["finding"]), "--note", "a retry without a pause")
    assert (code, out) == (0, f"{finding['finding']} of looper is acknowledged\n")
    wait_for(lambda: house.json("findings", "show", str(finding["finding"]))["state"] == "acknowledged", 20.0)
    code, out, _ = house.run("findings", "mute", str(finding["finding"]), "--for", "1h", "--reason", "being repaired")
    assert code == 0
    assert out.startswith("hot loop of looper is muted until 20")
    wait_for(lambda: house.json("findings", "mutes")["items"], 20.0)
    assert house.run("findings", "unmute", "hot loop", "looper")[0] == 0


def answers(connection: psycopg.Connection) -> bool:
    with contextlib.suppress(psycopg.errors.InsufficientPrivilege):
        connection.execute("SELECT id FROM orders LIMIT 1")
        return True
    return False


def test_an_agent_is_held_and_released_on_the_command_line(house: House, wait_for: Callable[..., object]) -> None:
    key = house.agent("odd")
    with house.connected("odd", key) as connection:
        assert house.run("hold", "odd", "--reason", "looks odd")[0] == 0
        with pytest.raises(psycopg.errors.InsufficientPrivilege, match="pgwarden release odd"):
            connection.execute("SELECT id FROM orders LIMIT 1")
        code, out, _ = house.run("responses")
        assert code == 0
        assert "held" in out
        assert house.run("release", "odd")[0] == 0
        wait_for(lambda: answers(connection), 10.0)
        assert house.run("throttle", "odd", "--per-minute", "60", "--reason", "too fast")[0] == 0
        began = time.monotonic()
        for _ in range(3):
            connection.execute("SELECT id FROM orders LIMIT 1")
        assert time.monotonic() - began > 1.5
        assert house.run("unthrottle", "odd")[0] == 0
