"""Silence on a real log: the evaluators' ticks cause the alerts that depend on time alone, without any new report."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from services.common.clock import MeshClock
from services.common.messaging import bus as buses
from services.common.messaging import streams
from services.common.messaging.bus import Bus
from services.geofence.domain import codec
from tandem.common.v1 import alert_pb2, geometry_pb2
from tests.support.common.nats import TestServer
from tests.support.geofence import log
from tests.support.geofence.running_evaluators import (
    alerts_of,
    caught_up,
    make_evaluator,
    offline,
    publish,
    start,
    stop,
    until,
)

RATE = 600
"""Rate of the mesh clock: half an hour of mesh time is 3 s."""


@pytest.fixture
async def fast(nats: TestServer) -> AsyncIterator[Bus]:
    """A connection to a server with a fast mesh clock."""
    async with buses.connect(nats.url, "test") as connection:
        await streams.create(connection, 1, MeshClock(RATE, int(time.time() * 1000)), max_bytes=64 << 20)
        yield connection


async def test_a_silent_wearer_causes_alerts_by_ticks_alone(fast: Bus, tmp_path: Path) -> None:
    both = [await make_evaluator(fast, tmp_path, replica, tick_after_s=60) for replica in (0, 1)]
    tasks = [start(evaluator) for evaluator in both]
    clock = (await streams.read_log_meta(fast)).clock
    from_ms = clock.now_ms()
    await publish(fast, log.case_entry(from_ms=from_ms, place=True))
    await publish(fast, log.positions_entry(log.position("t1", from_ms, 4000), log.position("d1", from_ms, 0)))

    async def all_notified() -> bool:
        return len([alert for alert in await alerts_of(fast) if alert.demand == geometry_pb2.NOTIFY]) >= 4

    await until(all_notified)
    await caught_up(fast, *both)
    await stop(*tasks)
    alerts = await alerts_of(fast)
    at_s = {
        (alert.kind, alert.demand, alert.target_id): (alert.at.ToMilliseconds() - from_ms) / 1000 for alert in alerts
    }
    assert not any(alert.HasField("cause") for alert in alerts)
    assert {key[:2] for key in at_s} == {
        (alert_pb2.SILENT, geometry_pb2.RECORD),
        (alert_pb2.UNKNOWN_NEAR, geometry_pb2.NOTIFY),
        (alert_pb2.SILENT, geometry_pb2.NOTIFY),
        (alert_pb2.PROTECTED_DEVICE_LOST, geometry_pb2.NOTIFY),
    }
    home = at_s[alert_pb2.UNKNOWN_NEAR, geometry_pb2.NOTIFY, "home1"]
    assert home == pytest.approx((4000 - 150 - 5) / 14, abs=0.1), (
        "the wearer can be there after this time at 14 m/s, independent of the time of the tick"
    )
    # The gravest alert of an entry is published first.
    in_order = sorted(alerts, key=lambda alert: (alert.sequence, alert.ordinal))
    assert [alert.SerializeToString() for alert in in_order] == (await offline(fast))[: len(alerts)]
    assert codec.encode(both[0].state) == codec.encode(both[1].state)
