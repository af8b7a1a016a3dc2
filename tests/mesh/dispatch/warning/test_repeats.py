"""While a situation goes on: the gravest threat first, nearer or farther by the distance, the police's advice and their end of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from services.common import times
from services.common.clock import MeshClock
from services.common.messaging import flow
from services.common.messaging.bus import Bus
from services.dispatch.warning import domain
from services.dispatch.warning.domain import ReceiptKind
from services.dispatch.warning.store import WarningStore
from services.dispatch.warning.tables import DueWork, TriedSending
from tandem.common.v1 import alert_pb2, geometry_pb2
from tandem.dispatch.v1 import dispatch_pb2, following_pb2
from tests.support.common.nats import TestServer
from tests.support.dispatch import dispatch
from tests.support.dispatch.dispatch import publish, running
from tests.support.dispatch.warned import rows, until
from tests.support.dispatch.warning import (
    FakeDevice,
    Gateway,
    put_case,
    ring,
    settings,
)


async def test_of_simultaneous_alerts_the_gravest_is_said_alone_and_its_receipt_counts_for_all(
    nats: TestServer, bus: Bus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(domain, "READ_MS", 60_000)
    gateway = Gateway()
    made = settings(nats, tmp_path / "leg", gateway)
    await put_case(bus, made)
    home, panic = ring(4), ring(5, 0.0, geometry_pb2.RESPOND)
    home.target_id, panic.kind = "home", alert_pb2.PANIC
    others = ring(3, 600.0, geometry_pb2.NOTIFY, incident="incident-2")
    await publish(bus, ring(1, 2000.0), ring(2, 100.0, geometry_pb2.RESPOND), others, home, panic)
    due, accept = WarningStore.due, WarningStore.accept

    async def due_when_all_are_stored(store: WarningStore, now_ms: int, tried: Sequence[TriedSending] = ()) -> DueWork:
        """The alerts can reach the leg in several batches, and the first of them must find nothing sent."""
        is_all = len(rows(made, "select 1 from taken")) >= 4
        return await due(store, now_ms, tried) if is_all else DueWork(None)

    async def accept_and_open_nothing(store: WarningStore, *arguments: Any) -> DueWork:
        await accept(store, *arguments)
        return DueWork(None)

    monkeypatch.setattr(WarningStore, "due", due_when_all_are_stored)
    monkeypatch.setattr(WarningStore, "accept", accept_and_open_nothing)
    async with gateway.serving(), running(made) as leg, leg.desk.subscription() as desk:
        warning_id, text = await gateway.shown()
        assert "within 100 m of you" in text
        await gateway.arrived(warning_id)
        acknowledged = {(await desk.next(dispatch_pb2.ACKNOWLEDGED)).step.assignment.incident_id for _ in range(2)}
        assert acknowledged == {"incident-1", "incident-2"}
    assert rows(made, "select state from messages where state <> 'replaced'") == [("sending",)]
    # A replaced message was never sent, so no receipt is awaited.
    assert set(rows(made, "select receipt_due_ms from messages where state = 'replaced'")) <= {(None,)}


async def test_distances_say_nearer_or_farther_and_the_end_is_said(nats: TestServer, bus: Bus, tmp_path: Path) -> None:
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
        assert "within 1 km of you." in (await gateway.shown(1))[1]
        await publish_with_distance(changed(2), 450.0)
        assert "nearer, about 400 m from you (" in (await gateway.shown(2))[1]
        await publish_with_distance(changed(3), 900.0)
        assert "farther away, within 1 km of you (" in (await gateway.shown(3))[1]
        await publish_with_distance(changed(4))  # without its distance
        assert ": within 1 km of you (" in (await gateway.shown(4))[1]
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


async def test_police_advice_holds_for_persons_of_its_order_until_it_is_withdrawn(
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
        await publish(bus, ring(5, 1000.0, geometry_pb2.NOTIFY))
        assert "Be indoors" in (await gateway.shown())[1]
        await advise(3, dispatch_pb2.STAY_INSIDE)
        text = (await gateway.shown(2))[1]
        assert "within 1 km of you" in text and "Stay inside" in text
        await advise(5, dispatch_pb2.LEAVE, "another-person")
        await advise(6, dispatch_pb2.LEAVE, "order-2/home")
        await advise(7, dispatch_pb2.ADVICE_UNSPECIFIED)
        assert "Be indoors" in (await gateway.shown(3))[1]
        await until(made, "select 1 from positions where stream = 'ADVICE' and sequence >= 4")
    assert len(gateway.requests) == 3


async def test_an_unconfirmed_instruction_is_repeated_by_gateway_and_command_until_the_police_close_it(
    nats: TestServer, bus: Bus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(domain.FIRST_REPEAT_MS, None, 1_500)
    monkeypatch.setitem(domain.FIRST_REPEAT_MS, ReceiptKind.DELIVERED, 3_600_000)
    monkeypatch.setattr(domain, "CLOSE_MARGIN_MS", 0)
    gateway, device = Gateway(), FakeDevice(bus)
    made = settings(nats, tmp_path / "warning", gateway)
    await put_case(bus, made, "app-1")
    police = dispatch.settings("police", nats, tmp_path / "police")
    async with gateway.serving(), running(police) as leg, running(made), leg.desk.subscription() as desk:
        await until(made, "select 1 from contacts")
        message = ring(1, 100.0, geometry_pb2.RESPOND)
        message.kind, message.ring_m = alert_pb2.TAMPERED, 0.0
        message.decided_at.FromMilliseconds(MeshClock().now_ms())
        await publish(bus, message)
        first, repeated = await gateway.message(1), await gateway.message(2)
        assert first["repetition"] == 0 and repeated["repetition"] == 1
        assert first["warning_id"] == repeated["warning_id"] and first["text"] == repeated["text"]
        assert (first["who"], first["topic"]) == ("the person of your order", "instruction")
        assert first["where"] in first["text"] and first["act"] in first["text"]
        assert [headers["webhook-id"] for headers, _ in gateway.requests[:2]] == [
            first["warning_id"],
            f"{first['warning_id']}.1",
        ]
        shown = [await device.shown(number) for number in (1, 2)]
        assert shown[0] == shown[1] == (first["warning_id"], first["text"])
        await gateway.arrived(first["warning_id"])
        await until(made, "select 1 from messages where delivered_ms is not null and repeat_ms > due_ms + 3000000")
        offered = (await desk.next(dispatch_pb2.OFFERED)).step.assignment
        await leg.desk.acknowledge(offered.assignment_id)
        await leg.desk.call("Close", assignment_id=offered.assignment_id, cause=dispatch_pb2.EQUIPMENT, offer_number=1)
        await until(made, "select 1 from messages where kind = 'OVER' and state = 'sending'")
    assert rows(made, "select flag from told") == [(0,)], "no repetition is an alarm of its own"
