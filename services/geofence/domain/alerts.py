"""Outputs of the fold: alerts with their figures, requests for data, messages to wearers, and dead letters."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from services.common.privacy.notices import NoticeGround
from services.geofence.domain.demands import AlertKind, Leg
from services.geofence.domain.entries import Demand, Exercise


class ContactPlan(enum.Enum):
    """Ways of a first contact."""

    TAG = "TAG"
    """The tag shows the message; if that doesn't help, an officer calls."""
    CALL = "CALL"
    """No tag of the wearer was heard lately: an officer calls at once."""
    OUT_OF_BUDGET = "OUT_OF_BUDGET"
    """The order's budget of contacts is used up."""
    WITHHELD = "WITHHELD"
    """The rule doesn't allow a contact here and now."""
    TURNED_BACK = "TURNED_BACK"
    """The wearer left the ring after the contact, and entered no ring that demands a response meanwhile."""


class ContactWithheld(enum.Enum):
    """Why a contact is withheld."""

    JUST_CONTACTED = "JUST_CONTACTED"
    """The wearer was contacted within the last 10 minutes, under whatever order."""
    KNOWN_STAY = "KNOWN_STAY"
    """The wearer has lately stayed within that ring for hours, so that each way home would be a contact."""
    PAST = "PAST"
    """The alert is of a time that is over."""


@dataclass(frozen=True, slots=True)
class FirstContact:
    """What the decision says about the first contact, on the alert of a ring."""

    contact_id: str
    """Id of the contact, and of the command to the tag if there is one."""
    plan: ContactPlan
    withheld: ContactWithheld | None = None
    """WITHHELD: why; else None."""
    device_id: str = ""
    """Device that gets the message; empty if none does."""


class AnomalyKind(enum.Enum):
    """Why a position can't be accepted at face value."""

    JUMP = "JUMP"
    """No movement explains the step to this position, or the step from this position to the next."""
    VAGUE = "VAGUE"
    """The accuracy is too poor to say whether the wearer is within the ring that demands a response."""
    CLOCK = "CLOCK"
    """All reports of a device are dated too far off to be used."""
    FROZEN = "FROZEN"
    """Positions stayed equal to the digit for long, from a device whose positions had always differed."""
    COPIED = "COPIED"
    """A stretch of different positions equals an earlier stretch to the digit."""
    PRESENCE = "PRESENCE"
    """Positions, or another unit, contradict a presence at a home unit or beacon."""


@dataclass(frozen=True, slots=True)
class CausingReport:
    """The report that caused a decision."""

    device_id: str
    report_id: str
    received_wall_us: int


@dataclass(frozen=True, slots=True)
class MinistryNotice:
    """A notice of the Ministry to protected persons, which is due with an alert or has ended with it."""

    ground: NoticeGround
    person_ids: tuple[str, ...]
    """Persons who get the notice."""
    gives_location: bool = False
    """Whether the Ministry's rule of urgency holds, so that a location may go with the notice. Probation never learns of it."""
    ended: bool = False


@dataclass(frozen=True, slots=True)
class Alert:
    """A decision of the fold. Its id is a hash of the entry and the subject, never of how many other alerts the entry has."""

    alert_id: str
    sequence: int
    ordinal: int
    kind: AlertKind
    demand: Demand
    order_id: str
    case_id: str
    episode_id: str
    incident_id: str
    wearer_id: str
    target_id: str
    ring_mm: int
    at_ms: int
    """The moment in the world for which the decision holds."""
    decided_at_ms: int
    """When the causing entry arrived, mesh time."""
    late: bool
    destinations: tuple[tuple[Leg, str], ...]
    incident_opens: bool
    """Whether the incident begins with this alert."""
    incident_ends: bool
    """Whether no episode of the wearer is open any more."""
    cause: CausingReport | None
    cause_of_wearer: bool
    """Whether the causing report is from the wearer's own tag."""
    distance_mm: float | None
    probability: float | None
    fold_version: int
    rules_id: str
    inside: tuple[tuple[int, int], ...] = ()
    min_distance_mm: float | None = None
    min_distance_assumed: bool = False
    """Whether the least distance is that of the entry, at a moment at which the position of one side is still unknown."""
    amends: str = ""
    """ACCOUNT_AMENDED: id of the RING_CLEARED alert with the account that this alert replaces."""
    unconfirmed: bool = False
    """Whether the alert ends something although no report shows that it is over."""
    encounter_id: str = ""
    """Id of the authorised encounter that is the reason why nobody is sent."""
    exercise: Exercise = Exercise.NONE
    outage_id: str = ""
    """Id of the outage that an OUTAGE alert announces or ends, or that explains a silence."""
    outage_silent: int = 0
    """OUTAGE: number of silent wearers; at the end of the outage, the greatest number."""
    outage_watched: int = 0
    """OUTAGE: number of watched wearers."""
    anomaly: AnomalyKind | None = None
    """Why the positions behind the alert can't be accepted at face value."""
    notice: MinistryNotice | None = None
    """Notice of the Ministry that is due or has ended; None if there is none."""
    checks: tuple[Leg, ...] = ()
    """Legs that must look into the wearer's act at once, whatever the demand."""
    removal_id: str = ""
    """Id of the authorised removal that the alert is about; empty if it is about none."""
    silent: bool = False
    """PANIC: the protected person called in silence, so nothing may be seen or heard on her phone."""
    contact: FirstContact | None = None
    """RING_ENTERED that demands NOTIFY: the first contact with the wearer; RING_CLEARED: the wearer turned back after one."""


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """An entry, or a part of it, that was set aside."""

    sequence: int
    reason: str


@dataclass(frozen=True, slots=True)
class SensingRequest:
    """What the decision needs from a device. Its id is a hash of the entry and the device.

    A newer interval for the same device replaces the one before. The need ends at `until_ms` unless a newer request renews it.
    """

    request_id: str
    sequence: int
    ordinal: int
    device_id: str
    interval_s: int | None
    """The interval between reports that the device should keep, seconds; None: the position is needed now."""
    decided_at_ms: int
    """When the causing entry arrived, mesh time."""
    until_ms: int
    """When the need ends, mesh time."""
    fold_version: int


@dataclass(frozen=True, slots=True)
class ContactRequest:
    """A message by which a tag tells the wearer to turn round. Its id is that of the contact."""

    request_id: str
    sequence: int
    ordinal: int
    device_id: str
    decided_at_ms: int
    """When the causing entry arrived, mesh time."""
    until_ms: int
    """When the message is of no use any more, mesh time."""
    fold_version: int


Request = SensingRequest | ContactRequest
"""An output for a device."""
Output = Alert | SensingRequest | ContactRequest | DeadLetter
