"""Folds a made-up log of one case. The log starts empty, so it holds only the given positions."""

from __future__ import annotations

from collections.abc import Sequence

from services.geofence.domain import fold
from services.geofence.domain.alerts import Output, SensingRequest
from services.geofence.domain.entries import Body, Case, Entry, Tick
from services.geofence.domain.kinematics.geometry import PlanePolygon
from services.geofence.domain.rules import Rules
from services.geofence.domain.state import State
from services.geofence.domain.version import VERSION

LOG_ID = "what-if"
"""Part of the hash of every id, so that no id equals that of a real alert or incident."""


def play(case: Case, rules: Rules, entries: Sequence[tuple[int, Body]]) -> list[Output]:
    """Returns the alerts and dead letters of a made-up log.

    `entries` are moments (ms since 1970 UTC, in order), each with the entry that arrives then. The case counts from the first moment
    on. Decisions that fall due in between are made on time by ticks, as in a live log.
    """
    # The newest version, so that a duty to wear a tag and removals count. What the fold asks of devices isn't an answer.
    state = State(0, log_id=LOG_ID, rules=rules, log_version=VERSION)
    outputs: list[Output] = []

    def enter(at_ms: int, body: Body) -> None:
        found = fold.step(state, Entry(state.sequence + 1, at_ms, body))
        outputs.extend(output for output in found if not isinstance(output, SensingRequest))

    enter(entries[0][0], case)
    for at_ms, body in entries:
        while (due_ms := fold.next_due_ms(state)) is not None and due_ms < at_ms:
            enter(due_ms, Tick())
        enter(at_ms, body)
    return outputs


def work_of(case: Case, steps: int) -> int:
    """An upper bound of the work of a question: steps times rings times sides of all places. Limiting it limits the run time."""
    places = [target.shape for target in case.targets] + [
        place for encounter in case.encounters for place in encounter.places
    ]
    sides = sum(len(shape.sides) if isinstance(shape, PlanePolygon) else 1 for shape in places)
    return steps * len(case.rings) * sides
