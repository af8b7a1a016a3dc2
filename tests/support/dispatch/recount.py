"""Random incidents of the police leg, with repeated and corrected steps, and a plain recount of their statistics."""

from __future__ import annotations

import itertools
import random
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import sqlalchemy as sa

from services.common.storage.rows import RowTarget, write
from services.dispatch.leg import tables
from services.dispatch.leg.tables import figures_changed_peers
from services.dispatch.statistics.domain import rounded_ms
from services.dispatch.statistics.figures import DAY_MS, BurdenRow
from tandem.common.v1 import alert_pb2, exercise_pb2, notice_pb2
from tandem.dispatch.v1 import dispatch_pb2, statistics_pb2

BEGAN_MS = 1_767_193_200_000
DAYS = 200
INCIDENTS = 90
ARRIVED = (dispatch_pb2.ON_SCENE, dispatch_pb2.APPREHENDED)
OVER = (dispatch_pb2.STOOD_DOWN, dispatch_pb2.CLOSED)
STATES = (dispatch_pb2.ESCALATED, dispatch_pb2.ACKNOWLEDGED, dispatch_pb2.EN_ROUTE, *ARRIVED, *OVER)
CAUSES = (*range(8), 99)
"""Causes of a closing; 0: none is given, 99: one of a later version."""
OUTCOMES = {
    dispatch_pb2.BREACH_CONFIRMED: statistics_pb2.ENDED_BREACH_CONFIRMED,
    dispatch_pb2.FALSE_POSITION: statistics_pb2.ENDED_FALSE_POSITION,
    dispatch_pb2.EQUIPMENT: statistics_pb2.ENDED_EQUIPMENT,
    dispatch_pb2.AUTHORISED: statistics_pb2.ENDED_AUTHORISED,
    dispatch_pb2.NOBODY_FOUND: statistics_pb2.ENDED_NOBODY_FOUND,
}
FOR_NOTHING = range(statistics_pb2.ENDED_FALSE_POSITION, statistics_pb2.ENDED_BEFORE_ARRIVAL + 1)


@dataclass
class AssignmentHistory:
    """The steps of an assignment that were counted, in their order."""

    opened_ms: int
    at_ms: int
    """Time of the last step."""
    steps: list[dispatch_pb2.Step] = field(default_factory=list)

    @property
    def last(self) -> dispatch_pb2.Assignment:
        """The assignment after its last step."""
        return self.steps[-1].assignment

    @property
    def leg(self) -> alert_pb2.Leg.ValueType:
        """Its leg."""
        return self.last.leg

    def first_ms(self, name: str) -> int | None:
        """The earliest time that a field has had, milliseconds; None if it never had one."""
        found = [step.assignment for step in self.steps if step.assignment.HasField(name)]  # type: ignore[arg-type]
        return min((getattr(assignment, name).ToMilliseconds() for assignment in found), default=None)

    @property
    def arrived_ms(self) -> int | None:
        """Time of the first arrival, milliseconds; None if the unit didn't arrive."""
        arrivals = [step for step in self.steps if step.assignment.state in ARRIVED and step.HasField("at")]
        return min((step.at.ToMilliseconds() for step in arrivals), default=None)

    @property
    def office_id(self) -> str:
        """The last office."""
        return next((id_ for step in reversed(self.steps) if (id_ := step.assignment.choice.office_id)), "")

    @property
    def kind(self) -> int:
        """The last kind of alert."""
        return next((kind for step in reversed(self.steps) if (kind := step.assignment.kind)), 0)

    @property
    def outcome(self) -> int:
        """Number of the outcome; 0 if nobody was sent."""
        if self.first_ms("sent_at") is None or self.last.task == notice_pb2.CONTACT:
            return 0
        if self.last.close_cause in OUTCOMES:
            return OUTCOMES[self.last.close_cause]
        if self.last.state not in OVER:
            return statistics_pb2.UNDER_WAY
        has_arrived = any(step.assignment.state in ARRIVED for step in self.steps)
        is_other = self.last.close_cause in (dispatch_pb2.OTHER, dispatch_pb2.EXERCISE)
        return statistics_pb2.ENDED_UNCLASSIFIED if has_arrived or is_other else statistics_pb2.ENDED_BEFORE_ARRIVAL

    def took_ms(self, measure: int) -> int | None:
        """Rounded time from the first offer to the end of a measure, milliseconds; None if it wasn't reached."""
        accepted_ms = self.first_ms("acknowledged_at")
        received = [ms for ms in (self.first_ms("received_at"), accepted_ms) if ms is not None]
        ends: dict[int, int | None] = {
            statistics_pb2.RECEIPT: min(received, default=None),
            statistics_pb2.ACCEPTANCE: accepted_ms,
        }
        reached_ms = ends.get(measure, self.arrived_ms)
        offered_ms = self.first_ms("offered_at")
        return None if reached_ms is None or offered_ms is None else rounded_ms(max(0, reached_ms - offered_ms))

    @property
    def arrived_in_time(self) -> bool | None:
        """None if the unit didn't arrive, or no travel time was known when it was sent."""
        sent = next((step.assignment for step in self.steps if step.assignment.HasField("sent_at")), None)
        if sent is None or self.arrived_ms is None or not sent.choice.HasField("travel_s"):
            return None
        return self.arrived_ms <= sent.sent_at.ToMilliseconds() + sent.choice.travel_s * 1000


class RandomIncidents:
    """Random incidents of the police leg, whose steps are stored bit by bit and counted after each bit."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._sequences = itertools.count(1)
        self._histories: dict[str, AssignmentHistory] = {}
        self.live_ms: list[int] = []
        """ExpectedTimes at which the incidents that aren't exercises were opened, milliseconds."""

    @property
    def histories(self) -> list[AssignmentHistory]:
        """Assignments of incidents that aren't exercises."""
        return [history for history in self._histories.values() if not history.last.exercise]

    def open(self, connection: sa.Connection) -> None:
        """Stores the incidents, each with its first steps."""
        rows = []
        for number in range(INCIDENTS):
            opened_ms = BEGAN_MS + self._random.randrange(DAYS * DAY_MS)
            exercise = self._random.choice((*(exercise_pb2.EXERCISE_UNSPECIFIED,) * 9, exercise_pb2.DRILL))
            rows.append((f"incident-{number}", number + 1, opened_ms, None, "[]", int(exercise)))
            if not exercise:
                self.live_ms.append(opened_ms)
            for leg, subject_id, task in self._destinations():
                id_ = f"{number}-{leg}-{subject_id}-{task}"
                self._histories[id_] = AssignmentHistory(opened_ms, opened_ms)
                offered = dispatch_pb2.Assignment(
                    assignment_id=id_,
                    incident_id=f"incident-{number}",
                    leg=leg,
                    subject_id=subject_id,
                    state=dispatch_pb2.NOTIFIED,
                    exercise=exercise,
                    task=task,
                )
                if self._random.random() < 0.9:
                    offered.state = dispatch_pb2.OFFERED
                    offered.offered_at.FromMilliseconds(opened_ms + self._random.randrange(2_000))
                self._add(id_, offered, opened_ms)
        write(connection, (RowTarget(tables.incidents),), (rows,))
        self._store(connection, self._histories)

    def go_on(self, connection: sa.Connection) -> None:
        """Stores another step of two thirds of the assignments: an answer, a repetition or a correction."""
        ids = [id_ for id_ in self._histories if self._random.random() < 0.67]
        for id_ in ids:
            history = self._histories[id_]
            after = dispatch_pb2.Assignment.FromString(history.last.SerializeToString())
            at_ms = history.at_ms + int(self._random.lognormvariate(9, 1.5))
            if self._random.random() < 0.85:
                self._change(after, at_ms)
            self._add(id_, after, at_ms)
        self._store(connection, ids)

    def _destinations(self) -> Iterator[tuple[alert_pb2.Leg.ValueType, str, notice_pb2.Task.ValueType]]:
        person = f"person-{self._random.randrange(12)}"
        yield alert_pb2.POLICE, person, notice_pb2.TASK_UNSPECIFIED
        yield alert_pb2.WARNING, person, notice_pb2.TASK_UNSPECIFIED
        if self._random.random() < 0.5:
            yield alert_pb2.POLICE, f"order-{self._random.randrange(9)}/home", notice_pb2.TASK_UNSPECIFIED
        if self._random.random() < 0.8:
            wearer = f"wearer-{self._random.randrange(9)}"
            yield alert_pb2.PROBATION, wearer, notice_pb2.TASK_UNSPECIFIED
            if self._random.random() < 0.5:
                yield alert_pb2.PROBATION, wearer, notice_pb2.CONTACT

    def _change(self, assignment: dispatch_pb2.Assignment, at_ms: int) -> None:
        is_offered = assignment.HasField("offered_at")
        assignment.state = self._random.choice(STATES)
        assignment.kind = self._random.choice((alert_pb2.RING_ENTERED, alert_pb2.TAMPERED))
        assignment.choice.office_id = self._random.choice(("", "seoul", "busan", "jeju"))
        if self._random.random() < 0.5:
            assignment.choice.travel_s = self._random.randrange(1, 300)
        if is_offered and self._random.random() < 0.7:
            assignment.received_at.FromMilliseconds(at_ms)
        if is_offered and self._random.random() < 0.7:
            assignment.acknowledged_at.FromMilliseconds(at_ms)
        if assignment.HasField("acknowledged_at") and self._random.random() < 0.7:
            assignment.sent_at.FromMilliseconds(at_ms)
        assignment.close_cause = self._random.choice(CAUSES) if assignment.state == dispatch_pb2.CLOSED else 0  # type: ignore[assignment]

    def _add(self, id_: str, assignment: dispatch_pb2.Assignment, at_ms: int) -> None:
        history = self._histories[id_]
        step = dispatch_pb2.Step(assignment=assignment, number=len(history.steps) + 1)
        if assignment.leg == alert_pb2.POLICE:  # the times of other legs' steps aren't kept
            step.at.FromMilliseconds(at_ms)
        history.at_ms = at_ms
        history.steps.append(step)

    def _store(self, connection: sa.Connection, ids: Iterable[str]) -> None:
        """Stores the last step of assignments, as the leg does: its own as steps, the other legs' as their assignments."""
        own, others = list[tuple[object, ...]](), list[tuple[object, ...]]()
        for id_ in ids:
            step = self._histories[id_].steps[-1]
            if step.assignment.leg == alert_pb2.POLICE:
                sequence = next(self._sequences)
                own.append((sequence, f"step-{sequence}", id_, step.SerializeToString(), True))
            else:
                others.append((id_, step.assignment.incident_id, step.number, step.assignment.SerializeToString()))
        targets = (
            RowTarget(tables.steps),
            RowTarget(tables.peers, ("number", "payload"), newer="number"),
            RowTarget(figures_changed_peers, ("has_arrived",), newer="has_arrived"),
        )
        changed = [(row[0], self._histories[str(row[0])].last.state in ARRIVED) for row in others]
        write(connection, targets, (own, others, changed))


class ExpectedTimes(NamedTuple):
    """Response times as the answer has them."""

    offered: int
    reached: int
    median_s: float | None
    p90_s: float | None
    in_time: int
    due: int


def nearest_rank(values: Sequence[int], percent: int) -> int:
    """The percentile of values, 0 if there are none."""
    return sorted(values)[-(-percent * len(values) // 100) - 1] if values else 0


def times_of(histories: Sequence[AssignmentHistory], measure: int) -> ExpectedTimes:
    """Response times of assignments that were offered."""
    took = [ms for history in histories if (ms := history.took_ms(measure)) is not None]
    median_s, p90_s = (nearest_rank(took, percent) / 1000 if took else None for percent in (50, 90))
    if measure == statistics_pb2.ARRIVAL:
        known = [history.arrived_in_time for history in histories if history.arrived_in_time is not None]
        return ExpectedTimes(len(histories), len(took), median_s, p90_s, sum(known), len(known))
    is_warning = bool(histories) and histories[0].leg == alert_pb2.WARNING
    due_ms = 30_000 if measure == statistics_pb2.ACCEPTANCE else 10_000 if is_warning else 5_000
    in_time = sum(ms <= due_ms for ms in took)
    return ExpectedTimes(len(histories), len(took), median_s, p90_s, in_time, len(histories))


def recounted(histories: Sequence[AssignmentHistory]) -> dict[tuple[int, int, str], ExpectedTimes]:
    """Response times by leg, measure and office, where "" is the leg as a whole."""
    offered: dict[tuple[int, str], list[AssignmentHistory]] = defaultdict(list)
    for history in histories:
        if history.first_ms("offered_at") is not None:
            for office_id in {"", history.office_id}:
                offered[history.leg, office_id].append(history)
    return {
        (leg, measure, office_id): times_of(found, measure)
        for (leg, office_id), found in offered.items()
        for measure in (statistics_pb2.RECEIPT, statistics_pb2.ACCEPTANCE, statistics_pb2.ARRIVAL)
        if measure != statistics_pb2.ARRIVAL or leg == alert_pb2.POLICE
    }


def burdens(histories: Sequence[AssignmentHistory], *legs: alert_pb2.Leg.ValueType) -> list[BurdenRow]:
    """Burdens of the people and places to whom legs went, the greatest number of incidents first."""
    by_subject: dict[str, list[AssignmentHistory]] = defaultdict(list)
    for history in histories:
        if history.leg in legs:
            by_subject[history.last.subject_id].append(history)
    found = []
    for subject_id, theirs in by_subject.items():
        visits = [history.outcome for history in theirs if history.outcome and history.leg != alert_pb2.WARNING]
        responses = [history for history in theirs if history.last.task == notice_pb2.TASK_UNSPECIFIED]
        messages = sum(
            history.leg == alert_pb2.WARNING or history.last.task == notice_pb2.CONTACT for history in theirs
        )
        incidents = len({history.last.incident_id for history in responses})
        for_nothing = sum(outcome in FOR_NOTHING for outcome in visits)
        found.append(BurdenRow(subject_id, incidents, len(visits), for_nothing, messages))
    return sorted(found, key=lambda row: (-row.incidents, row.subject_id))


def spread(kind: int, rows: Sequence[BurdenRow]) -> tuple[int, ...]:
    """A spread of burdens as the answer has it."""
    incidents = [row.incidents for row in rows]
    ranks = (nearest_rank(incidents, 50), nearest_rank(incidents, 90), max(incidents))
    return (kind, len(rows), *ranks, sum(row.for_nothing for row in rows))
