from __future__ import annotations

import tomllib
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgwarden.toml_lines import Place, locate
from tests.fuzz.fuzz_toml_lines import one_input

EXAMPLE = '''\
# a comment with [brackets] and "quotes"
state = "a"  # 2

[gateway]
listen = "x"   # 5
text = """
[not.a.header]
key = 'no'
""\\""""
after = 1 # 10
literal = \'\'\'
# no comment\'\'\'\'\'
"quoted key" . 'and.dotted' = [ # 13
  1, "two ] , # ", # 14
  [ "three",
    { four = 4, "five.six" = [5] }, # 16
  ],
]
when = 1979-05-27 07:32:00Z

[[agents.reporter.grants]] # 21
reason = "first"
[agents.reporter.grants.rule] # 23
tables = []
[[agents.reporter.grants]] # 25
reason = "second" # 26
[agents.reporter] # 27
owner.name = "x"
owner.mail = "y" # 29
'''


def test_each_place_of_an_example_has_its_line() -> None:
    lines = locate(EXAMPLE)
    assert lines[("state",)] == 2
    assert lines[("gateway", "listen")] == 5
    assert lines[("gateway", "text")] == 6
    assert lines[("gateway", "after")] == 10
    key: Place = ("gateway", "quoted key", "and.dotted")
    assert (lines[key], lines[(*key, 1)], lines[(*key, 2)], lines[(*key, 2, 1)]) == (13, 14, 15, 16)
    assert lines[(*key, 2, 1, "five.six", 0)] == 16
    assert lines[("gateway", "when")] == 19
    assert lines[("agents", "reporter", "grants", 0)] == 21
    assert lines[("agents", "reporter", "grants", 0, "rule", "tables")] == 24
    assert lines[("agents", "reporter", "grants", 1)] == 25
    assert lines[("agents", "reporter", "grants", 1, "reason")] == 26
    assert lines[("agents", "reporter")] == 27
    assert lines[("agents",)] == 21
    assert lines[("agents", "reporter", "owner")] == 28
    assert lines[("agents", "reporter", "owner", "mail")] == 29


def test_windows_line_ends_count_as_one() -> None:
    assert locate('a = 1\r\nb = """\r\n"""\r\nc = [\r\n1]\r\n')[("c", 0)] == 5


@pytest.mark.parametrize("text", ["a", "a =", "[a", "a = [", "a = {", 'a = "', "= 1", "a = [1", "a = {b", "[[a"])
def test_a_text_that_is_not_toml_raises_and_ends(text: str) -> None:
    with pytest.raises(ValueError, match="not valid TOML"):
        locate(text)


# -- any document ------------------------------------------------------------------------------------------------------------------

GAPS = st.sampled_from(["", "\n", '\n\n# a [gap] = "1\n'])
COMMENTS = st.sampled_from(["", ' # c = ["'])
EQUALS = st.sampled_from(["=", " = ", "\t=  "])
STRINGS = st.sampled_from(
    [
        '"plain"',
        '"a # ] } , = \\" b"',
        "'lit # \"'",
        '"""\n[x]\ny = 1\n"""',
        "'''\n[[z]]\n'''",
        '"""a""""',
        "''''b'''",
        '""',
        '"""\\\n  c"""',
    ]
)
SCALARS = st.one_of(
    STRINGS, st.sampled_from(["1", "-2.5e3", "true", "1979-05-27 07:32:00", "1979-05-27T00:32:00.5-07:00", "inf", "0x1F"])
)


class Names:
    """Names that are nowhere twice, so that a name's first place in the text is its line."""

    def __init__(self, draw: st.DrawFn) -> None:
        self.draw = draw
        self.count = 0

    def next(self) -> tuple[str, str]:
        """As TOML writes it, and the part to look for in the text."""
        self.count += 1
        name = f"n{self.count}x"
        style = self.draw(st.sampled_from(["{}", '"{}"', "'{}'", '"{} # = ]"', "'{}.[a]'", '"\\u00e9\\"{}"']))
        return style.format(name), name


def value(draw: st.DrawFn, names: Names, depth: int) -> str:
    kind = draw(st.integers(0, 5 if depth else 3))
    if kind == 4:
        items = []
        for _ in range(draw(st.integers(0, 3))):
            items.append(draw(GAPS) + value(draw, names, depth - 1) + draw(GAPS))
        return "[" + ",".join(items) + (draw(st.sampled_from([",", ", "])) if items else "") + draw(GAPS) + "]"
    if kind == 5:
        return "{ " + ", ".join(pair(draw, names, 0) for _ in range(draw(st.integers(0, 3)))) + " }"
    return draw(SCALARS)


def pair(draw: st.DrawFn, names: Names, depth: int) -> str:
    key = draw(st.sampled_from([".", " . "])).join(names.next()[0] for _ in range(draw(st.integers(1, 3))))
    return key + draw(EQUALS) + value(draw, names, depth)


@st.composite
def documents(draw: st.DrawFn) -> str:
    names = Names(draw)
    parts = [pair(draw, names, 2) for _ in range(draw(st.integers(0, 3)))]
    arrays: list[str] = []
    for _ in range(draw(st.integers(0, 5))):
        kind = draw(st.integers(0, 3))
        if kind == 0:
            header = f"[{names.next()[0]} . {names.next()[0]}]"
        elif kind == 1 or not arrays:
            arrays.append(names.next()[0])
            header = f"[[{arrays[-1]}]]"
        elif kind == 2:
            header = f"[[ {draw(st.sampled_from(arrays))} ]]"
        else:
            header = f"[{draw(st.sampled_from(arrays))}.{names.next()[0]}]"
        parts.append(f"{header} # [comment]")
        parts += [pair(draw, names, 2) for _ in range(draw(st.integers(0, 3)))]
    return "".join(part + draw(COMMENTS) + "\n" + draw(GAPS) for part in parts)


def places(value: object, place: Place = ()) -> Iterator[Place]:
    if place:
        yield place
    if isinstance(value, dict):
        for key, below in value.items():
            yield from places(below, (*place, key))
    if isinstance(value, list):
        for index, below in enumerate(value):
            yield from places(below, (*place, index))


@given(documents())
def test_exactly_the_places_of_the_document_have_lines_and_each_key_its_own(text: str) -> None:
    lines = locate(text)
    assert set(lines) == set(places(tomllib.loads(text)))
    for place, line in lines.items():
        key = place[-1]
        if isinstance(key, str):
            name = "n" + key.partition("n")[2].partition("x")[0] + "x"
            assert line == text.count("\n", 0, text.index(name)) + 1


@given(documents(), st.data())
def test_a_damaged_document_is_read_as_tomllib_reads_it(text: str, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(text)))
    piece = data.draw(
        st.sampled_from(["", "\n", '"', "'", '"""', "'''", "[", "]", "[[", "{", "}", "#", "=", ".", ",", "\\", "a = 1\n"])
    )
    one_input((text[:at] + piece + text[at + data.draw(st.integers(0, 2)) :]).encode())


@given(st.binary(max_size=64))
def test_any_bytes_are_read_as_tomllib_reads_them(data: bytes) -> None:
    one_input(data)
