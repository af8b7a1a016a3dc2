"""What the fold would say to a made-up log of one case. It begins from nothing: no position of anybody is in it but those given."""

from __future__ import annotations

from collections.abc import Sequence

from services.geofence.domain import fold
from services.geofence.domain.alerts import Output
from services.geofence.domain.entries import Body, Case, Entry, Tick
from services.geofence.domain.kinematics.geometry import PlanePolygon
from services.geofence.domain.rules import Rules
from services.geofence.domain.state import State

LOG_ID = "what-if"
"""Part of the cause of every id, so that none is that of a real alert or incident."""


def play(case: Case, rules: Rules, entries: Sequence[tuple[int, Body]]) -> list[Output]:
    """Alerts and what is set aside. `entries` are moments, ms since 1970 UTC, in order, and what arrives then; the case stands from
    the first one on. What is due in between is decided when it is due, as ticks do it in earnest."""
    state = State(0, log_id=LOG_ID, rules=rules)
    found: list[Output] = []

    def enter(at_ms: int, body: Body) -> None:
        found.extend(fold.step(state, Entry(state.sequence + 1, at_ms, body)))

    enter(entries[0][0], case)
    for at_ms, body in entries:
        while (due_ms := fold.next_due_ms(state)) is not None and due_ms < at_ms:
            enter(due_ms, Tick())
        enter(at_ms, body)
    return found


def work_of(case: Case, steps: int) -> int:
    """How many sides are measured against how many rings, at most: what bounds the time it takes."""
    places = [target.shape for target in case.targets] + [
        place for encounter in case.encounters for place in encounter.places
    ]
    sides = sum(len(shape.sides) if isinstance(shape, PlanePolygon) else 1 for shape in places)
    return steps * len(case.rings) * sides
