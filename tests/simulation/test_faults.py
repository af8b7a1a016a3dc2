"""Faults strike at their moment, leave the mesh alone where a deadline must show their harm, and a world always ends."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.common.messaging import flow
from tandem.common.v1 import alert_pb2, geometry_pb2
from tandem.dispatch.v1 import dispatch_pb2
from tests.simulation.kernel.journal import Journal
from tests.simulation.kernel.world import World
from tests.simulation.mesh.faults import Faults
from tests.simulation.mesh.moments import Moment, Strike, moments_of
from tests.simulation.mesh.processes import Mesh


class Waiting:
    """Faults of a world without services. Each strike notes its name."""

    def __init__(self, folder: Path) -> None:
        self.world = World(0)
        self.faults = Faults(Mesh(self.world, folder, Journal(self.world)), duration_s=2_000.0, torn_tails=False)
        self.struck: list[str] = []

    def arm(self, name: str, moment: Moment, *, process: str = "", rests_s: float = 0.0) -> None:
        """Lets a strike wait for its moment."""

        def make() -> float:
            self.struck.append(name)
            return 0.0

        self.faults._arm(Strike(moment, name, 0.01, make, process=process, rests_s=rests_s))

    def come(self, moment: Moment, process: str = "") -> None:
        """Lets a moment come, and a second pass."""
        self.faults.moment(moment, process)
        self.world.run(self.world.elapsed_s + 1.0)


@pytest.fixture
def waiting(tmp_path: Path) -> Waiting:
    return Waiting(tmp_path)


def test_a_strike_waits_for_the_moment_of_its_process(waiting: Waiting) -> None:
    waiting.arm("police", Moment.OFFER, process="dispatch-police")
    waiting.come(Moment.STEP)
    waiting.come(Moment.OFFER, "dispatch-probation")
    assert not waiting.struck
    waiting.come(Moment.OFFER, "dispatch-police")
    waiting.come(Moment.OFFER, "dispatch-police")
    assert waiting.struck == ["police"]


def test_no_fault_follows_a_strike_whose_harm_shows_at_a_deadline(waiting: Waiting) -> None:
    waiting.arm("crash", Moment.OFFER, rests_s=75.0)
    waiting.arm("cut", Moment.ALERT)
    waiting.arm("late", Moment.DEMAND)
    waiting.come(Moment.OFFER)
    waiting.come(Moment.ALERT)
    waiting.world.run(80.0)
    waiting.come(Moment.DEMAND)
    assert waiting.struck == ["crash", "late"]


@pytest.mark.parametrize(
    ("stream", "content", "expected"),
    [
        (flow.ALERTS.name, alert_pb2.Alert(demand=geometry_pb2.WARN), [(Moment.ALERT, "")]),
        (
            flow.ALERTS.name,
            alert_pb2.Alert(demand=geometry_pb2.RESPOND),
            [(Moment.ALERT, ""), (Moment.DEMAND, "")],
        ),
        (
            flow.INCIDENTS.name,
            dispatch_pb2.Step(assignment=dispatch_pb2.Assignment(state=dispatch_pb2.OFFERED, leg=alert_pb2.POLICE)),
            [(Moment.STEP, ""), (Moment.OFFER, "dispatch-police")],
        ),
        (flow.MEASURES.name, alert_pb2.Measure(), []),
    ],
)
def test_stored_messages_are_moments(
    stream: str, content: alert_pb2.Alert | dispatch_pb2.Step | alert_pb2.Measure, expected: list[tuple[Moment, str]]
) -> None:
    assert list(moments_of(stream, content.SerializeToString())) == expected


def test_a_world_whose_time_stands_still_ends() -> None:
    world = World(0)

    def repeat() -> None:
        world.after(0.0, repeat)

    world.after(1.0, repeat)
    world.run(10.0)
    assert world.is_stuck
    assert world.elapsed_s == 1.0
