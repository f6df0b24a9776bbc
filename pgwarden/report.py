"""What the record says of an agent's month -> one page for whoever audits it. Pure: the same facts give the same bytes.

The page is one file without a script and without anything that it would load; its policy forbids both. Everything in it that an
agent or a person wrote is escaped, and control and bidirectional characters are shown as escapes.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, timedelta
from html import escape
from typing import Final, TypeAlias

from pgwarden.printable import printable

Row: TypeAlias = Mapping[str, object]

CELL_CHARACTERS_MAX: Final = 600
BEGIN: Final = "<main>"
END: Final = "</main>"


@dataclass(frozen=True, slots=True)
class Section:
    """The rows of one question of the record, and the question itself, so that it can be asked again."""

    sql: str
    rows: Sequence[Row] = ()
    truncated: bool = False


@dataclass(frozen=True, slots=True)
class Facts:
    agent: str
    begin: date  # the first day of the month
    end: date  # the first day of the next
    written_at: str  # ISO 8601, UTC
    written_by: str  # the operator
    snapshot_at: str  # of the tables, when the first question was asked
    version: str
    sections: Mapping[str, Section] = field(default_factory=dict)

    def rows(self, name: str) -> Sequence[Row]:
        return self.sections[name].rows


def page(facts: Facts, css: str) -> str:
    """The whole file, with report.css in it. What its checksum covers stands between <main> and </main>."""
    body = BEGIN + "\n".join(_body(facts)) + END
    style = base64.b64encode(hashlib.sha256(css.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'sha256-{style}'; base-uri 'none'; form-action 'none'"
    title = f"{facts.agent}, {facts.begin:%B %Y}: what the record says"
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{escape(policy)}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n<meta name="referrer" content="no-referrer">\n'
        f"<title>{_text(title)}</title>\n<style>{css}</style></head>\n<body>{body}\n"
        f"<footer><p>SHA-256 of this page, from &lt;main&gt; to &lt;/main&gt;:<br><code>{checksum(body)}</code></p>"
        "<p>It shows that the page is as it was written; <code>pgwarden report --check FILE</code> compares. Whether the record "
        "itself is whole, the log proves.</p></footer></body></html>\n"
    )


def checksum(body: str) -> str:
    return hashlib.sha256(body.encode("utf-8")).hexdigest()


def holds(text: str) -> bool:
    """Whether a page still has the checksum that it was written with."""
    begin, end = text.find(BEGIN), text.rfind(END)
    return 0 <= begin < end and f"<code>{checksum(text[begin : end + len(END)])}</code>" in text[end:]


# -- what it says ----------------------------------------------------------------------------------------------------------------


def _body(facts: Facts) -> list[str]:
    who = facts.rows("agent")[0]
    totals = facts.rows("totals")[0]
    counted = facts.rows("session_count")[0]
    last_day = facts.end - timedelta(days=1)
    whole = facts.written_at[:10] >= facts.end.isoformat()
    months = f"{facts.begin.isoformat()} to {last_day.isoformat()}, UTC" + ("" if whole else "; the month is not over")
    return [
        f"<header><p class=kind>An agent's month</p><h1>{_text(facts.agent)}</h1>"
        f"<p>{months}. Written {_time(facts.written_at)} UTC by {_text(facts.written_by)} with pgwarden {_text(facts.version)}, "
        f"from the record as of {_time(facts.snapshot_at)} UTC.</p>"
        "</header>",
        "<section><h2>Who it is</h2>" + _pairs(
            ("Purpose", who.get("description")),
            ("Owner", who.get("owner")),
            ("State", f"{who.get('state')} since {_plain(who.get('state_at'))}, by {who.get('state_by')}"),
            ("Registered", f"{_plain(who.get('registered_at'))} by {who.get('registered_by')}"),
            ("Identity", _identity(who)),
        ) + "</section>",
        '<section class=figures aria-label="The month in figures">' + "".join(
            f"<p><b>{_number(value)}</b> {name}</p>"
            for name, value in (
                ("sessions", counted.get("sessions")),
                ("statements let through", totals.get("statements")),
                ("refused", totals.get("denied")),
                ("failed", totals.get("errors")),
                ("rows", totals.get("rows")),
                ("findings", len(facts.rows("findings"))),
            )
        ) + "</section>",
        "<section><h2>Statements per day</h2>" + _days(facts) + "</section>",
        "<section><h2>What it was allowed, and what it used</h2>" + _granted(facts) + "</section>",
        _part(facts, "used", "Tables that it named", "It named no table.", (
            ("relation", "Table"), ("verbs", "Operations"), ("statements", "Let through"), ("denied", "Refused"), ("rows", "Rows"),
            ("first_at", "First"), ("last_at", "Last"),
        )),
        _part(facts, "refusals", "What was refused", "Nothing was refused.", (
            ("reason", "Reason"), ("sqlstate", "SQLSTATE"), ("rule", "Rule"), ("times", "Times"), ("first_at", "First"),
            ("last_at", "Last"),
        )),
        _part(facts, "attempts", "Connections that were refused", "None was.", (
            ("attempted_at", "Time"), ("client", "From"), ("connection", "Connection"), ("sqlstate", "SQLSTATE"),
            ("reason", "Reason"),
        )),
        _part(facts, "findings", "Findings", "The detectors raised none.", (
            ("raised_at", "Raised"), ("severity", "Weight"), ("summary", "What"), ("times", "Times"), ("state", "State"),
            ("triaged_by", "By"), ("note", "Note"),
        )),
        _part(facts, "decisions", "What was decided about it", "Nothing was.", (
            ("decided_at", "Time"), ("what", "What"), ("operator", "By"), ("reason", "Reason"),
        )),
        _part(facts, "kills", "Sessions that were ended, and the proof",
            "None was.", (
            ("session", "Session"), ("cause", "Cause"), ("requested_at", "Asked for"), ("decided_at", "Decided"),
            ("client_closed_at", "Client closed"), ("backend_gone_at", "Backend proven gone"), ("ended_by", "By"),
        )),
        _part(facts, "sessions", "Sessions", "It opened none.", (
            ("session", "Session"), ("opened_at", "Opened"), ("closed_at", "Closed"), ("state", "State"),
            ("connection", "Connection"), ("on_behalf_of", "On behalf of"), ("approvers", "Approved by"),
            ("statements", "Let through"), ("denied", "Refused"), ("errors", "Failed"),
        )),
        "<section><h2>How far the record can be trusted</h2>" + _trust(facts) + "</section>",
        _part(facts, "offsets", "What this page rests on",
            "The record is empty.", (
            ("topic", "Topic"), ("partition", "Partition"), ("next_offset", "Read up to offset"), ("recorded_at", "Recorded at"),
        ), "Every figure above is a fold over these parts of the log, read from their beginning."),
        "<section><h2>The questions</h2><p>Each can be asked again with <code>pgwarden sql</code>; each look at the record is "
        "itself recorded.</p>" + "".join(
            f"<details><summary>{_text(name.replace('_', ' '))}</summary>"
            f"<pre>{_text(' '.join(section.sql.split()), 5000)}</pre></details>"
            for name, section in facts.sections.items()
        ) + "</section>",
    ]  # fmt: skip


def _identity(who: Row) -> str:
    parts = []
    if who.get("issuer"):
        parts.append(f"tokens of {who['issuer']} for {who.get('client')}")
        parts.append(f"with sub {who['subject']}" if who.get("subject") else "with any sub")
    if who.get("key_id"):
        parts.append(f"key {who['key_id']}")
    return ", ".join(parts) or "none"


def _granted(facts: Facts) -> str:
    grants = facts.rows("grants")
    if not grants:
        return "<p class=none>It held no grant.</p>"
    used = {str(row["relation"]): row for row in facts.rows("used")}
    found = []
    for grant in grants:
        scope = _scope(grant)
        asked = f"{_text(grant.get('requested_by'))}, {_time(grant.get('requested_at'))}: {_text(grant.get('reason'))}"
        approved = f"{_text(grant.get('approver'))}, {_time(grant.get('approved_at'))}" if grant.get("approver") else "nobody"
        ended = f"; {_text(grant.get('ended_reason'))}" if grant.get("ended_reason") else ""
        rows = []
        rules = scope.get("rules")
        for rule in rules if isinstance(rules, list) else ():
            if not isinstance(rule, dict):
                continue
            tables = rule.get("tables")
            for table in tables if isinstance(tables, list) else ():
                name = f"{rule.get('schema')}.{table}"
                hits = [
                    row for relation, row in used.items() if relation == name or (table == "*" and relation.startswith(name[:-1]))
                ]
                ran = sum(_int(row.get("statements")) for row in hits)
                verbs = sorted({str(verb) for row in hits for verb in _list(row.get("verbs"))}) if ran else []
                operations = ", ".join(str(operation) for operation in _list(rule.get("operations")))
                mark = f"{_number(ran)} statements: {_text(', '.join(verbs))}" if ran else "<em>never used this month</em>"
                rows.append(f"<tr><td>{_text(name)}</td><td>{_text(operations)}</td><td>{mark}</td></tr>")
        table = (
            "<table><thead><tr><th>Table</th><th>Allowed</th><th>Used</th></tr></thead><tbody>" + "".join(rows) + "</tbody></table>"
        )
        beyond = [f"{what} {', '.join(map(str, _list(scope.get(what))))}" for what in ("functions", "channels") if scope.get(what)]
        beyond += ["the system catalogs"] if scope.get("introspection") else []
        found.append(
            f"<h3>{_text(grant.get('grant'))} on {_text(grant.get('connection'))}</h3>"
            f"<p>Asked for by {asked}. Approved by {approved}. {_text(grant.get('state')).capitalize()}{ended}; "
            f"{'until ' + _time(grant.get('expires_at')) if grant.get('expires_at') else 'until revoked'}.</p>"
            + (table if rows else "")
            + (f"<p>Also allowed: {_text('; '.join(beyond))}.</p>" if beyond else "")
        )
    return "".join(found)


def _trust(facts: Facts) -> str:
    parts = [
        _table(facts.sections["recording_gaps"], "The record has no gap in this month.", (
            ("kind", "Gap"), ("writer", "Writer"), ("since_at", "Since"), ("until_at", "Until"), ("refused", "Refused meanwhile"),
            ("reason", "Reason"),
        )),
        "<h3>The second witness</h3>",
        _table(facts.sections["witnesses"], "No collector watches the database: what went round the gateway would not be seen.", (
            ("witness", "Collector"), ("server", "Server"), ("sees", "Sees"), ("state", "State now"), ("started_at", "Since"),
            ("complete_at", "Complete up to"),
        )),
    ]  # fmt: skip
    if facts.rows("witnesses"):
        parts += [
            _table(facts.sections["observation_gaps"], "Collectors missed nothing that they know of in this month.", (
                ("kind", "What"), ("witness", "Collector"), ("from_at", "From"), ("until_at", "Until"), ("lost", "Lost"),
                ("reason", "Reason"),
            )),
            _table(facts.sections["verdicts"], "Collectors saw no session of this agent in this month.", (
                ("verdict", "Verdict on sessions that they saw"), ("sessions", "Sessions"),
            )),
        ]  # fmt: skip
    return "".join(parts)


# -- how it looks ----------------------------------------------------------------------------------------------------------------


def _part(facts: Facts, name: str, title: str, none: str, columns: Sequence[tuple[str, str]], note: str = "") -> str:
    above = f"<p>{note}</p>" if note else ""
    return f"<section><h2>{title}</h2>{above}{_table(facts.sections[name], none, columns)}</section>"


def _table(section: Section, none: str, columns: Sequence[tuple[str, str]]) -> str:
    if not section.rows:
        return f"<p class=none>{none}</p>"
    first = section.rows[0]
    head = "".join(f"<th{' class=number' * _is_number(first.get(name))}>{title}</th>" for name, title in columns)
    body = "".join(f"<tr>{''.join(_cell(name, row.get(name)) for name, _ in columns)}</tr>" for row in section.rows)
    more = "<p class=cut>There is more than is shown here: the list was cut.</p>" if section.truncated else ""
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{more}"


def _cell(name: str, value: object) -> str:
    if value is None or value == "" or value == []:
        return "<td class=none>–</td>"
    if name.endswith("_at"):
        return f"<td class=time>{_time(value)}</td>"
    if isinstance(value, list):
        return f"<td>{_text(', '.join(map(str, value)))}</td>"
    if _is_number(value):
        return f"<td class=number>{_number(value)}</td>"
    return f"<td>{_text(value)}</td>"


def _pairs(*pairs: tuple[str, object]) -> str:
    return "<dl>" + "".join(f"<dt>{name}</dt><dd>{_text(value) or '–'}</dd>" for name, value in pairs) + "</dl>"


def _days(facts: Facts) -> str:
    """One bar a day: let through above the line, refused below it in another colour and with a pattern of its own."""
    counted = {str(row["day"])[:10]: (_int(row.get("statements")), _int(row.get("denied"))) for row in facts.rows("days")}
    days = [facts.begin + timedelta(days=number) for number in range((facts.end - facts.begin).days)]
    values = [counted.get(day.isoformat(), (0, 0)) for day in days]
    top = max((allowed for allowed, _ in values), default=0)
    low = max((denied for _, denied in values), default=0)
    if not top and not low:
        return "<p class=none>It ran no statement in this month.</p>"
    step, height, depth = 24, 140, 60
    bars = []
    for index, (day, (allowed, denied)) in enumerate(zip(days, values, strict=True)):
        x = 8 + index * step
        tall = round(height * allowed / top, 1) if top else 0
        deep = round(depth * denied / low, 1) if low else 0
        said = f"{day.isoformat()}: {allowed:,} let through, {denied:,} refused"
        bars.append(
            f"<g><title>{said}</title>"
            + (f'<rect class=allowed x="{x}" y="{20 + height - tall}" width="16" height="{tall}"/>' if allowed else "")
            + (f'<rect class=denied x="{x}" y="{38 + height}" width="16" height="{deep}"/>' if denied else "")
            + f'<text class=day x="{x + 8}" y="{33 + height}">{day.day}</text></g>'
        )
    wide = 16 + len(days) * step
    summary = f"Statements per day: at most {top:,} let through and {low:,} refused on one day"
    return (
        f'<figure><svg viewBox="0 0 {wide} {44 + height + depth}" role="img" aria-label="{summary}">'
        f'<text class=axis x="8" y="12">{top:,} let through</text>{"".join(bars)}</svg>'
        f"<figcaption>{summary}. Refused ones hang below the line, on a scale of their own.</figcaption></figure>"
    )


def _scope(grant: Row) -> Mapping[str, object]:
    try:
        said = json.loads(str(grant.get("scope") or "{}"))
    except ValueError:
        return {}
    return said if isinstance(said, dict) else {}


def _text(value: object, characters_max: int = CELL_CHARACTERS_MAX) -> str:
    return escape(printable("" if value is None else str(value), characters_max))


def _time(value: object) -> str:
    return _text(_plain(value))


def _plain(value: object) -> str:
    """`2026-11-22 15:52:16.123`, as far as it is told."""
    return str(value or "–").replace("T", " ").removesuffix("Z")[:23]


def _number(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) else _text(value)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _int(value: object) -> int:
    return value if isinstance(value, int) else 0


def _list(value: object) -> list[object]:
    return value if isinstance(value, list) else []
