"""The list of tags and the states of devices, for operators and desks. Neither holds a position or a name.

A row of the list says how well a tag reports: the interval that it keeps, and whether the accuracy that it states can be true. The
state of a device has its active events, last contact, accuracy and source.
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any, NamedTuple

import grpc.aio

from services.common import fields, times
from services.common.errors import NotFound
from services.common.rpc import server
from services.common.rpc.identity import Role
from services.geofence.consumer import Evaluator
from services.geofence.domain.entries import EquipmentKind, Exercise
from services.geofence.domain.kinematics.accuracy import CONTRADICTION, SCATTER_FIXES, observed_error_mm
from services.geofence.domain.kinematics.track import Track
from services.geofence.domain.state import State, UnitStay
from tandem.common.v1 import log_pb2, presence_pb2
from tandem.geofence.v1 import device_state_pb2, device_state_pb2_grpc, geofence_pb2

MAX_PAGE, USUAL_PAGE = 5_000, 1_000
DEVICES_PER_TURN = 200
"""Number of devices after which the event loop gets its turn."""
SILENT_MS = 180_000
"""Time without a report after which a device counts as silent, as the decision counts it."""
SLOW_MS = 150_000
"""Kept interval from which on silence and the end of an incident are noticed late. ingest lists devices by the same limit."""
TAGS_PER_TURN = 50
"""Number of tags after which the event loop gets its turn: some 3 ms of measuring."""


class DeviceList:
    """Lists the tags of the evaluators of this process."""

    def __init__(self, evaluators: Mapping[int, Evaluator], partitions: int) -> None:
        self._evaluators, self._partitions = evaluators, partitions

    async def page(self, request: geofence_pb2.ListDevicesRequest) -> geofence_pb2.ListDevicesResponse:
        """Returns a page of tags. Raises InvalidField or NotFound."""
        if request.device_id:
            return self._only(fields.required_id("device_id", request.device_id))
        page = _page_of(self._ids(), request.page_token, request.page_size)
        response = geofence_pb2.ListDevicesResponse(next_page_token=page.next_token, missing_partitions=self._missing())
        for i, device_id in enumerate(page.ids, 1):
            quality = self._quality(device_id)
            if quality and (quality.is_slow or quality.is_contradicted or not request.only_conspicuous):
                response.devices.append(_tag_row(device_id, quality))
            if i % TAGS_PER_TURN == 0:
                await asyncio.sleep(0)
        return response

    def _only(self, device_id: str) -> geofence_pb2.ListDevicesResponse:
        quality = self._quality(device_id) if device_id in self._ids() else None
        if quality is None:
            raise NotFound(
                "device_id: this evaluator knows no tag of a wearer with this id that has reported a position"
            )
        return geofence_pb2.ListDevicesResponse(
            devices=[_tag_row(device_id, quality)], missing_partitions=self._missing()
        )

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


_KINDS_FOR = {
    Role.ROLE_MOJ_DESK: (log_pb2.TAG,),
    Role.ROLE_NPA_DESK: (log_pb2.PROTECTIVE_DEVICE,),
    Role.ROLE_OPERATOR: (log_pb2.TAG, log_pb2.PROTECTIVE_DEVICE),
}
"""Kinds of devices that each role may see."""
_NUMBER_OF_EVENT = {kind.value: log_pb2.EquipmentKind.Value(kind.name) for kind in EquipmentKind}


class _Owned(NamedTuple):
    kind: log_pb2.DeviceKind.ValueType
    subject_id: str


class DeviceStateApi(device_state_pb2_grpc.DeviceStateServiceServicer):
    """DeviceStateService, from the evaluators of this process."""

    def __init__(self, evaluators: Mapping[int, Evaluator], partitions: int) -> None:
        self._evaluators, self._partitions = evaluators, partitions

    async def ListDeviceStates(
        self, request: device_state_pb2.ListDeviceStatesRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> device_state_pb2.ListDeviceStatesResponse:
        missing = [p for p in range(self._partitions) if p not in self._evaluators]
        known = self._devices(_KINDS_FOR[server.caller().role])
        if request.device_id:
            id_ = fields.required_id("device_id", request.device_id)
            if id_ not in known:
                raise NotFound("device_id: this evaluator knows no such device of the caller's side in a joint case")
            return device_state_pb2.ListDeviceStatesResponse(
                devices=[_state_row(known[id_][0], id_, known[id_][1])], missing_partitions=missing
            )
        page = _page_of(known, request.page_token, request.page_size)
        answer = device_state_pb2.ListDeviceStatesResponse(next_page_token=page.next_token, missing_partitions=missing)
        for i, device_id in enumerate(page.ids, 1):
            state, owned = known[device_id]
            row = _state_row(state, device_id, owned)
            if row.active_events or row.silent or not request.only_in_trouble:
                answer.devices.append(row)
            if i % DEVICES_PER_TURN == 0:
                await asyncio.sleep(0)
        return answer

    def _devices(self, kinds: tuple[log_pb2.DeviceKind.ValueType, ...]) -> dict[str, tuple[State, _Owned]]:
        return {
            device_id: (evaluator.state, owned)
            for evaluator in self._evaluators.values()
            for device_id, owned in _owned_devices(evaluator.state)
            if owned.kind in kinds
        }


class _DevicePage(NamedTuple):
    """Ids of one page of a list."""

    ids: list[str]
    next_token: str
    """Token of the next page; empty if there is none."""


def _page_of(ids: Iterable[str], token: str, page_size: int) -> _DevicePage:
    """The page of a list that follows a token, in the order of the ids. Raises InvalidField."""
    if token:
        fields.required_id("page_token", token)
    size = int(fields.number("page_size", page_size, 0, greatest=MAX_PAGE)) or USUAL_PAGE
    wanted = heapq.nsmallest(size + 1, (id_ for id_ in ids if id_ > token))
    return _DevicePage(wanted[:size], wanted[size - 1] if len(wanted) > size else "")


def _tag_row(device_id: str, quality: TagQuality) -> geofence_pb2.TagQuality:
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


@dataclass(frozen=True, slots=True)
class TagQuality:
    """Measures of one tag. None has a position."""

    kept_interval_ms: int | None
    """Interval between fixes that the tag was seen to keep, ms; None if there are too few fixes."""
    stated_mm: float
    """Median of the accuracies that the tag stated for its newest fixes, mm."""
    observed_mm: int | None
    """Radius that holds 68 % of the errors by the scatter of these fixes, mm; None if there are too few."""
    last_fix_ms: int
    last_source: int
    """Where the newest fix comes from, a number of `entries.PositionSource`."""
    stay: UnitStay | None
    """Newest presence at a home unit or beacon; None if there is none."""

    @property
    def is_slow(self) -> bool:
        """Whether the tag keeps SLOW_MS or longer."""
        return self.kept_interval_ms is not None and self.kept_interval_ms >= SLOW_MS

    @property
    def is_contradicted(self) -> bool:
        """Whether the scatter shows that the stated accuracy can't be true."""
        return self.observed_mm is not None and self.observed_mm > CONTRADICTION * self.stated_mm


def tag_ids(state: State) -> set[str]:
    """Ids of the tags of all cases that have reported a position."""
    tags = {id_ for case_state in state.cases.values() for id_ in case_state.case.tag_device_ids}
    return {id_ for id_ in tags if id_ in state.tracks and state.tracks[id_].recent}


def quality_of(track: Track, stay: UnitStay | None = None) -> TagQuality:
    """Measures a tag by its track, which must have a fix, with its newest presence at a unit."""
    return TagQuality(
        kept_interval_ms=track.kept_interval_ms(),
        stated_mm=median(fix.accuracy_mm for fix in track.newest(SCATTER_FIXES)),
        observed_mm=observed_error_mm(track),
        last_fix_ms=track.recent[-1].time_ms,
        last_source=track.recent[-1].source,
        stay=stay,
    )


def _owned_devices(state: State) -> Iterator[tuple[str, _Owned]]:
    """Devices of the joint cases that haven't ended, canaries left out, with their kind and owner.

    The state keeps ended cases. Their devices are switched off or have another owner, and would count as silent for good.
    """
    for case_state in state.cases.values():
        case = case_state.case
        if case_state.ended or case.exercise is Exercise.CANARY:
            continue
        for device_id in case.tag_device_ids:
            yield device_id, _Owned(log_pb2.TAG, case.wearer_id)
        for target in case.targets:
            for device_id in target.device_ids:
                yield device_id, _Owned(log_pb2.PROTECTIVE_DEVICE, target.target_id)


def _state_row(state: State, device_id: str, owned: _Owned) -> device_state_pb2.DeviceState:
    track, heard_ms = state.tracks.get(device_id), state.heard_at_ms.get(device_id)
    active = sorted(
        _NUMBER_OF_EVENT[event] for event in state.active_events.get(device_id, ()) if event in _NUMBER_OF_EVENT
    )
    row = device_state_pb2.DeviceState(
        device_id=device_id,
        kind=owned.kind,
        subject_id=owned.subject_id,
        active_events=active,
        silent=heard_ms is None or state.now_ms - heard_ms > SILENT_MS,
    )
    if heard_ms is not None:
        row.last_heard.CopyFrom(times.to_timestamp(heard_ms))
    if track is not None and track.recent:
        fix = track.recent[-1]
        row.last_fix.CopyFrom(times.to_timestamp(fix.time_ms))
        row.accuracy_m = fix.accuracy_mm / 1000
        row.source = presence_pb2.PositionSource.ValueType(fix.source)
    return row
