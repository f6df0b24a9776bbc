"""A statement and an agent's live grants in; a decision with its reason out. What no grant names is denied.

`docs/scope.md` says for people what stands here for the machine.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final, TypeAlias

from identity import builtin_functions
from identity.catalogs import READABLE
from ingest import events
from ingest.sql import Name, Operation, Statement

OPERATIONS: Final[tuple[Operation, ...]] = ("select", "insert", "update", "delete", "ddl", "copy", "call")


@dataclass(frozen=True, slots=True)
class LiveGrant:
    """An approved grant that has neither expired nor been revoked: `identity.registry` is the only one who says so."""

    id: str
    agent: str
    scope: events.Scope
    approver: str
    expires_at_us: int  # 0 = never


@dataclass(frozen=True, slots=True)
class Authority:
    """What one agent may do on one connection at one moment."""

    agent: str
    connection: str
    search_path: tuple[str, ...]  # as pinned by the gateway
    grants: tuple[LiveGrant, ...]


@dataclass(frozen=True, slots=True)
class Allow:
    rule: str  # "select public.orders by g-1"
    grants: tuple[str, ...]  # those that it needed


@dataclass(frozen=True, slots=True)
class Deny:
    sqlstate: str
    rule: str  # which kind of rule is missing: "never", "relation", "function", ...
    reason: str  # one ASCII sentence that an agent can act on


Decision: TypeAlias = Allow | Deny

_EXECUTE_DEPTH_MAX: Final = 4  # a prepared EXECUTE of a prepared EXECUTE; PostgreSQL itself refuses most of them
_RULE_PARTS_MAX: Final = 8
_REASON_CHARACTERS_MAX: Final = 400

_PHRASES: Final[dict[Operation, str]] = {
    "select": "select from",
    "insert": "insert into",
    "update": "update",
    "delete": "delete from",
    "ddl": "create, alter or drop",
    "copy": "copy",
    "call": "call",
}


def decide(
    statement: Statement, authority: Authority, prepared: Mapping[str, Statement], callable_names: frozenset[str]
) -> Decision:
    """Hold a statement against the union of the agent's grants.

    `prepared`: the session's statements by name, those of PREPARE and those of the protocol: PostgreSQL keeps both in one table.
    `callable_names`: without schema, the functions of the database outside pg_catalog that can be called with one argument.
    """
    judge = _Judge(authority)
    denied = judge.statement(statement, prepared, callable_names, depth=0)
    if denied is not None:
        return denied
    parts = list(judge.rules)
    if len(parts) > _RULE_PARTS_MAX:
        parts[_RULE_PARTS_MAX:] = [f"{len(parts) - _RULE_PARTS_MAX} more"]
    rule = "; ".join(parts) if parts else f"{statement.verb.lower()} needs no grant"
    return Allow(_ascii(rule), tuple(judge.used))


def beyond(wider: events.Scope, narrower: events.Scope) -> Iterator[str]:
    """What `narrower` allows and `wider` does not, each in a few words: nothing, if it is a part of it.

    `"*"` covers every name; no list of names covers `"*"`. Whatever `decide` allows under a part it allows under the whole.
    """
    if narrower.connection != wider.connection:
        yield f"connection {narrower.connection}"
    allowed: dict[tuple[str, str], frozenset[str]] = {}
    for rule in wider.rules:
        for table in rule.tables:
            allowed[rule.schema, table] = allowed.get((rule.schema, table), frozenset()) | frozenset(rule.operations)
    for rule in narrower.rules:
        whole_schema = allowed.get((rule.schema, "*"))
        for table in rule.tables:
            this_table = allowed.get((rule.schema, table))
            if this_table is None and whole_schema is None and not rule.operations:
                yield f"{rule.schema}.{table}"  # a rule without operations still allows the types of its tables
            held = (this_table or frozenset()) | (whole_schema or frozenset())
            yield from (f"{operation} on {rule.schema}.{table}" for operation in rule.operations if operation not in held)
    for kind, wanted, given in (
        ("function", narrower.functions, frozenset(wider.functions)),
        ("channel", narrower.channels, frozenset(wider.channels)),
    ):
        yield from (f"{kind} {name}" for name in wanted if name not in given)
    if narrower.introspection and not wider.introspection:
        yield "introspection"


class _Judge:
    """Which grants one statement needed, gathered until one is missing."""

    __slots__ = ("authority", "grants", "rules", "schemas", "used")

    def __init__(self, authority: Authority) -> None:
        self.authority = authority
        # Whoever put them together: a grant of another agent or for another database proves nothing here.
        self.grants = [
            grant for grant in authority.grants if grant.agent == authority.agent and grant.scope.connection == authority.connection
        ]
        # pg_catalog has no relation whose name does not begin with pg_, and agents make nothing in pg_temp.
        self.schemas = tuple(schema for schema in authority.search_path if schema not in ("pg_catalog", "pg_temp"))
        self.rules: dict[str, None] = {}
        self.used: dict[str, None] = {}

    def statement(
        self, statement: Statement, prepared: Mapping[str, Statement], callable_names: frozenset[str], depth: int
    ) -> Deny | None:
        if statement.refusal:
            return self.deny("never", f"may not run this {statement.verb} on", statement.refusal)
        return (
            self.first(self.access(access.schema, access.name, access.operation) for access in statement.accesses)
            or self.first(self.function(function) for function in statement.functions)
            or self.first(self.extension("operator", operator) for operator in statement.operators)
            or self.first(self.type(name) for name in statement.types)
            or self.first(self.attribute(name, callable_names) for name in statement.attributes)
            or (self.introspection("look up names of tables, functions or types") if statement.introspects else None)
            or self.first(self.channel(name) for name in statement.channels)
            or (self.execute(statement.executes, prepared, callable_names, depth) if statement.executes else None)
        )

    @staticmethod
    def first(answers: Iterator[Deny | None]) -> Deny | None:
        return next((answer for answer in answers if answer is not None), None)

    def deny(self, rule: str, what: str, advice: str, sqlstate: str = "42501") -> Deny:
        reason = f"agent {self.authority.agent} {what} {self.authority.connection}: {advice}"
        return Deny(sqlstate, rule, _ascii(reason)[:_REASON_CHARACTERS_MAX])

    def allow(self, rule: str, grant: LiveGrant) -> None:
        self.rules[f"{rule} by {grant.id}"] = None
        self.used[grant.id] = None

    # -- one thing that a statement touches: None, or why not

    def access(self, schema: str, name: str, operation: Operation) -> Deny | None:
        if schema:
            schemas: tuple[str, ...] = (schema,)
        elif name.startswith("pg_"):  # pg_catalog comes before the search_path
            schemas = ("pg_catalog",)
        else:
            schemas = self.schemas
        if not schemas:
            return self.deny("relation", f"may not {_PHRASES[operation]} {name} on", "write its schema before it")
        # Which of them has the relation only the server knows: all must allow.
        return self.first(self.relation(schema, name, operation) for schema in schemas)

    def relation(self, schema: str, name: str, operation: Operation) -> Deny | None:
        if schema in READABLE:
            if operation == "select" and name in READABLE[schema]:
                return self.introspection(f"select from {schema}.{name}")
            return self.deny("catalog", f"may not {_PHRASES[operation]} {schema}.{name} on", "no grant can allow this catalog")
        if schema.startswith("pg_"):
            return self.deny("catalog", f"may not {_PHRASES[operation]} {schema}.{name} on", "no grant can allow this schema")
        for grant in self.grants:
            for rule in grant.scope.rules:
                if rule.schema == schema and operation in rule.operations and (name in rule.tables or "*" in rule.tables):
                    self.allow(f"{operation} {schema}.{name}", grant)
                    return None
        what = f"{schema}.{name}" if name != "*" else f"everything in the schema {schema}"
        return self.deny("relation", f"may not {_PHRASES[operation]} {what} on", f"ask for a grant with the operation {operation}")

    def introspection(self, what: str) -> Deny | None:
        for grant in self.grants:
            if grant.scope.introspection:
                self.allow("introspection", grant)
                return None
        return self.deny("introspection", f"may not {what} on", "ask for a grant with introspection")

    def function(self, function: Name) -> Deny | None:
        schema, name = function.schema, function.name
        written = f"{schema}.{name}" if schema else name
        if name in builtin_functions.NEVER_OF_EXTENSIONS:
            return self.deny("function", f"may not call {written} on", "no grant can allow this function")
        if schema == "information_schema":
            return self.introspection(f"call {written}")
        if schema not in ("", "pg_catalog"):
            return self.extension("function", function)
        if name in builtin_functions.SAFE:
            return None
        if name in builtin_functions.INTROSPECTION:
            return self.introspection(f"call {written}")
        if name in builtin_functions.GRANTABLE:
            return self.named("function", (f"pg_catalog.{name}",), written)
        if schema or _never(name):
            return self.deny("function", f"may not call {written} on", "no grant can allow this function")
        return self.extension("function", function)

    def extension(self, kind: str, name: Name) -> Deny | None:
        """A function, operator or type of the database's own; without a schema, every schema of the path must be granted."""
        written = f"{name.schema}.{name.name}" if name.schema else name.name
        if name.schema.startswith("pg_"):
            return self.deny(kind, f"may not use the {kind} {written} on", f"no grant can allow this {kind}")
        schemas = (name.schema,) if name.schema else self.schemas
        return self.named(kind, [f"{schema}.{name.name}" for schema in schemas], written)

    def named(self, kind: str, names: Iterable[str], written: str) -> Deny | None:
        """Of names in `functions`, which hold operators and types as well."""
        names = tuple(names)
        verb = "call" if kind == "function" else f"use the {kind}"
        if not names:
            return self.deny(kind, f"may not {verb} {written} on", "write its schema before it")
        for name in names:
            grant = next((grant for grant in self.grants if name in grant.scope.functions), None)
            if grant is None:
                return self.deny(kind, f"may not {verb} {written} on", f"ask for a grant with the function {name}")
            self.allow(f"{kind} {name}", grant)
        return None

    def type(self, name: Name) -> Deny | None:
        """A type goes with the tables of its schema: its row types by their table's name, all of them by `*`."""
        if name.schema in READABLE:
            return self.introspection(f"use the type {name.schema}.{name.name}")
        schemas = (name.schema,) if name.schema else self.schemas
        rules = [(grant, rule) for grant in self.grants for rule in grant.scope.rules]
        for schema in schemas:
            for grant, rule in rules:
                if rule.schema == schema and (name.name in rule.tables or "*" in rule.tables) and not schema.startswith("pg_"):
                    self.allow(f"type {schema}.{name.name}", grant)
                    break
            else:
                return self.extension("type", Name(schema, name.name))
        return None if schemas else self.extension("type", name)

    def attribute(self, name: str, callable_names: frozenset[str]) -> Deny | None:
        """`o.name` calls name(o) when o has no such column, and what o is only the server knows."""
        if name not in callable_names and (name in builtin_functions.SAFE or not _builtin(name)):
            return None
        schemas = self.schemas if name in callable_names else ("pg_catalog",)
        denied = self.function(Name("pg_catalog", name)) if _builtin(name) else None
        if denied is None and name in callable_names:
            denied = self.named("function", [f"{schema}.{name}" for schema in schemas], name)
        if denied is None:
            return None
        return self.deny(
            "attribute",
            f"may not write .{name} on",
            f"it could call the function {name}: write the column without its table, or ask for a grant with the function",
        )

    def channel(self, name: str) -> Deny | None:
        for grant in self.grants:
            if name in grant.scope.channels:
                self.allow(f"channel {name}", grant)
                return None
        return self.deny("channel", f"may not use the channel {name} on", "ask for a grant with this channel")

    def execute(self, name: str, prepared: Mapping[str, Statement], callable_names: frozenset[str], depth: int) -> Deny | None:
        known = prepared.get(name)
        if known is None:
            return self.deny("prepared", f"may not execute {name} on", "this session has not prepared it", sqlstate="26000")
        if depth >= _EXECUTE_DEPTH_MAX:
            return self.deny("prepared", f"may not execute {name} on", "it executes itself")
        return self.statement(known, prepared, callable_names, depth + 1)


def _never(name: str) -> bool:
    return name.startswith("pg_") or name in builtin_functions.NEVER


def _builtin(name: str) -> bool:
    return _never(name) or name in builtin_functions.INTROSPECTION or name in builtin_functions.GRANTABLE


def _ascii(text: str) -> str:
    """Names come from the client: nothing of them may break the line, the terminal or the log."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(c if " " <= c <= "~" else c.encode("unicode_escape", "backslashreplace").decode() for c in text)
