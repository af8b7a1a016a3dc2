"""An evaluator's figures wait for its alerts, its requests for data don't wait for figures, and the backup's alerts come second."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

from prometheus_client import CollectorRegistry

from services.common.clock import MeshClock
from services.common.messaging.bus import PubAck
from services.common.messaging.cursors import StreamCursor
from services.common.messaging.delivered import Delivered
from services.common.priority import Limits, PriorityGate
from services.geofence.checkpoints import PublishedOutputs
from services.geofence.domain.alerts import SensingRequest
from services.geofence.domain.demands import AlertKind
from services.geofence.domain.entries import Demand
from services.geofence.metrics import GeofenceMetrics
from services.geofence.publisher import OutputPublisher
from services.geofence.settings import GeofenceSettings
from services.geofence.store import Footing, PendingCheckpoint
from tests.support.decision_quality import alert

SHARING = Limits(quiet_s=0.0, max_delay_s=3_600.0, slots=1)
FAR_MS = 1 << 50
ASKED = (("r1", "tag-a"), ("r2", "tag-b"), ("r3", "tag-a"))
"""Requests, each with its device."""
ENTRY = Delivered("log.0.report", b"", "LOG_0", 1, 1_000, 0, "")


class Bus:
    """A bus that stores each message and notes the kind of its subject."""

    reconnects = 0

    def __init__(self) -> None:
        self.kinds: list[str] = []

    async def publish_until_stored(self, subject: str, payload: bytes, **options: Any) -> PubAck:
        self.kinds.append(subject.partition(".")[0])
        return PubAck("STREAM", len(self.kinds))


def request() -> SensingRequest:
    return SensingRequest(
        request_id="r", sequence=2, ordinal=0, device_id="d", interval_s=5, decided_at_ms=1, until_ms=FAR_MS, fold_version=1
    )  # fmt: skip


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110  # nothing announces the change
            await asyncio.sleep(0)


@asynccontextmanager
async def publishing(
    fake: Bus, gate: PriorityGate, *, is_backup: bool = False, checkpoints: Any = None
) -> AsyncIterator[OutputPublisher]:
    bus: Any = fake
    unused: Any = None
    outputs = OutputPublisher(
        bus,
        0,
        PublishedOutputs(bus, 0),
        checkpoints=checkpoints,
        digests=unused,
        clock=MeshClock(),
        metrics=GeofenceMetrics(CollectorRegistry()),
        gate=gate,
        is_backup=is_backup,
    )
    tasks = [
        asyncio.create_task(work)
        for work in (outputs.publish_alerts(), outputs.publish_requests(), outputs.publish_secondary())
    ]
    yield outputs
    for task in tasks:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def test_figures_wait_for_response_work_and_delay_no_request_for_data() -> None:
    fake, gate = Bus(), PriorityGate(sharing=SHARING)
    async with publishing(fake, gate) as outputs:
        with gate.response():
            alerts = [alert(AlertKind.RING_ENTERED, demand, 1) for demand in (Demand.RESPOND, Demand.WARN)]
            assert outputs.put(alerts, ENTRY)
            await until(lambda: fake.kinds == ["alert", "alert"])
            assert not outputs.put([request()], ENTRY)
            await until(lambda: len(fake.kinds) == 3)
            for _ in range(20):
                await asyncio.sleep(0)
            assert fake.kinds == ["alert", "alert", "sensing"]
        await until(lambda: len(fake.kinds) == 5)
        assert fake.kinds[3:] == ["measure", "measure"] and outputs.secondary_waiting == 0


async def test_requests_of_one_moment_are_published_together_and_in_their_order() -> None:
    fake = Bus()
    async with publishing(fake, PriorityGate()) as outputs:
        other = replace(request(), device_id="e")
        outputs.put([request(), alert(AlertKind.RING_ENTERED, Demand.WARN, 1), other], ENTRY)
        await until(lambda: fake.kinds.count("sensing") == 2)
        assert fake.kinds[:3] == ["alert", "sensing", "sensing"]


async def test_requests_to_different_devices_go_at_once_and_those_to_one_device_one_after_the_other() -> None:
    stored, under_way = asyncio.Event(), list[str]()

    class SlowBus(Bus):
        async def publish_until_stored(self, subject: str, payload: bytes, **options: Any) -> PubAck:
            under_way.append(subject.rpartition(".")[2])
            await stored.wait()
            return await super().publish_until_stored(subject, payload, **options)

    async with publishing(SlowBus(), PriorityGate()) as outputs:
        outputs.put([replace(request(), request_id=id_, device_id=device) for id_, device in ASKED], ENTRY)
        await until(lambda: len(under_way) == 2)
        for _ in range(20):
            await asyncio.sleep(0)
        assert under_way == ["r1", "r2"]
        stored.set()
        await until(lambda: len(under_way) == 3)
    assert under_way == ["r1", "r2", "r3"]


async def test_the_backup_publishes_an_alert_after_the_other_evaluator() -> None:
    order: list[str] = []

    class NamedBus(Bus):
        def __init__(self, name: str) -> None:
            super().__init__()
            self.name = name

        async def publish_until_stored(self, subject: str, payload: bytes, **options: Any) -> PubAck:
            order.append(self.name)
            return await super().publish_until_stored(subject, payload, **options)

    gate = PriorityGate(sharing=SHARING)
    async with (
        publishing(NamedBus("backup"), gate, is_backup=True) as backup,
        publishing(NamedBus("first"), gate) as first,
    ):
        with gate.response():  # no figures meanwhile
            for outputs in (backup, first):
                outputs.put([alert(AlertKind.RING_ENTERED, Demand.RESPOND, 1)], ENTRY)
            await until(lambda: len(order) == 2)
    assert order[:2] == ["first", "backup"]


def test_each_partition_has_one_backup() -> None:
    replicas = [GeofenceSettings(replica=replica, replicas=3) for replica in range(3)]
    for partition in range(7):
        folding = [replica for replica in replicas if partition in replica.partitions(7)]
        assert sorted(replica.is_backup(partition) for replica in folding) == [False, True]
    assert not GeofenceSettings(replica=0, replicas=1).is_backup(5)


async def test_alerts_of_several_entries_are_under_way_at_once_and_a_checkpoint_waits_for_all() -> None:
    answer = asyncio.Event()

    class SlowBus(Bus):
        async def publish_until_stored(self, subject: str, payload: bytes, **options: Any) -> PubAck:
            ack = await super().publish_until_stored(subject, payload, **options)
            if self.kinds[-1] == "alert":
                await answer.wait()
            return ack

    class Footings:
        def __init__(self) -> None:
            self.supported: list[Footing] = []

        def support(self, _: PendingCheckpoint, footing: Footing) -> None:
            self.supported.append(footing)

    fake, footings = SlowBus(), Footings()
    async with publishing(fake, PriorityGate(sharing=SHARING), checkpoints=footings) as outputs:
        for _ in range(3):
            outputs.put([alert(AlertKind.RING_ENTERED, Demand.RESPOND, 1)], ENTRY)
        outputs.put_checkpoint(PendingCheckpoint(0, 1, 1), StreamCursor(1, 1, "0" * 16))
        await until(lambda: fake.kinds == ["alert"] * 3)
        for _ in range(20):
            await asyncio.sleep(0)
        assert not footings.supported
        answer.set()
        await until(lambda: bool(footings.supported))
    (footing,) = footings.supported
    assert footing.alert and footing.alert.sequence == 3
    assert fake.kinds == ["alert"] * 3 + ["measure"] * 3


async def test_an_alert_waits_neither_for_a_checkpoint_nor_for_the_alerts_before_it() -> None:
    answer = asyncio.Event()

    class FirstIsLost(Bus):
        async def publish_until_stored(self, subject: str, payload: bytes, **options: Any) -> PubAck:
            ack = await super().publish_until_stored(subject, payload, **options)
            if ack.seq == 1:
                await answer.wait()
            return ack

    supported: list[Footing] = []
    checkpoints: Any = SimpleNamespace(support=lambda _, footing: supported.append(footing))
    fake = FirstIsLost()
    async with publishing(fake, PriorityGate(sharing=SHARING), checkpoints=checkpoints) as outputs:
        outputs.put([alert(AlertKind.RING_ENTERED, Demand.WARN, 1)], ENTRY)
        outputs.put_checkpoint(PendingCheckpoint(0, 1, 1), StreamCursor(1, 1, "0" * 16))
        outputs.put([alert(AlertKind.RING_ENTERED, Demand.RESPOND, 2)], ENTRY)
        await until(lambda: fake.kinds == ["alert"] * 2)
        assert not supported
        answer.set()
        await until(lambda: bool(supported))
