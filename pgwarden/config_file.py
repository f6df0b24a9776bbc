"""A TOML file -> tables whose values are taken by type, and a report of everything that is wrong with them, line by line."""

from __future__ import annotations

import difflib
import re
import stat
import tomllib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from pgwarden import settings
from pgwarden.printable import printable
from pgwarden.references import Secret, resolve
from pgwarden.settings import Setting
from pgwarden.small_files import Unreadable, content
from pgwarden.toml_lines import Place, locate

_SYNTAX: Final = re.compile(r"(?P<reason>.*) \((?:at line (?P<line>\d+), column \d+|at end of document)\)", re.DOTALL)
_TWICE: Final = re.compile(r"Cannot declare \((?P<keys>.*)\) twice", re.DOTALL)
_PLACEHOLDER: Final = re.compile(r"<(?P<what>.+)>")
_BARE_KEY: Final = re.compile(r"[A-Za-z0-9_-]+")


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong at one line of a file, and what to write instead. Line 0 is the file as a whole."""

    path: str
    line: int
    reason: str
    remedy: str

    def __str__(self) -> str:
        place = f"{self.path}:{self.line}" if self.line else self.path
        return f"{place}: {self.reason}; {self.remedy}"


class ConfigInvalid(Exception):
    """The configuration cannot be used. Holds every problem of it, in the order of the file."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__("\n".join(str(problem) for problem in problems))
        self.problems = tuple(problems)


@dataclass(slots=True)
class Report:
    """What was found so far. `lines` is empty where the text itself could not be read."""

    path: str
    lines: Mapping[Place, int] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    warnings: list[Problem] = field(default_factory=list)

    def line(self, place: Place) -> int:
        """The line of `place`, or of the nearest table around it that has one."""
        while place and place not in self.lines:
            place = place[:-1]
        return self.lines.get(place, 1)

    def problem(self, place: Place, reason: str, remedy: str) -> None:
        self.problems.append(Problem(self.path, self.line(place), reason, remedy))

    def warning(self, place: Place, reason: str, remedy: str) -> None:
        self.warnings.append(Problem(self.path, self.line(place), reason, remedy))

    def nearest(self, wrong: str, names: Collection[str]) -> str | None:
        """What was probably meant, while there is time to look: difflib compares every pair of letters."""
        if len(self.problems) > settings.PROBLEMS_MAX or len(names) > settings.NEAREST_NAMES_MAX:
            return None
        near = difflib.get_close_matches(wrong[: settings.NEAREST_CHARACTERS_MAX], names, 1)
        return near[0] if near else None

    def finish(self) -> None:
        """
        Raises:
            ConfigInvalid: There was a problem.
        """
        self.warnings.sort(key=lambda problem: problem.line)
        if not self.problems:
            return
        problems = sorted(self.problems, key=lambda problem: problem.line)
        if (more := len(problems) - settings.PROBLEMS_MAX) > 0:
            problems = problems[: settings.PROBLEMS_MAX]
            problems.append(Problem(self.path, 0, f"{more} more problems", "correct these first"))
        raise ConfigInvalid(problems)


def read(path: Path) -> str:
    """The text of a configuration file.

    Raises:
        ConfigInvalid: It cannot be read, is too large, is no text, or anybody may write it.
    """
    shown = printable(str(path))

    def invalid(reason: str, remedy: str, line: int = 0) -> ConfigInvalid:
        return ConfigInvalid([Problem(shown, line, reason, remedy)])

    found = content(path, settings.FILE_BYTES_MAX)
    if isinstance(found, Unreadable):
        if found.missing:
            raise invalid("there is no such file", 'run "pgwarden init" to write one')
        raise invalid(f"this is a file {found.reason}", "name a TOML file; many agents are better registered with the API")
    if found.mode & stat.S_IWOTH:
        # Whoever writes it can name an operator key of their own.
        raise invalid("anybody on this machine may change the file", f"run: chmod o-w {shown}")
    try:
        return found.data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = found.data.count(b"\n", 0, error.start) + 1
        raise invalid("this line is not UTF-8 text", "save the file as UTF-8", line) from error


def parse(text: str, path: str) -> tuple[Mapping[str, object], Report]:
    """
    Raises:
        ConfigInvalid: The text is not TOML, or is made to exhaust its reader.
    """
    report = Report(path)

    def invalid(line: int, reason: str, remedy: str) -> ConfigInvalid:
        return ConfigInvalid([Problem(path, line, reason, remedy)])

    if text.startswith("\ufeff"):
        raise invalid(1, "the file starts with a byte order mark", "save the file as UTF-8 without one")
    for number, row in enumerate(text.split("\n"), 1):
        if len(row) > settings.LINE_CHARACTERS_MAX:
            raise invalid(number, f"the line is longer than {settings.LINE_CHARACTERS_MAX} characters", "break the list into lines")
    try:
        values = tomllib.loads(text)
        report.lines = locate(text)
    except tomllib.TOMLDecodeError as error:
        line, reason, remedy = _syntax(str(error), text)
        raise invalid(line, reason, remedy) from None  # its context would hold the text
    except RecursionError:
        raise invalid(0, "the values are nested too deeply", "write lists and tables one or two levels deep") from None
    return values, report


def _syntax(message: str, text: str) -> tuple[int, str, str]:
    match = _SYNTAX.fullmatch(message)
    if match is None:
        return 0, f"not valid TOML: {printable(message)}", "see https://toml.io/en/v1.0.0"
    line = int(match["line"]) if match["line"] else text.rstrip("\n").count("\n") + 1
    reason = match["reason"]
    if twice := _TWICE.fullmatch(reason):
        name = ".".join(part.strip().strip("'\"") for part in twice["keys"].split(",") if part.strip())
        return (
            line,
            f"the table [{printable(name)}] stands here a second time",
            "write each table once, and put its settings together",
        )
    if reason == "Cannot overwrite a value":
        return line, "a setting or table of this name was already written above", "write each setting once"
    if reason == "Invalid value" and match["line"]:
        return line, "the value is not valid TOML", 'write text in quotes: name = "value"'
    if "inline table" in reason or (0 < line <= text.count("\n") + 1 and "{" in text.split("\n")[line - 1]):
        return line, f"not valid TOML: {printable(reason).lower()}", "keep all that stands between { and } on one line"
    if match["line"] is None or reason.startswith("Unclosed"):
        return line, f"not valid TOML: {printable(reason).lower()}", "close the string, list or table that is open here"
    return (
        line,
        f"not valid TOML: {printable(reason)[:1].lower()}{printable(reason)[1:]}",
        'write settings as name = "value", one to a line',
    )


class Table:
    """One table of the file. Each value is taken once by its type; a value that is wrong is reported, and its default returned, so
    that one look finds every problem. `finish` reports what nobody took."""

    def __init__(self, report: Report, values: Mapping[str, object], place: Place, kind: Sequence[Setting]) -> None:
        self.report = report
        self.values = values
        self.place = place
        self.defaults = {setting.name: setting.default for setting in kind}
        self.units = {setting.name: setting.unit for setting in kind}
        self.taken: set[str] = set()

    def name(self, key: str | None = None, index: int | None = None) -> str:
        shown = ""
        for part in self._place(key, index):
            if isinstance(part, int):
                shown += f"[{part}]"
            else:
                shown += "." * bool(shown) + (part if _BARE_KEY.fullmatch(part) else f'"{printable(part)}"')
        return shown

    def problem(self, reason: str, remedy: str, key: str | None = None, index: int | None = None) -> None:
        """The name of the setting goes before the reason."""
        self.report.problem(self._place(key, index), f"{self.name(key, index)} {reason}", remedy)

    def warning(self, reason: str, remedy: str, key: str | None = None) -> None:
        self.report.warning(self._place(key, None), f"{self.name(key)} {reason}", remedy)

    def written(self, key: str) -> bool:
        return key in self.values

    def text(self, key: str, characters_max: int = settings.TEXT_CHARACTERS_MAX) -> str:
        """ "" where it is missing or wrong, which has been reported then, or where its default is empty."""
        value = self._take(key)
        default = self.defaults[key]
        default = default if isinstance(default, str) else ""
        if value is None:
            return default
        if not isinstance(value, str):
            self.problem(f"is {_described(value)}", f'write text in quotes: {key} = "…"', key)
            return default
        return self.checked(value, key, characters_max=characters_max) or default

    def checked(
        self, value: str, key: str, index: int | None = None, characters_max: int = settings.TEXT_CHARACTERS_MAX
    ) -> str | None:
        """`value` where it is fit to be stored and shown, else None."""
        if (placeholder := _PLACEHOLDER.fullmatch(value)) and self.units[key] not in settings.UNITS_NEVER_SHOWN:
            what = printable(placeholder["what"])
            self.problem("still holds the placeholder of pgwarden init", f"write {what}", key, index)
        elif len(value) > characters_max:
            self.problem(f"is longer than {characters_max} characters", "write less", key, index)
        elif not value.isprintable():
            self.problem("holds control characters or line ends", "write one line of plain text", key, index)
        elif not value.strip() and self.defaults.get(key) not in ("", ()):
            self.problem("is empty", "write something", key, index)
        else:
            return value
        return None

    def choice(self, key: str, choices: Sequence[str]) -> str:
        """One of `choices`, or the default."""
        default = self.defaults[key]
        default = default if isinstance(default, str) else choices[-1]
        value = self._take(key)
        if value is None or (value == "" and default == ""):
            return default
        if not isinstance(value, str) or value not in choices:
            shown = f'is "{printable(value)}"' if isinstance(value, str) else f"is {_described(value)}"
            near = self.report.nearest(value, choices) if isinstance(value, str) else None
            remedy = f'write {key} = "{near}"' if near else "write one of " + ", ".join(f'"{choice}"' for choice in choices)
            self.problem(f"{shown}, which is none of {', '.join(choices)}", remedy, key)
            return default
        return value

    def flag(self, key: str) -> bool:
        value = self._take(key)
        if isinstance(value, bool):
            return value
        if value is not None:
            self.problem(f"is {_described(value)}", f"write {key} = true or {key} = false, without quotes", key)
        return self.defaults[key] is True

    def whole(self, key: str, low: int, high: int) -> int:
        default = self.defaults[key]
        default = default if isinstance(default, int) else low
        value = self._take(key)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int):
            self.problem(f"is {_described(value)}", f"write a whole number from {low} to {high}, without quotes", key)
            return default
        if not low <= value <= high:
            shown = str(value) if abs(value) < 10**18 else "a huge number"
            self.problem(f"is {shown}", f"write a whole number from {low} to {high}", key)
            return default
        return value

    def number(self, key: str, low: float, high: float) -> float:
        """A number that may have a fraction."""
        default = self.defaults[key]
        default = float(default) if isinstance(default, (int, float)) else low
        value = self._take(key)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            self.problem(f"is {_described(value)}", f"write a number from {low:g} to {high:g}, without quotes", key)
            return default
        if not low <= value <= high:  # nan too
            shown = "a huge number" if abs(value) >= 10**18 else f"{value:g}"
            self.problem(f"is {shown}", f"write a number from {low:g} to {high:g}", key)
            return default
        return float(value)

    def texts(self, key: str, items_max: int = settings.LIST_ITEMS_MAX) -> tuple[str, ...]:
        """Those items of a list that are fit; the others have been reported."""
        default = self.defaults[key]
        default = default if isinstance(default, tuple) else ()
        value = self._take(key)
        if value is None:
            return default
        if not isinstance(value, list):
            shown = (
                f'["{value}"]'
                if isinstance(value, str) and value.isprintable() and '"' not in value and len(value) < 64
                else '["…"]'
            )
            self.problem(f"is {_described(value)}", f"write a list: {key} = {shown}", key)
            return default
        if len(value) > items_max:
            self.problem(f"has more than {items_max} items", "write fewer", key)
            return default
        items: list[str] = []
        for index, item in enumerate(value):
            if not isinstance(item, str):
                self.problem(f"is {_described(item)}", 'write text in quotes: "…"', key, index)
            elif not item.strip():
                self.problem("is empty", "write a name, or leave it out", key, index)
            elif item in items:
                self.problem(f'names "{printable(item)}" twice', "write it once", key, index)
            elif self.checked(item, key, index) is not None:
                items.append(item)
        return tuple(items)

    def path(self, key: str, folder: Path) -> Path | None:
        """A path, relative to `folder`; None where it is empty. Whether the file is there is not looked at."""
        text = self.text(key, characters_max=settings.PATH_CHARACTERS_MAX)
        if not text:
            return None
        try:
            return folder / Path(text).expanduser()
        except RuntimeError:  # "~somebody", whom this system does not know
            self.problem("is in the home of an unknown user", "write the whole path", key)
            return None

    def secret(self, key: str, folder: Path, environ: Mapping[str, str]) -> Secret | None:
        """The secret that a reference names; None where the setting is empty or was reported. Its text is never repeated: it may be
        the secret itself."""
        value = self._take(key)
        if value is None or (value == "" and self.defaults[key] == ""):
            return None
        if not isinstance(value, str):
            self.problem(f"is {_described(value)}", f'write {key} = "env:NAME" or {key} = "file:PATH"', key)
            return None
        if len(value) > settings.PATH_CHARACTERS_MAX:
            self.problem("is too long for a reference", f'write {key} = "env:NAME" or {key} = "file:PATH"', key)
            return None
        resolved = resolve(value, folder, environ)
        if isinstance(resolved, Secret):
            return resolved
        self.problem(resolved.reason, resolved.remedy, key)
        return None

    def table(self, key: str, kind: Sequence[Setting]) -> Table:
        """The table below, empty where it is missing."""
        self.taken.add(key)
        value = self.values.get(key, {})
        if not isinstance(value, dict):
            self.problem(f"is {_described(value)}", f"write a table: [{self.name(key)}]", key)
            value = {}
        return Table(self.report, value, (*self.place, key), kind)

    def named_tables(self, key: str, kind: Sequence[Setting]) -> Mapping[str, Table]:
        """The tables [key.NAME], by name. Names are not checked."""
        self.taken.add(key)
        value = self.values.get(key, {})
        if not isinstance(value, dict):
            self.problem(f"is {_described(value)}", f"write a table for each: [{key}.NAME]", key)
            return {}
        tables = {}
        for name, below in value.items():
            place: Place = (*self.place, key, name)
            if isinstance(below, dict):
                tables[name] = Table(self.report, below, place, kind)
            else:
                shown = printable(name)
                self.report.problem(place, f"{key}.{shown} is {_described(below)}", f"write a table for each: [{key}.NAME]")
        return tables

    def tables(self, key: str, kind: Sequence[Setting], example: str, items_max: int = settings.LIST_ITEMS_MAX) -> Sequence[Table]:
        """The tables of a list, written as [[…]] or as inline tables."""
        value = self._take(key) if key in self.defaults else self.values.get(key)
        self.taken.add(key)
        if value is None:
            return ()
        if not isinstance(value, list):
            self.problem(f"is {_described(value)}", f"write {example}", key)
            return ()
        if len(value) > items_max:
            self.problem(f"has more than {items_max} items", "write fewer", key)
            return ()
        tables = []
        for index, item in enumerate(value):
            if isinstance(item, dict):
                tables.append(Table(self.report, item, (*self.place, key, index), kind))
            else:
                self.problem(f"is {_described(item)}", f"write {example}", key, index)
        return tables

    def finish(self, also: Collection[str] = ()) -> None:
        """Report the keys that nobody took. `also` are known names that are read elsewhere."""
        known = [*self.taken, *(name for name in self.defaults if name not in self.taken), *also]
        for key in self.values:
            if key in self.taken or key in also:
                continue
            near = self.report.nearest(key, known)
            where = f"[{self.name()}]" if self.place else "the file"
            remedy = f'write "{near}"' if near else f"delete it, or write one of {', '.join(sorted(known))}"
            self.report.problem((*self.place, key), f'{where} has no setting "{printable(key, 80)}"', remedy)

    def _place(self, key: str | None, index: int | None) -> Place:
        place = self.place if key is None else (*self.place, key)
        return place if index is None else (*place, index)

    def _take(self, key: str) -> object:
        self.taken.add(key)
        if key in self.values:
            return self.values[key]
        if self.defaults[key] is None:
            value = '["…"]' if self.units[key].startswith("list") else '"…"'
            self.problem("is missing", f"write {key} = {value}, the {self.units[key].removeprefix('list of ')}", key)
        return None


def _described(value: object) -> str:
    match value:
        case bool():
            return "a boolean"
        case int():
            return "a number"
        case float():
            return "a number with a fraction"
        case str():
            return "text"
        case list():
            return "a list"
        case dict():
            return "a table"
        case _:
            return "a date or time"
