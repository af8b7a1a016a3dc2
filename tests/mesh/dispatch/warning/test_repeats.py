"""Repeated warnings: the nearest ring first, nearer or farther by the distance, and the police's advice."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from services.common import times
from services.common.clock import MeshClock
from services.common.messaging import flow
from services.common.messaging.bus import Bus
from services.dispatch.warning import domain as decisions
from services.dispatch.warning.store import WarningStore
from services.dispatch.warning.tables import DueWork, TriedSending
from tandem.common.v1 import alert_pb2, geometry_pb2
from tandem.dispatch.v1 import dispatch_pb2, following_pb2
from tests.support.common.nats import TestServer
from tests.support.dispatch.dispatch import publish, running
from tests.support.dispatch.warned import rows, until
from tests.support.dispatch.warning import (
    Gateway,
    put_case,
    ring,
    settings,
)


async def test_of_simultaneous_alerts_the_nearest_ring_is_sent_first_and_her_home_later(
    nats: TestServer, bus: Bus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decisions, "READ_MS", 60_000)
    gateway = Gateway()
    made = settings(nats, tmp_path / "leg", gateway)
    await put_case(bus, made)
    home = ring(3)
    home.target_id = "home"
    panic = ring(4, 0.0, geometry_pb2.RESPOND)
    panic.kind = alert_pb2.PANIC
    await publish(bus, ring(1, 2000.0), ring(2), home, panic)
    due = WarningStore.due

    async def due_when_all_are_stored(store: WarningStore, now_ms: int, tried: Sequence[TriedSending] = ()) -> DueWork:
        """The alerts can reach the leg in several batches, and the first of them must find nothing sent."""
        return await due(store, now_ms, tried) if len(rows(made, "select 1 from messages")) == 4 else DueWork(None)

    accept = WarningStore.accept

    async def accept_and_open_nothing(store: WarningStore, *arguments: Any) -> DueWork:
        await accept(store, *arguments)
        return DueWork(None)

    monkeypatch.setattr(WarningStore, "due", due_when_all_are_stored)
    monkeypatch.setattr(WarningStore, "accept", accept_and_open_nothing)
    async with gateway.serving(), running(made):
        texts = {(await gateway.shown(number))[1] for number in (1, 2)}
        await until(made, "select 1 from messages where of_place and state = 'waiting'")
    assert any("within 1 km." in text for text in texts) and any("there is a message" in text for text in texts)
    assert rows(made, "select state from messages order by sequence") == [
        ("replaced",),
        ("sending",),
        ("waiting",),
        ("sending",),
    ]
    # A replaced message was never sent, so no receipt is awaited.
    assert rows(made, "select receipt_due_ms from messages where state = 'replaced'") == [(None,)]


async def test_repeats_say_nearer_or_farther_by_the_distance_and_the_end_is_sent(
    nats: TestServer, bus: Bus, tmp_path: Path
) -> None:
    gateway = Gateway()
    made = settings(nats, tmp_path / "leg", gateway)
    await put_case(bus, made)

    async def publish_with_distance(message: alert_pb2.Alert, distance_m: float | None = None) -> None:
        await publish(bus, message)
        if distance_m is not None:
            measure = alert_pb2.Measure(alert_id=message.alert_id, distance_m=distance_m)
            await bus.publish_until_stored(flow.measure_subject(0, message.alert_id), measure.SerializeToString())

    def changed(sequence: int) -> alert_pb2.Alert:
        message = ring(sequence)
        message.kind = alert_pb2.DISTANCE_CHANGED
        return message

    async with gateway.serving(), running(made):
        await until(made, "select 1 from contacts")
        await publish_with_distance(ring(1), 950.0)
        await gateway.message(1)
        await publish_with_distance(changed(2), 450.0)
        assert "nearer, about 400 m." in (await gateway.shown(2))[1]
        await publish_with_distance(changed(3), 900.0)
        assert "farther away, within 1 km." in (await gateway.shown(3))[1]
        await publish_with_distance(changed(4))  # without its distance
        assert "the distance has changed, within 1 km." in (await gateway.shown(4))[1]
        cleared = ring(5, demand=geometry_pb2.RECORD, ends=True)
        await publish_with_distance(cleared)
        assert "the earlier notice has ended" in (await gateway.shown(5))[1]
        lost = alert_pb2.Alert(
            alert_id="lost",
            sequence=6,
            kind=alert_pb2.PROTECTED_DEVICE_LOST,
            demand=geometry_pb2.NOTIFY,
            order_id="order-1",
            target_id="p1",
        )
        await put_case(bus, made, "app-1", version=2)
        await until(made, "select 1 from contacts where version = 2")
        await publish_with_distance(lost)
        assert "your phone isn't reporting" in (await gateway.shown(6))[1]


async def test_police_advice_goes_to_persons_notified_of_its_order_and_its_end_to_nobody(
    nats: TestServer, bus: Bus, tmp_path: Path
) -> None:
    gateway = Gateway()
    made = settings(nats, tmp_path / "leg", gateway)
    await put_case(bus, made)

    async def advise(number: int, advice: dispatch_pb2.Advice.ValueType, subject_id: str = "order-1/home") -> None:
        given = following_pb2.AdviceGiven(
            advice_id=f"step-{number}",
            incident_id="incident-1",
            order_ids=["order-1"],
            subject_id=subject_id,
            advice=advice,
            at=times.to_timestamp(MeshClock().now_ms()),
            number=number,
            sequence=5,
        )
        await bus.publish_until_stored(flow.advice_subject("incident-1"), given.SerializeToString())

    async with gateway.serving(), running(made):
        await publish(bus, ring(5, 100.0, geometry_pb2.RESPOND))
        await gateway.shown()
        await advise(3, dispatch_pb2.STAY_INSIDE)
        assert "stay inside" in (await gateway.shown(2))[1]
        await advise(4, dispatch_pb2.ADVICE_UNSPECIFIED)
        await advise(5, dispatch_pb2.LEAVE, "another-person")
        await advise(6, dispatch_pb2.STAY_INSIDE, "order-2/home")
        await until(made, "select 1 from positions where stream = 'ADVICE' and sequence >= 4")
    assert [notice for (notice,) in rows(made, "select notice from messages order by made_ms")] == [
        "APPROACH",
        "STAY_INSIDE",
    ]
