"""Senders: which devices they may report for, rate limits, counts of refusals, and the lanes into the log."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import grpc.aio
import pytest
from prometheus_client import CollectorRegistry

from services.common import times
from services.common.clock import MeshClock
from services.common.messaging import flow
from services.common.messaging.bus import Bus
from services.common.rpc import server
from services.ingest import translate
from services.ingest.admission.checks import Checks, Quarantine, RateLimits
from services.ingest.admission.routes import Routes
from services.ingest.batch import Reports
from services.ingest.domain import Reason, Sender
from services.ingest.metrics import IngestMetrics
from tandem.common.v1 import log_pb2
from tandem.ingest.v1 import ingest_pb2
from tests.support.ingest.ingest import (
    SECRET,
    VENDOR,
    WITHIN_S,
    Client,
    IngestMesh,
    event,
    ingest_on_its_own_server,
    now_ms,
    position,
    request,
)

ACCEPTED, REFUSED = ingest_pb2.ACCEPTED, ingest_pb2.REFUSED
OPERATOR = "spiffe://tandem/operator/test"


@pytest.fixture
def strict(tmp_path: Path) -> Iterator[IngestMesh]:
    """An ingest that lets a device report ten times, and then hardly ever."""
    limits = {"TANDEM_DEVICE_REPORTS_PER_S": "0.001", "TANDEM_DEVICE_REPORTS_BURST": "10"}
    with ingest_on_its_own_server(tmp_path, env=limits) as running:
        yield running


@pytest.fixture
async def client(mesh: IngestMesh) -> AsyncIterator[Client]:
    async with mesh.connected() as connected:
        yield connected


async def quarantined(client: Client, device_id: str) -> list[tuple[str, str, int]]:
    answer = await client.stub.ListQuarantine(
        ingest_pb2.ListQuarantineRequest(device_id=device_id),
        metadata=server.bearer(OPERATOR, SECRET),
        timeout=WITHIN_S,
    )
    return sorted(
        (entry.sender, ingest_pb2.RefusalCode.Name(entry.code).removeprefix("REFUSAL_CODE_"), entry.count)
        for entry in answer.quarantined
    )


async def test_only_the_vendor_that_is_bound_may_report(client: Client) -> None:
    await client.route("mine")
    await client.route("others", vendor_id="another")
    await client.route("nobodys", vendor_id="")
    await client.route("gone", revoked=True)
    devices = ("mine", "others", "nobodys", "gone", "never-heard-of")
    (answer,) = await client.send(
        request(1, *(position(device, f"binding-{device}") for device in devices), event("others", "binding-event"))
    )
    assert list(answer.outcomes) == [ACCEPTED, *[REFUSED] * 5]
    code = ingest_pb2.RefusalCode
    assert [(refusal.field, refusal.code) for refusal in answer.refusals] == [
        ("positions[1].device_id", code.REFUSAL_CODE_NOT_YOURS),
        ("positions[2].device_id", code.REFUSAL_CODE_NOT_YOURS),
        ("positions[3].device_id", code.REFUSAL_CODE_REVOKED),
        ("positions[4].device_id", code.REFUSAL_CODE_UNKNOWN_DEVICE),
        ("equipment[0].device_id", code.REFUSAL_CODE_NOT_YOURS),
    ]
    stored = await client.stored()
    assert {report_id for report_id in stored if report_id.startswith("binding-")} == {"binding-mine"}


async def test_a_change_of_the_registry_is_followed(client: Client) -> None:
    await client.route("changing")
    for vendor_id, revoked, accepted in (("another", False, False), ("test", False, True), ("test", True, False)):
        await client.route("changing", vendor_id=vendor_id, revoked=revoked)
        async with asyncio.timeout(5):  # the promised time of a revocation
            for attempt in range(1_000):
                (answer,) = await client.send(request(1, position("changing", f"{vendor_id}-{revoked}-{attempt}")))
                if (answer.outcomes[0] == ACCEPTED) is accepted:
                    break
                await asyncio.sleep(0.02)


@pytest.mark.parametrize(
    "named", [">", "*", "of.*", "a b", "", "x" * 65], ids=["all", "one", "part", "space", "none", "long"]
)
async def test_a_device_id_that_could_match_other_subjects_is_refused(client: Client, named: str) -> None:
    await client.route("of.mine", "mine-too")  # all registered devices are this vendor's
    (answer,) = await client.send(request(1, *(position(named, f"no-id-{n}") for n in range(5))))
    assert list(answer.outcomes) == [REFUSED] * 5
    assert {(refusal.field.partition(".")[2], refusal.code) for refusal in answer.refusals} == {
        ("device_id", ingest_pb2.RefusalCode.REFUSAL_CODE_INVALID)
    }


async def test_a_vendor_cannot_take_a_phones_token_away(client: Client, mesh: IngestMesh) -> None:
    token = log_pb2.DeviceToken(sha256=hashlib.sha256(b"of-her-phone").digest())
    await client.route("phones.hers", vendor_id="", kind=log_pb2.PROTECTIVE_DEVICE, tokens=[token])
    async with aiohttp.ClientSession(mesh.http_url) as phone:
        query = {"token": "of-her-phone", "id": "phones.hers", "lat": "37.5", "lon": "127"}
        async with asyncio.timeout(WITHIN_S):
            while True:  # until its route is here
                if (await phone.get("/", params=query)).status == 200:
                    break
                await asyncio.sleep(0.02)
        for named in ("phones.>", "phones.*"):
            await client.send(request(1, *(position(named, f"taken-{n}") for n in range(5))))
        assert (await phone.get("/", params=query)).status == 200


async def test_refusals_are_counted_by_device_sender_and_reason(client: Client) -> None:
    await client.route("counted", vendor_id="another")
    await client.route("wrong")
    before = now_ms()
    for n in range(3):
        await client.send(request(1, position("counted", f"q-{n}"), position("wrong", f"q-{n}", lat_deg=91.0)))
    assert await quarantined(client, "counted") == [(VENDOR, "NOT_YOURS", 3)]
    assert await quarantined(client, "wrong") == [(VENDOR, "INVALID", 3)]
    answer = await client.stub.ListQuarantine(
        ingest_pb2.ListQuarantineRequest(device_id="counted"), metadata=server.bearer(OPERATOR, SECRET)
    )
    (entry,) = answer.quarantined
    assert before <= times.from_timestamp(entry.first) <= times.from_timestamp(entry.last) <= now_ms()


async def test_counts_outlive_the_process(strict: IngestMesh) -> None:
    async with strict.connected() as client:
        await client.send(request(1, *(position("nobody", f"before-{n}") for n in range(4))))
    strict.service.stop()
    strict.service.start()
    async with strict.connected() as client:
        await client.send(request(1, position("nobody", "after")))
        assert await quarantined(client, "nobody") == [(VENDOR, "UNKNOWN_DEVICE", 5)]


async def test_only_an_operator_sees_the_quarantine(client: Client) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await client.stub.ListQuarantine(ingest_pb2.ListQuarantineRequest(), metadata=server.bearer(VENDOR, SECRET))
    assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED


async def test_a_device_that_reports_too_often_is_limited_and_its_neighbour_is_not(strict: IngestMesh) -> None:
    async with strict.connected() as client:
        await client.route("fast", "slow")
        reports = [position("fast", f"fast-{n}") for n in range(15)]
        (answer,) = await client.send(request(1, *reports, position("slow", "slow-1"), event("fast", "fast-e")))
        assert list(answer.outcomes) == [*[ACCEPTED] * 10, *[REFUSED] * 5, ACCEPTED, ACCEPTED]
        assert {refusal.code for refusal in answer.refusals} == {ingest_pb2.RefusalCode.REFUSAL_CODE_TOO_OFTEN}
        stored = await client.stored()
        assert sum(stored.values()) == 12
        assert await quarantined(client, "fast") == [(VENDOR, "TOO_OFTEN", 5)]


async def test_a_device_whose_clock_is_ahead_still_counts_as_heard(client: Client) -> None:
    await client.route("ahead")
    late = now_ms() + 180_000
    (answer,) = await client.send(
        request(
            1, position("ahead", "ahead-1", late), event("ahead", "ahead-2", time_ms=late), position("ahead", "now")
        )
    )
    assert list(answer.outcomes) == [REFUSED, ACCEPTED, REFUSED]
    assert {refusal.code for refusal in answer.refusals} == {ingest_pb2.RefusalCode.REFUSAL_CODE_CLOCK_AHEAD}
    heard = [
        pair
        for _, entry in await client.entries()
        for pair in zip(entry.heard.device_id, entry.heard.report_id, strict=True)
        if entry.heard.received_wall_us > 0
    ]
    assert {("ahead", "ahead-1"), ("ahead", "ahead-2")} <= set(heard)
    assert "ahead-1" not in await client.stored()


async def test_buffered_positions_are_marked_and_use_the_backfill_lane(client: Client) -> None:
    await client.route("buffered")
    old = now_ms() - 200_000
    mixed = request(1, position("buffered", "live-1"), position("buffered", "old-1", old))
    declared = request(2, position("buffered", "declared-1"))
    declared.backfill = True
    answers = await client.send(mixed, declared)
    assert [list(answer.outcomes) for answer in answers] == [[ACCEPTED, ACCEPTED], [ACCEPTED]]
    marked = {
        report_id: entry.positions.backfilled
        for _, entry in await client.entries()
        for device_id, report_id in zip(entry.positions.device_id, entry.positions.report_id, strict=True)
        if device_id == "buffered"
    }
    assert marked == {"live-1": False, "old-1": True, "declared-1": True}


async def test_a_unary_batch_is_answered_as_on_a_stream(client: Client) -> None:
    await client.route("alone")
    answer = await client.stub.ReportBatch(
        ingest_pb2.ReportBatchRequest(
            positions=[position("alone", "alone-1"), position("alone", "alone-2", lat_deg=91.0)],
            equipment=[event("alone", "alone-e", log_pb2.CHARGER_CONNECTED)],
        ),
        metadata=server.bearer(VENDOR, SECRET),
        timeout=WITHIN_S,
    )
    assert list(answer.outcomes) == [ACCEPTED, REFUSED, ACCEPTED]
    assert [(refusal.index, refusal.field) for refusal in answer.refusals] == [(1, "positions[1].lat_deg")]
    assert {"alone-1", "alone-e"} <= set(await client.stored())


async def test_answers_that_may_come_together_lose_nothing(client: Client) -> None:
    await client.route("together")
    requests = []
    for n in range(300):
        sent = request(n + 1, position("together", f"together-{n}", lat_deg=91.0 if n % 7 == 0 else 37.5))
        sent.together = True
        requests.append(sent)
    answers = await client.send(*requests)
    assert sum(answer.batches for answer in answers) == 300 and answers[-1].batch == 300
    outcomes = [outcome for answer in answers for outcome in answer.outcomes]
    assert outcomes == [REFUSED if n % 7 == 0 else ACCEPTED for n in range(300)]
    answered = 0
    for answer in answers:
        refused = [answered + refusal.index for refusal in answer.refusals]
        assert all(n % 7 == 0 for n in refused)
        answered += len(answer.outcomes)
        assert answer.batch == answered


async def test_each_batch_is_answered_separately_unless_asked(client: Client) -> None:
    await client.route("single")
    answers = await client.send(*(request(n, position("single", f"single-{n}")) for n in range(1, 51)))
    assert [(answer.batch, answer.batches) for answer in answers] == [(n, 1) for n in range(1, 51)]


async def test_buffered_reports_and_events_have_a_rate_of_their_own(strict: IngestMesh) -> None:
    async with strict.connected() as client:
        await client.route("busy")
        old = now_ms() - 3_600_000
        buffered = request(1, *(position("busy", f"old-{n}", old + n) for n in range(100)))
        live = request(2, *(position("busy", f"live-{n}") for n in range(10)), event("busy", "panic"))
        answers = await client.send(buffered, live)
        assert [set(answer.outcomes) for answer in answers] == [{ACCEPTED}, {ACCEPTED}]


@pytest.fixture
def crawling(tmp_path: Path) -> Iterator[IngestMesh]:
    """An ingest whose backfill lane hardly moves."""
    with ingest_on_its_own_server(tmp_path, env={"TANDEM_BACKFILL_REPORTS_PER_S": "1"}) as running:
        yield running


async def test_live_reports_overtake_buffered_ones(crawling: IngestMesh) -> None:
    async with crawling.connected() as client:
        await client.route("tag")
        call = client.open()
        old = now_ms() - 3_600_000

        async def buffered() -> None:
            for batch in range(60):  # more than the sender's share of reports in flight
                await call.write(request(batch, *(position("tag", f"b{batch}-{n}", old + n) for n in range(1000))))

        sending = asyncio.create_task(buffered())
        await asyncio.sleep(1)
        for n in range(5):
            (answer,) = await client.send(request(1, position("tag", f"live-{n}"), event("tag", f"event-{n}")))
            assert set(answer.outcomes) == {ACCEPTED}
            alone = await client.stub.ReportBatch(
                ingest_pb2.ReportBatchRequest(positions=[position("tag", f"alone-{n}")]),
                metadata=server.bearer(VENDOR, SECRET),
                timeout=WITHIN_S,
            )
            assert set(alone.outcomes) == {ACCEPTED}
        assert not sending.done() or sending.exception() is None
        sending.cancel()
        call.cancel()


async def test_a_look_up_that_fails_ends_the_stream_and_says_so(strict: IngestMesh) -> None:
    async with strict.connected() as client:
        await client.route("tag")
        strict.nats.freeze()
        try:
            unknown = request(1, *(position(f"unknown-{n}", "r") for n in range(5)), event("tag", "e"))
            error = await client.refusal(unknown)
            assert error.code() is grpc.StatusCode.UNAVAILABLE
        finally:
            strict.nats.thaw()


async def test_a_late_answer_about_a_device_does_not_undo_its_revocation(
    bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    routes, last_of = Routes(bus, MeshClock(), 1), bus.last_of

    async def register(revoked: bool) -> None:
        route = log_pb2.DeviceRoute(partitions=[0], vendor_id="v", kind=log_pb2.TAG, revoked=revoked)
        await bus.publish(f"$KV.{flow.DEVICES_BUCKET}.tag", route.SerializeToString())

    async def late(stream: str, subject: str) -> bytes | None:
        data = await last_of(stream, subject)
        await register(revoked=True)
        await routes.load()  # as `follow` does
        return data

    monkeypatch.setattr(bus, "last_of", late)
    await register(revoked=False)
    sender = Sender("spiffe://vendor/v", "v", "")
    assert await routes.resolve(sender, "tag") is Reason.REVOKED and not routes.allowed(sender)


async def test_invented_ids_of_devices_cost_one_request_a_batch(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    routes, clock = Routes(bus, MeshClock(), 1), MeshClock()
    route = log_pb2.DeviceRoute(partitions=[0], vendor_id="v", kind=log_pb2.TAG)
    await bus.publish(f"$KV.{flow.DEVICES_BUCKET}.known", route.SerializeToString())
    await routes.load()
    metrics = IngestMetrics(CollectorRegistry())
    checks = Checks(routes, Quarantine(bus, clock, metrics), RateLimits(10.0, 300), clock=clock)
    sender = Sender("spiffe://vendor/v", "v", "")
    api = bus.api
    calls = []

    async def counted(subject: str, request: Mapping[str, object]) -> dict[str, Any]:
        calls.append(subject)
        return await api(subject, request)

    async def check(*device_ids: str) -> list[int]:
        reports = [translate.parse_position(position(id_, "r")) for id_ in device_ids]
        checked = await checks.check(sender, Reports.of(reports, device_ids), 0)
        return [refusal.index for refusal in checked.refusals]

    monkeypatch.setattr(bus, "api", counted)
    assert await check("known", *(f"invented-{n}" for n in range(999))) == list(range(1, 1_000))
    assert len(calls) == 1
    assert await check("known") == [] and len(calls) == 1
    # A device that was registered just now is found although nothing has read the bucket since.
    await bus.publish(f"$KV.{flow.DEVICES_BUCKET}.new", route.SerializeToString())
    assert await check("new", "known", "invented") == [2]
