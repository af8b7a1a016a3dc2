"""Legs that stop, start again, or are restored: no assignment is lost or made twice."""

from __future__ import annotations

import asyncio

from services.common.clock import MeshClock
from services.common.messaging import flow
from services.common.messaging.bus import Bus
from services.common.storage.db import open_database
from services.dispatch.__main__ import MIGRATIONS
from services.dispatch.domain.escalation import Deadlines
from services.dispatch.domain.leg import Leg
from services.dispatch.leg import translate
from services.dispatch.leg.service import open_leg
from services.dispatch.leg.store import Store
from services.dispatch.leg.tables import StreamPosition
from services.dispatch.settings import DispatchSettings
from tandem.dispatch.v1.dispatch_pb2 import ESCALATED, OFFERED
from tests.support.dispatch.dispatch import (
    METRICS,
    PATIENCE_S,
    alert,
    client,
    process,
    publish,
    running,
    stored_steps,
)
from tests.support.dispatch.leg_chain import first_broken_event


async def test_a_deadline_survives_a_restart(bus: Bus, police: DispatchSettings) -> None:
    brief = police.model_copy(update={"acknowledge_within_s": 2.0})
    async with running(brief) as leg, leg.desk.subscription() as steps:
        await publish(bus, alert(5))
        await steps.next(OFFERED)
    async with running(brief) as leg, leg.desk.subscription() as steps:
        assert (await steps.next(ESCALATED)).step.number == 2


async def test_a_restored_older_copy_folds_the_alerts_that_it_lacks(bus: Bus, police: DispatchSettings) -> None:
    async with running(police) as leg, leg.desk.subscription() as steps:
        await publish(bus, alert(5))
        offer = (await steps.next(OFFERED)).step.assignment
    file = police.data_dir / "dispatch-police.sqlite3"
    copy = file.read_bytes()
    async with running(police) as leg, leg.desk.subscription() as steps:
        await leg.desk.acknowledge(offer.assignment_id)
        await stored_steps(bus, "police", "incident-1", count=2)
        await publish(bus, alert(6, incident="incident-2"))
        while (await steps.next(OFFERED)).step.assignment.incident_id != "incident-2":
            pass
    file.write_bytes(copy)
    async with running(police) as leg, leg.desk.subscription() as steps:
        while (await steps.next(OFFERED)).step.assignment.incident_id != "incident-2":
            pass
        # The desk's answer is lost with the file, so the leg re-offers, and publishes that to readers of the answer.
        await stored_steps(bus, "police", "incident-1", count=3)
    lost = (await stored_steps(bus, "police", "incident-1", count=3))[-1]
    assert (lost.number, lost.assignment.state) == (3, OFFERED)


async def test_an_alert_that_is_redelivered_after_a_stop_makes_no_second_assignment(
    bus: Bus, police: DispatchSettings
) -> None:
    committed = alert(5)
    await publish(bus, committed)
    parsed = translate.alert(committed.SerializeToString(), Leg.POLICE)
    assert parsed
    async with (  # the leg commits, but doesn't publish to INCIDENTS
        open_database(police.database, MIGRATIONS) as database,
        open_leg(Leg.POLICE, Store(database), MeshClock(), deadlines=Deadlines(30_000), metrics=METRICS) as leg,
    ):
        # The position is before the alert, so the alert is redelivered.
        await leg.fold([parsed], StreamPosition(flow.ALERTS.name, "log", 0))
    async with running(police) as running_leg, running_leg.desk.subscription() as steps:
        await steps.next(OFFERED)
        await publish(bus, alert(6, incident="incident-2"))
        assert (await steps.next(OFFERED)).step.assignment.incident_id == "incident-2"
        (published,) = await stored_steps(bus, "police", "incident-1", count=1)
        (incident,) = (await running_leg.desk.list(incident_id="incident-1")).incidents
    assert [assignment.assignment_id for assignment in incident.assignments] == [published.assignment.assignment_id]


async def test_a_restarted_process_repeats_its_offers(bus: Bus, police: DispatchSettings) -> None:
    seen: list[str] = []
    for sequence in (5, 6):
        async with process(police) as started, client(police) as leg, leg.desk.subscription() as steps:
            await publish(bus, alert(sequence, incident=f"incident-{sequence}"))
            for _ in range(len(seen) + 1):
                seen.append((await steps.next(OFFERED)).step.assignment.incident_id)
            if sequence == 6:
                await leg.desk.acknowledge((await leg.desk.list()).incidents[0].assignments[0].assignment_id)
                started.terminate()
                assert await asyncio.wait_for(started.wait(), PATIENCE_S) == 0
    assert seen == ["incident-5", "incident-5", "incident-6"]
    async with open_database(police.database, MIGRATIONS) as database:
        assert await first_broken_event(Store(database)) is None


async def test_a_leg_that_lost_its_store_repeats_all_offers(bus: Bus, police: DispatchSettings) -> None:
    await publish(bus, alert(5))
    async with running(police) as leg, leg.desk.subscription() as subscription:
        first = (await subscription.next(OFFERED)).step.assignment
        await leg.desk.acknowledge(first.assignment_id)
    for file in police.data_dir.glob("dispatch-police.sqlite3*"):
        file.unlink()
    async with running(police) as leg, leg.desk.subscription() as subscription:
        reoffered = (await subscription.next(OFFERED)).step.assignment
    assert reoffered.assignment_id == first.assignment_id
