"""The list of tags for operators: how each reports. It holds no position, no name and no wearer."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Mapping

from services.common import fields, times
from services.common.rpc.errors import NotFound
from services.geofence.consumer import Evaluator
from services.geofence.devices.quality import TagQuality, quality_of, tag_ids
from tandem.common.v1 import presence_pb2
from tandem.geofence.v1 import geofence_pb2

MAX_PAGE, USUAL_PAGE = 5_000, 1_000
PAUSE_EVERY = 50
"""Number of tags after which the event loop gets its turn: some 3 ms of measuring."""


class DeviceList:
    """Lists the tags of the evaluators of this process."""

    def __init__(self, evaluators: Mapping[int, Evaluator], partitions: int) -> None:
        self._evaluators, self._partitions = evaluators, partitions

    async def page(self, request: geofence_pb2.ListDevicesRequest) -> geofence_pb2.ListDevicesResponse:
        """Returns a page of tags. Raises InvalidField or NotFound."""
        if request.device_id:
            return self._only(fields.required_id("device_id", request.device_id))
        if request.page_token:
            fields.required_id("page_token", request.page_token)
        size = int(fields.number("page_size", request.page_size, 0, greatest=MAX_PAGE)) or USUAL_PAGE
        wanted = heapq.nsmallest(size + 1, (id_ for id_ in self._ids() if id_ > request.page_token))
        response = geofence_pb2.ListDevicesResponse(
            next_page_token=wanted[size - 1] if len(wanted) > size else "", missing_partitions=self._missing()
        )
        for i, device_id in enumerate(wanted[:size], 1):
            quality = self._quality(device_id)
            if quality and (quality.is_slow or quality.is_contradicted or not request.only_conspicuous):
                response.devices.append(_row(device_id, quality))
            if i % PAUSE_EVERY == 0:
                await asyncio.sleep(0)
        return response

    def _only(self, device_id: str) -> geofence_pb2.ListDevicesResponse:
        quality = self._quality(device_id) if device_id in self._ids() else None
        if quality is None:
            raise NotFound(
                "device_id: this evaluator knows no tag of a wearer with this id that has reported a position"
            )
        return geofence_pb2.ListDevicesResponse(devices=[_row(device_id, quality)], missing_partitions=self._missing())

    def _ids(self) -> set[str]:
        """Ids of the tags of all partitions of this process."""
        return set().union(*(tag_ids(evaluator.state) for evaluator in self._evaluators.values()))

    def _missing(self) -> list[int]:
        return [p for p in range(self._partitions) if p not in self._evaluators]

    def _quality(self, device_id: str) -> TagQuality | None:
        """Measures of a tag; None if its track was dropped meanwhile."""
        for evaluator in self._evaluators.values():
            track = evaluator.state.tracks.get(device_id)
            if track is not None and track.recent:
                return quality_of(track, evaluator.state.stays.get(device_id))
        return None


def _row(device_id: str, quality: TagQuality) -> geofence_pb2.TagQuality:
    row = geofence_pb2.TagQuality(
        device_id=device_id,
        kept_interval_s=round((quality.kept_interval_ms or 0) / 1000),
        slow=quality.is_slow,
        stated_accuracy_m=quality.stated_mm / 1000,
        accuracy_contradicted=quality.is_contradicted,
        last_fix=times.to_timestamp(quality.last_fix_ms),
        last_source=presence_pb2.PositionSource.ValueType(quality.last_source),
    )
    if quality.stay is not None:
        row.presence_unit_id = quality.stay.unit_id
        row.presence_seen.CopyFrom(times.to_timestamp(quality.stay.seen_ms))
    if quality.observed_mm is not None:
        row.observed_accuracy_m = quality.observed_mm / 1000
    return row
