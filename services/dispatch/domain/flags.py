"""Flags that the warning leg raises of a protected person and that each leg records, such as NO_RECEIPT or DURESS. Pure.

The acknowledgement of a warning raises no flag, since it ends no response of the police.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from services.common.rpc.errors import NotFound
from services.dispatch.domain import escalation
from services.dispatch.domain.enums import Demand, WarningFlag
from services.dispatch.domain.escalation import Deadlines
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
from services.dispatch.domain.evolving import evolve
from services.dispatch.domain.incident import ACCEPTED, UNANSWERED, Incident, assignment_id
from services.dispatch.domain.roster import NO_ROSTER, Board

DEMANDS = {
    WarningFlag.NO_RECEIPT: Demand.NOTIFY,
    WarningFlag.NO_CONTACT: Demand.NOTIFY,
    WarningFlag.DURESS: Demand.RESPOND,
}
"""Demand of a flag on the police; a flag that isn't listed demands nothing."""


@dataclass(frozen=True, slots=True)
class Flag:
    """Command: record a flag of a protected person that the police must know."""

    subject_id: str
    flag: WarningFlag
    flagged_ms: int
    """When the warning leg raised the flag, mesh time; 0 for a new flag in the warning leg itself."""
    alert_id: str
    """The alert of which the person was last warned."""
    place: LogPosition
    order_id: str
    now_ms: int
    deadlines: Deadlines
    board: Board = NO_ROSTER


def decide(incident: Incident, command: Flag) -> Iterator[Event]:
    """Events that a flag leads to; none where the leg knows this flag or a later one.

    Raises NotFound where the warning leg hasn't applied the flag's alert yet.
    """
    id_ = assignment_id(incident.incident_id, incident.leg, command.subject_id)
    known = incident.assignments.get(id_)
    if incident.leg == "warning":
        if known is None:
            raise NotFound("the warning leg has no assignment of this person yet: retry after the alert is applied")
        # Duress is final: a receipt, or its absence, must not replace it.
        if known.flag is None or known.flag.flag not in (command.flag, WarningFlag.DURESS):
            at_ms = max(command.now_ms, known.flag.flagged_ms + 1) if known.flag else command.now_ms
            yield _flagged(id_, command, at_ms)
        return
    if known and known.flag and command.flagged_ms <= known.flag.flagged_ms:
        return
    demand = DEMANDS.get(command.flag)
    if demand:
        for event in _asked(incident, id_, command, demand=demand):
            yield event
            incident = evolve(incident, event)
    if id_ in incident.assignments:
        yield _flagged(id_, command, command.flagged_ms)
        if known is None and demand is Demand.NOTIFY and command.place <= incident.end:
            yield StoodDown(command.now_ms, id_, incident.end_kind)


def _asked(incident: Incident, id_: str, command: Flag, *, demand: Demand) -> Iterator[Event]:
    """Events that notify the police or offer them the assignment, unless an earlier event already did."""
    known = incident.assignments.get(id_)
    if known is None and command.alert_id not in incident.alert_ids:
        # An alert with demand WARN doesn't reach the police, so this flag is their first record of the incident.
        folded = AlertFolded(
            *(
                command.now_ms,
                command.alert_id,
                command.place,
                demand,
                command.order_id,
                (id_,),
                False,
                KIND_UNSPECIFIED,
            )
        )
        yield folded
        incident = evolve(incident, folded)
    if known is None and demand is Demand.NOTIFY:
        yield Notified(
            at_ms=command.now_ms,
            assignment_id=id_,
            subject_id=command.subject_id,
            demand=demand,
            place=command.place,
            cause=None,
        )
    elif demand is Demand.RESPOND and (known is None or known.state not in UNANSWERED | ACCEPTED):
        first = escalation.first(
            incident,
            id_,
            command.subject_id,
            kind=KIND_UNSPECIFIED,
            now_ms=command.now_ms,
            deadlines=command.deadlines,
            board=command.board,
        )
        yield Offered(
            *(
                command.now_ms,
                id_,
                command.subject_id,
                demand,
                command.place,
                None,
                first.due_ms,
                KIND_UNSPECIFIED,
                first.choice,
            )
        )
        yield from first.then


def _flagged(id_: str, command: Flag, flagged_ms: int) -> Flagged:
    return Flagged(
        at_ms=command.now_ms,
        assignment_id=id_,
        flag=command.flag,
        flagged_ms=flagged_ms,
        alert_id=command.alert_id,
        place=command.place,
    )
