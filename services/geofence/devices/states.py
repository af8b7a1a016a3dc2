"""The state of the equipment for desks and operators: active events, last contact, accuracy and source. It holds no position."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import grpc.aio

from services.common import fields, times
from services.common.rpc import server
from services.common.rpc.errors import NotFound
from services.common.rpc.identity import Role
from services.geofence.consumer import Evaluator
from services.geofence.domain.entries import EquipmentKind, Exercise
from services.geofence.domain.state import State
from tandem.common.v1 import log_pb2, presence_pb2
from tandem.geofence.v1 import device_state_pb2, device_state_pb2_grpc

MAX_PAGE, USUAL_PAGE = 5_000, 1_000
PAUSE_EVERY = 200
"""Number of devices after which the event loop gets its turn."""
SILENT_MS = 180_000
"""Time without a report after which a device counts as silent, as the decision counts it."""
_KINDS = {
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
        known = self._devices(_KINDS[server.caller().role])
        if request.device_id:
            id_ = fields.required_id("device_id", request.device_id)
            if id_ not in known:
                raise NotFound("device_id: this evaluator knows no such device of the caller's side in a joint case")
            return device_state_pb2.ListDeviceStatesResponse(
                devices=[_row(known[id_][0], id_, known[id_][1])], missing_partitions=missing
            )
        if request.page_token:
            fields.required_id("page_token", request.page_token)
        size = int(fields.number("page_size", request.page_size, 0, greatest=MAX_PAGE)) or USUAL_PAGE
        wanted = heapq.nsmallest(size + 1, (id_ for id_ in known if id_ > request.page_token))
        answer = device_state_pb2.ListDeviceStatesResponse(
            next_page_token=wanted[size - 1] if len(wanted) > size else "", missing_partitions=missing
        )
        for i, device_id in enumerate(wanted[:size], 1):
            state, owned = known[device_id]
            row = _row(state, device_id, owned)
            if row.active_events or row.silent or not request.only_in_trouble:
                answer.devices.append(row)
            if i % PAUSE_EVERY == 0:
                await asyncio.sleep(0)
        return answer

    def _devices(self, kinds: tuple[log_pb2.DeviceKind.ValueType, ...]) -> dict[str, tuple[State, _Owned]]:
        return {
            device_id: (evaluator.state, owned)
            for evaluator in self._evaluators.values()
            for device_id, owned in _owned_devices(evaluator.state)
            if owned.kind in kinds
        }


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


def _row(state: State, device_id: str, owned: _Owned) -> device_state_pb2.DeviceState:
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
