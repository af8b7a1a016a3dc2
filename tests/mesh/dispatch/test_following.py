"""Target following on a whole mesh: a chase that turns, live positions for the desks, pursuit, and its end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import grpc.aio
import pytest

from services.client.actors import DESKS
from services.common.messaging import flow, pull
from services.dispatch.following.pursuit import HOLDS_S
from tandem.common.v1 import alert_pb2, geometry_pb2
from tandem.dispatch.v1 import dispatch_pb2, following_pb2
from tandem.ingest.v1 import ingest_pb2
from tests.support.common.mesh import RunningMesh, running_mesh
from tests.support.dispatch.chase import HOME, PATIENCE_S, SECOND, Chase, chase, near

RETARGETED_WITHIN_S = 15.0
State = dispatch_pb2.AssignmentState


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningMesh]:
    with running_mesh(tmp_path_factory.mktemp("following") / "mesh") as running:
        yield running


class Watched:
    """Live positions of an incident's targets at a leg's desk, the newest of each."""

    def __init__(self, call: Any, incident_id: str) -> None:
        self.seen: dict[str, following_pb2.TargetPosition] = {}
        self.call = call
        self.incident_id = incident_id
        self.is_followed = True

    async def read(self) -> None:
        """Reads the next events."""
        response = await self.call.read()
        assert response is not grpc.aio.EOF, "the stream ended"
        for event in response.events:
            assert event.incident_id == self.incident_id
            if event.HasField("not_followed"):
                self.is_followed = False
            else:
                self.seen[event.target.subject_id] = event.target

    async def until(self, good: Any) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while not good(self.seen):
                await self.read()

    async def to_the_end(self) -> None:
        """Reads until the leg no longer follows the incident, and until the stream ends with its last incident."""
        async with asyncio.timeout(PATIENCE_S):
            while self.is_followed:
                await self.read()
            await self.call.done_writing()
            assert await self.call.read() is grpc.aio.EOF


async def watch(chased: Chase, leg: str, incident_id: str) -> Watched:
    stub = await chased.following(leg)
    call: Any = stub.FollowTargets(metadata=chased.identity(leg), timeout=PATIENCE_S * 3)
    await call.write(following_pb2.FollowTargetsRequest(add_incident_ids=[incident_id]))
    return Watched(call, incident_id)


def at(seen: following_pb2.TargetPosition) -> tuple[float, float]:
    return round(seen.lat_deg, 6), round(seen.lon_deg, 6)


async def advice_of(chased: Chase, incident_id: str) -> list[following_pb2.AdviceGiven]:
    """Waits for advice of an incident, and returns all of it."""
    async with chased.clients.mesh.nats.bus_as("dispatch-warning") as bus, asyncio.timeout(PATIENCE_S):
        async for messages in pull.read(bus, flow.ADVICE.name, 1, subjects=[flow.advice_subject(incident_id)]):
            return [following_pb2.AdviceGiven.FromString(message.data) for message in messages]
    raise AssertionError("the stream ended")


async def test_a_chase_that_turns_to_her_second_place(mesh: RunningMesh, capsys: pytest.CaptureFixture[str]) -> None:
    async with chase(mesh) as chased:
        for leg in ("probation", "police"):
            await chased.put_roster(leg)
        person, home, second = chased.destinations
        await chased.come_home()
        his = await chased.acknowledged("probation", chased.wearer_id)
        for subject_id in (person, home):
            await chased.acknowledged("police", subject_id)
        incident_id = his.incident_id
        assert his.HasField("one_scene_at") and not his.HasField("retargeted_at")

        # The race for her home is lost at once: the car is 4 km away, the wearer 60 m.
        hers = await chased.until("police", "a lost race", lambda a: a.subject_id == home and a.race.losing)
        assert hers.race.supervisor_desk == "supervisor-a"
        assert hers.race.wearer_s < hers.race.responder_s and hers.HasField("one_scene_at")
        advice = await advice_of(chased, incident_id)
        assert {a.advice for a in advice} == {dispatch_pb2.STAY_INSIDE}
        assert {a.subject_id for a in advice} <= {person, home} and list(advice[0].order_ids) == [chased.order_id]

        # Each desk sees the targets of its units.
        theirs, police = await watch(chased, "probation", incident_id), await watch(chased, "police", incident_id)
        await theirs.until(lambda seen: chased.wearer_id in seen and seen[chased.wearer_id].HasField("age_s"))
        await police.until(
            lambda seen: {chased.wearer_id, person, home} <= {id_ for id_, s in seen.items() if s.HasField("lat_deg")}
        )
        assert at(police.seen[home]) == at(police.seen[person]) == tuple(round(x, 6) for x in HOME)
        assert (
            at(theirs.seen[chased.wearer_id]) == at(police.seen[chased.wearer_id])
            and theirs.seen[chased.wearer_id].age_s > 100
        )

        def is_elsewhere(a: dispatch_pb2.Assignment) -> bool:
            # Notified of the new place; or, once the first ring was cleared, re-offered to the unit that is nearest now.
            return a.HasField("retargeted_at") or a.offer_number > his.offer_number

        began_s = time.monotonic()
        async with asyncio.timeout(RETARGETED_WITHIN_S + PATIENCE_S):
            await chased.turn_to_second()
            sent_s = time.monotonic()
            offered, retargeted = await asyncio.gather(
                chased.until(
                    "police", "the second place", lambda a: a.subject_id == second and a.HasField("offered_at")
                ),
                chased.until("probation", "a new place", is_elsewhere),
            )
        took_s = time.monotonic() - sent_s
        with capsys.disabled():
            print(
                f"\nboth legs re-targeted {took_s:.2f} s after the turn was reported ({sent_s - began_s:.2f} s to report it)"
            )
        assert took_s < RETARGETED_WITHIN_S
        assert offered.choice.unit_id == "near-second", "the other car is engaged"
        assert retargeted.assignment_id == his.assignment_id
        await theirs.until(lambda seen: at(seen[chased.wearer_id]) == tuple(round(x, 6) for x in near(SECOND)))
        await police.until(lambda seen: second in seen and seen[second].HasField("lat_deg"))
        assert at(police.seen[second]) == tuple(round(x, 6) for x in SECOND)
        assert set(theirs.seen) == {chased.wearer_id}

        # Both evaluators die: the desks learn that the updates are interrupted, with the last known position and its time.
        killed = mesh.kill("geofence-0", "geofence-1")
        for desk in (theirs, police):
            await desk.until(
                lambda seen: seen[chased.wearer_id].interrupted and seen[chased.wearer_id].HasField("fix_time")
            )
        await mesh.wait_until_returned(killed)
        for desk in (theirs, police):
            await desk.until(lambda seen: not seen[chased.wearer_id].interrupted)

        # The tag reports at the short interval, and at the usual one after the end.
        often = [c.instruction.report_every for c in chased.commanded if is_pursuit(c)]
        assert often and all(0 < c.for_s <= HOLDS_S for c in often)
        intervals = [c for c in chased.commanded if not c.instruction.HasField("show_notice")]
        assert {c.device_id for c in intervals} == {f"tag-{chased.run_id}"}
        assert not any(c.instruction.HasField("report_as_usual") for c in chased.commanded)
        await chased.end_order()
        over = {}
        for leg, subject_id in (
            ("probation", chased.wearer_id),
            ("police", person),
            ("police", home),
            ("police", second),
        ):
            a = await chased.until(
                leg,
                "the end",
                lambda a, to=subject_id: a.subject_id == to and a.state == State.STOOD_DOWN,  # type: ignore[misc]
            )
            over[leg, subject_id] = a.stood_down_kind
        assert len(set(over.values())) == 1 and alert_pb2.ALERT_KIND_UNSPECIFIED not in over.values(), over
        for desk in (theirs, police):
            await desk.to_the_end()
        async with asyncio.timeout(PATIENCE_S):
            # The tag returns to what the decision still needs, or to its usual interval.
            while is_pursuit([c for c in chased.commanded if sets_interval(c)][-1]):  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        after = await watch(chased, "police", incident_id)
        await after.to_the_end()
        assert not after.seen
        assert his.demand == geometry_pb2.RESPOND


def sets_interval(command: ingest_pb2.DeviceCommand) -> bool:
    return command.instruction.WhichOneof("kind") in ("report_every", "report_as_usual")


def is_pursuit(command: ingest_pb2.DeviceCommand) -> bool:
    return command.instruction.report_every.interval_s == 15


async def lasting(*requests: following_pb2.FollowTargetsRequest) -> AsyncIterator[following_pb2.FollowTargetsRequest]:
    """Requests of a stream that stays open."""
    for request in requests:
        yield request
    await asyncio.Event().wait()


async def test_only_the_desk_of_police_or_probation_may_watch_targets(mesh: RunningMesh) -> None:
    async with chase(mesh) as chased:
        for leg in ("probation", "police", "warning"):
            stub = await chased.following(leg)
            for who in DESKS.values():
                mine = who == DESKS[leg] and leg != "warning"
                # A refused call asks nothing: grpc.aio calls a write INTERNAL that meets the refusal on its way.
                asked = [following_pb2.FollowTargetsRequest(add_incident_ids=["incident-none"])] if mine else []
                call: Any = stub.FollowTargets(lasting(*asked), metadata=chased.clients.identity(who), timeout=20)
                try:
                    (event,) = (await call.read()).events
                    answer = event.WhichOneof("what")
                except grpc.aio.AioRpcError as refused:
                    answer = refused.code().name
                assert answer == ("not_followed" if mine else "PERMISSION_DENIED"), (leg, who)
                call.cancel()
        empty: Any = (await chased.following("police")).FollowTargets(metadata=chased.identity("police"), timeout=20)
        await empty.write(following_pb2.FollowTargetsRequest(add_incident_ids=[""]))
        with pytest.raises(grpc.aio.AioRpcError) as invalid:
            await empty.read()
        assert "add_incident_ids[0]" in str(invalid.value.details())
