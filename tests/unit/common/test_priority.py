"""Admission of sharing and record work beside response work."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, ExitStack

import pytest
from prometheus_client import CollectorRegistry

from services.common import priority
from services.common.observability.metrics import GateMetrics
from services.common.priority import Limits, PriorityGate, WorkClass

PATIENT = Limits(quiet_s=0.0, max_delay_s=3_600.0, slots=1)
"""Work that never goes beside response work during a test."""
HASTY = Limits(quiet_s=3_600.0, max_delay_s=0.0, slots=1)
"""Work that never waits for response work."""


async def turns(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


class Log:
    """Names of the blocks in the order in which they were admitted."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.may_end = asyncio.Event()

    def start(self, name: str, admission: AbstractAsyncContextManager[None]) -> asyncio.Task[None]:
        async def work() -> None:
            async with admission:
                self.names.append(name)
                await self.may_end.wait()

        return asyncio.create_task(work())


async def test_work_without_response_work_is_admitted_at_once() -> None:
    gate = PriorityGate(PATIENT, PATIENT)
    async with gate.sharing():
        pass
    async with gate.record():
        pass


@pytest.mark.parametrize("work", [WorkClass.SHARING, WorkClass.RECORD])
async def test_work_waits_while_response_work_is_pending(work: WorkClass) -> None:
    gate, log = PriorityGate(PATIENT, PATIENT), Log()
    log.may_end.set()
    with ExitStack() as response:
        response.enter_context(gate.response())
        admission = gate.sharing() if work is WorkClass.SHARING else gate.record()
        waiting = log.start("late", admission)
        await turns()
        assert (log.names, gate.waiting(work)) == ([], 1)
        with gate.response():
            pass  # overlapping response work that ends first admits nothing
        await turns()
        assert log.names == []
        assert gate.oldest_s(work) >= 0
    await waiting
    assert (log.names, gate.waiting(work), gate.overdue(work), gate.oldest_s(work)) == (["late"], 0, 0, 0.0)


async def test_records_wait_for_a_quiet_time_after_response_work() -> None:
    gate, log = PriorityGate(PATIENT, Limits(quiet_s=3_600.0, max_delay_s=3_600.0, slots=1)), Log()
    async with gate.record():
        pass  # nothing has happened yet: it is quiet
    with gate.response():
        pass
    record, sharing = log.start("record", gate.record()), log.start("sharing", gate.sharing())
    await turns()
    assert log.names == ["sharing"]
    for task in (record, sharing):
        task.cancel()


async def test_records_wait_for_sharing() -> None:
    gate, log = PriorityGate(PATIENT, PATIENT), Log()
    with gate.response():
        started = [log.start("record", gate.record()), log.start("sharing", gate.sharing())]
        await turns()
    await turns()
    assert log.names == ["sharing"]
    log.may_end.set()
    await asyncio.gather(*started)
    assert log.names == ["sharing", "record"]


@pytest.mark.parametrize("work", [WorkClass.SHARING, WorkClass.RECORD])
async def test_work_that_has_waited_for_the_maximum_delay_runs_with_response_work(work: WorkClass) -> None:
    gate = PriorityGate(HASTY, HASTY)
    with gate.response():
        async with gate.sharing() if work is WorkClass.SHARING else gate.record():
            assert gate.overdue(work) == 1


async def test_slots_are_given_in_order_of_arrival() -> None:
    gate, log = PriorityGate(PATIENT, PATIENT), Log()
    started = [log.start(name, gate.record()) for name in "abc"]
    await turns()
    assert log.names == ["a"]
    log.may_end.set()
    await asyncio.gather(*started)
    assert log.names == ["a", "b", "c"]


async def test_an_overdue_caller_still_needs_a_slot() -> None:
    gate, log = PriorityGate(PATIENT, HASTY), Log()
    with gate.response():
        started = [log.start(name, gate.record()) for name in "ab"]
        await turns()
        assert log.names == ["a"]
        log.may_end.set()
        await asyncio.gather(*started)
    assert log.names == ["a", "b"]


def cancelled_while_waiting(gate: PriorityGate, task: asyncio.Task[None]) -> None:
    task.cancel()


def cancelled_when_admitted(gate: PriorityGate, task: asyncio.Task[None]) -> None:
    with gate.response():
        pass  # its end admits the caller
    task.cancel()


def cancelled_before_the_end_of_response_work(gate: PriorityGate, task: asyncio.Task[None]) -> None:
    task.cancel()
    with gate.response():
        pass  # its end finds a caller that was cancelled in the same turn of the event loop


@pytest.mark.parametrize(
    "cancel", [cancelled_while_waiting, cancelled_when_admitted, cancelled_before_the_end_of_response_work]
)
async def test_a_cancelled_caller_keeps_no_slot(cancel: Callable[[PriorityGate, asyncio.Task[None]], None]) -> None:
    gate, log = PriorityGate(PATIENT, PATIENT), Log()
    with ExitStack() as response:
        response.enter_context(gate.response())
        task = log.start("cancelled", gate.record())
        await turns()
        if cancel is cancelled_when_admitted:
            response.close()
        cancel(gate, task)
        response.close()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert gate.waiting(WorkClass.RECORD) == 0
    async with gate.record():
        pass


async def test_response_work_never_waits_and_has_no_queue() -> None:
    gate = PriorityGate(PATIENT, PATIENT)
    async with gate.record(), gate.sharing():
        with gate.response(), gate.response():
            assert gate.waiting(WorkClass.RESPONSE) == gate.overdue(WorkClass.RESPONSE) == 0


async def test_the_gate_says_what_it_has_put_off_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    gate, log = PriorityGate(PATIENT, PATIENT), Log()
    with gate.response():
        waiting = log.start("late", gate.record())
        await turns()
        assert gate.put_off() == ""
        monkeypatch.setattr(priority, "PUT_OFF_S", 0.0)
        assert gate.put_off() == "1 record tasks have waited for up to 0 s"
    log.may_end.set()
    await waiting
    monkeypatch.undo()
    assert gate.put_off() == ""


async def test_the_metrics_show_the_work_that_is_put_off() -> None:
    gate = PriorityGate(PATIENT, HASTY)
    registry = CollectorRegistry()
    log = Log()
    GateMetrics(gate, registry)

    def shown(name: str, work: WorkClass) -> float | None:
        return registry.get_sample_value(f"tandem_work_{name}", {"class": work.value})

    with gate.response():
        waiting = log.start("late", gate.sharing())
        async with gate.record():
            await turns()
            assert shown("waiting", WorkClass.SHARING) == 1
            assert shown("oldest_seconds", WorkClass.SHARING) == pytest.approx(gate.oldest_s(WorkClass.SHARING), abs=60)
        assert shown("overdue_total", WorkClass.RECORD) == 1
    log.may_end.set()
    await waiting
    assert shown("waiting", WorkClass.SHARING) == shown("oldest_seconds", WorkClass.SHARING) == 0
