"""Live positions: denied by default, ended with their legal ground, and recorded once in the ledger before they leave."""

from __future__ import annotations

import asyncio
import re
import signal
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import grpc.aio
import pytest

from services.common.messaging import flow
from services.geofence.disclosures import ALLOWED_BATCH
from tandem.geofence.v1 import positions_pb2
from tests.support.geofence import log, mortal_evaluator
from tests.support.geofence.sharing import (
    BASIS,
    INTERVALS_S,
    MOJ_DESK,
    NPA_DESK,
    Refused,
    SharingMesh,
    Stream,
    now_ms,
    person,
    sharing_mesh,
    wearer,
)
from tests.support.registry.registry import WITHIN_S

STRANGERS = (
    "spiffe://tandem/warning-gateway",
    "spiffe://tandem/reviewer/a",
    "spiffe://tandem/operator/a",
    "spiffe://vendor/test",
    "spiffe://moj/records",
    "spiffe://npa/records",
)
Reason = positions_pb2.ShareEndReason


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SharingMesh]:
    """A mesh for all tests of this file; each test uses a separate case."""
    with sharing_mesh(tmp_path_factory.mktemp("sharing")) as running:
        yield running
        for evaluator in running.evaluators:
            assert "Traceback" not in evaluator.service.log() and "never retrieved" not in evaluator.service.log()


async def test_without_a_legal_basis_no_position_leaves_and_the_ledger_stays_empty(mesh: SharingMesh) -> None:
    async with mesh.connected() as client:
        incident = await client.approach("deny")
        before = (await client.bus.bounds_of(flow.DISCLOSURES.name)).last

        async def refused(who: str, *subjects: positions_pb2.Subject, **request: str) -> str:
            return await client.refusal(who, *subjects, **request)  # type: ignore[arg-type]

        him, her = wearer("deny"), person("deny")
        for stranger in STRANGERS:
            assert await refused(stranger, him, incident=incident) == "PERMISSION_DENIED"
        for basis in ("", "BECAUSE"):
            assert await refused(NPA_DESK, him, incident=incident, basis=basis) == "INVALID_ARGUMENT"
        assert await refused(NPA_DESK, him) == "INVALID_ARGUMENT"
        assert await refused(NPA_DESK, positions_pb2.Subject(), incident=incident) == "INVALID_ARGUMENT"
        # These bases are known, but the first is for calls, and the second for tags, which she doesn't have. The third request is under
        # an order, where nobody needs her position while no wearer approaches.
        assert await refused(NPA_DESK, him, incident=incident, basis="STALKING_9_1_3") == "PERMISSION_DENIED"
        assert await refused(NPA_DESK, her, incident=incident, basis="TAG_31_8_2") == "PERMISSION_DENIED"
        assert await refused(NPA_DESK, her, order="order-deny") == "PERMISSION_DENIED"
        assert await refused(MOJ_DESK, him, order="order-deny") == "PERMISSION_DENIED"
        for expired in (-1.0, 90_000.0):
            assert await client.refusal(NPA_DESK, him, incident=incident, for_s=expired) == "INVALID_ARGUMENT"
        assert await refused(NPA_DESK, him, incident="incident-none") == "FAILED_PRECONDITION"
        assert await refused(NPA_DESK, him, order="order-none", basis="TAG_31_8_2") == "FAILED_PRECONDITION"
        assert await refused(NPA_DESK, wearer("other"), incident=incident) == "FAILED_PRECONDITION"

        assert (await client.bus.bounds_of(flow.DISCLOSURES.name)).last == before
        assert mesh.rows(incident) == []
        assert "sharing_refused" in mesh.evaluators[0].service.log()


async def test_probation_gets_the_wearer_and_never_the_protected_person(mesh: SharingMesh) -> None:
    async with mesh.connected() as client:
        incident = await client.approach("roles")
        assert await client.refusal(MOJ_DESK, person("roles"), incident=incident) == "PERMISSION_DENIED"
        probation = client.watch(MOJ_DESK, person("roles"), wearer("roles"), incident=incident)
        with pytest.raises(Refused, match="may not see"):
            await client.read(probation)
        assert (await client.read(probation)).subject == wearer("roles"), "one refusal concerns one share"
        probation.cancel()
        police = client.watch(NPA_DESK, wearer("roles"), person("roles"), incident=incident)
        events = [await client.read(police) for _ in range(2)]
        assert [event.subject for event in events] == [wearer("roles"), person("roles")]
        positions = [event.position for event in events]
        there = log.position("any", 0, 80)
        assert (positions[0].lat_deg, positions[0].lon_deg) == (there.lat_e7 / 1e7, there.lon_e7 / 1e7)
        assert (positions[1].lat_deg, positions[1].lon_deg) == (log.LAT_E7 / 1e7, log.LON_E7 / 1e7)
        assert all(
            position.accuracy_m == 5 and not position.unknown and 119 < position.age_s < 150 for position in positions
        )
        # A live position has no ring, no distance and no target.
        fields = {field.name for field in positions_pb2.LivePosition.DESCRIPTOR.fields}
        assert fields == {"unknown", "lat_deg", "lon_deg", "accuracy_m", "fix_time", "age_s", "source"}


async def test_a_position_older_than_3_minutes_or_never_reported_is_unknown(mesh: SharingMesh) -> None:
    async with mesh.connected() as client:
        await client.publish(log.case_entry("old"))
        await client.publish(log.positions_entry(log.position("told", now_ms() - 200_000, 3_000)))
        stream, position = await client.first(MOJ_DESK, wearer("old"), "order-old", "TAG_31_8_2")
        while not position.HasField(
            "lat_deg"
        ):  # the evaluator has applied the order, but not yet the position after it
            assert position.unknown
            position = (await client.read(stream)).position
        assert position.unknown and position.age_s > 180
        await client.publish(log.positions_entry(log.position("told", now_ms(), 2_900)))
        assert not (await client.read(stream)).position.unknown
        await client.publish(log.case_entry("never"))
        _, position = await client.first(MOJ_DESK, wearer("never"), "order-never", "TAG_31_8_2")
        assert position.unknown and not position.HasField("lat_deg") and not position.HasField("fix_time")


async def test_a_share_ends_with_the_incident_and_the_ledger_counts_its_positions(mesh: SharingMesh) -> None:
    async with mesh.connected() as client:
        incident = await client.approach("end")
        stream = client.watch(NPA_DESK, wearer("end"), person("end"), incident=incident)
        first = [await client.read(stream) for _ in range(2)]
        await client.leave("end")
        rest = await client.until_end(stream)
        ends = [event for event in rest if event.is_end]
        assert sorted((event.subject.subject_id, event.end.reason) for event in ends) == [
            ("pend", Reason.INCIDENT_ENDED),
            ("wend", Reason.INCIDENT_ENDED),
        ]
        sent = [event.subject for event in (*first, *rest) if event.is_position]
        rows = await mesh.until_rows(incident, 4)
        ours = ("order-end", BASIS, NPA_DESK, NPA_DESK)
        assert [*(row[:8] for row in rows[:2]), *sorted(row[:8] for row in rows[2:])] == [
            ("SHARED", "WEARER", "wend", *ours, None),
            ("SHARED", "PROTECTED_PERSON", "pend", *ours, None),
            ("SHARE_ENDED", "PROTECTED_PERSON", "pend", *ours, sent.count(person("end"))),
            ("SHARE_ENDED", "WEARER", "wend", *ours, sent.count(wearer("end"))),
        ]
        assert {row[8] for row in rows[2:]} == {f"{row[8]}-end" for row in rows[:2]}
        assert await client.refusal(NPA_DESK, wearer("end"), incident=incident) == "FAILED_PRECONDITION"


async def test_a_share_ends_with_the_order_with_a_withdrawn_device_and_at_its_expiry(mesh: SharingMesh) -> None:
    async with mesh.connected() as client:
        for case in ("over", "taken", "brief"):
            await client.approach(case)
        incident = await client.approach("lent")

        async def end_of(stream: Stream) -> tuple[positions_pb2.Subject, int]:
            last = (await client.until_end(stream))[-1]
            return last.subject, last.end.reason

        async def next_end(stream: Stream) -> tuple[str, int]:
            while not (event := await client.read(stream)).is_end:
                pass
            return event.subject.subject_id, event.end.reason

        async def end_of_a_brief_one() -> tuple[positions_pb2.Subject, int]:
            while True:
                brief = client.watch(MOJ_DESK, wearer("brief"), order="order-brief", basis="TAG_16_2", for_s=1)
                try:
                    return await end_of(brief)
                except Refused as error:  # it expired before the evaluator read the request
                    assert error.code == "INVALID_ARGUMENT", error

        assert await end_of_a_brief_one() == (wearer("brief"), Reason.EXPIRED)

        over = client.watch(MOJ_DESK, wearer("over"), order="order-over", basis="TAG_16_2")
        await client.read(over)
        await client.publish(log.case_entry("over", version=2, until_ms=now_ms() - 1))
        assert await end_of(over) == (wearer("over"), Reason.ORDER_ENDED)

        lent = client.watch(NPA_DESK, wearer("lent"), person("lent"), incident=incident)
        for _ in range(2):
            await client.read(lent)
        without_device = log.case_entry("lent", version=2)
        del without_device.case.persons[0].device_ids[:]
        await client.publish(without_device)
        # Without her device nothing shows that he left, so the incident goes on, and so does the wearer's share.
        assert await next_end(lent) == ("plent", Reason.WITHDRAWN)
        await client.publish(log.case_entry("lent", version=3, until_ms=now_ms() - 1))
        assert await next_end(lent) == ("wlent", Reason.ORDER_ENDED)


async def test_either_evaluator_answers_the_same(mesh: SharingMesh) -> None:
    async with mesh.connected(0) as first, mesh.connected(1) as second:
        incident = await first.approach("same")
        await second.caught_up_with(first)
        answers = []
        for client in (first, second):
            stream = client.watch(NPA_DESK, wearer("same"), person("same"), incident=incident)
            positions = [(await client.read(stream)).position for _ in range(2)]
            for position in positions:
                position.ClearField("age_s")
            answers.append(positions)
            stream.cancel()
        assert answers[0] == answers[1]
        rows = await mesh.until_rows(incident, 8)
        assert len({row[8] for row in rows}) == 8
        refusals = [await client.refusal(MOJ_DESK, person("same"), incident=incident) for client in (first, second)]
        assert refusals == ["PERMISSION_DENIED"] * 2


async def test_a_slow_reader_gets_the_newest_position_and_no_queued_ones(mesh: SharingMesh) -> None:
    # A narrow flow-control window, so that little may be buffered on the way to the reader.
    narrow = (("grpc.http2.lookahead_bytes", 256), ("grpc.http2.bdp_probe", 0))
    async with mesh.connected() as client, mesh.connected(0, *narrow) as slow_client:
        incident = await client.approach("slow")
        quick = client.watch(NPA_DESK, wearer("slow"), incident=incident)
        slow = slow_client.watch(NPA_DESK, wearer("slow"), incident=incident)
        for stream in (quick, slow):
            await client.read(stream)
        published = 150
        for i in range(published):
            at_ms = now_ms()
            await client.publish(log.positions_entry(log.position("tslow", at_ms, 81 + i / 10, report_id=f"s{i}")))
            while (await client.read(quick)).position.fix_time.ToMilliseconds() < at_ms:
                pass
        newest = log.position("any", 0, 81 + (published - 1) / 10).lat_e7 / 1e7
        received = 1
        async with asyncio.timeout(WITHIN_S):
            while (await client.read(slow)).position.lat_deg != newest:
                received += 1
        assert received < published / 3
        for stream in (quick, slow):
            stream.cancel()


async def test_positions_are_rate_limited_and_the_newest_one_arrives_last(mesh: SharingMesh) -> None:
    async with mesh.connected(1) as client:
        incident = await client.approach("often")
        began_s = time.monotonic()
        stream = client.watch(NPA_DESK, wearer("often"), incident=incident)
        for i in range(100):
            await client.publish(log.positions_entry(log.position("toften", now_ms(), 81 + i / 10, report_id=f"o{i}")))
            await asyncio.sleep(0.01)
        sent = 1
        while (await client.read(stream)).position.lat_deg != log.position("any", 0, 90.9).lat_e7 / 1e7:
            sent += 1
        assert sent <= (time.monotonic() - began_s) / INTERVALS_S[1] + 1
        stream.cancel()


async def test_no_position_leaves_while_the_outbox_cannot_be_written(mesh: SharingMesh) -> None:
    async with mesh.connected() as client:
        incident = await client.approach("locked")
        with closing(sqlite3.connect(mesh.evaluators[0].outbox, isolation_level=None)) as other:
            other.execute("begin immediate")
            assert await client.refusal(NPA_DESK, wearer("locked"), incident=incident) == "UNAVAILABLE"
            other.execute("rollback")
        # Decisions continued, and sharing works again.
        stream = client.watch(NPA_DESK, wearer("locked"), incident=incident)
        await client.read(stream)
        stream.cancel()
        rows = await mesh.until_rows(incident, 2)
        assert [row[0] for row in rows] == ["SHARED", "SHARE_ENDED"]


async def test_a_registry_that_is_down_for_the_whole_share_misses_no_row(mesh: SharingMesh) -> None:
    async with mesh.connected() as client:
        incident = await client.approach("dead")
        mesh.registry.service.kill()
        stream = client.watch(NPA_DESK, person("dead"), incident=incident)
        await client.read(stream)
        await client.publish(log.positions_entry(log.position("ddead", now_ms(), 1)))
        assert (await client.read(stream)).position.age_s < 60
        await client.leave("dead")
        assert (await client.until_end(stream))[-1].end.reason == Reason.INCIDENT_ENDED
        mesh.registry.service.start()
        rows = await mesh.until_rows(incident, 2)
        assert [(row[0], row[2]) for row in rows] == [("SHARED", "pdead"), ("SHARE_ENDED", "pdead")]


async def test_a_share_that_a_kill_interrupted_ends_at_the_restart_and_the_other_evaluator_serves(
    mesh: SharingMesh,
) -> None:
    async with mesh.connected(0) as other, mesh.connected(1) as client:
        incident = await client.approach("cut")
        await other.caught_up_with(client)
        stream = client.watch(NPA_DESK, wearer("cut"), incident=incident)
        await client.read(stream)
        await client.publish(log.positions_entry(log.position("tcut", now_ms(), 81)))
        await client.read(stream)
        mesh.evaluators[1].service.kill()
        with pytest.raises(grpc.aio.AioRpcError):
            await client.until_end(stream)
        went_on = other.watch(NPA_DESK, wearer("cut"), incident=incident)
        await other.read(went_on)
        went_on.cancel()
        both = await mesh.until_rows(incident, 3)
        assert [row[0] for row in both] == ["SHARED", "SHARED", "SHARE_ENDED"]
        mesh.evaluators[1].service.start()
        last = (await mesh.until_rows(incident, 4))[3]
        assert (last[0], last[8]) == ("SHARE_ENDED", f"{both[0][8]}-end")
        assert last[7] == ALLOWED_BATCH, "two were read, but the whole allowance may have left"


async def test_no_log_line_contains_a_position_or_a_protected_person(mesh: SharingMesh) -> None:
    async with mesh.connected() as client:
        incident = await client.approach("quiet")
        stream = client.watch(NPA_DESK, wearer("quiet"), person("quiet"), incident=incident)
        for _ in range(2):
            await client.read(stream)
        stream.cancel()
        await mesh.until_rows(incident, 4)
    log_text = mesh.evaluators[0].service.log()
    assert "sharing_began" in log_text and incident in log_text
    assert "pquiet" not in log_text and "127.0,\n" not in log_text
    assert not re.search(r"(?<![\d:])37\.5", log_text), "a latitude, and no second of a timestamp"


@pytest.fixture(params=["before", "after"])
def mortal(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[SharingMesh, str, Path]]:
    """A mesh whose evaluators kill themselves at the first disclosure, the moment of the kill, and the file of their plan."""
    plan = tmp_path / "plan"
    plan.write_text(request.param)
    with sharing_mesh(
        tmp_path, "tests.support.geofence.mortal_evaluator", **{mortal_evaluator.PLAN: str(plan)}
    ) as running:
        yield running, request.param, plan


async def test_a_kill_between_outbox_and_stream_leaves_one_row_each(mortal: tuple[SharingMesh, str, Path]) -> None:
    mesh, moment, plan = mortal
    killed = mesh.evaluators[0]
    async with mesh.connected() as client:
        incident = await client.approach("kill")
        async with asyncio.timeout(WITHIN_S):
            while killed.service.runs:
                with suppress(grpc.aio.AioRpcError, Refused):  # a position may or may not leave before the kill
                    await client.until_end(client.watch(NPA_DESK, wearer("kill"), incident=incident))
                await asyncio.sleep(0.05)
        assert killed.service.exit_code() == -signal.SIGKILL
        assert (await client.bus.bounds_of(flow.DISCLOSURES.name)).last == (1 if moment == "after" else 0)
        assert mesh.rows(incident) == [] or moment == "after"
    plan.write_text("")
    killed.service.start()
    async with mesh.connected() as client:
        rows = await mesh.until_rows(incident, 2)
        assert [(row[0], row[2]) for row in rows] == [("SHARED", "wkill"), ("SHARE_ENDED", "wkill")]
        assert (await client.bus.bounds_of(flow.DISCLOSURES.name)).last == 2
    with closing(sqlite3.connect(killed.outbox)) as outbox:
        assert outbox.execute("select count(*) from open_shares").fetchone() == (0,)
