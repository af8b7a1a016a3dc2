"""Test support: a registry without services, records of a wearer and a person with a device each, and the routes of devices."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from services.common.clock import MeshClock, wall_us
from services.common.storage import db
from services.registry.keys import Vault
from services.registry.records import translate
from services.registry.retention import KeyRetention
from services.registry.tables import MIGRATIONS
from tandem.common.v1 import log_pb2
from tests.support.registry import records
from tests.support.registry.core import RegistryCore


@asynccontextmanager
async def opened(where: Path | str, ahead_ms: int = 0) -> AsyncIterator[tuple[RegistryCore, KeyRetention]]:
    """A registry whose mesh clock is ahead of the wall clock by `ahead_ms`."""
    clock = MeshClock(2, wall_us() // 1000 - ahead_ms) if ahead_ms else MeshClock()
    async with db.open_database(where, MIGRATIONS) as database:
        registry = RegistryCore(database, Vault([bytes(32)]), clock)
        await registry.prepare("log 1")
        yield registry, registry.retention


async def put_all(registry: RegistryCore, version: int = 1, **changes: Any) -> None:
    """Puts a wearer with a tag and a protected person with a device."""
    await registry.ministry.put_wearer(translate.parse_wearer(records.wearer(version=version)))
    await registry.ministry.put_tag(translate.parse_tag(records.tag(version=version, **changes)))
    await registry.police.put_protected_person(translate.parse_protected_person(records.person(version=version)))
    await registry.police.put_device(translate.parse_device(records.device(version=version, **changes)))


async def route(registry: RegistryCore, device_id: str) -> log_pb2.DeviceRoute:
    """The last route of a device in the outbox."""
    async with registry.transactions.open() as view:
        sent = [row for row in await view.outbox.unsent(1000) if row.subject == f"$KV.devices.{device_id}"]
    routes = await registry.transactions.change(lambda working: working.routes.last_sent([device_id]))
    assert routes[device_id] == (int(sent[-1].msg_id.split(":")[-1]), sent[-1].payload)
    return log_pb2.DeviceRoute.FromString(sent[-1].payload)
