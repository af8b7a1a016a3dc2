"""Reads the views of her map from the evaluators, and turns them into what the app draws."""

from __future__ import annotations

from typing import Any, NamedTuple

import grpc
import grpc.aio

from services.common import times
from services.field.mesh import WITHIN_S, FieldMesh
from tandem.geofence.v1 import region_map_pb2

MAX_CALLS = 6
"""Maximum number of calls for one map. Each goes to the next evaluator: one that is behind the log refuses, and one that doesn't fold
all partitions leaves the others to the next."""
_OUTCOMES = {
    region_map_pb2.REGION_SHOWN: "shown",
    region_map_pb2.REGION_WITHHELD: "withheld",
    region_map_pb2.REGION_UNKNOWN: "unknown",
}


class ReadMap(NamedTuple):
    """The views of a device."""

    views: tuple[region_map_pb2.RegionView, ...]
    is_whole: bool
    """Whether all partitions of the log answered. A wearer of whom a notice is open may be missing otherwise."""


async def read(mesh: FieldMesh, device_id: str) -> ReadMap:
    """Reads the views of a device from as many evaluators as the partitions need.

    Raises AioRpcError if the last evaluator that was asked refuses and none has answered, or if a region left for the device a moment
    ago.
    """
    views: list[region_map_pb2.RegionView] = []
    covered: set[int] = set()
    for number in range(1, MAX_CALLS + 1):
        request = region_map_pb2.ReadRegionMapRequest(device_id=device_id, covered_partitions=sorted(covered))
        try:
            answer = await mesh.region_maps.ReadRegionMap(request, metadata=mesh.to_geofence, timeout=WITHIN_S)
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.UNAVAILABLE and number < MAX_CALLS:
                continue
            if covered:
                break
            raise
        views += answer.views
        covered.update(answer.partitions)
        if len(covered) >= answer.partition_count:
            return ReadMap(tuple(views), is_whole=True)
    return ReadMap(tuple(views), is_whole=False)


def content(made: ReadMap) -> dict[str, Any]:
    """The map as the app gets it. Times are seconds from the answer on, since a phone's clock may be wrong."""
    return {"views": [_view(view) for view in made.views], "is_whole": made.is_whole}


def _view(view: region_map_pb2.RegionView) -> dict[str, Any]:
    drawn: dict[str, Any] = {"outcome": _OUTCOMES.get(view.outcome, "unknown")}
    if view.outcome != region_map_pb2.REGION_SHOWN:
        return drawn
    as_of_ms = times.from_timestamp(view.as_of)
    drawn |= {
        "circles": [
            {"lat": circle.lat_deg, "lon": circle.lon_deg, "radius_m": circle.radius_m} for circle in view.circles
        ],
        "grows_mps": view.grows_mps,
        "age_s": (as_of_ms - times.from_timestamp(view.fix_time)) / 1000,
        "unknown_in_s": (times.from_timestamp(view.unknown_from) - as_of_ms) / 1000,
    }
    if view.HasField("from_her"):
        drawn["from_her"] = {
            "least_m": view.from_her.least_m,
            "greatest_m": view.from_her.greatest_m,
            "direction": _direction(view.from_her.direction),
            "way_out": _direction(view.from_her.way_out),
        }
    return drawn


def _direction(direction: region_map_pb2.Direction.ValueType) -> str:
    return region_map_pb2.Direction.Name(direction).lower() if direction else ""
