"""Overdue requests for CCTV, and what the destruction of a wearer does to records about tags and to those requests. On both engines."""

from __future__ import annotations

from pathlib import Path

import pytest
import sqlalchemy as sa
from structlog.testing import capture_logs

from services.common.clock import MeshClock, wall_us
from services.common.storage import db
from services.registry.cctv.domain import (
    ANSWER_WITHIN_MS,
    NOTIFY_WITHIN_MS,
    VIEW_WITHIN_MS,
    CctvEntry,
    CctvGround,
    CctvStep,
)
from services.registry.cctv.service import CctvWatch, NewRequest
from services.registry.domain.disclosure import DAY_MS, KEPT_AFTER_END_MS
from services.registry.domain.records import WearerEnd, WearerEndReason
from services.registry.domain.wearing import TagRecordKind
from services.registry.keys import Vault
from services.registry.records import translate
from services.registry.tables import MIGRATIONS, data_keys, tag_records
from services.registry.wearing import NewRecord
from tandem.registry.v1 import registry_pb2
from tests.support.registry import records
from tests.support.registry.core import RegistryCore

HOUR_MS = 3_600_000
DESK = "spiffe://moj/desk/officer"


def core(database: db.Database, ahead_ms: int = 0) -> RegistryCore:
    """A registry whose mesh clock is ahead of the wall clock."""
    clock = MeshClock(2, wall_us() // 1000 - ahead_ms) if ahead_ms else MeshClock()
    return RegistryCore(database, Vault([bytes(32)]), clock)


async def prepared(registry: RegistryCore) -> None:
    """A wearer with a tag, under an order of item 3-2."""
    await registry.prepare("log 1")
    order = records.order()
    order.type = registry_pb2.ORDER_TYPE_STALKING_TAG
    await registry.police.put_protected_person(translate.parse_protected_person(records.person()))
    await registry.ministry.put_wearer(translate.parse_wearer(records.wearer()))
    await registry.ministry.put_tag(translate.parse_tag(records.tag()))
    await registry.police.put_order(translate.parse_order(order))


def request(request_id: str) -> NewRequest:
    return NewRequest(request_id, "w-1", CctvGround.DUTY_14_1, government="Suwon City", details="Station square")


async def put_condition(registry: RegistryCore) -> None:
    """An order under the condition of a judgment, which allows requests for CCTV."""
    order = records.order("o-2")
    order.type = registry_pb2.ORDER_TYPE_TAG_CONDITION
    await registry.police.put_order(translate.parse_order(order))


async def test_enforcement_rule_11_7_a_step_that_is_overdue_is_counted_and_logged_once(where: Path | str) -> None:
    async with db.open_database(where, MIGRATIONS) as database:
        registry = core(database)
        await prepared(registry)
        await put_condition(registry)
        made, _ = await registry.cctv.request(request("q-1"), DESK)
        now_ms = made.last.at_ms
        for ahead_ms, step, following in (
            (ANSWER_WITHIN_MS, CctvStep.REQUESTED, CctvStep.PROVIDED),
            (VIEW_WITHIN_MS, CctvStep.PROVIDED, CctvStep.VIEWING_ENDED),
            (NOTIFY_WITHIN_MS, CctvStep.VIEWING_ENDED, CctvStep.WEARER_NOTIFIED),
        ):
            in_time, late = core(database, ahead_ms - HOUR_MS // 2), core(database, ahead_ms + HOUR_MS)
            assert await in_time.cctv.overdue() == []
            watch = CctvWatch(late.cctv, late.metrics.cctv_overdue)
            with capture_logs() as lines:
                await watch.check()
                await watch.check()
            assert [(line["event"], line["request_id"], line["after_step"]) for line in lines] == [
                ("cctv_step_overdue", "q-1", step.value)
            ]
            gauge = late.metrics.cctv_overdue.labels(step.value.lower())
            assert gauge._value.get() == 1
            [listed] = await late.cctv.list_all("", only_overdue=True)
            assert listed.request_id == "q-1" and listed.last.text == ""
            entry = CctvEntry(step=following, at_ms=now_ms, recorded_ms=now_ms, recorded_by=DESK)
            await registry.cctv.add_step("q-1", entry)
        done = core(database, 2 * NOTIFY_WITHIN_MS)
        assert await done.cctv.overdue() == []


async def test_a_list_of_overdue_requests_goes_on_after_one_that_was_answered_meanwhile(where: Path | str) -> None:
    async with db.open_database(where, MIGRATIONS) as database:
        registry = core(database)
        await prepared(registry)
        await put_condition(registry)
        made = [(await registry.cctv.request(request(f"q-{n}"), DESK))[0] for n in range(3)]
        late = core(database, 2 * ANSWER_WITHIN_MS)
        assert [found.request_id for found in await late.cctv.list_all("", only_overdue=True)] == ["q-0", "q-1", "q-2"]
        at_ms = made[1].last.at_ms
        answer = CctvEntry(step=CctvStep.DECLINED, at_ms=at_ms, recorded_ms=at_ms, recorded_by=DESK)
        await registry.cctv.add_step("q-1", answer)
        assert [found.request_id for found in await late.cctv.list_all("q-1", only_overdue=True)] == ["q-2"]
        assert await late.cctv.list_all("q-unknown", only_overdue=True) == []


@pytest.mark.parametrize("reason", [WearerEndReason.LAPSED, WearerEndReason.COMPLETED])
async def test_the_destruction_of_a_wearer_destroys_reasons_and_texts(
    where: Path | str, reason: WearerEndReason
) -> None:
    async with db.open_database(where, MIGRATIONS) as database:
        registry = core(database)
        await prepared(registry)
        await put_condition(registry)
        now_ms = MeshClock().now_ms()
        removal = NewRecord(
            "m-1",
            TagRecordKind.REMOVAL,
            "Operation",
            from_ms=None,
            until_ms=now_ms + HOUR_MS,
            device_id="tag-1",
            allowed_by="head-1",
        )
        assert await registry.wearing.add(removal, DESK)
        await registry.cctv.request(request("q-1"), DESK)
        await registry.ministry.end_tag("tag-1", now_ms, 2)
        await registry.ministry.end_wearer("w-1", WearerEnd(reason, now_ms), 2)
        later = core(database, KEPT_AFTER_END_MS + DAY_MS if reason is WearerEndReason.COMPLETED else 0)
        while await later.retention.destroy_some():
            pass
        async with database.transaction() as connection:
            left = set((await connection.execute(sa.select(data_keys.c.owner))).scalars())
            kept = (await connection.execute(sa.select(sa.func.count()).select_from(tag_records))).scalar()
        assert not [owner for owner in left if owner.startswith(("tag_records/", "cctv_entries/"))]
        assert kept == 0
        [request_left] = await later.cctv.list_all("", only_overdue=False)
        assert [entry.step for entry in request_left.entries] == [CctvStep.REQUESTED]
