"""Findings about the incidents of a destroyed case go with it. On both engines."""

from __future__ import annotations

from dataclasses import replace
from datetime import date
from pathlib import Path

from services.common.clock import MeshClock
from services.common.messaging import flow
from services.common.storage import db
from services.registry.domain.records import EndReason, OrderEnd, case_id_of
from services.registry.findings import ReviewFinding, ReviewFindings, find_finding
from services.registry.keys import Vault
from services.registry.records import translate
from services.registry.tables import MIGRATIONS
from services.registry.traces.domain.facts import AlertFact
from services.registry.traces.service import TraceBatch, add_batch
from tandem.registry.v1 import registry_pb2
from tests.support.registry import records
from tests.support.registry.core import RegistryCore

FACT = AlertFact(
    alert_id="alert-1",
    partition=0,
    sequence=1,
    ordinal=0,
    stored=1,
    alert_kind="RING_ENTERED",
    demand="RESPOND",
    case_id="",
    legs=("police",),
    ends=False,
    received_us=None,
    entry_us=1,
    decided_us=None,
    published_us=1,
)


async def test_the_findings_about_an_order_that_lapsed_are_destroyed_with_it(where: Path | str) -> None:
    clock = MeshClock()
    async with db.open_database(where, MIGRATIONS) as database:
        registry = RegistryCore(database, Vault([bytes(32)]), clock)
        await registry.prepare("log 1")
        await registry.police.put_protected_person(translate.parse_protected_person(records.person()))
        await registry.ministry.put_wearer(translate.parse_wearer(records.wearer()))
        facts = []
        for n in (1, 2):
            order = records.order(f"o-{n}")
            order.type = registry_pb2.ORDER_TYPE_STALKING_TAG
            await registry.police.put_order(translate.parse_order(order))
            facts.append((f"incident-{n}", replace(FACT, alert_id=f"alert-{n}", case_id=case_id_of(f"o-{n}", "w-1"))))
        batch = TraceBatch(flow.ALERTS.name, "log 1", 2, facts)
        await database.visit(lambda connection: add_batch(connection, batch))
        findings = ReviewFindings(registry.transactions, clock)
        for n in (1, 2):
            await findings.put(
                ReviewFinding(
                    f"f-{n}", f"incident-{n}", "too late", "desk", date(2026, 12, 1), "reviewer", clock.now_ms()
                )
            )
        await registry.police.end_order("o-1", OrderEnd(EndReason.ACQUITTAL, clock.now_ms() - 1000), 2)
        while await registry.retention.destroy_some():
            pass
        listed, _ = await findings.listed()
        assert [finding.finding_id for finding in listed] == ["f-2"]
        assert (
            await database.visit(lambda connection: find_finding(connection, registry.transactions.vault, "f-1"))
            is None
        )
