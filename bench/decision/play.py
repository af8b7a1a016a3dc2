"""Plays a play of the decision-quality study: the tag and her phone report, the fold decides, and the tag obeys the fold's requests.

The loop is closed: what the fold requests changes when the tag reports next. The plain distance threshold judges the same reports.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bench.decision.arms import Arm
from bench.decision.closed_loop import ClosedLoop, Step
from bench.decision.decided import Decided, Listener
from bench.decision.noise import PHONE, TAG, Report, World
from bench.decision.placement import PLACE_RADIUS_M, Play, metres_per_e7
from bench.geolife import RINGS
from services.geofence.domain import fold
from services.geofence.domain.alerts import Alert
from services.geofence.domain.entries import Case, Target
from services.geofence.domain.geometry import PERSON, Disc, ecef_mm

_CASE_ID = "case"


@dataclass(frozen=True, slots=True)
class Played:
    """What happened in a play."""

    received: list[Report]
    """All reports in order of arrival."""
    decided: Decided
    sent: int
    """Number of the tag's reports that arrived, without duplicates."""
    commands: int
    """Number of the fold's requests for an interval of the tag."""
    locates: int
    """Number of the fold's requests for a position now."""
    located: int
    """Number of positions on demand that were reported."""


def perform(world: World, arm: Arm, step: Step = fold.step) -> Played:
    """Plays a play with default rules. It uses the mesh's step function, and ticks where time alone decides something."""
    return _Performance(world, arm, step).run()


class _Performance(ClosedLoop):
    def __init__(self, world: World, arm: Arm, step: Step) -> None:
        self._play, until_ms = world.play, world.play.way[-1].at_ms
        log_id = f"{world.play.name} {world.draw}"
        super().__init__(world.tag, arm, world.phone, log_id=log_id, until_ms=until_ms, step=step)
        self._received: list[Report] = []
        self._listener = Listener(until_ms)

    def run(self) -> Played:
        self.play(case_of(self._play), self._play.way[0].at_ms)
        tag, sent = self._tag, len({report.number for report in self._received if report.device == TAG})
        return Played(self._received, self._listener.end(), sent, tag.commands, tag.locates, tag.located)

    def _note_report(self, report: Report) -> None:
        self._received.append(report)

    def _note_alert(self, alert: Alert, stamp_ms: int) -> None:
        self._listener.note(alert, stamp_ms)

    def _note_step(self, stamp_ms: int) -> None:
        self._listener.note_state(self._state.cases.get(_CASE_ID), stamp_ms)


def case_of(play: Play) -> Case:
    """The case of a play: the default rings around its person or place."""
    return Case(
        case_id=_CASE_ID,
        version=1,
        order_id="order",
        wearer_id="w",
        tag_device_ids=(TAG,),
        targets=(_target(play),),
        rings=RINGS,
        valid_from_ms=play.way[0].at_ms,
        valid_until_ms=play.way[-1].at_ms,
    )


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
