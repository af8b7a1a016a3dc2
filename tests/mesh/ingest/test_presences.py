"""Presences at home units and beacons through ingest: by vendors over gRPC, and by phones that hear a registered beacon."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from services.common import times
from tandem.common.v1 import log_pb2, presence_pb2
from tandem.ingest.v1 import ingest_pb2
from tandem.ingest.v1 import presence_pb2 as ingest_presence_pb2
from tests.support.ingest.ingest import WITHIN_S, Client, IngestMesh, now_ms, position

ACCEPTED, REFUSED = ingest_pb2.ACCEPTED, ingest_pb2.REFUSED
UNIT: dict[str, Any] = {"kind": log_pb2.PRESENCE_UNIT}
ADDRESS = "02:00:5e:10:00:01"


@pytest.fixture
async def client(mesh: IngestMesh) -> AsyncIterator[Client]:
    async with mesh.connected() as connected:
        yield connected


def presence(device_id: str, unit_id: str, report_id: str = "p", **changes: Any) -> ingest_presence_pb2.Presence:
    """A presence since ten minutes ago; `changes` replace fields."""
    seen_ms = now_ms()
    content: dict[str, Any] = {
        "device_id": device_id,
        "report_id": report_id,
        "unit_id": unit_id,
        "since": times.to_timestamp(seen_ms - 600_000),
        "seen": times.to_timestamp(seen_ms),
    }
    return ingest_presence_pb2.Presence(**(content | changes))


async def rows(client: Client, unit_id: str) -> list[tuple[str, int, int, bool]]:
    """Device, times and end of each presence at a unit in the log."""
    found = []
    for _, entry in await client.entries():
        batch = entry.presences
        columns = (batch.device_id, batch.unit_id, batch.since_ms, batch.seen_ms, batch.left)
        found += [
            (device_id, since_ms, seen_ms, left)
            for device_id, of_unit, since_ms, seen_ms, left in zip(*columns, strict=True)
            if of_unit == unit_id
        ]
    return found


async def test_a_vendor_reports_presences_and_positions(client: Client) -> None:
    await client.route("tag-a", subject_id="w-a")
    await client.route("unit-a", subject_id="w-a", **UNIT)
    here = presence("tag-a", "unit-a")
    left = presence("tag-a", "unit-a", "left", left=True)
    fix = position("tag-a", "fix-a")
    fix.source = presence_pb2.POSITION_SOURCE_CELL
    (answer,) = await client.send(ingest_pb2.ReportRequest(batch=1, positions=[fix], presences=[here, left]))
    assert list(answer.outcomes) == [ACCEPTED] * 3
    assert [(device_id, is_over) for device_id, _, _, is_over in await rows(client, "unit-a")] == [
        ("tag-a", False),
        ("tag-a", True),
    ]
    sources = [
        source
        for _, entry in await client.entries()
        for report_id, source in zip(entry.positions.report_id, entry.positions.source, strict=False)
        if report_id == "fix-a"
    ]
    assert sources == [presence_pb2.POSITION_SOURCE_CELL]


async def test_the_vendor_of_a_unit_reports_a_tag_of_another_vendor(client: Client) -> None:
    await client.route("tag-b", subject_id="w-b", vendor_id="another")
    await client.route("unit-b", subject_id="w-b", **UNIT)
    answer = await client.stub.ReportBatch(
        ingest_pb2.ReportBatchRequest(presences=[presence("tag-b", "unit-b")]), metadata=client.identity
    )
    assert list(answer.outcomes) == [ACCEPTED] and len(await rows(client, "unit-b")) == 1


async def test_bad_presences_are_refused_by_field_and_leave_nothing_in_the_log(client: Client) -> None:
    await client.route("tag-c", "other-tag", subject_id="w-c")
    await client.route("strange-tag", subject_id="w-c", vendor_id="another")
    await client.route("unit-c", "unit-c2", subject_id="w-c", **UNIT)
    await client.route("strange-unit", subject_id="w-c", vendor_id="another", **UNIT)
    await client.route("unit-of-somebody", subject_id="w-else", **UNIT)
    await client.route("removed-unit", subject_id="w-c", revoked=True, **UNIT)
    ahead = times.to_timestamp(now_ms() + 600_000)
    bad = [
        (presence("tag-c", "unit-nobody-registered"), "unit_id", "UNKNOWN_DEVICE"),
        (presence("tag-c", "other-tag"), "unit_id", "UNKNOWN_DEVICE"),
        (presence("unit-c", "unit-c2"), "device_id", "UNKNOWN_DEVICE"),
        (presence("tag-c", "unit-of-somebody"), "unit_id", "NOT_YOURS"),
        (presence("tag-c", "removed-unit"), "unit_id", "REVOKED"),
        (presence("strange-tag", "strange-unit"), "device_id", "NOT_YOURS"),
        (presence("tag-c", "unit-c", seen=ahead), "seen", "CLOCK_AHEAD"),
        (presence("tag-c", "unit-c", seen=None), "seen", "INVALID"),
        (presence("tag-c", "unit-c", since=ahead), "since", "INVALID"),
        (presence("tag-c", "unit-c", seen=Timestamp(seconds=-(1 << 40))), "seen", "INVALID"),
        (presence("tag-c", ""), "unit_id", "INVALID"),
        (presence("tag-c", ">"), "unit_id", "INVALID"),
        (presence("", "unit-c"), "device_id", "INVALID"),
        (presence("tag-c", "unit-c", ""), "report_id", "INVALID"),
    ]
    (answer,) = await client.send(ingest_pb2.ReportRequest(batch=1, presences=[message for message, _, _ in bad]))
    assert list(answer.outcomes) == [REFUSED] * len(bad)
    assert [
        (refusal.field, ingest_pb2.RefusalCode.Name(refusal.code).removeprefix("REFUSAL_CODE_"))
        for refusal in answer.refusals
    ] == [(f"presences[{n}].{field}", code) for n, (_, field, code) in enumerate(bad)]
    assert await rows(client, "unit-c") == [] and await rows(client, "unit-of-somebody") == []


async def test_a_phone_that_hears_a_registered_beacon_is_present_there(client: Client, mesh: IngestMesh) -> None:
    token = log_pb2.DeviceToken(sha256=hashlib.sha256(b"her-token").digest())
    identifier = hashlib.sha256(ADDRESS.encode()).digest()
    beacon = UNIT | {"vendor_id": "", "identifier_sha256": identifier}
    await client.route("beacon-of-hers", subject_id="p-her", **beacon)
    await client.route("beacon-of-another", subject_id="p-another", **beacon)
    await client.route("her-phone", subject_id="p-her", vendor_id="", kind=log_pb2.PROTECTIVE_DEVICE, tokens=[token])
    async with aiohttp.ClientSession(mesh.http_url) as phone:
        query = [
            ("token", "her-token"),
            ("id", "her-phone"),
            ("wifi", f"{ADDRESS},-70"),
            ("wifi", "02-00-5E-00-00-99,-71"),
        ]
        async with asyncio.timeout(WITHIN_S):
            while True:  # until its route is here
                answer = await phone.get("/", params=query)
                if answer.status != 401:
                    break
                await asyncio.sleep(0.02)
        assert (answer.status, (await answer.json())["accepted"]) == (200, 1)
        assert [row[0] for row in await rows(client, "beacon-of-hers")] == ["her-phone"]
        assert await rows(client, "beacon-of-another") == []
        # Access points that nobody registered are never stored; the phone was heard.
        answer = await phone.get("/", params=[*query[:2], ("wifi", "02-00-5E-00-00-99,-71")])
        assert (answer.status, (await answer.json())["accepted"]) == (200, 1)
    entries = [entry for _, entry in await client.entries()]
    assert "her-phone" in [device_id for entry in entries for device_id in entry.heard.device_id]
    assert all("5e-00-00-99" not in str(entry).lower() for entry in entries)
