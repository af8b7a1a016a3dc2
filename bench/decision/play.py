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
from services.geofence.domain.alerts import Alert
from services.geofence.domain.demands import AlertKind
from services.geofence.domain.detectors.possible_presence import POSSIBLE
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
    folding = _Folding(until_ms=reports[-1].arrived_ms + 1)
    case = Case(
        case_id="case",
        version=1,
        order_id="order",
        wearer_id="w",
        tag_device_ids=(TAG,),
        targets=(_target(play),),
        rings=RINGS,
        valid_from_ms=reports[0].fix_ms,
        valid_until_ms=folding.until_ms,
    )
    folding.enter(reports[0].fix_ms, case)
    for report in reports:
        columns = (
            [report.device],
            [str(report.number)],
            [report.fix_ms],
            [report.lat_e7],
            [report.lon_e7],
            [report.accuracy_mm],
        )
        folding.enter(report.arrived_ms, Positions(*columns, 0))
    decided = folding.end()
    decided.first_known_ms = first_known_ms(play, reports)
    return decided


class _Folding:
    """Folds the entries of a play and notes what is demanded."""

    def __init__(self, until_ms: int) -> None:
        self.until_ms = until_ms
        """End of the play; later alerts don't count."""
        self._decided = Decided()
        self._state = State(0)
        self._entered: dict[int, int] = {}
        """Time at which each active ring with RESPOND was entered, by radius, mm."""
        self._since: dict[bool, int] = {}
        """Start of the active UNKNOWN_NEAR with a notified person (True), and with any demand (False)."""
        self._sent: set[str] = set()
        self._unknown: set[str] = set()

    def enter(self, stamp_ms: int, body: Case | Positions) -> None:
        """Folds an entry, and the ticks that are due before it."""
        while (due_ms := fold.next_due_ms(self._state)) is not None and due_ms < stamp_ms:
            self._step(due_ms, Tick())
        self._step(stamp_ms, body)

    def end(self) -> Decided:
        """The decisions, where everything active ends with the play."""
        decided = self._decided
        for from_ms in self._entered.values():
            decided.responds.append(Demanded(from_ms, self.until_ms, AlertKind.RING_ENTERED.value))
        for only_notified in sorted(self._since):
            self._end_near(only_notified, self.until_ms)
        decided.responds.sort()
        decided.unknown_near = len(self._unknown)
        return decided

    def _step(self, stamp_ms: int, body: Case | Positions | Tick) -> None:
        for alert in fold.step(self._state, Entry(self._state.sequence + 1, stamp_ms, body)):
            if isinstance(alert, Alert) and alert.at_ms < self.until_ms:
                self._note(alert, stamp_ms)
        known = self._state.cases.get("case")
        notified = [presence.emitted for presence in POSSIBLE.of(known).values()] if known else []
        notified += [demand >= Demand.NOTIFY for demand in known.near.values()] if known else []
        for only_notified in (True, False):
            is_active = any(notified) if only_notified else bool(notified)
            if is_active:
                self._since.setdefault(only_notified, stamp_ms)
            elif only_notified in self._since:
                self._end_near(only_notified, stamp_ms)

    def _note(self, alert: Alert, stamp_ms: int) -> None:
        decided = self._decided
        decided.demands[alert.kind.value, alert.demand.name] += 1
        if alert.kind is AlertKind.RING_CLEARED and alert.ring_mm in self._entered:
            entered_ms = self._entered.pop(alert.ring_mm)
            decided.responds.append(Demanded(entered_ms, stamp_ms, AlertKind.RING_ENTERED.value))
        if alert.kind is AlertKind.UNKNOWN_NEAR and alert.demand >= Demand.NOTIFY:
            decided.near.append(Demanded(stamp_ms, stamp_ms + HELP_MS, alert.kind.value))
        if alert.demand is Demand.RESPOND:
            self._note_respond(alert, stamp_ms)

    def _note_respond(self, alert: Alert, stamp_ms: int) -> None:
        decided = self._decided
        if alert.kind is AlertKind.RING_ENTERED:
            self._entered.setdefault(alert.ring_mm, stamp_ms)
        else:
            decided.responds.append(Demanded(stamp_ms, stamp_ms + HELP_MS, alert.kind.value))
        if alert.kind is AlertKind.UNKNOWN_NEAR:
            self._unknown.add(alert.incident_id)
        elif alert.incident_id not in self._sent:
            self._sent.add(alert.incident_id)
            reported_m = None if alert.distance_mm is None else alert.distance_mm / 1000
            decided.dispatches.append(Dispatch(stamp_ms, alert.kind.value, reported_m))

    def _end_near(self, only_notified: bool, until_ms: int) -> None:
        ended = Demanded(self._since.pop(only_notified), until_ms, AlertKind.UNKNOWN_NEAR.value)
        (self._decided.near if only_notified else self._decided.recorded).append(ended)


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
