"""Pages of devices: for desks those of the own side that need somebody, for operators those that don't report as they were asked.

A desk sees equipment from an evaluator, batteries from ingest and phones' states from the police leg, and a device's commands.
Operators see devices that don't obey, report seldom, or state an accuracy that can't be true, and no position.
"""

from __future__ import annotations

import asyncio

import grpc
import grpc.aio
from aiohttp import web

from services.client.calls import call_once
from services.common import fields, times
from services.common.errors import InvalidField
from services.common.observability.telemetry import logger
from services.common.rpc.server import Metadata
from services.console.domain.devices import (
    LOW_PCT,
    AskCard,
    AskedDevice,
    BatteryCard,
    EquipmentCard,
    HistoryLine,
    MeasuredTag,
    PhoneCard,
    Problem,
    WatchedDevice,
    asker_of,
    conspicuous,
    counts,
    hours_left,
    newest_first,
    reporting_devices,
    watched_devices,
)
from services.console.domain.people import DESKS, ConsoleUser, Role
from services.console.mesh import MeshClient, unless_away
from services.console.pages import assets
from services.console.pages.guard import Ask, RouteGuard, http_status
from services.console.translate import moment, source
from tandem.common.v1 import command_pb2, log_pb2
from tandem.dispatch.v1 import phone_state_pb2
from tandem.geofence.v1 import device_state_pb2, geofence_pb2
from tandem.ingest.v1 import battery_pb2, ingest_pb2

EXAMINED_BATCH = 5_000
DEADLINE_S = 5.0


class DeviceReader:
    """Reads devices as a user may see them."""

    def __init__(self, mesh: MeshClient) -> None:
        self._mesh = mesh

    async def in_trouble(self, user: ConsoleUser, away: list[str]) -> list[WatchedDevice] | None:
        """Returns the devices in trouble, the most urgent first; None if no service answers. `away` gets the names of absent ones."""
        identity = self._mesh.identity(user)
        equipment, batteries, phones = await asyncio.gather(
            unless_away("geofence", self._equipment(identity), away),
            unless_away("ingest", self._low(identity), away),
            unless_away("phones", self._phones(user), away),
        )
        if equipment is None and batteries is None:
            return None
        devices = watched_devices(equipment or [], batteries or [], phones or [])
        return [device for device in devices if device.is_in_trouble]

    async def of_device(self, user: ConsoleUser, device_id: str, away: list[str]) -> WatchedDevice:
        """Returns a device. A device that an evaluator doesn't know, or whose charge nobody knows, lacks that part."""
        identity = self._mesh.identity(user)
        equipment, battery, phones = await asyncio.gather(
            unless_away("geofence", self._state(identity, device_id), away),
            unless_away("ingest", self._battery(identity, device_id), away),
            unless_away("phones", self._phones(user, device_id), away),
        )
        return WatchedDevice(device_id, equipment, battery, phone=phones[0] if phones else None)

    async def _equipment(self, identity: Metadata) -> list[EquipmentCard]:
        request = device_state_pb2.ListDeviceStatesRequest(only_in_trouble=True, page_size=EXAMINED_BATCH)
        cards: list[EquipmentCard] = []
        while True:
            answer = await self._mesh.device_states.ListDeviceStates(request, metadata=identity, timeout=DEADLINE_S)
            cards += map(_equipment_card, answer.devices)
            if not answer.next_page_token:
                return cards
            request.page_token = answer.next_page_token

    async def _low(self, identity: Metadata) -> list[BatteryCard]:
        request = battery_pb2.ListBatteriesRequest(max_pct=LOW_PCT)
        answer = await self._mesh.batteries.ListBatteries(request, metadata=identity, timeout=DEADLINE_S)
        return [_battery_card(device) for device in answer.devices]

    async def _state(self, identity: Metadata, device_id: str) -> EquipmentCard | None:
        request = device_state_pb2.ListDeviceStatesRequest(device_id=device_id)
        try:
            answer = await self._mesh.device_states.ListDeviceStates(request, metadata=identity, timeout=DEADLINE_S)
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.NOT_FOUND:
                return None  # the device is in no joint case
            raise
        return _equipment_card(answer.devices[0])

    async def _battery(self, identity: Metadata, device_id: str) -> BatteryCard | None:
        request = battery_pb2.ListBatteriesRequest(device_id=device_id)
        answer = await self._mesh.batteries.ListBatteries(request, metadata=identity, timeout=DEADLINE_S)
        return _battery_card(answer.devices[0]) if answer.devices else None

    async def _phones(self, user: ConsoleUser, device_id: str = "") -> list[PhoneCard]:
        """The states of protected persons' phones, which the police alone see, or of one device's."""
        if user.role is not Role.POLICE:
            return []
        request = phone_state_pb2.ListPhoneStatesRequest(device_id=device_id, page_size=EXAMINED_BATCH)
        cards: list[PhoneCard] = []
        while True:
            answer = await self._mesh.leg_of(user.role).phone_states.ListPhoneStates(
                request, metadata=self._mesh.identity(user), timeout=DEADLINE_S
            )
            cards += map(_phone_card, answer.phones)
            if not answer.next_page_token:
                return cards
            request.page_token = answer.next_page_token


MAX_HISTORY = 30
MAX_LISTED = 200


class DevicePages:
    """Pages of the devices of a desk's own side."""

    def __init__(self, guard: RouteGuard, mesh: MeshClient, reader: DeviceReader) -> None:
        self._guard = guard
        self._mesh = mesh
        self._reader = reader

    def routes(self) -> list[web.RouteDef]:
        """Makes the routes, for desks only. Operators have pages of their own."""
        return [
            self._guard.get("/watched-devices", DESKS, self.in_trouble),
            self._guard.get("/watched-devices/{device}", DESKS, self.device),
        ]

    async def in_trouble(self, ask: Ask) -> web.StreamResponse:
        """Shows the devices in trouble, the one that dies first at the top."""
        away: list[str] = []
        devices = await self._reader.in_trouble(ask.user, away)
        return assets.page(
            ask,
            "watched_devices.html",
            devices=(devices or [])[:MAX_LISTED],
            count=len(devices or []),
            is_cut=len(devices or []) > MAX_LISTED,
            away=away,
            now_ms=self._mesh.clock.now_ms(),
            hours_left=hours_left,
        )

    async def device(self, ask: Ask) -> web.StreamResponse:
        """Shows a device, or says why this desk doesn't see it. The other agency's device looks like one that isn't registered."""
        device_id = ask.request.match_info["device"]
        try:
            fields.required_id("device", device_id)
            return await self._show(ask, device_id)
        except InvalidField:
            return self._refused(ask, 400)
        except grpc.aio.AioRpcError as error:
            logger().info("device_not_shown", code=error.code().name)
            return self._refused(ask, http_status(error.code()))

    async def _show(self, ask: Ask, device_id: str) -> web.StreamResponse:
        away: list[str] = []
        device, asked, lines = await asyncio.gather(
            self._reader.of_device(ask.user, device_id, away),
            unless_away("ingest", self._asked(ask, device_id), away),
            unless_away("ingest", self._history(ask, device_id), away),
        )
        return self._page(
            ask, device, asked if asked is not None else AskedDevice(device_id), lines=lines or [], away=away
        )

    def _page(
        self, ask: Ask, device: WatchedDevice, asked: AskedDevice, *, lines: list[HistoryLine], away: list[str]
    ) -> web.StreamResponse:
        return assets.page(
            ask,
            "watched_device.html",
            device=device,
            asked=asked,
            ask_in_effect=next((each for each in asked.asks if not each.refused), None),
            lines=newest_first(lines, MAX_HISTORY),
            is_cut=len(lines) > MAX_HISTORY,
            away=sorted(set(away)),
            now_ms=self._mesh.clock.now_ms(),
            hours_left=hours_left,
        )

    def _refused(self, ask: Ask, status: int) -> web.StreamResponse:
        return assets.page(ask, "device_refused.html", status=status, path="/watched-devices", key=f"device_{status}")

    async def _asked(self, ask: Ask, device_id: str) -> AskedDevice:
        answer = await call_once(
            self._mesh.commands.ListReporting,
            ingest_pb2.ListReportingRequest(device_id=device_id),
            self._mesh.identity(ask.user),
        )
        return _asked_device(answer.devices[0])

    async def _history(self, ask: Ask, device_id: str) -> list[HistoryLine]:
        answer = await call_once(
            self._mesh.commands.ListCommands,
            ingest_pb2.ListCommandsRequest(device_id=device_id),
            self._mesh.identity(ask.user),
        )
        return [_history_line(status) for status in answer.commands]


OPERATORS = frozenset({Role.OPERATOR})
MAX_DEVICES = 200
"""Maximum number of devices on the page."""
"""Maximum number of commands on the page of a device."""
PAGE_SIZE = 1_000


class ReportingPages:
    """The list of devices that need attention, and the page of one device."""

    def __init__(self, guard: RouteGuard, mesh: MeshClient) -> None:
        self._guard, self._mesh = guard, mesh

    def routes(self) -> list[web.RouteDef]:
        """Makes the routes, for operators only."""
        return [
            self._guard.get("/reporting", OPERATORS, self.reporting),
            self._guard.get("/reporting/{device}", OPERATORS, self.device),
        ]

    async def reporting(self, ask: Ask) -> web.StreamResponse:
        """Shows the devices with a problem, the worst first."""
        query = ask.request.query
        problem, text = query.get("problem", ""), query.get("text", "").strip()
        if problem and problem not in list(Problem):
            raise web.HTTPBadRequest(text=f"400: problem must be one of {', '.join(Problem)}")
        away: list[str] = []
        asked, measured = await asyncio.gather(
            unless_away("ingest", self._asked(ask), away), unless_away("geofence", self._measured(ask), away)
        )
        if asked is None and measured is None:
            raise web.HTTPServiceUnavailable(text="503: neither ingest nor an evaluator answers: load the page again")
        tags, is_partial = measured or ([], False)
        cards = reporting_devices(asked or [], tags)
        found = conspicuous(cards, problem, text)
        return assets.page(
            ask,
            "reporting.html",
            cards=found[:MAX_DEVICES],
            count=len(found),
            is_cut=len(found) > MAX_DEVICES,
            counts=counts(cards),
            asked_count=sum(bool(card.asked.asks) for card in cards),
            problems=list(Problem),
            problem=problem,
            text=text,
            away=away,
            is_partial=is_partial,
        )

    async def device(self, ask: Ask) -> web.StreamResponse:
        """Shows what a device was asked, what was delivered, and what it did."""
        try:
            device_id = fields.required_id("device", ask.request.match_info["device"])
        except InvalidField as error:
            raise web.HTTPBadRequest(text=f"400: {error}") from None
        identity = self._mesh.identity(ask.user)
        listed = await call_once(
            self._mesh.commands.ListReporting, ingest_pb2.ListReportingRequest(device_id=device_id), identity
        )
        commands = await call_once(
            self._mesh.commands.ListCommands, ingest_pb2.ListCommandsRequest(device_id=device_id), identity
        )
        away: list[str] = []
        tag = await unless_away("geofence", self._tag(ask, device_id), away)
        (card,) = reporting_devices(map(_asked_device, listed.devices), [tag] if tag else [])
        lines = [_history_line(status) for status in commands.commands]
        return assets.page(
            ask,
            "reporting_device.html",
            card=card,
            lines=newest_first(lines, MAX_HISTORY),
            is_cut=len(lines) > MAX_HISTORY,
            away=away,
        )

    async def _asked(self, ask: Ask) -> list[AskedDevice]:
        """Returns all devices of which something is asked."""
        request = ingest_pb2.ListReportingRequest(page_size=PAGE_SIZE)
        devices: list[AskedDevice] = []
        while True:
            answer = await call_once(self._mesh.commands.ListReporting, request, self._mesh.identity(ask.user))
            devices += map(_asked_device, answer.devices)
            if not answer.next_page_token:
                return devices
            request.page_token = answer.next_page_token

    async def _measured(self, ask: Ask) -> tuple[list[MeasuredTag], bool]:
        """Returns the slow tags and those whose accuracy can't be true, and whether some partitions are missing."""
        request = geofence_pb2.ListDevicesRequest(only_conspicuous=True, page_size=EXAMINED_BATCH)
        tags: list[MeasuredTag] = []
        while True:
            answer = await call_once(self._mesh.geofence.ListDevices, request, self._mesh.identity(ask.user))
            tags += map(_measured_tag, answer.devices)
            if not answer.next_page_token:
                return tags, bool(answer.missing_partitions)
            request.page_token = answer.next_page_token

    async def _tag(self, ask: Ask, device_id: str) -> MeasuredTag | None:
        """Returns an evaluator's measures of a device; None for a protective device, and for a tag without a position."""
        try:
            answer = await call_once(
                self._mesh.geofence.ListDevices,
                geofence_pb2.ListDevicesRequest(device_id=device_id),
                self._mesh.identity(ask.user),
            )
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.NOT_FOUND:
                return None
            raise
        return _measured_tag(answer.devices[0])


def _equipment_card(message: device_state_pb2.DeviceState) -> EquipmentCard:
    """Translates an evaluator's state of a device."""
    return EquipmentCard(
        device_id=message.device_id,
        subject_id=message.subject_id,
        events=tuple(log_pb2.EquipmentKind.Name(event) for event in message.active_events),
        heard_ms=moment(message, "last_heard"),
        fix_ms=moment(message, "last_fix"),
        accuracy_m=message.accuracy_m if message.HasField("accuracy_m") else None,
        source=source(message.source),
        is_silent=message.silent,
    )


def _battery_card(message: battery_pb2.DeviceBattery) -> BatteryCard:
    """Translates ingest's battery of a device."""
    return BatteryCard(
        device_id=message.device_id,
        subject_id=message.subject_id,
        charge_pct=message.charge_pct,
        at_ms=times.from_timestamp(message.reported_at),
        empty_ms=moment(message, "empty_at"),
    )


def _phone_card(message: phone_state_pb2.PhoneState) -> PhoneCard:
    """Translates what a phone said about itself."""
    return PhoneCard(
        device_id=message.device_id,
        location=phone_state_pb2.PhoneLocation.Name(message.location).removeprefix("PHONE_LOCATION_"),
        location_ms=times.from_timestamp(message.location_since),
        is_hidden=message.screen == phone_state_pb2.PHONE_SCREEN_HIDDEN,
        screen_ms=times.from_timestamp(message.screen_since),
    )


def _asked_device(listed: ingest_pb2.DeviceReporting) -> AskedDevice:
    """Translates a device of ingest's list."""
    return AskedDevice(
        device_id=listed.device_id,
        asks=tuple(
            AskCard(
                by=ask.asked_by,
                interval_s=ask.interval_s,
                asked_ms=times.from_timestamp(ask.asked_at),
                until_ms=times.from_timestamp(ask.until),
                refused=ask.refused,
            )
            for ask in listed.asks
        ),
        delivery=_state(listed.delivery),
        delivery_ms=moment(listed, "delivery_since"),
        refused_because=listed.refused_because,
        observed_s=listed.observed_interval_s,
        obeys=ingest_pb2.Obedience.Name(listed.obeys).removeprefix("OBEDIENCE_"),
        slow=listed.slow,
        last_fix_ms=moment(listed, "last_fix"),
        locates_sent=listed.locates_sent,
        locates_answered=listed.locates_answered,
    )


def _measured_tag(listed: geofence_pb2.TagQuality) -> MeasuredTag:
    """Translates a tag of an evaluator's list."""
    return MeasuredTag(
        device_id=listed.device_id,
        kept_s=listed.kept_interval_s,
        slow=listed.slow,
        stated_m=listed.stated_accuracy_m,
        observed_m=listed.observed_accuracy_m if listed.HasField("observed_accuracy_m") else None,
        contradicted=listed.accuracy_contradicted,
        last_fix_ms=moment(listed, "last_fix"),
        source=source(listed.last_source),
        unit_id=listed.presence_unit_id,
        at_unit_ms=moment(listed, "presence_seen"),
    )


def _history_line(status: ingest_pb2.CommandStatus) -> HistoryLine:
    """Translates a command of a device."""
    instruction = status.command.instruction
    return HistoryLine(
        command_id=status.command.command_id,
        kind=instruction.WhichOneof("kind") or "",
        interval_s=instruction.report_every.interval_s if instruction.HasField("report_every") else 0,
        asker=asker_of(status.issued_by),
        state=_state(status.state),
        since_ms=moment(status, "since"),
        reason=status.reason,
    )


def _state(state: command_pb2.CommandState.ValueType) -> str:
    return command_pb2.CommandState.Name(state).removeprefix("COMMAND_STATE_") if state else ""
