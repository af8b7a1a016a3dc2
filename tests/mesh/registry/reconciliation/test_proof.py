"""Reconciliation: the comparison names exactly the differing records, and a missing proof raises an alarm. On both engines."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from google.protobuf.message import Message
from structlog.testing import capture_logs

from services.common.storage import db
from services.registry import reconciliation as module
from services.registry.domain.reconciliation import ALARM_AFTER_MS, Agency, Finding, Listed
from services.registry.keys import Vault
from services.registry.reconciliation import ReconciliationService, parse_listed
from services.registry.records import translate
from services.registry.records.store import prepare
from services.registry.tables import MIGRATIONS
from tandem.registry.v1 import reconciliation_pb2
from tests.support.common.clock import Settable
from tests.support.registry import listing, records
from tests.support.registry.core import RegistryCore

COUNT = 300


@asynccontextmanager
async def opened(where: Path | str) -> AsyncIterator[tuple[RegistryCore, ReconciliationService]]:
    async with db.open_database(where, MIGRATIONS) as database:
        registry = RegistryCore(database, Vault([bytes(32)]), Settable())
        await registry.prepare("log 1")
        yield registry, registry.reconciliation


@pytest.fixture(autouse=True)
def now(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Settable, "ahead_ms", 0)


def listed_by_agency(*messages: Message) -> list[Listed]:
    """The list of an agency, parsed from its gRPC request."""
    request = reconciliation_pb2.ReconcileRequest(records=map(listing.listed, messages))
    return parse_listed(request, Agency.NPA)


async def put_all(registry: RegistryCore) -> list[Message]:
    """Put persons and their devices; returns the agency's records."""
    persons = [records.person(f"p-{n}") for n in range(COUNT // 2)]
    devices = [records.device(f"d-{n}", f"p-{n}") for n in range(COUNT // 2)]
    parsed = [*map(translate.parse_protected_person, persons), *map(translate.parse_device, devices)]
    await registry.bulk.put([prepare(record, registry.transactions.vault) for record in parsed])
    return [*persons, *devices]


async def test_the_comparison_names_exactly_the_differing_records(
    where: Path | str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LISTED_BATCH", 50)  # so that the list ends exactly with a page
    async with opened(where) as (registry, reconciliation):
        theirs = await put_all(registry)
        proven = await reconciliation.compare(Agency.NPA, listed_by_agency(*theirs))
        assert proven.differences == [] and proven.listed_root == proven.stored_root
        assert proven.listed_root == listing.root(map(listing.listed, theirs))
        status = {status.agency: status for status, _ in await reconciliation.statuses()}[Agency.NPA]
        assert (status.proven_at_ms, status.root) == (proven.compared_at_ms, proven.stored_root)

        for seed in range(20):
            chance = random.Random(seed)
            dropped, changed_index = chance.sample(range(COUNT // 2), 2)
            altered, added = records.person(f"p-{changed_index}"), records.person(f"p-new-{seed}")
            altered.name = "변학도"
            changed = [record for n, record in enumerate(theirs) if n != dropped]
            changed[changed_index - (changed_index > dropped)] = altered
            chance.shuffle(changed)
            compared = await reconciliation.compare(Agency.NPA, listed_by_agency(*changed, added))
            assert {(difference.finding, difference.record_id) for difference in compared.differences} == {
                (Finding.EXTRA, f"p-{dropped}"),
                (Finding.DIFFERENT, f"p-{changed_index}"),
                (Finding.MISSING, f"p-new-{seed}"),
            }
            assert compared.listed_root != compared.stored_root
        # Comparisons with differences don't change the last proof.
        status = {status.agency: status for status, _ in await reconciliation.statuses()}[Agency.NPA]
        assert (status.proven_at_ms, status.differences) == (proven.compared_at_ms, 3)


async def test_fifteen_minutes_without_proof_raise_one_alarm_until_the_next_proof(where: Path | str) -> None:
    async with opened(where) as (registry, reconciliation):
        theirs = await put_all(registry)
        with capture_logs() as lines:
            await reconciliation.alarm()
            assert lines == []
            Settable.ahead_ms = ALARM_AFTER_MS + 60_000
            await reconciliation.alarm()
            await reconciliation.alarm()
        assert [(line["event"], line["agency"], line["log_level"]) for line in lines] == [
            ("reconciliation_overdue", "moj", "error"),
            ("reconciliation_overdue", "npa", "error"),
        ]
        # A comparison with differences isn't a proof.
        await reconciliation.compare(Agency.NPA, listed_by_agency(*theirs[1:]))
        assert {status.agency: overdue for status, overdue in await reconciliation.statuses()} == {
            Agency.MOJ: True,
            Agency.NPA: True,
        }
        await reconciliation.compare(Agency.NPA, listed_by_agency(*theirs))
        assert {status.agency: overdue for status, overdue in await reconciliation.statuses()} == {
            Agency.MOJ: True,
            Agency.NPA: False,
        }
        Settable.ahead_ms *= 3
        with capture_logs() as lines:
            await reconciliation.alarm()
        assert [line["agency"] for line in lines] == ["npa"]
