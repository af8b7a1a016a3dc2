"""How often her map's region holds the true position, in the approaches of the decision-quality study. Pure.

The plays are those of `bench.decision.placement` with a protected person who has a phone, with the noise of `bench.decision.noise`. The
case has a ground for notices. Each 15 s her phone asks for the map, and each view that is shown is compared with the truth. Three
moments of each view count: the answer, and 5 and 10 s later, when the app has let the circles grow.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np

from bench.decision.arms import ARMS, Arm
from bench.decision.closed_loop import ClosedLoop
from bench.decision.noise import PHONE, Gaps, World
from bench.decision.placement import Play, Way, metres_per_e7
from bench.decision.play import case_of
from services.common.privacy.notices import NoticeGround
from services.geofence.domain import fold, her_map
from services.geofence.domain.entries import Body, Tick
from services.geofence.domain.her_map import MapView, ViewOutcome

VIEW_INTERVAL_MS = 15_000
LATER_MS = (0, 5_000, 10_000)
"""When a view is compared with the truth, ms after the answer."""
NEAR_M = 600.0
KEPT_ARMS = (ARMS["15 s"], ARMS["60 s"])
"""Tags that keep their interval."""


@dataclass(slots=True)
class Seen:
    """The views of one play with one tag."""

    play: str
    arm: str
    outcomes: Counter[str] = field(default_factory=Counter)
    """Number of views by outcome, without those before the notice."""
    held: list[bool] = field(default_factory=list)
    """Whether the region held the true position, for each view and moment."""
    radii_m: list[float] = field(default_factory=list)
    """Radius of the first circle of each view that was shown, m."""
    circles: list[int] = field(default_factory=list)
    """Number of circles of each of them."""
    said_far: int = 0
    """Views that put him at 600 m or more while he was within 600 m."""
    near_views: int = 0
    """Views with an open notice while he was within 600 m."""
    near_shown: int = 0
    """Of these, views that showed a region."""


def plays_with_phones(all_plays: list[Play]) -> list[Play]:
    """The plays of a protected person with a phone."""
    return [play for play in all_plays if not play.is_place]


def see(play: Play, arm: Arm) -> Seen | None:
    """Plays a play and looks at the map each 15 s. None if one side never reports."""
    world = World(play, 1, Gaps.LONG)
    if world.known_ms is None:
        return None
    return _Watched(world, arm).run()


class _Watched(ClosedLoop):
    def __init__(self, world: World, arm: Arm) -> None:
        self._play, self._from_ms = world.play, world.play.way[0].at_ms
        super().__init__(
            world.tag,
            arm,
            world.phone,
            log_id=world.play.name,
            until_ms=world.play.way[-1].at_ms,
            step=fold.step,
        )
        self._view_ms = self._from_ms + VIEW_INTERVAL_MS
        self._seen = Seen(world.play.name, arm.name)
        self._wearer, self._her = _Truth(world.play.way), _Truth(world.play.other)

    def run(self) -> Seen:
        self.play(replace(case_of(self._play), notice_ground=NoticeGround.JUDGMENT), self._from_ms)
        return self._seen

    def _next_happening_ms(self) -> int | None:
        return self._view_ms

    def _happening(self) -> Body:
        return Tick()

    def _note_step(self, stamp_ms: int) -> None:
        if stamp_ms < self._view_ms:
            return
        self._view_ms += VIEW_INTERVAL_MS
        for view in her_map.views(self._state, PHONE, stamp_ms):
            self._note_view(view, stamp_ms)

    def _note_view(self, view: MapView, at_ms: int) -> None:
        seen, north, east = self._seen, *metres_per_e7(self._play.other[0].lat_e7)
        seen.outcomes[view.outcome.value] += 1
        here, there = self._wearer.at(at_ms), self._her.at(at_ms)
        is_near = math.hypot((here[0] - there[0]) * north, (here[1] - there[1]) * east) <= NEAR_M
        seen.near_views += is_near
        if view.outcome is not ViewOutcome.SHOWN:
            return
        seen.near_shown += is_near
        seen.radii_m.append(view.circles[0].radius_m)
        seen.circles.append(len(view.circles))
        seen.said_far += is_near and view.from_her is not None and view.from_her.least_m >= NEAR_M
        for later_ms in LATER_MS:
            if at_ms + later_ms > self._until_ms:
                continue
            here = self._wearer.at(at_ms + later_ms)
            seen.held.append(
                any(
                    math.hypot((here[0] - circle.lat_e7) * north, (here[1] - circle.lon_e7) * east)
                    <= circle.radius_m + view.grows_mps * later_ms / 1000
                    for circle in view.circles
                )
            )


class _Truth:
    """True positions of a way, 1e-7 degrees."""

    def __init__(self, way: Way) -> None:
        self._times_ms = [spot.at_ms for spot in way]
        self._lats, self._lons = [spot.lat_e7 for spot in way], [spot.lon_e7 for spot in way]

    def at(self, at_ms: int) -> tuple[float, float]:
        return float(np.interp(at_ms, self._times_ms, self._lats)), float(np.interp(at_ms, self._times_ms, self._lons))


def of_arm(all_seen: list[Seen], arm: str) -> Iterator[Seen]:
    """The plays of an arm in which the map showed something."""
    return (seen for seen in all_seen if seen.arm == arm and seen.held)
