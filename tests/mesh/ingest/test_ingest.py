"""Ingest as a process with a real nats-server: acknowledged reports are stored, refusals give a reason, no batch is half done."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
import pytest

from services.common.rpc import gatekeeper, server
from tandem.common.v1 import log_pb2
from tandem.ingest.v1 import ingest_pb2
from tests.support.ingest.ingest import (
    SECRET,
    VENDOR,
    WITHIN_S,
    Client,
    IngestMesh,
    event,
    load,
    now_ms,
    position,
    request,
    violation,
)

ACCEPTED, REFUSED = ingest_pb2.ACCEPTED, ingest_pb2.REFUSED
YEAR_1970_MS, YEAR_2100_MS = 0, 4_102_444_800_000


@pytest.fixture
async def client(mesh: IngestMesh) -> AsyncIterator[Client]:
    async with mesh.connected() as connected:
        await connected.route("tag", "app")
        yield connected


async def test_an_answer_comes_once_its_batch_is_in_the_log(client: Client) -> None:
    call = client.open()
    async with asyncio.timeout(WITHIN_S):
        for batch in range(1, 6):
            await call.write(request(batch, position("tag", f"durable-{batch}"), event("app", f"durable-e-{batch}")))
            answer: Any = await call.read()
            assert (answer.batch, list(answer.outcomes), list(answer.refusals)) == (batch, [ACCEPTED] * 2, [])
            stored = await client.stored()
            assert stored[f"durable-{batch}"] == stored[f"durable-e-{batch}"] == 1
        await call.done_writing()
        assert await call.read() is grpc.aio.EOF


async def test_stored_reports_equal_the_sent_ones(client: Client) -> None:
    at_ms = now_ms() - 5_000
    received_after_us = now_ms() * 1000
    await client.send(
        request(
            1,
            position("tag", "exact", at_ms, lat_deg=-89.99999994, lon_deg=180.0, accuracy_m=0.0001, speed_mps=3.0),
            event("tag", "exact-e", log_pb2.CASE_OPEN, time_ms=at_ms),
        )
    )
    entries = [entry for _, entry in await client.entries()]
    batch = next(entry.positions for entry in entries if "exact" in entry.positions.report_id)
    i = list(batch.report_id).index("exact")
    stored = (batch.device_id[i], batch.fix_time_ms[i], batch.lat_e7[i], batch.lon_e7[i], batch.accuracy_mm[i])
    assert stored == ("tag", at_ms, -899_999_999, 1_800_000_000, 1)
    assert received_after_us <= batch.received_wall_us <= now_ms() * 1000 + 1000
    report = next(entry.equipment for entry in entries if entry.equipment.report_id == "exact-e")
    assert (report.device_id, report.event, report.event_time_ms) == ("tag", log_pb2.CASE_OPEN, at_ms)


async def test_answers_come_in_the_order_of_the_batches_for_any_content(client: Client) -> None:
    batches = [
        # An unknown device needs a look-up; the batch behind it must not overtake.
        request(
            batch,
            position(f"nobody-{batch}" if batch % 3 else "tag", f"order-{batch}"),
            event("tag", f"order-e-{batch}"),
        )
        for batch in range(100, 0, -1)
    ]
    answers = await client.send(*batches)
    assert [answer.batch for answer in answers] == list(range(100, 0, -1))


BAD_POSITIONS: dict[str, tuple[dict[str, Any], str, str]] = {
    "unknown device": ({"device_id": "nobody"}, "device_id", "is no registered device"),
    "no device": ({"device_id": ""}, "device_id", "is missing"),
    "device with a wildcard": ({"device_id": "a.*"}, "device_id", "must be 1 to 64"),
    "no report id": ({"report_id": ""}, "report_id", "is missing"),
    "long report id": ({"report_id": "x" * 65}, "report_id", "must be 1 to 64"),
    "latitude 91": ({"lat_deg": 91.0}, "lat_deg", "must be from -90 to 90"),
    "latitude NaN": ({"lat_deg": math.nan}, "lat_deg", "must be from -90 to 90"),
    "longitude infinite": ({"lon_deg": -math.inf}, "lon_deg", "must be from -180 to 180"),
    "longitude 180.1": ({"lon_deg": 180.1}, "lon_deg", "must be from -180 to 180"),
    "accuracy 0": ({"accuracy_m": 0.0}, "accuracy_m", "is missing"),
    "accuracy negative": ({"accuracy_m": -1.0}, "accuracy_m", "must be"),
    "accuracy NaN": ({"accuracy_m": math.nan}, "accuracy_m", "must be"),
    "accuracy 200 km": ({"accuracy_m": 200_000.0}, "accuracy_m", "must be"),
    "speed negative": ({"speed_mps": -0.1}, "speed_mps", "must be from 0"),
    "course 361": ({"course_deg": 361.0}, "course_deg", "must be from 0 to 360"),
    "battery 101": ({"battery_pct": 101.0}, "battery_pct", "must be from 0 to 100"),
    "year 2100": ({"fix_time_ms": YEAR_2100_MS}, "fix_time", "is more than 2 minutes in the future"),
}


@pytest.mark.parametrize("what", BAD_POSITIONS)
async def test_a_bad_position_is_refused_by_field_and_the_rest_is_accepted(client: Client, what: str) -> None:
    changes, field, reason = BAD_POSITIONS[what]
    name = what.replace(" ", "-").replace(".", "-")
    bad = position(**({"device_id": "tag", "report_id": f"bad-{name}"} | changes))
    before, after = position("tag", f"before-{name}"), position("app", f"after-{name}")
    (answer,) = await client.send(request(9, before, bad, after, event("tag", f"event-{name}")))
    assert list(answer.outcomes) == [ACCEPTED, REFUSED, ACCEPTED, ACCEPTED]
    (refusal,) = answer.refusals
    assert (refusal.index, refusal.field) == (1, f"positions[1].{field}")
    assert refusal.reason.startswith(reason)
    stored = await client.stored()
    assert [stored[f"{which}-{name}"] for which in ("before", "after", "event")] == [1, 1, 1]
    assert bad.report_id not in stored


async def test_a_time_in_the_future_is_refused_from_two_minutes_on(client: Client) -> None:
    soon, late = now_ms() + 60_000, now_ms() + 180_000
    batch = request(
        1,
        position("tag", "in-1-min", soon),
        position("tag", "in-3-min", late),
        event("tag", "event-in-1-min", time_ms=soon),
        event("tag", "event-in-3-min", time_ms=late),
    )
    (answer,) = await client.send(batch)
    assert list(answer.outcomes) == [ACCEPTED, REFUSED, ACCEPTED, REFUSED]
    assert [refusal.field for refusal in answer.refusals] == ["positions[1].fix_time", "equipment[1].event_time"]


async def test_an_old_time_is_no_reason_to_refuse(client: Client) -> None:
    """Buffered reports come late; the fold decides whether they still matter."""
    (answer,) = await client.send(request(1, position("tag", "from-1970", YEAR_1970_MS)))
    assert list(answer.outcomes) == [ACCEPTED] and (await client.stored())["from-1970"] == 1


async def test_a_missing_or_impossible_time_is_refused(client: Client) -> None:
    missing, impossible = position("tag", "no-time"), position("tag", "no-such-time")
    missing.ClearField("fix_time")
    impossible.fix_time.nanos = 2_000_000_000
    (answer,) = await client.send(request(1, missing, impossible))
    assert [(refusal.field, refusal.reason) for refusal in answer.refusals] == [
        ("positions[0].fix_time", "is missing"),
        ("positions[1].fix_time", "must be between the years 1 and 9999"),
    ]


@pytest.mark.parametrize(
    ("changes", "field", "reason"),
    [
        ({"event": 99}, "event", "is no known event: 99 isn't in EquipmentKind"),
        ({"event": 0}, "event", "is missing"),
        ({"device_id": "nobody"}, "device_id", "is no registered device"),
        ({"report_id": ""}, "report_id", "is missing"),
        ({"event_time": None}, "event_time", "is missing"),
    ],
)
async def test_a_bad_event_is_refused_by_field_and_the_rest_is_accepted(
    client: Client, changes: dict[str, Any], field: str, reason: str
) -> None:
    bad = event("tag", "bad-event")
    for name, value in changes.items():
        if value is None:
            bad.ClearField(name)  # type: ignore[arg-type]
        else:
            setattr(bad, name, value)
    key = f"{field}-{reason[:5].strip()}".replace(" ", "-")
    (answer,) = await client.send(request(1, position("tag", f"with-{key}"), bad, event("app", f"beside-{key}")))
    assert list(answer.outcomes) == [ACCEPTED, REFUSED, ACCEPTED]
    assert [(refusal.index, refusal.field, refusal.reason) for refusal in answer.refusals] == [
        (1, f"equipment[0].{field}", reason)
    ]
    stored = await client.stored()
    assert stored[f"with-{key}"] == stored[f"beside-{key}"] == 1 and "bad-event" not in stored


async def test_a_device_that_registers_is_heard_soon_after_it_was_unknown(client: Client) -> None:
    (answer,) = await client.send(request(1, position("newcomer", "too-soon")))
    assert list(answer.outcomes) == [REFUSED]
    await client.route("newcomer")
    async with asyncio.timeout(WITHIN_S):
        while list(answer.outcomes) != [ACCEPTED]:
            (answer,) = await client.send(request(1, position("newcomer", "at-last")))
    assert (await client.stored())["at-last"] == 1


@pytest.mark.parametrize("count", [0, 1_001])
async def test_a_batch_of_none_or_too_many_ends_the_stream_and_stores_nothing_of_it(client: Client, count: int) -> None:
    reports = [position("tag", f"size-{count}-{i}") for i in range(count)]
    error = await client.refusal(request(1, *reports))
    assert violation(error) == ("positions", f"a batch holds 1 to 1000 reports, this one {count}")
    assert not any(report_id.startswith(f"size-{count}-") for report_id in await client.stored())


async def test_a_full_batch_is_accepted_whole(client: Client) -> None:
    reports = [position("tag", f"{'x' * 50}-{i}") for i in range(999)]
    (answer,) = await client.send(request(1, *reports, event("tag", "the-thousandth")))
    assert list(answer.outcomes) == [ACCEPTED] * 1000
    stored = await client.stored()
    assert all(stored[report.report_id] == 1 for report in reports)


async def test_a_frame_of_2_mb_is_refused_and_the_neighbour_goes_on(client: Client) -> None:
    neighbour = client.open()
    async with asyncio.timeout(WITHIN_S):
        await neighbour.write(request(1, position("tag", "neighbour-1")))
        first: Any = await neighbour.read()
        assert first.batch == 1
        error = await client.refusal(request(1, position("tag", "x" * (2 << 20))))
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        await neighbour.write(request(2, position("tag", "neighbour-2")))
        second: Any = await neighbour.read()
        assert (second.batch, list(second.outcomes)) == (2, [ACCEPTED])
        await neighbour.done_writing()
        assert await neighbour.read() is grpc.aio.EOF


async def test_an_unreadable_frame_ends_the_stream_after_the_batches_before_it_are_answered(
    mesh: IngestMesh,
) -> None:
    async with mesh.connected() as client, server.channel(mesh.address) as channel:
        await client.route("tag")
        raw: Any = channel.stream_stream(
            "/tandem.ingest.v1.IngestService/Report", response_deserializer=ingest_pb2.ReportResponse.FromString
        )
        good = request(1, position("tag", "before-rubbish")).SerializeToString()
        call = raw(iter([good, b"\xff\xff\xff"]), metadata=server.bearer(VENDOR, SECRET))
        async with asyncio.timeout(WITHIN_S):
            answer: Any = await call.read()
            assert list(answer.outcomes) == [ACCEPTED]
            with pytest.raises(grpc.aio.AioRpcError) as ended:
                await call.read()
        assert violation(ended.value) == ("", gatekeeper.unreadable("tandem.ingest.v1.ReportRequest").reason)


async def test_two_hundred_streams_at_once(mesh: IngestMesh, client: Client) -> None:
    async with server.channel(mesh.address) as other_channel:
        other = Client(other_channel, client.bus)
        acknowledged: set[str] = set()
        opened = await asyncio.gather(
            *(
                (client if n % 2 else other).deliver(load("tag", f"many-{n}", batches=5, reports=4), acknowledged)
                for n in range(200)
            )
        )
    assert opened == [1] * 200 and len(acknowledged) == 200 * (5 * 4 + 2)
    stored = await client.stored()
    assert {report_id: stored[report_id] for report_id in acknowledged if stored[report_id] != 1} == {}


async def test_a_stream_cancelled_in_the_middle_costs_the_others_nothing(client: Client) -> None:
    acknowledged: set[str] = set()
    going_on = asyncio.create_task(client.deliver(load("app", "goes-on", batches=200), acknowledged))
    answered: set[str] = set()
    for n in range(20):
        call = client.open(iter(load("tag", f"cancelled-{n}", batches=50)))
        async with asyncio.timeout(WITHIN_S):
            for _ in range(n):
                answer: Any = await call.read()
                answered.add(f"cancelled-{n}-{answer.batch}-0")
        call.cancel()
    assert await going_on == 1
    stored = await client.stored()
    assert answered | acknowledged <= set(stored)
    assert max(stored.values()) == 1, "nobody sent anything twice"
