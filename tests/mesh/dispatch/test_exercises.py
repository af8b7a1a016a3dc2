"""Exercises at a leg: only the watch sees canaries, drills are shown as drills, and neither engages a unit."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import grpc
import pytest

from services.common.messaging.bus import Bus
from tandem.common.v1 import alert_pb2, exercise_pb2
from tandem.dispatch.v1 import dispatch_pb2
from tests.support.common.nats import TestServer
from tests.support.dispatch.dispatch import RunningLeg, alert, mark_canary, publish, running, settings
from tests.support.dispatch.receivers import Receiver, configured, receiver_entry, until_queued
from tests.support.dispatch.roster_records import office, put, unit

WATCH = "spiffe://tandem/watch/test"
REVIEWER = "spiffe://tandem/reviewer/test"


def flagged(
    sequence: int, exercise: exercise_pb2.Exercise.ValueType, ends: bool = False, *, incident: str = "incident"
) -> alert_pb2.Alert:
    message = alert(sequence, incident=f"{incident}-{exercise}", ends=ends)
    message.exercise = exercise
    if exercise == exercise_pb2.CANARY:
        mark_canary(message)
    return message


def counted(leg: RunningLeg, metric: str) -> float:
    """Returns the value of a metric of a leg."""
    return sum(sample.value for family in leg.registry.collect() for sample in family.samples if sample.name == metric)


async def test_watch_and_desk_see_and_answer_only_their_own_steps(bus: Bus, nats: TestServer, tmp_path: Path) -> None:
    receiver = Receiver()
    given = settings("police", nats, tmp_path, webhooks=configured(tmp_path, receiver_entry(receiver)))
    canaries, others = "tandem_dispatch_canary_steps_total", "tandem_dispatch_steps_total"
    async with receiver.serving(), running(given) as leg:
        await until_queued(given.exchange_database)
        await put(leg.desk, [office()], [unit("u1")])
        watch = leg.caller(WATCH)
        async with leg.desk.subscription() as at_desk, watch.subscription() as at_watch:
            kinds = (exercise_pb2.CANARY, exercise_pb2.DRILL, exercise_pb2.EXERCISE_UNSPECIFIED)
            await publish(bus, *(flagged(n, kind) for n, kind in enumerate(kinds, start=1)))
            canary = (await at_watch.next_of_any()).step.assignment
            drill = (await at_desk.next_of_any()).step.assignment
            live = (await at_desk.next_of_any()).step.assignment
            assert [assignment.exercise for assignment in (canary, drill, live)] == list(kinds)
            assert not canary.HasField("choice") and not drill.HasField("choice")
            assert live.choice.unit_id == "u1"
            for caller, other in ((watch, drill), (watch, live), (leg.desk, canary)):
                with pytest.raises(grpc.aio.AioRpcError) as refused:
                    await caller.acknowledge(other.assignment_id)
                assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED
            for method, more in (("Reject", {"offer_number": 1, "reason": "no"}), ("Close", {"cause": 5})):
                with pytest.raises(grpc.aio.AioRpcError) as refused:
                    await watch.call(method, assignment_id=canary.assignment_id, **more)
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
            # Offered, acknowledged, stood down. Steps of a drill count with live steps; nobody acknowledged the live one.
            assert (counted(leg, canaries), counted(leg, others)) == (3, 5)
        reviewer = leg.caller(REVIEWER)
        listed = [incident.incident_id for incident in (await reviewer.list()).incidents]
        assert listed == ["incident-0", "incident-1"]
        # A canary can be looked up by its id.
        assert (await reviewer.list(incident_id="incident-2")).incidents[0].assignments[0].exercise == canary.exercise
        # The canary came first, so later deliveries prove that it was skipped.
        await receiver.wait_for(5)
        delivered = [step["step"]["assignment"] for step in receiver.steps()]
        assert {assignment["incident_id"] for assignment in delivered} == {"incident-0", "incident-1"}
        assert {
            assignment.get("exercise") for assignment in delivered if assignment["incident_id"] == "incident-1"
        } == {"DRILL"}


async def test_a_new_only_subscription_gets_waiting_offers_and_new_steps(
    bus: Bus, nats: TestServer, tmp_path: Path
) -> None:
    async with running(settings("police", nats, tmp_path)) as leg:
        async with leg.desk.subscription() as desk:
            await publish(bus, alert(1), alert(2, incident="incident-2"))
            before = [(await desk.next_of_any()).step.assignment.assignment_id for _ in range(2)]
        await leg.desk.acknowledge(before[0])
        async with leg.desk.subscription(new_only=True) as desk:
            repeated = await desk.next_of_any()  # an unanswered offer, without a sequence
            assert (repeated.sequence, repeated.step.assignment.assignment_id) == (0, before[1])
            await publish(bus, alert(3, incident="incident-3"))
            assert (await desk.next_of_any()).step.assignment.incident_id == "incident-3"
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            async with leg.desk.subscription(after_sequence=1, new_only=True) as desk:
                await desk.next_of_any()
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_canaries_of_other_legs_are_sent_only_to_the_watch(bus: Bus, nats: TestServer, tmp_path: Path) -> None:
    async with running(settings("police", nats, tmp_path)) as police, running(settings("probation", nats, tmp_path)):
        watch = police.caller(WATCH)
        async with (
            police.desk.subscription(others=True) as at_desk,
            watch.subscription(others=True) as at_watch,
        ):
            # A subscription gets other legs' assignments only once it is open, which its first step proves.
            kinds = (exercise_pb2.CANARY, exercise_pb2.EXERCISE_UNSPECIFIED)
            await publish(bus, *(flagged(n, kind) for n, kind in enumerate(kinds, start=1)))
            for subscription in (at_watch, at_desk):
                await subscription.next(dispatch_pb2.OFFERED)
            await publish(bus, *(flagged(n, kind, incident="later") for n, kind in enumerate(kinds, start=3)))
            for subscription, kind in zip((at_watch, at_desk), kinds, strict=True):
                legs = set[int]()
                while legs != {alert_pb2.POLICE, alert_pb2.PROBATION}:
                    response = await subscription.next_of_any()
                    assignment = response.other if response.HasField("other") else response.step.assignment
                    assert assignment.exercise == kind
                    if assignment.incident_id == f"later-{kind}":
                        legs.add(assignment.leg)
    with closing(sqlite3.connect(tmp_path / "dispatch-police.sqlite3")) as database:
        assert database.execute("SELECT count(*) FROM incidents WHERE exercise = 2").fetchone() == (2,)
