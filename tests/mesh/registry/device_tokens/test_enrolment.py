"""Enrolment of phones by a code: once, until its end, and for a device in service. On both engines."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from services.common.clock import MeshClock, wall_us
from services.common.errors import FailedPrecondition, NotFound, PermissionDenied
from services.common.storage import db
from services.registry.device_tokens import Enrolments
from services.registry.domain import device_tokens
from services.registry.domain.reconciliation import Agency
from services.registry.keys import Vault
from services.registry.records import translate
from services.registry.tables import MIGRATIONS
from tests.support.registry import records
from tests.support.registry.core import RegistryCore

DESK = "spiffe://npa/desk/seoul"
HOUR_MS = 3_600_000


class EnrolmentDesk:
    """A registry with a wearer's tag and a person's device, and its enrolments."""

    def __init__(self, registry: RegistryCore, clock: MeshClock) -> None:
        self.registry = registry
        self.enrolments = Enrolments(registry.transactions, registry.device_tokens, clock)

    async def code(self, device_id: str = "app-1") -> str:
        return device_tokens.parse_code((await self.enrolments.issue(device_id, 900, by=DESK)).code)

    async def put_device(self) -> None:
        await self.registry.police.put_device(translate.parse_device(records.device()))


@asynccontextmanager
async def opened(where: Path | str, ahead_ms: int = 0) -> AsyncIterator[EnrolmentDesk]:
    """A registry whose mesh clock is ahead of the wall clock by `ahead_ms`."""
    clock = MeshClock(2, wall_us() // 1000 - ahead_ms) if ahead_ms else MeshClock()
    async with db.open_database(where, MIGRATIONS) as database:
        registry = RegistryCore(database, Vault([bytes(32)]), clock)
        await registry.prepare("log 1")
        await registry.ministry.put_wearer(translate.parse_wearer(records.wearer()))
        await registry.ministry.put_tag(translate.parse_tag(records.tag()))
        await registry.police.put_protected_person(translate.parse_protected_person(records.person()))
        desk = EnrolmentDesk(registry, clock)
        await desk.put_device()
        yield desk


async def refusal(call: object) -> str:
    """Code of the refusal of a call."""
    with pytest.raises(FailedPrecondition) as refused:
        await call  # type: ignore[misc]
    return refused.value.code


async def test_a_code_gives_a_token_once_and_ends_the_earlier_phone(where: Path | str) -> None:
    async with opened(where) as desk:
        older = await desk.registry.device_tokens.issue(Agency.NPA, "app-1", 0)
        with capture_logs() as logs:
            code = await desk.code()
            enrolled = await desk.enrolments.enrol(code)
        assert enrolled.phone == ("app-1", records.device().person_id)
        assert await desk.enrolments.find(enrolled.token) == enrolled.phone
        with pytest.raises(NotFound):
            await desk.enrolments.find(older)
        assert await refusal(desk.enrolments.enrol(code)) == "CODE_USED"
        assert code not in str(logs) and enrolled.token not in str(logs)
        async with desk.registry.transactions.open() as work:
            route = [row for row in await work.outbox.unsent(1000) if row.subject == "$KV.devices.app-1"][-1]
        assert hashlib.sha256(enrolled.token.encode()).digest() in route.payload


async def test_two_phones_with_one_code_at_once_are_one_phone(where: Path | str) -> None:
    async with opened(where) as desk:
        code = await desk.code()
        outcomes = await asyncio.gather(*(desk.enrolments.enrol(code) for _ in range(5)), return_exceptions=True)
        assert len([outcome for outcome in outcomes if not isinstance(outcome, Exception)]) == 1
        assert {outcome.code for outcome in outcomes if isinstance(outcome, FailedPrecondition)} == {"CODE_USED"}


async def test_a_code_expires_and_a_newer_one_replaces_it(where: Path | str) -> None:
    async with opened(where) as desk:
        replaced, code = await desk.code(), await desk.code()
        assert await refusal(desk.enrolments.enrol(replaced)) == "CODE_USED"
        with pytest.raises(NotFound):
            await desk.enrolments.enrol("A" * device_tokens.CODE_LENGTH)
    async with opened(where, HOUR_MS) as later:
        assert await refusal(later.enrolments.enrol(code)) == "CODE_EXPIRED"
        assert (await later.enrolments.enrol(await later.code())).phone.device_id == "app-1"


async def test_a_device_out_of_service_gets_no_code_and_its_phone_ends(where: Path | str) -> None:
    async with opened(where) as desk:
        token = (await desk.enrolments.enrol(await desk.code())).token
        pending = await desk.code()
        with pytest.raises(PermissionDenied):
            await desk.code("tag-1")
        with pytest.raises(NotFound):
            await desk.code("nobody")
        await desk.registry.police.end_device("app-1", MeshClock().now_ms(), source_version=2)
        with pytest.raises(NotFound):
            await desk.enrolments.find(token)
        assert await refusal(desk.enrolments.enrol(pending)) == "DEVICE_ENDED"
        assert await refusal(desk.code()) == "DEVICE_ENDED"


async def test_a_device_of_a_person_who_has_ended_gets_no_code(where: Path | str) -> None:
    async with opened(where) as desk:
        police, now_ms = desk.registry.police, MeshClock().now_ms()
        await police.end_device("app-1", now_ms, source_version=2)
        await police.end_protected_person(records.person().person_id, now_ms, source_version=2)
        # The device's record is open again, but nobody may report for it until that of the person is, too.
        await police.put_device(translate.parse_device(records.device(version=3)))
        assert await refusal(desk.code()) == "DEVICE_ENDED"
        await police.put_protected_person(translate.parse_protected_person(records.person(version=3)))
        assert (await desk.enrolments.enrol(await desk.code())).phone.device_id == "app-1"
