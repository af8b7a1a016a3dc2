"""What the fold puts out: alerts with their figures, and entries set aside."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from services.geofence.domain.entries import Demand, Exercise


class AlertKind(enum.Enum):
    """Kinds of alert."""

    RING_ENTERED = "RING_ENTERED"
    RING_CLEARED = "RING_CLEARED"
    TAMPERED = "TAMPERED"
    PANIC = "PANIC"
    LOW_BATTERY = "LOW_BATTERY"
    JAMMED = "JAMMED"
    DEVICE_OFF = "DEVICE_OFF"
    PROTECTED_DEVICE_LOST = "PROTECTED_DEVICE_LOST"
    SILENT = "SILENT"
    HEARD_AGAIN = "HEARD_AGAIN"
    UNKNOWN_NEAR = "UNKNOWN_NEAR"
    CONTACT_PREDICTED = "CONTACT_PREDICTED"
    IMPLAUSIBLE = "IMPLAUSIBLE"
    DISTANCE_CHANGED = "DISTANCE_CHANGED"
    OUTAGE = "OUTAGE"
    ACCOUNT_AMENDED = "ACCOUNT_AMENDED"
    SPOOFING_SUSPECTED = "SPOOFING_SUSPECTED"


class AnomalyKind(enum.Enum):
    """Why a position can't be taken as it stands."""

    JUMP = "JUMP"
    """Nothing could have travelled there since the position before; or the device leapt away from there."""
    VAGUE = "VAGUE"
    """Its accuracy is too poor to tell whether the wearer is within the ring that demands a response."""
    CLOCK = "CLOCK"
    """All that comes is dated too far off to be used."""
    FROZEN = "FROZEN"
    """The same to the digit for long, from a device whose positions had always differed."""
    COPIED = "COPIED"
    """A stretch of different positions that are, to the digit, those of an earlier stretch."""


class Leg(enum.Enum):
    """Halves of the response."""

    PROBATION = "PROBATION"
    POLICE = "POLICE"
    WARNING = "WARNING"


@dataclass(frozen=True, slots=True)
class CausingReport:
    """The report that made a decision."""

    device_id: str
    report_id: str
    received_wall_us: int


@dataclass(frozen=True, slots=True)
class Alert:
    """A decision; its id is a hash of the entry that made it and of what it is of, never of how much else was found."""

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
    """Arrival of the entry that made it, mesh time."""
    late: bool
    destinations: tuple[tuple[Leg, str], ...]
    incident_opens: bool
    """The incident begins with it."""
    incident_ends: bool
    """No episode of the wearer is open any more."""
    cause: CausingReport | None
    cause_of_wearer: bool
    """That report is the wearer's own."""
    distance_mm: float | None
    probability: float | None
    fold_version: int
    rules_id: str
    inside: tuple[tuple[int, int], ...] = ()
    min_distance_mm: float | None = None
    amends: str = ""
    """ACCOUNT_AMENDED: the RING_CLEARED whose account this one replaces."""
    encounter_id: str = ""
    """The authorised encounter for which nobody is sent."""
    exercise: Exercise = Exercise.NONE
    outage_id: str = ""
    """The outage that it is of, or that explains the silence it tells of."""
    outage_silent: int = 0
    """OUTAGE: how many wearers are silent; at its end, how many were at the most."""
    outage_watched: int = 0
    """OUTAGE: of how many who are watched."""
    anomaly: AnomalyKind | None = None
    """Why the positions behind it can't be taken as they stand."""


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """An entry, or a part of it, that was set aside."""

    sequence: int
    reason: str


Output = Alert | DeadLetter
