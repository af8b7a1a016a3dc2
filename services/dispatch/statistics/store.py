"""Reads and writes the figures of a leg's assignments.

The figures follow from the leg's steps and from the other legs' last assignments, so they can be made again at any time.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import sqlalchemy as sa

from services.common import times
from services.common.storage import statements
from services.common.storage.rows import RowTarget, write
from services.common.storage.statements import Prepared
from services.dispatch.domain.assignment import AssignmentState
from services.dispatch.domain.enums import CloseCause, Task
from services.dispatch.leg.tables import peers, steps
from services.dispatch.statistics.domain import AssignmentSeen, DispatchOutcome, Measure, ResponseFigures
from services.dispatch.statistics.tables import changed_peers, figures, progress
from tandem.common.v1 import alert_pb2, exercise_pb2
from tandem.dispatch.v1 import dispatch_pb2

PAGE = 60
"""Steps or assignments of other legs that one transaction counts. An offer or a desk's answer waits for it, so it is small."""
_FIGURES = (RowTarget(figures, tuple(column.name for column in figures.columns if not column.primary_key)),)
_PROGRESS = (RowTarget(progress, ("step_sequence",)),)
_STATES = {int(state) for state in AssignmentState}
_CAUSES = {int(cause) for cause in CloseCause}
_TASKS = {int(task) for task in Task}


class _FoundStep(NamedTuple):
    """A step that isn't counted yet."""

    step: dispatch_pb2.Step
    """For another leg's assignment a step without a time: only its last change is kept."""
    arrived_before: bool = False
    """Whether a change that wasn't kept was an arrival."""


class CountedPage(NamedTuple):
    """Numbers of records that one transaction counted."""

    steps: int
    """Number of this leg's steps."""
    peers: int
    """Number of other legs' assignments."""

    @property
    def is_full(self) -> bool:
        """Whether more may wait."""
        return PAGE in self


class _Counted(NamedTuple):
    """Part of an assignment's row that a step may change."""

    figures: ResponseFigures
    order_ids: str
    """Ids of the orders that the incident concerns, separated by spaces."""


def count_next(connection: sa.Connection) -> CountedPage:
    """Counts the next steps of this leg and the next changed assignments of other legs, within a transaction of the leg's writes."""
    own, changed = _NEXT_STEPS.fetch(connection), _NEXT_PEERS.fetch(connection)
    found = [_FoundStep(dispatch_pb2.Step.FromString(payload)) for _, payload in own]
    found += [
        _FoundStep(dispatch_pb2.Step(assignment=dispatch_pb2.Assignment.FromString(payload)), bool(has_arrived))
        for _, payload, has_arrived in changed
        if payload
    ]
    _fold(connection, [each for each in found if each.step.assignment.exercise == exercise_pb2.EXERCISE_UNSPECIFIED])
    if own:
        last_sequence, _ = own[-1]
        write(connection, _PROGRESS, ([(1, last_sequence)],))
    if changed:
        sql = _FORGET_PEERS[connection.dialect.name]
        statements.execute(connection, sql, [_ids(connection, (assignment_id for assignment_id, *_ in changed))])
    return CountedPage(len(own), len(changed))


def _fold(connection: sa.Connection, found: Sequence[_FoundStep]) -> None:
    """Folds steps into the rows of their assignments. A step of an incident that this leg doesn't know is dated by the step."""
    known = _known(connection, {step.assignment.assignment_id for step, _ in found})
    after: dict[str, _Counted] = {}
    opened = _opened(connection, {step.assignment.incident_id for step, _ in found})
    latest: dict[str, dispatch_pb2.Assignment] = {}
    for step, arrived_before in found:
        assignment = step.assignment
        id_ = assignment.assignment_id
        task = Task(assignment.task) if assignment.task in _TASKS else Task.RESPOND
        before = after.get(id_) or known.get(id_) or _Counted(ResponseFigures(task=task), "")
        after[id_] = _Counted(before.figures.after(_seen(step, arrived_before)), " ".join(assignment.order_ids))
        latest[id_] = assignment
    # Many steps change no figure, such as a departure. The row has many indices, so it costs more than to read it.
    changed = [id_ for id_ in latest if after[id_] != known.get(id_)]
    rows = [_row(latest[id_], after[id_], opened.get(latest[id_].incident_id)) for id_ in changed]
    write(connection, _FIGURES, (rows,))


def _known(connection: sa.Connection, ids: Iterable[str]) -> dict[str, _Counted]:
    rows = statements.fetch(connection, _KNOWN[connection.dialect.name], [_ids(connection, ids)])
    known = {}
    for id_, task, offered_ms, received_ms, acknowledged_ms, arrived_ms, arrival_due_ms, has_arrived, *others in rows:
        office_id, kind, outcome, order_ids = others
        counted = ResponseFigures(
            task=Task(task),
            offered_ms=offered_ms,
            received_ms=received_ms,
            acknowledged_ms=acknowledged_ms,
            arrived_ms=arrived_ms,
            arrival_due_ms=arrival_due_ms,
            has_arrived=bool(has_arrived),
            office_id=office_id,
            kind=kind,
            outcome=DispatchOutcome(outcome),
        )
        known[id_] = _Counted(counted, order_ids)
    return known


def _opened(connection: sa.Connection, ids: Iterable[str]) -> Mapping[str, int]:
    rows = statements.fetch(connection, _OPENED[connection.dialect.name], [_ids(connection, ids)])
    return {incident_id: opened_ms for incident_id, opened_ms in rows}


def _ids(connection: sa.Connection, ids: Iterable[str]) -> object:
    """Ids as a parameter of the statements below."""
    return list(ids) if statements.is_postgresql(connection) else json.dumps(list(ids))


def _seen(step: dispatch_pb2.Step, arrived_before: bool) -> AssignmentSeen:
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
        arrived_before=arrived_before,
    )


def _row(assignment: dispatch_pb2.Assignment, counted: _Counted, opened_ms: int | None) -> tuple[object, ...]:
    """The row of an assignment, with the columns of `tables.figures` in their order."""
    known, order_ids = counted
    if opened_ms is None:
        opened_ms = known.offered_ms or 0
    return (
        assignment.assignment_id,
        assignment.incident_id,
        alert_pb2.Leg.Name(assignment.leg).lower(),
        assignment.subject_id,
        order_ids,
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


def _by_ids(sql: str) -> Mapping[str, str]:
    """A statement for each dialect, whose only parameter are ids."""
    among = {"postgresql": "= ANY($1::VARCHAR[])", "sqlite": "IN (SELECT value FROM json_each(?1))"}
    return {dialect: sql.format(among=condition) for dialect, condition in among.items()}


_NEXT_STEPS = Prepared(
    sa.select(steps.c.sequence, steps.c.payload)
    .where(steps.c.sequence > sa.select(sa.func.coalesce(sa.func.max(progress.c.step_sequence), 0)).scalar_subquery())
    .order_by(steps.c.sequence)
    .limit(PAGE)
)
_NEXT_PEERS = Prepared(
    sa.select(changed_peers.c.assignment_id, peers.c.payload, changed_peers.c.has_arrived)
    .select_from(changed_peers.outerjoin(peers, peers.c.assignment_id == changed_peers.c.assignment_id))
    .limit(PAGE)
)
_FORGET_PEERS = _by_ids("DELETE FROM figures_changed_peers WHERE assignment_id {among}")
_KNOWN = _by_ids(
    "SELECT assignment_id, task, offered_ms, received_ms, acknowledged_ms, arrived_ms, arrival_due_ms, has_arrived, office_id, kind,"
    " outcome, order_ids FROM figures WHERE assignment_id {among}"
)
_OPENED = _by_ids("SELECT incident_id, opened_ms FROM incidents WHERE incident_id {among}")
