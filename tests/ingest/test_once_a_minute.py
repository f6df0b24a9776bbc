from __future__ import annotations

import logging
import sys
from collections.abc import Iterator

import pytest

from ingest.once_a_minute import OnceAMinute


@pytest.fixture
def library() -> Iterator[logging.Logger]:
    logger = logging.getLogger("a library")
    logger.propagate = False
    yield logger
    for handler in list(logger.handlers):
        logger.removeHandler(handler)


@pytest.fixture
def ours(caplog: pytest.LogCaptureFixture) -> logging.Logger:
    caplog.set_level(logging.DEBUG)
    return logging.getLogger("ours")


def passed_on(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [record for record in caplog.records if record.name == "ours"]


def test_each_kind_is_passed_on_once_and_as_a_warning(
    library: logging.Logger, ours: logging.Logger, caplog: pytest.LogCaptureFixture
) -> None:
    library.addHandler(OnceAMinute(ours))
    for n in range(3):
        library.error("broker %d is away", n)
        library.warning("no such topic: %s", n)
        library.info("all is well")
    said = [(record.levelname, record.getMessage()) for record in passed_on(caplog)]
    assert said == [("WARNING", "a library: broker 0 is away"), ("WARNING", "a library: no such topic: 0")]


def test_a_fault_is_an_error_with_its_traceback_where_it_is_asked_for(
    library: logging.Logger, ours: logging.Logger, caplog: pytest.LogCaptureFixture
) -> None:
    library.addHandler(OnceAMinute(ours, faults=True))
    try:
        raise ValueError("broken")
    except ValueError:
        fault = sys.exc_info()
    library.error("it ended: %s", 1, exc_info=fault)
    library.error("a broker is away: %s", 1)
    assert [record.levelname for record in passed_on(caplog)] == ["ERROR", "WARNING"]
    assert passed_on(caplog)[0].exc_info == fault


def test_what_it_remembers_is_bounded(library: logging.Logger, ours: logging.Logger, caplog: pytest.LogCaptureFixture) -> None:
    handler = OnceAMinute(ours)
    library.addHandler(handler)
    for n in range(1_500):
        library.warning(f"message {n} of %s", "many")
    assert len(handler._passed) <= 1_000
    assert len(passed_on(caplog)) == 1_500
