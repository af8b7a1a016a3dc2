"""Evaluators' gRPC answers: equal from both evaluators, with one partition and with three; alerts can be resumed by a token."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from google.rpc import error_details_pb2

from services.common.messaging import cursors, flow
from services.common.messaging.bus import Bus
from services.common.rpc import server
from services.geofence.api import MAX_ALERT_STREAMS
from tandem.common.v1 import alert_pb2, log_pb2
from tandem.geofence.v1 import device_state_pb2
from tests.support import torn
from tests.support.geofence.evaluators import (
    OPERATOR,
    POLICE,
    PROBATION,
    REVIEWER,
    WITHIN_S,
    Client,
    Evaluators,
    approach,
    connected,
    enter,
    fields_of,
    running_evaluators,
)
from tests.support.geofence.log import case_entry
from tests.support.ingest.ingest import SECRET, details

MANY = 800
PADDING = 1_000
"""Destinations that make an alert about 40 KiB. All MANY alerts are 32 MB, which exceeds every gRPC window."""


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Evaluators]:
    with running_evaluators(tmp_path_factory.mktemp("three"), 3) as running:
        yield running


@pytest.fixture
def single(tmp_path: Path) -> Iterator[Evaluators]:
    with running_evaluators(tmp_path, 1) as running:
        yield running


async def test_both_evaluators_have_the_same_state_of_each_case(three: Evaluators) -> None:
    async with connected(three) as (bus, _):
        last = {p: await approach(bus, str(p), p) for p in range(three.partitions)}
        for p, sequence in last.items():
            await three.applied(sequence, p)
            states = await three.states_after(bus, sequence, p)
            first, second = [state.cases[f"case-{p}"] for state in states]
            assert first == second
            assert first.case.version == 1 and first.episode_id
            assert {key.radius_mm for key, ring in first.rings.items() if ring.open} == {2_000_000, 1_000_000, 100_000}
            assert {state.incidents[f"w{p}"].incident_id for state in states} != {""}
            assert states[0].incidents == states[1].incidents


async def test_desks_see_the_equipment_of_their_own_side_and_no_position(three: Evaluators) -> None:
    async with connected(three) as (bus, clients):
        now_ms = int(time.time() * 1000)
        await enter(bus, 0, case_entry("battery", from_ms=0, place=True))
        low = log_pb2.EquipmentReport(
            device_id="tbattery",
            report_id="low",
            event=log_pb2.BATTERY_LOW,
            event_time_ms=now_ms,
            received_wall_us=now_ms * 1000,
        )
        sequence = await enter(bus, 0, log_pb2.LogEntry(equipment=low))
        await three.applied(sequence)
        for client in clients:

            async def listed(who: str, client: Client = client, **asked: Any) -> list[device_state_pb2.DeviceState]:
                answer = await client.device_states.ListDeviceStates(
                    device_state_pb2.ListDeviceStatesRequest(**asked),
                    metadata=server.bearer(who, SECRET),
                    timeout=WITHIN_S,
                )
                return list(answer.devices)

            (tag,) = await listed(PROBATION, device_id="tbattery")
            assert (tag.subject_id, tag.kind, list(tag.active_events)) == (
                "wbattery",
                log_pb2.TAG,
                [log_pb2.BATTERY_LOW],
            )
            assert tag.HasField("last_heard") and not tag.HasField("accuracy_m")
            assert "tbattery" in {row.device_id for row in await listed(PROBATION, only_in_trouble=True)}
            assert {row.kind for row in await listed(POLICE)} == {log_pb2.PROTECTIVE_DEVICE}
            for who, code in (
                (POLICE, grpc.StatusCode.NOT_FOUND),
                (REVIEWER, grpc.StatusCode.PERMISSION_DENIED),
            ):
                with pytest.raises(grpc.aio.AioRpcError) as refused:
                    await listed(who, device_id="tbattery")
                assert refused.value.code() is code


async def test_a_resume_token_is_valid_across_kills_and_at_either_evaluator(single: Evaluators) -> None:
    async with connected(single) as (bus, clients):
        await approach(bus, "1")
        stream = clients[0].alerts(0)
        first = [await stream.read() for _ in range(2)]
        single.services[0].kill()
        with pytest.raises(grpc.aio.AioRpcError):
            while True:
                await stream.read()
        second = await approach(bus, "2")  # while it is dead
        single.services[0].start()
        await single.services[0].ready(single.addresses[0])
        count = await stored(bus)
        of_first, of_second = [state.cases["case-2"] for state in await single.states_after(bus, second)]
        assert of_first == of_second and of_first.episode_id
        for client in clients:
            resumed = client.alerts(first[-1].stream_sequence, after_alert_id=first[-1].alert.alert_id)
            async with asyncio.timeout(WITHIN_S):
                rest = [await resumed.read() for _ in range(count - 2)]
            resumed.cancel()
            assert [response.stream_sequence for response in first + rest] == list(range(1, count + 1))
            assert all(response.measure.alert_id == response.alert.alert_id for response in rest)


async def stored(bus: Bus) -> int:
    """Number of stored alerts, once no more come: all three rings of person and place, for both approaches."""
    async with asyncio.timeout(WITHIN_S):
        while True:
            last = (await bus.bounds_of(flow.ALERTS.name)).last
            if last >= 12:
                await asyncio.sleep(0.5)
                if (await bus.bounds_of(flow.ALERTS.name)).last == last:
                    return last
            await asyncio.sleep(0.05)


async def test_invalid_resume_tokens_are_rejected_with_their_field(single: Evaluators) -> None:
    async with connected(single) as (bus, (client, _)):
        await approach(bus, "1")
        stream = client.alerts(0)
        first = [await stream.read() for _ in range(6)]
        aged_out = await age(bus)
        await approach(bus, "2")
        async with asyncio.timeout(WITHIN_S):
            assert (await client.alerts(aged_out).read()).stream_sequence == aged_out + 1
        before = f"is before the alerts that are kept, from {aged_out + 1} on"
        for token, reason in ((aged_out + 1000, "is beyond the last alert"), (2, before)):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await client.alerts(token).read()
            assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
            assert fields_of(refused.value) == ["after_stream_sequence"]
            assert reason in str(refused.value.details())
        read = await client.alerts(0).read()
        assert read.stream_sequence == aged_out + 1
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await client.alerts(read.stream_sequence, after_alert_id="").read()
        assert fields_of(refused.value) == ["after_alert_id"]
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await client.alerts(read.stream_sequence, after_alert_id=first[-1].alert.alert_id).read()
        assert refused.value.code() == grpc.StatusCode.FAILED_PRECONDITION
        assert details(refused.value, error_details_pb2.ErrorInfo).reason == cursors.WENT_BACK
        assert [response.stream_sequence for response in first] == [1, 2, 3, 4, 5, 6]
        for who in (PROBATION, OPERATOR):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await client.alerts(0, who).read()
            assert refused.value.code() == grpc.StatusCode.PERMISSION_DENIED


async def test_a_reader_gets_an_error_when_the_alerts_go_back(single: Evaluators, tmp_path: Path) -> None:
    async with connected(single) as (bus, (client, _)):
        await approach(bus, "1")
        watched = client.alerts(0)
        seen = [await watched.read() for _ in range(await stored_of_one(bus))]
        single.nats.kill()
        torn.overwrite_tail(tmp_path / "nats", flow.ALERTS.name, random.Random(1))
        single.nats.start()
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            async with asyncio.timeout(WITHIN_S):
                while True:
                    await watched.read()
        assert refused.value.code() == grpc.StatusCode.FAILED_PRECONDITION
        assert details(refused.value, error_details_pb2.ErrorInfo).reason == cursors.WENT_BACK
        rewatched = client.alerts(0)
        async with asyncio.timeout(WITHIN_S):
            rest = [await rewatched.read() for _ in seen]
        assert {response.alert.alert_id for response in rest} == {response.alert.alert_id for response in seen}


async def stored_of_one(bus: Bus) -> int:
    """Number of stored alerts of one approach, once no more come."""
    async with asyncio.timeout(WITHIN_S):
        while True:
            last = (await bus.bounds_of(flow.ALERTS.name)).last
            await asyncio.sleep(0.5)
            if last and (await bus.bounds_of(flow.ALERTS.name)).last == last:
                return last


async def age(bus: Bus) -> int:
    """Lets all stored alerts age out of the stream; returns the sequence of the last one."""
    config = (await bus.api(f"STREAM.INFO.{flow.ALERTS.name}", {}))["config"]
    kept_for = config["max_age"]
    await bus.api(
        f"STREAM.UPDATE.{flow.ALERTS.name}", config | {"max_age": 200_000_000, "duplicate_window": 200_000_000}
    )
    async with asyncio.timeout(WITHIN_S):
        while True:
            bounds = await bus.bounds_of(flow.ALERTS.name)
            if bounds.first > bounds.last:
                break
            await asyncio.sleep(0.05)
    await bus.api(f"STREAM.UPDATE.{flow.ALERTS.name}", config | {"max_age": kept_for})
    return bounds.last


@pytest.mark.soak
async def test_unread_alerts_of_a_slow_reader_stay_in_the_stream(single: Evaluators) -> None:
    async with connected(single) as (bus, (client, _)):
        places = [alert_pb2.Destination(leg=alert_pb2.POLICE, subject_id=f"order/{n:030d}") for n in range(PADDING)]

        async def publish(n: int) -> None:
            alert = alert_pb2.Alert(alert_id=f"alert-{n}", partition=0, destinations=places)
            await bus.publish(flow.alert_subject(0, alert.alert_id), alert.SerializeToString())
            figures = alert_pb2.Measure(alert_id=alert.alert_id)
            await bus.publish(flow.measure_subject(0, alert.alert_id), figures.SerializeToString())

        for n in range(0, MANY, 100):
            await asyncio.gather(*(publish(index) for index in range(n, n + 100)))
        stream = client.alerts(0)
        await stream.read()
        fetched, before = await fetched_of(bus), -1
        while fetched != before:
            await asyncio.sleep(1)
            fetched, before = await fetched_of(bus), fetched
        assert 0 < fetched < MANY // 2
        rest = [(await stream.read()).stream_sequence for _ in range(MANY - 1)]
        assert len(set(rest)) == MANY - 1


async def fetched_of(bus: Bus) -> int:
    """Number of alerts that the server has delivered to the stream's consumers."""
    consumers = (await bus.api(f"CONSUMER.LIST.{flow.ALERTS.name}", {}))["consumers"]
    return sum(int(consumer["delivered"]["consumer_seq"]) for consumer in consumers)


async def test_watch_alerts_calls_beyond_the_limit_are_rejected(single: Evaluators) -> None:
    async with connected(single) as (bus, clients):
        await approach(bus, "1")
        streams = [clients[0].alerts(0) for _ in range(MAX_ALERT_STREAMS)]
        for stream in streams:
            assert (await stream.read()).alert.alert_id
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await clients[0].alerts(0).read()
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        streams[0].cancel()
        async with asyncio.timeout(30):
            while True:  # the evaluator notices the cancelled call, then accepts the next one
                try:
                    await clients[0].alerts(0).read()
                    break
                except grpc.aio.AioRpcError:
                    await asyncio.sleep(0.1)
        for stream in streams:
            stream.cancel()
