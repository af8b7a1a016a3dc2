"""Fake ingest and evaluator for the operators' pages: lists of devices, without a mesh."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc.aio

from services.common import times
from services.common.errors import NotFound
from services.common.priority import PriorityGate
from services.common.rpc import server as rpc
from services.common.rpc.history import HistoryBudget
from services.common.settings import CommonSettings
from tandem.common.v1 import command_pb2
from tandem.geofence.v1 import device_state_pb2, device_state_pb2_grpc, geofence_pb2, geofence_pb2_grpc
from tandem.ingest.v1 import battery_pb2, battery_pb2_grpc, ingest_pb2, ingest_pb2_grpc
from tests.support.common.ports import free_port
from tests.support.console.console import SECRET, ConsoleBench, console_bench

T0 = 1_783_300_000_000
PURSUIT = "spiffe://tandem/service/dispatch-police"
DESK = "spiffe://moj/desk/lee"


def asks(*asked: tuple[str, int], refused: int = 0) -> list[ingest_pb2.ReportingAsk]:
    """Asks in force, by asker and interval; `refused` of them, from the first on, are refused."""
    return [
        ingest_pb2.ReportingAsk(
            asked_by=by,
            interval_s=interval_s,
            asked_at=times.to_timestamp(T0 - 900_000),
            until=times.to_timestamp(T0 + 2_700_000),
            refused=i < refused,
        )
        for i, (by, interval_s) in enumerate(asked)
    ]


def listed(device_id: str, obeys: int, *, last_fix_s: int = 20, **values: Any) -> ingest_pb2.DeviceReporting:
    """A device of ingest's list."""
    return ingest_pb2.DeviceReporting(
        device_id=device_id,
        obeys=ingest_pb2.Obedience.ValueType(obeys),
        delivery_since=times.to_timestamp(T0 - 880_000),
        last_fix=times.to_timestamp(T0 - last_fix_s * 1000),
        **values,
    )


def tag(
    device_id: str, kept_s: int, stated_m: float, observed_m: float | None, last_fix_s: int = 20
) -> geofence_pb2.TagQuality:
    """A tag of the evaluator's list."""
    row = geofence_pb2.TagQuality(
        device_id=device_id,
        kept_interval_s=kept_s,
        slow=kept_s >= 150,
        stated_accuracy_m=stated_m,
        accuracy_contradicted=observed_m is not None and observed_m > 2 * stated_m,
        last_fix=times.to_timestamp(T0 - last_fix_s * 1000),
    )
    if observed_m is not None:
        row.observed_accuracy_m = observed_m
    return row


def command(
    command_id: str, state: command_pb2.CommandState.ValueType, ago_s: int, *, reason: str = "", **kind: Any
) -> ingest_pb2.CommandStatus:
    """A command of a device, given by the decision."""
    return ingest_pb2.CommandStatus(
        command=ingest_pb2.DeviceCommand(command_id=command_id, instruction=command_pb2.Instruction(**kind)),
        state=state,
        since=times.to_timestamp(T0 - ago_s * 1000),
        issued_by="geofence",
        reason=reason,
    )


@dataclass
class FakeDevices(
    ingest_pb2_grpc.CommandServiceServicer,
    geofence_pb2_grpc.GeofenceServiceServicer,
    battery_pb2_grpc.BatteryServiceServicer,
    device_state_pb2_grpc.DeviceStateServiceServicer,
):
    """Devices that the fake services list, two a page. `callers` has the SPIFFE ids of all callers."""

    asked: list[ingest_pb2.DeviceReporting] = field(default_factory=list)
    tags: list[geofence_pb2.TagQuality] = field(default_factory=list)
    commands: list[ingest_pb2.CommandStatus] = field(default_factory=list)
    batteries: list[battery_pb2.DeviceBattery] = field(default_factory=list)
    states: list[device_state_pb2.DeviceState] = field(default_factory=list)
    missing_partitions: list[int] = field(default_factory=list)
    callers: set[str] = field(default_factory=set)

    async def ListReporting(
        self, request: ingest_pb2.ListReportingRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> ingest_pb2.ListReportingResponse:
        """Lists the devices of which something is asked, or one device."""
        self.callers.add(rpc.caller().spiffe_id)
        if request.device_id:
            known = [row for row in self.asked if row.device_id == request.device_id]
            if not known and request.device_id not in {row.device_id for row in self.tags}:
                raise NotFound("device_id: no such device is registered")
            nothing = ingest_pb2.DeviceReporting(device_id=request.device_id, obeys=ingest_pb2.OBEDIENCE_NOT_ASKED)
            return ingest_pb2.ListReportingResponse(devices=known or [nothing])
        ordered = sorted(self.asked, key=lambda row: row.device_id)
        page = [row for row in ordered if row.device_id > request.page_token]
        return ingest_pb2.ListReportingResponse(
            devices=page[:2], next_page_token=page[1].device_id if len(page) > 2 else ""
        )

    async def ListCommands(
        self, request: ingest_pb2.ListCommandsRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> ingest_pb2.ListCommandsResponse:
        """Lists the commands, whatever the device."""
        return ingest_pb2.ListCommandsResponse(commands=self.commands)

    async def ListDevices(
        self, request: geofence_pb2.ListDevicesRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> geofence_pb2.ListDevicesResponse:
        """Lists the tags."""
        self.callers.add(rpc.caller().spiffe_id)
        if request.device_id:
            known = [row for row in self.tags if row.device_id == request.device_id]
            if not known:
                raise NotFound("device_id: no such tag")
            return geofence_pb2.ListDevicesResponse(devices=known)
        ordered = sorted(
            (row for row in self.tags if not request.only_conspicuous or row.slow or row.accuracy_contradicted),
            key=lambda row: row.device_id,
        )
        page = [row for row in ordered if row.device_id > request.page_token]
        return geofence_pb2.ListDevicesResponse(
            devices=page[:2],
            next_page_token=page[1].device_id if len(page) > 2 else "",
            missing_partitions=self.missing_partitions,
        )

    async def ListBatteries(
        self, request: battery_pb2.ListBatteriesRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> battery_pb2.ListBatteriesResponse:
        """Lists the batteries, or that of one device."""
        found = [row for row in self.batteries if request.device_id in ("", row.device_id)]
        limit = request.max_pct if request.HasField("max_pct") else 100
        return battery_pb2.ListBatteriesResponse(devices=[row for row in found if row.charge_pct <= limit])

    async def ListDeviceStates(
        self, request: device_state_pb2.ListDeviceStatesRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> device_state_pb2.ListDeviceStatesResponse:
        """Lists the states, or that of one device."""
        found = [row for row in self.states if request.device_id in ("", row.device_id)]
        if request.device_id and not found:
            raise NotFound("device_id: no such device")
        return device_state_pb2.ListDeviceStatesResponse(devices=found)

    async def WatchAlerts(
        self, request: geofence_pb2.WatchAlertsRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[geofence_pb2.WatchAlertsResponse]:
        """Yields no alert, for as long as the caller waits."""
        await asyncio.Event().wait()
        yield geofence_pb2.WatchAlertsResponse()


class FakeQuarantine(ingest_pb2_grpc.IngestServiceServicer):
    """Fake list of refused reports: none."""

    async def ListQuarantine(
        self, request: ingest_pb2.ListQuarantineRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> ingest_pb2.ListQuarantineResponse:
        """Returns no refused report."""
        return ingest_pb2.ListQuarantineResponse()


def example() -> FakeDevices:
    """Nine devices of which seven have a problem."""
    waiting, sent = command_pb2.COMMAND_STATE_WAITING, command_pb2.COMMAND_STATE_SENT
    received, refused = command_pb2.COMMAND_STATE_RECEIVED, command_pb2.COMMAND_STATE_REFUSED
    return FakeDevices(  # type: ignore[abstract]  # the console calls no other methods
        asked=[
            listed(
                "tag-0417",
                4,
                asks=asks(("geofence", 30), (DESK, 300)),
                delivery=received,
                observed_interval_s=186,
                slow=True,
            ),
            listed("tag-1182", 4, asks=asks((PURSUIT, 15)), delivery=sent, observed_interval_s=62),
            listed(
                "tag-2090",
                4,
                asks=asks(("geofence", 45), refused=1),
                delivery=refused,
                refused_because="interval below 60 s isn't supported by this firmware",
                observed_interval_s=60,
            ),
            listed("tag-3001", 3, asks=asks(("geofence", 60)), delivery=received, observed_interval_s=58),
            listed("tag-3002", 2, asks=asks(("geofence", 120)), delivery=waiting, last_fix_s=95),
            listed(
                "app-7730",
                4,
                asks=asks(("spiffe://npa/desk/kim", 60)),
                delivery=received,
                observed_interval_s=300,
                slow=True,
            ),
        ],
        tags=[
            tag("tag-0417", 186, 8.0, 9.0),
            tag("tag-1182", 62, 5.0, 48.0),
            tag("tag-5140", 240, 12.0, None, last_fix_s=130),
            tag("tag-5233", 30, 4.0, 31.0),
            tag("tag-5310", 181, 10.0, 11.0, last_fix_s=170),
            tag("tag-3001", 58, 8.0, 7.0),
        ],
        commands=[
            command("sensing-1", received, 880, report_every=command_pb2.ReportEvery(interval_s=30, for_s=3600)),
            command("sensing-2", sent, 420, locate_now=command_pb2.LocateNow()),
            command(
                "sensing-3",
                refused,
                4000,
                reason="busy",
                report_every=command_pb2.ReportEvery(interval_s=150, for_s=3600),
            ),
            command("sensing-4", received, 7200, report_as_usual=command_pb2.ReportAsUsual()),
        ],
    )


@asynccontextmanager
async def operators_bench(folder: Path, devices: FakeDevices, *, without: str = "") -> AsyncIterator[ConsoleBench]:
    """Starts a console whose ingest and evaluator list these devices. `without` names a service that isn't there: INGEST, GEOFENCE."""

    def add(server: grpc.aio.Server) -> None:
        quarantine = FakeQuarantine()  # type: ignore[abstract]  # the console calls no other methods
        ingest_pb2_grpc.add_IngestServiceServicer_to_server(quarantine, server)
        ingest_pb2_grpc.add_CommandServiceServicer_to_server(devices, server)
        geofence_pb2_grpc.add_GeofenceServiceServicer_to_server(devices, server)
        battery_pb2_grpc.add_BatteryServiceServicer_to_server(devices, server)
        device_state_pb2_grpc.add_DeviceStateServiceServicer_to_server(devices, server)

    async with rpc.serve(
        CommonSettings(port=0, dev_secret=SECRET), add, history=HistoryBudget(PriorityGate())
    ) as served:
        more = {f"TANDEM_{name}": f"ipv4:127.0.0.1:{served.port}" for name in ("INGEST", "GEOFENCE")}
        if without:
            more[f"TANDEM_{without}"] = f"ipv4:127.0.0.1:{free_port()}"
        async with console_bench(folder, more) as bench:
            yield bench
