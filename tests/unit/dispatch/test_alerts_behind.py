"""The alerts that wait for a leg, as an alert rule of Prometheus sees them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from services.common.messaging import flow, trails
from services.common.messaging.delivered import Delivered
from services.common.messaging.trails import Trail
from services.dispatch.domain.leg import Leg
from services.dispatch.leg import consumer
from services.dispatch.metrics import DispatchMetrics
from tests.support.dispatch import dispatch


class SlowDatabase:
    """Stands for the deferred position of a leg whose database refuses until the test frees its disk."""

    def __init__(self) -> None:
        self.asked, self.free = asyncio.Event(), asyncio.Event()
        self.forget = None

    async def keep(self) -> None:
        """Stores nothing."""

    async def put(self, alerts: Any, position: Any) -> None:
        """Waits for the disk."""
        self.asked.set()
        await self.free.wait()


async def test_an_alert_that_the_database_refuses_counts_as_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    alert = dispatch.alert(7)
    message = Delivered(
        flow.alert_subject(0, alert.alert_id), alert.SerializeToString(), flow.ALERTS.name, 7, 1_000, 0, ""
    )
    done = asyncio.Event()

    async def follow(*_: Any, **__: Any) -> AsyncIterator[list[Delivered]]:
        yield [message]
        done.set()

    async def reading(*_: Any, **__: Any) -> tuple[Trail, int]:
        return Trail.parse(""), 0

    database = SlowDatabase()
    monkeypatch.setattr(trails, "follow", follow)
    monkeypatch.setattr(consumer, "_reading", reading)
    monkeypatch.setattr(consumer, "DeferredPosition", lambda _: database)
    registry, nothing = CollectorRegistry(), None
    leg: Any = SimpleNamespace(name=Leg.POLICE, metrics=DispatchMetrics(registry), fold=nothing)
    bus: Any = nothing

    def behind() -> float | None:
        return registry.get_sample_value("tandem_dispatch_alerts_behind", {"leg": "police"})

    consuming = asyncio.create_task(consumer.consume_alerts(bus, leg, "log"))
    await database.asked.wait()
    assert behind() == 1, "AlertsWait must see a leg that can't store the one alert that it has"
    database.free.set()
    await done.wait()
    assert behind() == 0
    await consuming
