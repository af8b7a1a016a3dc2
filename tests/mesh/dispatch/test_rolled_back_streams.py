"""Legs over streams that are rolled back: no alert is skipped or folded twice, and lost steps are republished."""

from __future__ import annotations

import asyncio
import random
import sqlite3
from collections.abc import Awaitable, Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from services.common.messaging import flow
from services.common.messaging.bus import Bus
from services.common.messaging.positions import DeferredPosition
from services.dispatch.leg.tables import StreamPosition
from services.dispatch.settings import DispatchSettings
from tandem.dispatch.v1 import dispatch_pb2
from tandem.dispatch.v1.dispatch_pb2 import ACKNOWLEDGED, OFFERED
from tests.support import torn
from tests.support.common.nats import TestServer
from tests.support.dispatch.dispatch import PATIENCE_S, RunningLeg, alert, publish, running, settings, stored_steps


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "nats"


def tear(nats: TestServer, store: Path, *streams: str) -> None:
    """Kills nats-server, overwrites the last message of each stream, and restarts it."""
    nats.kill()
    for stream in streams:
        torn.overwrite_tail(store, stream, random.Random(1))
    nats.start()


def lost(leg: RunningLeg, stream: str) -> float:
    """Returns the number of lost publications that a leg found."""
    return leg.registry.get_sample_value("tandem_publications_lost_total", {"stream": stream}) or 0.0


def alerts_went_back(leg: RunningLeg) -> float:
    """Returns the number of times that a reader of the leg found ALERTS changed behind it."""
    return leg.registry.get_sample_value("tandem_stream_went_back_total", {"stream": flow.ALERTS.name}) or 0.0


@pytest.fixture
def in_memory(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], Awaitable[None]]:
    """Waits until a leg has a position in ALERTS in its memory or stored. What the server has delivered may never reach the leg."""
    kept, put = asyncio.Condition(), DeferredPosition.put
    newest = 0

    async def noted(deferred: DeferredPosition[Any, StreamPosition], alerts: Sequence[Any], at: StreamPosition) -> None:
        nonlocal newest
        await put(deferred, alerts, at)
        if at.stream == flow.ALERTS.name:
            async with kept:
                newest = at.sequence
                kept.notify_all()

    async def wait(sequence: int) -> None:
        async with asyncio.timeout(PATIENCE_S), kept:
            await kept.wait_for(lambda: newest >= sequence)

    monkeypatch.setattr(DeferredPosition, "put", noted)
    return wait


def position(configured: DispatchSettings) -> int:
    """Returns the stored position of a leg in ALERTS."""
    with closing(sqlite3.connect(configured.data_dir / "dispatch-police.sqlite3")) as database:
        [(sequence,)] = database.execute("select sequence from positions where stream = 'ALERTS'").fetchall()
    return int(sequence)


def reconciled(leg: RunningLeg) -> float:
    """Returns the number of alerts that the police leg found only by reconciliation, and so late."""
    return leg.registry.get_sample_value("tandem_dispatch_reconciled_total", {"leg": "police"}) or 0.0


async def offered(leg: RunningLeg, *incidents: str) -> dict[str, str]:
    """Waits until each incident has an assignment, checks that it has only one, and returns its id."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            assignments = {incident.incident_id: incident.assignments for incident in (await leg.desk.list()).incidents}
            if assignments.keys() >= set(incidents):
                assert all(len([a for a in assignments[id_] if a.leg == 2]) == 1 for id_ in incidents)
                return {id_: assignments[id_][0].assignment_id for id_ in incidents}
            await asyncio.sleep(0.05)


@pytest.mark.parametrize("when", ["under the running leg", "while the leg is away"])
async def test_an_alert_with_the_sequence_of_a_lost_one_is_offered(
    nats: TestServer, bus: Bus, store: Path, police: DispatchSettings, when: str
) -> None:
    async with running(police) as leg:
        await publish(bus, alert(1, incident="incident-1"), alert(2, incident="incident-2"))
        before = await offered(leg, "incident-1", "incident-2")
        await stored_steps(bus, "police", "incident-2", count=1)
        if when == "under the running leg":
            tear(nats, store, flow.ALERTS.name)
            await publish(bus, alert(3, incident="incident-3"))
            assert (await bus.bounds_of(flow.ALERTS.name)).last == 2
            await offered(leg, "incident-3")
            # The evaluators republish the lost alert: the leg knows it.
            await publish(bus, alert(2, incident="incident-2"), alert(4, incident="incident-4"))
            after = await offered(leg, "incident-1", "incident-2", "incident-3", "incident-4")
            assert before.items() <= after.items()
            assert len(await stored_steps(bus, "police", "incident-2", count=1)) == 1
            assert reconciled(leg) == 0
            return
    tear(nats, store, flow.ALERTS.name)
    await publish(bus, alert(3, incident="incident-3"))
    async with running(police) as leg:
        assert before.items() <= (await offered(leg, "incident-1", "incident-2", "incident-3")).items()
        assert reconciled(leg) == 0


@pytest.mark.parametrize("damage", ["the skipped alert is lost", "the stream is rebuilt"])
async def test_after_a_crash_behind_a_skipped_alert_the_alerts_with_its_sequence_are_offered(
    nats: TestServer,
    bus: Bus,
    store: Path,
    police: DispatchSettings,
    tmp_path: Path,
    in_memory: Callable[[int], Awaitable[None]],
    damage: str,
) -> None:
    """The leg ends while the position behind the skipped alert is only in memory."""
    nats.kill()
    torn.copy_of(store, flow.ALERTS.name, tmp_path / "empty")
    nats.start()
    async with running(police) as leg:
        await publish(bus, alert(1, incident="incident-1"))
        before = await offered(leg, "incident-1")
        await publish(bus, alert(2, incident="incident-of-probation", protected=()))
        await in_memory(2)
    assert position(police) == 1
    if damage == "the stream is rebuilt":
        nats.kill()
        torn.put_back(store, flow.ALERTS.name, tmp_path / "empty")
        nats.start()
        await publish(bus, alert(3, incident="incident-3"))
    else:
        tear(nats, store, flow.ALERTS.name)
    await publish(bus, alert(4, incident="incident-4"))
    assert (await bus.bounds_of(flow.ALERTS.name)).last == 2
    async with running(police) as leg:
        after = await offered(leg, "incident-1", "incident-4", *(["incident-3"] if "rebuilt" in damage else []))
        assert before.items() <= after.items() and reconciled(leg) == 0


async def test_a_skipped_position_of_lost_alerts_is_not_stored(
    nats: TestServer, bus: Bus, store: Path, police: DispatchSettings, in_memory: Callable[[int], Awaitable[None]]
) -> None:
    """The position behind the skipped alert is in memory when the stream loses that alert."""
    async with running(police) as leg:
        await publish(bus, alert(1, incident="incident-1"))
        await offered(leg, "incident-1")
        await publish(bus, alert(2, incident="incident-of-probation", protected=()))
        await in_memory(2)
        tear(nats, store, flow.ALERTS.name)
        await publish(bus, alert(3, incident="incident-3"))
        await offered(leg, "incident-3")
        assert position(police) == 2 and alerts_went_back(leg) == 1
        await publish(bus, alert(4, incident="another-of-probation", protected=()))
        async with asyncio.timeout(PATIENCE_S):
            while position(police) < 3:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
    async with running(police) as leg:
        await publish(bus, alert(5, incident="incident-5"))
        await offered(leg, "incident-1", "incident-3", "incident-5")
        assert alerts_went_back(leg) == 0, "the stored position is one of the stream as it is now"


async def test_an_older_stream_store_under_a_running_leg_loses_no_alert_and_no_step(
    nats: TestServer, bus: Bus, store: Path, police: DispatchSettings, tmp_path: Path
) -> None:
    streams = (flow.ALERTS.name, flow.INCIDENTS.name)
    async with running(police) as leg:
        await publish(bus, alert(1, incident="incident-1"))
        await stored_steps(bus, "police", "incident-1", count=1)
        await nats.restart_after(0.0)
        nats.kill()
        for stream in streams:
            torn.copy_of(store, stream, tmp_path / f"older-{stream}")
        nats.start()
        await publish(bus, *(alert(n, incident=f"incident-{n}") for n in range(2, 12)))
        for n in range(2, 12):
            await stored_steps(bus, "police", f"incident-{n}", count=1)
        first = await offered(leg, *(f"incident-{n}" for n in range(1, 12)))
        await leg.desk.acknowledge(first["incident-3"])
        await stored_steps(bus, "police", "incident-3", count=2)
        await asyncio.sleep(1.0)  # until the leg has stored that its steps are published
        count = lost(leg, flow.INCIDENTS.name)
        nats.kill()
        for stream in streams:
            torn.put_back(store, stream, tmp_path / f"older-{stream}")
        nats.start()
        # A new alert gets the sequence of a lost one, and the evaluators republish the lost ones.
        await publish(bus, alert(20, incident="incident-20"))
        await publish(bus, *(alert(n, incident=f"incident-{n}") for n in range(2, 12)))
        after = await offered(leg, *first, "incident-20")
        assert first.items() <= after.items() and len(after) == 12
        for n in (1, *range(2, 12), 20):
            steps = await stored_steps(bus, "police", f"incident-{n}", count=2 if n == 3 else 1)
            assert [step.assignment.state for step in steps] == ([OFFERED, ACKNOWLEDGED] if n == 3 else [OFFERED])
            assert [step.number for step in steps] == list(range(1, len(steps) + 1))
        assert lost(leg, flow.INCIDENTS.name) == count + 11


async def test_a_step_that_incidents_lost_while_the_leg_was_away_is_republished(
    nats: TestServer, bus: Bus, store: Path, police: DispatchSettings, tmp_path: Path
) -> None:
    async with running(police) as leg, running(settings("probation", nats, tmp_path)) as other:
        await publish(bus, alert(1))
        offer = await offered(leg, "incident-1")
        await stored_steps(bus, "police", "incident-1", count=1)
        await stored_steps(bus, "probation", "incident-1", count=1)
        await leg.desk.acknowledge(offer["incident-1"])
        await stored_steps(bus, "police", "incident-1", count=2)
        await peer(other, ACKNOWLEDGED)
        await asyncio.sleep(1.0)
    tear(nats, store, flow.INCIDENTS.name)
    assert (await bus.bounds_of(flow.INCIDENTS.name)).last == 2
    async with running(police), running(settings("probation", nats, tmp_path)) as other:
        steps = await stored_steps(bus, "police", "incident-1", count=2)
        assert [step.number for step in steps] == [1, 2]
        await peer(other, ACKNOWLEDGED)


async def peer(leg: RunningLeg, state: dispatch_pb2.AssignmentState.ValueType) -> None:
    """Waits until the probation leg shows the police's assignment in a state."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            incidents = (await leg.desk.list()).incidents
            if incidents and [assignment.state for assignment in incidents[0].assignments if assignment.leg == 2] == [
                state
            ]:
                return
            await asyncio.sleep(0.05)
