"""Reads the devices of a desk's own side: equipment from an evaluator, batteries from ingest, states of phones from the police leg."""

from __future__ import annotations

import asyncio

import grpc
import grpc.aio

from services.common.rpc.server import Metadata
from services.console.devices import domain, translate
from services.console.devices.domain import LOW_PCT, BatteryCard, EquipmentCard, PhoneCard, WatchedDevice
from services.console.domain.people import ConsoleUser, Role
from services.console.mesh import MeshClient
from services.console.services_away import unless_away
from tandem.dispatch.v1 import phone_state_pb2
from tandem.geofence.v1 import device_state_pb2
from tandem.ingest.v1 import battery_pb2

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
        devices = domain.joined(equipment or [], batteries or [], phones or [])
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
            answer = await self._mesh.desk.device_states.ListDeviceStates(
                request, metadata=identity, timeout=DEADLINE_S
            )
            cards += map(translate.equipment, answer.devices)
            if not answer.next_page_token:
                return cards
            request.page_token = answer.next_page_token

    async def _low(self, identity: Metadata) -> list[BatteryCard]:
        request = battery_pb2.ListBatteriesRequest(max_pct=LOW_PCT)
        answer = await self._mesh.desk.batteries.ListBatteries(request, metadata=identity, timeout=DEADLINE_S)
        return [translate.battery(device) for device in answer.devices]

    async def _state(self, identity: Metadata, device_id: str) -> EquipmentCard | None:
        request = device_state_pb2.ListDeviceStatesRequest(device_id=device_id)
        try:
            answer = await self._mesh.desk.device_states.ListDeviceStates(
                request, metadata=identity, timeout=DEADLINE_S
            )
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.NOT_FOUND:
                return None  # the device is in no joint case
            raise
        return translate.equipment(answer.devices[0])

    async def _battery(self, identity: Metadata, device_id: str) -> BatteryCard | None:
        request = battery_pb2.ListBatteriesRequest(device_id=device_id)
        answer = await self._mesh.desk.batteries.ListBatteries(request, metadata=identity, timeout=DEADLINE_S)
        return translate.battery(answer.devices[0]) if answer.devices else None

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
            cards += map(translate.phone, answer.phones)
            if not answer.next_page_token:
                return cards
            request.page_token = answer.next_page_token
