"""What PostgreSQL 18 brings under a name of its own, and which settings a statement may touch: tables."""

from __future__ import annotations

from typing import Final


def _table(words: str) -> frozenset[str]:
    return frozenset(words.split())


# select oprname from pg_operator where oprnamespace = 'pg_catalog'::regnamespace; and BETWEEN, which the grammar writes as one
OPERATORS: Final = _table(
    """
    !! !~ !~* !~~ !~~* # ## #- #> #>> % & && &< &<| &> * *< *<= *<> *= *> *>= + - -> ->> -|- / < <-> << <<= <<| <= <> <@ <^ =
    > >= >> >>= >^ ? ?# ?& ?- ?-| ?| ?|| @ @-@ @> @? @@ @@@ ^ ^@ | |&> |/ |>> || ||/ ~ ~* ~<=~ ~<~ ~= ~>=~ ~>~ ~~ ~~*
    """
) | {"BETWEEN", "NOT BETWEEN", "BETWEEN SYMMETRIC", "NOT BETWEEN SYMMETRIC"}

# Base types, ranges and multiranges of pg_catalog; not aclitem, whose input function tells which roles exist, nor the types that
# hold statistics. regconfig and regdictionary name text search, not relations.
TYPES: Final = _table(
    """
    bit bool box bpchar bytea char cid cidr circle date datemultirange daterange float4 float8 inet int2 int2vector int4
    int4multirange int4range int8 int8multirange int8range interval json jsonb jsonpath line lseg macaddr macaddr8 money name
    numeric nummultirange numrange oid oidvector path pg_lsn pg_snapshot point polygon record refcursor regconfig regdictionary
    text tid time timestamp timestamptz timetz tsmultirange tsquery tsrange tstzmultirange tstzrange tsvector txid_snapshot
    unknown uuid varbit varchar void xid xid8 xml
    """
)

# The rest of pg_catalog's: named without a schema they are still these, whatever the search_path; as are all `pg_...`.
OTHER_TYPES: Final = frozenset(
    ["aclitem", "any", "anyarray", "anyelement", "anyenum", "anyrange", "cstring", "gtsvector", "internal", "trigger"]
)

# Notation for a column, not types: only without a schema. PostgreSQL manual §8.1.4
SERIALS: Final = frozenset(["serial", "serial2", "serial4", "serial8", "smallserial", "bigserial"])

# Their input functions tell whether a name exists.
NAME_TYPES: Final = frozenset(
    ["regclass", "regcollation", "regnamespace", "regoper", "regoperator", "regproc", "regprocedure", "regrole", "regtype"]
)

ANY_VALUE: Final[tuple[str, ...]] = ()
ONLY_ON: Final = ("on", "true", "yes", "1")

# Setting -> the only values that it may be given, in lower case. Those that drivers send and that change how a value looks, not who
# asks, what a name means, or how long a statement may run.
SETTABLE: Final[dict[str, tuple[str, ...]]] = {
    "bytea_output": ANY_VALUE,
    "client_encoding": ("utf8", "utf-8", "unicode"),  # the gateway reads the text as UTF-8
    "client_min_messages": ANY_VALUE,
    "datestyle": ANY_VALUE,
    "default_transaction_deferrable": ANY_VALUE,
    "default_transaction_isolation": ANY_VALUE,
    "default_transaction_read_only": ONLY_ON,  # read write would undo a role's read only default
    "extra_float_digits": ANY_VALUE,
    "intervalstyle": ANY_VALUE,
    "jit": ANY_VALUE,
    "plan_cache_mode": ANY_VALUE,
    "standard_conforming_strings": ONLY_ON,  # off would change what the text means
    "timezone": ANY_VALUE,
    "transaction_deferrable": ANY_VALUE,
    "transaction_isolation": ANY_VALUE,
    "transaction_read_only": ONLY_ON,
    "xmlbinary": ANY_VALUE,
    "xmloption": ANY_VALUE,
}

# What SHOW and current_setting may tell: never a file's place, an archive command or a connection string.
SHOWABLE: Final = frozenset(SETTABLE) | _table(
    """
    application_name block_size default_text_search_config escape_string_warning idle_in_transaction_session_timeout
    in_hot_standby integer_datetimes is_superuser lc_collate lc_ctype lc_messages lc_monetary lc_numeric lc_time lock_timeout
    max_identifier_length max_index_keys pgwarden.agent pgwarden.invocation pgwarden.session pgwarden.task role search_path
    segment_size server_encoding server_version server_version_num session_authorization statement_timeout transaction_timeout
    wal_block_size
    """
)
