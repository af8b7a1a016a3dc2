"""Translates equipment, batteries and phones from the services' messages into the cards of the pages."""

from __future__ import annotations

from services.common import times
from services.console.devices.domain import BatteryCard, EquipmentCard, PhoneCard
from services.console.translate import moment, source
from tandem.common.v1 import log_pb2
from tandem.dispatch.v1 import phone_state_pb2
from tandem.geofence.v1 import device_state_pb2
from tandem.ingest.v1 import battery_pb2


def equipment(message: device_state_pb2.DeviceState) -> EquipmentCard:
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


def battery(message: battery_pb2.DeviceBattery) -> BatteryCard:
    """Translates ingest's battery of a device."""
    return BatteryCard(
        device_id=message.device_id,
        subject_id=message.subject_id,
        charge_pct=message.charge_pct,
        at_ms=times.from_timestamp(message.reported_at),
        empty_ms=moment(message, "empty_at"),
    )


def phone(message: phone_state_pb2.PhoneState) -> PhoneCard:
    """Translates what a phone said about itself."""
    return PhoneCard(
        device_id=message.device_id,
        location=phone_state_pb2.PhoneLocation.Name(message.location).removeprefix("PHONE_LOCATION_"),
        location_ms=times.from_timestamp(message.location_since),
        is_hidden=message.screen == phone_state_pb2.PHONE_SCREEN_HIDDEN,
        screen_ms=times.from_timestamp(message.screen_since),
    )
