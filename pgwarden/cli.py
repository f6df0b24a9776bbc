"""The command line: which command, with which arguments. Each command's work is in `pgwarden.commands`, loaded only when it runs.

docs/commands.md describes each command; exit codes are below.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, TypeAlias, cast

from pgwarden import __version__
from pgwarden.own_parts import PartFromElsewhere, check
from pgwarden.printable import printable

DONE: Final = 0
USAGE: Final = 2  # the command line or the configuration; argparse's own

Command: TypeAlias = Callable[[argparse.Namespace], int]

STATUS_PARTS: Final = ("gateway", "relay", "watchdog", "worker", "collector", "api", "webhooks", "dashboard")

_Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"

_LIMIT: Final = 100  # rows of a list; the API's own default
_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_EXIT_CODES: Final = "exit codes: 0 done, 1 refused or failed, 2 usage or configuration, 3 the API cannot be reached"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Returns its exit code; usage errors leave by SystemExit(2), as argparse has it."""
    parsed = parser().parse_args(arguments)
    try:
        check()
    except PartFromElsewhere as elsewhere:
        print(f"pgwarden: {elsewhere}", file=sys.stderr)
        return USAGE
    module, _, name = str(parsed.run).partition(":")
    run = cast(Command, getattr(importlib.import_module(f"pgwarden.commands.{module}"), name))
    # What a part cannot print, because its terminal is in another encoding, must not end the command half-way.
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        code = run(parsed)
        sys.stdout.flush()
    except BrokenPipeError:
        # `pgwarden audit ... | head`: the reader has enough. Python would complain once more when it closes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE
    except KeyboardInterrupt:
        return 130  # as a shell reports SIGINT
    return code


def parser() -> argparse.ArgumentParser:
    what = "Gives every AI agent that reaches PostgreSQL a name, a scope, and a record that can be trusted."
    top = argparse.ArgumentParser("pgwarden", description=what, epilog=_EXIT_CODES, allow_abbrev=False)
    top.set_defaults(json=False, api="", operator_key_file="", config="", insecure_http=False)
    top.set_defaults(unused=None, agent="", state="", limit=_LIMIT, before="", detector="", severity="", since=0)
    top.add_argument("--version", action="version", version=f"pgwarden {__version__}")
    commands = top.add_subparsers(title="commands", metavar="COMMAND", required=True)

    up = _command(commands, "up", "processes:up", "run everything, with nothing configured or with a file")
    up.add_argument(
        "-c", "--config", type=Path, metavar="FILE", help="front the databases of this configuration instead of a sample"
    )
    up.add_argument("--state", type=Path, metavar="FOLDER", help="without --config: where to keep everything (.pgwarden)")
    up.add_argument("--port-base", type=_positive_whole, metavar="PORT", help="without --config: this port and the next three")
    up.add_argument(
        "--for", dest="for_seconds", type=_positive, metavar="SECONDS", help="end after so long, with 0 only if all parts worked"
    )

    init = _command(commands, "init", "setup:init", "write a commented pgwarden.toml and make an operator key")
    init.add_argument("path", nargs="?", type=Path, default=Path("pgwarden.toml"), metavar="PATH", help="(pgwarden.toml)")
    init.add_argument("--operator", default="", metavar="NAME", help="the operator's name (your login name)")
    init.add_argument(
        "--role",
        default="administrator",
        choices=("viewer", "responder", "administrator"),
        help="what the operator may do (administrator)",
    )

    verify = _command(commands, "verify-config", "setup:verify_config", "check a configuration, and report everything wrong in it")
    _config(verify)
    verify.add_argument("--online", action="store_true", help="also ask each database, each issuer and the brokers")

    for name, what in (
        ("gateway", "run the gateway, where agents connect"),
        ("relay", "run a gateway's relay to Kafka, which the gateway itself starts"),
        ("api", "run the API, which keeps the tables and takes commands"),
        ("watchdog", "run the watchdog, which ends what a gateway should have ended"),
        ("collector", "run the collectors, which see what the database really ran"),
        ("dashboard", "run the dashboard"),
        ("metrics", "serve metrics of the processes of this machine to Prometheus"),
    ):
        _config(_command(commands, name, f"processes:{name}", what, json_option=False))
    what = "tell receivers outside of findings, kills, revocations and blindness"
    webhooks = _command(commands, "webhooks", "processes:webhooks", what)
    _config(webhooks)
    of_webhooks = webhooks.add_subparsers(title="commands", metavar="COMMAND")
    trial = _command(of_webhooks, "test", "webhooks:test", "send a receiver one event that says that nothing has happened")
    _config(trial, inner=True)
    trial.add_argument("name", metavar="NAME", help="of its [webhooks.NAME]")
    what = "run the witness, which sees in the kernel what a PostgreSQL server of this machine executes; as root"
    witness = _command(commands, "witness", "witness:run", what, json_option=False)
    witness.add_argument("--data", required=True, metavar="FOLDER", help="the server's data directory")
    witness.add_argument("--socket", default="/run/pgwarden/witness.sock", metavar="PATH", help="(/run/pgwarden/witness.sock)")
    witness.add_argument("--client", default="pgwarden", metavar="USER", help="who may read: the collector's user (pgwarden)")
    witness.add_argument("--user", default="nobody", metavar="USER", help="what the half that talks becomes (nobody)")
    witness.add_argument(
        "--name", type=_name, default="default", metavar="NAME", help="tells witnesses of one machine apart (default)"
    )
    witness.add_argument("--nested", action="store_true", help="see the SQL inside functions too")
    mib = "of what nobody has read yet, in MiB (16)"
    witness.add_argument("--ring-mib", type=int, choices=(1, 2, 4, 8, 16, 32, 64, 128, 256), default=16, metavar="N", help=mib)
    witness.add_argument(
        "--remove", action="store_true", help="take its probes away, which stay when it ends, and what nobody read"
    )
    what = "run a worker, which shares enforcement on a log in Kafka with others"
    worker = _command(commands, "worker", "processes:worker", what, json_option=False)
    _config(worker)
    worker.add_argument("--name", type=_name, metavar="NAME", help="tells workers of one machine apart")
    status = _command(commands, "status", "health:status", "ask one process of this machine how it is; 0 when it is well")
    status.add_argument("part", choices=STATUS_PARTS, metavar="PART")
    status.add_argument("name", nargs="?", type=_name, metavar="NAME", help="that it was started with, of several")
    _config(status, samples=True)
    what = "which collectors can run here, why not, and what to do; 0 when one sees statements"
    doctor = _command(commands, "doctor", "doctor:doctor", what)
    usual = _usual_config(samples=True)
    doctor.add_argument(
        "-c",
        "--config",
        type=Path,
        default=usual if "PGWARDEN_CONFIG" in os.environ or usual.exists() else None,
        metavar="FILE",
        help="(PGWARDEN_CONFIG, else pgwarden.toml, else that of `up`, where there is one)",
    )
    rebuild = _command(commands, "rebuild", "processes:rebuild", "make the tables anew from the log, and compare them with the old")
    _config(rebuild)

    what = "show the log's topics in Kafka: what is there, and what should be"
    topics = _command(commands, "topics", "log:topics", what)
    _config(topics)
    of_topics = topics.add_subparsers(title="commands", metavar="COMMAND")
    apply = _command(of_topics, "apply", "log:topics_apply", "create the topics that are missing, and change what may be changed")
    _config(apply, inner=True)
    apply.add_argument("--dry-run", action="store_true", help="only say what it would do")
    log = commands.add_parser("log", help="copy the log", description="Copy the log.", epilog=_EXIT_CODES, allow_abbrev=False)
    of_log = log.add_subparsers(title="commands", metavar="COMMAND", required=True)
    copy = _command(of_log, "copy", "log:copy", "copy the log of this machine to Kafka, and prove that all of it is there")
    _config(copy)
    copy.add_argument("--from", dest="from_folder", type=Path, metavar="FOLDER", help="the segments' (log in the state folder)")

    group, agents = _group(commands, "agents", "list agents, register them, give them keys")
    for listing in (group, _client(agents, "list", "agents:list_", "list agents")):
        unused = "only those not seen for so many days, or never"
        listing.add_argument("--unused", type=_positive_whole, default=argparse.SUPPRESS, metavar="DAYS", help=unused)
        _limit(listing)
    register = _client(agents, "register", "agents:register", "register an agent")
    register.add_argument("agent", metavar="NAME")
    register.add_argument("--description", required=True, metavar="TEXT", help="what it does")
    register.add_argument("--owner", required=True, metavar="TEXT", help="the person or team that answers for it")
    register.add_argument("--issuer", default="", metavar="NAME", help="whose tokens name it; goes with --client")
    register.add_argument("--client", default="", metavar="TEXT", help="the client of those tokens")
    register.add_argument("--subject", default="", metavar="TEXT", help="the one `sub` that those tokens may carry")
    register.add_argument("--key", action="store_true", help="make a key for it, and show it once")
    _idempotent(register)
    key = _client(agents, "key", "agents:key", "give an agent a new key, shown once; the old one opens nothing any more")
    key.add_argument("agent", metavar="NAME")
    _idempotent(key)

    group, grants = _group(commands, "grants", "list grants, ask for them, approve, deny, narrow and revoke them")
    for listing in (group, _client(grants, "list", "grants:list_", "list grants")):
        states = ("requested", "approved", "denied", "revoked", "expired")
        listing.add_argument("--agent", default=argparse.SUPPRESS, metavar="NAME", help="only of this agent")
        listing.add_argument("--state", default=argparse.SUPPRESS, choices=states, help="only in this state")
        _limit(listing)
    request = _client(grants, "request", "grants:request", "ask for a grant; somebody else approves it")
    request.add_argument("agent", metavar="AGENT")
    _scope(request)
    request.add_argument(
        "--for", dest="seconds", default=0, type=_duration, metavar="TIME", help="30s, 15m, 8h, 7d; else until revoked"
    )
    request.add_argument("--reason", required=True, metavar="TEXT", help="why the agent needs it")
    _idempotent(request)
    for name, what in (
        ("approve", "approve a grant that somebody else asked for"),
        ("deny", "deny it"),
        ("narrow", "leave it only a part of what it allows; sessions go on within that"),
        ("revoke", "take it back"),
    ):
        act = _client(grants, name, f"grants:{name}", what)
        act.add_argument("grant", metavar="ID")
        if name == "narrow":
            _scope(act)
        if name != "approve":
            act.add_argument("--reason", required=True, metavar="TEXT")
        _idempotent(act)

    group, sources = _group(commands, "sources", "list what is declared to connect round the gateway, declare it, withdraw it")
    for listing in (group, _client(sources, "list", "sources:list_", "list declared sources")):
        listing.add_argument("--state", default=argparse.SUPPRESS, choices=("declared", "withdrawn"), help="only in this state")
        _limit(listing)
    declare = _client(sources, "declare", "sources:declare", "declare connections round the gateway that are meant to be")
    declare.add_argument("source", metavar="NAME")
    kinds = ("backup", "replication", "migration", "monitoring", "administration")
    declare.add_argument("--kind", required=True, choices=kinds)
    declare.add_argument("--role", action="append", required=True, metavar="ROLE", help="the database role; repeat it")
    where = "where it connects from: an address, a network as 10.0.0.0/24, or local"
    declare.add_argument("--from", dest="client_address", default="", metavar="ADDRESS", help=where)
    declare.add_argument("--executable", default="", metavar="PATH", help="of its program, where a collector can tell")
    declare.add_argument("--server", default="", metavar="NAME", help="on this server alone")
    declare.add_argument("--application-name", default="", metavar="TEXT", help="narrows it further; proves nothing")
    declare.add_argument("--reason", required=True, metavar="TEXT", help="why it does not go through the gateway")
    _idempotent(declare)
    withdraw = _client(sources, "withdraw", "sources:withdraw", "take the declaration of a source back")
    withdraw.add_argument("source", metavar="NAME")
    withdraw.add_argument("--reason", required=True, metavar="TEXT")
    _idempotent(withdraw)

    sessions = _client(commands, "sessions", "record:sessions", "list sessions, newest first")
    sessions.add_argument("--live", action="store_true", help="only those that are open now")
    sessions.add_argument("--agent", default="", metavar="NAME")
    _limit(sessions)
    audit = _client(commands, "audit", "record:audit", "what an agent did, newest first")
    audit.add_argument("agent", metavar="AGENT")
    audit.add_argument("--since", type=_duration, metavar="TIME", help="30s, 15m, 1h, 7d")
    audit.add_argument("--denied", action="store_true", help="only what was denied")
    audit.add_argument("--session", default="", metavar="ID")
    _limit(audit)
    sql = _client(commands, "sql", "record:sql", "ask the record in SQL: one SELECT")
    sql.add_argument("query", metavar="SELECT")
    formats = ("table", "json", "csv", "parquet", "arrow")
    sql.add_argument("--format", choices=formats, help="(table; csv is for a spreadsheet, parquet and arrow for a program)")
    sql.add_argument("--output", type=Path, metavar="FILE", help="of csv, parquet and arrow (standard output)")
    report = _client(commands, "report", "report:report", "write an agent's month as one page to hand to an auditor")
    report.add_argument("agent", nargs="?", default="", metavar="AGENT")
    report.add_argument("--month", default="", metavar="YYYY-MM", help="in UTC")
    report.add_argument("--output", type=Path, metavar="FILE", help="an HTML page that only you can read")
    report.add_argument("--check", type=Path, metavar="FILE", help="only say whether such a page is as it was written")
    tail = _client(commands, "tail", "follow:tail", "show what happens now, until Ctrl-C: sessions, statements, refusals, findings")
    tail.add_argument("--agent", default="", metavar="NAME", help="only of this agent")
    tail.add_argument("--decision", default="", choices=("allow", "deny"), help="only statements of which that was decided")
    tail.add_argument("--after", default="", metavar="CURSOR", help="go on where an answer of the API ended (now)")
    tail.add_argument("--resume", type=Path, metavar="FILE", help="keep the place in this file, and go on there next time")
    tail.add_argument("--for", dest="for_seconds", type=_positive, metavar="SECONDS", help="end after so long")
    snapshot = _client(commands, "snapshot", "record:snapshot", "copy the tables, as of now, into a DuckDB file of their own")
    snapshot.add_argument("path", nargs="?", type=Path, metavar="PATH", help="(among the snapshots on the API's machine)")
    snapshot.add_argument(
        "--existing", default="", metavar="NAME", help="fetch one that is there, or `latest`, in place of a new one"
    )
    snapshot.add_argument("--list", action="store_true", help="only say which there are")
    _findings(commands)
    _restraints(commands)
    _client(commands, "health", "record:health", "whether all parts work, and the log takes records")

    for name, what in (
        ("revoke", "stop an agent, a session, a subject, a group or everything now, and show that each session ended"),
        ("reinstate", "take a revocation back"),
        ("retire", "offboard an agent for good: its name never comes back"),
    ):
        act = _client(commands, name, f"revocations:{name}", what)
        if name == "retire":
            act.add_argument("agent", metavar="AGENT")
        else:
            whom = act.add_mutually_exclusive_group(required=True)
            whom.add_argument("agent", nargs="?", default="", metavar="AGENT")
            if name == "revoke":
                whom.add_argument("--session", default="", metavar="ID", help="this session alone")
                act.add_argument(
                    "--of", default="", metavar="AGENT", help="whose --session is, where the tables do not know it yet"
                )
            sub = "whoever acts as this sub of an issuer, or on behalf of it"
            whom.add_argument("--subject", nargs=2, metavar=("ISSUER", "SUBJECT"), help=sub)
            whom.add_argument("--group", nargs=2, metavar=("ISSUER", "GROUP"), help="whoever's token names this group of an issuer")
            whom.add_argument("--all", action="store_true", help="everything")
        act.add_argument("--reason", required=name != "reinstate", default="", metavar="TEXT")
        _idempotent(act)
    _limit(_client(commands, "revocations", "revocations:list_", "list what is revoked now, newest first"))
    return top


def _findings(commands: _Commands) -> None:
    group, findings = _group(commands, "findings", "list what detectors found, acknowledge, confirm, mute and unmute")
    for listing in (group, _client(findings, "list", "findings:list_", "list findings, newest first")):
        listing.add_argument("--agent", default=argparse.SUPPRESS, metavar="NAME", help="only of this agent")
        listing.add_argument("--detector", default=argparse.SUPPRESS, metavar="NAME", help="only of this detector")
        listing.add_argument("--severity", default=argparse.SUPPRESS, choices=("info", "warning", "critical"))
        listing.add_argument("--state", default=argparse.SUPPRESS, choices=("open", "acknowledged", "muted", "confirmed"))
        listing.add_argument("--since", default=argparse.SUPPRESS, type=_duration, metavar="TIME", help="30s, 15m, 1h, 7d")
        _limit(listing)
    show = _client(findings, "show", "findings:show_", "one finding: its numbers, its evidence, and what became of it")
    show.add_argument("finding", metavar="ID")
    for name, what in (
        ("acknowledge", "say that somebody looks after a finding"),
        ("confirm", "say that a finding was what it said"),
    ):
        act = _client(findings, name, f"findings:{name}", what)
        act.add_argument("finding", metavar="ID")
        act.add_argument("--note", default="", metavar="TEXT")
        _idempotent(act)
    mute = _client(findings, "mute", "findings:mute", "let a detector's findings of an agent ask nobody for attention for a time")
    mute.add_argument("finding", nargs="?", default="", metavar="ID", help="its detector, and its agent; or --detector and --of")
    mute.add_argument("--detector", default="", metavar="NAME")
    mute.add_argument("--of", default="", metavar="AGENT", help='"*" = every agent')
    mute.add_argument("--for", dest="seconds", required=True, type=_duration, metavar="TIME", help="15m, 8h, 7d")
    mute.add_argument("--reason", required=True, metavar="TEXT")
    _idempotent(mute)
    unmute = _client(findings, "unmute", "findings:unmute", "take a mute back before its time")
    unmute.add_argument("detector", metavar="DETECTOR")
    unmute.add_argument("of", metavar="AGENT", help='"*" = the mute of every agent')
    unmute.add_argument("--reason", default="", metavar="TEXT")
    _idempotent(unmute)
    _limit(_client(findings, "mutes", "findings:mutes", "list what is muted now"))


def _restraints(commands: _Commands) -> None:
    for name, what in (
        ("hold", "refuse an agent's statements until it is released; its sessions stay"),
        ("release", "release an agent that is held"),
        ("throttle", "let an agent send so many statements a minute at each gateway"),
        ("unthrottle", "take that back"),
    ):
        act = _client(commands, name, f"restraints:{name}", what)
        act.add_argument("agent", metavar="AGENT")
        if name == "throttle":
            act.add_argument("--per-minute", required=True, type=_positive_whole, metavar="N", help="statements")
        act.add_argument("--reason", required=name in ("hold", "throttle"), default="", metavar="TEXT")
        _idempotent(act)
    _, responses = _group(commands, "responses", "what findings lead to by themselves, and who is throttled or held now")
    _client(responses, "list", "responses:list_", "list what was chosen, and who is throttled or held now")
    choose = _client(responses, "choose", "responses:choose", "choose what a detector's findings of an agent lead to by themselves")
    choose.add_argument("detector", metavar="DETECTOR", help='"*" = every detector')
    choose.add_argument("response", choices=("observe", "throttle", "approval", "revoke"), metavar="RESPONSE")
    choose.add_argument("--of", default="*", metavar="AGENT", help="of this agent alone")
    _idempotent(choose)


def _command(commands: _Commands, name: str, run: str, what: str, *, json_option: bool = True) -> argparse.ArgumentParser:
    command = commands.add_parser(
        name, help=what, description=f"{what[0].upper()}{what[1:]}.", epilog=_EXIT_CODES, allow_abbrev=False
    )
    command.set_defaults(run=run)
    if json_option:
        # Without a default: a group and its commands both have it, and the inner default would win over what was given.
        command.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="print one JSON document")
    return command


def _client(commands: _Commands, name: str, run: str, what: str) -> argparse.ArgumentParser:
    """A command that asks the API. Keys are never arguments: every user of the machine can read those."""
    command = _command(commands, name, run, what)
    options = command.add_argument_group("where the API is")
    options.add_argument("--api", default=argparse.SUPPRESS, metavar="URL", help="(PGWARDEN_API, else what the configuration says)")
    options.add_argument(
        "--operator-key-file",
        default=argparse.SUPPRESS,
        metavar="FILE",
        help="(PGWARDEN_OPERATOR_KEY, else operator.key in the state folder)",
    )
    options.add_argument(
        "-c", "--config", default=argparse.SUPPRESS, metavar="FILE", help="(PGWARDEN_CONFIG, else pgwarden.toml, else that of `up`)"
    )
    options.add_argument("--insecure-http", action="store_true", default=argparse.SUPPRESS, help="send the key in clear text")
    return command


def _group(commands: _Commands, name: str, what: str) -> tuple[argparse.ArgumentParser, _Commands]:
    """`pgwarden agents` is `pgwarden agents list`, and takes its options."""
    group = _client(commands, name, f"{name}:list_", what)
    return group, group.add_subparsers(title="commands", metavar="COMMAND")


def _config(command: argparse.ArgumentParser, *, inner: bool = False, samples: bool = False) -> None:
    """`inner`: of a command below one that has the option too, whose value the inner default would replace."""
    default = argparse.SUPPRESS if inner else _usual_config(samples=samples)
    command.add_argument("-c", "--config", type=Path, default=default, metavar="FILE", help="(PGWARDEN_CONFIG, else pgwarden.toml)")


def _usual_config(*, samples: bool) -> Path:
    """`samples`: where there is no other file, what `pgwarden up` wrote for itself."""
    own, of_samples = Path("pgwarden.toml"), Path(".pgwarden/pgwarden.toml")
    usual = of_samples if samples and not own.exists() and of_samples.exists() else own
    return Path(os.environ.get("PGWARDEN_CONFIG") or usual)


def _limit(command: argparse.ArgumentParser) -> None:
    command.add_argument("--limit", type=_positive_whole, default=argparse.SUPPRESS, metavar="N", help=f"how many ({_LIMIT})")
    command.add_argument("--before", default=argparse.SUPPRESS, metavar="CURSOR", help="go on where an earlier answer ended")


def _scope(command: argparse.ArgumentParser) -> None:
    command.add_argument("--connection", required=True, metavar="NAME")
    rule = '"select, insert on public.orders, public.lines", or public.*; repeat it'
    command.add_argument("--allow", action="append", default=[], metavar="RULE", help=rule)
    beyond = "schema.name, beyond the built-in safe list; repeat it"
    command.add_argument("--function", action="append", default=[], metavar="NAME", help=beyond)
    command.add_argument("--channel", action="append", default=[], metavar="NAME", help="of LISTEN and NOTIFY; repeat it")
    command.add_argument("--introspection", action="store_true", help="let it read pg_catalog and information_schema")


def _idempotent(command: argparse.ArgumentParser) -> None:
    command.add_argument("--idempotency-key", default="", metavar="KEY", help="repeat a call whose answer was lost")


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 10**9:
        raise argparse.ArgumentTypeError(f"{printable(text)!r} is no number of seconds; write one as 60")
    return value


def _positive_whole(text: str) -> int:
    if text.isascii() and text.isdigit() and 0 < int(text[:10]) < 10**9 and len(text) < 10:
        return int(text)
    raise argparse.ArgumentTypeError(f"{printable(text)!r} is no whole number above 0; write one as 30")


def _name(text: str) -> str:
    """What may stand in the name of a file and of a writer."""
    if text.isascii() and text.replace("-", "").isalnum() and len(text) <= 63:
        return text
    raise argparse.ArgumentTypeError(f"{printable(text)!r} is no name; write letters, digits and -, at most 63")


def _duration(text: str) -> int:
    """Seconds."""
    number, unit = text[:-1], text[-1:]
    if number.isascii() and number.isdigit() and len(number) < 10 and int(number) > 0 and unit in _UNITS:
        return int(number) * _UNITS[unit]
    raise argparse.ArgumentTypeError(f"{printable(text)!r} is no length of time; write one as 90s, 15m, 8h or 7d")
