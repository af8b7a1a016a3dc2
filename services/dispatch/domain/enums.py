"""Numbered enumerations of the dispatch domain. Each has the numbers of its protobuf enum. Pure."""

from __future__ import annotations

from enum import IntEnum


class Demand(IntEnum):
    """Reaction that an alert demands, from least to most; numbers of tandem.common.v1.Demand."""

    RECORD = 1
    WARN = 2
    NOTIFY = 3
    RESPOND = 4


class Exercise(IntEnum):
    """Whether an alert is live or belongs to an exercise; numbers of tandem.common.v1.Exercise."""

    NONE = 0
    DRILL = 1
    CANARY = 2


class Task(IntEnum):
    """Task of an assignment; numbers of tandem.common.v1.Task."""

    RESPOND = 0
    """The response to the incident. It is over when the incident is."""
    CHECK = 1
    """Look into the wearer's act at once, after a notice of the Ministry (Tag Act Decree 13-2(2), Tag Act 31-6(5)). The end of the
    incident doesn't end this duty: only the desk does."""
    CONTACT = 2
    """The first contact with the wearer: nobody goes."""


class SubjectKind(IntEnum):
    """What the destination of an assignment is; numbers of tandem.common.v1.SubjectKind."""

    UNSPECIFIED = 0
    """The event was stored before kinds of destinations were."""
    WEARER = 1
    PROTECTED_PERSON = 2
    PROTECTED_PLACE = 3
    SILENT_WEARERS = 4
    """Wearers who fell silent together, under the id of their outage."""


class EscalationLevel(IntEnum):
    """Level to which an assignment is offered, from first to last; numbers of tandem.dispatch.v1.EscalationLevel."""

    UNIT = 1
    NEXT_UNIT = 2
    NEXT_OFFICE = 3
    SUPERVISOR = 4
    NATIONAL_DESK = 5


class UnitOfferState(IntEnum):
    """What became of an offer to a unit; numbers of tandem.dispatch.v1.UnitOfferState."""

    ASKED = 1
    ACCEPTED = 2
    REFUSED = 3
    MISSED = 4
    NOT_NEEDED = 5
    OFF_DUTY = 6
    REPLACED = 7
    """The unit had accepted, and others were asked after that."""


class Estimate(IntEnum):
    """Source of a travel time; numbers of tandem.dispatch.v1.Estimate."""

    UNKNOWN = 0
    GREAT_CIRCLE = 1
    ROAD = 2
    GREAT_CIRCLE_INSTEAD = 3


class EscalationReason(IntEnum):
    """Reason for an escalation; numbers of tandem.dispatch.v1.EscalationReason."""

    UNSPECIFIED = 0
    """The event was stored before reasons were kept."""
    NOT_RECEIVED = 1
    NOT_ACKNOWLEDGED = 2
    NOT_DISPATCHED = 3
    REFUSED = 4
    NOBODY = 5
    UNIT_GONE = 6
    TARGET_MOVED = 7
    RACE_LOST = 8
    NOT_DEPARTED = 9
    NOT_ARRIVED = 10
    NO_WORD = 11


class Advice(IntEnum):
    """Advice to a protected person; numbers of tandem.dispatch.v1.Advice."""

    NONE = 0
    STAY_INSIDE = 1
    LEAVE = 2


class CloseCause(IntEnum):
    """Cause of an incident, which the desk states when it closes an assignment; numbers of tandem.dispatch.v1.CloseCause."""

    BREACH_CONFIRMED = 1
    FALSE_POSITION = 2
    EQUIPMENT = 3
    AUTHORISED = 4
    EXERCISE = 5
    OTHER = 6
    NOBODY_FOUND = 7


class ContactPlan(IntEnum):
    """Ways of a first contact with the wearer; numbers of tandem.common.v1.ContactPlan."""

    TAG = 1
    CALL = 2
    OUT_OF_BUDGET = 4
    WITHHELD = 5
    TURNED_BACK = 6


class ContactState(IntEnum):
    """States of a first contact; numbers of tandem.dispatch.v1.ContactState."""

    SENT = 1
    CALL_DUE = 2
    CONTACTED = 3
    TURNED_BACK = 4
    NO_ANSWER = 5
    OUT_OF_BUDGET = 6


class CallReason(IntEnum):
    """Why an officer calls the wearer; numbers of tandem.dispatch.v1.CallReason."""

    UNSPECIFIED = 0
    NO_TAG = 1
    TAG_REFUSED = 2
    NOT_CONFIRMED = 3
    NOT_TURNED_BACK = 4


class WarningFlag(IntEnum):
    """State of a protected person that the police must know; numbers of tandem.dispatch.v1.WarningFlag."""

    NO_RECEIPT = 1
    NO_CONTACT = 2
    DURESS = 3
    REACHED = 4
