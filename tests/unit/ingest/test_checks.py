"""Checks of ingest: reading positions at once equals reading them one by one; rate limits and in-flight limits are fair."""

from __future__ import annotations

import asyncio
import math
from typing import Any

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given
from hypothesis import strategies as st

from services.common import fields
from services.common.errors import InvalidField, StoreFull
from services.ingest import log, translate
from services.ingest.admission.checks import MAX_PENALTY_S, RateLimit
from services.ingest.batch import Batch
from services.ingest.domain import Positions
from services.ingest.intake import InFlightLimiter
from services.ingest.log import Origin
from tandem.common.v1 import log_pb2
from tandem.ingest.v1 import ingest_pb2

SOUND: dict[str, Any] = {
    "device_id": "tag",
    "report_id": "r-1",
    "fix_time": Timestamp(seconds=1_800_000_000, nanos=999_999_999),
    "lat_deg": 37.5,
    "lon_deg": 127.0,
    "accuracy_m": 5.0,
}
numbers = st.floats(allow_nan=True, allow_infinity=True) | st.sampled_from([-180.0, -90.0, 0.0, 90.0, 180.0, 360.0])
changes = st.fixed_dictionaries(
    {},
    optional={
        "report_id": st.text(max_size=70) | st.sampled_from(["", "a\nb", "a..b", ".a", "a.", "x" * 64, "x" * 65]),
        "fix_time": st.builds(Timestamp, seconds=st.integers(-(2**40), 2**40), nanos=st.integers(-(2**31), 2**31 - 1)),
        "lat_deg": numbers,
        "lon_deg": numbers,
        "accuracy_m": numbers | st.floats(0, 100_000),
        "speed_mps": numbers,
        "course_deg": numbers,
        "battery_pct": numbers,
    },
)


def one_by_one(messages: list[ingest_pb2.Position]) -> Positions | None:
    try:
        return Positions.of([translate.parse_position(message) for message in messages])
    except InvalidField:
        return None


@given(st.lists(changes, min_size=1, max_size=5))
def test_positions_read_at_once_equal_those_read_one_by_one(all_changes: list[dict[str, Any]]) -> None:
    messages = [ingest_pb2.Position(**(SOUND | all_change)) for all_change in all_changes]
    at_once = translate.read_positions(messages)
    # Reading at once may give up on a batch, but its result must be the same.
    assert at_once is None or at_once == one_by_one(messages)


@given(st.lists(st.floats(-90, 90), min_size=1, max_size=20), st.integers(1, 200_000_000_000))
def test_sound_batches_are_read_at_once(latitudes: list[float], ms: int) -> None:
    at = Timestamp(seconds=1 + ms // 1000, nanos=ms % 1000 * 1_000_000)
    messages = [ingest_pb2.Position(**(SOUND | {"lat_deg": latitude, "fix_time": at})) for latitude in latitudes]
    assert translate.read_positions(messages) == one_by_one(messages) is not None


@given(st.lists(st.text(max_size=66) | st.from_regex(r"[A-Za-z0-9._\n-]{0,66}", fullmatch=True), min_size=1))
def test_ids_are_checked_at_once_as_one_by_one(values: list[str]) -> None:
    def is_id(value: str) -> bool:
        try:
            return bool(fields.required_id("x", value))
        except InvalidField:
            return False

    assert fields.are_ids(values) == all(is_id(value) for value in values)


def test_a_device_may_burst_and_then_go_on_at_its_rate() -> None:
    limit = RateLimit(per_s=2.0, burst=5)
    assert limit.over(["a"] * 7, 0.0) == [5, 6]
    assert limit.over(["b"], 0.0) == []  # another device has its own limit
    assert limit.over(["a"] * 3, 1.0) == [2]  # two more a second later
    limit.forget(100.0)
    assert limit.over(["a"] * 6, 100.0) == [5]


def test_a_refused_report_does_not_count_against_the_limit() -> None:
    limit = RateLimit(per_s=1.0, burst=1)
    assert [limit.over(["a"], 0.0 + n / 10) for n in range(10)] == [[], *[[0]] * 9]
    assert limit.over(["a"], 1.0) == []


async def test_a_sender_that_fills_its_share_waits_and_its_neighbour_does_not() -> None:
    limiter = InFlightLimiter(max_sender=10, max_all=30)
    await limiter.enter("a", 8, patient=True)
    waiting = asyncio.ensure_future(limiter.enter("a", 5, patient=True))
    await asyncio.sleep(0)
    assert not waiting.done()
    await limiter.enter("b", 10, patient=False)
    with pytest.raises(StoreFull):
        await limiter.enter("a", 1, patient=False)  # it must not overtake the waiting callers
    limiter.leave("a", 8)
    await waiting
    limiter.leave("a", 5)
    limiter.leave("b", 10)
    await limiter.enter("a", 10, patient=False)


async def test_a_cancelled_wait_takes_no_share() -> None:
    limiter = InFlightLimiter(max_sender=10, max_all=10)
    await limiter.enter("a", 10, patient=True)
    first, second = (asyncio.ensure_future(limiter.enter(sender, 10, patient=True)) for sender in ("a", "b"))
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    limiter.leave("a", 10)
    await second
    limiter.leave("b", 10)
    await limiter.enter("a", 10, patient=False)


async def test_a_caller_cancelled_at_its_turn_releases_its_share() -> None:
    limiter = InFlightLimiter(max_sender=10, max_all=10)
    await limiter.enter("a", 10, patient=True)
    turn = asyncio.ensure_future(limiter.enter("a", 10, patient=True))
    await asyncio.sleep(0)
    limiter.leave("a", 10)
    turn.cancel()  # in the same moment
    await asyncio.gather(turn, return_exceptions=True)
    await limiter.enter("a", 10, patient=False)


async def test_a_batch_larger_than_a_share_is_admitted_alone() -> None:
    limiter = InFlightLimiter(max_sender=10, max_all=100)
    await limiter.enter("a", 50, patient=False)
    with pytest.raises(StoreFull):
        await limiter.enter("a", 1, patient=False)


def test_a_position_with_nan_is_not_read() -> None:
    bad = ingest_pb2.Position(**(SOUND | {"lat_deg": math.nan}))
    assert translate.read_positions([ingest_pb2.Position(**SOUND), bad, ingest_pb2.Position(**SOUND)]) is None


def test_a_sender_of_many_refused_reports_waits() -> None:
    limit = RateLimit(per_s=10.0, burst=20)
    assert [limit.charge("a", 10, 0.0) for _ in range(4)] == [0.0, 0.0, 1.0, 2.0]
    assert limit.charge("b", 10, 0.0) == limit.charge("a", 0, 0.0) == 0.0
    assert limit.charge("a", 10, 4.0) == 0.0
    assert limit.charge("a", 100_000, 4.0) == MAX_PENALTY_S and limit.penalty_s("a", 10.0) == MAX_PENALTY_S - 6


async def test_senders_share_a_message_by_reports() -> None:
    batches: list[list[str]] = []

    async def store(message: Any) -> None:
        await asyncio.sleep(0)

    def encode(items: Any, received_wall_us: int) -> log_pb2.LogEntry:
        batches.append(list(items))
        return log_pb2.LogEntry()

    line = log._Line(store, encode, max_size=100, in_flight=1)
    batch = Batch()
    batch.check()
    for n in range(10):
        line.put(Origin(batch, "flood", 0), f"flood-{n}", 50)
    for n in range(100):
        line.put(Origin(batch, "phones", 0), f"phone-{n}", 1)
    batch.write()
    work = asyncio.create_task(line.run())
    await batch.ended()
    work.cancel()
    assert [sum(item.startswith("phone") for item in message) for message in batches[:2]] == [50, 50]
    assert [sum(item.startswith("flood") for item in message) for message in batches[:2]] == [1, 1]


def entry_of(items: Any, received_wall_us: int) -> log_pb2.LogEntry:
    return log_pb2.LogEntry()


async def turns(count: int = 5) -> None:
    """Lets all tasks run until each waits."""
    for _ in range(count):
        await asyncio.sleep(0)


async def test_an_item_wakes_one_idle_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    under_way: list[str] = []

    async def store(message: Any) -> None:
        under_way.append(message.msg_id)
        await asyncio.Event().wait()

    line = log._Line(store, entry_of, 1, in_flight=3, msg_id_of=lambda item: item)
    batch = Batch()
    batch.check()
    work = asyncio.create_task(line.run())
    await turns()
    loop, woken = asyncio.get_running_loop(), []
    call_soon = loop.call_soon

    def noted(*arguments: Any, **options: Any) -> asyncio.Handle:
        woken.append(arguments)
        return call_soon(*arguments, **options)

    monkeypatch.setattr(loop, "call_soon", noted)
    line.put(Origin(batch, "a", 0), "1", 1)
    assert len(woken) == 1
    line.put(Origin(batch, "a", 0), "2", 1)
    assert len(woken) == 2
    monkeypatch.undo()
    await turns()
    assert sorted(under_way) == ["1", "2"]  # each message holds one item, so two workers are needed
    work.cancel()


async def test_an_item_that_is_queued_after_a_worker_was_cancelled_waits() -> None:
    async def store(message: Any) -> None:
        pass

    line = log._Line(store, entry_of, 1, in_flight=1)
    batch = Batch()
    batch.check()
    work = asyncio.create_task(line.run())
    await turns()
    work.cancel()
    await asyncio.wait([work])
    line.put(Origin(batch, "a", 0), "1", 1)
    batch.write()
    work = asyncio.create_task(line.run())
    await batch.ended()
    work.cancel()
