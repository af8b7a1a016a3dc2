"""Who may report for a device and which partitions need it: the registry's KV bucket, followed as it changes."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from services.common import fields
from services.common.clock import MeshClock
from services.common.messaging import cursors, dead_letters, flow, pull, stored
from services.common.messaging.bus import Bus
from services.common.messaging.cursors import StreamCursor, StreamWentBack
from services.common.messaging.streams import PARTITIONS_MAX
from services.common.observability.readiness import ReaderHealth
from services.common.observability.telemetry import logger
from services.common.rpc.errors import InvalidField, Unavailable
from services.ingest.domain import Reason, Sender
from tandem.common.v1 import log_pb2

_STREAM = f"KV_{flow.DEVICES_BUCKET}"
_PREFIX = f"$KV.{flow.DEVICES_BUCKET}."
MISS_FORGOTTEN_S = 1.0
MAX_MISSES = 10_000

Partitions: TypeAlias = tuple[int, ...]
_NONE: Mapping[str, Partitions] = {}


@dataclass(frozen=True, slots=True)
class Registration:
    """What the registry says of a device."""

    partitions: Partitions
    vendor_id: str
    """Who may report for it by gRPC; empty where nobody may."""
    kind: log_pb2.DeviceKind.ValueType
    subject_id: str
    """Whose it is: a wearer's or a protected person's id."""
    revoked: bool
    tokens: tuple[tuple[bytes, int], ...]
    """SHA-256 of each token and until when it is good, milliseconds since 1970 UTC; 0 for as long as it stands here."""


class Routes:
    """Registrations by device. A device that isn't here is looked up once a second at most, then it is unknown."""

    def __init__(
        self, bus: Bus, clock: MeshClock, partitions: int = PARTITIONS_MAX, health: ReaderHealth | None = None
    ) -> None:
        self._bus, self._clock, self._of_log, self._health = bus, clock, partitions, health
        self._devices: dict[str, Registration] = {}
        self._of_vendor: dict[str, dict[str, Partitions]] = {}
        self._of_token: dict[bytes, str] = {}
        self._of_subject: dict[str, set[str]] = {}
        self._partitions: dict[Partitions, Partitions] = {}
        self._missed_at_s: dict[str, float] = {}
        self._behind: StreamCursor | None = None
        """The message up to which the bucket's changes are known."""

    def registration(self, device_id: str) -> Registration | None:
        """What is known of a device, as far as the bucket's changes have arrived."""
        return self._devices.get(device_id)

    def of_subject(self, subject_id: str, kinds: Collection[log_pb2.DeviceKind.ValueType]) -> list[str]:
        """Devices of a wearer or a protected person, of these kinds, that aren't revoked; by id."""
        known = ((id_, self._devices[id_]) for id_ in self._of_subject.get(subject_id, ()))
        return sorted(id_ for id_, one in known if one.kind in kinds and not one.revoked)

    def partitions(self, device_id: str) -> Partitions:
        """Partitions that need a device's reports; none where it is unknown."""
        known = self._devices.get(device_id)
        return known.partitions if known else ()

    def allowed(self, sender: Sender) -> Mapping[str, Partitions]:
        """Partitions by device, of the devices for which this sender may report."""
        if sender.vendor_id:
            return self._of_vendor.get(sender.vendor_id, _NONE)
        known = self._devices.get(sender.device_id)
        return {sender.device_id: known.partitions} if known and not known.revoked and known.partitions else _NONE

    async def allow(self, sender: Sender, device_id: str) -> Partitions | Reason:
        """The same for one device that may have been registered just now, or why not. Raises Unavailable."""
        known = self._devices.get(device_id)
        if known is None and not fields.are_ids((device_id,)):
            return Reason.INVALID  # in a subject it may stand for other devices, and it may be of any length
        known = known or await self._look_up(device_id)
        if known is None:
            return Reason.UNKNOWN_DEVICE
        if known.revoked:
            return Reason.REVOKED
        if device_id != sender.device_id and (not sender.vendor_id or known.vendor_id != sender.vendor_id):
            return Reason.NOT_YOURS
        if not known.partitions:
            raise Unavailable("the device has no route into the log yet")
        return known.partitions

    def device_of_token(self, token: str) -> str | None:
        """The device whose token this is; None where it is unknown, over or revoked."""
        hashed = hashlib.sha256(token.encode(errors="replace")).digest()
        device_id = self._of_token.get(hashed)
        if device_id is None or self._devices[device_id].revoked:
            return None
        until_ms = dict(self._devices[device_id].tokens)[hashed]
        return device_id if not until_ms or self._clock.now_ms() < until_ms else None

    async def load(self) -> None:
        """Reads what the bucket holds now, so that the first callers aren't taken for unknown."""
        bounds = await self._bus.bounds_of(_STREAM)
        if bounds.first > bounds.last:
            return
        async for messages in pull.read(self._bus, _STREAM, 1):
            for message in messages:
                if message.subject.startswith(_PREFIX):
                    self._learn(message.subject.removeprefix(_PREFIX), message.data, message.sequence)
            self._behind = messages[-1].cursor
            if self._behind.sequence >= bounds.last:
                return

    async def follow(self, on_change: Callable[[str, Partitions], None]) -> None:
        """Follows the bucket for ever, from where `load` came to; `on_change` gets each device with its partitions.

        The bucket keeps the last message of each device alone. So when the connection comes back, the message at the position may have
        been replaced meanwhile, which can't be told from a bucket that went back: all of it is read once more.
        """
        while True:
            try:
                async for messages in pull.read(self._bus, _STREAM, self._behind or 1, health=self._health):
                    self._follow(messages, on_change)
            except StreamWentBack as error:
                if error.found or error.last is None or error.last < error.sequence:
                    cursors.alarm(error)
                else:
                    logger().info("routes_read_again", sequence=error.sequence)
                self._behind = None

    def _follow(self, messages: Sequence[pull.Delivered], on_change: Callable[[str, Partitions], None]) -> None:
        for message in messages:
            if not message.subject.startswith(_PREFIX):
                continue
            device_id = message.subject.removeprefix(_PREFIX)
            known = self._learn(device_id, message.data, message.sequence)
            if known is not None:
                on_change(device_id, known.partitions)
        self._behind = messages[-1].cursor

    async def _look_up(self, device_id: str) -> Registration | None:
        now_s = asyncio.get_running_loop().time()
        if now_s - self._missed_at_s.get(device_id, -MISS_FORGOTTEN_S) < MISS_FORGOTTEN_S:
            return None
        data = await self._bus.last_of(_STREAM, _PREFIX + device_id)
        if data is None:
            if len(self._missed_at_s) > MAX_MISSES:
                self._missed_at_s.clear()
            self._missed_at_s[device_id] = now_s
            return None
        return self._learn(device_id, data)

    def _learn(self, device_id: str, data: bytes, sequence: int = 0) -> Registration | None:
        try:
            route = stored.route(data, self._of_log)
        except InvalidField as error:
            # What was known of the device stands: its reports must not be refused because of a broken message.
            dead_letters.pass_over("ingest-routes", _STREAM, sequence, error)
            logger().error("route_unreadable", device_id=device_id)
            return self._devices.get(device_id)
        listed = tuple(route.partitions)
        registration = Registration(
            self._partitions.setdefault(listed, listed),  # equal ones are one object, so that comparing them is cheap
            route.vendor_id,
            route.kind,
            route.subject_id,
            route.revoked,
            tuple((token.sha256, token.valid_until_ms) for token in route.tokens),
        )
        before = self._devices.get(device_id)
        if before:
            self._of_subject[before.subject_id].discard(device_id)
            self._of_vendor.get(before.vendor_id, {}).pop(device_id, None)
            for hashed, _ in before.tokens:
                self._of_token.pop(hashed, None)
        self._devices[device_id] = registration
        self._of_subject.setdefault(registration.subject_id, set()).add(device_id)
        if registration.vendor_id and registration.partitions and not registration.revoked:
            self._of_vendor.setdefault(registration.vendor_id, {})[device_id] = registration.partitions
        for hashed, _ in registration.tokens:
            self._of_token[hashed] = device_id
        self._missed_at_s.pop(device_id, None)
        return registration
