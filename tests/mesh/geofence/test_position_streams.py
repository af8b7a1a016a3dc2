"""One stream for many shares: in the outbox before they begin, each by itself, and continued when the stream comes again."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Iterator
from contextlib import closing

import grpc
import grpc.aio
import pytest

from tandem.common.v1 import subject_pb2
from tandem.geofence.v1 import positions_pb2
from tests.support.geofence import log
from tests.support.geofence.sharing import (
    MOJ_DESK,
    NPA_DESK,
    SharingMesh,
    now_ms,
    person,
    share,
    sharing_mesh,
    wearer,
)
from tests.support.registry.registry import WITHIN_S

Reason = positions_pb2.ShareEndReason


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SharingMesh]:
    """A mesh for all tests of this file; each test uses a separate case."""
    with sharing_mesh(tmp_path_factory.mktemp("streams")) as running:
        yield running
        for evaluator in running.evaluators:
            assert "Traceback" not in evaluator.service.log() and "never retrieved" not in evaluator.service.log()


async def test_a_thousand_shares_of_one_stream_are_on_disk_before_their_positions(mesh: SharingMesh) -> None:
    async with mesh.connected() as client:
        incident = await client.approach("many")
        before = outbox_rows(mesh)
        stream = client.stream(NPA_DESK)
        stream.add(*(share(wearer("many"), incident=incident, for_s=600 + n) for n in range(1_000)))
        opened: set[int] = set()
        located: set[int] = set()
        async with asyncio.timeout(WITHIN_S):
            while len(located) < 1_000:
                event = await stream.event()
                assert event is not None
                if event.message.HasField("opened"):
                    opened.add(event.message.number)
                    continue
                if not located:
                    assert outbox_rows(mesh) - before >= 100, (
                        "a step of shares is written before its first position leaves"
                    )
                assert event.is_position and event.message.number in opened
                located.add(event.message.number)
        assert outbox_rows(mesh) - before == 1_000
        # News reaches each share, and a removal ends only its own.
        await stream.send(positions_pb2.FollowPositionsRequest(removes=[1, 4_711]))
        await mesh.until_rows(incident, 1_001)  # the evaluator reads the removal and the log apart from each other
        await client.publish(log.positions_entry(log.position("tmany", now_ms() - 115_000, 81)))
        moved: set[int] = set()
        async with asyncio.timeout(WITHIN_S):
            while len(moved) < 999:
                event = await stream.event()
                assert event is not None and event.is_position
                if event.position.lat_deg == log.position("any", 0, 81).lat_e7 / 1e7:
                    moved.add(event.message.number)
        assert 1 not in moved
        await client.leave("many")
        ends = [event for event in await client.until_end(stream) if event.is_end]
        assert len(ends) == 999 and {event.end.reason for event in ends} == {Reason.INCIDENT_ENDED}
        rows = await mesh.until_rows(incident, 2_000)
        assert [row[0] for row in rows].count("SHARE_ENDED") == 1_000


async def test_a_hundred_orders_on_one_wearer_are_a_hundred_shares(mesh: SharingMesh) -> None:
    async with mesh.connected() as client:
        sequence = 0
        for n in range(100):
            entry = log.case_entry(f"of{n}")
            entry.case.wearer_id, entry.case.tag_device_ids[:] = "wshared", ["tshared"]
            sequence = await client.publish(entry)
        await client.reached(sequence)
        at_ms = now_ms()
        devices = [log.position(f"dof{n}", at_ms, 0) for n in range(100)]
        sequence = await client.publish(log.positions_entry(*devices, log.position("tshared", at_ms, 80)))
        incident = await client.incident_of("of0", sequence)
        persons = [person(f"of{n}") for n in range(100)]
        stream = client.watch(
            NPA_DESK,
            positions_pb2.Subject(kind=subject_pb2.WEARER, subject_id="wshared"),
            *persons,
            incident=incident,
        )
        seen = {(await client.read(stream)).subject.subject_id for _ in range(101)}
        assert seen == {"wshared", *(f"pof{n}" for n in range(100))}
        stream.cancel()
        rows = await mesh.until_rows(incident, 101)
        assert {row[3] for row in rows if row[1] == "PROTECTED_PERSON"} == {f"order-of{n}" for n in range(100)}


async def test_a_stream_that_breaks_and_is_reopened_continues_its_share(mesh: SharingMesh) -> None:
    async with mesh.connected() as client:
        incident = await client.approach("reopened")
        request = share(wearer("reopened"), incident=incident)
        ids = []
        for _ in range(2):
            stream = client.stream(NPA_DESK)
            stream.add(request)
            opened = await stream.event()
            assert opened is not None
            ids.append(opened.message.opened.disclosure_id)
            assert (await client.read(stream)).is_position
            stream.cancel()
        assert ids[0] == ids[1]
        other = client.stream(MOJ_DESK)  # another recipient has a share of its own
        other.add(share(wearer("reopened"), incident=incident))
        opened = await other.event()
        assert opened is not None and opened.message.opened.disclosure_id != ids[0]
        other.cancel()
        rows = await mesh.until_rows(incident, 4)
        ended = [row for row in rows if row[0] == "SHARE_ENDED" and row[5] == NPA_DESK]
        assert [row[8] for row in ended] == [f"{ids[0]}-end"] and ended[0][7] == 2


async def test_a_request_with_a_number_that_is_in_use_ends_the_stream(mesh: SharingMesh) -> None:
    async with mesh.connected() as client:
        incident = await client.approach("number")
        for numbers in ([0], [3, 3], [1]):
            stream = client.watch(NPA_DESK, wearer("number"), incident=incident)
            assert (await client.read(stream)).is_position
            shares = [share(wearer("number"), incident=incident) for _ in numbers]
            for request, number in zip(shares, numbers, strict=True):
                request.number = number
            await stream.send(positions_pb2.FollowPositionsRequest(adds=shares))
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await client.read(stream)
            assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT, numbers
            assert "number" in str(refused.value.details())


def outbox_rows(mesh: SharingMesh) -> int:
    """Number of shares that are open in the first evaluator's outbox."""
    with closing(sqlite3.connect(mesh.evaluators[0].outbox)) as outbox:
        return int(outbox.execute("select count(*) from open_shares").fetchone()[0])
