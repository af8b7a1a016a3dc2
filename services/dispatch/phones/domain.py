"""The state of a protected person's phone, and the summary of an incident for her. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import IntEnum
from functools import reduce

from services.dispatch.domain.assignment import OVER, Assignment, AssignmentState
from services.dispatch.domain.enums import Exercise, WarningFlag
from services.dispatch.domain.events import (
    PANIC,
    AlertFolded,
    Closed,
    Event,
    Flagged,
    Progressed,
    SentByRadio,
    StoodDown,
)
from services.dispatch.domain.incident import Incident, evolve
from services.dispatch.domain.leg import Leg

_SET_OUT = (
    AssignmentState.DISPATCHED,
    AssignmentState.EN_ROUTE,
    AssignmentState.ON_SCENE,
    AssignmentState.APPREHENDED,
)
_ARRIVED = (AssignmentState.ON_SCENE, AssignmentState.APPREHENDED)


class PhoneLocation(IntEnum):
    """Whether the app gets positions; numbers of tandem.dispatch.v1.PhoneLocation."""

    UNKNOWN = 0
    GOOD = 1
    VAGUE = 2
    DENIED = 3
    UNAVAILABLE = 4


class PhoneScreen(IntEnum):
    """Whether the app is on the screen; numbers of tandem.dispatch.v1.PhoneScreen."""

    OPEN = 1
    HIDDEN = 2


@dataclass(frozen=True, slots=True)
class PhoneState:
    """A phone's last statement about itself. Times are mesh time, milliseconds since 1970 UTC."""

    device_id: str
    location: PhoneLocation
    location_ms: int
    """Since when the location has been so."""
    screen: PhoneScreen
    screen_ms: int
    """Since when the screen has been so."""
    at_ms: int
    """When the last reported state began."""


def first(device_id: str, location: PhoneLocation, screen: PhoneScreen, *, at_ms: int) -> PhoneState:
    """The state after the first report of a phone."""
    return PhoneState(device_id, location, at_ms, screen=screen, screen_ms=at_ms, at_ms=at_ms)


def after(before: PhoneState, location: PhoneLocation, screen: PhoneScreen, *, at_ms: int) -> PhoneState:
    """The state after a later report. A report that is older than the state changes nothing."""
    if at_ms < before.at_ms:
        return before
    return replace(
        before,
        location=location,
        location_ms=before.location_ms if location is before.location else at_ms,
        screen=screen,
        screen_ms=before.screen_ms if screen is before.screen else at_ms,
        at_ms=at_ms,
    )


@dataclass(frozen=True, slots=True)
class PoliceSummary:
    """The police's response for a person in an incident. Times are mesh time, milliseconds since 1970 UTC."""

    began_ms: int
    ended_ms: int
    sent_ms: int | None
    """When a unit first set out to her or a place of hers; None if none did."""
    arrived_ms: int | None
    """When a unit first arrived there; None if none did."""


def summary(incident_id: str, events: Iterable[Event], *, person_id: str, order_id: str) -> PoliceSummary | None:
    """The summary of an incident of the police leg for a person.

    None while it isn't over, if nothing of it concerns her, and if it is an exercise. None too if there was a panic or a duress answer:
    somebody else may hold her phone, and would read that she had called for help.
    """
    listed = list(events)
    incident = reduce(evolve, listed, Incident(incident_id, Leg.POLICE))
    hers = _hers(incident, person_id, order_id)
    # The police may have to look into the wearer's act for long after that: it isn't her part.
    is_open = any(assignment.state not in OVER for assignment in hers.values())
    over_ms, began_ms = incident.end_ms, incident.opened_ms
    if over_ms is None or began_ms is None or not hers or is_open:
        return None
    if incident.exercise is not Exercise.NONE or any(map(_asks_for_help, listed)):
        return None
    progress = [event for event in listed if isinstance(event, Progressed) and event.assignment_id in hers]
    by_radio = [event.at_ms for event in listed if isinstance(event, SentByRadio) and event.assignment_id in hers]
    ends = [event for event in listed if isinstance(event, Closed | StoodDown) and event.assignment_id in hers]
    return PoliceSummary(
        began_ms=began_ms,
        ended_ms=max(over_ms, *(event.at_ms for event in ends)),
        sent_ms=min([*by_radio, *_times_ms(progress, _SET_OUT)], default=None),
        arrived_ms=min(_times_ms(progress, _ARRIVED), default=None),
    )


def _hers(incident: Incident, person_id: str, order_id: str) -> dict[str, Assignment]:
    """The assignments to a person, and to the places of the order that protects her, by id."""
    return {
        id_: assignment
        for id_, assignment in incident.assignments.items()
        if assignment.subject_id == person_id or assignment.subject_id.startswith(f"{order_id}/")
    }


def _asks_for_help(event: Event) -> bool:
    if isinstance(event, AlertFolded):
        return event.kind == PANIC
    return isinstance(event, Flagged) and event.flag is WarningFlag.DURESS


def _times_ms(progress: Iterable[Progressed], states: tuple[AssignmentState, ...]) -> list[int]:
    """When a unit reached one of these states, mesh time."""
    return [event.at_ms for event in progress if event.state in states]
