"""Work goes on without its caller, and a failure that nobody awaits any more is a line of the service's log."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from structlog.testing import capture_logs

from services.common.errors import Unavailable
from services.common.rpc import server
from services.common.rpc.identity import Caller, Role
from services.common.running import completed
from services.registry.agencies.exercises import ExerciseServicer
from tandem.common.v1 import exercise_pb2
from tandem.registry.v1 import exercise_pb2 as exercise_service_pb2


class Work:
    """Work that a test ends."""

    def __init__(self) -> None:
        self.begun = asyncio.Event()
        self.go = asyncio.Event()
        self.failure = ""
        self.is_over = False

    async def __call__(self, *_: object, **__: object) -> str:
        self.begun.set()
        await self.go.wait()
        self.is_over = True
        if self.failure:
            raise Unavailable(self.failure)
        return "done"


@pytest.fixture
async def unretrieved() -> AsyncIterator[list[dict[str, Any]]]:
    """Reports of the event loop, such as errors that nobody retrieved."""
    reports: list[dict[str, Any]] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, report: reports.append(report))
    yield reports
    loop.set_exception_handler(None)


async def leave_and_end(work: Work, call: Callable[[], Awaitable[object]]) -> None:
    """Makes a call, leaves it, and then lets its work end."""
    caller = asyncio.ensure_future(call())
    await work.begun.wait()
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    work.go.set()
    while not work.is_over:  # noqa: ASYNC110
        await asyncio.sleep(0)
    for _ in range(3):
        await asyncio.sleep(0)
    del caller
    gc.collect()


async def test_a_caller_gets_the_result_or_the_error() -> None:
    work = Work()
    work.go.set()
    assert await completed(work()) == "done"
    work.failure = "the disk is full"
    with capture_logs() as logs, pytest.raises(Unavailable):
        await completed(work())
    assert logs == [], "the caller has the error"


@pytest.mark.parametrize("failure", ["", "the disk is full"])
async def test_work_is_completed_without_its_caller(unretrieved: list[dict[str, Any]], failure: str) -> None:
    work = Work()
    work.failure = failure
    with capture_logs() as logs:
        await leave_and_end(work, lambda: completed(work()))
    expected = [{"event": "work_failed_unasked", "log_level": "error", "reason": failure}] if failure else []
    assert logs == expected and unretrieved == []


async def test_an_exercise_whose_end_fails_without_its_caller_says_so(
    unretrieved: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Failing:
        end = work = Work()

    monkeypatch.setattr(server, "caller", lambda: Caller("spiffe://tandem/operator", Role.ROLE_OPERATOR))
    Failing.work.failure = "the database doesn't answer"
    servicer = ExerciseServicer(Failing())  # type: ignore[arg-type]
    request = exercise_service_pb2.EndExerciseRequest(exercise=exercise_pb2.DRILL, exercise_id="drill-1")
    with capture_logs() as logs:
        await leave_and_end(Failing.work, lambda: servicer.EndExercise(request, None))  # type: ignore[arg-type]
    assert [(line["event"], line["reason"]) for line in logs] == [
        ("work_failed_unasked", "the database doesn't answer")
    ]
    assert unretrieved == []
