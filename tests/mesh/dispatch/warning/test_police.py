"""What the police get to know of a protected person who is warned."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing
from pathlib import Path

from services.common.messaging.bus import Bus
from tandem.common.v1 import alert_pb2, geometry_pb2
from tandem.dispatch.v1 import dispatch_pb2
from tests.support.common.nats import TestServer
from tests.support.dispatch.dispatch import publish
from tests.support.dispatch.warned import flagged, rows, three_legs, until
from tests.support.dispatch.warning import (
    DURESS_CHOICE,
    WITHIN_S,
    Gateway,
    answer,
    ring,
)


async def test_a_missing_receipt_is_flagged_to_the_police_and_not_to_probation(
    nats: TestServer, bus: Bus, tmp_path: Path
) -> None:
    gateway = Gateway()
    async with three_legs(nats, bus, tmp_path, gateway=gateway) as (_, police), police.subscription() as desk:
        await publish(bus, ring(1))
        warning_id, _ = await gateway.shown()
        assignment = await flagged(desk, dispatch_pb2.NO_RECEIPT)
        assert (assignment.subject_id, assignment.state, assignment.demand) == (
            "p1",
            dispatch_pb2.NOTIFIED,
            geometry_pb2.NOTIFY,
        )
        await gateway.arrived(warning_id)
        await flagged(desk, dispatch_pb2.REACHED)
        # The probation leg reads the same stream, but stores none of the flags.
        seen: dict[int, dispatch_pb2.Assignment] = {}
        async with asyncio.timeout(WITHIN_S):
            while seen.get(alert_pb2.WARNING, dispatch_pb2.Assignment()).state != dispatch_pb2.ACKNOWLEDGED:
                with closing(sqlite3.connect(tmp_path / "probation" / "dispatch-probation.sqlite3")) as database:
                    for (payload,) in database.execute("select payload from peer_assignments"):
                        peer = dispatch_pb2.Assignment.FromString(payload)
                        seen[peer.leg] = peer
                await asyncio.sleep(0.05)
        assert alert_pb2.POLICE in seen and not any(assignment.HasField("person_flag") for assignment in seen.values())
    with closing(sqlite3.connect(tmp_path / "police" / "dispatch-police.sqlite3")) as database:
        kinds = [kind for (kind,) in database.execute("select kind from events order by id")]
    assert kinds == ["AlertFolded", "Notified", "Flagged", "Flagged"]


async def test_every_choice_looks_the_same_and_the_duress_choice_alarms_the_police(
    nats: TestServer, bus: Bus, tmp_path: Path
) -> None:
    gateway = Gateway()
    async with three_legs(nats, bus, tmp_path, gateway=gateway) as (made, police), police.subscription() as desk:
        await publish(bus, ring(1, 100.0, geometry_pb2.RESPOND))
        offered = (await desk.next(dispatch_pb2.OFFERED)).step.assignment
        await police.acknowledge(offered.assignment_id)
        url = (await gateway.message())["answer_url"]
        before = await answer(url, "GET")
        assert before[0] == 200 and before[2].count("<button") == 3
        assert rows(made, "select acknowledged_ms from messages") == [(None,)], "a preview answers nothing"
        ordinary = [str(choice) for choice in (1, 2, 3) if choice != DURESS_CHOICE]
        first = await answer(url, choice=ordinary[0])
        assert first[0] == 200
        await until(made, "select 1 from messages where acknowledged_ms is not null")
        assert (await police.list()).incidents[0].assignments[0].state == dispatch_pb2.ACKNOWLEDGED
        assert await answer(url, choice=ordinary[1]) == first
        assert rows(made, "select duress from told") == [(0,)]
        assert await answer(url, choice=str(DURESS_CHOICE)) == first
        assert await answer(url, choice=str(DURESS_CHOICE)) == first == await answer(url, choice=ordinary[0])
        assert await answer(url, "GET") == before
        assignment = await flagged(desk, dispatch_pb2.DURESS)
        assert assignment.state == dispatch_pb2.ACKNOWLEDGED, "a unit is on its way"
        # The departure of the wearer's tag ends the demand of the alerts, but not the duress.
        await publish(bus, ring(2, 100.0, geometry_pb2.RECORD, ends=True))
        async with asyncio.timeout(WITHIN_S):
            while dispatch_pb2.STOOD_DOWN not in {  # noqa: ASYNC110
                assignment.state for assignment in (await police.list()).incidents[0].assignments
            }:
                await asyncio.sleep(0.05)  # the warning leg's assignment
        (mine,) = [
            assignment
            for assignment in (await police.list()).incidents[0].assignments
            if assignment.leg == alert_pb2.POLICE
        ]
        assert mine.state == dispatch_pb2.ACKNOWLEDGED


async def test_duress_on_a_warning_without_a_police_assignment_is_offered_to_the_police(
    nats: TestServer, bus: Bus, tmp_path: Path
) -> None:
    gateway = Gateway()
    async with three_legs(nats, bus, tmp_path, gateway=gateway) as (_, police), police.subscription() as desk:
        await publish(bus, ring(1))
        url = (await gateway.message())["answer_url"]
        assert (await answer(url, choice=str(DURESS_CHOICE)))[0] == 200
        offered = (await desk.next(dispatch_pb2.OFFERED)).step.assignment
        assert offered.subject_id == "p1" and offered.demand == geometry_pb2.RESPOND and offered.HasField("due_at")
        await flagged(desk, dispatch_pb2.DURESS)
        acknowledged = await police.acknowledge(offered.assignment_id)
        assert acknowledged.state == dispatch_pb2.ACKNOWLEDGED
