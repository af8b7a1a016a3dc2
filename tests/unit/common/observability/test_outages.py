"""Log lines of an outage: the first failure at once, then a bounded number with counts, every new reason, and the end."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
from structlog.testing import capture_logs
from structlog.typing import EventDict

from services.common import retrying
from services.common.errors import Conflict, Unavailable
from services.common.observability import outages
from services.common.observability.outages import MAX_REASONS, Outages
from services.common.retrying import every, retried
from services.common.storage import db, refused, visits
from services.dispatch.__main__ import EXCHANGE_MIGRATIONS


class Time:
    """A monotonic clock that a test moves."""

    def __init__(self) -> None:
        self.now_s = 1_000.0

    def monotonic(self) -> float:
        return self.now_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Time:
    made = Time()
    monkeypatch.setattr(outages, "time", made)
    return made


@pytest.fixture
def logs() -> Iterator[list[EventDict]]:
    with capture_logs() as lines:
        yield lines


def counted(logs: list[EventDict]) -> list[tuple[str, str, int]]:
    return [(line["event"], line.get("reason", ""), line["failures"]) for line in logs]


def test_a_fault_that_repeats_is_a_line_at_once_then_one_each_interval_with_its_count(
    clock: Time, logs: list[EventDict]
) -> None:
    faults = Outages("refused", "answers")
    for _ in range(251):  # for 25 s, ten times a second
        faults.failed({"database": "a"}, "away")
        clock.now_s += 0.1
    faults.succeeded({"database": "a"})
    faults.succeeded({"database": "a"})
    assert counted(logs) == [
        ("refused", "away", 1),
        ("refused", "away", 100),
        ("refused", "away", 100),
        ("answers", "", 251),
    ]
    assert logs[-1] == {
        "event": "answers", "log_level": "info", "database": "a", "after": "refused", "failures": 251, "seconds": 25.0,
    }  # fmt: skip


async def test_work_without_an_end_ends_an_outage_once_it_has_run_for_a_while(
    monkeypatch: pytest.MonkeyPatch, logs: list[EventDict]
) -> None:
    faults = Outages("restarted", "works")
    faults.failed({}, "away")
    with faults.working({}):
        pass
    assert len(logs) == 1, "work that fails at once hasn't worked"
    monkeypatch.setattr(outages, "WORKS_AFTER_S", 0.0)
    with faults.working({}):
        while len(logs) == 1:  # noqa: ASYNC110  # a log line has no event to wait for
            await asyncio.sleep(0)
    assert counted(logs) == [("restarted", "away", 1), ("works", "", 1)]


def test_another_reason_and_another_place_are_lines_of_their_own(clock: Time, logs: list[EventDict]) -> None:
    faults = Outages("refused", "answers")
    for reason, database in (("away", "a"), ("starting", "a"), ("away", "b"), ("away", "a"), ("away", "b")):
        faults.failed({"database": database}, reason)
        clock.now_s += 0.1
    assert [(line["database"], line["reason"]) for line in logs] == [("a", "away"), ("a", "starting"), ("b", "away")]
    faults.succeeded({"database": "a"})
    faults.failed({"database": "b"}, "away")
    faults.failed({"database": "a"}, "away")
    assert counted(logs)[3:] == [("answers", "", 3), ("refused", "away", 1)], "the next outage is another one"


def test_reasons_that_differ_each_time_fill_no_memory(clock: Time, logs: list[EventDict]) -> None:
    faults = Outages("refused", "answers")
    for number in range(3 * MAX_REASONS):
        faults.failed({}, f"port {number}")
    assert len(logs) == 3 * MAX_REASONS
    assert max(len(outage.repetitions) for outage in faults._open.values()) == MAX_REASONS


def test_a_database_that_answers_between_its_refusals_is_one_outage(clock: Time, logs: list[EventDict]) -> None:
    for _ in range(40):
        refused.refused("full", "database or disk is full", "no")
        refused.answered("full")
        clock.now_s += 0.5
    refused.answered("full")
    clock.now_s += refused.QUIET_S
    refused.answered("full")
    refused.answered("full")
    assert counted(logs) == [
        ("database_refused", "database or disk is full", 1),
        ("database_refused", "database or disk is full", 20),
        ("database_answers", "", 40),
    ]


async def test_many_calls_that_are_retried_together_are_one_outage(clock: Time, logs: list[EventDict]) -> None:
    away = True
    passed = asyncio.Event()

    async def work() -> None:
        if away:
            passed.set()
            raise Unavailable("the database doesn't answer")

    calls = [asyncio.create_task(retried(work, every(0))) for _ in range(12)]
    for _ in range(50):
        clock.now_s += 0.5
        passed.clear()
        await passed.wait()
    calls.pop().cancel()
    away = False
    await asyncio.gather(*calls)
    assert [event for event, *_ in counted(logs)] == ["work_retried", "work_retried", "work_retried", "retry_succeeded"]
    assert logs[-1]["after"] == "work_retried" and logs[-1]["failures"] > 500
    assert not retrying._RETRYING


async def test_work_that_ends_with_another_error_or_is_cancelled_leaves_nothing_open(logs: list[EventDict]) -> None:
    async def conflict() -> None:
        raise errors.pop()

    errors = [Conflict("other content"), Unavailable("away")]
    with pytest.raises(Conflict):
        await retried(conflict, every(0), event="conflicting", kind="LOG_0")
    assert [line["event"] for line in logs] == ["conflicting"] and not retrying._RETRYING
    cancelled = asyncio.create_task(retried(conflict, every(60), event="conflicting", kind="LOG_0"))
    errors.append(Unavailable("away"))
    while errors:  # noqa: ASYNC110
        await asyncio.sleep(0)
    cancelled.cancel()
    await asyncio.gather(cancelled, return_exceptions=True)
    assert counted(logs) == [("conflicting", "away", 1)] * 2, (
        "nobody retries any more, so the next failure is a new one"
    )
    assert not retrying._RETRYING


async def test_a_damaged_file_is_a_refusal_with_its_name(tmp_path: Path, logs: list[EventDict]) -> None:
    file = tmp_path / "exchange.sqlite3"
    file.write_bytes(b"no database " * 1000)
    with pytest.raises(Unavailable, match="file is not a database"):
        async with db.open_database(file, EXCHANGE_MIGRATIONS):
            pass
    assert [(line["event"], line["database"], line["reason"]) for line in logs] == [
        ("database_refused", str(file), "file is not a database")
    ]
    with pytest.raises(sqlite3.IntegrityError), visits.refusals(str(file)):
        raise sqlite3.IntegrityError("UNIQUE constraint failed")
