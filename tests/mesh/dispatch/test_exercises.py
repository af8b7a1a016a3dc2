"""What a leg does of an exercise: canaries are the watch's alone, drills are shown as what they are, and neither takes a unit."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing
from pathlib import Path

import grpc
import pytest
from prometheus_client import REGISTRY

from services.common.messaging.bus import Bus
from tandem.common.v1 import alert_pb2, exercise_pb2
from tandem.dispatch.v1 import dispatch_pb2
from tests.mesh.dispatch.test_roster import office, put, unit
from tests.mesh.dispatch.test_webhooks import Receiver, configured, handed, one
from tests.support.common.nats import TestServer
from tests.support.dispatch.dispatch import alert, publish, running, settings

WATCH = "spiffe://tandem/watch/test"
REVIEWER = "spiffe://tandem/reviewer/test"


def flagged(sequence: int, exercise: exercise_pb2.Exercise.ValueType, ends: bool = False) -> alert_pb2.Alert:
    message = alert(sequence, incident=f"incident-{exercise}", ends=ends)
    message.exercise = exercise
    return message


def counted(metric: str) -> float:
    """What this process, in which the leg runs, has counted."""
    return sum(sample.value for family in REGISTRY.collect() for sample in family.samples if sample.name == metric)


async def test_each_sees_and_answers_its_own(bus: Bus, nats: TestServer, tmp_path: Path) -> None:
    receiver = Receiver()
    given = settings("police", nats, tmp_path, webhooks=configured(tmp_path, one(receiver)))
    canaries, others = "tandem_dispatch_canary_steps_total", "tandem_dispatch_steps_total"
    before = counted(canaries), counted(others)
    async with receiver.serving(), running(given) as leg:
        await handed(given.exchange_database)
        await put(leg.desk, [office()], [unit("u1")])
        watch = leg.caller(WATCH)
        async with leg.desk.subscription() as at_desk, watch.subscription() as at_watch:
            kinds = (exercise_pb2.CANARY, exercise_pb2.DRILL, exercise_pb2.EXERCISE_UNSPECIFIED)
            await publish(bus, *(flagged(n, kind) for n, kind in enumerate(kinds, start=1)))
            canary = (await at_watch.next_of_any()).step.assignment
            drill = (await at_desk.next_of_any()).step.assignment
            earnest = (await at_desk.next_of_any()).step.assignment
            assert [one.exercise for one in (canary, drill, earnest)] == list(kinds)
            assert not canary.HasField("choice") and not drill.HasField("choice")
            assert earnest.choice.unit_id == "u1"
            for caller, other in ((watch, drill), (watch, earnest), (leg.desk, canary)):
                with pytest.raises(grpc.aio.AioRpcError) as refused:
                    await caller.acknowledge(other.assignment_id)
                assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED
            for method, more in (("Reject", {"offer_number": 1, "reason": "no"}), ("Close", {"cause": 5})):
                with pytest.raises(grpc.aio.AioRpcError) as refused:
                    await watch.tell(method, assignment_id=canary.assignment_id, **more)
                assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await watch.list()
            assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED
            assert (await watch.acknowledge(canary.assignment_id)).state == dispatch_pb2.ACKNOWLEDGED
            assert (await leg.desk.acknowledge(drill.assignment_id)).exercise == exercise_pb2.DRILL
            await publish(bus, *(flagged(9 + n, kind, ends=True) for n, kind in enumerate(kinds)))
            assert (await at_watch.next(dispatch_pb2.STOOD_DOWN)).step.assignment.exercise == exercise_pb2.CANARY
            over = [(await at_desk.next(dispatch_pb2.STOOD_DOWN)).step.assignment.exercise for _ in range(2)]
            assert over == list(kinds[1:])
            # Offered, taken, over; a drill's steps are counted with those in earnest, of which nobody took the one.
            assert (counted(canaries) - before[0], counted(others) - before[1]) == (3, 5)
        reviewer = leg.caller(REVIEWER)
        listed = [incident.incident_id for incident in (await reviewer.list()).incidents]
        assert listed == ["incident-0", "incident-1"]
        # Who knows its id may look it up.
        assert (await reviewer.list(incident_id="incident-2")).incidents[0].assignments[0].exercise == canary.exercise
        # The canary came first, so what is delivered last says that it was passed over.
        await receiver.wait_for(5)
        told = [step["step"]["assignment"] for step in receiver.steps()]
        assert {one["incident_id"] for one in told} == {"incident-0", "incident-1"}
        assert {one.get("exercise") for one in told if one["incident_id"] == "incident-1"} == {"DRILL"}


async def test_a_desk_and_a_watch_that_want_only_what_is_new(bus: Bus, nats: TestServer, tmp_path: Path) -> None:
    async with running(settings("police", nats, tmp_path)) as leg:
        async with leg.desk.subscription() as desk:
            await publish(bus, alert(1), alert(2, incident="incident-2"))
            before = [(await desk.next_of_any()).step.assignment.assignment_id for _ in range(2)]
        await leg.desk.acknowledge(before[0])
        async with leg.desk.subscription(new_only=True) as desk:
            again = await desk.next_of_any()  # what waits for an answer, without a place
            assert (again.sequence, again.step.assignment.assignment_id) == (0, before[1])
            await publish(bus, alert(3, incident="incident-3"))
            assert (await desk.next_of_any()).step.assignment.incident_id == "incident-3"
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            async with leg.desk.subscription(after_sequence=1, new_only=True) as desk:
                await desk.next_of_any()
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_other_legs_canaries_are_told_to_the_watch_alone(bus: Bus, nats: TestServer, tmp_path: Path) -> None:
    async with running(settings("police", nats, tmp_path)) as police, running(settings("probation", nats, tmp_path)):
        watch = police.caller(WATCH)
        async with (
            police.desk.subscription(others=True) as at_desk,
            watch.subscription(others=True) as at_watch,
        ):
            await asyncio.sleep(0.5)  # both are there before anything happens
            await publish(bus, flagged(1, exercise_pb2.CANARY), flagged(2, exercise_pb2.EXERCISE_UNSPECIFIED))
            for subscription, kind in ((at_watch, exercise_pb2.CANARY), (at_desk, exercise_pb2.EXERCISE_UNSPECIFIED)):
                both = [await subscription.next_of_any() for _ in range(2)]
                seen = [one.other if one.HasField("other") else one.step.assignment for one in both]
                assert {(one.exercise, one.leg) for one in seen} == {
                    (kind, alert_pb2.POLICE),
                    (kind, alert_pb2.PROBATION),
                }
    with closing(sqlite3.connect(tmp_path / "dispatch-police.sqlite3")) as database:
        assert database.execute("SELECT count(*) FROM incidents WHERE exercise = 2").fetchone() == (1,)
