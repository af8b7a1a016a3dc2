"""What can happen to an incident of one leg, as it is written down. Pure.

Events are kept for good: a field that is added later has a default, which is what the events of before say.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import TypeAlias


class Demand(IntEnum):
    """What must be done about an alert, from least to most; the numbers are those of tandem.common.v1.Demand."""

    RECORD = 1
    WARN = 2
    NOTIFY = 3
    RESPOND = 4


class Exercise(IntEnum):
    """Whether something is in earnest; the numbers are those of tandem.common.v1.Exercise."""

    NONE = 0
    DRILL = 1
    CANARY = 2


Place: TypeAlias = tuple[int, int]
"""(sequence, ordinal): where an alert stands in the order of the log."""
BEFORE_ALL: Place = (0, -1)
BEYOND_ALL: Place = (1 << 62, 0)

SPOOFING_SUSPECTED = 17
"""Kind of an alert that says that positions may be spoofed, by its number in tandem.common.v1.AlertKind."""
UNTOLD = 0
"""Kind of an alert that was folded before kinds and clearings were kept, or that doesn't tell."""


@dataclass(frozen=True, slots=True)
class Cause:
    """The report that made a decision."""

    device_id: str
    report_id: str
    received_wall_us: int
    """When ingest received it, wall clock, microseconds since 1970 UTC."""


class EscalationLevel(IntEnum):
    """Who is asked, from first to last; the numbers are those of tandem.dispatch.v1.Rung."""

    UNIT = 1
    NEXT_UNIT = 2
    NEXT_OFFICE = 3
    SUPERVISOR = 4
    NATIONAL_DESK = 5


class Estimate(IntEnum):
    """How a travel time was found; the numbers are those of tandem.dispatch.v1.Estimate."""

    UNKNOWN = 0
    GREAT_CIRCLE = 1
    ROAD = 2
    GREAT_CIRCLE_INSTEAD = 3


class EscalationReason(IntEnum):
    """Why an assignment is offered on; the numbers are those of tandem.dispatch.v1.ClimbReason."""

    UNTOLD = 0
    """As it was written before reasons were kept."""
    NOT_RECEIVED = 1
    NOT_ACKNOWLEDGED = 2
    NOT_DISPATCHED = 3
    REFUSED = 4
    NOBODY = 5
    UNIT_GONE = 6
    TARGET_MOVED = 7
    RACE_LOST = 8


class Advice(IntEnum):
    """What a protected person is advised to do; the numbers are those of tandem.dispatch.v1.Advice."""

    NONE = 0
    STAY_INSIDE = 1
    LEAVE = 2


class CloseCause(IntEnum):
    """What it was; the numbers are those of tandem.dispatch.v1.CloseCause."""

    BREACH_CONFIRMED = 1
    FALSE_POSITION = 2
    EQUIPMENT = 3
    AUTHORISED = 4
    EXERCISE = 5
    OTHER = 6
    NOBODY_FOUND = 7


class WarningFlag(IntEnum):
    """What the police must know of a protected person; the numbers are those of tandem.dispatch.v1.WarningFlag."""

    NO_RECEIPT = 1
    NO_CONTACT = 2
    DURESS = 3
    REACHED = 4


@dataclass(frozen=True, slots=True)
class Choice:
    """Whom an assignment is offered to, and what that rests on."""

    level: EscalationLevel
    office_id: str
    unit_id: str = ""
    """Empty for a desk."""
    unit_class: str = ""
    desk: str = ""
    """The supervisor's or the national one; empty for a unit."""
    travel_s: int | None = None
    """Travel time, seconds; None where it is unknown."""
    estimate: Estimate = Estimate.UNKNOWN
    candidates: int = 0
    """How many units of the office could have been asked."""
    busy_in: str = ""
    """The incident that the unit has a part in already."""
    busy: bool = False
    """The unit says that it does something else."""


@dataclass(frozen=True, slots=True)
class AlertFolded:
    """An alert was taken in; the steps that it leads to follow."""

    at_ms: int
    alert_id: str
    place: Place
    demand: Demand
    order_id: str
    assignment_ids: tuple[str, ...]
    """What it demands something of."""
    ends: bool
    kind: int = UNTOLD
    """Number of the tandem.common.v1.AlertKind, which may be one that this leg doesn't know yet."""
    threat: str = ""
    """What it is about, as Alert.threat."""
    cause: Cause | None = None
    legs: tuple[str, ...] = ()
    """Other legs that it demands a response of; empty where this leg doesn't look after them."""
    wearer_id: str = ""
    ring_m: float = 0.0
    """Radius of the ring, metres; 0 where the alert isn't of a ring."""
    exercise: Exercise = Exercise.NONE


@dataclass(frozen=True, slots=True)
class AlertWasMissing:
    """The comparison with ALERTS found that this record lacked an alert which demands a response; it is taken in now."""

    at_ms: int
    alert_id: str


@dataclass(frozen=True, slots=True)
class Notified:
    """The desk is told."""

    at_ms: int
    assignment_id: str
    subject_id: str
    demand: Demand
    place: Place
    cause: Cause | None
    kind: int = UNTOLD


@dataclass(frozen=True, slots=True)
class Offered:
    """The desk is asked to take it."""

    at_ms: int
    assignment_id: str
    subject_id: str
    demand: Demand
    place: Place
    cause: Cause | None
    due_ms: int
    kind: int = UNTOLD
    choice: Choice | None = None
    """None where there is no roster: the desk itself."""


@dataclass(frozen=True, slots=True)
class Reoffered:
    """The desk took it, and is asked anew: the threat came back after it was over, or grew."""

    at_ms: int
    assignment_id: str
    alert_id: str
    """The alert that asks for it; another one may have shown that it does."""
    demand: Demand
    kind: int
    cause: Cause | None
    due_ms: int
    choice: Choice | None = None


@dataclass(frozen=True, slots=True)
class NobodyAvailable:
    """The roster has no unit to offer it to; an escalation follows."""

    at_ms: int
    assignment_id: str


@dataclass(frozen=True, slots=True)
class Escalated:
    """It is offered on, or to the same once more where there is no further rung."""

    at_ms: int
    assignment_id: str
    due_ms: int
    choice: Choice | None = None
    escalation_reason: EscalationReason = EscalationReason.UNTOLD


@dataclass(frozen=True, slots=True)
class Received:
    """The desk's machine has the present offer."""

    at_ms: int
    assignment_id: str
    by: str
    due_ms: int


@dataclass(frozen=True, slots=True)
class Acknowledged:
    """A person took it."""

    at_ms: int
    assignment_id: str
    by: str
    due_ms: int | None = None
    """When a unit must have been told to go; None where there is no roster."""


@dataclass(frozen=True, slots=True)
class Rejected:
    """Whoever was asked, or had taken it, can't; an escalation follows."""

    at_ms: int
    assignment_id: str
    by: str
    reason: str


@dataclass(frozen=True, slots=True)
class Progressed:
    """The unit is one step further."""

    at_ms: int
    assignment_id: str
    by: str
    state: int
    """Number of the tandem.dispatch.v1.AssignmentState, from DISPATCHED to APPREHENDED."""


@dataclass(frozen=True, slots=True)
class Closed:
    """The desk said what it was."""

    at_ms: int
    assignment_id: str
    by: str
    cause: CloseCause
    note: str


@dataclass(frozen=True, slots=True)
class StoodDown:
    """It is no longer needed."""

    at_ms: int
    assignment_id: str
    kind: int = UNTOLD
    """Kind of the alert with which it was over."""


@dataclass(frozen=True, slots=True)
class LegAbsent:
    """Another leg has shown no step in time of what the same alert demands of it."""

    at_ms: int
    assignment_id: str
    leg: str


@dataclass(frozen=True, slots=True)
class LegReturned:
    """That leg shows its steps now."""

    at_ms: int
    assignment_id: str
    leg: str


@dataclass(frozen=True, slots=True)
class StepsLost:
    """INCIDENTS holds steps of this assignment that this record lacks, as after an older copy of it was restored.

    What they said counts for nothing any more; the next step is numbered behind them.
    """

    at_ms: int
    assignment_id: str
    number: int
    """Of the last of them."""


Found: TypeAlias = LegAbsent | LegReturned | StepsLost
"""What a leg finds out by itself."""


@dataclass(frozen=True, slots=True)
class Flagged:
    """The warning leg says something of the protected person."""

    at_ms: int
    assignment_id: str
    flag: WarningFlag
    flagged_ms: int
    """Since when, by the warning leg, mesh time; of two, the later counts."""
    alert_id: str
    """The alert that the person was last warned of."""
    place: Place
    """Where that stands in the log."""


@dataclass(frozen=True, slots=True)
class Retargeted:
    """Whoever goes is told that the target is elsewhere now."""

    at_ms: int
    assignment_id: str
    moved_m: int
    """How far from where it was when the unit was chosen, or told the last time."""


@dataclass(frozen=True, slots=True)
class Raced:
    """The race is being lost, or isn't any more."""

    at_ms: int
    assignment_id: str
    losing: bool
    advice: Advice
    wearer_s: int | None
    """The wearer's time to the destination, seconds; None where the wearer doesn't come nearer."""
    responder_s: int
    """That of whoever goes there."""
    by_ring: bool
    """`wearer_s` is the ring's radius at the wearer's pace: at most so long."""
    supervisor_desk: str = ""
    """Who is told as well; empty where there is no roster."""
    due_ms: int | None = None
    """When it is offered on from now on; None where nothing changes."""


@dataclass(frozen=True, slots=True)
class SceneShared:
    """The wearer is where the other leg goes to, or isn't any more, by the rings."""

    at_ms: int
    assignment_id: str
    one_scene: bool


@dataclass(frozen=True, slots=True)
class SpoofingSuspected:
    """The desk is notified, while its half of the incident goes on, that the positions may be spoofed."""

    at_ms: int
    assignment_id: str
    alert_id: str
    """The alert that says so."""


@dataclass(frozen=True, slots=True)
class TargetsShown:
    """A desk was shown where the incident's targets are, live, from now on."""

    at_ms: int
    by: str


Offer: TypeAlias = Offered | Reoffered | Escalated
"""What asks somebody."""
Answer: TypeAlias = Received | Acknowledged | Rejected | Progressed | Closed
"""What the desk says."""
Kept: TypeAlias = Retargeted | Raced | SceneShared | SpoofingSuspected
"""What stays with the leg: the moment alone would tell another one how far the wearer is from the target."""
Step: TypeAlias = Notified | Offer | NobodyAvailable | Answer | StoodDown | Found | Flagged | Kept
Event: TypeAlias = AlertFolded | AlertWasMissing | TargetsShown | Step
