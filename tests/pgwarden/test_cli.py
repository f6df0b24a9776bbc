"""The command line up to the call: parsing, where the API is, what is loaded, and that the documents name it all."""

from __future__ import annotations

import argparse
import io
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pgwarden import settings
from pgwarden.api_client import BadUsage, Place, find
from pgwarden.cli import main, parser
from pgwarden.commands.grants import allows, rules
from pgwarden.config import ConfigInvalid, loads
from pgwarden.own_parts import PartFromElsewhere, check

ROOT = Path(__file__).parents[2]
KEY = "pgwop_" + "a" * 52


# -- documents ---------------------------------------------------------------------------------------------------------------------


def commands(of: argparse.ArgumentParser, name: str = "pgwarden") -> Iterator[tuple[str, argparse.ArgumentParser]]:
    for action in of._actions:
        if isinstance(action, argparse._SubParsersAction):
            for below, command in action.choices.items():
                yield f"{name} {below}", command
                yield from commands(command, f"{name} {below}")


COMMANDS = dict(commands(parser()))
SHARED = {"--help", "--json", "--api", "--operator-key-file", "--config", "--insecure-http"}  # described once, for all


def section(document: str, heading: str) -> str:
    found = re.search(rf"^#+ {re.escape(heading)}\n(.*?)(?=^#|\Z)", document, re.MULTILINE | re.DOTALL)
    assert found is not None, f"no heading {heading}"
    return found[1]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_and_option_is_described(name: str) -> None:
    document = (ROOT / "docs" / "commands.md").read_text()
    text = section(document, name)
    group = any(isinstance(action, argparse._SubParsersAction) for action in COMMANDS[name]._actions)
    for action in COMMANDS[name]._actions:
        for option in action.option_strings:
            if option.startswith("--"):
                assert option in (document if option in SHARED else text)
        if not action.option_strings and not group:
            assert f"`{action.metavar or action.dest}`" in text


def test_no_command_is_described_that_there_is_not() -> None:
    headings = re.findall(r"^## (pgwarden .+)$", (ROOT / "docs" / "commands.md").read_text(), re.MULTILINE)
    assert sorted(headings) == sorted(COMMANDS)


def toml(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return "[" + ", ".join(map(toml, value)) + "]"
    return f'"{value}"' if isinstance(value, str) else str(value)


NAMES = [(table, setting) for table, rows in settings.TABLES.items() for setting in rows]


@pytest.mark.parametrize(("table", "setting"), NAMES, ids=[f"{table}.{setting.name}" for table, setting in NAMES])
def test_every_setting_is_described_with_its_unit_and_default(table: str, setting: settings.Setting) -> None:
    document = (ROOT / "docs" / "configuration.md").read_text()
    text = section(document, f"{table}.{setting.name}".removeprefix("."))
    default = "must be written" if setting.default is None else f"default `{toml(setting.default)}`"
    assert text.strip().startswith(f"{setting.sentence} Unit: {setting.unit}; {default}.")


def test_no_setting_is_described_that_there_is_not() -> None:
    headings = re.findall(r"^### (.+)$", (ROOT / "docs" / "configuration.md").read_text(), re.MULTILINE)
    assert headings == [f"{table}.{setting.name}".removeprefix(".") for table, setting in NAMES]


def test_the_smallest_file_of_the_documents_is_right_but_for_its_secrets() -> None:
    (text,) = re.findall(r"```toml\n(.*?)```", (ROOT / "docs" / "configuration.md").read_text(), re.DOTALL)
    with pytest.raises(ConfigInvalid) as caught:
        loads(text, Path("/nowhere/pgwarden.toml"), {})
    assert [problem.reason.partition(",")[0] for problem in caught.value.problems] == [
        "connections.shop.password names the environment variable SHOP_PASSWORD",
        "agents.reporter.key names the file /nowhere/reporter.key",
    ]


def test_the_problems_shown_in_the_documents_are_what_is_said() -> None:
    (shown,) = re.findall(r"```text\n(.*?)```", (ROOT / "docs" / "configuration.md").read_text(), re.DOTALL)
    text = '\n\n[gateway]\ntls = "requird"\n[connections.shop]\nhost = "h"\ndatabase = "d"\nuser = "u"\npassword = "x"\n'
    with pytest.raises(ConfigInvalid) as caught:
        loads(text, Path("pgwarden.toml"), {})
    assert str(caught.value) + "\n" == shown


# -- what is loaded ------------------------------------------------------------------------------------------------------------------

HEAVY = (
    "duckdb",
    "fastapi",
    "pglast",
    "psycopg",
    "streamlit",
    "uvicorn",
    "httpx",
    "authlib",
    "joserfc",
    "cryptography",
    "gateway",
    "ingest.events",
    "analytics.queries",
    "analytics.store",
)


def loaded(script: str, folder: Path) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-c", f"import sys\n{script}\nprint(*sys.modules, file=sys.stderr)"],
        cwd=folder, env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"}, capture_output=True, text=True, timeout=30, check=True,
    )  # fmt: skip
    return set(done.stderr.split())


def test_help_loads_no_heavy_module(tmp_path: Path) -> None:
    modules = loaded("from pgwarden.cli import main\ntry: main(['--help'])\nexcept SystemExit: pass", tmp_path)
    assert "pgwarden.cli" in modules
    assert not modules & {*HEAVY, "http.client", "asyncio", "ssl"}


def test_a_command_to_the_api_loads_no_heavy_module(tmp_path: Path) -> None:
    script = f"import os\nos.environ['PGWARDEN_OPERATOR_KEY'] = '{KEY}'\nfrom pgwarden.cli import main\n"
    modules = loaded(script + "assert main(['agents', '--api', 'http://127.0.0.1:1']) == 3", tmp_path)
    assert "http.client" in modules
    assert not modules & {*HEAVY, "asyncio"}
    # The defaults of the configuration stand in files that hold nothing else.
    assert {module for module in modules if module.startswith(("analytics.", "ingest."))} <= {
        "analytics.settings",
        "ingest.settings",
    }


# -- parts from elsewhere --------------------------------------------------------------------------------------------------------


def test_our_own_parts_are_accepted() -> None:
    check()


def test_a_part_from_elsewhere_is_refused() -> None:
    with pytest.raises(PartFromElsewhere, match=r"json comes from .*json/__init__\.py, but the parts of this pgwarden are in"):
        check(["ingest", "json"])


def test_a_missing_part_is_refused() -> None:
    with pytest.raises(PartFromElsewhere, match="no_such_part is missing"):
        check(["no_such_part"])


def test_no_command_starts_with_a_strangers_part(tmp_path: Path) -> None:
    """As when another package named `identity` is first on the path."""
    (tmp_path / "identity").mkdir()
    (tmp_path / "identity" / "__init__.py").write_text("print('stranger')")
    script = f"import sys\nsys.path[:0] = [{str(tmp_path)!r}]\nfrom pgwarden.cli import main\nsys.exit(main(['health']))"
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert f"identity comes from {tmp_path}/identity/__init__.py" in done.stderr
    assert "environment of its own" in done.stderr
    assert done.stdout == ""


# -- where the API is --------------------------------------------------------------------------------------------------------------


def where(folder: Path, environ: dict[str, str] | None = None, api: str = "", key_file: str = "", config: str = "") -> Place:
    return find(api, key_file, config, False, {"PGWARDEN_OPERATOR_KEY": KEY} if environ is None else environ, folder)


def test_status_and_doctor_find_the_file_of_the_samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PGWARDEN_CONFIG", raising=False)
    assert parser().parse_args(["doctor"]).config is None
    samples = Path(".pgwarden/pgwarden.toml")
    samples.parent.mkdir()
    samples.touch()
    assert [parser().parse_args(line).config for line in (["doctor"], ["status", "api"])] == [samples, samples]
    Path("pgwarden.toml").touch()
    assert parser().parse_args(["doctor"]).config == Path("pgwarden.toml")


def test_without_anything_it_is_the_usual_address(tmp_path: Path) -> None:
    assert where(tmp_path).url == "http://127.0.0.1:8470"


def test_the_option_wins_over_the_environment_and_that_over_the_file(tmp_path: Path) -> None:
    (tmp_path / "pgwarden.toml").write_text('[api]\nlisten = "127.0.0.1:3"\n')
    environ = {"PGWARDEN_OPERATOR_KEY": KEY, "PGWARDEN_API": "http://127.0.0.1:2"}
    assert where(tmp_path, environ, api="http://127.0.0.1:1").url == "http://127.0.0.1:1"
    assert where(tmp_path, environ).url == "http://127.0.0.1:2"
    assert where(tmp_path).url == "http://127.0.0.1:3"


def test_the_file_of_up_is_found_where_there_is_no_other(tmp_path: Path) -> None:
    (tmp_path / ".pgwarden").mkdir()
    (tmp_path / ".pgwarden" / "pgwarden.toml").write_text('state = "."\n[api]\nlisten = "127.0.0.1:4"\n')
    (tmp_path / ".pgwarden" / "operator.key").write_text(KEY + "\n")
    (tmp_path / ".pgwarden" / "operator.key").chmod(0o600)
    place = where(tmp_path, {})
    assert (place.url, place.key.reveal()) == ("http://127.0.0.1:4", KEY)


def test_the_file_is_read_for_the_address_alone(tmp_path: Path) -> None:
    """Its secrets may be out of reach for an operator, and its agents wrong."""
    (tmp_path / "my.toml").write_text('agents = 3\n[api]\nlisten = "0.0.0.0:5"\n[connections.x]\npassword = "env:NONE"\n')
    assert where(tmp_path, config="my.toml").url == "http://127.0.0.1:5"


def test_a_key_file_wins_over_the_environment_and_must_be_private(tmp_path: Path) -> None:
    (tmp_path / "my.key").write_text("pgwop_other\n")
    (tmp_path / "my.key").chmod(0o600)
    assert where(tmp_path, key_file="my.key").key.reveal() == "pgwop_other"
    (tmp_path / "my.key").chmod(0o644)
    with pytest.raises(BadUsage, match=r"the operator key names the file .*my\.key, which others may read .*; run: chmod 600"):
        where(tmp_path, key_file="my.key")


def test_without_a_key_it_says_where_to_put_one(tmp_path: Path) -> None:
    with pytest.raises(BadUsage, match=r"no operator key; put it into .*/\.pgwarden/operator\.key, set PGWARDEN_OPERATOR_KEY, or "):
        where(tmp_path, {})


@pytest.mark.parametrize("key", ["", "a\nb", "a\r\nX-Evil: 1", "schlüssel"])
def test_a_key_that_no_header_can_hold_is_refused(tmp_path: Path, key: str) -> None:
    with pytest.raises(BadUsage, match="the operator key"):
        where(tmp_path, {"PGWARDEN_OPERATOR_KEY": key})


def test_a_key_goes_in_clear_text_to_this_machine_only(tmp_path: Path) -> None:
    with pytest.raises(BadUsage, match=r"is on another machine; write https://, or add --insecure-http"):
        where(tmp_path, api="http://warden.example:8470")
    assert where(tmp_path, api="https://warden.example/pgwarden").url == "https://warden.example/pgwarden"
    assert find("http://warden.example", "", "", True, {"PGWARDEN_OPERATOR_KEY": KEY}, tmp_path).url == "http://warden.example"


@pytest.mark.parametrize(
    "url",
    ["127.0.0.1:8470", "ftp://x", "http://", "http://u@h", "http://h:99999", "http://h?a", "file:///etc/passwd", "http://[::1"],
)
def test_what_is_no_address_is_refused(tmp_path: Path, url: str) -> None:
    with pytest.raises(BadUsage, match="is no address of the API"):
        where(tmp_path, api=url)


@pytest.mark.parametrize("text", ["a = ", "[api]\nlisten = 3\n", "state = 3\n", "\udcff"])
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "pgwarden.toml").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(BadUsage, match=r"pgwarden\.toml is"):
        where(tmp_path)


def test_a_named_file_that_is_missing_is_no_default(tmp_path: Path) -> None:
    with pytest.raises(BadUsage, match=r"none\.toml is a file which cannot be read: no such file or directory"):
        where(tmp_path, config="none.toml")


# -- rules of a grant --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("select on public.orders", [("public", ["orders"], ["select"])]),
        ("SELECT, insert ON public.orders, public.lines", [("public", ["orders", "lines"], ["select", "insert"])]),
        ("select on public.*", [("public", ["*"], ["select"])]),
        ("select on a.x, b.y,a.z", [("a", ["x", "z"], ["select"]), ("b", ["y"], ["select"])]),
        ('ddl on "My Schema"."a.b, ""c"""', [("My Schema", ['a.b, "c"'], ["ddl"])]),
        ("  select  on  public.Orders  ", [("public", ["Orders"], ["select"])]),
    ],
)
def test_a_rule_reads_as_it_is_said(text: str, expected: list[tuple[str, list[str], list[str]]]) -> None:
    assert rules(text) == [
        {"schema": schema, "tables": tables, "operations": operations} for schema, tables, operations in expected
    ]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "select",
        "select on",
        "select on orders",
        "on public.orders",
        "select on public.orders,",
        "select on a.b.c",
        "select; on a.b",
        'select on "a.b',
    ],
)
def test_what_is_no_rule_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(BadUsage, match='is no rule; write one as "select, insert on public.orders"'):
        rules(text)


def test_a_scope_reads_on_one_line() -> None:
    scope: dict[str, object] = {
        "connection": "shop",
        "rules": [{"schema": "public", "tables": ["orders", "*"], "operations": ["select", "insert"]}],
        "functions": ["public.total"],
        "channels": ["orders"],
        "introspection": True,
    }
    assert allows(scope) == "select, insert on public.orders, public.*; call public.total; channel orders; introspection"


# -- exit codes and output ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("PGWARDEN_API", "PGWARDEN_CONFIG", "PGWARDEN_OPERATOR_KEY"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    "line",
    [
        [],
        ["nonsense"],
        ["revoke", "reporter"],
        ["audit"],
        ["audit", "reporter", "--since", "yesterday"],
        ["audit", "reporter", "--since", "0s"],
        ["sessions", "--limit", "0"],
        ["sessions", "--limit", "١"],
        ["up", "--for", "-1"],
        ["up", "--for", "nan"],
        ["agents", "--operator-key", KEY],
        ["grants", "request", "a", "--connection", "c", "--reason", "r", "--for", "1y"],
        ["sql"],
    ],
)
def test_a_wrong_command_line_exits_with_2(line: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(line)
    assert caught.value.code == 2
    assert "usage: pgwarden" in capsys.readouterr().err


@pytest.mark.parametrize(
    "line",
    [["agents"], ["agents", "list"], ["health"], ["revoke", "a", "--reason", "r"], ["sql", "SELECT 1"], ["grants", "approve", "g"]],
)
def test_without_a_key_or_an_api_it_exits_with_2_or_3(
    line: list[str], folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(line) == 2
    assert "no operator key" in capsys.readouterr().err
    monkeypatch.setenv("PGWARDEN_OPERATOR_KEY", KEY)
    assert main([*line, "--api", "http://127.0.0.1:1"]) == 3
    assert "pgwarden: the API at http://127.0.0.1:1 cannot be reached: " in capsys.readouterr().err
    assert main([*line, "--api", "http://127.0.0.1:1", "--json"]) == 3
    captured = capsys.readouterr()
    assert list(json.loads(captured.out)) == ["error"]
    assert KEY not in captured.out + captured.err


def test_a_lost_command_says_how_to_repeat_it(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGWARDEN_OPERATOR_KEY", KEY)
    assert main(["reinstate", "a", "--api", "http://127.0.0.1:1"]) == 3
    assert re.search(r"repeat the command with --idempotency-key cli-[0-9a-f]{32}$", capsys.readouterr().err.strip())


@pytest.mark.parametrize("command", ["gateway", "api", "dashboard", "rebuild", "verify-config"])
def test_a_wrong_configuration_is_reported_whole_and_exits_with_2(
    command: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "pgwarden.toml").write_text('[gateway]\ntls = "x"\n[api]\nlisten = "y"\n')
    assert main([command]) == 2
    err = capsys.readouterr().err
    assert "pgwarden.toml:2: gateway.tls" in err
    assert "pgwarden.toml:4: api.listen" in err


def test_verify_config_in_json_holds_each_problem(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "pgwarden.toml").write_text('[gateway]\ntls = "x"\n')
    assert main(["verify-config", "--json"]) == 2
    document = json.loads(capsys.readouterr().out)
    assert document["ok"] is False
    assert [problem["line"] for problem in document["problems"]] == [2]


def test_verify_config_prints_ok_a_summary_and_the_warnings(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "my.toml").write_text("")
    assert main(["verify-config", "-c", "my.toml"]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"{folder}/my.toml: ok\n")
    assert "  gateway:      127.0.0.1:6432, TLS required, durability group\n" in out
    assert "  log:          on this machine\n" in out
    assert "warning: my.toml:1: there is no [operators.NAME]" in out


def test_a_reader_that_has_enough_is_no_error(tmp_path: Path) -> None:
    """`pgwarden verify-config | true`"""
    (tmp_path / "pgwarden.toml").write_text("")
    script = f"{sys.executable} -m pgwarden verify-config; echo $? >&2"
    done = subprocess.run(
        ["/bin/bash", "-c", f"({script}) | true"],
        cwd=tmp_path, env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"}, capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert done.stderr == "0\n"


def test_a_terminal_of_another_encoding_ends_no_command(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "münchen.toml").write_text("")
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    assert main(["verify-config", "-c", "münchen.toml"]) == 0
    stream.flush()
    assert b"m\\xfcnchen.toml: ok" in stream.buffer.getvalue()  # type: ignore[attr-defined]
