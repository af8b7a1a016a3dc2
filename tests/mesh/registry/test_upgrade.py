"""Upgrade of a database from the first migration to the latest, with its data intact. On both engines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection

from services.common.clock import MeshClock
from services.common.storage import db
from services.registry.domain import Tag
from services.registry.keys.tables import data_keys
from services.registry.keys.vault import Vault
from services.registry.matching.similarity import Side
from services.registry.records import translate
from services.registry.records.kinds import ORDERS, TAGS, WEARERS
from services.registry.records.prepared import prepare
from services.registry.records.versions import PutOutcome
from services.registry.reviews.domain import ReviewState
from services.registry.tables import MIGRATIONS
from services.registry.working_set.working_set import WorkingSet
from tandem.common.v1 import log_pb2
from tests.support.registry import records
from tests.support.registry.core import RegistryCore, read_record

VAULT = Vault([bytes(32)])
NUMBER = records.NUMBER.replace("-", "")
WHO = {"national_id": NUMBER, "name": records.NAME, "birth_date": records.BIRTH_DATE}
WEARER = {"wearer_id": "w-1", **WHO, "source_version": 1}
PERSON = {"person_id": "p-1", "name": "성춘향", "source_version": 1}
PLACE = {"place_id": "home", "shape": {"lat_deg": 37.5, "lon_deg": 127.0, "radius_m": 50.0}}
ORDER = {
    "order_id": "o-1",
    "respondent": WHO,
    "protected_person_ids": ["p-1"],
    "places": [PLACE],
    "rings": [],
    "valid_from_ms": 1_600_000_000_000,
    "valid_until_ms": 4_000_000_000_000,
    "source_version": 1,
}
CASE_ID = "case-of-before"
ENTRY = log_pb2.LogEntry(case=log_pb2.CaseSnapshot(case_id=CASE_ID, version=7)).SerializeToString()


def content(record: dict[str, Any]) -> bytes:
    return json.dumps(record, ensure_ascii=False, separators=(",", ":")).encode()


def fill(connection: Connection) -> None:
    """Insert rows as the first version of the registry wrote them, with the columns of its tables."""

    def insert(table: str, **values: object) -> None:
        columns: list[sa.ColumnClause[object]] = [sa.column(name) for name in values]
        connection.execute(sa.insert(sa.table(table, *columns)).values(values))

    def sealed(table: str, record_id: str, record: dict[str, Any]) -> dict[str, object]:
        return {
            "source_version": 1,
            "digest": VAULT.digest(content(record)),
            "sealed": VAULT.seal(f"{table}/{record_id}", content(record)),
        }

    number = {"national_hash": VAULT.index(NUMBER)}
    insert("meta", name="key", value=VAULT.fingerprint)
    insert("meta", name="log", value=b"log 1")
    insert("wearers", wearer_id="w-1", **number, **sealed("wearers", "w-1", WEARER))
    insert("protected_persons", person_id="p-1", **sealed("protected_persons", "p-1", PERSON))
    insert("orders", order_id="o-1", **number, **sealed("orders", "o-1", ORDER))
    tag = {"device_id": "tag-1", "wearer_id": "w-1", "source_version": 1}
    insert("tags", **tag, digest=VAULT.digest(content(tag)))
    device = {"device_id": "app-1", "person_id": "p-1", "source_version": 1}
    insert("devices", **device, digest=VAULT.digest(content(device)))
    insert("order_persons", order_id="o-1", person_id="p-1")
    case = {"case_id": CASE_ID, "order_id": "o-1", "wearer_id": "w-1", "version": 7, "matched_at_ms": 5}
    insert("cases", **case, valid_until_ms=ORDER["valid_until_ms"], entry=ENTRY, sent_day=0)
    insert("routes", device_id="tag-1", version=3, route=b"route", sent_day=1_000_000)
    insert("outbox", subject="log.0.case", msg_id="waits", payload=ENTRY)
    insert("outbox", subject="log.0.case", msg_id="went", payload=ENTRY, sent_at_ms=9)


def require_older_rows(working: WorkingSet) -> None:
    """The rows of the first version are where commands find them."""
    (case,) = [case for case in working.cases.of_orders(["o-1"]) if case.case_id == CASE_ID]
    assert (case.sequence, case.version, case.matched_at_ms) == (1, 7, 5)
    assert working.routes.of(["tag-1"])["tag-1"] == (3, b"route")
    (wearer,) = working.records.opened(WEARERS, ["w-1"]).values()
    assert working.match_keys.sharing(Side.ORDER, prepare(wearer, VAULT).match_keys) == {"o-1"}


async def test_a_database_of_the_first_migration_is_upgraded_with_its_data(where: Path | str) -> None:
    async with db.open_database(where, MIGRATIONS, "0001") as database, database.transaction() as connection:
        await connection.run_sync(fill)
    clock = MeshClock()
    async with db.open_database(where, MIGRATIONS) as database:
        registry = RegistryCore(database, VAULT, clock)
        await registry.prepare("log 1")
        async with registry.transactions.open() as view:
            assert [row.msg_id for row in await view.outbox.unsent(10)][:1] == ["waits"]
            assert ENTRY in [snapshot.entry for snapshot in await view.cases.not_sent_on(1, 0, 10)]
            # Routes have more fields since, so every route must be sent again.
            assert await view.routes.not_sent_on(1, 10) == ["tag-1"]
            assert await view.records.opened(TAGS, ["tag-1"]) == {"tag-1": Tag("tag-1", "w-1", 1)}
        await registry.transactions.change(require_older_rows)
        # Digests are unchanged, so an agency that repeats a put changes nothing.
        assert await registry.ministry.put_wearer(translate.parse_wearer(records.wearer())) is PutOutcome.UNCHANGED
        assert await registry.ministry.put_tag(translate.parse_tag(records.tag(vendor_id=""))) is PutOutcome.UNCHANGED
        assert (
            await registry.police.put_device(translate.parse_device(records.device(vendor_id="")))
            is PutOutcome.UNCHANGED
        )

        # Each older record gets its own key and can still be read.
        key_retention = registry.retention
        while await key_retention.rewrap_some():
            pass
        async with database.transaction() as connection:
            owners = (await connection.execute(sa.select(data_keys).order_by(data_keys.c.owner))).all()
        assert [row.owner for row in owners] == ["orders/o-1", "protected_persons/p-1", "wearers/w-1"]
        assert owners[0].destroy_at_ms > 4_000_000_000_000 and owners[2].destroy_at_ms is None
        async with registry.transactions.open() as view:
            wearer = await read_record(view, WEARERS, "w-1")
            assert (wearer.name, wearer.birth_date.isoformat()) == (records.NAME, records.BIRTH_DATE)
            assert (await read_record(view, ORDERS, "o-1")).places[0].place_id == "home"


def fill_reviews(connection: Connection) -> None:
    """Insert a review as the registry wrote it while reasons were sentences."""
    fill(connection)
    columns = ("case_id", "order_id", "wearer_id", "state", "enforced", "evidence", "weight_bits", "reasons")
    more = ("since_ms", "decided_by", "paged_at_ms")
    reasons = ["the names are equal (+13.2 bits)", "the telephone numbers differ (-1.4 bits)"]
    values = (CASE_ID, "o-1", "w-1", "OPEN", False, b"digest", 11.8, json.dumps(reasons), 5, "", None)
    table = sa.table("reviews", *map(sa.column, (*columns, *more)))
    connection.execute(sa.insert(table).values(dict(zip((*columns, *more), values, strict=True))))


async def test_a_review_with_sentences_as_reasons_gets_its_agreements(where: Path | str) -> None:
    async with db.open_database(where, MIGRATIONS, "0003") as database, database.transaction() as connection:
        await connection.run_sync(fill_reviews)
    async with db.open_database(where, MIGRATIONS) as database:
        registry = RegistryCore(database, VAULT, MeshClock())
        async with registry.transactions.open() as view:
            review = await view.reviews.read(CASE_ID)
    assert [(field.field, field.level, field.weight) for field in review.evidence.agreements] == [
        ("name", "EQUAL", 13.2),
        ("phone", "DIFFERENT", -1.4),
    ]
    assert review.evidence.reasons[0] == "the names are equal (+13.2 bits)"
    assert (review.legal_basis, review.since_ms, review.state) == ("", 5, ReviewState.OPEN)
