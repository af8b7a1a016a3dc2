"""Reads and writes the figures of a leg's assignments.

The figures follow from the leg's steps and from the other legs' last assignments, so they can be made again at any time.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import sqlalchemy as sa

from services.common import times
from services.common.storage.rows import RowTarget, write
from services.dispatch.domain.assignment import AssignmentState
from services.dispatch.domain.enums import CloseCause, Task
from services.dispatch.leg.tables import incidents, peers, steps
from services.dispatch.statistics.domain import AssignmentSeen, DispatchOutcome, Measure, ResponseFigures
from services.dispatch.statistics.tables import changed_peers, figures, progress
from tandem.common.v1 import alert_pb2, exercise_pb2
from tandem.dispatch.v1 import dispatch_pb2

PAGE = 40
"""Steps or assignments of other legs that one transaction counts. An offer or a desk's answer waits for it, so it is small."""
_FIGURES = (RowTarget(figures, tuple(column.name for column in figures.columns if not column.primary_key)),)
_PROGRESS = (RowTarget(progress, ("step_sequence",)),)
_STATES = {int(state) for state in AssignmentState}
_CAUSES = {int(cause) for cause in CloseCause}
_TASKS = {int(task) for task in Task}


class CountedPage(NamedTuple):
    """What one transaction counted."""

    steps: int
    """Number of this leg's steps."""
    peers: int
    """Number of other legs' assignments."""

    @property
    def is_full(self) -> bool:
        """Whether more may wait."""
        return PAGE in self


def count_next(connection: sa.Connection) -> CountedPage:
    """Counts the next steps of this leg and the next changed assignments of other legs, within a transaction of the leg's writes."""
    last = connection.scalar(sa.select(progress.c.step_sequence)) or 0
    query = sa.select(steps.c.sequence, steps.c.payload).where(steps.c.sequence > last)
    own = connection.execute(query.order_by(steps.c.sequence).limit(PAGE)).all()
    changed = connection.execute(
        sa.select(changed_peers.c.assignment_id, peers.c.payload)
        .select_from(changed_peers.outerjoin(peers, peers.c.assignment_id == changed_peers.c.assignment_id))
        .limit(PAGE)
    ).all()
    messages = [dispatch_pb2.Step.FromString(row.payload) for row in own]
    messages += [
        dispatch_pb2.Step(assignment=dispatch_pb2.Assignment.FromString(row.payload)) for row in changed if row.payload
    ]
    _fold(connection, [step for step in messages if step.assignment.exercise == exercise_pb2.EXERCISE_UNSPECIFIED])
    if own:
        write(connection, _PROGRESS, ([(1, own[-1].sequence)],))
    if changed:
        ids = [row.assignment_id for row in changed]
        connection.execute(sa.delete(changed_peers).where(changed_peers.c.assignment_id.in_(ids)))
    return CountedPage(len(own), len(changed))


def _fold(connection: sa.Connection, found: Sequence[dispatch_pb2.Step]) -> None:
    """Folds steps into the rows of their assignments. A step of an incident that this leg doesn't know is dated by the step."""
    rows = _known(connection, {step.assignment.assignment_id for step in found})
    opened = _opened(connection, {step.assignment.incident_id for step in found})
    latest: dict[str, dispatch_pb2.Assignment] = {}
    for step in found:
        assignment = step.assignment
        id_ = assignment.assignment_id
        task = Task(assignment.task) if assignment.task in _TASKS else Task.RESPOND
        rows[id_] = rows.get(id_, ResponseFigures(task=task)).after(_seen(step))
        latest[id_] = assignment
    write(
        connection,
        _FIGURES,
        ([_row(latest[id_], rows[id_], opened.get(latest[id_].incident_id)) for id_ in latest],),
    )


def _known(connection: sa.Connection, ids: Iterable[str]) -> dict[str, ResponseFigures]:
    query = sa.select(figures).where(figures.c.assignment_id.in_(list(ids)))
    return {
        row.assignment_id: ResponseFigures(
            task=Task(row.task),
            offered_ms=row.offered_ms,
            received_ms=row.received_ms,
            acknowledged_ms=row.acknowledged_ms,
            arrived_ms=row.arrived_ms,
            arrival_due_ms=row.arrival_due_ms,
            has_arrived=row.has_arrived,
            office_id=row.office_id,
            kind=row.kind,
            outcome=DispatchOutcome(row.outcome),
        )
        for row in connection.execute(query)
    }


def _opened(connection: sa.Connection, ids: Iterable[str]) -> Mapping[str, int]:
    query = sa.select(incidents.c.incident_id, incidents.c.opened_ms).where(incidents.c.incident_id.in_(list(ids)))
    return {id_: opened_ms for id_, opened_ms in connection.execute(query)}


def _seen(step: dispatch_pb2.Step) -> AssignmentSeen:
    assignment = step.assignment
    has_travel = assignment.HasField("choice") and assignment.choice.HasField("travel_s")
    # A newer version of another leg may have states and causes that this version doesn't know.
    known = assignment.state in _STATES
    return AssignmentSeen(
        state=AssignmentState(assignment.state) if known else AssignmentState.NOTIFIED,
        at_ms=times.from_timestamp(step.at) if step.HasField("at") else None,
        offered_ms=times.from_timestamp(assignment.offered_at) if assignment.HasField("offered_at") else None,
        received_ms=times.from_timestamp(assignment.received_at) if assignment.HasField("received_at") else None,
        acknowledged_ms=times.from_timestamp(assignment.acknowledged_at)
        if assignment.HasField("acknowledged_at")
        else None,
        travel_ms=assignment.choice.travel_s * 1000 if has_travel else None,
        office_id=assignment.choice.office_id,
        kind=assignment.kind,
        close_cause=CloseCause(assignment.close_cause) if assignment.close_cause in _CAUSES else None,
    )


def _row(assignment: dispatch_pb2.Assignment, known: ResponseFigures, opened_ms: int | None) -> tuple[object, ...]:
    """The row of an assignment, with the columns of `tables.figures` in their order."""
    if opened_ms is None:
        opened_ms = known.offered_ms or 0
    return (
        assignment.assignment_id,
        assignment.incident_id,
        alert_pb2.Leg.Name(assignment.leg).lower(),
        assignment.subject_id,
        " ".join(assignment.order_ids),
        opened_ms,
        int(known.task),
        known.offered_ms,
        known.received_ms,
        known.acknowledged_ms,
        known.arrived_ms,
        known.arrival_due_ms,
        known.has_arrived,
        known.office_id,
        known.kind,
        int(known.outcome),
        known.took_ms(Measure.RECEIPT),
        known.took_ms(Measure.ACCEPTANCE),
        known.took_ms(Measure.ARRIVAL),
        known.arrived_in_time,
    )
