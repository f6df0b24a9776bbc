"""Each wrong line of a configuration: which line is named, what is said of it, and what to write instead."""

from __future__ import annotations

import datetime
import os
import pickle
import re
from collections.abc import Mapping
from dataclasses import FrozenInstanceError, fields
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st

from identity import agent_keys
from identity.settings import IssuerRules
from ingest.events import Rule, Scope
from ingest.settings import PARTITIONS, RelaySettings
from pgwarden import settings
from pgwarden.config import Address, Config, ConfigInvalid, load, loads
from pgwarden.first_start import settle, write_configuration

PASSWORD = "canary-of-the-shop-password"
DIGEST = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
ENVIRON = {"SHOP_PASSWORD": PASSWORD}

GOOD = f"""\
state = "state"
[gateway]
listen = "127.0.0.1:6432"
[connections.shop]
host = "127.0.0.1"
database = "shop"
user = "pgwarden"
password = "env:SHOP_PASSWORD"
[issuers.keycloak]
issuer = "https://idp.example/realms/agents"
audience = "pgwarden"
[agents.reporter]
description = "Writes the daily report"
owner = "data team"
issuer = "keycloak"
client = "reporter"
[[agents.reporter.grants]]
connection = "shop"
seconds = 86400
reason = "daily report"
rules = [{{ schema = "public", tables = ["orders"], operations = ["select"] }}]
functions = ["public.total"]
channels = ["orders"]
introspection = true
[operators.alice]
key_sha256 = "{DIGEST}"
"""


def read(text: str, folder: Path = Path("/nowhere"), environ: Mapping[str, str] = ENVIRON) -> Config:
    return loads(text, folder / "pgwarden.toml", environ)


def problems(text: str, folder: Path = Path("/nowhere"), environ: Mapping[str, str] = ENVIRON) -> list[str]:
    with pytest.raises(ConfigInvalid) as caught:
        read(text, folder, environ)
    return [str(problem).removeprefix(f"{folder}/pgwarden.toml:") for problem in caught.value.problems]


def test_a_good_file_becomes_a_config(tmp_path: Path) -> None:
    config = read(GOOD, tmp_path)
    assert config.path == tmp_path / "pgwarden.toml"
    assert config.state == tmp_path / "state"
    assert config.gateway.listen == Address("127.0.0.1", 6432)
    assert (config.gateway.tls, config.gateway.durability, config.gateway.statement_text) == ("required", "group", "full")
    assert (config.gateway.tls_certificate, config.gateway.tls_key, config.gateway.parameters) == (None, None, False)
    assert (str(config.api.listen), str(config.dashboard.listen)) == ("127.0.0.1:8470", "127.0.0.1:8471")
    shop = config.connections["shop"]
    assert (shop.name, shop.host, shop.port, shop.database, shop.user) == ("shop", "127.0.0.1", 5432, "shop", "pgwarden")
    assert (shop.sslmode, shop.sslrootcert, shop.search_path, shop.durability) == ("verify-full", None, ("public",), "group")
    assert shop.password.reveal() == PASSWORD
    assert config.issuers["keycloak"] == IssuerRules("keycloak", "https://idp.example/realms/agents", "pgwarden")
    reporter = config.agents["reporter"]
    assert (reporter.issuer, reporter.client) == ("https://idp.example/realms/agents", "reporter")
    (grant,) = reporter.grants
    assert (grant.seconds, grant.reason) == (86400, "daily report")
    assert grant.scope == Scope("shop", (Rule("public", ("orders",), ("select",)),), ("public.total",), ("orders",), True)
    assert config.operators["alice"].key_sha256 == DIGEST
    assert config.warnings == ()


def test_an_empty_file_is_all_defaults_and_two_warnings() -> None:
    config = read("")
    assert config.state == Path("/nowhere/.pgwarden")
    assert str(config.gateway.listen) == "127.0.0.1:6432"
    assert [warning.reason.partition(":")[0] for warning in config.warnings] == [
        "there is no [connections.NAME]",
        "there is no [operators.NAME]",
    ]


def test_how_looks_are_told_is_configured() -> None:
    chosen = loads(
        "[looks]\nrepeat_seconds = 5.5\nrepeats_max = 10\nrecord_seconds_max = 2.0\n", Path("/nowhere/pgwarden.toml")
    ).looks
    assert (chosen.repeat_seconds, chosen.repeats_max, chosen.record_seconds_max) == (5.5, 10, 2.0)


def test_a_config_does_not_change() -> None:
    config = read(GOOD)
    with pytest.raises(FrozenInstanceError):
        config.state = Path("/")  # type: ignore[misc]
    with pytest.raises(TypeError):
        config.connections["other"] = config.connections["shop"]  # type: ignore[index]


def test_a_config_shows_no_secret_and_is_not_pickled() -> None:
    config = read(GOOD)
    assert PASSWORD not in repr(config) + str(config) + f"{config}"
    with pytest.raises(TypeError):
        pickle.dumps(config)


def test_a_connections_durability_is_the_gateways_unless_it_has_its_own() -> None:
    strict = GOOD.replace("[gateway]", '[gateway]\ndurability = "strict"')
    assert read(strict).connections["shop"].durability == "strict"
    own = strict.replace("[connections.shop]", '[connections.shop]\ndurability = "fast"')
    assert read(own).connections["shop"].durability == "fast"


# -- wrong files -------------------------------------------------------------------------------------------------------------------

# What to write into GOOD: the text to replace, and its replacement, whose wrong line ends in `#!`. Then what is said of it.
WRONG: list[tuple[str, str, str]] = [
    # unknown settings
    ('state = "state"', 'stat = "state" #!', 'the file has no setting "stat"; write "state"'),
    ("[gateway]", "[gatway] #!\n[gateway]", 'the file has no setting "gatway"; write "gateway"'),
    ("[gateway]", '[gateway]\ndurablity = "fast" #!', '[gateway] has no setting "durablity"; write "durability"'),
    ("[gateway]", "[gateway]\nzzz = 1 #!", '[gateway] has no setting "zzz"; delete it, or write one of allow_remote, durability,'),
    ("[gateway]", '[gateway]\n"a\\u001b[31m" = 1 #!', '[gateway] has no setting "a\\x1b[31m"; delete it'),
    ('user = "', 'hots = "x" #!\nuser = "', '[connections.shop] has no setting "hots"; write "host"'),
    ("audience =", 'audiense = "x" #!\naudience =', '[issuers.keycloak] has no setting "audiense"; write "audience"'),
    ("audience =", "jwks = '{}' #!\naudience =", '[issuers.keycloak] has no setting "jwks"; write "jwks_'),
    ('owner = "', 'grant = [] #!\nowner = "', '[agents.reporter] has no setting "grant"; write "grants"'),
    ("seconds = 86400", "second = 86400 #!", '[agents.reporter.grants[0]] has no setting "second"; write "seconds"'),
    (
        'operations = ["select"] }]',
        'operations = ["select"], table = "a" }] #!',
        '[agents.reporter.grants[0].rules[0]] has no setting "table"; write "tables"',
    ),
    ("key_sha256", 'key = "x" #!\nkey_sha256', '[operators.alice] has no setting "key"; delete it, or write one of key_sha256'),
    # missing ones
    ('host = "127.0.0.1"\n', "", 'connections.shop.host is missing; write host = "…"'),
    ('password = "env:SHOP_PASSWORD"\n', "", 'connections.shop.password is missing; write password = "…", the reference'),
    ('issuer = "https://idp.example/realms/agents"\n', "", "issuers.keycloak.issuer is missing; write issuer as a string"),
    ('owner = "data team"\n', "", "agents.reporter.owner is missing; write owner = "),
    ('connection = "shop"\n', "", "agents.reporter.grants[0].connection is missing; write connection = "),
    ('reason = "daily report"\n', "", "agents.reporter.grants[0].reason is missing; write reason = "),
    ('tables = ["orders"], ', "", 'agents.reporter.grants[0].rules[0].tables is missing; write tables = ["…"]'),
    (f'key_sha256 = "{DIGEST}"\n', "", "operators.alice.key_sha256 is missing; write key_sha256 = "),
    # types
    ('state = "state"', "state = 1 #!", 'state is a number; write text in quotes: state = "…"'),
    ('state = "state"', 'state = "" #!', "state is empty; write something"),
    ("[gateway]", 'api = "127.0.0.1:8470" #!\n[gateway]', "api is text; write a table: [api]"),
    ("[gateway]", '[agents]\nx = "reads" #!\n[gateway]', "agents.x is text; write a table for each: [agents.NAME]"),
    ("[gateway]", '[gateway]\nparameters = "no" #!', "gateway.parameters is text; write parameters = true or parameters = false"),
    ("[gateway]", "[gateway]\nparameters = 1 #!", "gateway.parameters is a number; write parameters = true or"),
    (
        "[gateway]",
        "[gateway]\ntls = true #!",
        'gateway.tls is a boolean, which is none of required, optional; write one of "required"',
    ),
    ('host = "127.0.0.1"', 'host = "::1"\nport = "5432" #!', "connections.shop.port is text; write a whole number from 1 to 65535"),
    (
        'host = "127.0.0.1"',
        'host = "::1"\nport = true #!',
        "connections.shop.port is a boolean; write a whole number from 1 to 65535",
    ),
    (
        'host = "127.0.0.1"',
        'host = "::1"\nport = 1.5 #!',
        "connections.shop.port is a number with a fraction; write a whole number",
    ),
    ('host = "127.0.0.1"', "host = 1979-05-27 #!", "connections.shop.host is a date or time; write text in quotes"),
    ('user = "', 'search_path = "app" #!\nuser = "', 'connections.shop.search_path is text; write a list: search_path = ["app"]'),
    ('user = "', 'search_path = [\n"a",\n2] #!\nuser = "', "connections.shop.search_path[1] is a number; write text in quotes"),
    ('user = "', 'search_path = ["a", ""] #!\nuser = "', "connections.shop.search_path[1] is empty; write a name, or leave it out"),
    ('user = "', 'search_path = ["a", "a"] #!\nuser = "', 'connections.shop.search_path[1] names "a" twice; write it once'),
    ("rules = [{", "rules = 3 #!\n_ = [{", 'agents.reporter.grants[0].rules is a number; write rules = [{ schema = "public"'),
    ("rules = [{", 'rules = ["orders"] #!\n_ = [{', "agents.reporter.grants[0].rules[0] is text; write rules = [{ schema ="),
    ("audience =", "algorithms = 1 #!\naudience =", "issuers.keycloak.algorithms cannot be used; write a list of strings"),
    # values
    ('state = "state"', f'state = "{"s" * 100}" #!', "state is /nowhere/"),
    (
        "127.0.0.1:6432",
        "127.0.0.1:99999",
        'gateway.listen is "127.0.0.1:99999"; write an IP address and a port, as listen = "127.0.0.1:6432"',
    ),
    ("127.0.0.1:6432", "127.0.0.1", 'gateway.listen is "127.0.0.1"; write an IP address and a port'),
    ("127.0.0.1:6432", ":6432", 'gateway.listen is ":6432"; write an IP address and a port'),
    ("127.0.0.1:6432", "::1:6432", 'gateway.listen is "::1:6432"; write an IP address and a port'),
    ("127.0.0.1:6432", "gateway.example:6432", 'gateway.listen is "gateway.example:6432"; write an IP address and a port'),
    ("127.0.0.1:6432", "127.0.0.1:٣", 'gateway.listen is "127.0.0.1:٣"; write an IP address and a port'),
    (
        "127.0.0.1:6432",
        "0.0.0.0:6432",
        'gateway.listen is 0.0.0.0:6432, which other machines can reach; write listen = "127.0.0.1:6432", or add allow_remote = true',
    ),
    ("127.0.0.1:6432", "[::]:6432", "gateway.listen is [::]:6432, which other machines can reach; write listen = "),
    ("127.0.0.1:6432", "", "gateway.listen is empty; write something"),
    (
        "[gateway]",
        '[api]\nlisten = "192.0.2.1:8470" #!\n[gateway]',
        "api.listen is 192.0.2.1:8470, which other machines can reach;",
    ),
    (
        "[gateway]",
        '[dashboard]\nlisten = "0.0.0.0:1" #!\n[gateway]',
        "dashboard.listen is 0.0.0.0:1, which other machines can reach;",
    ),
    (
        "[gateway]",
        '[api]\nlisten = "127.0.0.1:6432" #!\n[gateway]',
        "api.listen is 127.0.0.1:6432, as gateway.listen is; write another port",
    ),
    (
        "[gateway]",
        '[gateway]\ntls = "requird" #!',
        'gateway.tls is "requird", which is none of required, optional; write tls = "required"',
    ),
    (
        "[gateway]",
        '[gateway]\ndurability = "safe" #!',
        'gateway.durability is "safe", which is none of fast, group, strict, replicated; write one of',
    ),
    (
        "[gateway]",
        '[gateway]\ndurability = "" #!',
        'gateway.durability is "", which is none of fast, group, strict, replicated; write one of "fast"',
    ),
    ("[gateway]", '[gateway]\nname = "Gateway 1" #!', 'gateway.name is "Gateway 1", which is no name for a gateway; write 1 to 63'),
    (
        "[gateway]",
        '[gateway]\ndurability = "replicated" #!',
        'gateway.durability is "replicated", and log.backend is "segments": there is one copy; write durability = "strict", or backend',
    ),
    (
        'user = "',
        'durability = "replicated" #!\nuser = "',
        'connections.shop.durability is "replicated", and log.backend is "segments"',
    ),
    (
        "[gateway]",
        '[log]\nbackend = "kafak" #!\n[gateway]',
        'log.backend is "kafak", which is none of segments, kafka; write backend',
    ),
    (
        "[gateway]",
        "[looks]\nrepeat_seconds = -1.0 #!\n[gateway]",
        "looks.repeat_seconds is -1; write a number from 0 to 3600",
    ),
    ("[gateway]", "[looks]\nrepeats_max = 0 #!\n[gateway]", "looks.repeats_max is 0; write a whole number from 1 to 1000000"),
    (
        "[gateway]",
        "[log]\nbacklog_bytes_max = 2000000 #!\n[gateway]",
        'log.backlog_bytes_max is set, and log.backend is "segments"; delete backlog_bytes_max: there are no brokers to wait for',
    ),
    (
        "[gateway]",
        '[kafka] #!\nbootstrap = ["127.0.0.1:9092"]\n[gateway]',
        '[kafka] stands here, and log.backend is "segments"; write backend = "kafka" below [log], or delete [kafka]',
    ),
    (
        "[gateway]",
        '[log]\nbackend = "kafka" #!\n[gateway]\nname = "a"',
        'log.backend is "kafka", and there is no [kafka]; write a table [kafka] with bootstrap',
    ),
    ("[gateway]", '[gateway]\nstatement_text = "none" #!', 'gateway.statement_text is "none", which is none of full, fingerprint;'),
    ("[gateway]", '[gateway]\ntls_certificate = "c.pem" #!', "gateway.tls_certificate is set without tls_key; write tls_key"),
    ("[gateway]", '[gateway]\ntls_key = "k.pem" #!', "gateway.tls_key is set without tls_certificate; write tls_certificate"),
    ("[connections.shop]", '[connections."a b"] #!', 'connections."a b" is no name for a connection; write 1 to 63 of a-z'),
    ('host = "127.0.0.1"', 'host = "/var/run/postgresql" #!', 'connections.shop.host is "/var/run/postgresql"; write a host name'),
    ('host = "127.0.0.1"', 'host = "10.0.0.300" #!', 'connections.shop.host is "10.0.0.300"; write a host name'),
    ('host = "127.0.0.1"', 'host = "db.example:5432" #!', 'connections.shop.host is "db.example:5432"; write a host name'),
    (
        'host = "127.0.0.1"',
        'host = "db.example host=evil" #!',
        'connections.shop.host is "db.example host=evil"; write a host name',
    ),
    (
        'host = "127.0.0.1"',
        'host = "<the host of your PostgreSQL>" #!',
        "still holds the placeholder of pgwarden init; write the host of",
    ),
    ('host = "127.0.0.1"', 'host = "a\\u202eb" #!', "connections.shop.host holds control characters or line ends; write one line"),
    ('host = "127.0.0.1"', 'host = "::1"\nport = 0 #!', "connections.shop.port is 0; write a whole number from 1 to 65535"),
    ('host = "127.0.0.1"', 'host = "::1"\nport = 65536 #!', "connections.shop.port is 65536; write a whole number from 1 to 65535"),
    ('host = "127.0.0.1"', f'host = "::1"\nport = {"9" * 50} #!', "connections.shop.port is a huge number; write a whole number"),
    ('database = "shop"', f'database = "{"é" * 32}" #!', "connections.shop.database is longer than 63 bytes; write the name as"),
    ('user = "pgwarden"', 'user = "a\\u0000b" #!', "connections.shop.user holds control characters or line ends; write one line"),
    ('user = "', 'sslmode = "prefer" #!\nuser = "', 'connections.shop.sslmode is "prefer", which is none of disable, require,'),
    (
        'user = "',
        'sslrootcert = "no.pem" #!\nuser = "',
        "connections.shop.sslrootcert is /nowhere/no.pem, which cannot be read: no such",
    ),
    (
        'user = "',
        'search_path = ["$user"] #!\nuser = "',
        'connections.shop.search_path[0] holds "$user"; write the schema\'s own name',
    ),
    ('user = "', 'search_path = ["pg_temp"] #!\nuser = "', 'connections.shop.search_path[0] holds "pg_temp"; leave it out'),
    ("[issuers.keycloak]", "[issuers.Bad] #!\n[issuers.keycloak]", "issuers.Bad is no name for an issuer; write 1 to 63"),
    ("https://idp", "http://idp", "issuers.keycloak.issuer cannot be used; write an https URL, or set insecure_http = true"),
    (
        "audience =",
        'algorithms = ["HS256"] #!\naudience =',
        "issuers.keycloak.algorithms cannot be used; HS256 cannot be used; choose of",
    ),
    ("audience =", "leeway_seconds = 60 #!\naudience =", "issuers.keycloak.leeway_seconds cannot be used; at most 30"),
    (
        "audience =",
        'types = ["JWT"] #!\naudience =',
        "issuers.keycloak.types cannot be used; 'JWT' is not said of access tokens only;",
    ),
    (
        "audience =",
        'operator_groups = ["ops"] #?\naudience =',
        "issuers.keycloak.operator_clients is missing; with groups of operators, name",
    ),
    ("audience =", 'ca_file = "no.pem" #!\naudience =', "issuers.keycloak.ca_file is /nowhere/no.pem, which cannot be read"),
    ("audience =", 'jwks_file = "no.json" #!\naudience =', "issuers.keycloak.jwks_file is /nowhere/no.json, which cannot be read"),
    (
        "[agents.reporter]",
        "[agents.Reporter] #!",
        "agents.Reporter is no name for an agent; write 1 to 63 of a-z, 0-9, '.', '_', '-'",
    ),
    ("[agents.reporter]", '[agents."../x"] #!', 'agents."../x" is no name for an agent; write 1 to 63'),
    ("[agents.reporter]", "[agents.config] #!", "agents.config is a name that the record gives to this file; write another name"),
    ('issuer = "keycloak"', 'issuer = "keycloack" #!', 'is "keycloack", and there is no [issuers.keycloack]; write "keycloak"'),
    ('issuer = "keycloak"\n', "", 'agents.reporter.issuer is missing, though client is set; write issuer = "…"'),
    ('client = "reporter"\n', "", 'agents.reporter.client is missing, though issuer is set; write client = "…"'),
    (
        'issuer = "keycloak"\nclient = "reporter"',
        'subject = "x" #!',
        "agents.reporter.subject is set without issuer and client; write issuer and client",
    ),
    ('owner = "data team"', f'owner = "{"x" * 257}" #!', "agents.reporter.owner is longer than 256 characters; write less"),
    ('owner = "data team"', 'owner = " " #!', "agents.reporter.owner is empty; write something"),
    ('owner = "data team"', 'owner = """a\nb""" #?', "agents.reporter.owner holds control characters or line ends; write one line"),
    (
        "[operators.alice]",
        '[agents.two]\ndescription = "x"\nowner = "y"\nissuer = "keycloak"\nclient = "reporter" #!\n[operators.alice]',
        "agents.two.client is the same client as that of the agent reporter; give each agent a client of its own, or pin",
    ),
    ('connection = "shop"', 'connection = "shopp" #!', 'is "shopp", and there is no [connections.shopp]; write "shop"'),
    ("seconds = 86400", "seconds = -1 #!", "agents.reporter.grants[0].seconds is -1; write a whole number from 0 to 315360000"),
    ('"public"', '"*"', 'agents.reporter.grants[0].rules[0].schema is "*"; write one rule for each schema'),
    ('["orders"],', '["public.orders"],', 'rules[0].tables[0] is "public.orders"; write "orders"; the schema stands in schema'),
    ('["orders"],', '["*", "a"],', 'rules[0].tables holds "*" beside other tables; write tables = ["*"] for all'),
    ('["orders"],', "[],", "rules[0].tables is empty; write tables = "),
    ('["select"]', "[]", "rules[0].operations is empty; write operations = "),
    ('["select"]', '["SELECT"]', 'rules[0].operations[0] is "SELECT", which is no operation; write "select"'),
    ('["select"]', '["grant"]', 'rules[0].operations[0] is "grant", which is no operation; write one of select, insert'),
    ('["select"]', '["selct"]', 'rules[0].operations[0] is "selct", which is no operation; write "select"'),
    ('"public.total"', '"total"', 'agents.reporter.grants[0].functions holds "total"; write its schema and name without arguments'),
    ('"public.total"', '"public.total(int)"', 'agents.reporter.grants[0].functions holds "public.total(int)"; write its schema'),
    (
        "[operators.alice]",
        "[operators.config] #!",
        "operators.config is a name that the record gives to this file; write the name of",
    ),
    (
        "[operators.alice]",
        "[operators.pgwarden] #!",
        "operators.pgwarden is a name that the record gives to answers to findings; write the name of",
    ),
    (
        "[operators.alice]",
        "[operators.Alice] #!",
        "operators.Alice is no name for an operator; write 1 to 63 of a-z, 0-9, '.', '_', '-', '@'",
    ),
    (DIGEST, DIGEST.upper(), "operators.alice.key_sha256 is no SHA-256; write the 64 lower-case hex digits"),
    (
        "[operators.alice]",
        f'[operators.bob]\nkey_sha256 = "{DIGEST}"\n[operators.alice]',
        "operators.alice.key_sha256 is the key of bob; make each operator a key of their own",
    ),
]


@pytest.mark.parametrize(("old", "new", "said"), WRONG, ids=[f"{index}-{said[:40]}" for index, (_, _, said) in enumerate(WRONG)])
def test_a_wrong_line_is_named_with_its_remedy(old: str, new: str, said: str) -> None:
    assert GOOD.count(old) >= 1
    text = GOOD.replace(old, new, 1)
    found = problems(text)
    assert any(said in problem for problem in found), found
    if "#!" in new:
        line = text.count("\n", 0, text.index("#!")) + 1
        assert [problem for problem in found if problem.startswith(f"{line}: ") and said in problem], found
    elif "\n" not in old + new:
        line = text.count("\n", 0, text.index(new)) + 1 if new else 0
        assert not line or any(problem.startswith(f"{line}: ") and said in problem for problem in found), found


MISSING_LINES = [
    ('host = "127.0.0.1"\n', "[connections.shop]"),
    ('owner = "data team"\n', "[agents.reporter]"),
    ('reason = "daily report"\n', "[[agents.reporter.grants]]"),
    ('audience = "pgwarden"\n', "[issuers.keycloak]"),
    (f'key_sha256 = "{DIGEST}"\n', "[operators.alice]"),
]


@pytest.mark.parametrize(("gone", "header"), MISSING_LINES)
def test_a_missing_setting_is_reported_at_its_table(gone: str, header: str) -> None:
    text = GOOD.replace(gone, "")
    line = text.count("\n", 0, text.index(header)) + 1
    (found,) = problems(text)
    assert found.startswith(f"{line}: {gone.partition(' ')[0] and header.strip('[]')}")


@pytest.mark.parametrize("name", ["connections", "issuers", "agents", "operators"])
def test_a_list_in_place_of_named_tables_is_refused(name: str) -> None:
    assert problems(f"\n{name} = []\n") == [f"2: {name} is a list; write a table for each: [{name}.NAME]"]


def test_every_problem_is_reported_at_once_in_the_order_of_the_file() -> None:
    text = GOOD.replace("127.0.0.1:6432", "nonsense").replace('"env:SHOP_PASSWORD"', '"hunter2"').replace('["select"]', '["drop"]')
    text = text.replace("https://", "http://").replace(DIGEST, "abc").replace('owner = "data team"\n', "")
    found = problems(text)
    lines = [int(problem.partition(":")[0]) for problem in found]
    assert lines == sorted(lines)
    assert len(found) == 6


def test_what_is_wrong_with_an_issuer_does_not_hide_the_rest() -> None:
    text = GOOD.replace('audience = "pgwarden"', 'algorithms = ["HS256"]\ninsecure_http = 1')
    found = problems(text)
    assert {re.search(r"issuers\.keycloak\.(\w+)", problem)[1] for problem in found} == {"audience", "algorithms", "insecure_http"}  # type: ignore[index]


def test_many_problems_are_cut() -> None:
    found = problems("".join(f"wrong{number} = 1\n" for number in range(1000)))
    assert len(found) == settings.PROBLEMS_MAX + 1
    assert found[-1].endswith("800 more problems; correct these first")


# -- the log in Kafka ------------------------------------------------------------------------------------------------------------

KAFKA = GOOD.replace("[gateway]", '[gateway]\nname = "gateway-a"') + (
    """\
[log]
backend = "kafka"
backlog_bytes_max = 2000000
stale_seconds_max = 2.5
[kafka]
bootstrap = ["kafka-1.example:9093", "[::1]:9094"]
sasl = "SCRAM-SHA-512"
user = "warden"
password = "env:KAFKA_PASSWORD"
topic_prefix = "audit."
sessions_partitions = 3
retention_days = 7
"""
)
BROKERS_PASSWORD = "canary-of-the-brokers-password"
BOTH = {**ENVIRON, "KAFKA_PASSWORD": BROKERS_PASSWORD}


def test_a_log_in_kafka_is_configured() -> None:
    config = read(KAFKA, environ=BOTH)
    assert (config.gateway.name, config.log.backend) == ("gateway-a", "kafka")
    assert (config.log.relay.backlog_bytes_max, config.log.relay.stale_seconds_max) == (2_000_000, 2.5)
    kafka = config.kafka
    assert kafka is not None
    assert kafka.bootstrap == ("kafka-1.example:9093", "[::1]:9094")
    assert (kafka.tls, kafka.sasl, kafka.user, kafka.topic_prefix) == (True, "SCRAM-SHA-512", "warden", "audit.")
    assert kafka.password() == BROKERS_PASSWORD
    assert (kafka.replication, kafka.in_sync_min, kafka.retention_days) == (3, 2, 7)
    assert kafka.partitions == {**PARTITIONS, "sessions": 3}
    assert config.warnings == ()
    assert BROKERS_PASSWORD not in repr(config)


def test_a_log_on_this_machine_has_no_brokers() -> None:
    config = read(GOOD)
    assert (config.log.backend, config.kafka, config.gateway.name) == ("segments", None, "gateway-1")
    assert config.log.relay == RelaySettings()


# As WRONG, for KAFKA.
WRONG_OF_KAFKA = [
    (
        'name = "gateway-a"\n',
        "",
        'gateway.name is missing, and log.backend is "kafka": several gateways write one record; write name',
    ),
    ('bootstrap = ["kafka-1.example:9093", "[::1]:9094"]\n', "", "kafka.bootstrap is missing; write bootstrap = "),
    ('["kafka-1.example:9093", "[::1]:9094"]', "[] #!", 'kafka.bootstrap is empty; write bootstrap = ["HOST:PORT"]'),
    ('"[::1]:9094"', '"kafka-2.example"', 'kafka.bootstrap[1] is "kafka-2.example"; write a host and a port'),
    ('"[::1]:9094"', '"::1:9094"', 'kafka.bootstrap[1] is "::1:9094"; write a host and a port'),
    ('"[::1]:9094"', '"http://kafka:9092"', 'kafka.bootstrap[1] is "http://kafka:9092"; write a host and a port'),
    ('"[::1]:9094"', '"a:0"', 'kafka.bootstrap[1] is "a:0"; write a host and a port'),
    ('"[::1]:9094"', "3", "kafka.bootstrap[1] is a number; write text in quotes"),
    ("[kafka]", "[kafka]\ntls = false #!", "kafka.tls is false, and kafka-1.example is another machine; write tls = true, or add"),
    (
        "[kafka]",
        '[kafka]\nallow_plaintext = true\ntls = false\ncertificate_file = "c.pem" #!',
        "kafka.certificate_file is set, and tls is false; delete certificate_file, or write tls = true",
    ),
    (
        "[kafka]",
        '[kafka]\ncertificate_file = "c.pem" #!',
        "kafka.certificate_file is set without key_file; write key_file, the path",
    ),
    (
        "[kafka]",
        '[kafka]\nkey_file = "c.pem" #!',
        "kafka.key_file is set without certificate_file; write certificate_file, the path",
    ),
    ("[kafka]", '[kafka]\nca_file = "no.pem" #!', "kafka.ca_file is /nowhere/no.pem, which cannot be read"),
    ('"SCRAM-SHA-512"', '"SCRAM-SHA-1" #!', 'kafka.sasl is "SCRAM-SHA-1", which is none of PLAIN, SCRAM-SHA-256, SCRAM-SHA-512'),
    ('user = "warden"\n', "", 'kafka.user is missing, and sasl is "SCRAM-SHA-512"; write user = '),
    (
        'password = "env:KAFKA_PASSWORD"\n',
        "",
        'kafka.password is missing, and sasl is "SCRAM-SHA-512"; write password = "env:NAME"',
    ),
    ('sasl = "SCRAM-SHA-512"\n', "", "kafka.password is set without sasl; write sasl = "),
    ('sasl = "SCRAM-SHA-512"\n', "", "kafka.user is set without sasl; write sasl = "),
    ('"env:KAFKA_PASSWORD"', '"hunter2" #!', "kafka.password is a literal, and a secret is never written into this file"),
    ('"audit."', '"audit/" #!', "kafka.topic_prefix is \"audit/\"; write letters, digits, '.', '_' and '-' only"),
    ("retention_days = 7", "retention_days = 0 #!", "kafka.retention_days is 0; write a whole number from 1 to 36500"),
    (
        "sessions_partitions = 3",
        "sessions_partitions = 0 #!",
        "kafka.sessions_partitions is 0; write a whole number from 1 to 1000",
    ),
    ("sessions_partitions = 3", "identity_partitions = 3 #!", '[kafka] has no setting "identity_partitions"'),
    (
        "[kafka]",
        "[kafka]\nin_sync_min = 4 #!",
        "kafka.in_sync_min is 4 and replication 3: nothing could ever be written; write in_sync_min = 2",
    ),
    (
        "[kafka]",
        "[kafka]\nreplication = 1 #!",
        "kafka.in_sync_min is 2 and replication 1: nothing could ever be written; write in_sync",
    ),
    ("backlog_bytes_max = 2000000", "backlog_bytes_max = 5 #!", "log.backlog_bytes_max is 5; write a whole number from 1048576 to"),
    ("stale_seconds_max = 2.5", "stale_seconds_max = 0.5 #!", "log.stale_seconds_max is 0.5; write a number from 1 to 3600"),
    ("stale_seconds_max = 2.5", "stale_seconds_max = nan #!", "log.stale_seconds_max is nan; write a number from 1 to 3600"),
    (
        "stale_seconds_max = 2.5",
        'stale_seconds_max = "2" #!',
        "log.stale_seconds_max is text; write a number from 1 to 3600, without",
    ),
    ("stale_seconds_max = 2.5", "stale_seconds_max = true #!", "log.stale_seconds_max is a boolean; write a number from 1 to 3600"),
]


@pytest.mark.parametrize(
    ("old", "new", "said"), WRONG_OF_KAFKA, ids=[f"{n}-{said[:40]}" for n, (_, _, said) in enumerate(WRONG_OF_KAFKA)]
)
def test_a_wrong_line_about_kafka_is_named_with_its_remedy(old: str, new: str, said: str) -> None:
    assert KAFKA.count(old) == 1
    text = KAFKA.replace(old, new)
    found = problems(text, environ=BOTH)
    line = f"{text.count(chr(10), 0, text.index('#!')) + 1}: " if "#!" in new else ""
    assert [problem for problem in found if problem.startswith(line) and said in problem], found
    assert "hunter2" not in "".join(found)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (
            "[kafka]",
            "[kafka]\ntls = false\nallow_plaintext = true",
            "kafka.tls is false, and kafka-1.example is another machine: the record crosses",
        ),
        (
            "[kafka]",
            "[kafka]\nin_sync_min = 3",
            "kafka.in_sync_min is 3, as replication is: nothing can be written while one broker is away",
        ),
        (
            "[kafka]",
            "[kafka]\nreplication = 1\nin_sync_min = 1",
            'gateway.durability is "replicated", and kafka.in_sync_min is 1: one broker is enough',
        ),
    ],
)
def test_what_is_less_than_safe_about_kafka_is_warned_of(old: str, new: str, said: str) -> None:
    text = KAFKA.replace("[gateway]", '[gateway]\ndurability = "replicated"').replace(old, new)
    (warning,) = read(text, environ=BOTH).warnings
    assert said in warning.reason


def test_brokers_on_this_machine_need_no_tls() -> None:
    text = KAFKA.replace("kafka-1.example", "localhost").replace("[kafka]", "[kafka]\ntls = false")
    config = read(text, environ=BOTH)
    assert config.warnings == ()
    assert config.kafka is not None
    assert config.kafka.tls is False


def test_a_client_certificate_for_the_brokers_is_tried(tmp_path: Path) -> None:
    certificate(tmp_path, "a")
    certificate(tmp_path, "b")
    text = KAFKA.replace("[kafka]", '[kafka]\nca_file = "b.pem"\ncertificate_file = "a.pem"\nkey_file = "a.key"')
    kafka = read(text, tmp_path, BOTH).kafka
    assert kafka is not None
    assert (kafka.ca_file, kafka.certificate_file) == (str(tmp_path / "b.pem"), str(tmp_path / "a.pem"))
    (found,) = problems(text.replace("a.key", "b.key"), tmp_path, BOTH)
    assert "kafka.certificate_file does not go with key_file: key values mismatch" in found


# -- secrets -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("literal", ["hunter2-canary", "ENV:hunter2-canary", "env:hunter2-canary", "", "<hunter2-canary>"])
@pytest.mark.parametrize("setting", ["password", "key", "key_verifier", "key_sha256"])
def test_a_literal_secret_is_refused_and_never_repeated(literal: str, setting: str) -> None:
    if setting == "password":
        text = GOOD.replace('"env:SHOP_PASSWORD"', f'"{literal}" #!')
    elif setting == "key_sha256":
        text = GOOD.replace(f'"{DIGEST}"', f'"{literal}" #!')
    else:
        text = GOOD.replace('owner = "data team"', f'owner = "data team"\n{setting} = "{literal}" #!')
    if setting.startswith("key") and setting != "key_sha256" and not literal:
        return  # the default
    line = text.count("\n", 0, text.index("#!")) + 1
    found = problems(text)
    assert [problem for problem in found if problem.startswith(f"{line}: ")]
    assert "hunter2" not in "".join(found)


def test_a_variable_that_is_not_set_is_named() -> None:
    (found,) = problems(GOOD, environ={})
    assert found == (
        "8: connections.shop.password names the environment variable SHOP_PASSWORD, which is not set;"
        " export SHOP_PASSWORD before you start pgwarden"
    )


def test_a_password_file_is_relative_to_the_configuration_and_private(tmp_path: Path) -> None:
    text = GOOD.replace('"env:SHOP_PASSWORD"', '"file:shop.password"')
    (found,) = problems(text, tmp_path)
    assert (
        found
        == f"8: connections.shop.password names the file {tmp_path}/shop.password, which cannot be read: no such file or directory; make {tmp_path}/shop.password with mode 0600"
    )
    (tmp_path / "shop.password").write_text(PASSWORD + "\n")
    (tmp_path / "shop.password").chmod(0o644)
    (found,) = problems(text, tmp_path)
    assert (
        found
        == f"8: connections.shop.password names the file {tmp_path}/shop.password, which others may read (mode 0644); run: chmod 600 {tmp_path}/shop.password"
    )
    (tmp_path / "shop.password").chmod(0o600)
    assert read(text, tmp_path).connections["shop"].password.reveal() == PASSWORD


def test_an_agents_key_is_one_of_ours() -> None:
    text = GOOD.replace('issuer = "keycloak"\nclient = "reporter"', 'key = "env:REPORTER_KEY"')
    key, _, _ = agent_keys.create()
    config = read(text, environ={**ENVIRON, "REPORTER_KEY": key})
    secret = config.agents["reporter"].key
    assert secret is not None
    assert secret.reveal() == key
    assert config.warnings == ()
    (found,) = problems(text, environ={**ENVIRON, "REPORTER_KEY": "my own password"})
    assert found.startswith("15: agents.reporter.key names env:REPORTER_KEY, which holds no agent key; write a key that")
    assert "my own" not in found


def test_an_agents_verifier_is_checked() -> None:
    _, _, verifier = agent_keys.create()
    text = GOOD.replace('issuer = "keycloak"\nclient = "reporter"', f'key_verifier = "{verifier}"')
    assert read(text).agents["reporter"].key_verifier == verifier
    weak = text.replace("$4096:", "$1:")
    (found,) = problems(weak)
    assert found.startswith("15: agents.reporter.key_verifier is no verifier; correct it: ")
    both = text.replace("key_verifier", 'key = "env:SHOP_PASSWORD"\nkey_verifier')
    assert any(
        "16: agents.reporter.key_verifier is set together with key; write one of the two" in found for found in problems(both)
    )


# -- certificates and folders -----------------------------------------------------------------------------------------------------


def certificate(folder: Path, name: str) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    built = (
        x509.CertificateBuilder(subject, subject, key.public_key(), x509.random_serial_number(), now, now + datetime.timedelta(1))
        .sign(key, hashes.SHA256())
        .public_bytes(serialization.Encoding.PEM)
    )  # fmt: skip
    (folder / f"{name}.pem").write_bytes(built)
    for suffix, encryption in (("key", serialization.NoEncryption()), ("locked", serialization.BestAvailableEncryption(b"x"))):
        pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)
        (folder / f"{name}.{suffix}").write_bytes(pem)
        (folder / f"{name}.{suffix}").chmod(0o600)


def with_tls(certificate: str, key: str) -> str:
    return GOOD.replace("[gateway]", f'[gateway]\ntls_certificate = "{certificate}"\ntls_key = "{key}"')


def test_a_certificate_and_its_key_are_tried(tmp_path: Path) -> None:
    certificate(tmp_path, "a")
    certificate(tmp_path, "b")
    config = read(with_tls("a.pem", "a.key"), tmp_path)
    assert (config.gateway.tls_certificate, config.gateway.tls_key) == (tmp_path / "a.pem", tmp_path / "a.key")
    (found,) = problems(with_tls("a.pem", "b.key"), tmp_path)
    assert found.startswith(
        "3: gateway.tls_certificate does not go with tls_key: key values mismatch; write a PEM certificate chain"
    )
    (found,) = problems(with_tls("a.key", "a.key"), tmp_path)
    assert found.startswith("3: gateway.tls_certificate does not go with tls_key: ")
    (found,) = problems(with_tls("a.pem", "a.locked"), tmp_path)
    assert found.startswith(f"4: gateway.tls_key is {tmp_path}/a.locked, which has a passphrase; decrypt it with")
    (found,) = problems(with_tls("a.pem", "none.key"), tmp_path)
    assert found.startswith(f"4: gateway.tls_key is {tmp_path}/none.key, which cannot be read: no such file or directory; write")
    (tmp_path / "a.key").chmod(0o640)
    (found,) = problems(with_tls("a.pem", "a.key"), tmp_path)
    assert found == f"4: gateway.tls_key is {tmp_path}/a.key, which others may read; run: chmod 600 {tmp_path}/a.key"


def test_root_certificates_are_tried(tmp_path: Path) -> None:
    certificate(tmp_path, "a")
    text = GOOD.replace('user = "', 'sslrootcert = "a.pem"\nuser = "').replace("audience =", 'ca_file = "a.pem"\naudience =')
    config = read(text, tmp_path)
    assert config.connections["shop"].sslrootcert == tmp_path / "a.pem"
    assert config.issuers["keycloak"].ca_file == str(tmp_path / "a.pem")
    found = problems(text.replace("a.pem", "a.key"), tmp_path)
    assert [problem.partition("; ")[2] for problem in found] == ["name a file of PEM certificates"] * 2


def test_a_jwks_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "keys.json").write_text('{"keys": []}')
    config = read(GOOD.replace("audience =", 'jwks_file = "keys.json"\naudience ='), tmp_path)
    assert config.issuers["keycloak"].jwks == '{"keys": []}'


def test_a_state_folder_that_cannot_serve_is_refused(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("")
    (found,) = problems(GOOD, tmp_path)
    assert found == f"1: state is {tmp_path}/state, which is not a folder; write the path of a folder, or of none yet"
    (tmp_path / "state").unlink()
    (tmp_path / "state").mkdir()
    (tmp_path / "state").chmod(0o775)
    (found,) = problems(GOOD, tmp_path)
    assert found == f"1: state is {tmp_path}/state, which others may change; run: chmod 700 {tmp_path}/state"
    (tmp_path / "state").chmod(0o700)
    read(GOOD, tmp_path)


def test_the_samples_folder_serves_no_other_configuration(tmp_path: Path) -> None:
    home = settle(tmp_path / "state", None)
    write_configuration(home, 5432, Path("/srv/pg/log"))
    load(home.config)
    (found,) = problems(GOOD, tmp_path)
    assert "whose agents would reach your databases" in found


# -- warnings ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sslmode", ["disable", "require", "verify-ca"])
def test_weak_tls_to_another_machine_is_warned_of_and_allowed(sslmode: str) -> None:
    text = GOOD.replace('host = "127.0.0.1"', f'host = "db.example"\nsslmode = "{sslmode}"')
    (warning,) = read(text).warnings
    assert str(warning).startswith(f'/nowhere/pgwarden.toml:6: connections.shop.sslmode is "{sslmode}": ')
    assert warning.remedy == 'write sslmode = "verify-full" and sslrootcert'


def test_weak_tls_on_this_machine_and_full_tls_are_not_warned_of() -> None:
    assert read(GOOD.replace('host = "127.0.0.1"', 'host = "localhost"\nsslmode = "disable"')).warnings == ()
    assert read(GOOD.replace('host = "127.0.0.1"', 'host = "db.example"')).warnings == ()


def test_a_remote_listener_in_clear_text_is_warned_of() -> None:
    remote = '[api]\nlisten = "0.0.0.0:8470"\nallow_remote = true\n[dashboard]\nlisten = "[::]:8471"\nallow_remote = true\n'
    config = read(remote + GOOD.replace('state = "state"\n', "").replace("[gateway]", "[gateway]\nallow_remote = true"))
    assert [warning.reason.partition(" ")[0] for warning in config.warnings] == ["api.listen", "dashboard.listen"]
    assert (str(config.dashboard.listen), config.dashboard.allow_remote) == ("[::]:8471", True)


def test_an_agent_that_cannot_connect_is_warned_of() -> None:
    (warning,) = read(GOOD.replace('issuer = "keycloak"\nclient = "reporter"\n', "")).warnings
    assert warning.line == 12
    assert warning.reason == "agents.reporter has neither a key nor a token's client: it cannot connect"


# -- the file itself ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        ("a = 1\nb = \nc = 2\n", 2, "the value is not valid TOML; write text in quotes"),
        ('state = "x"\n[gateway]\nlisten = 127.0.0.1:6432\n', 3, "; write settings as name = "),
        ('state = "x"\nstate = "y"\n', 2, "a setting or table of this name was already written above; write each setting once"),
        (
            GOOD + '[agents.reporter]\nowner = "z"\n',
            27,
            "the table [agents.reporter] stands here a second time; write each table once",
        ),
        ('state = "x\n', 1, "not valid TOML: illegal character"),
        ('a = [\n"x",\n', 2, "close the string, list or table that is open here"),
        ("rules = [{ a = 1,\n b = 2 }]\n", 1, "keep all that stands between { and } on one line"),
        ("just words\n", 1, "not valid TOML"),
        ("\ufeffstate = 'x'\n", 1, "the file starts with a byte order mark; save the file as UTF-8 without one"),
        ("a = " + "[" * 4000, 0, "nested too deeply"),
        ("\n".join(["a = 1", "x" * 20_000]), 2, "the line is longer than 8192 characters; break the list into lines"),
        ("\n" + ".".join(["a"] * 4000) + " = 1", 2, 'the file has no setting "a"'),
    ],
)
def test_a_text_that_is_not_toml_is_refused_with_its_line(text: str, line: int, said: str) -> None:
    (found,) = problems(text)
    assert said in found
    assert found.startswith(f"{line}: ") if line else True


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigInvalid, match=r'pgwarden\.toml: there is no such file; run "pgwarden init" to write one'):
        load(tmp_path / "pgwarden.toml", ENVIRON)


def test_a_file_that_anybody_may_change_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "pgwarden.toml"
    path.write_text(GOOD)
    path.chmod(0o666)
    with pytest.raises(ConfigInvalid, match="anybody on this machine may change the file; run: chmod o-w"):
        load(path, ENVIRON)
    path.chmod(0o644)
    assert load(path, ENVIRON).path == path


def test_what_is_no_file_of_moderate_size_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigInvalid, match="not a regular file"):
        load(tmp_path, ENVIRON)
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(ConfigInvalid, match="not a regular file"):
        load(tmp_path / "fifo", ENVIRON)
    with pytest.raises(ConfigInvalid, match="not a regular file"):
        load(Path("/dev/zero"), ENVIRON)
    (tmp_path / "huge").touch()
    os.truncate(tmp_path / "huge", 1 << 40)
    with pytest.raises(ConfigInvalid, match="larger than 1048576 bytes"):
        load(tmp_path / "huge", ENVIRON)


def test_bytes_that_are_no_text_are_refused_with_their_line(tmp_path: Path) -> None:
    (tmp_path / "pgwarden.toml").write_bytes(b"a = 1\nb = '\xff'\n")
    with pytest.raises(ConfigInvalid, match=r"pgwarden\.toml:2: this line is not UTF-8 text; save the file as UTF-8"):
        load(tmp_path / "pgwarden.toml", ENVIRON)


@pytest.mark.timeout(30)
def test_a_file_made_to_exhaust_its_reader_is_refused_in_seconds() -> None:
    """Looking for the nearest of 12,000 names, 12,000 times, takes many minutes."""
    issuers = "".join(f"[issuers.issuerissuer{number}]\nx = 1\n" for number in range(12_000))
    agents = "".join(f'[agents.a{number}]\nissuer = "issuerissue{number}"\n' for number in range(12_000))
    assert len(problems(issuers + agents)) == settings.PROBLEMS_MAX + 1


@given(st.data())
def test_a_damaged_file_gives_a_config_or_problems_with_remedies_and_nothing_else(data: st.DataObject) -> None:
    lines = GOOD.splitlines(keepends=True)
    for _ in range(data.draw(st.integers(1, 3))):
        index = data.draw(st.integers(0, len(lines) - 1))
        line = lines[index]
        at = data.draw(st.integers(0, len(line)))
        value = data.draw(
            st.sampled_from(["", "1", "[]", '""', "{}", "true", "-1", "1.5", '[""]', "[[]]", "[{}]", '"\\u0000"', "\udcff"])
        )
        lines[index] = data.draw(
            st.sampled_from([line[:at] + value + line[at + 1 :], line.partition("=")[0] + "= " + value + "\n", "", line * 2])
        )
    try:
        config = read("".join(lines))
    except ConfigInvalid as invalid:
        refused = invalid.problems
    else:
        assert config.state.is_absolute()
        return
    assert refused
    assert all(problem.reason and problem.remedy for problem in refused)
    assert all(str(problem).isprintable() and PASSWORD not in str(problem) for problem in refused)


# -- the table of settings ---------------------------------------------------------------------------------------------------------


def test_the_issuers_settings_are_those_of_the_rules() -> None:
    names = {field.name for field in fields(IssuerRules)} - {"name", "jwks"} | {"jwks_file"}
    assert {setting.name for setting in settings.ISSUER} == names


@pytest.mark.parametrize("table", settings.TABLES)
def test_a_setting_has_a_name_of_its_own_a_unit_and_one_sentence(table: str) -> None:
    rows = settings.TABLES[table]
    assert len({row.name for row in rows}) == len(rows)
    for row in rows:
        assert row.unit
        assert row.sentence.endswith(".")
        assert "\n" not in row.sentence


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"issuer": None}, "dashboard.client_id is set without issuer"),
        ({"issuer": '"nobody"'}, 'dashboard.issuer is "nobody", and there is no [issuers.nobody]'),
        ({"client_id": None}, "dashboard.client_id is missing, though issuer is set"),
        ({"client_id": '"other"'}, 'dashboard.client_id is "other", whose tokens the API takes from nobody'),
        ({"client_secret": None}, "dashboard.client_secret is missing, though issuer is set"),
        ({"address": None}, "dashboard.address is missing, though issuer is set"),
        ({"address": '"http://desk.example"'}, "dashboard.address leads over the network in clear text"),
        ({"address": '"https://desk.example/below"'}, "dashboard.address is no address of a site"),
        ({"scope": '"profile"'}, "dashboard.scope does not ask for openid"),
        ({}, ""),
    ],
)
def test_how_people_sign_in_is_checked_as_a_whole(changed: dict[str, str | None], said: str) -> None:
    rows = {
        "issuer": '"idp"',
        "client_id": '"desk"',
        "client_secret": '"env:DESK"',
        "address": '"https://desk.example"',
        **changed,
    }
    written = "\n".join(f"{name} = {value}" for name, value in rows.items() if value is not None)
    text = f"""[dashboard]
{written}
[issuers.idp]
issuer = "https://idp.example"
audience = "pgwarden"
operator_clients = ["desk"]
viewer_groups = ["people"]
"""
    if said:
        with pytest.raises(ConfigInvalid) as invalid:
            loads(text, Path("pgwarden.toml"), {"DESK": "s3cret"})
        assert said in str(invalid.value)
        assert "s3cret" not in str(invalid.value)
    else:
        sign_in = loads(text, Path("pgwarden.toml"), {"DESK": "s3cret"}).dashboard.sign_in
        assert sign_in is not None
        assert sign_in.client_secret.reveal() == "s3cret"
