"""Following the target on a whole mesh: a chase that turns, live positions for the desks, pursuit, and the end of it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from typing import Any

import grpc.aio
import pytest

from services.cli.simulate.actors import DESKS
from services.common.messaging import flow, pull
from tandem.common.v1 import alert_pb2, geometry_pb2
from tandem.dispatch.v1 import dispatch_pb2, following_pb2
from tests.support.common.mesh import RunningMesh, running_mesh
from tests.support.dispatch.chase import HOME, PATIENCE_S, SECOND, Chase, beside, chase

RETARGETED_WITHIN_S = 15.0
State = dispatch_pb2.AssignmentState


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningMesh]:
    with running_mesh(tmp_path_factory.mktemp("following") / "mesh") as running:
        yield running


class Watched:
    """What a leg's desk sees of an incident's targets, the newest of each."""

    def __init__(self, call: Any) -> None:
        self.seen: dict[str, following_pb2.WatchTargetsResponse] = {}
        self._call = call

    async def until(self, good: Any) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while not good(self.seen):
                one = await self._call.read()
                assert one is not grpc.aio.EOF, "the stream ended"
                self.seen[one.subject_id] = one

    async def to_the_end(self) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while await self._call.read() is not grpc.aio.EOF:
                pass


async def watch(one: Chase, leg: str, incident_id: str) -> Watched:
    stub = await one.following(leg)
    request = following_pb2.WatchTargetsRequest(incident_id=incident_id)
    return Watched(stub.WatchTargets(request, metadata=one.identity(leg), timeout=PATIENCE_S * 3))


def at(seen: following_pb2.WatchTargetsResponse) -> tuple[float, float]:
    return round(seen.lat_deg, 6), round(seen.lon_deg, 6)


async def advice_of(one: Chase, incident_id: str) -> list[following_pb2.AdviceGiven]:
    """All advice of an incident, once there is any."""
    async with one.clients.mesh.nats.bus_as("dispatch-warning") as bus, asyncio.timeout(PATIENCE_S):
        async for messages in pull.read(bus, flow.ADVICE.name, 1, [flow.advice_subject(incident_id)]):
            return [following_pb2.AdviceGiven.FromString(message.data) for message in messages]
    raise AssertionError("the stream ended")


async def test_a_chase_that_turns_to_her_second_place(mesh: RunningMesh, capsys: pytest.CaptureFixture[str]) -> None:
    async with chase(mesh) as one:
        for leg in ("probation", "police"):
            await one.put_roster(leg)
        person, home, second = one.destinations
        await one.come_home()
        his = await one.taken("probation", one.wearer_id)
        for subject_id in (person, home):
            await one.taken("police", subject_id)
        incident_id = his.incident_id
        assert his.HasField("one_scene_at") and not his.HasField("retargeted_at")

        # The race for her home is lost from the beginning: the car is 4 km away, and the wearer 60 m.
        hers = await one.until("police", "a lost race", lambda a: a.subject_id == home and a.race.losing)
        assert hers.race.supervisor_desk == "supervisor-a"
        assert hers.race.wearer_s < hers.race.responder_s and hers.HasField("one_scene_at")
        advice = await advice_of(one, incident_id)
        assert {a.advice for a in advice} == {dispatch_pb2.STAY_INSIDE}
        assert {a.subject_id for a in advice} <= {person, home} and list(advice[0].order_ids) == [one.order_id]

        # Each desk sees whom its units go to.
        theirs, police = await watch(one, "probation", incident_id), await watch(one, "police", incident_id)
        await theirs.until(lambda seen: one.wearer_id in seen and seen[one.wearer_id].HasField("age_s"))
        await police.until(
            lambda seen: {one.wearer_id, person, home} <= {id_ for id_, s in seen.items() if s.HasField("lat_deg")}
        )
        assert at(police.seen[home]) == at(police.seen[person]) == tuple(round(x, 6) for x in HOME)
        assert (
            at(theirs.seen[one.wearer_id]) == at(police.seen[one.wearer_id]) and theirs.seen[one.wearer_id].age_s > 100
        )

        def is_elsewhere(a: dispatch_pb2.Assignment) -> bool:
            # Told of the new place; or, once the first ring was cleared, asked anew with whoever is nearest to it now.
            return a.HasField("retargeted_at") or a.offer_number > his.offer_number

        began_s = time.monotonic()
        async with asyncio.timeout(RETARGETED_WITHIN_S + PATIENCE_S):
            await one.turn_to_second()
            sent_s = time.monotonic()
            offered, told = await asyncio.gather(
                one.until("police", "the second place", lambda a: a.subject_id == second and a.HasField("offered_at")),
                one.until("probation", "a new place", is_elsewhere),
            )
        took_s = time.monotonic() - sent_s
        with capsys.disabled():
            print(
                f"\nboth legs re-targeted {took_s:.2f} s after the turn was reported ({sent_s - began_s:.2f} s to report it)"
            )
        assert took_s < RETARGETED_WITHIN_S
        assert offered.choice.unit_id == "near-second", "the other car has a destination of its own"
        assert told.assignment_id == his.assignment_id
        await theirs.until(lambda seen: at(seen[one.wearer_id]) == tuple(round(x, 6) for x in beside(SECOND)))
        await police.until(lambda seen: second in seen and seen[second].HasField("lat_deg"))
        assert at(police.seen[second]) == tuple(round(x, 6) for x in SECOND)
        assert set(theirs.seen) == {one.wearer_id}

        # Both evaluators die: the desks are told how old the position is, and that a newer one may exist.
        killed = mesh.kill("geofence-0", "geofence-1")
        for desk in (theirs, police):
            await desk.until(lambda seen: seen[one.wearer_id].interrupted and seen[one.wearer_id].age_s > 0)
        await mesh.wait_until_returned(killed)
        for desk in (theirs, police):
            await desk.until(lambda seen: not seen[one.wearer_id].interrupted)

        # The tag reports often, and as usual again once it is over.
        often = [c.instruction.report_every for c in one.commanded if c.instruction.HasField("report_every")]
        assert often and {(c.interval_s, c.for_s) for c in often} == {(15, 300)}
        intervals = [c for c in one.commanded if not c.instruction.HasField("show_notice")]
        assert {c.device_id for c in intervals} == {f"tag-{one.run_id}"}
        assert not any(c.instruction.HasField("report_as_usual") for c in one.commanded)
        await one.end_order()
        over = {}
        for leg, subject_id in (("probation", one.wearer_id), ("police", person), ("police", home), ("police", second)):
            a = await one.until(
                leg,
                "the end",
                lambda a, to=subject_id: a.subject_id == to and a.state == State.STOOD_DOWN,  # type: ignore[misc]
            )
            over[leg, subject_id] = a.stood_down_kind
        assert len(set(over.values())) == 1 and alert_pb2.ALERT_KIND_UNSPECIFIED not in over.values(), over
        for desk in (theirs, police):
            await desk.to_the_end()
        async with asyncio.timeout(PATIENCE_S):
            while not any(c.instruction.HasField("report_as_usual") for c in one.commanded):  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await (await watch(one, "police", incident_id)).to_the_end()
        assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        assert his.demand == geometry_pb2.RESPOND


async def test_who_may_watch_targets_and_who_may_not(mesh: RunningMesh) -> None:
    async with chase(mesh) as one:
        for leg in ("probation", "police", "warning"):
            stub = await one.following(leg)
            for who in DESKS.values():
                stream: Any = stub.WatchTargets(
                    following_pb2.WatchTargetsRequest(incident_id="incident-none"),
                    metadata=one.clients.identity(who),
                    timeout=20,
                )
                with pytest.raises(grpc.aio.AioRpcError) as refused:
                    await stream.read()
                mine = who == DESKS[leg] and leg != "warning"
                expected = grpc.StatusCode.FAILED_PRECONDITION if mine else grpc.StatusCode.PERMISSION_DENIED
                assert refused.value.code() is expected, (leg, who)
        empty: Any = (await one.following("police")).WatchTargets(
            following_pb2.WatchTargetsRequest(), metadata=one.identity("police"), timeout=20
        )
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await empty.read()
        assert "incident_id" in str(refused.value.details())
