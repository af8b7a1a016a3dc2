"""gRPC servicer of her map (rules in `domain/her_map.py`). No region leaves before its rows for the ledger are on disk."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import grpc.aio

from services.common import fields, ids, times
from services.common.clock import MeshClock
from services.common.errors import BudgetSpent, Unavailable
from services.common.privacy.disclosures import GivenNotice, row_of
from services.geofence.consumer import Evaluator
from services.geofence.disclosures import DisclosureOutbox
from services.geofence.domain import her_map
from services.geofence.domain.her_map import SECTORS, FromHer, MapGround, MapView, ViewOutcome
from services.geofence.domain.kinematics.track import UNKNOWN_AFTER_MS
from tandem.common.v1 import ledger_pb2
from tandem.geofence.v1 import region_map_pb2, region_map_pb2_grpc

MIN_INTERVAL_S = 10.0
"""Minimum time between two regions for one device, seconds of wall time."""
MAX_COVERED = 1_000
"""Maximum number of partitions that a request names."""


class _Made(NamedTuple):
    """A view, and the evaluator whose state it shows."""

    evaluator: Evaluator
    view: MapView
    at_ms: int
    """When it was made, mesh time."""


class RegionMapApi(region_map_pb2_grpc.RegionMapServiceServicer):
    """Serves RegionMapService from the evaluators of this process."""

    def __init__(
        self, evaluators: Mapping[int, Evaluator], partitions: int, *, outbox: DisclosureOutbox, clock: MeshClock
    ) -> None:
        self._evaluators, self._partitions = evaluators, partitions
        self._outbox, self._clock = outbox, clock
        self._given_s: dict[str, float] = {}
        """When a region last left for each device, or begins to leave, time of the event loop."""

    async def ReadRegionMap(
        self, request: region_map_pb2.ReadRegionMapRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> region_map_pb2.ReadRegionMapResponse:
        device_id = fields.required_id("device_id", request.device_id)
        fields.at_most("covered_partitions", request.covered_partitions, MAX_COVERED)
        made = list(self._views(device_id, frozenset(request.covered_partitions)))
        shown = [each for each in made if each.view.outcome is ViewOutcome.SHOWN]
        if shown:
            self._note_given(device_id)  # before the rows are written, so that a second request meanwhile is too soon
            try:
                await self._outbox.record([row for each in shown for row in _rows(each, device_id)])
            except BaseException:
                self._given_s.pop(device_id, None)
                raise
        return region_map_pb2.ReadRegionMapResponse(
            views=[
                _shown_view(each.view, each.at_ms) if each in shown else _view_without_region(each.view)
                for each in made
                if each not in shown or self._is_still_shown(each, device_id)
            ],
            partitions=sorted(self._evaluators),
            partition_count=self._partitions,
        )

    def _views(self, device_id: str, covered: frozenset[int]) -> Iterator[_Made]:
        for partition, evaluator in self._evaluators.items():
            if partition in covered:
                continue
            if not evaluator.is_current:
                raise Unavailable("this evaluator is behind the log")
            at_ms = max(evaluator.state.now_ms, self._clock.now_ms())
            for view in her_map.views(evaluator.state, device_id, at_ms):
                yield _Made(evaluator, view, at_ms)

    def _is_still_shown(self, made: _Made, device_id: str) -> bool:
        """Whether a region may still leave: the notice may have ended while its rows were written."""
        now = her_map.views(made.evaluator.state, device_id, max(made.evaluator.state.now_ms, self._clock.now_ms()))
        return any(view.case_id == made.view.case_id and view.outcome is ViewOutcome.SHOWN for view in now)

    def _note_given(self, device_id: str) -> None:
        """Notes that a region leaves for a device. Raises BudgetSpent if another one left too short a time ago."""
        now_s = asyncio.get_running_loop().time()
        self._given_s = {each: at_s for each, at_s in self._given_s.items() if now_s - at_s < MIN_INTERVAL_S}
        if device_id in self._given_s:
            wait_s = MIN_INTERVAL_S - (now_s - self._given_s[device_id])
            raise BudgetSpent("a region left for this device a moment ago", retry_after_s=wait_s)
        self._given_s[device_id] = now_s


def _rows(made: _Made, device_id: str) -> list[ledger_pb2.Disclosure]:
    ground = her_map.ground_of(made.evaluator.state, made.view)
    return _disclosures_of(made.view, ground, made.at_ms, device_id=device_id)


_DIRECTIONS = {"": region_map_pb2.DIRECTION_UNSPECIFIED} | {
    sector: region_map_pb2.Direction.ValueType(number) for number, sector in enumerate(SECTORS, 1)
}


def _disclosures_of(view: MapView, ground: MapGround, now_ms: int, *, device_id: str) -> list[ledger_pb2.Disclosure]:
    """Rows of a view for a device: the notice, and the location that goes with it, each under its article."""
    given = GivenNotice(
        person_id=view.person_id,
        wearer_id=ground.wearer_id,
        order_id=ground.order_id,
        incident_id=ground.incident_id,
        at_ms=now_ms,
    )
    return [
        row_of(given, article, ids.hash_id("map", device_id, view.case_id, article, now_ms))
        for article in (ground.ground.value, ground.location_basis)
    ]


def _shown_view(view: MapView, now_ms: int) -> region_map_pb2.RegionView:
    """The message of a view with a region."""
    message = region_map_pb2.RegionView(
        outcome=region_map_pb2.REGION_SHOWN,
        circles=[
            region_map_pb2.RegionCircle(lat_deg=lat_e7 / 1e7, lon_deg=lon_e7 / 1e7, radius_m=radius_m)
            for lat_e7, lon_e7, radius_m in view.circles
        ],
        grows_mps=round(view.grows_mps, 1),
        fix_time=times.to_timestamp(view.fix_ms),
        as_of=times.to_timestamp(now_ms),
        unknown_from=times.to_timestamp(view.fix_ms + UNKNOWN_AFTER_MS),
    )
    if view.from_her is not None:
        message.from_her.CopyFrom(_from_her(view.from_her))
    return message


def _view_without_region(view: MapView) -> region_map_pb2.RegionView:
    """The message of a view that gives no location."""
    # The reason stays here: "far" or "at rest" would be a location of its own.
    is_unknown = view.outcome is ViewOutcome.UNKNOWN
    return region_map_pb2.RegionView(
        outcome=region_map_pb2.REGION_UNKNOWN if is_unknown else region_map_pb2.REGION_WITHHELD
    )


def _from_her(place: FromHer) -> region_map_pb2.RegionFromHer:
    return region_map_pb2.RegionFromHer(
        least_m=place.least_m,
        greatest_m=place.greatest_m,
        direction=_DIRECTIONS[place.direction],
        way_out=_DIRECTIONS[place.way_out],
    )
