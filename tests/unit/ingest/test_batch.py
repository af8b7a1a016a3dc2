"""States of a batch: which follows which, when it wakes those that wait for it, and what a failed entry leads to."""

from __future__ import annotations

import asyncio

import pytest

from services.common.errors import StoreFull, Unavailable
from services.ingest.batch import Batch, BatchState
from services.ingest.domain import Reason, Refusal

REFUSAL = Refusal(0, "lat_deg", "is missing", Reason.INVALID)
LATER = Unavailable("send again")


def state_of(batch: Batch) -> BatchState:
    """State of a batch. A function, because the type checker takes an attribute that was compared once for constant."""
    return batch.state


def is_answerable(batch: Batch) -> bool:
    return batch.may_be_answered


def written(entries: int, ends: list[bool] | None = None) -> Batch:
    """A batch with this number of entries on their way. `ends` receives whether all were stored."""
    batch = Batch()
    batch.check()
    for _ in range(entries):
        batch.add_entry()
    batch.write(on_written=None if ends is None else ends.append)
    return batch


async def test_a_batch_is_durable_once_its_last_entry_is_stored_and_wakes_each_stream_then() -> None:
    batch = Batch()
    first = asyncio.Event()
    second = asyncio.Event()
    ends = list[bool]()
    batch.join(first)
    batch.join(second)
    batch.check()
    batch.add_entry()
    batch.add_entry()
    assert state_of(batch) is BatchState.CHECKING
    batch.write([REFUSAL], ["tag"], ends.append)
    batch.stored()
    assert state_of(batch) is BatchState.WRITING and not (first.is_set() or second.is_set() or ends)
    batch.stored()
    assert state_of(batch) is BatchState.DURABLE and is_answerable(batch)
    assert first.is_set() and second.is_set() and ends == [True]
    await batch.ended()


async def test_a_batch_whose_reports_were_all_refused_is_durable_at_once() -> None:
    ends: list[bool] = []
    batch = written(0, ends)
    assert state_of(batch) is BatchState.DURABLE and ends == [True]
    await batch.ended()


async def test_an_entry_that_is_not_stored_fails_the_batch_once_no_entry_is_on_its_way() -> None:
    ends: list[bool] = []
    batch = written(2, ends)
    waiting = asyncio.ensure_future(batch.ended())
    batch.stored(LATER)
    batch.stored(StoreFull("the log is full", retry_after_s=1.0))
    assert state_of(batch) is BatchState.FAILED and ends == [False]
    with pytest.raises(Unavailable) as raised:
        await waiting
    assert raised.value is LATER, "the first error is the reason"


async def test_a_batch_that_fails_in_the_checks_wakes_its_streams() -> None:
    batch, changed = Batch(), asyncio.Event()
    batch.join(changed)
    batch.check()
    batch.fail(LATER)
    assert state_of(batch) is BatchState.FAILED and changed.is_set() and batch.error is LATER


async def test_entries_of_a_failed_batch_are_still_counted() -> None:
    ends: list[bool] = []
    batch = written(1, ends)
    batch.fail(LATER)
    assert is_answerable(batch) and not ends
    batch.stored()
    assert state_of(batch) is BatchState.FAILED and ends == [False]


async def test_the_answer_to_a_durable_batch_waits_for_its_penalty_delay() -> None:
    batch, changed = Batch(), asyncio.Event()
    batch.join(changed)
    batch.check()
    with batch.delayed():
        batch.write([REFUSAL])
        assert state_of(batch) is BatchState.DURABLE and not is_answerable(batch) and not changed.is_set()
    assert is_answerable(batch) and changed.is_set()


@pytest.mark.parametrize("state", BatchState)
def test_a_transition_out_of_order_is_an_error_of_the_program(state: BatchState) -> None:
    batch = Batch()
    match state:
        case BatchState.GATHERING:
            pass
        case BatchState.CHECKING:
            batch.check()
        case BatchState.WRITING:
            batch = written(1)
        case BatchState.DURABLE:
            batch = written(0)
        case BatchState.FAILED:
            batch.fail(LATER)
    assert batch.state is state
    allowed = {
        "join": {BatchState.GATHERING},
        "check": {BatchState.GATHERING},
        "add_entry": {BatchState.CHECKING},
        "write": {BatchState.CHECKING},
        "stored": {BatchState.WRITING, BatchState.FAILED},
    }
    for name, states in allowed.items():
        if state not in states:
            with pytest.raises(RuntimeError, match=state.value):
                getattr(batch, name)(*([asyncio.Event()] if name == "join" else []))
