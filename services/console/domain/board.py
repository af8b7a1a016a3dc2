"""Incidents on the pages: their order, their groups, the state of each leg, and the search among them. Pure.

The browser gets an incident as a plain dict. Times are milliseconds since 1970 UTC by the mesh's clock.
"""

from __future__ import annotations

from collections.abc import Iterable, Set
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from services.common.messaging.flow import LEGS as LEGS

OFFERS = frozenset({"OFFERED", "ESCALATED"})
"""States in which an offer waits for an answer."""
UNANSWERED = frozenset({"OFFERED", "ESCALATED", "NOBODY_AVAILABLE", "REJECTED"})
GOING = frozenset({"DISPATCHED", "EN_ROUTE", "ON_SCENE", "APPREHENDED"})
"""States in which a unit was ordered to go."""
ON_THE_WAY = GOING | {"ACKNOWLEDGED"}
ASKED, ACCEPTED_BY_UNIT = "UNIT_ASKED", "UNIT_ACCEPTED"
"""States of an offer to a unit: it may still accept, and it has accepted."""
OVER = frozenset({"STOOD_DOWN", "CLOSED"})
_GRAVITY = (
    *("NOTIFIED", "CLOSED", "STOOD_DOWN", "APPREHENDED", "ON_SCENE", "EN_ROUTE", "DISPATCHED", "ACKNOWLEDGED"),
    "OFFERED",
    "REJECTED",
    "ESCALATED",
    "NOBODY_AVAILABLE",
)
"""States by urgency, ascending."""
_DEMANDS = ("DEMAND_UNSPECIFIED", "RECORD", "WARN", "NOTIFY", "RESPOND")
CALLED_FOR_HELP, FAILING, ESCALATED, WAITING, UNDER_WAY, NOTHING_AWAITED, UNCLOSED, ENDED = range(8)
"""Levels of urgency of an incident, most urgent first. The first: a protected person called for help. UNCLOSED: it has ended, and the
own desk has to close it."""
NEVER_MS = 1 << 60
GRAVE = frozenset({"duress", "distress", "losing"})
"""Flags of an open incident with the sound `grave`."""


class ShownFlag(NamedTuple):
    """What is unusual about an assignment, such as `losing`, `duress` or `absent-police`."""

    name: str
    level: int = NOTHING_AWAITED
    """Least urgent level of an open incident that has it."""


@dataclass(frozen=True, slots=True)
class UnitOfferCard:
    """Offer of an assignment to a unit of the own leg, as the pages show it."""

    unit_id: str
    unit_class: str
    state: str
    """UNIT_ASKED, UNIT_ACCEPTED, UNIT_REFUSED, UNIT_MISSED, UNIT_NOT_NEEDED, UNIT_OFF_DUTY or UNIT_REPLACED."""
    number: int
    """Number of the step that made the offer."""
    asked_ms: int
    until_ms: int
    """Until when the unit may accept."""
    asked_by: str = ""
    """Name of the officer who asked the unit; empty if the leg asked it by itself."""
    received_ms: int | None = None
    """When the unit's page showed the offer; None if it hasn't confirmed that."""


class RadioEntry(NamedTuple):
    """Record that a desk sent a unit by radio or telephone."""

    unit_name: str
    """Name of the unit, as it was typed."""
    by: str
    """Name of the officer who sent it."""
    at_ms: int


@dataclass(frozen=True, slots=True)
class AssignmentCard:
    """Assignment of one destination of one leg, as the pages show it."""

    assignment_id: str
    incident_id: str
    leg: str
    subject_id: str
    order_ids: tuple[str, ...]
    state: str
    demand: str
    kind: str
    """Kind of the alert that led to the assignment; empty if the assignment's leg doesn't disclose the kind to this leg."""
    offer_number: int = 0
    offered_ms: int | None = None
    received_ms: int | None = None
    acknowledged_ms: int | None = None
    acknowledged_by: str = ""
    due_ms: int | None = None
    latency_ms: float | None = None
    office_id: str = ""
    unit_offers: tuple[UnitOfferCard, ...] = ()
    """Offers to units since the last offer that an alert caused, in the order of asking; empty for another leg's assignment."""
    radio: RadioEntry | None = None
    """Unit that the desk sent by radio; None if it sent none, and for another leg's assignment."""
    reported_by_system: bool = False
    """Whether the agency's own system reported the present state, and neither a unit nor an officer at the console."""
    escalation_level: str = ""
    close_cause: str = ""
    flags: frozenset[ShownFlag] = frozenset()
    exercise: bool = False
    notes: int = 0
    """Number of notes that the leg's desk wrote with the assignment."""
    is_contact: bool = False
    """Whether it is the first contact with the wearer, for which nobody goes."""
    is_check: bool = False
    """Whether the task is to look into the wearer's act after a notice of the Ministry."""
    sort: str = ""
    """What the destination is: wearer, protected, place or silent_wearers; empty if the leg doesn't say it."""
    panic_ms: int | None = None
    """When a protected person last called for help in the incident; None if none did, and in another leg's assignment."""
    panic_withdrawn_ms: int | None = None
    """When the person took that call back; None if it isn't taken back."""

    @property
    def is_unclosed(self) -> bool:
        """Whether somebody had to go, the reason is over, and the desk has to close it with a cause. A notice needs no closing."""
        return self.state == "STOOD_DOWN" and (self.demand == "RESPOND" or self.is_check) and not self.is_contact

    @property
    def unit_id(self) -> str:
        """Unit that accepted the assignment; empty if none has."""
        return next((offer.unit_id for offer in self.unit_offers if offer.state == ACCEPTED_BY_UNIT), "")

    @property
    def shown_state(self) -> str:
        """State as the pages show it: a unit's acceptance is another one than the desk's."""
        return ACCEPTED_BY_UNIT if self.state == "ACKNOWLEDGED" and self.unit_id else self.state

    @property
    def newest_offer(self) -> int:
        """Number of the newest offer to a unit or desk; 0 if there was none."""
        return max((self.offer_number, *(offer.number for offer in self.unit_offers)))

    @property
    def unit_states(self) -> dict[str, str]:
        """State of each unit that is asked or has the assignment, by unit id: on the way it is the assignment's own."""
        of_unit = {ASKED: ASKED, ACCEPTED_BY_UNIT: self.state if self.state in GOING else ACCEPTED_BY_UNIT}
        offers = self.unit_offers if self.state not in OVER else ()
        return {offer.unit_id: of_unit[offer.state] for offer in offers if offer.state in of_unit}


class IncidentTimes(NamedTuple):
    """What a step says of its incident besides the assignment."""

    opened_ms: int
    ended_ms: int | None
    """None while the incident hasn't ended."""
    is_new: bool
    """Whether the step opened the incident, so that its leg has no other assignment in it."""


@dataclass(frozen=True, slots=True)
class IncidentCard:
    """Incident with the assignments of all legs, as the pages show it."""

    incident_id: str
    opened_ms: int
    ended_ms: int | None
    assignments: tuple[AssignmentCard, ...] = field(repr=False)

    def of(self, leg: str) -> list[AssignmentCard]:
        """Returns the assignments of one leg, in an order that no step changes: a button must not move under the cursor."""
        own = [assignment for assignment in self.assignments if assignment.leg == leg]
        return sorted(own, key=lambda assignment: (assignment.subject_id, assignment.assignment_id))


def leg_state(assignments: Iterable[AssignmentCard]) -> str:
    """Returns the most urgent state of the assignments; empty if there are none."""
    states = [assignment.state for assignment in assignments if assignment.state in _GRAVITY]
    return max(states, key=_GRAVITY.index, default="")


def due_ms(assignments: Iterable[AssignmentCard]) -> int | None:
    """Returns the earliest deadline of the assignments; None if no assignment waits for an answer."""
    return min((assignment.due_ms for assignment in assignments if assignment.due_ms is not None), default=None)


def demand(incident: IncidentCard) -> str:
    """Returns the gravest demand of an incident's assignments."""
    return max((assignment.demand for assignment in incident.assignments), key=_DEMANDS.index, default=_DEMANDS[0])


def is_new_alarm(incident: IncidentCard) -> bool:
    """Returns whether the incident demands a response that nobody has acknowledged."""
    return any(assignment.state in UNANSWERED and assignment.demand == "RESPOND" for assignment in incident.assignments)


class PanicCard(NamedTuple):
    """Call for help of a protected person, and what is known of her since."""

    called_ms: int
    withdrawn_ms: int | None
    """When she took the call back; None if she didn't."""
    answer: str
    """Her answer to the warning: `confirmed`, `earlier` if she confirmed it before the call, or a flag of her, such as `duress`; empty
    if there is none."""
    answered_ms: int | None
    """When she confirmed the warning; None if she didn't, and if that is unknown."""

    @property
    def is_open(self) -> bool:
        """Whether the call isn't taken back."""
        return self.withdrawn_ms is None


_ANSWERS = ("duress", "no-contact", "no-receipt")
"""Flags of a protected person that say how she answered the warning, the gravest first."""


def panic(incident: IncidentCard) -> PanicCard | None:
    """Returns the call for help that counts in an incident; None if nobody called."""
    called = [each for each in incident.assignments if each.panic_ms is not None and not each.is_contact]
    # An assignment that is over gets no further step, so it may not know that the call was taken back.
    newest = max(called, key=lambda each: (each.state not in OVER, each.panic_ms), default=None)
    if newest is None or newest.panic_ms is None:
        return None
    names = {flag.name for flag in flags(incident)}
    confirmed = [each.acknowledged_ms for each in incident.of("warning") if each.acknowledged_ms is not None]
    answered_ms = max(confirmed, default=None)
    answer = next((name for name in _ANSWERS if name in names), "")
    if not answer and (answered_ms is not None or "reached" in names):
        # A confirmation before the call says nothing about her since.
        answer = "earlier" if answered_ms is not None and answered_ms < newest.panic_ms else "confirmed"
    return PanicCard(
        called_ms=newest.panic_ms,
        withdrawn_ms=newest.panic_withdrawn_ms,
        answer=answer,
        answered_ms=answered_ms if answer in ("confirmed", "earlier") else None,
    )


def is_unclosed(incident: IncidentCard, own_leg: str) -> bool:
    """Returns whether the incident has ended, and the desk of `own_leg` has to close a task of it."""
    return incident.ended_ms is not None and any(assignment.is_unclosed for assignment in incident.of(own_leg))


def sound(incident: IncidentCard, own_leg: str) -> str:
    """Returns the sound with which an incident is announced to the desk of `own_leg`; empty for none, and for who has no desk."""
    if not own_leg or incident.ended_ms is not None:
        return ""
    call = panic(incident)
    if call and call.is_open:
        return "panic"
    if any(flag.name in GRAVE for flag in flags(incident)):
        return "grave"
    return "demand" if is_new_alarm(incident) else ""


def is_exercise(incident: IncidentCard) -> bool:
    """Returns whether the incident is an exercise."""
    return any(assignment.exercise for assignment in incident.assignments)


def is_over(incident: IncidentCard) -> bool:
    """Returns whether nothing is left to do for either agency. A notice, which asks nobody to act, has no end of its own."""
    states = {assignment.state for assignment in incident.assignments if assignment.leg != "warning"}
    return incident.ended_ms is not None and states <= OVER | {"NOTIFIED"}


def flags(incident: IncidentCard) -> frozenset[ShownFlag]:
    """Returns the flags of all assignments of an incident."""
    return frozenset[ShownFlag]().union(*(assignment.flags for assignment in incident.assignments))


class IncidentRank(NamedTuple):
    """Sort key of an incident, most urgent first."""

    level: int
    """One of the levels of urgency."""
    exercise: bool
    due_ms: int
    """Earliest deadline of the own agency; NEVER_MS if it has none."""
    newest_first: int


def rank(incident: IncidentCard, own_leg: str = "") -> IncidentRank:
    """Returns the sort key of an incident. Its deadline is that of `own_leg`; without one, as for a reviewer, the earliest of both
    agencies."""
    agencies = [assignment for assignment in incident.assignments if assignment.leg != "warning"]
    states = {agency.state for agency in agencies}
    exercise = is_exercise(incident)
    if is_unclosed(incident, own_leg):
        level = UNCLOSED
    elif incident.ended_ms is not None or (states and states <= OVER):
        level = ENDED
    else:
        level = min([_level(states), *(flag.level for flag in flags(incident))])
        call = panic(incident)
        if call and call.is_open:
            level = FAILING if exercise else CALLED_FOR_HELP
    awaited_ms = due_ms(incident.of(own_leg) if own_leg else agencies)
    return IncidentRank(
        level=level,
        exercise=exercise,
        due_ms=awaited_ms if awaited_ms is not None else NEVER_MS,
        newest_first=-incident.opened_ms,
    )


def _level(states: Set[str]) -> int:
    """Returns the level of an open incident by the states of its assignments."""
    if "NOBODY_AVAILABLE" in states:
        return FAILING
    if states & {"ESCALATED", "REJECTED"}:
        return ESCALATED
    if "OFFERED" in states:
        return WAITING
    return UNDER_WAY if states & ON_THE_WAY else NOTHING_AWAITED


def cause(incident: IncidentCard) -> str:
    """Returns the kind of alert with the gravest demand; empty if no leg discloses one."""
    by_demand = sorted(incident.assignments, key=lambda assignment: _DEMANDS.index(assignment.demand), reverse=True)
    return next((assignment.kind for assignment in by_demand if assignment.kind), "")


def shown(incident: IncidentCard, group: str = "", *, own_leg: str = "") -> dict[str, Any]:
    """Returns an incident as the browser gets it. An incident that demands a response ignores `group`, which may be outdated."""
    order = rank(incident, own_leg)
    gravest = demand(incident)
    call = panic(incident)
    return {
        "id": incident.incident_id,
        "opened": incident.opened_ms,
        "ended": incident.ended_ms,
        "level": order.level,
        "due": order.due_ms if order.due_ms != NEVER_MS else None,
        "demand": gravest,
        "cause": cause(incident),
        "group": "" if gravest == "RESPOND" else group,
        "alarm": is_new_alarm(incident),
        "sound": sound(incident, own_leg),
        "panic": call and call._asdict(),
        "unclosed": is_unclosed(incident, own_leg),
        "orders": sorted({id_ for assignment in incident.assignments for id_ in assignment.order_ids}),
        "exercise": order.exercise,
        "flags": sorted(flag.name for flag in flags(incident)),
        "notes": sum(assignment.notes for assignment in incident.assignments),
        "legs": {leg: [_assignment(assignment) for assignment in incident.of(leg)] for leg in LEGS},
    }


def alarm(incident: IncidentCard, own_leg: str) -> dict[str, Any]:
    """Returns what the browser needs to announce an incident, with the names of `shown`."""
    call = panic(incident)
    return {
        "id": incident.incident_id,
        "cause": cause(incident),
        "exercise": is_exercise(incident),
        "sound": sound(incident, own_leg),
        "panic": call and call._asdict(),
    }


def _assignment(assignment: AssignmentCard) -> dict[str, Any]:
    return {
        "id": assignment.assignment_id,
        "subject": assignment.subject_id,
        "state": assignment.state,
        "demand": assignment.demand,
        "offer": assignment.offer_number,
        "offered": assignment.offered_ms,
        "accepted": assignment.acknowledged_ms,
        "by": assignment.acknowledged_by,
        "due": assignment.due_ms,
        "office": assignment.office_id,
        "shown": assignment.shown_state,
        "unit": assignment.unit_id,
        "units": [_unit_offer(offer) for offer in assignment.unit_offers],
        "radio": _radio(assignment.radio) if assignment.radio else None,
        "system": assignment.reported_by_system,
        "escalation_level": assignment.escalation_level,
        "received": assignment.received_ms,
        "closed": assignment.close_cause,
        "contact": assignment.is_contact,
        "sort": assignment.sort,
        "unclosed": assignment.is_unclosed,
    }


def _radio(entry: RadioEntry) -> dict[str, Any]:
    return {"unit": entry.unit_name, "by": entry.by, "at": entry.at_ms}


def _unit_offer(offer: UnitOfferCard) -> dict[str, Any]:
    return {
        "unit": offer.unit_id,
        "class": offer.unit_class,
        "state": offer.state,
        "number": offer.number,
        "asked": offer.asked_ms,
        "until": offer.until_ms,
        "by": offer.asked_by,
        "received": offer.received_ms,
    }


@dataclass(frozen=True, slots=True)
class IncidentQuery:
    """Search query; an empty field doesn't restrict the result."""

    from_ms: int | None = None
    until_ms: int | None = None
    text: str = ""
    """Part of the id of an incident, an order or a subject."""
    cause: str = ""
    """Kind of alert."""
    outcome: str = ""
    """`open`, `over`, or a closing cause."""
    office: str = ""


def matching(incidents: Iterable[IncidentCard], question: IncidentQuery) -> list[IncidentCard]:
    """Returns the incidents that match, newest first, exercises too."""
    matched = [incident for incident in incidents if _matches(incident, question)]
    return sorted(matched, key=lambda incident: incident.opened_ms, reverse=True)


def _matches(incident_card: IncidentCard, question: IncidentQuery) -> bool:
    if question.from_ms is not None and incident_card.opened_ms < question.from_ms:
        return False
    if question.until_ms is not None and incident_card.opened_ms >= question.until_ms:
        return False
    named = [
        incident_card.incident_id,
        *(id_ for to in incident_card.assignments for id_ in (to.subject_id, *to.order_ids)),
    ]
    if question.text and not any(question.text in id_ for id_ in named):
        return False
    if question.cause and all(to.kind != question.cause for to in incident_card.assignments):
        return False
    if question.office and all(to.office_id != question.office for to in incident_card.assignments):
        return False
    match question.outcome:
        case "":
            return True
        case "open":
            return incident_card.ended_ms is None
        case "over":
            return incident_card.ended_ms is not None
        case cause:
            return any(to.close_cause == cause for to in incident_card.assignments)
