"""Routes of devices: the vendor that may report, revocation, and changes of the owner. On both engines."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.common.clock import MeshClock
from services.common.errors import Conflict
from services.registry.cases.service import RouteRepository
from services.registry.domain.disclosure import DAY_MS, KEPT_AFTER_END_MS
from services.registry.domain.lifecycle import PutOutcome
from services.registry.domain.records import WearerEnd, WearerEndReason
from services.registry.records import translate
from tandem.common.v1 import log_pb2
from tests.support.registry import records
from tests.support.registry.core import RegistryCore
from tests.support.registry.devices import opened, put_all, route

ANOTHER_NUMBER = "810202-1234567"


async def revoked(registry: RegistryCore) -> tuple[bool, bool]:
    """Whether the routes of the tag and of the protective device are revoked."""
    return (await route(registry, "tag-1")).revoked, (await route(registry, "app-1")).revoked


async def test_a_route_names_the_vendor_and_follows_its_changes(where: Path | str) -> None:
    async with opened(where) as (registry, _):
        await put_all(registry, vendor_id="acme")
        tag, device = await route(registry, "tag-1"), await route(registry, "app-1")
        assert (tag.vendor_id, tag.kind, tag.subject_id, tag.revoked) == ("acme", log_pb2.TAG, "w-1", False)
        assert (device.vendor_id, device.kind, device.subject_id) == ("acme", log_pb2.PROTECTIVE_DEVICE, "p-1")

        # The vendor is part of the record's content.
        same = translate.parse_tag(records.tag(vendor_id="acme"))
        assert await registry.ministry.put_tag(same) is PutOutcome.UNCHANGED
        with pytest.raises(Conflict):
            await registry.ministry.put_tag(translate.parse_tag(records.tag(vendor_id="")))
        await put_all(registry, version=2, vendor_id="")
        assert (await route(registry, "tag-1")).vendor_id == (await route(registry, "app-1")).vendor_id == ""


async def test_a_route_is_revoked_by_the_end_of_its_record_and_restored_by_a_newer_one(where: Path | str) -> None:
    async with opened(where) as (registry, _):
        await put_all(registry)
        await registry.ministry.end_tag("tag-1", 5, 2)
        await registry.police.end_device("app-1", 5, 2)
        assert await revoked(registry) == (True, True)
        assert (await route(registry, "tag-1")).vendor_id == records.VENDOR_ID
        await put_all(registry, version=3)
        assert await revoked(registry) == (False, False)


async def test_a_route_is_revoked_while_its_wearer_or_person_has_ended(where: Path | str) -> None:
    async with opened(where) as (registry, _):
        await put_all(registry)
        await registry.ministry.end_tag("tag-1", 5, 2)
        await registry.police.end_device("app-1", 5, 2)
        await registry.ministry.end_wearer("w-1", WearerEnd(WearerEndReason.COMPLETED, 5), 2)
        await registry.police.end_protected_person("p-1", 5, 2)

        # A newer record of a device doesn't restore its route while the record of its owner has ended.
        await registry.ministry.put_tag(translate.parse_tag(records.tag(version=3)))
        await registry.police.put_device(translate.parse_device(records.device(version=3)))
        assert await revoked(registry) == (True, True)
        await registry.ministry.put_wearer(translate.parse_wearer(records.wearer(version=3)))
        await registry.police.put_protected_person(translate.parse_protected_person(records.person(version=3)))
        assert await revoked(registry) == (False, False)


async def test_destruction_of_a_person_revokes_the_routes_of_their_devices(where: Path | str) -> None:
    async with opened(where) as (registry, _):
        await put_all(registry)
        await registry.police.put_order(translate.parse_order(records.order()))
        assert await revoked(registry) == (False, False)
        valid_until_ms = records.order().valid_until.ToMilliseconds()
    # The person is destroyed with the last order, although nobody has ended the device.
    ahead_ms = valid_until_ms + KEPT_AFTER_END_MS + DAY_MS - MeshClock().now_ms()
    async with opened(where, ahead_ms) as (registry, key_retention):
        while await key_retention.destroy_some():
            pass
        assert await revoked(registry) == (False, True)
        # The device's record went with the person. Its last route is renewed each day, and doesn't come to life by that.
        async with registry.transactions.open() as work:
            await RouteRepository(work.connection).mark_unsent()
        while await registry.renewal.renew_some():
            pass
        assert await revoked(registry) == (False, True)
        await put_all(registry, version=2)
        assert await revoked(registry) == (False, False)


@pytest.mark.parametrize("changing", ["tag-1", "app-1"])
async def test_a_device_leaves_its_old_case_before_it_joins_the_new_one(where: Path | str, changing: str) -> None:
    async with opened(where) as (registry, _):
        await put_all(registry)
        await registry.ministry.put_wearer(translate.parse_wearer(records.wearer("w-2", ANOTHER_NUMBER)))
        await registry.police.put_protected_person(translate.parse_protected_person(records.person("p-2")))
        await registry.police.put_order(translate.parse_order(records.order()))
        await registry.police.put_order(translate.parse_order(records.order("o-2", ("p-2",), ANOTHER_NUMBER)))
        if changing == "tag-1":
            await registry.ministry.put_tag(translate.parse_tag(records.tag(wearer_id="w-2", version=2)))
        else:
            await registry.police.put_device(translate.parse_device(records.device(person_id="p-2", version=2)))
        in_case: dict[str, bool] = {}
        async with registry.transactions.open() as view:
            for row in await view.outbox.unsent(1000):
                if row.subject == "log.0.case":
                    case = log_pb2.LogEntry.FromString(row.payload).case
                    devices = {*case.tag_device_ids, *(id_ for person in case.persons for id_ in person.device_ids)}
                    in_case[case.order_id] = changing in devices
                    assert sum(in_case.values()) <= 1
        assert in_case == {"o-1": False, "o-2": True}
