"""An alert of an incident, reduced to the fields that one leg needs. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from services.dispatch.domain.enums import ContactPlan, Demand, Exercise
from services.dispatch.domain.events import Cause, LogPosition
from services.dispatch.domain.leg import Leg


@dataclass(frozen=True, slots=True)
class AlertContact:
    """An alert's statement about the first contact with the wearer."""

    contact_id: str
    plan: ContactPlan
    device_id: str
    """Device that gets the message; empty if none does."""


@dataclass(frozen=True, slots=True)
class Alert:
    """An alert of an incident, reduced to the fields that one leg needs."""

    alert_id: str
    incident_id: str
    place: LogPosition
    """Log position of the alert."""
    kind: int
    """Number of the tandem.common.v1.AlertKind, which may be newer than this leg."""
    demand: Demand
    order_id: str
    threat: str
    """Key of the threat, the same when the threat begins and ends. An alert with demand RECORD says that the threat is over."""
    subject_ids: tuple[str, ...]
    """Destinations of this leg that the alert concerns, without duplicates."""
    ends: bool
    """The alert ends the incident."""
    cause: Cause | None
    legs: tuple[Leg, ...] = ()
    """Other legs that must respond to the alert too and that this leg watches."""
    wearer_id: str = ""
    ring_m: float = 0.0
    """Radius of the ring, metres; 0 if the alert concerns no ring."""
    exercise: Exercise = Exercise.NONE
    check_subject_ids: tuple[str, ...] = ()
    """Wearers whose act this leg must look into, whatever the demand is."""
    contact: AlertContact | None = None
    """The first contact with the wearer; None if the alert says nothing about one."""
