"""Plays a play of the decision-quality study: the tag and her phone report, the fold decides, and the tag obeys the fold's requests.

The loop is closed: what the fold requests changes when the tag reports next. The plain distance threshold judges the same reports.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bench.decision.arms import Arm
from bench.decision.decided import Decided, Listener
from bench.decision.noise import PHONE, TAG, Report, World
from bench.decision.placement import PLACE_RADIUS_M, Play, metres_per_e7
from bench.decision.tag import Tag
from bench.silence import RINGS
from services.geofence.domain import fold
from services.geofence.domain.alerts import Alert, Output, SensingRequest
from services.geofence.domain.entries import Body, Case, Entry, FoldVersion, Positions, Target, Tick
from services.geofence.domain.kinematics.geometry import PERSON, Disc, ecef_mm
from services.geofence.domain.state import State
from services.geofence.domain.version import VERSION

Step = Callable[[State, Entry], list[Output]]
"""The fold's function, or a stand-in of a test."""
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


class _Performance:
    def __init__(self, world: World, arm: Arm, step: Step) -> None:
        self._play, self._fold = world.play, step
        self._from_ms, self._until_ms = world.play.way[0].at_ms, world.play.way[-1].at_ms
        self._asks = arm.delivery is not None
        self._tag = Tag(world.tag, arm, self._until_ms)
        self._arriving = [*world.phone]
        """Heap of the reports by arrival."""
        heapq.heapify(self._arriving)
        self._received: list[Report] = []
        self._state = State(0, log_id=f"{world.play.name} {world.draw}")
        self._listener = Listener(self._until_ms)

    def run(self) -> Played:
        if self._asks:
            self._step(self._from_ms, FoldVersion(VERSION))
        self._step(self._from_ms, case_of(self._play))
        while (now_ms := self._next_ms()) < self._until_ms:
            if self._tag.next_ms() == now_ms:
                for report in self._tag.advance():
                    heapq.heappush(self._arriving, report)
            elif self._arriving and self._arriving[0].arrived_ms == now_ms:
                self._arrive(heapq.heappop(self._arriving))
            else:
                self._step(now_ms, Tick())
        tag, sent = self._tag, len({report.number for report in self._received if report.device == TAG})
        return Played(self._received, self._listener.end(), sent, tag.commands, tag.locates, tag.located)

    def _next_ms(self) -> int:
        """When something happens next: the tag acts, a report arrives, or time alone decides something."""
        now_ms = self._tag.next_ms()
        if self._arriving:
            now_ms = min(now_ms, self._arriving[0].arrived_ms)
        due_ms = fold.next_due_ms(self._state)
        return now_ms if due_ms is None else min(now_ms, due_ms)

    def _arrive(self, report: Report) -> None:
        self._received.append(report)
        if report.device == TAG:
            self._tag.answered(report.arrived_ms)
        columns = (
            [report.device],
            [str(report.number)],
            [report.fix_ms],
            [report.lat_e7],
            [report.lon_e7],
            [report.accuracy_mm],
        )
        self._step(report.arrived_ms, Positions(*columns, 0))

    def _step(self, stamp_ms: int, body: Body) -> None:
        for output in self._fold(self._state, Entry(self._state.sequence + 1, stamp_ms, body)):
            if isinstance(output, Alert):
                self._listener.note(output, stamp_ms)
            elif isinstance(output, SensingRequest) and output.device_id == TAG:
                self._tag.request(output, stamp_ms)
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
