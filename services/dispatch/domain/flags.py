"""What the warning leg says of a protected person, as each leg writes it down: nobody knows that she was reached, or she is under
duress. Pure.

Acknowledging a warning never gets here: it ends nothing that the police do.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from services.common.rpc.errors import NotFound
from services.dispatch.domain import escalation
from services.dispatch.domain.escalation import Deadlines
from services.dispatch.domain.events import (
    UNTOLD,
    AlertFolded,
    Demand,
    Event,
    Flagged,
    Notified,
    Offered,
    Place,
    StoodDown,
    WarningFlag,
)
from services.dispatch.domain.evolving import evolve
from services.dispatch.domain.incident import TAKEN, UNANSWERED, Incident, assignment_id
from services.dispatch.domain.roster import NO_ROSTER, Board

DEMANDS = {
    WarningFlag.NO_RECEIPT: Demand.NOTIFY,
    WarningFlag.NO_CONTACT: Demand.NOTIFY,
    WarningFlag.DURESS: Demand.RESPOND,
}
"""What a flag asks of the police; a flag that isn't named asks nothing."""


@dataclass(frozen=True, slots=True)
class Flag:
    """The police must know this of a protected person."""

    subject_id: str
    flag: WarningFlag
    flagged_ms: int
    """Since when, by the warning leg, mesh time; 0 where this is the warning leg and it is new."""
    alert_id: str
    """The alert that the person was last warned of."""
    place: Place
    order_id: str
    now_ms: int
    deadlines: Deadlines
    board: Board = NO_ROSTER


def decide(incident: Incident, command: Flag) -> Iterator[Event]:
    """What a flag leads to; nothing where it, or a later one, is known.

    Raises NotFound where the warning leg hasn't taken in the alert yet that it speaks of.
    """
    id_ = assignment_id(incident.incident_id, incident.leg, command.subject_id)
    known = incident.assignments.get(id_)
    if incident.leg == "warning":
        if known is None:
            raise NotFound("no such assignment yet")
        # Who said that she is under duress has said so for good: that a receipt came, or didn't, changes nothing.
        if known.flag is None or known.flag.flag not in (command.flag, WarningFlag.DURESS):
            at_ms = max(command.now_ms, known.flag.flagged_ms + 1) if known.flag else command.now_ms
            yield _flagged(id_, command, at_ms)
        return
    if known and known.flag and command.flagged_ms <= known.flag.flagged_ms:
        return
    demand = DEMANDS.get(command.flag)
    if demand:
        for event in _asked(incident, id_, command, demand):
            yield event
            incident = evolve(incident, event)
    if id_ in incident.assignments:
        yield _flagged(id_, command, command.flagged_ms)
        if known is None and demand is Demand.NOTIFY and command.place <= incident.end:
            yield StoodDown(command.now_ms, id_, incident.end_kind)


def _asked(incident: Incident, id_: str, command: Flag, demand: Demand) -> Iterator[Event]:
    """The police are told, or asked to go, unless they are already."""
    known = incident.assignments.get(id_)
    if known is None and command.alert_id not in incident.alert_ids:
        # Of a warning alone the police weren't told: this is the first that they hear of the incident.
        folded = AlertFolded(
            *(command.now_ms, command.alert_id, command.place, demand, command.order_id, (id_,), False, UNTOLD)
        )
        yield folded
        incident = evolve(incident, folded)
    if known is None and demand is Demand.NOTIFY:
        yield Notified(command.now_ms, id_, command.subject_id, demand, command.place, None)
    elif demand is Demand.RESPOND and (known is None or known.state not in UNANSWERED | TAKEN):
        first = escalation.first(
            *(incident, id_, command.subject_id, UNTOLD, command.now_ms, command.deadlines, command.board)
        )
        yield Offered(
            *(command.now_ms, id_, command.subject_id, demand, command.place, None, first.due_ms, UNTOLD, first.choice)
        )
        yield from first.then


def _flagged(id_: str, command: Flag, flagged_ms: int) -> Flagged:
    return Flagged(command.now_ms, id_, command.flag, flagged_ms, command.alert_id, command.place)
