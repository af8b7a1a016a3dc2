"""Flags about a protected person, such as NO_RECEIPT or DURESS. The warning leg raises them, and the police leg answers. Pure.

An acknowledged warning raises no flag, since it ends no response of the police.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from services.common.errors import NotFound
from services.dispatch.domain import escalation
from services.dispatch.domain.assignment import ACCEPTED, UNANSWERED, Assignment, assignment_id
from services.dispatch.domain.enums import Demand, Exercise, SubjectKind, WarningFlag
from services.dispatch.domain.escalation import Situation
from services.dispatch.domain.events import (
    KIND_UNSPECIFIED,
    AlertFolded,
    Event,
    Flagged,
    LogPosition,
    Notified,
    Offered,
    StoodDown,
)
from services.dispatch.domain.incident import Decided, Incident

DEMANDS = {
    WarningFlag.NO_RECEIPT: Demand.NOTIFY,
    WarningFlag.NO_CONTACT: Demand.NOTIFY,
    WarningFlag.DURESS: Demand.RESPOND,
}
"""The demand that each flag makes on the police. A flag that isn't listed demands nothing."""


@dataclass(frozen=True, slots=True)
class Flag:
    """Command: record a flag of a protected person that the police must know."""

    subject_id: str
    flag: WarningFlag
    alert_id: str
    """The alert in the last warning to the person."""
    place: LogPosition
    """Log position of that alert."""
    order_id: str
    flagged_ms: int | None = None
    """When the warning leg raised the flag, mesh time; None in the warning leg itself, which raises the flag now."""
    exercise: Exercise = Exercise.NONE
    """Whether the warning leg's incident is an exercise: the flag may be the police's first record of it."""


def decide(incident: Incident, command: Flag, situation: Situation) -> Iterable[Event]:
    """Events that a flag leads to; none if the leg knows this flag or a later one.

    Raises NotFound if the warning leg hasn't applied the flag's alert yet.
    """
    id_ = assignment_id(incident.incident_id, incident.leg, command.subject_id)
    known = incident.assignments.get(id_)
    if command.flagged_ms is None:
        return _raised(known, command, situation.now_ms)
    if known and known.flag and command.flagged_ms <= known.flag.flagged_ms:
        return ()
    decided = Decided(incident)
    demand = DEMANDS.get(command.flag)
    if demand:
        _ask(decided, id_, command, demand=demand, situation=situation)
    if id_ in decided.incident.assignments:
        decided.add(_flagged(id_, command, command.flagged_ms, now_ms=situation.now_ms))
        if known is None and demand is Demand.NOTIFY and command.place <= decided.incident.end:
            decided.add(StoodDown(situation.now_ms, id_, decided.incident.end_kind))
    return decided.events


def _raised(known: Assignment | None, command: Flag, now_ms: int) -> Iterator[Event]:
    """The event by which the warning leg raises a flag; nothing if this flag or DURESS is already raised."""
    if known is None:
        raise NotFound("the warning leg has no assignment of this person yet: retry after the alert is applied")
    # Duress is final: a receipt, or its absence, must not replace it.
    if known.flag is None or known.flag.flag not in (command.flag, WarningFlag.DURESS):
        flagged_ms = max(now_ms, known.flag.flagged_ms + 1) if known.flag else now_ms
        yield _flagged(known.assignment_id, command, flagged_ms, now_ms=now_ms)


def _ask(decided: Decided, id_: str, command: Flag, *, demand: Demand, situation: Situation) -> None:
    """Notifies the police or offers them the assignment, unless an earlier event already did."""
    now_ms, known = situation.now_ms, decided.incident.assignments.get(id_)
    if known is None and command.alert_id not in decided.incident.alerts:
        # The police leg applies no alert with demand WARN, so this flag may be its first record of the incident.
        decided.add(
            AlertFolded(
                at_ms=now_ms,
                alert_id=command.alert_id,
                place=command.place,
                demand=demand,
                order_id=command.order_id,
                assignment_ids=(id_,),
                ends=False,
                exercise=command.exercise,
            )
        )
    if known is None and demand is Demand.NOTIFY:
        decided.add(
            Notified(
                at_ms=now_ms,
                assignment_id=id_,
                subject_id=command.subject_id,
                demand=demand,
                place=command.place,
                cause=None,
                subject_kind=SubjectKind.PROTECTED_PERSON,
            )
        )
    elif demand is Demand.RESPOND and (known is None or known.state not in UNANSWERED | ACCEPTED):
        first = escalation.first(decided.incident, id_, command.subject_id, kind=KIND_UNSPECIFIED, situation=situation)
        offered = Offered(
            at_ms=now_ms,
            assignment_id=id_,
            subject_id=command.subject_id,
            demand=demand,
            place=command.place,
            cause=None,
            due_ms=first.due_ms,
            open_until_ms=first.open_until_ms,
            choice=first.choice,
            subject_kind=SubjectKind.PROTECTED_PERSON,
        )
        decided.add(offered, *first.then)


def _flagged(id_: str, command: Flag, flagged_ms: int, *, now_ms: int) -> Flagged:
    return Flagged(
        at_ms=now_ms,
        assignment_id=id_,
        flag=command.flag,
        flagged_ms=flagged_ms,
        alert_id=command.alert_id,
        place=command.place,
    )
