"""The counts of refused reports stay bounded for a sender that invents ids."""

from __future__ import annotations

import asyncio

import pytest
from prometheus_client import CollectorRegistry

from services.common.clock import MeshClock
from services.common.messaging import bus as buses
from services.common.messaging import streams
from services.common.messaging.bus import Bus
from services.ingest.admission.checks import MAX_SENDER_KEYS, Quarantine
from services.ingest.domain import Reason
from services.ingest.metrics import IngestMetrics
from tests.support.common.nats import STREAM_BYTES, TestServer

FLOOD, OTHER = "spiffe://vendor/flood", "spiffe://vendor/other"


async def counts(quarantine: Quarantine) -> dict[tuple[str, str], int]:
    answer = await quarantine.listed("")
    return {(entry.sender, entry.device_id): entry.count for entry in answer.quarantined}


def refuse(quarantine: Quarantine, name: str, count: int) -> None:
    for i in range(count):
        quarantine.refused(FLOOD, f"{name}-{i}", Reason.UNKNOWN_DEVICE)


async def test_invented_ids_of_a_sender_are_counted_separately_up_to_a_bound(bus: Bus) -> None:
    quarantine = Quarantine(bus, MeshClock(), IngestMetrics(CollectorRegistry()))
    refuse(quarantine, "invented", MAX_SENDER_KEYS + 100)
    quarantine.refused(OTHER, "tag", Reason.UNKNOWN_DEVICE)
    by_key = await counts(quarantine)
    assert len(by_key) == MAX_SENDER_KEYS + 2
    assert by_key[FLOOD, ""] == 100 and by_key[OTHER, "tag"] == 1
    assert (await quarantine.listed("")).incomplete
    assert (await quarantine.listed("tag")).incomplete  # it may be among the 100


async def test_a_phone_that_names_invented_devices_uses_up_no_other_phones_keys(bus: Bus) -> None:
    quarantine = Quarantine(bus, MeshClock(), IngestMetrics(CollectorRegistry()))
    for i in range(MAX_SENDER_KEYS + 100):
        quarantine.refused("", f"invented-{i}", Reason.NOT_YOURS, phone_id="flood")
    quarantine.refused("", "hers", Reason.INVALID, phone_id="hers")
    by_key = await counts(quarantine)
    assert by_key["", ""] == 100 and by_key["", "hers"] == 1


async def test_one_report_without_a_usable_id_leaves_the_list_complete(bus: Bus) -> None:
    quarantine = Quarantine(bus, MeshClock(), IngestMetrics(CollectorRegistry()))
    quarantine.refused(OTHER, "", Reason.INVALID)
    quarantine.refused(OTHER, "x" * 65, Reason.INVALID)
    assert await counts(quarantine) == {(OTHER, ""): 2}
    assert not (await quarantine.listed("")).incomplete


async def test_that_devices_were_merged_is_kept_with_the_counts(bus: Bus) -> None:
    quarantine = Quarantine(bus, MeshClock(), IngestMetrics(CollectorRegistry()))
    refuse(quarantine, "invented", MAX_SENDER_KEYS + 1)
    running = asyncio.create_task(quarantine.run())
    await asyncio.sleep(0)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert (await quarantine.listed("")).incomplete and (
        await Quarantine(bus, MeshClock(), IngestMetrics(CollectorRegistry())).listed("")
    ).incomplete


async def test_counts_that_grew_too_old_leave_the_list_complete(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    quarantine = Quarantine(bus, MeshClock(), IngestMetrics(CollectorRegistry()))
    quarantine.refused(OTHER, "tag", Reason.INVALID)

    async def aged(stream: str) -> buses.Bounds:
        return buses.Bounds(8, 7)

    monkeypatch.setattr(bus, "bounds_of", aged)
    assert not (await quarantine.listed("")).incomplete


async def test_the_bound_holds_where_counts_come_back_from_a_flush_that_failed(nats: TestServer) -> None:
    async with buses.connect(nats.url, "test") as bus:
        quarantine = Quarantine(bus, MeshClock(), IngestMetrics(CollectorRegistry()))
        refuse(quarantine, "before", MAX_SENDER_KEYS)
        running = asyncio.create_task(quarantine.run())
        await asyncio.sleep(0)
        running.cancel()  # it flushes once more, and the stream doesn't exist yet
        await asyncio.sleep(0)
        refuse(quarantine, "meanwhile", MAX_SENDER_KEYS)
        await asyncio.gather(running, return_exceptions=True)
        await streams.create(bus, 1, MeshClock(), max_bytes=STREAM_BYTES)
        by_key = await counts(quarantine)
    assert len(by_key) == MAX_SENDER_KEYS + 1 and sum(by_key.values()) == 2 * MAX_SENDER_KEYS
