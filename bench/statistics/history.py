"""A year of stored incidents in the police leg's database: steps of two assignments each, and the other legs' assignments."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

import sqlalchemy as sa

from services.common.storage.rows import RowTarget, write
from services.dispatch.leg import tables
from services.dispatch.leg.tables import figures_changed_peers
from tandem.common.v1 import alert_pb2, geometry_pb2
from tandem.dispatch.v1 import dispatch_pb2

YEAR_MS = 365 * 86_400_000
OFFICES = 30
PEOPLE = 5_000
CAUSES = (
    *(dispatch_pb2.BREACH_CONFIRMED, dispatch_pb2.FALSE_POSITION, dispatch_pb2.EQUIPMENT, dispatch_pb2.NOBODY_FOUND),
    dispatch_pb2.CLOSE_CAUSE_UNSPECIFIED,
)
_KINDS = (alert_pb2.RING_ENTERED, alert_pb2.TAMPERED, alert_pb2.SILENT)
_TARGETS = (
    RowTarget(tables.incidents, ()),
    RowTarget(tables.steps, ()),
    RowTarget(tables.peers, ()),
    RowTarget(figures_changed_peers, ()),
)


def store(connection: sa.Connection, numbers: Sequence[int], *, count: int, end_ms: int) -> None:
    """Stores the incidents with these numbers, of `count` that are spread over the year before `end_ms`."""
    incidents: list[tuple[object, ...]] = []
    steps: list[tuple[object, ...]] = []
    peers: list[tuple[object, ...]] = []
    for number in numbers:
        rng = random.Random(number)
        opened_ms = end_ms - YEAR_MS + number * YEAR_MS // count
        incident_id = f"incident-{number}"
        incidents.append((incident_id, number + 1, opened_ms, opened_ms + 900_000, "[]", 0))
        person = f"person-{rng.randrange(PEOPLE)}"
        for place, subject_id in enumerate((person, f"order-{number % PEOPLE}/home")):
            for offset, step in enumerate(
                _steps(rng, f"own-{number}-{place}", incident_id, opened_ms=opened_ms, subject_id=subject_id)
            ):
                sequence = number * 20 + place * 10 + offset + 1
                steps.append(
                    (sequence, f"step-{sequence}", step.assignment.assignment_id, step.SerializeToString(), True)
                )
        for leg, subject_id in ((alert_pb2.PROBATION, f"wearer-{rng.randrange(PEOPLE)}"), (alert_pb2.WARNING, person)):
            *_, last = _steps(rng, f"peer-{number}-{leg}", incident_id, opened_ms=opened_ms, subject_id=subject_id)
            last.assignment.leg = leg
            last.assignment.ClearField("choice")
            peers.append((last.assignment.assignment_id, incident_id, last.number, last.assignment.SerializeToString()))
    write(connection, _TARGETS, (incidents, steps, peers, [(row[0], False) for row in peers]))


def _steps(
    rng: random.Random, id_: str, incident_id: str, *, opened_ms: int, subject_id: str
) -> Iterator[dispatch_pb2.Step]:
    """Steps of an assignment, from its offer to its end."""
    assignment = dispatch_pb2.Assignment(
        assignment_id=id_,
        incident_id=incident_id,
        leg=alert_pb2.POLICE,
        subject_id=subject_id,
        order_ids=[f"order-{rng.randrange(PEOPLE)}"],
        demand=geometry_pb2.RESPOND,
        kind=rng.choice(_KINDS),
        choice=dispatch_pb2.Choice(office_id=f"office-{rng.randrange(OFFICES)}", travel_s=rng.randrange(60, 900)),
        offer_number=1,
    )
    at_ms, number = opened_ms + 500, 0
    moments = [
        (dispatch_pb2.OFFERED, 0, "offered_at"),
        (dispatch_pb2.OFFERED, rng.randrange(100, 6_000), "received_at"),
        (dispatch_pb2.ACKNOWLEDGED, int(rng.lognormvariate(9.5, 0.7)), "acknowledged_at"),
        (dispatch_pb2.EN_ROUTE, rng.randrange(10_000, 90_000), ""),
    ]
    if rng.random() < 0.7:
        moments.append((dispatch_pb2.ON_SCENE, int(rng.lognormvariate(12.6, 0.5)), ""))
    moments.append((dispatch_pb2.CLOSED, rng.randrange(60_000, 600_000), ""))
    for state, after_ms, field in moments:
        at_ms, number = at_ms + after_ms, number + 1
        assignment.state = state
        if field:
            getattr(assignment, field).FromMilliseconds(at_ms)
        if field == "acknowledged_at":
            assignment.sent_at.FromMilliseconds(at_ms)
        if state == dispatch_pb2.CLOSED:
            assignment.close_cause = rng.choice(CAUSES)
        step = dispatch_pb2.Step(step_id=f"{id_}-{number}", assignment=assignment, number=number)
        step.at.FromMilliseconds(at_ms)
        yield step
