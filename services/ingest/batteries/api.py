"""gRPC endpoint for battery charges. Each agency's desk sees the devices of its own side."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import grpc.aio

from services.common import fields, times
from services.common.rpc import server
from services.ingest.admission.routes import Routes
from services.ingest.batteries.charges import BatteryCharge, ReportedBatteries
from services.ingest.commands.api import DEVICE_KINDS
from tandem.common.v1 import log_pb2
from tandem.ingest.v1 import battery_pb2, battery_pb2_grpc

MAX_DEVICES = 1_000


class BatteryApi(battery_pb2_grpc.BatteryServiceServicer):
    """Lists devices by their battery charge."""

    def __init__(self, batteries: ReportedBatteries, routes: Routes) -> None:
        self._batteries, self._routes = batteries, routes

    async def ListBatteries(
        self, request: battery_pb2.ListBatteriesRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> battery_pb2.ListBatteriesResponse:
        kinds = DEVICE_KINDS[server.caller().role]
        if request.device_id:
            return battery_pb2.ListBatteriesResponse(devices=self._only(request.device_id, kinds))
        max_pct = fields.number("max_pct", request.max_pct, 0, greatest=100) if request.HasField("max_pct") else 100
        answer = battery_pb2.ListBatteriesResponse()
        for device_id, charge in self._batteries.lowest_first(max_pct):
            known = self._routes.registration(device_id)
            if known is None or known.revoked or known.kind not in kinds:
                continue
            if len(answer.devices) >= MAX_DEVICES:
                answer.incomplete = True
                break
            answer.devices.append(_row(device_id, known.subject_id, charge))
        return answer

    def _only(self, device_id: str, kinds: Collection[log_pb2.DeviceKind.ValueType]) -> list[battery_pb2.DeviceBattery]:
        known = self._routes.required(device_id, kinds)
        charge = self._batteries.get(device_id)
        return [] if charge is None else [_row(device_id, known.subject_id, charge)]


def _row(device_id: str, subject_id: str, charge: BatteryCharge) -> battery_pb2.DeviceBattery:
    row = battery_pb2.DeviceBattery(
        device_id=device_id,
        subject_id=subject_id,
        charge_pct=charge.charge_pct,
        reported_at=times.to_timestamp(charge.at_ms),
    )
    if charge.empty_ms is not None and charge.empty_ms <= times.MAX_MS:
        row.empty_at.CopyFrom(times.to_timestamp(charge.empty_ms))
    return row
