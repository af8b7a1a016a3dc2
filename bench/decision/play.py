"""Decides a play of the decision-quality study, by the fold and by a plain distance threshold."""

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
"""Time for which a unit counts as present, or nearly present, after a dispatch on a prediction."""


class Demanded(NamedTuple):
    """A demand that was active from one moment to another; sorts by its start."""

    from_ms: int
    until_ms: int
    kind: str


class Dispatch(NamedTuple):
    """A dispatch of a unit."""

    at_ms: int
    kind: str
    reported_m: float | None
    """Reported distance on which the decision is based."""


@dataclass(slots=True)
class Decided:
    """Decisions of the fold for a play."""

    responds: list[Demanded] = field(default_factory=list)
    """Demands to respond: a ring's until it is cleared, any other for HELP_MS."""
    near: list[Demanded] = field(default_factory=list)
    """UNKNOWN_NEAR with NOTIFY or more: while it is active, and for HELP_MS after each alert."""
    recorded: list[Demanded] = field(default_factory=list)
    """UNKNOWN_NEAR with any demand, even only RECORD, while it is active."""
    dispatches: list[Dispatch] = field(default_factory=list)
    """First demand to respond of each incident, without UNKNOWN_NEAR: an incident sends a unit only once."""
    unknown_near: int = 0
    """Number of incidents in which UNKNOWN_NEAR demanded a response."""
    demands: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Number of alerts by kind and demand."""
    first_known_ms: int = 0
    """Time at which both sides had reported."""


def decide(play: Play, reports: list[Report]) -> Decided:
    """Decisions of the fold for a play, with default rules. It uses the mesh's step function, and ticks while no report arrives."""
    decided = Decided()
    state = State(0)
    until_ms = reports[-1].arrived_ms + 1
    case = Case(
        case_id="case",
        version=1,
        order_id="order",
        wearer_id="w",
        tag_device_ids=(TAG,),
        targets=(_target(play),),
        rings=RINGS,
        valid_from_ms=reports[0].fix_ms,
        valid_until_ms=until_ms,
    )
    entered: dict[int, int] = {}
    """Time at which each active ring with RESPOND was entered, by radius, mm."""
    since: dict[bool, int] = {}
    """Start of the active UNKNOWN_NEAR with a notified person (True), and with any demand (False)."""
    sent: set[str] = set()
    unknown: set[str] = set()

    def step(stamp_ms: int, body: Case | Positions | Tick) -> None:
        for alert in fold.step(state, Entry(state.sequence + 1, stamp_ms, body)):
            if not isinstance(alert, Alert) or alert.at_ms >= until_ms:
                continue
            decided.demands[alert.kind.value, alert.demand.name] += 1
            if alert.kind is AlertKind.RING_CLEARED and alert.ring_mm in entered:
                decided.responds.append(Demanded(entered.pop(alert.ring_mm), stamp_ms, AlertKind.RING_ENTERED.value))
            if alert.kind is AlertKind.UNKNOWN_NEAR and alert.demand >= Demand.NOTIFY:
                decided.near.append(Demanded(stamp_ms, stamp_ms + HELP_MS, alert.kind.value))
            if alert.demand is not Demand.RESPOND:
                continue
            if alert.kind is AlertKind.RING_ENTERED:
                entered.setdefault(alert.ring_mm, stamp_ms)
            else:
                decided.responds.append(Demanded(stamp_ms, stamp_ms + HELP_MS, alert.kind.value))
            if alert.kind is AlertKind.UNKNOWN_NEAR:
                unknown.add(alert.incident_id)
            elif alert.incident_id not in sent:
                sent.add(alert.incident_id)
                reported_m = None if alert.distance_mm is None else alert.distance_mm / 1000
                decided.dispatches.append(Dispatch(stamp_ms, alert.kind.value, reported_m))
        known = state.cases.get("case")
        notified = [presence.emitted for presence in known.possible.values()] if known else []
        notified += [demand >= Demand.NOTIFY for demand in known.near.values()] if known else []
        for only_notified in (True, False):
            is_active = any(notified) if only_notified else bool(notified)
            if is_active:
                since.setdefault(only_notified, stamp_ms)
            elif only_notified in since:
                end(only_notified, stamp_ms)

    def end(only_notified: bool, until_ms: int) -> None:
        ended = Demanded(since.pop(only_notified), until_ms, AlertKind.UNKNOWN_NEAR.value)
        (decided.near if only_notified else decided.recorded).append(ended)

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
    decided.responds += [Demanded(from_ms, until_ms, AlertKind.RING_ENTERED.value) for from_ms in entered.values()]
    for only_notified in sorted(since):
        end(only_notified, until_ms)
    decided.responds.sort()
    decided.unknown_near = len(unknown)
    decided.first_known_ms = first_known_ms(play, reports)
    return decided


def _target(play: Play) -> Target:
    if not play.is_place:
        return Target(target_id="p", is_person=True, device_ids=(PHONE,), shape=PERSON)
    x_mm, y_mm, z_mm = ecef_mm(play.other[0].lat_e7, play.other[0].lon_e7)
    return Target(
        target_id="p",
        is_person=False,
        device_ids=(),
        shape=Disc((float(x_mm), float(y_mm), float(z_mm)), PLACE_RADIUS_M * 1000.0),
    )


def first_known_ms(play: Play, reports: list[Report]) -> int:
    """Time at which both sides had reported; the end of the play where a side never did."""
    devices = (TAG,) if play.is_place else (TAG, PHONE)
    firsts = [next((report.arrived_ms for report in reports if report.device == device), None) for device in devices]
    return max(play.way[-1].at_ms if first is None else first for first in firsts)


class Plain(NamedTuple):
    """Distance between the two newest positions, at each report that changes one of them."""

    times_ms: NDArray[np.int64]
    apart_m: NDArray[np.float64]


def plain(play: Play, reports: list[Report]) -> Plain:
    """Distances as Tile38's ROAM and Traccar's proximity use them: between newest positions, regardless of accuracy and age."""
    edge_m = PLACE_RADIUS_M if play.is_place else 0
    north, east = metres_per_e7(play.other[0].lat_e7)
    newest: dict[str, Report] = {}
    times_ms, apart_m = [], []
    for report in reports:
        if report.device in newest and report.fix_ms <= newest[report.device].fix_ms:
            continue  # older than the newest position, or a duplicate
        newest[report.device] = report
        there = play.other[0] if play.is_place else newest.get(PHONE)
        here = newest.get(TAG)
        if here is None or there is None:
            continue
        off_m = math.hypot((here.lat_e7 - there.lat_e7) * north, (here.lon_e7 - there.lon_e7) * east)
        times_ms.append(report.arrived_ms)
        apart_m.append(max(0.0, off_m - edge_m))
    return Plain(np.array(times_ms, np.int64), np.array(apart_m, np.float64))
