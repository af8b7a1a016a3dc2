"""Home units and beacons in the registry: their agency, routes and joint cases, removal and destruction. On both engines."""

from __future__ import annotations

from pathlib import Path

import pytest
import sqlalchemy as sa

from services.common.errors import Conflict, FailedPrecondition, InvalidField, NotFound, PermissionDenied
from services.registry.cases.service import RouteRepository
from services.registry.domain.disclosure import KEPT_AFTER_END_MS
from services.registry.domain.lifecycle import PutOutcome
from services.registry.domain.reconciliation import Agency
from services.registry.domain.records import WearerEnd, WearerEndReason
from services.registry.records import translate
from services.registry.records.kinds import WEARER_UNITS, list_entry
from services.registry.records.translate import parse_unit
from services.registry.tables import wearer_units
from tandem.common.v1 import log_pb2
from tests.support.registry import records
from tests.support.registry.core import RegistryCore
from tests.support.registry.devices import opened, put_all, route

REMOVED_MS = 1_700_000_000_000


async def put_order(registry: RegistryCore) -> None:
    await registry.police.put_order(translate.parse_order(records.order()))


async def snapshots(registry: RegistryCore) -> list[log_pb2.CaseSnapshot]:
    """All snapshots of joint cases in the outbox, oldest first."""
    async with registry.transactions.open() as view:
        sent = await view.outbox.unsent(1000)
    return [log_pb2.LogEntry.FromString(row.payload).case for row in sent if row.subject.endswith(".case")]


async def test_a_unit_gets_a_route_and_joins_the_cases_of_its_holder(where: Path | str) -> None:
    async with opened(where) as (registry, _):
        await put_all(registry)
        await put_order(registry)
        assert await registry.units.put(Agency.MOJ, parse_unit(records.unit())) is PutOutcome.STORED
        hers = parse_unit(records.unit("beacon-1", person_id="p-1"))
        assert await registry.units.put(Agency.NPA, hers) is PutOutcome.STORED
        sent = await route(registry, "unit-1")
        assert (sent.kind, sent.subject_id, sent.vendor_id, sent.revoked) == (
            log_pb2.PRESENCE_UNIT,
            "w-1",
            "test",
            False,
        )
        assert len((await route(registry, "beacon-1")).identifier_sha256) == 32
        newest = (await snapshots(registry))[-1]
        assert [unit.unit_id for unit in newest.presence_units] == ["unit-1"]
        assert [unit.unit_id for unit in newest.persons[0].presence_units] == ["beacon-1"]

        assert await registry.units.put(Agency.MOJ, parse_unit(records.unit())) is PutOutcome.UNCHANGED
        moved = records.unit()
        moved.place.lat_deg = 37.53
        with pytest.raises(Conflict):
            await registry.units.put(Agency.MOJ, parse_unit(moved))
        moved.source_version = 2
        assert await registry.units.put(Agency.MOJ, parse_unit(moved)) is PutOutcome.STORED
        assert (await snapshots(registry))[-1].presence_units[0].place.lat_deg == 37.53
        assert await registry.units.put(Agency.MOJ, parse_unit(records.unit())) is PutOutcome.SUPERSEDED


async def test_a_unit_is_put_by_the_agency_of_its_holder_and_belongs_to_somebody(where: Path | str) -> None:
    async with opened(where) as (registry, _):
        await put_all(registry)
        with pytest.raises(PermissionDenied):
            await registry.units.put(Agency.NPA, parse_unit(records.unit()))
        with pytest.raises(PermissionDenied):
            await registry.units.put(Agency.MOJ, parse_unit(records.unit(person_id="p-1")))
        with pytest.raises(NotFound):
            await registry.units.put(Agency.MOJ, parse_unit(records.unit(wearer_id="w-none")))
        for in_use in ("tag-1", "app-1"):
            with pytest.raises(FailedPrecondition):
                await registry.units.put(Agency.MOJ, parse_unit(records.unit(in_use)))
        await registry.units.put(Agency.MOJ, parse_unit(records.unit()))
        with pytest.raises(FailedPrecondition):
            await registry.units.put(Agency.NPA, parse_unit(records.unit("unit-1", person_id="p-1")))
        with pytest.raises(FailedPrecondition):
            await registry.ministry.put_tag(translate.parse_tag(records.tag("unit-1")))
        with pytest.raises(FailedPrecondition):
            await registry.police.put_device(translate.parse_device(records.device("unit-1")))


async def test_a_unit_that_changes_its_holder_leaves_the_cases_of_the_first(where: Path | str) -> None:
    async with opened(where) as (registry, _):
        await put_all(registry)
        await put_order(registry)
        other = records.wearer("w-2", "810202-1234567")
        await registry.ministry.put_wearer(translate.parse_wearer(other))
        await registry.units.put(Agency.MOJ, parse_unit(records.unit()))
        await registry.units.put(Agency.MOJ, parse_unit(records.unit(wearer_id="w-2", version=2)))
        assert list((await snapshots(registry))[-1].presence_units) == []
        assert (await route(registry, "unit-1")).subject_id == "w-2"


async def test_a_removed_unit_is_revoked_and_destroyed_after_five_years(where: Path | str) -> None:
    async with opened(where) as (registry, _):
        await put_all(registry)
        await put_order(registry)
        await registry.units.put(Agency.MOJ, parse_unit(records.unit()))
        end = WearerEnd(WearerEndReason.COMPLETED, REMOVED_MS)
        await registry.ministry.end_tag("tag-1", REMOVED_MS, 2)
        with pytest.raises(FailedPrecondition, match="home unit"):
            await registry.ministry.end_wearer("w-1", end, 2)
        with pytest.raises(NotFound):
            await registry.units.end(Agency.MOJ, "unit-none", REMOVED_MS, source_version=2)
        with pytest.raises(NotFound):
            await registry.units.end(Agency.NPA, "unit-1", REMOVED_MS, source_version=2)
        with pytest.raises(InvalidField):
            await registry.units.end(Agency.MOJ, "unit-1", 1, source_version=2)
        assert await registry.units.end(Agency.MOJ, "unit-1", REMOVED_MS, source_version=2) is PutOutcome.STORED
        assert (await route(registry, "unit-1")).revoked
        assert (await snapshots(registry))[-1].presence_units[0].installed_until_ms == REMOVED_MS
        await registry.ministry.end_wearer("w-1", end, 2)
    async with opened(where, 2 * KEPT_AFTER_END_MS) as (registry, retention):
        while await retention.destroy_some():
            pass
        found = await registry.transactions.change(lambda working: working.records.find(WEARER_UNITS, "unit-1"))
        assert found is not None and found.open() is None
        assert (await route(registry, "unit-1")).revoked
        with pytest.raises(FailedPrecondition, match="destroyed"):
            await registry.units.put(Agency.MOJ, parse_unit(records.unit(version=3)))


async def test_a_unit_is_stored_encrypted_and_is_in_the_list_of_its_agency(where: Path | str) -> None:
    async with opened(where) as (registry, _):
        await put_all(registry)
        unit = parse_unit(records.unit("beacon-1", person_id="p-1"))
        await registry.units.put(Agency.NPA, unit)
        await registry.units.put(Agency.MOJ, parse_unit(records.unit()))
        async with registry.transactions.open() as view:
            (row,) = (await view.connection.execute(sa.select(wearer_units))).all()
        assert b"37.5" not in row.sealed
        compared = await registry.reconciliation.compare(
            Agency.NPA,
            [
                list_entry(unit),
                list_entry(translate.parse_protected_person(records.person())),
                list_entry(translate.parse_device(records.device())),
            ],
        )
        assert list(compared.differences) == []


async def test_routes_of_units_are_renewed_each_day(where: Path | str) -> None:
    async with opened(where) as (registry, _):
        await put_all(registry)
        await registry.units.put(Agency.MOJ, parse_unit(records.unit()))
        async with registry.transactions.changing() as work:
            await RouteRepository(work.connection).mark_unsent()
        while await registry.renewal.renew_some():
            pass
        assert not (await route(registry, "unit-1")).revoked
