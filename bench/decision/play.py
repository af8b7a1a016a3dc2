"""A play of the study of the decision's quality, as the fold decides it and as a plain threshold does."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bench.decision.noise import PHONE, TAG, Report
from bench.decision.placement import PLACE_RADIUS_M, Play, metres_per_e7
from bench.silence import RINGS
from services.geofence.domain import fold
from services.geofence.domain.alerts import Alert, AlertKind
from services.geofence.domain.entries import Case, Demand, Entry, Positions, Target, Tick
from services.geofence.domain.kinematics.geometry import PERSON, Disc, ecef_mm
from services.geofence.domain.state import State

HELP_MS = 480_000
"""Whoever is sent on a prediction is there, or nearly, for so long after it."""


class Told(NamedTuple):
    """What stood from one moment to another."""

    from_ms: int
    until_ms: int
    kind: str


class Dispatch(NamedTuple):
    """Somebody is sent."""

    at_ms: int
    kind: str
    reported_m: float | None
    """The distance that decided."""


@dataclass(slots=True)
class Decided:
    """What the fold made of a play."""

    responds: list[Told] = field(default_factory=list)
    """Demands to respond: a ring's until it is cleared, any other for as long as help is about."""
    near: list[Told] = field(default_factory=list)
    """UNKNOWN_NEAR that a person was told of (NOTIFY or more): while it stands, and as long as help would be about."""
    recorded: list[Told] = field(default_factory=list)
    """UNKNOWN_NEAR that stands at any demand, also where nobody but the record was told."""
    dispatches: list[Dispatch] = field(default_factory=list)
    """The first demand to respond in each incident, UNKNOWN_NEAR apart: nobody is sent twice within one."""
    unknown_near: int = 0
    """Incidents in which it was UNKNOWN_NEAR that demanded a response."""
    demands: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Alerts by kind and demand."""
    first_known_ms: int = 0
    """When both sides had reported."""


def decide(play: Play, reports: list[Report]) -> Decided:
    """The fold's decisions, with the same step as in the mesh and by default rules; an idle mesh ticks."""
    found = Decided()
    state = State(0)
    until_ms = reports[-1].arrived_ms + 1
    case = Case("case", 1, "order", "w", (TAG,), (_target(play),), RINGS, reports[0].fix_ms, until_ms)
    entered: dict[int, int] = {}
    """By radius, mm: since when a ring that responds is."""
    since: dict[bool, int] = {}
    """Since when UNKNOWN_NEAR stands of which a person was told (True), and any (False)."""
    sent: set[str] = set()
    unknown: set[str] = set()

    def step(stamp_ms: int, body: Case | Positions | Tick) -> None:
        for one in fold.step(state, Entry(state.sequence + 1, stamp_ms, body)):
            if not isinstance(one, Alert) or one.at_ms >= until_ms:
                continue
            found.demands[one.kind.value, one.demand.name] += 1
            if one.kind is AlertKind.RING_CLEARED and one.ring_mm in entered:
                found.responds.append(Told(entered.pop(one.ring_mm), stamp_ms, AlertKind.RING_ENTERED.value))
            if one.kind is AlertKind.UNKNOWN_NEAR and one.demand >= Demand.NOTIFY:
                found.near.append(Told(stamp_ms, stamp_ms + HELP_MS, one.kind.value))
            if one.demand is not Demand.RESPOND:
                continue
            if one.kind is AlertKind.RING_ENTERED:
                entered.setdefault(one.ring_mm, stamp_ms)
            else:
                found.responds.append(Told(stamp_ms, stamp_ms + HELP_MS, one.kind.value))
            if one.kind is AlertKind.UNKNOWN_NEAR:
                unknown.add(one.incident_id)
            elif one.incident_id not in sent:
                sent.add(one.incident_id)
                reported_m = None if one.distance_mm is None else one.distance_mm / 1000
                found.dispatches.append(Dispatch(stamp_ms, one.kind.value, reported_m))
        known = state.cases.get("case")
        allowed = [one.told for one in known.possible.values()] if known else []
        allowed += [demand >= Demand.NOTIFY for demand in known.near.values()] if known else []
        for told in (True, False):
            stands = any(allowed) if told else bool(allowed)
            if stands:
                since.setdefault(told, stamp_ms)
            elif told in since:
                stood(told, stamp_ms)

    def stood(told: bool, until_ms: int) -> None:
        one = Told(since.pop(told), until_ms, AlertKind.UNKNOWN_NEAR.value)
        (found.near if told else found.recorded).append(one)

    def enter(stamp_ms: int, body: Case | Positions) -> None:
        while (due_ms := fold.next_due_ms(state)) is not None and due_ms < stamp_ms:
            step(due_ms, Tick())
        step(stamp_ms, body)

    enter(reports[0].fix_ms, case)
    for report in reports:
        columns = (
            [report.device],
            [str(report.number)],
            [report.fix_ms],
            [report.lat_e7],
            [report.lon_e7],
            [report.accuracy_mm],
        )
        enter(report.arrived_ms, Positions(*columns, 0))
    found.responds += [Told(from_ms, until_ms, AlertKind.RING_ENTERED.value) for from_ms in entered.values()]
    for told in sorted(since):
        stood(told, until_ms)
    found.responds.sort()
    found.unknown_near = len(unknown)
    found.first_known_ms = first_known_ms(play, reports)
    return found


def _target(play: Play) -> Target:
    if not play.is_place:
        return Target("p", True, (PHONE,), PERSON)
    x_mm, y_mm, z_mm = ecef_mm(play.other[0].lat_e7, play.other[0].lon_e7)
    return Target("p", False, (), Disc((float(x_mm), float(y_mm), float(z_mm)), PLACE_RADIUS_M * 1000.0))


def first_known_ms(play: Play, reports: list[Report]) -> int:
    """When both sides had reported; infinity's place is taken by the end of the play."""
    devices = (TAG,) if play.is_place else (TAG, PHONE)
    firsts = [next((report.arrived_ms for report in reports if report.device == device), None) for device in devices]
    return max(play.way[-1].at_ms if first is None else first for first in firsts)


class Plain(NamedTuple):
    """The distance between the two last positions, at each report that changes one of them."""

    times_ms: NDArray[np.int64]
    apart_m: NDArray[np.float64]


def plain(play: Play, reports: list[Report]) -> Plain:
    """What Tile38's ROAM and Traccar's proximity look at: the newest position of each side, whatever its accuracy and age."""
    edge_m = PLACE_RADIUS_M if play.is_place else 0
    north, east = metres_per_e7(play.other[0].lat_e7)
    newest: dict[str, Report] = {}
    times_ms, apart_m = [], []
    for report in reports:
        if report.device in newest and report.fix_ms <= newest[report.device].fix_ms:
            continue  # older than what is known, or sent again
        newest[report.device] = report
        there = play.other[0] if play.is_place else newest.get(PHONE)
        here = newest.get(TAG)
        if here is None or there is None:
            continue
        off_m = math.hypot((here.lat_e7 - there.lat_e7) * north, (here.lon_e7 - there.lon_e7) * east)
        times_ms.append(report.arrived_ms)
        apart_m.append(max(0.0, off_m - edge_m))
    return Plain(np.array(times_ms, np.int64), np.array(apart_m, np.float64))
