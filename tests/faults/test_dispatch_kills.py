"""SIGKILL of each leg, its database server and nats-server, at random moments while incidents open.

Under all kills, every demand is acknowledged or escalated by its deadline, with one assignment each, in an unbroken chain. Each step
is on INCIDENTS once. The random choices follow from a seed.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import pytest

from bench.figures import percentile
from services.common.messaging import flow
from services.common.messaging.bus import Bus
from services.common.retrying import retried
from services.dispatch.domain.assignment import assignment_id
from services.dispatch.domain.events import Acknowledged, Escalated, Event, Offered
from services.dispatch.domain.leg import Leg
from services.dispatch.leg.store import Store
from tests.conftest import ENGINES
from tests.support.common.nats import TestServer
from tests.support.common.postgres import PostgresServer, running_postgres
from tests.support.dispatch.dispatch import alert, publish
from tests.support.dispatch.legs import Answering, LegMesh, kill_at_random, published_steps, running_legs

PERSONS = ("p1", "p2")
SUBJECTS = {"probation": ("w1",), "police": PERSONS, "warning": PERSONS}
CHECK_INTERVAL_S, MAX_CHECKS = 0.3, 500
"""Interval in seconds and maximum number of checks. Checks are counted, not time, so that a pause of the machine fails no test."""


@pytest.fixture(params=ENGINES)
async def engine(request: pytest.FixtureRequest) -> AsyncIterator[PostgresServer | None]:
    """A separate PostgreSQL server, because the test kills it; None for SQLite."""
    if request.param == "sqlite":
        yield None
    else:
        with running_postgres() as server:
            yield server


def is_ignored(key: str) -> bool:
    """Whether the desk ignores an offer until its deadline; true for one of seven."""
    return random.Random(key).randrange(7) == 0


def is_settled(leg: str, incident_id: str, events: list[Event]) -> bool:
    """Whether each demand of the incident was acknowledged or escalated."""
    answered = {event.assignment_id for event in events if isinstance(event, Acknowledged | Escalated)}
    return answered == {assignment_id(incident_id, Leg(leg), subject_id) for subject_id in SUBJECTS[leg]}


async def unsettled(leg: str, store: Store, ids: list[str]) -> str:
    """The missing incidents and steps as text; empty where all incidents are settled and all steps are on INCIDENTS."""
    events = await retried(partial(store.transaction, partial(store.events, incident_ids=ids)))
    waiting = [id_ for id_ in ids if id_ not in events or not is_settled(leg, id_, events[id_])]
    unpublished = await retried(store.unpublished)
    if not waiting and not unpublished:
        return ""
    return (
        f"{len(waiting)} incidents aren't settled, such as {waiting[:3]}; {len(unpublished)} steps aren't on INCIDENTS"
    )


def late_ms(events: list[Event], id_: str) -> list[int]:
    """Delay after each deadline of an assignment, milliseconds. Asserts that each deadline fires once and not early."""
    delays_ms, due_ms = [], None
    for event in (event for event in events if getattr(event, "assignment_id", None) == id_):
        if isinstance(event, Escalated):
            assert due_ms is not None and event.at_ms >= due_ms, "a deadline fired early, or twice"
            delays_ms.append(event.at_ms - due_ms)
        if isinstance(event, Offered | Escalated):
            due_ms = event.due_ms
    return delays_ms


async def play(mesh: LegMesh, bus: Bus, seed: int, incidents: int, interval_s: float, kill_within_s: float) -> str:
    """Opens incidents while processes are killed, waits until all are settled, stops the legs and checks their records."""
    rng, killed = random.Random(seed), dict[str, int]()
    ids = [f"incident-{n}" for n in range(1, incidents + 1)]
    desks = {leg: Answering(leg, is_ignored) for leg in flow.LEGS}
    async with asyncio.TaskGroup() as tasks:
        following = [tasks.create_task(desk.run(mesh.settings[leg])) for leg, desk in desks.items()]
        killing = tasks.create_task(kill_at_random(mesh, random.Random(seed + 1), kill_within_s, killed=killed))
        for n, incident_id in enumerate(ids, 1):
            await publish(bus, alert(n, incident=incident_id, protected=PERSONS))
            await asyncio.sleep(rng.uniform(0, 2 * interval_s))
        killing.cancel()
        await asyncio.gather(killing, return_exceptions=True)
        for leg in flow.LEGS:
            async with mesh.store(leg) as store:
                left = "nothing was checked"
                for _ in range(MAX_CHECKS):
                    left = await unsettled(leg, store, ids)
                    if not left:
                        break
                    await asyncio.sleep(CHECK_INTERVAL_S)
                assert not left, f"{leg}: {left}"
        for task in following:
            task.cancel()
    for service in mesh.legs.values():
        assert service.runs and service.stop() == 0
    lateness = [late for leg in flow.LEGS for late in await checked_leg(mesh, bus, leg, ids=ids)]
    counts = ", ".join(f"{name} {count}" for name, count in sorted(killed.items()))
    return (
        f"seed {seed}: {incidents} incidents, {sum(killed.values())} kills ({counts}); {len(lateness)} deadlines fired,"
        f" late by p50 {percentile(lateness, 50):.0f} ms, p99 {percentile(lateness, 99):.0f} ms, at most {max(lateness)} ms"
    )


async def checked_leg(mesh: LegMesh, bus: Bus, leg: str, *, ids: list[str]) -> list[int]:
    """Delays after the deadlines of a stopped leg, milliseconds. Asserts that it offered each assignment once and published its
    steps."""
    lateness: list[int] = []
    written = await mesh.events(leg, ids)
    expected = {assignment_id(id_, Leg(leg), subject_id) for id_ in ids for subject_id in SUBJECTS[leg]}
    offered = Counter(
        event.assignment_id for events in written.values() for event in events if isinstance(event, Offered)
    )
    assert offered == dict.fromkeys(expected, 1), f"{leg}: an assignment is missing, or is there twice"
    steps = await published_steps(bus, leg)
    numbers = Counter((step.assignment.assignment_id, step.number) for step in steps)
    rows = await mesh.read(leg, lambda connection, store: store.steps_within(connection, 0))
    assert set(numbers.values()) == {1}, f"{leg}: a step is on INCIDENTS twice"
    async with mesh.store(leg) as store:  # the leg may have been stopped between a commit and its publication
        unsent = {row.step_id for row in await store.unpublished()}
    published = {step.step_id for step in steps}
    assert published <= {row.step_id for row in rows} <= published | unsent, f"{leg}: INCIDENTS lacks a step"
    for incident_id, events in written.items():
        for subject_id in SUBJECTS[leg]:
            id_ = assignment_id(incident_id, Leg(leg), subject_id)
            lateness += late_ms(events, id_)
            if is_ignored(f"{incident_id}/{subject_id}"):
                assert not any(isinstance(event, Acknowledged) and event.assignment_id == id_ for event in events)
    return lateness


async def test_a_few_incidents_under_kills(
    tmp_path: Path, nats: TestServer, bus: Bus, engine: PostgresServer | None
) -> None:
    with running_legs(tmp_path, nats, engine, acknowledge_within_s=2) as mesh:
        print(await play(mesh, bus, seed=6, incidents=10, interval_s=0.4, kill_within_s=1.5))


@pytest.mark.soak
@pytest.mark.parametrize("seed", [1, 2])
async def test_300_incidents_under_kills(
    tmp_path: Path, nats: TestServer, bus: Bus, engine: PostgresServer | None, seed: int
) -> None:
    with running_legs(tmp_path, nats, engine, acknowledge_within_s=5) as mesh:
        print(await play(mesh, bus, seed, incidents=300, interval_s=0.35, kill_within_s=2.5))
