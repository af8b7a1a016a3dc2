"""Events of one leg's share of an incident, as they are stored. Pure. A field that is added later has a default for older events."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from types import MappingProxyType
from typing import NamedTuple, TypeAlias

from services.dispatch.domain.enums import (
    Advice,
    CallReason,
    CloseCause,
    ContactPlan,
    ContactState,
    Demand,
    EscalationReason,
    Exercise,
    SubjectKind,
    Task,
    UnitOfferState,
    WarningFlag,
)
from services.dispatch.domain.leg import Leg
from services.dispatch.domain.roster import Choice, TravelEstimated

LogPosition: TypeAlias = tuple[int, int]
"""(sequence, ordinal): the sequence of the entry that caused an alert, and the alert's ordinal among those of that entry."""
BEFORE_ALL: LogPosition = (0, -1)
BEYOND_ALL: LogPosition = (1 << 62, 0)
PANIC = 4
"""Number of PANIC in tandem.common.v1.AlertKind: a protected person calls for help."""
SPOOFING_SUSPECTED = 17
"""Number of SPOOFING_SUSPECTED in tandem.common.v1.AlertKind: positions may be spoofed."""
KIND_UNSPECIFIED = 0
"""Alert kind of an event without one, such as an event stored before alert kinds were kept."""


@dataclass(frozen=True, slots=True)
class Cause:
    """The device report that caused an alert."""

    device_id: str
    report_id: str
    received_wall_us: int
    """When ingest received the report, wall clock, microseconds since 1970 UTC."""


@dataclass(frozen=True, slots=True)
class AlertFolded:
    """An alert was applied to the incident. The resulting steps are stored after this event."""

    at_ms: int
    alert_id: str
    place: LogPosition
    demand: Demand
    order_id: str
    assignment_ids: tuple[str, ...]
    """Assignments that the alert concerns."""
    ends: bool
    """The alert ends the incident."""
    kind: int = KIND_UNSPECIFIED
    """Number of the tandem.common.v1.AlertKind. This version of the leg may not know the kind yet."""
    threat: str = ""
    """Key of the alert's threat, as in `Alert.threat`."""
    cause: Cause | None = None
    legs: tuple[Leg, ...] = ()
    """Other legs that must respond to the alert too and that this leg watches."""
    wearer_id: str = ""
    ring_m: float = 0.0
    """Radius of the ring, metres; 0 if the alert concerns no ring."""
    exercise: Exercise = Exercise.NONE
    check_ids: tuple[str, ...] = ()
    """Assignments of the task CHECK that the alert demands, whatever its demand is."""


@dataclass(frozen=True, slots=True)
class AlertWasMissing:
    """A comparison with the stream ALERTS found an alert that the leg's record lacked. The alert is applied now."""

    at_ms: int
    alert_id: str


@dataclass(frozen=True, slots=True)
class Notified:
    """The desk was notified; no acknowledgement is needed."""

    at_ms: int
    assignment_id: str
    subject_id: str
    demand: Demand
    place: LogPosition
    cause: Cause | None
    kind: int = KIND_UNSPECIFIED
    subject_kind: SubjectKind = SubjectKind.UNSPECIFIED


@dataclass(frozen=True, slots=True)
class Offered:
    """The assignment was offered to a unit or the desk."""

    at_ms: int
    assignment_id: str
    subject_id: str
    demand: Demand
    place: LogPosition
    cause: Cause | None
    due_ms: int
    kind: int = KIND_UNSPECIFIED
    choice: Choice | None = None
    """None if the offer goes to the desk itself, without the roster."""
    task: Task = Task.RESPOND
    open_until_ms: int | None = None
    """Until when the unit may accept, mesh time; None if a desk was asked."""
    subject_kind: SubjectKind = SubjectKind.UNSPECIFIED


@dataclass(frozen=True, slots=True)
class Reoffered:
    """An accepted assignment was offered once more, because the threat grew, or came back after it was over."""

    at_ms: int
    assignment_id: str
    alert_id: str
    """The alert that demands the re-offer. Stored, because it needn't be the alert that arrived last: alerts come in any order."""
    demand: Demand
    kind: int
    cause: Cause | None
    due_ms: int
    choice: Choice | None = None
    open_until_ms: int | None = None
    """As in `Offered.open_until_ms`."""


@dataclass(frozen=True, slots=True)
class NobodyAvailable:
    """The roster has no unit for the assignment; an escalation follows."""

    at_ms: int
    assignment_id: str


@dataclass(frozen=True, slots=True)
class Escalated:
    """The assignment was offered at the next escalation level, or once more to the same desk after the last level.

    Earlier offers to units stay open.
    """

    at_ms: int
    assignment_id: str
    due_ms: int
    choice: Choice | None = None
    escalation_reason: EscalationReason = EscalationReason.UNSPECIFIED
    open_until_ms: int | None = None
    """As in `Offered.open_until_ms`."""


@dataclass(frozen=True, slots=True)
class UnitAsked:
    """A unit was asked beside the present offer: by an officer, or by the leg because a unit that an officer asked gave no answer."""

    at_ms: int
    assignment_id: str
    choice: Choice
    open_until_ms: int
    """Until when the unit may accept, mesh time."""
    by: str = ""
    """SPIFFE id of the officer; empty if the leg asked the unit by itself."""
    ask_next_ms: int | None = None
    """When the leg asks the next unit, mesh time; None if the deadline of the present offer does so."""


@dataclass(frozen=True, slots=True)
class NoUnitLeft:
    """The leg would have asked another unit beside those that an officer asked, and none is free. The desk's deadline goes on."""

    at_ms: int
    assignment_id: str


@dataclass(frozen=True, slots=True)
class UnitOfferEnded:
    """An offer to a unit ended without its answer: nobody answered in time, or the unit went off duty."""

    at_ms: int
    assignment_id: str
    offer_number: int
    state: UnitOfferState


@dataclass(frozen=True, slots=True)
class SentByRadio:
    """The desk ordered a unit to go by radio or telephone, or corrected the unit's name."""

    at_ms: int
    assignment_id: str
    by: str
    """SPIFFE id of the officer who entered it."""
    unit_name: str
    """Name of the unit as the officer typed it."""
    due_ms: int | None = None
    """Deadline for the unit's next step, mesh time; None if none is awaited."""
    remind_ms: int | None = None
    """When the desk is reminded of that step, mesh time."""


@dataclass(frozen=True, slots=True)
class Received:
    """The machine of the desk or unit confirmed that it has an offer."""

    at_ms: int
    assignment_id: str
    by: str
    due_ms: int | None
    offer_number: int = 0
    """Number of the offer to a unit; 0 for the present offer to a desk."""
    ask_next_ms: int | None = None
    """As in `UnitAsked.ask_next_ms`."""


@dataclass(frozen=True, slots=True)
class Acknowledged:
    """A unit or the desk accepted the assignment."""

    at_ms: int
    assignment_id: str
    by: str
    due_ms: int | None = None
    """Deadline for dispatching a unit, mesh time; None if there is no roster."""
    remind_ms: int | None = None
    """When the unit is reminded of its next step, mesh time; None if it isn't."""
    offer_number: int = 0
    """Number of the offer that a unit accepted; 0 if the desk accepted the assignment itself, so that no unit has it."""
    ask_next_ms: int | None = None
    """When the leg asks another unit beside those that are asked while the desk has the assignment, mesh time; None if it doesn't."""


@dataclass(frozen=True, slots=True)
class Rejected:
    """A unit or desk refused an offer, or gave the accepted assignment back. An escalation follows, but not after an earlier offer."""

    at_ms: int
    assignment_id: str
    by: str
    reason: str
    offer_number: int = 0
    """Number of a refused offer to a unit beside the present one; 0 for the present offer or the accepted assignment."""


@dataclass(frozen=True, slots=True)
class Progressed:
    """The unit reached the next state of an accepted assignment."""

    at_ms: int
    assignment_id: str
    by: str
    state: int
    """Number of the tandem.dispatch.v1.AssignmentState, from DISPATCHED to APPREHENDED."""
    due_ms: int | None = None
    """Deadline for the unit's next step, mesh time; None if none is awaited."""
    remind_ms: int | None = None
    """When the unit is reminded of that step, mesh time."""


@dataclass(frozen=True, slots=True)
class Closed:
    """The desk closed the assignment with a cause."""

    at_ms: int
    assignment_id: str
    by: str
    cause: CloseCause
    note: str


@dataclass(frozen=True, slots=True)
class StoodDown:
    """The assignment is no longer needed."""

    at_ms: int
    assignment_id: str
    kind: int = KIND_UNSPECIFIED
    """Kind of the alert that ended the incident."""


@dataclass(frozen=True, slots=True)
class LegAbsent:
    """Another leg showed no step in time for an alert that demands a response of both legs."""

    at_ms: int
    assignment_id: str
    leg: Leg


@dataclass(frozen=True, slots=True)
class LegReturned:
    """A leg that was absent shows its steps now."""

    at_ms: int
    assignment_id: str
    leg: Leg


@dataclass(frozen=True, slots=True)
class StepsLost:
    """INCIDENTS holds steps of this assignment that this record lacks. They are not read back; the next step is numbered after them."""

    at_ms: int
    assignment_id: str
    number: int
    """Number of the last lost step."""


LegFinding: TypeAlias = LegAbsent | LegReturned | StepsLost
"""Event that a leg derives by comparing its record with the streams."""


@dataclass(frozen=True, slots=True)
class Flagged:
    """The warning leg raised a flag of the protected person."""

    at_ms: int
    assignment_id: str
    flag: WarningFlag
    flagged_ms: int
    """When the warning leg raised the flag, mesh time. The later of two flags counts."""
    alert_id: str
    """The alert in the last warning to the person."""
    place: LogPosition
    """Log position of that alert."""


@dataclass(frozen=True, slots=True)
class Retargeted:
    """The responder was notified that the target has moved."""

    at_ms: int
    assignment_id: str
    moved_m: int
    """Distance, metres, from the target's position when the unit was chosen or last notified."""


@dataclass(frozen=True, slots=True)
class SceneShared:
    """The rings show that the wearer came to the protected person or place, or left. Both legs go to one scene while he is there."""

    at_ms: int
    assignment_id: str
    one_scene: bool


@dataclass(frozen=True, slots=True)
class SpoofingSuspected:
    """The desk was notified that positions may be spoofed, while its assignment is open."""

    at_ms: int
    assignment_id: str
    alert_id: str
    """The alert that raised the suspicion."""


@dataclass(frozen=True, slots=True)
class PanicCalled:
    """A protected person called for help. The desk, and the unit that has the assignment, are notified while the assignment is open."""

    at_ms: int
    assignment_id: str
    alert_id: str
    caller: str
    """Key of the person under one order, as in `AlertPanic.caller`."""
    called_ms: int
    """When she pressed the button, mesh time."""
    place: LogPosition
    """Log position of the alert."""


@dataclass(frozen=True, slots=True)
class PanicWithdrawn:
    """The protected person took her call for help back."""

    at_ms: int
    assignment_id: str
    alert_id: str
    caller: str
    """Key of the person under one order, as in `AlertPanic.caller`."""
    withdrawn_ms: int
    """When she took the call back, mesh time."""
    place: LogPosition
    """Log position of the alert."""


@dataclass(frozen=True, slots=True)
class ContactBegun:
    """A first contact with the wearer began, or follows on an earlier one of the incident."""

    at_ms: int
    assignment_id: str
    subject_id: str
    demand: Demand
    place: LogPosition
    cause: Cause | None
    kind: int
    contact_id: str
    plan: ContactPlan
    device_id: str
    due_ms: int | None
    """Deadline for the tag's confirmation, mesh time; None if no tag gets the message."""


@dataclass(frozen=True, slots=True)
class ContactStepped:
    """The first contact reached another state. `by` recorded a call; at `due_ms`, mesh time, an officer has to call."""

    at_ms: int
    assignment_id: str
    state: ContactState
    call_reason: CallReason
    by: str
    due_ms: int | None


@dataclass(frozen=True, slots=True)
class TargetsShown:
    """A desk began to receive live positions of the incident's targets."""

    at_ms: int
    by: str


class WorkLimits(NamedTuple):
    """When the unit of an accepted assignment is reminded, and when the assignment escalates, mesh time; None without a limit."""

    remind_ms: int | None = None
    due_ms: int | None = None


UNLIMITED = WorkLimits()


@dataclass(frozen=True, slots=True)
class Reminded:
    """The unit was reminded of its next step. The assignment escalates at its deadline unless the step comes."""

    at_ms: int
    assignment_id: str


@dataclass(frozen=True, slots=True)
class Assured:
    """The unit, or its desk for it, said that it goes on: still on the way, or still busy on the scene. The limits begin once more."""

    at_ms: int
    assignment_id: str
    by: str
    due_ms: int | None
    remind_ms: int | None


@dataclass(frozen=True, slots=True)
class DistressRaised:
    """An officer of the unit calls for help. Both agencies' desks see it."""

    at_ms: int
    assignment_id: str
    by: str
    unit_id: str


@dataclass(frozen=True, slots=True)
class DistressEnded:
    """The desk of the unit ended an officer's call for help."""

    at_ms: int
    assignment_id: str
    by: str


@dataclass(frozen=True, slots=True)
class Raced:
    """The race against the wearer began to be lost, or is no longer being lost."""

    at_ms: int
    assignment_id: str
    losing: bool
    advice: Advice
    wearer_s: int | None
    """The wearer's time to the destination, seconds; None if the wearer doesn't come nearer."""
    responder_s: int
    """The responder's time to the destination, seconds."""
    by_ring: bool
    """Whether the distance is known only by the ring. `wearer_s` is then the greatest possible time: radius divided by pace."""
    supervisor_desk: str = ""
    """Supervisor's desk that is notified too; empty if there is no roster."""
    due_ms: int | None = None
    """New deadline of the offer, mesh time; None if the deadline doesn't change."""


class NoteKind(IntEnum):
    """Kind of a note; numbers of tandem.dispatch.v1.NoteKind."""

    NOTE = 1
    CALLED_WEARER = 2
    CALLED_PROTECTED_PERSON = 3
    CALLED_OTHER_DESK = 4
    CALLED_UNIT = 5
    CALLED_OTHER = 6


KEPT_KINDS = frozenset({NoteKind.CALLED_PROTECTED_PERSON})
"""Kinds of notes that stay with the leg unless the desk says otherwise: what she says on the telephone may tell where she is."""


class NotedResult(IntEnum):
    """Result of a call; numbers of tandem.dispatch.v1.NotedResult."""

    UNSPECIFIED = 0
    NOTED_SPOKEN = 1
    NOTED_NO_ANSWER = 2


@dataclass(frozen=True, slots=True)
class NoteAdded:
    """The desk wrote a note. It changes no state and no deadline."""

    at_ms: int
    assignment_id: str
    """The assignment whose step publishes the note: the first of the incident."""
    note_id: str
    by: str
    """SPIFFE id of the writer."""
    kind: NoteKind
    result: NotedResult
    text: str
    kept: bool
    """Whether the note stays with the leg."""


Offer: TypeAlias = Offered | Reoffered | Escalated
"""Event that asks a unit or desk to accept an assignment."""
Answer: TypeAlias = Received | Acknowledged | Rejected | Progressed | SentByRadio | Assured | Closed
"""Event that records an answer of the desk or unit."""
UnitStep: TypeAlias = UnitAsked | NoUnitLeft | UnitOfferEnded
"""Step of an offer to a unit beside the assignment's progress. It is the agency's own affair."""
TargetStep: TypeAlias = Retargeted | Raced | SceneShared | SpoofingSuspected | TravelEstimated
"""Step about the target of the assignment, or the wearer's way to it."""
PanicStep: TypeAlias = PanicCalled | PanicWithdrawn
PrivateStep: TypeAlias = TargetStep | Reminded | UnitStep | PanicStep
"""Step that is not published to other legs. The time of such a step alone would reveal how far the wearer is from the target, or it
concerns the agency's own units alone. Each leg learns of a call for help by its own alerts."""
ContactStep: TypeAlias = ContactBegun | ContactStepped
SideStep: TypeAlias = Flagged | NoteAdded | DistressRaised | DistressEnded
"""Step that states a fact beside the assignment's progress."""
Step: TypeAlias = (
    Notified | Offer | NobodyAvailable | Answer | StoodDown | LegFinding | SideStep | PrivateStep | ContactStep
)
Event: TypeAlias = AlertFolded | AlertWasMissing | TargetsShown | Step


@dataclass(frozen=True, slots=True)
class EventKind:
    """Name of one kind of event in the store, in logs and in metrics."""

    stored_name: str
    """Name under which events are stored and hashed. The class may be renamed but not this name, or the chain doesn't verify."""
    log_name: str = ""
    """Name of the step in logs and metrics. If empty, the name of the assignment's new state is used."""
    alarms: bool = False
    """The step is logged as critical, since a person must do something that the leg can't."""


EVENTS: Mapping[type[Event], EventKind] = MappingProxyType(
    {
        AlertFolded: EventKind("AlertFolded"),
        AlertWasMissing: EventKind("AlertWasMissing"),
        Notified: EventKind("Notified"),
        Offered: EventKind("Offered"),
        Reoffered: EventKind("Reoffered", "offered_again"),
        NobodyAvailable: EventKind("NobodyAvailable"),
        Escalated: EventKind("Escalated"),
        UnitAsked: EventKind("UnitAsked", "unit_asked"),
        NoUnitLeft: EventKind("NoUnitLeft", "no_unit_left"),
        UnitOfferEnded: EventKind("UnitOfferEnded", "unit_offer_ended"),
        SentByRadio: EventKind("SentByRadio", "sent_by_radio"),
        Received: EventKind("Received", "received"),
        Acknowledged: EventKind("Acknowledged"),
        Rejected: EventKind("Rejected"),
        Progressed: EventKind("Progressed"),
        Closed: EventKind("Closed"),
        StoodDown: EventKind("StoodDown"),
        LegAbsent: EventKind("LegAbsent", "leg_absent", alarms=True),
        LegReturned: EventKind("LegReturned", "leg_returned"),
        StepsLost: EventKind("StepsLost", "steps_lost", alarms=True),
        Flagged: EventKind("Flagged", "flagged"),
        Retargeted: EventKind("Retargeted", "retargeted"),
        Raced: EventKind("Raced", "raced"),
        SceneShared: EventKind("SceneShared", "scene_shared"),
        SpoofingSuspected: EventKind("SpoofingSuspected", "spoofing_suspected"),
        TravelEstimated: EventKind("TravelEstimated", "travel_estimated"),
        PanicCalled: EventKind("PanicCalled", "panic_called"),
        PanicWithdrawn: EventKind("PanicWithdrawn", "panic_withdrawn"),
        ContactBegun: EventKind("ContactBegun", "contact_begun"),
        ContactStepped: EventKind("ContactStepped", "contact_stepped"),
        TargetsShown: EventKind("TargetsShown"),
        NoteAdded: EventKind("NoteAdded", "noted"),
        Reminded: EventKind("Reminded", "reminded"),
        Assured: EventKind("Assured", "assured"),
        DistressRaised: EventKind("DistressRaised", "distress_raised", alarms=True),
        DistressEnded: EventKind("DistressEnded", "distress_ended"),
    }
)
"""All kinds of events."""
