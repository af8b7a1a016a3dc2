"""SIGKILL of each process at each step of the demo story, and of both evaluators and nats-server together.

After each kill the process returns, both legs are acknowledged, and there is one assignment for each leg and destination.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import pytest

from services.client import demo, outcome
from services.client import mesh as meshes
from services.local.processes import SERVICES
from tests.support.common.mesh import RunningMesh, running_mesh

PROCESSES = ("nats", *(service.name for service in SERVICES))
STEPS = tuple(name for name, _, _ in demo.STEPS)
KILL_AFTER_S = 0.005
"""Delay of the kill after the begin of a step, seconds; the first call of the step is then pending."""


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningMesh]:
    with running_mesh(tmp_path_factory.mktemp("mesh") / "m") as running:
        yield running


def short_plan() -> demo.Plan:
    """Plan of the demo story with few positions at short intervals."""
    plan = demo.new_plan()
    return demo.Plan(
        run_id=plan.run_id,
        national_id=plan.national_id,
        pace_s=0.2,
        clear_after_s=1,
        to_2_km=(1900,),
        to_1_km=(950,),
        to_100_m=(60, 58),  # the first is a position jump, and the second confirms it
        # Faster than any person. The plausibility test accepts it, because the tag has no more than four known positions.
        away=(3500,),
    )


async def play_and_kill(mesh: RunningMesh, victims: Mapping[str, Sequence[str]]) -> None:
    """Plays the story, kills at the begin of each step the processes that `victims` names for it, and checks the outcome."""
    killed: dict[str, int] = {}
    left = dict(victims)

    def kill(step: str) -> None:
        killed.update(mesh.kill(*left.pop(step)))

    async with meshes.connect(mesh.now) as clients, demo.stage(clients, short_plan()) as stage:
        async for event in demo.play(stage):
            if isinstance(event, demo.Begun) and event.name in victims:
                # The process killed before runs again, but it may not serve yet.
                await mesh.wait_until_returned(killed)
                asyncio.get_running_loop().call_later(KILL_AFTER_S, kill, event.name)
        assert not left
        await mesh.wait_until_returned(killed)
        (incident,) = await demo.settled(stage)
        incidents = await outcome.read(clients, {stage.order_id})
    assert incident.answered
    assert [outcome.incident_id for outcome in incidents] == [incident.incident_id]
    assignments = Counter((answer.leg, answer.destination) for answer in incident.answers)
    assert assignments == {
        ("probation", stage.wearer_id): 1,
        ("police", stage.person_id): 1,
        ("police", stage.home_destination): 1,
        ("warning", stage.person_id): 1,
    }


# Round r kills process r + s at step s, so the rounds together kill each process at each step.
@pytest.mark.parametrize("first", range(len(PROCESSES)), ids=PROCESSES)
async def test_each_process_at_each_step(mesh: RunningMesh, first: int) -> None:
    victims = {step: [PROCESSES[(first + n) % len(PROCESSES)]] for n, step in enumerate(STEPS)}
    await play_and_kill(mesh, victims)


@pytest.mark.parametrize("step", ["order", "respond", "stand-down"])
async def test_both_evaluators_and_nats_together(mesh: RunningMesh, step: str) -> None:
    await play_and_kill(mesh, {step: ["nats", "geofence-0", "geofence-1"]})
