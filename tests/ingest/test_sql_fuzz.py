"""Drives tests/fuzz/fuzz_sql.py with pieces of real SQL, glued and broken."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

TESTS = Path(__file__).parent.parent


def _load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


fuzz = _load(TESTS / "fuzz" / "fuzz_sql.py")
corpus = _load(TESTS / "identity" / "sql_corpus.py")

SEEDS = [text for texts in corpus.HOSTILE.values() for text in texts] + list(corpus.BENIGN) + list(corpus.INTROSPECTIVE)
WORDS = sorted({word for text in SEEDS for word in text.replace("(", " ( ").replace(")", " ) ").split()})
BROKEN = st.tuples(st.sampled_from(SEEDS), st.integers(0, 400), st.integers(0, 40), st.binary(max_size=6)).map(
    lambda p: p[0].encode()[: p[1]] + p[3] + p[0].encode()[p[1] + p[2] :]
)
GLUED = st.lists(st.sampled_from(WORDS), max_size=40).map(lambda words: " ".join(words).encode())


@settings(max_examples=400, suppress_health_check=[HealthCheck.too_slow])
@given(st.one_of(st.binary(max_size=200), BROKEN, GLUED))
def test_any_bytes_get_an_answer(data: bytes) -> None:
    fuzz.one_input(data)


def test_every_seed_gets_an_answer() -> None:
    for seed in SEEDS:
        fuzz.one_input(seed.encode())
