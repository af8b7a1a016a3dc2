"""Ends of wearers and protected persons, and destruction of their data in every table. On both engines."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import sqlalchemy as sa
from structlog.testing import capture_logs

from services.common.clock import MeshClock, wall_us
from services.common.errors import FailedPrecondition, InvalidField, NotFound
from services.common.storage import db
from services.registry.domain.disclosure import CORRECTABLE_MS, DAY_MS, KEPT_AFTER_END_MS
from services.registry.domain.lifecycle import PutOutcome
from services.registry.domain.records import EndReason, ListedKind, Order, OrderEnd, WearerEnd, WearerEndReason
from services.registry.domain.reviews import Decision, ReviewState, SeenReview
from services.registry.keys import Vault
from services.registry.reconciliation import ReconciliationRepository
from services.registry.records import translate
from services.registry.records.store import prepare
from services.registry.retention import KeyRetention
from services.registry.tables import MIGRATIONS, data_keys, match_events, metadata
from services.registry.working_set.working_set import WorkingSet
from tandem.registry.v1 import registry_pb2
from tests.support.registry import records
from tests.support.registry.core import RegistryCore

PLACE = "where-she-lives"
REASON = "seen-on-the-photograph"


@asynccontextmanager
async def opened(where: Path | str, ahead_ms: int = 0) -> AsyncIterator[tuple[RegistryCore, KeyRetention]]:
    """A registry whose mesh clock is ahead of the wall clock by `ahead_ms`."""
    clock = MeshClock(2, wall_us() // 1000 - ahead_ms) if ahead_ms else MeshClock()
    async with db.open_database(where, MIGRATIONS) as database:
        registry = RegistryCore(database, Vault([bytes(32)]), clock)
        await registry.prepare("log 1")
        yield registry, registry.retention


def tag_order(national_id: str = records.NUMBER) -> Order:
    msg = records.order(national_id=national_id)
    msg.type = registry_pb2.ORDER_TYPE_STALKING_TAG
    msg.places[0].place_id = PLACE
    return translate.parse_order(msg)


async def put_all(registry: RegistryCore, order: Order) -> None:
    await registry.police.put_protected_person(translate.parse_protected_person(records.person()))
    await registry.police.put_device(translate.parse_device(records.device()))
    await registry.ministry.put_wearer(translate.parse_wearer(records.wearer()))
    await registry.ministry.put_tag(translate.parse_tag(records.tag()))
    await registry.police.put_order(order)


async def destroy_all(key_retention: KeyRetention) -> None:
    while await key_retention.destroy_some():
        pass


async def alive(registry: RegistryCore) -> set[str]:
    """Owners of the keys that aren't destroyed."""
    statement = sa.select(data_keys.c.owner).where(data_keys.c.destroyed_at_ms.is_(None))
    async with registry.database.transaction() as connection:
        return set((await connection.execute(statement)).scalars())


async def events(registry: RegistryCore) -> list[str]:
    async with registry.database.transaction() as connection:
        return list((await connection.execute(sa.select(match_events.c.event).order_by("sequence"))).scalars())


@pytest.mark.parametrize(
    ("reason", "immediately"),
    [(WearerEndReason.ACQUITTAL, True), (WearerEndReason.LAPSED, True), (WearerEndReason.COMPLETED, False)],
)
async def test_a_wearer_can_end_only_without_a_tag_and_an_acquittal_destroys_the_record(
    where: Path | str, reason: WearerEndReason, immediately: bool
) -> None:
    now_ms = MeshClock().now_ms()
    end = WearerEnd(reason, now_ms - 1000)
    async with opened(where) as (registry, key_retention):
        await put_all(registry, tag_order())
        await registry.police.end_order("o-1", OrderEnd(EndReason.ACQUITTAL, now_ms - 2000), 2)
        assert await events(registry) == ["MATCHED", "GROUND_FELL"]
        with pytest.raises(FailedPrecondition, match="still has a tag"):
            await registry.ministry.end_wearer("w-1", end, 2)
        await registry.ministry.end_tag("tag-1", now_ms - 1500, 2)
        assert await registry.ministry.end_wearer("w-1", end, 2) is PutOutcome.STORED
        assert await registry.ministry.end_wearer("w-1", end, 2) is PutOutcome.UNCHANGED
        await destroy_all(key_retention)
        assert ("wearers/w-1" in await alive(registry)) is not immediately
        with pytest.raises(NotFound):
            await registry.ministry.end_wearer("w-none", end, 2)
    if not immediately:
        async with opened(where, KEPT_AFTER_END_MS + DAY_MS) as (registry, key_retention):
            await destroy_all(key_retention)
            assert "wearers/w-1" not in await alive(registry)


async def test_other_ends_of_an_order_give_no_ground_fell_event(where: Path | str) -> None:
    async with opened(where) as (registry, _):
        await put_all(registry, tag_order())
        await registry.police.end_order("o-1", OrderEnd(EndReason.CANCELLED_BY_COURT, MeshClock().now_ms()), 2)
        assert await events(registry) == ["MATCHED"]


@pytest.mark.parametrize("reason", [WearerEndReason.ACQUITTAL, WearerEndReason.LAPSED])
async def test_a_wearer_of_a_tag_under_a_judgment_is_not_destroyed_at_once(
    where: Path | str, reason: WearerEndReason
) -> None:
    now_ms = MeshClock().now_ms()
    async with opened(where) as (registry, key_retention):
        worn = records.tag()
        worn.basis = registry_pb2.TAG_BASIS_JUDGMENT
        await registry.ministry.put_wearer(translate.parse_wearer(records.wearer()))
        await registry.ministry.put_tag(translate.parse_tag(worn))
        await registry.ministry.end_tag("tag-1", now_ms - 1500, 2)
        with pytest.raises(InvalidField) as refused:
            await registry.ministry.end_wearer("w-1", WearerEnd(reason, now_ms - 1000), 2)
        assert refused.value.field == "reason"
        await registry.ministry.end_wearer("w-1", WearerEnd(WearerEndReason.COMPLETED, now_ms - 1000), 2)
        await destroy_all(key_retention)
        assert "wearers/w-1" in await alive(registry)


async def test_a_newer_record_of_an_ended_wearer_is_not_destroyed(where: Path | str) -> None:
    now_ms = MeshClock().now_ms()
    async with opened(where) as (registry, key_retention):
        await registry.ministry.put_wearer(translate.parse_wearer(records.wearer()))
        await registry.ministry.end_wearer("w-1", WearerEnd(WearerEndReason.LAPSED, now_ms - 1000), 2)
        await registry.ministry.put_wearer(translate.parse_wearer(records.wearer(version=3)))
        await destroy_all(key_retention)
        assert "wearers/w-1" in await alive(registry)


async def test_a_mistyped_year_can_be_corrected_for_thirty_days(where: Path | str) -> None:
    now_ms = MeshClock().now_ms()
    mistyped_ms = now_ms - 10 * 365 * DAY_MS
    completed = WearerEnd(WearerEndReason.COMPLETED, mistyped_ms)
    async with opened(where) as (registry, key_retention):
        for n in (1, 2, 3):
            number = f"800101123456{n}"
            await registry.ministry.put_wearer(translate.parse_wearer(records.wearer(f"w-{n}", number)))
        for n in (1, 2):
            await registry.ministry.put_tag(translate.parse_tag(records.tag(f"tag-{n}", f"w-{n}")))
            await registry.ministry.end_tag(f"tag-{n}", mistyped_ms, 2)
        await registry.ministry.end_wearer("w-3", completed, 2)
        await destroy_all(key_retention)
        assert await alive(registry) == {"wearers/w-1", "wearers/w-2", "wearers/w-3"}
    async with opened(where, CORRECTABLE_MS - DAY_MS) as (registry, key_retention):
        await destroy_all(key_retention)
        assert await alive(registry) == {"wearers/w-1", "wearers/w-2", "wearers/w-3"}
        await registry.ministry.end_tag("tag-2", now_ms, 3)
    async with opened(where, 2 * CORRECTABLE_MS) as (registry, key_retention):
        await destroy_all(key_retention)
        assert await alive(registry) == {"wearers/w-2"}
    async with opened(where, KEPT_AFTER_END_MS + DAY_MS) as (registry, key_retention):
        await destroy_all(key_retention)
        assert await alive(registry) == set()


async def test_a_person_ends_after_orders_and_devices_and_is_destroyed_after_the_orders(
    where: Path | str,
) -> None:
    now_ms = MeshClock().now_ms()
    async with opened(where) as (registry, _):
        await put_all(registry, tag_order())
        with pytest.raises(FailedPrecondition, match="an order"):
            await registry.police.end_protected_person("p-1", now_ms, 2)
        await registry.police.end_order("o-1", OrderEnd(EndReason.CANCELLED_BY_COURT, now_ms), 2)
        with pytest.raises(FailedPrecondition, match="a protective device"):
            await registry.police.end_protected_person("p-1", now_ms, 2)
        await registry.police.end_device("app-1", now_ms, 2)
        # The end lies more than 5 years back, so the person is due, but the stored order still names the person.
        long_ago_ms = now_ms - KEPT_AFTER_END_MS - DAY_MS
        assert await registry.police.end_protected_person("p-1", long_ago_ms, 2) is PutOutcome.STORED
        await registry.police.put_protected_person(translate.parse_protected_person(records.person("p-2")))
        await registry.police.end_protected_person("p-2", long_ago_ms, 2)
        with pytest.raises(NotFound):
            await registry.police.end_protected_person("p-none", now_ms, 2)
    async with opened(where, CORRECTABLE_MS + DAY_MS) as (registry, key_retention):
        await destroy_all(key_retention)
        assert {"orders/o-1", "protected_persons/p-1"} <= await alive(registry)
        assert "protected_persons/p-2" not in await alive(registry)
    async with opened(where, KEPT_AFTER_END_MS + 2 * DAY_MS) as (registry, key_retention):
        await destroy_all(key_retention)
        assert not {"orders/o-1", "protected_persons/p-1"} & await alive(registry)


async def tables_that_hold(registry: RegistryCore, text: str) -> set[str]:
    """Names of tables with a row that contains this text in any column."""
    names = set()
    async with registry.database.transaction() as connection:
        for table in metadata.sorted_tables:
            for row in await connection.execute(sa.select(table)):
                if any(text.encode() in (value if isinstance(value, bytes) else str(value).encode()) for value in row):
                    names.add(table.name)
    return names


async def test_destruction_reaches_every_table(where: Path | str) -> None:
    now_ms = MeshClock().now_ms()
    async with opened(where) as (registry, key_retention):
        await put_all(registry, tag_order(national_id=""))
        match_reviews = registry.reviews
        (review,) = await match_reviews.list_reviews(tuple(ReviewState), "")
        await match_reviews.decide(
            review.case_id,
            Decision.REJECT,
            REASON,
            seen=SeenReview(review.evidence.digest, review.since_ms),
            by="spiffe://npa/desk",
        )
        (rejected,) = await match_reviews.list_reviews(tuple(ReviewState), "")
        await match_reviews.decide(
            review.case_id,
            Decision.CONFIRM,
            REASON,
            seen=SeenReview(rejected.evidence.digest, rejected.since_ms),
            by="spiffe://npa/desk",
        )
        # All these tables must have rows before the destruction, or the assertions below would prove nothing.
        held = {"cases", "reviews", "review_decisions", "review_comparisons", "match_events", "outbox"}
        assert await tables_that_hold(registry, review.case_id) >= held
        assert await tables_that_hold(registry, "o-1") >= {
            *held - {"outbox", "review_decisions", "review_comparisons"},
            "order_stages",
        }
        assert await tables_that_hold(registry, PLACE) == {"cases", "outbox"}
        assert f"review_decisions/{review.case_id}" in str(await alive(registry))

        await registry.ministry.end_tag("tag-1", now_ms, 2)
        await registry.police.end_order("o-1", OrderEnd(EndReason.ACQUITTAL, now_ms - 1), 2)
        await registry.ministry.end_wearer("w-1", WearerEnd(WearerEndReason.ACQUITTAL, now_ms - 1), 2)
        async with registry.transactions.open() as view:
            await view.outbox.mark_sent([row.id for row in await view.outbox.unsent(1000)], now_ms)
        await destroy_all(key_retention)
        # Only the match events stay, until no resume token can reach them.
        assert await tables_that_hold(registry, review.case_id) == {"match_events"}
        assert await tables_that_hold(registry, PLACE) == set()
        assert "review_decisions" not in str(await alive(registry))
        # Of an order that is destroyed at once, the protected person's record stays until the police have ended it.
        assert "protected_persons/p-1" in await alive(registry)
        await registry.police.end_device("app-1", now_ms, 2)
        await registry.police.end_protected_person("p-1", now_ms, 2)
    async with opened(where, 8 * DAY_MS) as (registry, key_retention):
        await destroy_all(key_retention)
        assert await tables_that_hold(registry, review.case_id) == set()
        # Left are empty rows by id, so that no record is restored by mistake, and the ledger; of devices the revoked route.
        assert await tables_that_hold(registry, "o-1") == {"orders", "data_keys", "ledger"}
        of_routes = {"routes", "outbox"}
        assert await tables_that_hold(registry, "w-1") == {"wearers", "data_keys", "ledger", *of_routes}
        assert await tables_that_hold(registry, "tag-1") == of_routes
    async with opened(where, KEPT_AFTER_END_MS + DAY_MS) as (registry, key_retention):
        await destroy_all(key_retention)
        assert await tables_that_hold(registry, "app-1") == of_routes
        async with registry.transactions.reading() as view:
            assert await ReconciliationRepository(view.connection, view.vault).listed(list(ListedKind)) == []


async def test_a_match_is_logged_only_after_the_commit(where: Path | str) -> None:
    async with opened(where) as (registry, _):

        def fail(working: WorkingSet) -> None:
            registry.police.apply_order(working, prepare(tag_order(), working.vault))
            raise RuntimeError

        await registry.police.put_protected_person(translate.parse_protected_person(records.person()))
        await registry.ministry.put_wearer(translate.parse_wearer(records.wearer()))
        with capture_logs() as logs:
            with pytest.raises(RuntimeError):
                await registry.transactions.change(fail)
            assert logs == []
            await registry.police.put_order(tag_order())
        assert [log["event"] for log in logs] == ["order_matched", "order_stored"]
