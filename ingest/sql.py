"""SQL text in; out come its statements and what each one touches, by PostgreSQL's own grammar.

Nothing here decides: `identity.scope` does. What is not understood is a refusal, never a guess.

pglast's JSON form is read, never its object form, which crashes the process on deep nesting. The walk is driven by the tables of
`ingest.sql_nodes`: every field of every node is looked into, and one that does not stand there refuses the statement.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, Final, Literal, TypeAlias

import orjson
from pglast import parser

from ingest.sql_limits import Limits, broken, tokens_at_most
from ingest.sql_names import NAME_TYPES, OPERATORS, OTHER_TYPES, SERIALS, SETTABLE, SHOWABLE, TYPES
from ingest.sql_nodes import FIELDS, LEAF, NODE, OWN

Operation: TypeAlias = Literal["select", "insert", "update", "delete", "ddl", "copy", "call"]


@dataclass(frozen=True, slots=True)
class Name:
    schema: str  # "" = written without one; the search_path decides
    name: str


@dataclass(frozen=True, slots=True)
class Access:
    schema: str  # "" = written without one; the search_path decides
    name: str  # "*" = the schema itself
    operation: Operation


@dataclass(frozen=True, slots=True)
class Statement:
    verb: str  # "SELECT", "CREATE TABLE", ...
    start: int  # slice of the text's UTF-8 bytes
    end: int
    accesses: tuple[Access, ...] = ()
    functions: tuple[Name, ...] = ()
    operators: tuple[Name, ...] = ()  # those that PostgreSQL does not bring
    types: tuple[Name, ...] = ()  # those that PostgreSQL does not bring
    attributes: tuple[str, ...] = ()  # last parts of multi-part column references: `o.f` calls f(o) when o has no column f
    introspects: bool = False  # uses regclass and its kin, which tell whether a name exists
    channels: tuple[str, ...] = ()  # LISTEN, NOTIFY
    settings: tuple[str, ...] = ()  # SET, RESET, SHOW
    prepares: str = ""  # SQL PREPARE's name
    prepared: Statement | None = None  # and what it prepares; its accesses stand in this statement as well
    executes: str = ""  # SQL EXECUTE's name
    deallocates: str = ""  # DEALLOCATE's name, "*" for all
    declares: str = ""  # DECLARE's cursor
    fetches: str = ""  # FETCH's, MOVE's or CLOSE's cursor, "*" for all
    transaction: str = ""  # "begin" | "commit" | "rollback" | "savepoint" | "release" | "rollback to" | ""
    refusal: str = ""  # why this is never allowed, whoever asks; "" = ask `identity.scope.decide`
    copies_in: bool = False  # COPY FROM STDIN: it reads on from the client
    unbounded: bool = False  # changes or reads every row of a table: no condition, no limit


@dataclass(frozen=True, slots=True)
class Script:
    statements: tuple[Statement, ...]  # none for an empty text or a comment
    fingerprint: str  # libpg_query's, 16 hex digits


@dataclass(frozen=True, slots=True)
class Unparsable:
    sqlstate: str  # 42601 syntax, 54000 and 54001 limits, 22021 not UTF-8, 08P01 a zero byte
    message: str  # as PostgreSQL words it
    position: int  # in characters from 1; 0 = nowhere in particular


# CPython frames are on the heap, but a deeper tree than any person or program writes is not worth a longer stop of the event loop.
_DEPTH_MAX: Final = 256
_MESSAGE_CHARACTERS_MAX: Final = 500  # `at or near "..."` quotes the token, which may be the whole text
DEFAULT_LIMITS: Final = Limits()
_TOO_DEEP: Final = Unparsable("54001", "stack depth limit exceeded", 0)


def parse(text: str, limits: Limits = DEFAULT_LIMITS) -> Script | Unparsable:
    """Never raises, whatever the text."""
    try:
        raw = text.encode()
    except UnicodeEncodeError as error:  # a lone surrogate
        return Unparsable("22021", 'invalid byte sequence for encoding "UTF8"', error.start + 1)
    limit = broken(text, raw, limits)
    if limit is not None:
        return Unparsable(*limit, 0)
    try:
        tree = orjson.loads(parser.parse_sql_json(text))
        fingerprint = parser.fingerprint(text)
    except parser.ParseError as error:
        return _unparsable(error)
    except orjson.JSONDecodeError:  # deeper than orjson's 1024
        return _TOO_DEEP
    except Exception as error:  # a fault of the parser on this text must cost this text alone
        return Unparsable("42601", f"the statement cannot be read ({type(error).__name__})", 0)
    return Script(tuple(_statements(tree, len(raw))), fingerprint)


def parses_inline(text: str, limits: Limits = DEFAULT_LIMITS) -> bool:
    """Whether `parse` is quick enough for an event loop; what is not belongs to `ingest.parser_process`."""
    if len(text) * 4 <= limits.parse_inline_tokens_max:
        return True
    raw = text.encode(errors="replace")
    return len(raw) <= limits.parse_inline_bytes_max and tokens_at_most(raw) <= limits.parse_inline_tokens_max


def relation_names(statement: Statement) -> tuple[str, ...]:
    """Each relation once, as it was written, for the record."""
    return tuple(dict.fromkeys(f"{a.schema}.{a.name}" if a.schema else a.name for a in statement.accesses))


def _unparsable(error: parser.ParseError) -> Unparsable:
    message = str(error.args[0])[:_MESSAGE_CHARACTERS_MAX]
    place = error.args[1] if len(error.args) > 1 else None
    position = place + 1 if isinstance(place, int) and place >= 0 else 0
    if message.startswith(("stack depth limit exceeded", "memory exhausted")):
        return Unparsable("54001", "stack depth limit exceeded", position)
    return Unparsable("42601", message, position)


# -- the walk --------------------------------------------------------------------------------------------------------------------

_Node: TypeAlias = dict[str, Any]


def _statements(tree: _Node, length: int) -> Iterable[Statement]:
    for raw in tree.get("stmts", ()):
        start = raw.get("stmt_location", 0)
        end = start + raw["stmt_len"] if raw.get("stmt_len") else length
        yield _statement(raw.get("stmt", {}), start, end)


def _statement(wrapped: _Node, start: int, end: int) -> Statement:
    walk = _Walk()
    try:
        walk.utility(wrapped)
    except Exception as error:  # default deny: a shape that the walk did not expect is a statement that nobody has judged
        walk.refuse(f"it cannot be judged ({type(error).__name__})")
    return walk.statement(start, end)


class _TooDeep(Exception):
    """Ends the walk of one statement, which is refused."""


class _Walk:
    """What one statement touches, gathered while its tree is read once."""

    __slots__ = (
        "accesses",
        "attributes",
        "channels",
        "copies_in",
        "ctes",
        "deallocates",
        "declares",
        "depth",
        "excluded",
        "executes",
        "fetches",
        "functions",
        "introspects",
        "operators",
        "prepared",
        "prepares",
        "reads",
        "refusal",
        "settings",
        "transaction",
        "types",
        "unbounded",
        "verb",
    )

    def __init__(self) -> None:
        # Dictionaries, where sets would lose the order of the text.
        self.accesses: dict[tuple[str, str, Operation], None] = {}
        self.functions: dict[tuple[str, str], None] = {}
        self.operators: dict[tuple[str, str], None] = {}
        self.types: dict[tuple[str, str], None] = {}
        self.attributes: dict[str, None] = {}
        self.channels: dict[str, None] = {}
        self.settings: dict[str, None] = {}
        self.ctes: frozenset[str] = frozenset()  # those that are in scope here
        self.depth = 0
        self.reads = 0  # column references so far
        self.excluded = 0  # and those of them that are to `excluded`
        self.introspects = self.copies_in = self.unbounded = False
        self.prepared: Statement | None = None
        self.verb = self.prepares = self.executes = self.deallocates = self.declares = self.fetches = ""
        self.transaction = self.refusal = ""

    def statement(self, start: int, end: int) -> Statement:
        return Statement(
            verb=self.verb,
            start=start,
            end=end,
            accesses=tuple([Access(*access) for access in self.accesses]),
            functions=tuple([Name(*name) for name in self.functions]),
            operators=tuple([Name(*name) for name in self.operators]),
            types=tuple([Name(*name) for name in self.types]),
            attributes=tuple(self.attributes),
            introspects=self.introspects,
            channels=tuple(self.channels),
            settings=tuple(self.settings),
            prepares=self.prepares,
            prepared=self.prepared,
            executes=self.executes,
            deallocates=self.deallocates,
            declares=self.declares,
            fetches=self.fetches,
            transaction=self.transaction,
            refusal=self.refusal,
            copies_in=self.copies_in,
            unbounded=self.unbounded,
        )

    def refuse(self, why: str) -> None:
        self.refusal = self.refusal or why  # the first reason; the walk goes on, for the record

    # -- any node

    def utility(self, wrapped: _Node) -> None:
        """A statement, as against an expression: what may stand at the top, or after EXPLAIN."""
        if len(wrapped) != 1:
            self.refuse("it is not one statement")
        for kind, node in wrapped.items():
            handler = _STATEMENTS.get(kind)
            self.verb = self.verb or _verb(kind)
            if handler is None:
                self.refuse(_NEVER.get(kind, f"{_verb(kind)} is not a statement that agents may run"))
            else:
                handler(self, node)

    def node(self, wrapped: Any) -> None:
        """Nodes under their types' names, in lists within lists or alone."""
        if type(wrapped) is list:
            for item in wrapped:
                self.node(item)
            return
        for kind, node in wrapped.items():
            _NODES.get(kind, _Walk.fields)(self, kind, node)

    def fields(self, kind: str, node: _Node) -> None:
        known = FIELDS.get(kind)
        if known is None:
            self.refuse(f"{_words(kind)} is not something that agents may use")
            return
        self.depth += 1
        if self.depth > _DEPTH_MAX:
            self.refuse(f"it is nested deeper than {_DEPTH_MAX} levels")
            raise _TooDeep
        for field, value in node.items():
            child = known.get(field)
            if child in (LEAF, OWN):
                continue
            if child == NODE:
                self.node(value)
            elif child is None:
                self.refuse(f"{_words(field)} of {_words(kind)} is not something that agents may use")
            else:
                _NODES.get(child, _Walk.fields)(self, child, value)
        self.depth -= 1

    # -- names

    def access(self, range_var: _Node, *operations: Operation) -> None:
        """A relation that is named as such, where a CTE cannot stand."""
        self.fields("RangeVar", range_var)
        if "catalogname" in range_var:
            self.refuse(_THREE_PARTS)
        if range_var.get("relpersistence") == "t":  # pg_temp is searched first: a temporary table would shadow the granted one
            self.refuse("temporary tables, views and sequences are not something that agents may make")
        for operation in operations:
            self.accesses[_clipped(range_var.get("schemaname", "")), _clipped(range_var["relname"]), operation] = None

    def named(self, parts: list[str], *operations: Operation) -> None:
        """The same for a relation that the grammar gives as a list of names."""
        if not 1 <= len(parts) <= 2:
            self.refuse(_THREE_PARTS)
            return
        schema = _clipped(parts[0]) if len(parts) == 2 else ""
        for operation in operations:
            self.accesses[schema, _clipped(parts[-1]), operation] = None

    def range_var(self, kind: str, node: _Node) -> None:
        """A relation in FROM, or a CTE."""
        if "schemaname" in node or _clipped(node["relname"]) not in self.ctes:
            self.access(node, "select")

    def column_ref(self, kind: str, node: _Node) -> None:
        parts = _strings(node["fields"], star="*")
        self.reads += 1
        if len(parts) > 1:
            self.excluded += parts[0] == "excluded"
            if len(parts) > 3:
                self.refuse(_THREE_PARTS)
            if "A_Star" not in node["fields"][-1]:
                self.attributes[_clipped(parts[-1])] = None
        if len(node) > 2:
            self.fields(kind, node)

    def indirection(self, kind: str, node: _Node) -> None:
        for item in node["indirection"]:
            if "String" in item:  # `(x).f` calls f(x), without a FuncCall in the tree
                self.refuse("the notation (value).name can call a function: write the column without parentheses, or name(value)")
            self.node(item)
        self.fields(kind, node)

    def function(self, kind: str, node: _Node) -> None:
        parts = _strings(node["funcname"])
        if not 1 <= len(parts) <= 2:
            self.refuse(_THREE_PARTS)
        elif len(parts) == 1 or parts[0] == "pg_catalog":
            special = _SPECIAL_FUNCTIONS.get(parts[-1])
            if special is None or not special(self, node):
                self.functions[parts[0] if len(parts) == 2 else "", _clipped(parts[-1])] = None
        else:
            self.functions[_clipped(parts[0]), _clipped(parts[1])] = None
        self.fields(kind, node)

    def type_name(self, kind: str, node: _Node) -> None:
        parts = _strings(node["names"])
        name = parts[-1]
        element = name.removeprefix("_")  # `_int4` is the array of int4
        if not 1 <= len(parts) <= 2:
            self.refuse(_THREE_PARTS)
        elif len(parts) == 2 and parts[0] != "pg_catalog":
            self.types[_clipped(parts[0]), _clipped(name)] = None
        elif element in NAME_TYPES:
            self.introspects = True
        elif element not in TYPES and not (len(parts) == 1 and name in SERIALS):
            builtin = len(parts) == 2 or element in OTHER_TYPES or element.startswith("pg_")
            self.types["pg_catalog" if builtin else "", _clipped(name)] = None
        self.fields(kind, node)

    def operator(self, parts: list[str]) -> None:
        if not 1 <= len(parts) <= 2:
            self.refuse(_THREE_PARTS)
        elif parts[-1] not in OPERATORS or parts[:-1] not in ([], ["pg_catalog"]):
            self.operators[_clipped(parts[0]) if len(parts) == 2 else "", parts[-1]] = None

    def a_expr(self, kind: str, node: _Node) -> None:
        self.operator(_strings(node["name"]))
        self.fields(kind, node)

    def sub_link(self, kind: str, node: _Node) -> None:
        if "operName" in node:
            self.operator(_strings(node["operName"]))
        self.fields(kind, node)

    def sort_by(self, kind: str, node: _Node) -> None:
        if "useOp" in node:
            self.operator(_strings(node["useOp"]))
        self.fields(kind, node)

    def table_sample(self, kind: str, node: _Node) -> None:
        method = _strings(node["method"])
        if method[-1] not in ("bernoulli", "system") or method[:-1] not in ([], ["pg_catalog"]):
            self.refuse("only the sampling methods bernoulli and system may be used")
        self.fields(kind, node)

    # -- queries

    def with_clause(self, node: _Node) -> None:
        """Puts the CTEs in scope; the caller takes them out again. Each sees those before it; under RECURSIVE all see all."""
        names = [_clipped(cte["CommonTableExpr"]["ctename"]) for cte in node["ctes"]]
        if node.get("recursive"):
            self.ctes = self.ctes.union(names)
        for cte, name in zip(node["ctes"], names, strict=True):
            self.node(cte)
            self.ctes = self.ctes.union((name,))
        self.fields("WithClause", node)

    def select(self, kind: str, node: _Node) -> None:
        outer = self.ctes
        if "withClause" in node:
            self.with_clause(node["withClause"])
        if "intoClause" in node:
            self.into(node["intoClause"])
        if not self.depth and "fromClause" in node and _unconditional(node) and {"limitCount", "groupClause"}.isdisjoint(node):
            self.unbounded = True
        for clause in node.get("lockingClause", ()):
            locking = clause["LockingClause"]
            names = {_clipped(relation["RangeVar"]["relname"]) for relation in locking.get("lockedRels", ())}
            self.lock(node.get("fromClause", []), names or None)
            self.fields("LockingClause", locking)
        self.fields(kind, node)
        self.ctes = outer

    def lock(self, items: list[_Node], names: set[str] | None) -> None:
        """FOR UPDATE and its weaker kin hold up the writers of these relations. `names` are aliases; None = all."""
        for item in items:
            for kind, node in item.items():
                alias = _clipped(node.get("alias", {}).get("aliasname", node.get("relname", "")))
                if kind == "JoinExpr":
                    self.lock([node["larg"], node["rarg"]], names)
                elif kind == "RangeTableSample":
                    self.lock([node["relation"]], names)
                elif kind == "RangeSubselect" and (names is None or alias in names):
                    self.lock(node["subquery"].get("SelectStmt", {}).get("fromClause", []), None)
                elif (
                    kind == "RangeVar"
                    and (names is None or alias in names)
                    and ("schemaname" in node or _clipped(node["relname"]) not in self.ctes)
                ):
                    self.access(node, "update")

    def into(self, node: _Node) -> None:
        self.access(node["rel"], "ddl")
        self.fields("IntoClause", node)

    def insert(self, kind: str, node: _Node) -> None:
        outer = self.ctes
        if "withClause" in node:
            self.with_clause(node["withClause"])
        self.access(node["relation"], "insert")
        conflict = node.get("onConflictClause")
        before = self.reads - self.excluded
        if conflict is not None:
            self.node({"OnConflictClause": conflict})
            if conflict.get("action") != "ONCONFLICT_NOTHING":
                self.access(node["relation"], "update")
        # As PostgreSQL asks: what a statement returns or compares it reads. `excluded` is the row that it brings itself.
        if "returningClause" in node or self.reads - self.excluded > before:
            self.access(node["relation"], "select")
        self.fields(kind, node)
        self.ctes = outer

    def update(self, kind: str, node: _Node) -> None:
        outer = self.ctes
        if "withClause" in node:
            self.with_clause(node["withClause"])
        self.access(node["relation"], "update")
        self.unbounded = self.unbounded or _unconditional(node)
        before = self.reads
        self.node(node["targetList"])
        if self.reads > before or not {"whereClause", "returningClause", "fromClause"}.isdisjoint(node):
            self.access(node["relation"], "select")
        self.fields(kind, node)
        self.ctes = outer

    def delete(self, kind: str, node: _Node) -> None:
        outer = self.ctes
        if "withClause" in node:
            self.with_clause(node["withClause"])
        self.access(node["relation"], "delete")
        self.unbounded = self.unbounded or _unconditional(node)
        if not {"whereClause", "returningClause", "usingClause"}.isdisjoint(node):
            self.access(node["relation"], "select")
        self.fields(kind, node)
        self.ctes = outer

    def merge(self, kind: str, node: _Node) -> None:
        outer = self.ctes
        if "withClause" in node:
            self.with_clause(node["withClause"])
        self.access(node["relation"], "select")
        for clause in node["mergeWhenClauses"]:
            command = clause["MergeWhenClause"]["commandType"]
            operation = _MERGE_OPERATIONS.get(command)
            if operation is not None:
                self.access(node["relation"], operation)
            elif command != "CMD_NOTHING":
                self.refuse(f"{command} in MERGE is not something that agents may use")
        self.fields(kind, node)
        self.ctes = outer

    # -- parts of definitions

    def constraint(self, kind: str, node: _Node) -> None:
        if "pktable" in node:  # a foreign key reads the other table and holds up its rows, as FOR KEY SHARE does
            self.access(node["pktable"], "select", "update")
        for exclusion in node.get("exclusions", ()):
            element, operator = exclusion["List"]["items"]
            self.node(element)
            self.operator(_strings(operator["List"]["items"]))
        self.fields(kind, node)

    def table_like(self, kind: str, node: _Node) -> None:
        self.access(node["relation"], "select")
        self.fields(kind, node)

    def partition(self, kind: str, node: _Node) -> None:
        self.access(node["name"], "ddl")
        self.fields(kind, node)

    def def_elem(self, kind: str, node: _Node) -> None:
        arg = node.get("arg")
        if node.get("defname") == "owned_by" and arg is not None:  # a sequence goes when its column goes
            parts = _strings(arg["List"]["items"])
            if parts != ["none"]:
                self.named(parts[:-1], "ddl")
        elif node.get("defname") == "sequence_name" and arg is not None:  # an identity's, which may lie in another schema
            self.named(_strings(arg["List"]["items"]), "ddl")
        elif arg is not None:
            self.node(arg)
        self.fields(kind, node)

    # -- functions whose effect stands in a constant argument

    def nextval(self, node: _Node) -> bool:
        return self.sequence(node, "update")

    def currval(self, node: _Node) -> bool:
        return self.sequence(node, "select")

    def sequence(self, node: _Node, operation: Operation) -> bool:
        args = node.get("args", [{}])
        cast = args[0].get("TypeCast", {})
        if cast.get("typeName", {}).get("names", [{}])[-1].get("String", {}).get("sval") == "regclass":
            args[0] = cast["arg"]  # so that the walk does not take the sequence's name for introspection
        match = _RELATION_TEXT.fullmatch(_constant(args[0]) or "")
        if match is None:
            return False
        parts = [part[1:-1] if part[0] == '"' else part.lower() for part in match.groups() if part]
        self.named(parts, operation)
        return True

    def notify_function(self, node: _Node) -> bool:
        channel = _constant(node.get("args", [{}])[0])
        if channel is not None:
            self.channels[channel] = None
        return channel is not None

    def current_setting(self, node: _Node) -> bool:
        name = _constant(node.get("args", [{}])[0])
        if name is not None:
            self.shown(name)
        return name is not None

    def set_config(self, node: _Node) -> bool:
        args = node.get("args", [])
        name = _constant(args[0]) if len(args) == 3 else None
        if name is not None:
            self.set(name, _constant(args[1]))
        return name is not None

    # -- settings

    def shown(self, name: str) -> None:
        name = name.lower()  # ASCII by name; PostgreSQL compares settings without regard to case
        self.settings[name] = None
        if name not in SHOWABLE:
            self.refuse(f"the setting {name[:63]} is not one that agents may read")

    def set(self, name: str, value: str | None) -> None:
        """`value` is None where it cannot be known here."""
        name = name.lower()
        self.settings[name] = None
        allowed = SETTABLE.get(name)
        if allowed is None:
            self.refuse(f"the setting {name[:63]} is not one that agents may change")
        elif allowed and (value is None or value.lower() not in allowed):
            self.refuse(f"the setting {name} may only be {allowed[0]}")

    def modes(self, options: list[_Node]) -> None:
        for option in options:
            element = option["DefElem"]
            constant = element["arg"]["A_Const"]
            value = constant["ival"].get("ival", 0) if "ival" in constant else _constant(element["arg"])
            self.set(element["defname"], None if value is None else str(value))

    # -- statements

    def copy(self, node: _Node) -> None:
        if node.get("is_program") or "filename" in node:
            self.refuse("COPY with a file or a program runs on the database's machine: use STDIN or STDOUT")
        self.copies_in = bool(node.get("is_from"))
        if "relation" in node:
            self.access(node["relation"], "copy", "insert" if self.copies_in else "select")
        before = set(self.accesses)
        self.fields("CopyStmt", node)
        if "query" in node:
            for schema, name, _ in [access for access in self.accesses if access not in before]:
                self.accesses[schema, name, "copy"] = None

    def explain(self, node: _Node) -> None:
        self.utility(node["query"])  # it plans, and planning runs functions; ANALYZE runs all of it
        self.verb = "EXPLAIN"
        self.fields("ExplainStmt", node)

    def prepare(self, node: _Node) -> None:
        self.utility(node["query"])
        self.fields("PrepareStmt", node)
        self.prepared = replace(self.statement(0, 0), verb=_verb(next(iter(node["query"]))))
        self.prepares = _clipped(node["name"])

    def execute(self, node: _Node) -> None:
        self.executes = _clipped(node["name"])
        self.fields("ExecuteStmt", node)

    def deallocate(self, node: _Node) -> None:
        self.deallocates = "*" if node.get("isall") else _clipped(node["name"])
        self.fields("DeallocateStmt", node)

    def declare(self, node: _Node) -> None:
        self.declares = _clipped(node["portalname"])
        if node.get("options", 0) & 0x20:  # CURSOR_OPT_HOLD
            self.refuse("a cursor WITH HOLD outlives its transaction: declare it without")
        self.fields("DeclareCursorStmt", node)

    def fetch(self, node: _Node) -> None:
        self.verb = "MOVE" if node.get("ismove") else "FETCH"
        self.fetches = _clipped(node["portalname"])
        self.fields("FetchStmt", node)

    def close(self, node: _Node) -> None:
        self.fetches = _clipped(node["portalname"]) if "portalname" in node else "*"
        self.fields("ClosePortalStmt", node)

    def transact(self, node: _Node) -> None:
        kind = node["kind"]
        self.transaction = _TRANSACTIONS.get(kind, "")
        self.verb = self.transaction.upper() or "PREPARE TRANSACTION"
        if not self.transaction:  # its locks would outlive the session, and a kill
            self.refuse("two-phase commit is not something that agents may use")
        self.modes(node.get("options", []))
        self.fields("TransactionStmt", node)

    def listen(self, node: _Node) -> None:
        self.channels[node["conditionname"]] = None
        self.fields("ListenStmt", node)

    def notify(self, node: _Node) -> None:
        self.channels[node["conditionname"]] = None
        self.fields("NotifyStmt", node)

    def unlisten(self, node: _Node) -> None:
        self.fields("UnlistenStmt", node)

    def variable_set(self, node: _Node) -> None:
        kind, name = node["kind"], node.get("name", "")
        self.verb = "RESET" if kind in ("VAR_RESET", "VAR_RESET_ALL") else "SET"
        self.fields("VariableSetStmt", node)
        args = node.get("args", [])
        if kind == "VAR_RESET_ALL":  # back to the startup packet's, which the gateway wrote
            self.settings["all"] = None
        elif kind == "VAR_SET_MULTI" and name in ("TRANSACTION", "SESSION CHARACTERISTICS"):
            self.modes(args)
        elif kind == "VAR_SET_VALUE":
            self.node(args)
            self.set(name, _constant(args[0]) if len(args) == 1 else None)
        elif kind in ("VAR_RESET", "VAR_SET_DEFAULT", "VAR_SET_CURRENT"):
            self.settings[name.lower()] = None
            if name.lower() not in SETTABLE:
                self.refuse(f"the setting {name[:63]} is not one that agents may change")
        else:
            self.refuse(f"SET {name[:63]} is not a statement that agents may run")

    def variable_show(self, node: _Node) -> None:
        self.shown(node["name"])
        self.fields("VariableShowStmt", node)

    def discard(self, node: _Node) -> None:
        if node["target"] == "DISCARD_ALL":
            self.deallocates = "*"
        self.fields("DiscardStmt", node)

    # -- definitions: each needs `ddl` on what it makes, changes or drops

    def cascade(self, node: _Node) -> None:
        if node.get("behavior") == "DROP_CASCADE":
            self.refuse("CASCADE reaches what the statement does not name: name each table, view and type instead")

    def create_table(self, node: _Node) -> None:
        self.access(node["relation"], "ddl")
        for parent in node.get("inhRelations", ()):
            self.access(parent["RangeVar"], "ddl")
        self.fields("CreateStmt", node)

    def create_table_as(self, node: _Node) -> None:
        self.verb = "CREATE MATERIALIZED VIEW" if node.get("objtype") == "OBJECT_MATVIEW" else "CREATE TABLE AS"
        self.into(node["into"])
        if "ExecuteStmt" in node["query"]:
            self.execute(node["query"]["ExecuteStmt"])
        else:
            self.node(node["query"])
        self.fields("CreateTableAsStmt", node)

    def create_view(self, node: _Node) -> None:
        self.access(node["view"], "ddl")
        self.fields("ViewStmt", node)

    def create_index(self, node: _Node) -> None:
        self.access(node["relation"], "ddl")
        self.fields("IndexStmt", node)

    def sequence_definition(self, kind: str, node: _Node) -> None:
        self.access(node["sequence"], "ddl")
        self.fields(kind, node)

    def create_sequence(self, node: _Node) -> None:
        self.sequence_definition("CreateSeqStmt", node)

    def alter_sequence(self, node: _Node) -> None:
        self.sequence_definition("AlterSeqStmt", node)

    def create_schema(self, node: _Node) -> None:
        self.accesses[_clipped(node.get("schemaname", "")), "*", "ddl"] = None
        self.fields("CreateSchemaStmt", node)

    def alter_table(self, node: _Node) -> None:
        of = _ALTERED.get(node.get("objtype", ""))
        if of is None:
            self.refuse("ALTER of this kind of object is not something that agents may run")
        else:
            self.verb = f"ALTER {of}"
        self.access(node["relation"], "ddl")
        for command in node["cmds"]:
            self.alter_command(command["AlterTableCmd"], of or "")
        self.fields("AlterTableStmt", node)

    def alter_command(self, node: _Node, of: str) -> None:
        subtype = node["subtype"]
        if subtype not in _ALTERATIONS or (of == "VIEW" and subtype != "AT_ColumnDefault"):
            self.refuse(f"{_words(subtype.removeprefix('AT_'))} is not a change that agents may make")
        self.cascade(node)
        if "def" in node:
            if subtype in ("AT_AddInherit", "AT_DropInherit"):
                self.access(node["def"]["RangeVar"], "ddl")
            else:
                self.node(node["def"])
        self.fields("AlterTableCmd", node)

    def drop(self, node: _Node) -> None:
        what = _DROPPED.get(node["removeType"])
        if what is None:
            self.refuse(f"DROP of {_words(node['removeType'].removeprefix('OBJECT_'))} is not something that agents may run")
            return
        self.verb = f"DROP {what}"
        self.cascade(node)
        for target in node["objects"]:
            self.object(target, "ddl", schema=what == "SCHEMA")
        self.fields("DropStmt", node)

    def object(self, target: _Node, operation: Operation, schema: bool = False) -> None:
        if schema:
            self.accesses[_clipped(target["String"]["sval"]), "*", operation] = None
        elif "TypeName" in target:
            self.named(_strings(target["TypeName"]["names"]), operation)
        else:
            self.named(_strings(target["List"]["items"]), operation)

    def rename(self, node: _Node) -> None:
        what = _RENAMED.get(node["renameType"])
        self.cascade(node)
        if what is None or node.get("relationType") == "OBJECT_FOREIGN_TABLE":
            self.refuse("renaming this kind of object is not something that agents may do")
        elif "relation" in node:
            self.verb = f"ALTER {what}"
            self.access(node["relation"], "ddl")
            if node["renameType"] in _RELATIONS:  # a granted name must not come to mean another table
                self.access({**node["relation"], "relname": node["newname"]}, "ddl")
        else:
            self.verb = f"ALTER {what}"
            parts = _strings(node["object"]["List"]["items"])
            self.named(parts, "ddl")
            self.named([*parts[:-1], node["newname"]], "ddl")
        self.fields("RenameStmt", node)

    def move(self, node: _Node) -> None:
        """ALTER ... SET SCHEMA."""
        what = _RENAMED.get(node["objectType"])
        if what is None or node["objectType"] not in (*_RELATIONS, "OBJECT_TYPE", "OBJECT_DOMAIN"):
            self.refuse("moving this kind of object is not something that agents may do")
            return
        self.verb = f"ALTER {what}"
        if "relation" in node:
            self.access(node["relation"], "ddl")
            self.named([node["newschema"], node["relation"]["relname"]], "ddl")
        else:
            parts = _strings(node["object"]["List"]["items"])
            self.named(parts, "ddl")
            self.named([node["newschema"], parts[-1]], "ddl")
        self.fields("AlterObjectSchemaStmt", node)

    def truncate(self, node: _Node) -> None:
        self.cascade(node)
        for relation in node["relations"]:
            self.access(relation["RangeVar"], "ddl")
        self.fields("TruncateStmt", node)

    def call(self, node: _Node) -> None:
        self.named(_strings(node["funccall"]["funcname"]), "call")
        self.fields("FuncCall", node["funccall"])
        self.fields("CallStmt", node)

    def create_enum(self, node: _Node) -> None:
        self.named(_strings(node["typeName"]), "ddl")
        self.fields("CreateEnumStmt", node)

    def alter_enum(self, node: _Node) -> None:
        self.named(_strings(node["typeName"]), "ddl")
        self.fields("AlterEnumStmt", node)

    def create_composite(self, node: _Node) -> None:
        self.access(node["typevar"], "ddl")
        self.fields("CompositeTypeStmt", node)

    def create_domain(self, node: _Node) -> None:
        self.named(_strings(node["domainname"]), "ddl")
        self.fields("CreateDomainStmt", node)

    def comment(self, node: _Node) -> None:
        kind = node["objtype"]
        if kind == "OBJECT_COLUMN":
            self.named(_strings(node["object"]["List"]["items"])[:-1], "ddl")
        elif kind in _DROPPED:
            self.object(node["object"], "ddl", schema=kind == "OBJECT_SCHEMA")
        else:
            self.refuse(f"COMMENT ON {_words(kind.removeprefix('OBJECT_'))} is not something that agents may run")
        self.fields("CommentStmt", node)

    def refresh(self, node: _Node) -> None:
        self.access(node["relation"], "ddl")
        self.fields("RefreshMatViewStmt", node)

    def vacuum(self, node: _Node) -> None:
        self.verb = "VACUUM" if node.get("is_vacuumcmd") else "ANALYZE"
        if not node.get("rels"):
            self.refuse(f"{self.verb} of the whole database is not something that agents may run: name the tables")
        for relation in node.get("rels", ()):
            self.access(relation["VacuumRelation"]["relation"], "ddl")
        self.fields("VacuumStmt", node)

    def reindex(self, node: _Node) -> None:
        if "relation" in node:
            self.access(node["relation"], "ddl")
        else:
            self.refuse("REINDEX of a schema or a database is not something that agents may run: name the tables")
        self.fields("ReindexStmt", node)

    def constraints(self, node: _Node) -> None:
        self.fields("ConstraintsSetStmt", node)


_THREE_PARTS: Final = "a name may not contain the database: leave it out"

# 'schema.sequence' in a text, as regclass reads it
_RELATION_TEXT: Final = re.compile(r"""(?:("[^"]+"|[A-Za-z_][A-Za-z0-9_$]*)\.)?("[^"]+"|[A-Za-z_][A-Za-z0-9_$]*)""")


def _clipped(name: str) -> str:
    """The first 63 bytes, whole characters: all that PostgreSQL keeps of a name (NAMEDATALEN)."""
    if len(name) < 16 or len(raw := name.encode()) <= 63:  # a character has at most four bytes
        return name
    return raw[:63].decode(errors="ignore")


def _strings(nodes: list[_Node], star: str = "") -> list[str]:
    """The parts of a dotted name. A part that is not a String raises KeyError, which refuses the statement."""
    return [star if star and "A_Star" in node else node["String"]["sval"] for node in nodes]


def _unconditional(node: _Node) -> bool:
    """No WHERE, or one that says nothing of the rows: `true`, `1 = 1`."""
    condition = node.get("whereClause")
    if condition is None or "A_Const" in condition:
        return True
    expression = condition.get("A_Expr", {})
    return "A_Const" in expression.get("lexpr", {}) and "A_Const" in expression.get("rexpr", {})


def _constant(node: _Node) -> str | None:
    """The text of a literal, cast to text or not; None where the value is not known before it runs."""
    cast = node.get("TypeCast")
    if cast is not None and _strings(cast["typeName"]["names"])[-1] in ("text", "varchar", "interval"):
        return _constant(cast["arg"])
    constant = node.get("A_Const", {})
    for kind, field in (("sval", "sval"), ("fval", "fval")):
        if kind in constant:
            return str(constant[kind].get(field, ""))
    if "ival" in constant:
        return str(constant["ival"].get("ival", 0))
    if "boolval" in constant:
        return "on" if constant["boolval"].get("boolval") else "off"
    return None


def _words(name: str) -> str:
    """`RangeTableFunc` -> "range table func", `SET_LOGGED` -> "set logged"."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])|_", " ", name.removesuffix("Stmt")).lower()


def _verb(kind: str) -> str:
    return _VERBS.get(kind) or _words(kind).upper()


# Where the verb of a statement is not its node's name in capitals. Some handlers say it more exactly.
_VERBS: Final[dict[str, str]] = {
    "AlterDatabaseSetStmt": "ALTER DATABASE",
    "AlterObjectSchemaStmt": "ALTER",
    "AlterOwnerStmt": "ALTER OWNER",
    "AlterRoleSetStmt": "ALTER ROLE",
    "AlterSeqStmt": "ALTER SEQUENCE",
    "AlterEnumStmt": "ALTER TYPE",
    "CheckPointStmt": "CHECKPOINT",
    "ClosePortalStmt": "CLOSE",
    "CompositeTypeStmt": "CREATE TYPE",
    "ConstraintsSetStmt": "SET CONSTRAINTS",
    "CreateEnumStmt": "CREATE TYPE",
    "CreateEventTrigStmt": "CREATE EVENT TRIGGER",
    "CreatePLangStmt": "CREATE LANGUAGE",
    "CreateSeqStmt": "CREATE SEQUENCE",
    "CreateStmt": "CREATE TABLE",
    "CreateTableAsStmt": "CREATE TABLE AS",
    "CreateTrigStmt": "CREATE TRIGGER",
    "CreatedbStmt": "CREATE DATABASE",
    "DeclareCursorStmt": "DECLARE",
    "DefineStmt": "CREATE",
    "DropdbStmt": "DROP DATABASE",
    "GrantRoleStmt": "GRANT ROLE",
    "IndexStmt": "CREATE INDEX",
    "RefreshMatViewStmt": "REFRESH MATERIALIZED VIEW",
    "RenameStmt": "ALTER RENAME",
    "RuleStmt": "CREATE RULE",
    "SecLabelStmt": "SECURITY LABEL",
    "VariableSetStmt": "SET",
    "VariableShowStmt": "SHOW",
    "ViewStmt": "CREATE VIEW",
}

_TRANSACTIONS: Final[dict[str, str]] = {
    "TRANS_STMT_BEGIN": "begin",
    "TRANS_STMT_START": "begin",
    "TRANS_STMT_COMMIT": "commit",
    "TRANS_STMT_ROLLBACK": "rollback",
    "TRANS_STMT_SAVEPOINT": "savepoint",
    "TRANS_STMT_RELEASE": "release",
    "TRANS_STMT_ROLLBACK_TO": "rollback to",
}

_MERGE_OPERATIONS: Final[dict[str, Operation]] = {"CMD_INSERT": "insert", "CMD_UPDATE": "update", "CMD_DELETE": "delete"}

_RELATIONS: Final = {
    "OBJECT_INDEX": "INDEX",
    "OBJECT_MATVIEW": "MATERIALIZED VIEW",
    "OBJECT_SEQUENCE": "SEQUENCE",
    "OBJECT_TABLE": "TABLE",
    "OBJECT_VIEW": "VIEW",
}
_ALTERED: Final = {**_RELATIONS, "OBJECT_TYPE": "TYPE"}
_DROPPED: Final = {**_ALTERED, "OBJECT_DOMAIN": "DOMAIN", "OBJECT_SCHEMA": "SCHEMA"}
_RENAMED: Final = {
    **_ALTERED,
    "OBJECT_DOMAIN": "DOMAIN",
    "OBJECT_COLUMN": "TABLE",
    "OBJECT_TABCONSTRAINT": "TABLE",
    "OBJECT_ATTRIBUTE": "TYPE",
}

# Not owners, triggers, rules, row security, storage options of views: they change what others' statements do.
_ALTERATIONS: Final = frozenset(
    [
        "AT_AddColumn",
        "AT_AddConstraint",
        "AT_AddIdentity",
        "AT_AddInherit",
        "AT_AlterColumnType",
        "AT_AttachPartition",
        "AT_ColumnDefault",
        "AT_DetachPartition",
        "AT_DetachPartitionFinalize",
        "AT_DropColumn",
        "AT_DropConstraint",
        "AT_DropExpression",
        "AT_DropIdentity",
        "AT_DropInherit",
        "AT_DropNotNull",
        "AT_ResetRelOptions",
        "AT_SetCompression",
        "AT_SetExpression",
        "AT_SetIdentity",
        "AT_SetLogged",
        "AT_SetNotNull",
        "AT_SetRelOptions",
        "AT_SetStatistics",
        "AT_SetStorage",
        "AT_SetUnLogged",
        "AT_ValidateConstraint",
    ]
)

_NEVER: Final[dict[str, str]] = {
    "DoStmt": "the body of DO cannot be judged: send its statements one by one",
    "LockStmt": "LOCK TABLE holds up everybody else: lock rows with SELECT ... FOR UPDATE",
    "CreateFunctionStmt": "the body of a function cannot be judged: ask an operator to create it",
    "DefineStmt": "operators, aggregates and text search are for an operator to create",
    "CreateTrigStmt": "a trigger changes what others' statements do: ask an operator to create it",
    "RuleStmt": "a rule changes what others' statements do: ask an operator to create it",
}

# A handler of an expression looks at what its node means, and passes the rest on to `fields`.
_NODES: Final[dict[str, Callable[[_Walk, str, _Node], None]]] = {
    "A_Expr": _Walk.a_expr,
    "A_Indirection": _Walk.indirection,
    "ColumnRef": _Walk.column_ref,
    "Constraint": _Walk.constraint,
    "DefElem": _Walk.def_elem,
    "DeleteStmt": _Walk.delete,
    "FuncCall": _Walk.function,
    "InsertStmt": _Walk.insert,
    "MergeStmt": _Walk.merge,
    "PartitionCmd": _Walk.partition,
    "RangeTableSample": _Walk.table_sample,
    "RangeVar": _Walk.range_var,
    "SelectStmt": _Walk.select,
    "SortBy": _Walk.sort_by,
    "SubLink": _Walk.sub_link,
    "TableLikeClause": _Walk.table_like,
    "TypeName": _Walk.type_name,
    "UpdateStmt": _Walk.update,
}

_SPECIAL_FUNCTIONS: Final[dict[str, Callable[[_Walk, _Node], bool]]] = {
    "currval": _Walk.currval,
    "current_setting": _Walk.current_setting,
    "nextval": _Walk.nextval,
    "pg_notify": _Walk.notify_function,
    "set_config": _Walk.set_config,
    "setval": _Walk.nextval,
}


def _query(kind: str) -> Callable[[_Walk, _Node], None]:
    return lambda walk, node: walk.node({kind: node})


_STATEMENTS: Final[dict[str, Callable[[_Walk, _Node], None]]] = {
    "SelectStmt": _query("SelectStmt"),
    "InsertStmt": _query("InsertStmt"),
    "UpdateStmt": _query("UpdateStmt"),
    "DeleteStmt": _query("DeleteStmt"),
    "MergeStmt": _query("MergeStmt"),
    "AlterEnumStmt": _Walk.alter_enum,
    "AlterObjectSchemaStmt": _Walk.move,
    "AlterSeqStmt": _Walk.alter_sequence,
    "AlterTableStmt": _Walk.alter_table,
    "CallStmt": _Walk.call,
    "ClosePortalStmt": _Walk.close,
    "CommentStmt": _Walk.comment,
    "CompositeTypeStmt": _Walk.create_composite,
    "ConstraintsSetStmt": _Walk.constraints,
    "CopyStmt": _Walk.copy,
    "CreateDomainStmt": _Walk.create_domain,
    "CreateEnumStmt": _Walk.create_enum,
    "CreateSchemaStmt": _Walk.create_schema,
    "CreateSeqStmt": _Walk.create_sequence,
    "CreateStmt": _Walk.create_table,
    "CreateTableAsStmt": _Walk.create_table_as,
    "DeallocateStmt": _Walk.deallocate,
    "DeclareCursorStmt": _Walk.declare,
    "DiscardStmt": _Walk.discard,
    "DropStmt": _Walk.drop,
    "ExecuteStmt": _Walk.execute,
    "ExplainStmt": _Walk.explain,
    "FetchStmt": _Walk.fetch,
    "IndexStmt": _Walk.create_index,
    "ListenStmt": _Walk.listen,
    "NotifyStmt": _Walk.notify,
    "PrepareStmt": _Walk.prepare,
    "RefreshMatViewStmt": _Walk.refresh,
    "ReindexStmt": _Walk.reindex,
    "RenameStmt": _Walk.rename,
    "TransactionStmt": _Walk.transact,
    "TruncateStmt": _Walk.truncate,
    "UnlistenStmt": _Walk.unlisten,
    "VacuumStmt": _Walk.vacuum,
    "VariableSetStmt": _Walk.variable_set,
    "VariableShowStmt": _Walk.variable_show,
    "ViewStmt": _Walk.create_view,
}
