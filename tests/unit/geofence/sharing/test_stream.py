"""A stream's events, from a state that changes as the fold would change it: news, time, and evaluators that fall behind."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Collection
from typing import Any, cast

import pytest
from google.rpc import code_pb2

from services.common.clock import MeshClock, wall_us
from services.common.errors import Unavailable
from services.common.privacy.grounds import RecordKind
from services.common.rpc import server
from services.common.rpc.identity import Caller, Role
from services.geofence import positions
from services.geofence.consumer import Evaluator
from services.geofence.disclosures import ALLOWED_BATCH, DisclosureOutbox, OpenShare
from services.geofence.domain import sharing
from services.geofence.domain.entries import Body, Case, Demand, Heard, Positions, Ring, Target, Tick
from services.geofence.domain.geometry import PERSON, ecef_mm
from services.geofence.domain.kinematics.fixes import Fix
from services.geofence.domain.kinematics.track import UNKNOWN_AFTER_MS, Track
from services.geofence.domain.sharing import PositionShare, Subject
from services.geofence.domain.state import CaseState, OpenIncident, State
from services.geofence.live_shares import LiveShare, WatchedShares
from services.geofence.positions import ShareStream
from tandem.geofence.v1 import positions_pb2

PATIENCE_S = 60.0
NOW_MS = wall_us() // 1000
HIM, HER = Subject(RecordKind.WEARER, "w"), Subject(RecordKind.PROTECTED_PERSON, "p")
CASE = Case(
    case_id="case-o",
    version=1,
    order_id="o",
    wearer_id="w",
    tag_device_ids=("t",),
    targets=(Target("p", True, ("d",), PERSON),),
    rings=(Ring(100_000, Demand.RESPOND),),
    valid_from_ms=NOW_MS - 1_000_000,
    valid_until_ms=NOW_MS + 100_000_000,
)
Events = list[positions_pb2.ShareEvent]


def share(subject: Subject) -> PositionShare:
    """A share during the incident of the case."""
    return PositionShare(
        subject=subject, case_id="case-o", order_id="o", wearer_id="w", incident_id="i", expires_at_ms=0
    )


class FakeEvaluator:
    """A state with two shares' cases, which a test changes."""

    def __init__(self) -> None:
        self.watched = WatchedShares()
        self.is_current = True
        self.state = State(0, now_ms=NOW_MS, cases={"case-o": CaseState(CASE)})
        self.state.incidents["w"] = OpenIncident("i", ["case-o"])

    def see(self, device_id: str, north_m: int, at_ms: int | None = None) -> None:
        """Applies a position of a device."""
        time_ms = NOW_MS if at_ms is None else at_ms
        fix = Fix(time_ms, time_ms, f"r{north_m}", *ecef_mm(375_000_000 + north_m * 90, 1_270_000_000), 5_000)
        self.state.tracks[device_id] = Track([fix])
        self.note(Positions([device_id], ["r"], [time_ms], [0], [0], [0], received_wall_us=0))

    def note(self, body: Body) -> None:
        self.watched.note(body, [])


class FakeOutbox:
    """Counts what would be written."""

    def __init__(self) -> None:
        self.allowances: list[int] = []
        self.ended: list[OpenShare] = []
        self.is_full = False

    async def allow(self, shares: Collection[OpenShare]) -> None:
        if self.is_full:
            raise Unavailable("the database refused: database or disk is full")
        self.allowances.append(len(shares))
        for each in shares:
            each.allowed += ALLOWED_BATCH

    def end(self, opened: OpenShare) -> None:
        self.ended.append(opened)


class Reader:
    """A stream of an evaluator's shares, and its reader."""

    def __init__(self, interval_s: float = 0.0) -> None:
        self.evaluator, self.outbox = FakeEvaluator(), FakeOutbox()
        evaluators, outbox = [cast(Evaluator, self.evaluator)], cast(DisclosureOutbox, self.outbox)
        self.stream = ShareStream(evaluators, outbox, MeshClock(), interval_s=interval_s)
        self._responses: AsyncIterator[positions_pb2.FollowPositionsResponse] = self.stream.responses()

    def add(self, number: int, right: PositionShare, for_ms: int = 50_000_000) -> None:
        self.stream.add(
            LiveShare(
                number=number,
                right=dataclasses.replace(right, expires_at_ms=NOW_MS + for_ms),
                legal_basis="STALKING_9_1_3_2",
                opened=OpenShare(f"share-{number}"),
                watched=self.evaluator.watched,
                mark=self.stream.mark,
            )
        )

    async def read(self) -> Events:
        """Events of the next response."""
        async with asyncio.timeout(PATIENCE_S):
            return list((await anext(self._responses)).events)


def kinds(events: Events) -> list[tuple[int, str | None]]:
    return [(event.number, event.WhichOneof("what")) for event in events]


async def test_a_share_is_checked_only_when_there_is_news_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    reader = Reader()
    reader.add(1, share(HIM))
    reader.add(2, share(HER))
    assert kinds(await reader.read()) == [(1, "opened"), (1, "position"), (2, "opened"), (2, "position")]
    checked: list[PositionShare] = []
    end_of = sharing.end_of

    def counted(state: State, right: PositionShare, now_ms: int) -> Any:
        checked.append(right)
        return end_of(state, right, now_ms)

    monkeypatch.setattr(sharing, "end_of", counted)
    next_read = asyncio.create_task(reader.read())
    for _ in range(100):
        reader.evaluator.see("of-another", 5)
        reader.evaluator.note(Heard(["t"]))
        reader.evaluator.note(Tick())
        await asyncio.sleep(0)
    assert checked == []
    reader.evaluator.see("t", 80)
    events = await next_read
    assert kinds(events) == [(1, "position")] and not events[0].position.unknown
    assert [right.subject for right in checked] == [HIM]


async def test_a_slow_reader_gets_the_newest_position_of_each_share() -> None:
    reader = Reader()
    reader.add(1, share(HIM))
    reader.add(2, share(HER))
    await reader.read()
    for north_m in range(500):
        reader.evaluator.see("t", north_m)
        reader.evaluator.see("d", -north_m)
    events = await reader.read()
    assert kinds(events) == [(1, "position"), (2, "position")]
    assert [round((event.position.lat_deg - 37.5) * 1e7) for event in events] == [499 * 90, -499 * 90]


async def test_a_position_within_the_interval_waits_and_is_the_newest_then() -> None:
    reader = Reader(interval_s=0.05)
    reader.add(1, share(HIM))
    await reader.read()
    for north_m in (1, 2, 3):
        reader.evaluator.see("t", north_m)
    (event,) = await reader.read()
    assert round((event.position.lat_deg - 37.5) * 1e7) == 270


async def test_a_thousand_shares_are_checked_in_steps_and_none_waits_behind_another() -> None:
    reader = Reader()
    for number in range(1, 1_001):
        reader.add(number, share(HIM))
    seen: list[int] = []
    while len(seen) < 1_000:
        events = await reader.read()
        assert len(events) <= 2 * positions.EVENTS_PER_RESPONSE
        seen += [event.number for event in events if event.HasField("position")]
    assert seen == list(range(1, 1_001))


@pytest.mark.parametrize("how", ["behind", "dropped", "disk"])
async def test_shares_are_refused_as_unavailable_when_the_evaluator_can_no_longer_serve_them(how: str) -> None:
    reader = Reader()
    reader.add(1, share(HIM))
    reader.add(2, share(HER))
    await reader.read()
    match how:
        case "behind":
            reader.evaluator.is_current = False
        case "dropped":
            reader.evaluator.watched.drop()
        case _:
            reader.outbox.is_full = True
            for north_m in range(1, ALLOWED_BATCH):
                reader.evaluator.see("t", north_m)
                reader.evaluator.see("d", north_m)
                await reader.read()
            reader.evaluator.see("t", 0)
            reader.evaluator.see("d", 0)
    events = await reader.read()
    assert sorted(kinds(events)) == [(1, "refused"), (2, "refused")]
    assert {event.refused.code for event in events} == {code_pb2.UNAVAILABLE}
    assert all(event.refused.retry_delay.ToMilliseconds() > 0 for event in events)
    assert len(reader.outbox.ended) == 2 and len(reader.stream) == 0
    reader.evaluator.is_current = True
    reader.evaluator.see("t", 5)
    reader.add(1, share(HIM))
    assert (await reader.read())[0].number == 1, "the number is free"


async def test_counts_of_many_shares_are_raised_together() -> None:
    reader = Reader()
    for number in range(1, 51):
        reader.add(number, share(HIM))
    await reader.read()
    for north_m in range(1, ALLOWED_BATCH + 1):
        reader.evaluator.see("t", north_m)
        assert len(await reader.read()) == 50
    assert reader.outbox.allowances == [50]


async def test_time_alone_makes_a_position_unknown_and_ends_a_share() -> None:
    reader = Reader()
    reader.evaluator.see("t", 1, NOW_MS - UNKNOWN_AFTER_MS)
    reader.add(1, share(HIM), for_ms=wall_us() // 1000 - NOW_MS + 2_000)
    first = await reader.read()
    assert not first[-1].position.unknown
    reader.evaluator.state.now_ms += 1  # the log's time decides
    (unknown,) = await reader.read()
    assert unknown.position.unknown and unknown.position.HasField("lat_deg")
    (ended,) = await reader.read()
    assert ended.end.reason == positions_pb2.EXPIRED
    assert [opened.positions for opened in reader.outbox.ended] == [2]


async def test_a_device_that_the_order_names_later_is_watched() -> None:
    reader = Reader()
    reader.add(1, share(HIM))
    await reader.read()
    case_state = reader.evaluator.state.cases["case-o"]
    case_state.case = dataclasses.replace(case_state.case, tag_device_ids=("t2",))
    reader.evaluator.note(case_state.case)
    next_read = asyncio.create_task(reader.read())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    reader.evaluator.see("t2", 7)
    (event,) = await next_read
    assert event.position.HasField("lat_deg")
    reader.stream.remove(1)
    reader.evaluator.see("t2", 8)
    assert not reader.stream._changed and len(reader.outbox.ended) == 1
    reader.stream.finish()
    with pytest.raises(StopAsyncIteration):
        await reader.read()


async def test_no_more_is_read_from_a_caller_that_reads_no_refusals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "caller", lambda: Caller("spiffe://moj/desk/deaf", Role.ROLE_MOJ_DESK))
    reader = Reader()
    servicer = positions.PositionServicer((), cast(DisclosureOutbox, reader.outbox), MeshClock(), interval_s=0.0)
    requests, read = 3 * positions.MAX_REFUSALS // positions.ADDS_PER_STEP, list[int]()

    async def unusable() -> AsyncIterator[positions_pb2.FollowPositionsRequest]:
        for i in range(requests):
            read.append(i)
            adds = [positions_pb2.ShareRequest(number=number) for number in range(1, positions.ADDS_PER_STEP + 1)]
            yield positions_pb2.FollowPositionsRequest(adds=adds)

    reading = asyncio.create_task(servicer._read(unusable(), reader.stream))
    for _ in range(10 * requests):  # more turns than the reader needs for all of them
        await asyncio.sleep(0)
    assert len(read) == positions.MAX_REFUSALS // positions.ADDS_PER_STEP + 1 and not reading.done()
    refused = 0
    while refused < requests * positions.ADDS_PER_STEP:
        refused += len(await reader.read())
    async with asyncio.timeout(PATIENCE_S):
        await reading
