"""Routes of devices: their permitted sender and the partitions that need their reports. Follows the registry's KV bucket."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

from services.common import fields
from services.common.clock import MeshClock
from services.common.errors import InvalidField, NotFound, Unavailable
from services.common.messaging import cursors, dead_letters, flow, pull, stored
from services.common.messaging.bus import Bounds, Bus
from services.common.messaging.cursors import StreamCursor, StreamWentBack
from services.common.messaging.streams import MAX_PARTITIONS
from services.common.observability.health import ReaderHealth
from services.common.observability.telemetry import logger
from services.ingest.domain import Reason, Sender, UnitPresence
from tandem.common.v1 import access_pb2, log_pb2

_STREAM = f"KV_{flow.DEVICES_BUCKET}"
_PREFIX = f"$KV.{flow.DEVICES_BUCKET}."
MISS_FORGOTTEN_S = 1.0
MAX_MISSES = 10_000

Partitions: TypeAlias = tuple[int, ...]
_NONE: Mapping[str, Partitions] = {}
_NO_TOKENS: Mapping[bytes, int | None] = {}

DEVICE_KINDS = {
    access_pb2.ROLE_MOJ_DESK: (log_pb2.TAG,),
    access_pb2.ROLE_NPA_DESK: (log_pb2.PROTECTIVE_DEVICE,),
    access_pb2.ROLE_OPERATOR: (log_pb2.TAG, log_pb2.PROTECTIVE_DEVICE),
}
"""Kinds of devices that each role may command, and whose charges it sees."""


@dataclass(frozen=True, slots=True)
class Registration:
    """Registration of a device in the registry."""

    partitions: Partitions
    vendor_id: str
    """Vendor that may report for the device by gRPC. Empty if none may."""
    kind: log_pb2.DeviceKind.ValueType
    subject_id: str
    """Id of the wearer or protected person who has the device."""
    revoked: bool
    identifier_sha256: bytes
    """SHA-256 of what is heard of a beacon. Empty for other devices."""
    token_ends_ms: Mapping[bytes, int | None]
    """End of each token's validity by the token's SHA-256, milliseconds since 1970 UTC; None for a token without an end."""


class PresenceRefused(NamedTuple):
    """The field of a presence that is wrong, and the reason."""

    field: str
    reason: Reason


class Routes:
    """Registrations by device. A device that isn't known yet is looked up in the bucket, at most once a second, unless the whole bucket
    has been read (`is_current`)."""

    def __init__(
        self, bus: Bus, clock: MeshClock, partitions: int = MAX_PARTITIONS, *, health: ReaderHealth | None = None
    ) -> None:
        self._bus = bus
        self._clock = clock
        self._log_partitions = partitions
        self._health = health
        self._devices: dict[str, Registration] = {}
        self._vendor_devices: dict[str, dict[str, Partitions]] = {}
        self._token_device: dict[bytes, str] = {}
        self._subject_devices: dict[str, set[str]] = {}
        self._partitions: dict[Partitions, Partitions] = {}
        self._missed_at_s: dict[str, float] = {}
        self._cursor: StreamCursor | None = None
        """Position in the bucket's stream up to which changes are applied."""

    def registration(self, device_id: str) -> Registration | None:
        """Returns the registration of a device, or None for an unknown device. The newest changes in the bucket may be missing."""
        return self._devices.get(device_id)

    def required(self, device_id: str, kinds: Collection[log_pb2.DeviceKind.ValueType]) -> Registration:
        """Returns the registration of a device of these kinds. Raises InvalidField or NotFound.

        A device of another kind is the other agency's. It gets the answer of an unknown device, so that nothing tells which exist.
        """
        known = self._devices.get(fields.required_id("device_id", device_id))
        if known is None or known.kind not in kinds:
            raise NotFound("device_id: no such device of your agency is registered")
        return known

    def of_subject(self, subject_id: str, kinds: Collection[log_pb2.DeviceKind.ValueType]) -> list[str]:
        """Returns the ids of a wearer's or protected person's devices of these kinds that aren't revoked, sorted."""
        known = ((id_, self._devices[id_]) for id_ in self._subject_devices.get(subject_id, ()))
        return sorted(id_ for id_, device in known if device.kind in kinds and not device.revoked)

    def partitions(self, device_id: str) -> Partitions:
        """Returns the partitions that need a device's reports. An unknown device has none."""
        known = self._devices.get(device_id)
        return known.partitions if known else ()

    def allowed(self, sender: Sender) -> Mapping[str, Partitions]:
        """Returns the devices for which a sender may report, with their partitions."""
        if sender.vendor_id:
            return self._vendor_devices.get(sender.vendor_id, _NONE)
        known = self._devices.get(sender.device_id)
        return {sender.device_id: known.partitions} if known and not known.revoked and known.partitions else _NONE

    async def is_current(self, device_ids: Iterable[str]) -> bool:
        """Whether the whole bucket has been read, so that none of these devices that isn't known is registered. Raises Unavailable.

        One request answers for all devices, however many of their ids a sender has invented. None is made if all are known.
        """
        if all(id_ in self._devices for id_ in device_ids):
            return True
        state = (await self._bus.api(f"STREAM.INFO.{_STREAM}", {}))["state"]
        return bool((self._cursor.sequence if self._cursor else 0) >= state["last_seq"])

    async def resolve(self, sender: Sender, device_id: str, *, is_current: bool = False) -> Partitions | Reason:
        """Returns the partitions of a sender's device, or the reason why the sender may not report for it.

        A device that isn't known yet is looked up in the bucket, because it may just have been registered, unless the caller asked
        `is_current` before. Raises Unavailable if the bucket can't be read, or if the device has no partitions yet.
        """
        known = self._devices.get(device_id)
        if known is None and not fields.are_ids((device_id,)):
            return Reason.INVALID  # in a subject, such an id could match other devices, and it may have any length
        known = known or (None if is_current else await self._look_up(device_id))
        if known is None:
            return Reason.UNKNOWN_DEVICE
        if known.revoked:
            return Reason.REVOKED
        if device_id != sender.device_id and (not sender.vendor_id or known.vendor_id != sender.vendor_id):
            return Reason.NOT_YOURS
        if not known.partitions:
            raise Unavailable("device_id: the device is registered but has no route into the log yet: send again later")
        return known.partitions

    async def resolve_presence(
        self, sender: Sender, presence: UnitPresence, *, is_current: bool = False
    ) -> Partitions | PresenceRefused:
        """Returns the partitions of a device that a sender may report at a unit, or the field and the reason of the refusal.

        Devices are looked up as `resolve` does. The sender reports for the device, or for the unit. Both belong to one wearer or
        protected person. Raises Unavailable if the bucket can't be read, or if the device has no partitions yet.
        """
        found, device_id = [], presence.device_id
        for field, id_ in (("device_id", device_id), ("unit_id", presence.unit_id)):
            known = self._devices.get(id_) or (None if is_current else await self._look_up(id_))
            if known is None or (known.kind == log_pb2.PRESENCE_UNIT) != (field == "unit_id"):
                return PresenceRefused(field, Reason.UNKNOWN_DEVICE)
            if known.revoked:
                return PresenceRefused(field, Reason.REVOKED)
            found.append(known)
        device, unit = found
        if sender.device_id != device_id and (
            not sender.vendor_id or sender.vendor_id not in (device.vendor_id, unit.vendor_id)
        ):
            return PresenceRefused("device_id", Reason.NOT_YOURS)
        if device.subject_id != unit.subject_id:
            return PresenceRefused("unit_id", Reason.NOT_YOURS)
        if not device.partitions:
            raise Unavailable("device_id: the device is registered but has no route into the log yet: send again later")
        return device.partitions

    def units_heard(self, device_id: str, identifiers: Collection[str]) -> list[str]:
        """Returns the ids of the beacons of a device's holder that have one of these identifiers, sorted."""
        device = self._devices.get(device_id)
        if device is None or not identifiers:
            return []
        hashes = {hashlib.sha256(identifier.encode()).digest() for identifier in identifiers}
        return [
            id_
            for id_ in self.of_subject(device.subject_id, (log_pb2.PRESENCE_UNIT,))
            if self._devices[id_].identifier_sha256 in hashes
        ]

    def device_of_token(self, token: str) -> str | None:
        """Returns the device of a token, or None if the token is unknown or expired, or the device is revoked."""
        hashed = hashlib.sha256(token.encode(errors="replace")).digest()
        device_id = self._token_device.get(hashed)
        if device_id is None or self._devices[device_id].revoked:
            return None
        until_ms = self._devices[device_id].token_ends_ms[hashed]
        return device_id if until_ms is None or self._clock.now_ms() < until_ms else None

    async def load(self) -> None:
        """Reads the bucket's content, so that the first callers aren't refused as unknown."""
        async for messages in read_held(self._bus, _STREAM, await self._bus.bounds_of(_STREAM)):
            self._apply_all(messages)

    async def follow(self, on_change: Callable[[str, Partitions], None]) -> None:
        """Follows the bucket until cancelled, from where `load` ended. `on_change` gets each changed device with its partitions.

        The bucket keeps only the last message of each device. So after a reconnect the message at the cursor may have been replaced,
        which looks the same as a bucket that went back. Then the whole bucket is read once more.
        """
        while True:
            try:
                async for messages in pull.read(self._bus, _STREAM, self._cursor or 1, health=self._health):
                    for device_id, partitions in self._apply_all(messages):
                        on_change(device_id, partitions)
            except StreamWentBack as error:
                if error.found or error.last is None or error.last < error.sequence:
                    cursors.alarm(self._bus, error)
                else:
                    logger().info("routes_read_again", sequence=error.sequence)
                self._cursor = None

    def _apply_all(self, messages: Sequence[pull.Delivered]) -> list[tuple[str, Partitions]]:
        """Applies messages of the bucket. Returns the devices that they name, with their partitions."""
        changed = []
        for message in messages:
            if message.subject.startswith(_PREFIX):
                device_id = message.subject.removeprefix(_PREFIX)
                known = self._apply(device_id, message.data, message.sequence)
                if known is not None:
                    changed.append((device_id, known.partitions))
        self._cursor = messages[-1].cursor
        return changed

    async def _look_up(self, device_id: str) -> Registration | None:
        now_s = asyncio.get_running_loop().time()
        if now_s - self._missed_at_s.get(device_id, -MISS_FORGOTTEN_S) < MISS_FORGOTTEN_S:
            return None
        data = await self._bus.last_of(_STREAM, _PREFIX + device_id)
        if (known := self._devices.get(device_id)) is not None:
            return known  # `follow` has read the device meanwhile, perhaps a newer registration than this answer
        if data is None:
            if len(self._missed_at_s) > MAX_MISSES:
                self._missed_at_s.clear()
            self._missed_at_s[device_id] = now_s
            return None
        return self._apply(device_id, data)

    def _apply(self, device_id: str, data: bytes, sequence: int = 0) -> Registration | None:
        try:
            route = stored.route(data, self._log_partitions)
        except InvalidField as error:
            # Keep the known registration: a broken message must not cause refusals of the device's reports.
            dead_letters.pass_over(self._bus, "ingest-routes", _STREAM, sequence=sequence, error=error)
            logger().error("route_unreadable", device_id=device_id)
            return self._devices.get(device_id)
        listed = tuple(route.partitions)
        # Equal tuples share one object, so that comparing is cheap.
        registration = _registration(route, self._partitions.setdefault(listed, listed))
        previous = self._devices.get(device_id)
        if previous:
            self._subject_devices[previous.subject_id].discard(device_id)
            self._vendor_devices.get(previous.vendor_id, {}).pop(device_id, None)
            for hashed in previous.token_ends_ms:
                self._token_device.pop(hashed, None)
        self._devices[device_id] = registration
        self._subject_devices.setdefault(registration.subject_id, set()).add(device_id)
        if registration.vendor_id and registration.partitions and not registration.revoked:
            self._vendor_devices.setdefault(registration.vendor_id, {})[device_id] = registration.partitions
        for hashed in registration.token_ends_ms:
            self._token_device[hashed] = device_id
        self._missed_at_s.pop(device_id, None)
        return registration


def count_reporting(routes: Routes) -> int:
    """Number of registered devices that report. Beacons are heard by others, and a revoked device reports no more."""
    return sum(1 for known in routes._devices.values() if not known.revoked and not known.identifier_sha256)


def _registration(route: log_pb2.DeviceRoute, partitions: Partitions) -> Registration:
    return Registration(
        partitions=partitions,
        vendor_id=route.vendor_id,
        kind=route.kind,
        subject_id=route.subject_id,
        revoked=route.revoked,
        identifier_sha256=route.identifier_sha256,
        token_ends_ms={token.sha256: token.valid_until_ms or None for token in route.tokens} or _NO_TOKENS,
    )


async def read_held(bus: Bus, stream: str, bounds: Bounds) -> AsyncIterator[list[pull.Delivered]]:
    """Reads the messages within these bounds of a stream, in lists as they arrive. The last list may contain later messages."""
    if bounds.first > bounds.last:
        return
    async for messages in pull.read(bus, stream, bounds.first):
        yield messages
        if messages[-1].sequence >= bounds.last:
            return
