"""Tokens of devices: issued once, rotated with an overlap, revoked, and deleted with the device. On both engines."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import sqlalchemy as sa
from structlog.testing import capture_logs

from services.common.clock import MeshClock, wall_us
from services.common.errors import FailedPrecondition, NotFound, PermissionDenied
from services.common.storage import db
from services.registry.domain.disclosure import DAY_MS, KEPT_AFTER_END_MS
from services.registry.domain.reconciliation import Agency
from services.registry.domain.records import WearerEnd, WearerEndReason
from services.registry.keys import Vault
from services.registry.records import translate
from services.registry.tables import MIGRATIONS, device_tokens
from tandem.common.v1 import log_pb2
from tests.support.registry import records
from tests.support.registry.core import RegistryCore

MOJ, NPA = Agency.MOJ, Agency.NPA
WEEK_S = 7 * 86_400


class Desk:
    """A registry with its token commands, and reads of their effects."""

    def __init__(self, registry: RegistryCore, clock: MeshClock) -> None:
        self.registry = registry
        self.key_retention = registry.retention
        self.issue = registry.device_tokens.issue
        self.revoke = registry.device_tokens.revoke

    async def put_all(self, version: int = 1) -> None:
        """Put a wearer with a tag, and a person with a protective device."""
        await self.registry.ministry.put_wearer(translate.parse_wearer(records.wearer(version=version)))
        await self.registry.ministry.put_tag(translate.parse_tag(records.tag(version=version)))
        await self.registry.police.put_protected_person(
            translate.parse_protected_person(records.person(version=version))
        )
        await self.registry.police.put_device(translate.parse_device(records.device(version=version)))

    async def route(self, device_id: str) -> log_pb2.DeviceRoute:
        """The last route of a device in the outbox."""
        async with self.registry.transactions.open() as view:
            sent = [row for row in await view.outbox.unsent(1000) if row.subject == f"$KV.devices.{device_id}"]
        return log_pb2.DeviceRoute.FromString(sent[-1].payload)

    async def valid(self, device_id: str) -> dict[bytes, int]:
        """End of each token in the route, by its hash; 0 means no end."""
        return {token.sha256: token.valid_until_ms for token in (await self.route(device_id)).tokens}

    async def stored(self) -> list[tuple[str, bytes]]:
        """Device id and hash of each stored token."""
        kept = device_tokens
        async with self.registry.database.transaction() as connection:
            rows = await connection.execute(sa.select(kept.c.device_id, kept.c.sha256).order_by(kept.c.id))
            return [(row.device_id, row.sha256) for row in rows]


@asynccontextmanager
async def opened(where: Path | str, ahead_ms: int = 0) -> AsyncIterator[Desk]:
    """A registry whose mesh clock is ahead of the wall clock by `ahead_ms`."""
    clock = MeshClock(2, wall_us() // 1000 - ahead_ms) if ahead_ms else MeshClock()
    async with db.open_database(where, MIGRATIONS) as database:
        registry = RegistryCore(database, Vault([bytes(32)]), clock)
        await registry.prepare("log 1")
        yield Desk(registry, clock)


def hashed(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()


async def test_only_the_hash_of_a_token_is_stored_and_sent_in_the_route(where: Path | str) -> None:
    async with opened(where) as desk:
        await desk.put_all()
        with capture_logs() as logs:
            tokens = {"tag-1": await desk.issue(MOJ, "tag-1", 0), "app-1": await desk.issue(NPA, "app-1", 0)}
        assert len(set(tokens.values())) == 2 and {len(token) for token in tokens.values()} == {43}
        assert await desk.stored() == [(device_id, hashed(token)) for device_id, token in tokens.items()]
        for device_id, token in tokens.items():
            assert await desk.valid(device_id) == {hashed(token): 0}
            assert {"event": "device_token_issued", "device_id": device_id, "log_level": "info"} in logs
        # A newer version of the record keeps the tokens.
        await desk.put_all(version=2)
        assert await desk.valid("app-1") == {hashed(tokens["app-1"]): 0}


async def test_after_a_rotation_the_older_token_stays_valid_for_the_overlap(where: Path | str) -> None:
    async with opened(where) as desk:
        await desk.put_all()
        old = await desk.issue(NPA, "app-1", 0)
        from_ms = MeshClock().now_ms()
        new = await desk.issue(NPA, "app-1", WEEK_S)
        until_ms = (await desk.valid("app-1"))[hashed(old)]
        assert from_ms <= until_ms - WEEK_S * 1000 <= MeshClock().now_ms()
        assert await desk.valid("app-1") == {hashed(old): until_ms, hashed(new): 0}
    # The daily renewal keeps the older token until its end and then deletes it, without any change of the record.
    async with opened(where, WEEK_S * 1000 - DAY_MS) as desk:
        while await desk.registry.renewal.renew_some():
            pass
        assert await desk.valid("app-1") == {hashed(old): until_ms, hashed(new): 0}
    async with opened(where, WEEK_S * 1000 + DAY_MS) as desk:
        while await desk.registry.renewal.renew_some():
            pass
        assert await desk.valid("app-1") == {hashed(new): 0}
        assert await desk.stored() == [("app-1", hashed(new))]


async def test_without_an_overlap_the_older_token_ends_at_once(where: Path | str) -> None:
    async with opened(where) as desk:
        await desk.put_all()
        await desk.issue(NPA, "app-1", 0)
        new = await desk.issue(NPA, "app-1", 0)
        assert await desk.valid("app-1") == {hashed(new): 0}


async def test_a_route_holds_the_newest_four_tokens(where: Path | str) -> None:
    async with opened(where) as desk:
        await desk.put_all()
        tokens = [await desk.issue(MOJ, "tag-1", 60) for _ in range(6)]
        assert set(await desk.valid("tag-1")) == {hashed(token) for token in tokens[2:]}


async def test_all_tokens_of_one_device_are_revoked_at_once(where: Path | str) -> None:
    async with opened(where) as desk:
        await desk.put_all()
        kept = await desk.issue(MOJ, "tag-1", 0)
        for _ in range(2):
            await desk.issue(NPA, "app-1", 60)
        with capture_logs() as logs:
            assert await desk.revoke(NPA, "app-1") == 2
        assert {"event": "device_tokens_revoked", "device_id": "app-1", "log_level": "info"} in logs
        assert await desk.valid("app-1") == {} and not (await desk.route("app-1")).revoked
        assert await desk.revoke(NPA, "app-1") == 0
        assert await desk.valid("tag-1") == {hashed(kept): 0}
        assert await desk.stored() == [("tag-1", hashed(kept))]


async def test_each_agency_manages_only_the_tokens_of_its_own_devices(where: Path | str) -> None:
    async with opened(where) as desk:
        await desk.put_all()
        for agency, device_id, refusal in (
            (MOJ, "app-1", PermissionDenied),
            (NPA, "tag-1", PermissionDenied),
            (MOJ, "unknown", NotFound),
            (NPA, "unknown", NotFound),
        ):
            with pytest.raises(refusal):
                await desk.issue(agency, device_id, 0)
            with pytest.raises(refusal):
                await desk.revoke(agency, device_id)
        assert await desk.stored() == []


async def test_tokens_end_with_the_record_and_stay_revoked(where: Path | str) -> None:
    async with opened(where) as desk:
        await desk.put_all()
        await desk.issue(MOJ, "tag-1", 0)
        await desk.issue(NPA, "app-1", 0)
        with capture_logs() as logs:
            await desk.registry.ministry.end_tag("tag-1", 5, 2)
            await desk.registry.police.end_device("app-1", 5, 2)
        revoked = [log["device_id"] for log in logs if log["event"] == "device_tokens_revoked"]
        assert revoked == ["tag-1", "app-1"] and await desk.stored() == []
        for agency, device_id in ((MOJ, "tag-1"), (NPA, "app-1")):
            assert await desk.valid(device_id) == {} and (await desk.route(device_id)).revoked
            with pytest.raises(FailedPrecondition):
                await desk.issue(agency, device_id, 0)
            assert await desk.revoke(agency, device_id) == 0
        await desk.put_all(version=3)
        assert await desk.valid("tag-1") == await desk.valid("app-1") == {}
        new = await desk.issue(MOJ, "tag-1", 0)
        assert await desk.valid("tag-1") == {hashed(new): 0}


async def test_a_tag_on_a_wearer_who_has_ended_gets_no_token(where: Path | str) -> None:
    async with opened(where) as desk:
        await desk.put_all()
        await desk.registry.ministry.put_wearer(translate.parse_wearer(records.wearer("w-2", "900101-1234567")))
        await desk.registry.ministry.end_wearer("w-2", WearerEnd(WearerEndReason.COMPLETED, 5), 2)
        await desk.issue(MOJ, "tag-1", 0)
        await desk.registry.ministry.put_tag(translate.parse_tag(records.tag(wearer_id="w-2", version=2)))
        assert await desk.stored() == []
        with pytest.raises(FailedPrecondition):
            await desk.issue(MOJ, "tag-1", 0)


async def test_destruction_of_a_person_deletes_the_tokens_of_their_devices(where: Path | str) -> None:
    async with opened(where) as desk:
        await desk.put_all()
        await desk.registry.police.put_order(translate.parse_order(records.order()))
        await desk.issue(NPA, "app-1", 0)
        tag_token = await desk.issue(MOJ, "tag-1", 0)
    due_ms = records.order().valid_until.ToMilliseconds() + KEPT_AFTER_END_MS
    # The person is destroyed with the last order, although nobody has ended the device.
    async with opened(where, due_ms + DAY_MS - MeshClock().now_ms()) as desk:
        while await desk.key_retention.destroy_some():
            pass
        assert await desk.stored() == [("tag-1", hashed(tag_token))]
        assert (await desk.route("app-1")).revoked
