"""Matches without an equal number: certain ones are enforced at once, and a person decides on the others. On both engines."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest

from services.common.errors import FailedPrecondition, NotFound
from services.common.storage import db
from services.registry.domain.records import EndReason, OrderEnd
from services.registry.domain.reviews import (
    ANSWER_WITHIN_MS,
    TOKENS_KEPT_MS,
    Decision,
    Event,
    Review,
    ReviewQueue,
    ReviewState,
    SeenReview,
)
from services.registry.keys import Vault
from services.registry.records import translate
from services.registry.reviews.service import ReviewService
from services.registry.tables import MIGRATIONS
from tandem.common.v1 import log_pb2
from tandem.registry.v1 import registry_pb2
from tests.support.common.clock import Settable
from tests.support.registry import records
from tests.support.registry.core import RegistryCore

DESK = "spiffe://npa/desk/test"
ALL = tuple(ReviewState)
WITHIN_S = 60.0


class Agencies:
    """Both agencies and a desk, calling the registry without gRPC."""

    def __init__(self, registry: RegistryCore, match_reviews: ReviewService) -> None:
        self.registry = registry
        self.match_reviews = match_reviews

    async def put(self, *messages: registry_pb2.Wearer | registry_pb2.Order | registry_pb2.Tag) -> None:
        for message in messages:
            match message:
                case registry_pb2.Wearer():
                    await self.registry.ministry.put_wearer(translate.parse_wearer(message))
                case registry_pb2.Tag():
                    await self.registry.ministry.put_tag(translate.parse_tag(message))
                case registry_pb2.Order():
                    await self.registry.police.put_order(translate.parse_order(message))

    async def review(self) -> Review:
        """The only review."""
        (found,) = await self.match_reviews.list_reviews(ALL, "")
        return found

    async def decide(self, decision: Decision) -> Review:
        before = await self.review()
        return await self.match_reviews.decide(
            before.case_id,
            decision,
            "compared the files",
            seen=SeenReview(before.evidence.digest, before.since_ms),
            by=DESK,
        )

    async def events(self) -> list[Event]:
        return [event.match.event for event in await self.match_reviews.events_after(0, 1000, only_matches=False)]

    async def snapshots(self) -> list[log_pb2.CaseSnapshot]:
        """Case snapshots that wait in the outbox."""
        async with self.registry.transactions.open() as view:
            rows = await view.outbox.unsent(1000)
        return [log_pb2.LogEntry.FromString(row.payload).case for row in rows if row.subject.startswith("log.")]


@asynccontextmanager
async def opened(where: Path | str) -> AsyncIterator[Agencies]:
    clock = Settable()
    async with db.open_database(where, MIGRATIONS) as database:
        registry = RegistryCore(database, Vault([bytes(32)]), clock)
        await registry.prepare("log 1")
        yield Agencies(registry, registry.reviews)


@pytest.fixture
async def agencies(where: Path | str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Agencies]:
    monkeypatch.setattr(Settable, "ahead_ms", 0)
    async with opened(where) as opened_agencies:
        yield opened_agencies


def wearer(
    version: int = 1, address: str = "서울특별시 마포구 월드컵로 1", name: str = "남궁민수"
) -> registry_pb2.Wearer:
    message = records.wearer(version=version)
    message.name = name
    message.sex = registry_pb2.SEX_MALE
    message.phone = "010-2345-6789"
    message.address = address
    return message


def order(version: int = 1, birth_date: str = records.BIRTH_DATE, complete: bool = True) -> registry_pb2.Order:
    """An order against the same person without a national number; unless `complete`, also without sex, phone and address."""
    message = records.order(person_ids=(), national_id="", version=version)
    message.respondent.name, message.respondent.birth_date = "남궁민수", birth_date
    if complete:
        message.respondent.sex, message.respondent.phone = registry_pb2.SEX_MALE, "+82 10 2345 6789"
        message.respondent.address = "서울시 마포구 월드컵로 1"
    return message


def waiting(queue: ReviewQueue) -> tuple[int, int]:
    """Number of open reviews, and of those with an alarm."""
    assert len(queue.alarms) == queue.alarmed
    return queue.open, queue.alarmed


def uncertain(version: int = 1) -> registry_pb2.Order:
    """An order that states only the same name and a date of birth one year apart."""
    return order(version, birth_date="1981-01-01", complete=False)


@pytest.mark.parametrize("order_first", [True, False])
async def test_a_certain_match_without_a_number_is_enforced_at_once(agencies: Agencies, order_first: bool) -> None:
    await agencies.put(*((order(), wearer()) if order_first else (wearer(), order())))
    (snapshot,) = await agencies.snapshots()
    assert (snapshot.order_id, snapshot.wearer_id) == ("o-1", "w-1")
    found = await agencies.review()
    assert (found.state, found.enforced) == (ReviewState.CERTAIN, True)
    assert await agencies.events() == [Event.MATCHED]


@pytest.mark.parametrize("order_first", [True, False])
async def test_an_uncertain_match_waits_for_a_decision_and_states_its_reasons(
    agencies: Agencies, order_first: bool
) -> None:
    await agencies.put(*((uncertain(), wearer()) if order_first else (wearer(), uncertain())))
    assert await agencies.snapshots() == []
    found = await agencies.review()
    assert (found.state, found.enforced, found.order_id, found.wearer_id) == (ReviewState.OPEN, False, "o-1", "w-1")
    assert any("names are equal" in reason and "bits" in reason for reason in found.evidence.reasons)
    assert any("year apart" in reason for reason in found.evidence.reasons)
    for secret in ("남궁", "1980", "1981", "2345"):
        assert secret not in "".join(found.evidence.reasons)
    assert await agencies.match_reviews.list_reviews((ReviewState.OPEN,), "") == [found]

    confirmed = await agencies.decide(Decision.CONFIRM)
    assert (confirmed.state, confirmed.enforced, confirmed.decided_by) == (ReviewState.CONFIRMED, True, DESK)
    (snapshot,) = await agencies.snapshots()
    assert snapshot.order_id == "o-1"
    assert await agencies.events() == [Event.REVIEW_OPENED, Event.CONFIRMED, Event.MATCHED]
    # A confirmed case works like any other case: a tag joins it.
    await agencies.put(records.tag())
    assert list((await agencies.snapshots())[-1].tag_device_ids) == ["tag-1"]
    assert (await agencies.review()).state is ReviewState.CONFIRMED


async def test_people_with_nothing_in_common_get_no_review(agencies: Agencies) -> None:
    other = records.order(person_ids=(), national_id="", version=1)
    other.respondent.name, other.respondent.birth_date = "선우재덕", "1955-12-12"
    await agencies.put(wearer(), other)
    assert await agencies.match_reviews.list_reviews(ALL, "") == []
    assert await agencies.events() == []


async def test_a_different_number_prevents_a_certain_match(agencies: Agencies) -> None:
    namesake = order()
    namesake.respondent.national_id = "800101-1999999"
    await agencies.put(wearer(), namesake)
    assert (await agencies.review()).state is ReviewState.OPEN


async def test_a_rejection_holds_for_the_same_evidence_and_reopens_with_new_evidence(agencies: Agencies) -> None:
    await agencies.put(wearer(), uncertain())
    rejected = await agencies.decide(Decision.REJECT)
    assert (rejected.state, rejected.enforced) == (ReviewState.REJECTED, False)
    await agencies.put(wearer(version=2), uncertain(version=2))
    assert (await agencies.review()).state is ReviewState.REJECTED
    await agencies.put(wearer(version=3, address="경기도 남양주시 경춘로 1"))
    assert (await agencies.review()).state is ReviewState.OPEN
    assert await agencies.snapshots() == []


async def test_a_decision_can_be_undone(agencies: Agencies) -> None:
    await agencies.put(wearer(), uncertain())
    await agencies.decide(Decision.CONFIRM)
    undone = await agencies.decide(Decision.UNDO)
    assert (undone.state, undone.enforced, undone.decided_by) == (ReviewState.OPEN, False, "")
    first, withdrawn = await agencies.snapshots()
    assert withdrawn.valid_until_ms < first.valid_until_ms and withdrawn.version > first.version
    assert (await agencies.events())[-2:] == [Event.UNDONE, Event.WITHDRAWN]
    await agencies.decide(Decision.REJECT)
    assert (await agencies.decide(Decision.UNDO)).state is ReviewState.OPEN


async def test_a_rejected_certain_match_stays_rejected(agencies: Agencies) -> None:
    await agencies.put(wearer(), order())
    await agencies.decide(Decision.REJECT)
    await agencies.put(order(version=2), records.tag())
    assert (await agencies.review()).state is ReviewState.REJECTED
    assert len(await agencies.snapshots()) == 2


async def test_a_confirmed_match_stays_enforced_while_new_evidence_is_reviewed(agencies: Agencies) -> None:
    await agencies.put(wearer(), uncertain())
    await agencies.decide(Decision.CONFIRM)
    await agencies.put(wearer(version=2, name="선우민수"))
    found = await agencies.review()
    assert (found.state, found.enforced) == (ReviewState.OPEN, True)
    assert (await agencies.snapshots())[-1].valid_until_ms == 4_000_000_000_000


async def test_a_decision_on_outdated_evidence_is_rejected(agencies: Agencies) -> None:
    await agencies.put(wearer(), uncertain())
    seen = await agencies.review()
    await agencies.put(wearer(version=2, address="부산광역시 중구 1"))
    with pytest.raises(FailedPrecondition, match="evidence"):
        await agencies.match_reviews.decide(
            seen.case_id, Decision.CONFIRM, "why", seen=SeenReview(seen.evidence.digest, None), by=DESK
        )
    with pytest.raises(NotFound):
        await agencies.match_reviews.decide(
            "case-none", Decision.CONFIRM, "why", seen=SeenReview(seen.evidence.digest, None), by=DESK
        )
    assert await agencies.snapshots() == []


async def test_both_opened_agenciesare_paged_once_if_nobody_decides(where: Path | str, agencies: Agencies) -> None:
    await agencies.put(wearer(), uncertain())
    await agencies.match_reviews.page()
    assert await agencies.events() == [Event.REVIEW_OPENED]
    Settable.ahead_ms = ANSWER_WITHIN_MS + 1000
    await agencies.match_reviews.page()
    await agencies.match_reviews.page()
    assert await agencies.events() == [Event.REVIEW_OPENED, Event.REVIEW_UNANSWERED]
    # After an undo the time until the next page starts again.
    await agencies.decide(Decision.REJECT)
    await agencies.decide(Decision.UNDO)
    await agencies.match_reviews.page()
    Settable.ahead_ms *= 2
    await agencies.match_reviews.page()
    assert (await agencies.events()).count(Event.REVIEW_UNANSWERED) == 2


async def test_an_order_that_has_ended_gets_no_review(agencies: Agencies) -> None:
    ended = uncertain()
    ended.valid_until.seconds = 1_600_000_001
    await agencies.put(wearer(), ended)
    assert await agencies.match_reviews.list_reviews(ALL, "") == []
    # An early end closes the review too.
    await agencies.put(uncertain(version=2))
    assert (await agencies.review()).state is ReviewState.OPEN
    end = OrderEnd(EndReason.NON_PROSECUTION, 1_600_000_000_000)
    await agencies.registry.police.end_order("o-1", end, 3)
    assert (await agencies.review()).state is ReviewState.CLOSED


async def test_watchers_of_matches_read_without_the_lock_of_the_writers(agencies: Agencies) -> None:
    await agencies.put(wearer(), uncertain())
    # As while an agency puts its records.
    async with agencies.registry.database.transaction(), asyncio.timeout(WITHIN_S):
        assert len(await agencies.match_reviews.resume(0, 10, only_matches=False)) == 1
        assert await agencies.events() == [Event.REVIEW_OPENED]


async def test_a_resume_token_expires_after_seven_days(agencies: Agencies) -> None:
    await agencies.put(wearer(), uncertain())
    (opened_event,) = await agencies.match_reviews.resume(0, 10, only_matches=False)
    await agencies.decide(Decision.CONFIRM)
    token = opened_event.sequence
    assert len(await agencies.match_reviews.resume(token, 10, only_matches=False)) == 2
    Settable.ahead_ms = TOKENS_KEPT_MS - 60_000
    assert len(await agencies.match_reviews.resume(token, 10, only_matches=False)) == 2
    Settable.ahead_ms = TOKENS_KEPT_MS + 60_000
    with pytest.raises(FailedPrecondition, match="expired"):
        await agencies.match_reviews.resume(token, 10, only_matches=False)
    everything = await agencies.match_reviews.resume(0, 10, only_matches=False)
    assert len(everything) == 3
    # The last token never expires, because no event follows it.
    assert await agencies.match_reviews.resume(everything[-1].sequence, 10, only_matches=False) == []


async def test_a_decision_of_somebody_else_is_not_overwritten_unseen(agencies: Agencies) -> None:
    await agencies.put(wearer(), uncertain())
    before = await agencies.review()
    seen = SeenReview(before.evidence.digest, before.since_ms)
    Settable.ahead_ms = 1000
    decide = partial(agencies.match_reviews.decide, before.case_id)
    confirmed = await decide(Decision.CONFIRM, "same file", seen=seen, by=DESK)
    with pytest.raises(FailedPrecondition, match="CONFIRMED since") as refused:
        await decide(Decision.REJECT, "other file", seen=seen, by="spiffe://moj/desk/other")
    assert refused.value.code == "DECIDED_MEANWHILE"
    with pytest.raises(FailedPrecondition, match="CONFIRMED already") as refused:
        await decide(Decision.REJECT, "why", seen=SeenReview(seen.digest, None), by="spiffe://moj/desk/other")
    assert refused.value.code == "ALREADY_DECIDED"
    # The answer was lost, so the same person sends the same decision again.
    assert await decide(Decision.CONFIRM, "same file", seen=seen, by=DESK) == confirmed
    assert (await agencies.events()).count(Event.CONFIRMED) == 1
    # Who has seen the decision may decide otherwise.
    Settable.ahead_ms = 2000
    rejected = await decide(
        Decision.REJECT, "not him", seen=SeenReview(seen.digest, confirmed.since_ms), by="spiffe://moj/desk/other"
    )
    assert rejected.state is ReviewState.REJECTED


async def test_an_alarm_ends_with_the_decision_or_when_the_records_need_none(agencies: Agencies) -> None:
    await agencies.put(wearer(), uncertain())
    assert waiting(await agencies.match_reviews.queue()) == (1, 0)
    Settable.ahead_ms = ANSWER_WITHIN_MS + 1000
    await agencies.match_reviews.page()
    assert waiting(await agencies.match_reviews.queue()) == (1, 1)
    corrected = uncertain(version=2)
    corrected.respondent.name, corrected.respondent.birth_date = "선우재덕", "1955-12-12"
    await agencies.put(corrected)
    assert waiting(await agencies.match_reviews.queue()) == (0, 0)
    assert (await agencies.events())[-1] is Event.REVIEW_CLOSED


async def test_the_review_of_an_order_that_lapsed_meanwhile_is_closed_and_not_alarmed(agencies: Agencies) -> None:
    now_ms = agencies.registry.cases.terms().now_ms
    brief, long = uncertain(), uncertain()
    brief.valid_until.FromMilliseconds(now_ms + ANSWER_WITHIN_MS // 2)
    long.order_id = "o-2"
    long.valid_until.FromMilliseconds(now_ms + 2 * ANSWER_WITHIN_MS)
    await agencies.put(wearer(), brief, long)
    Settable.ahead_ms = ANSWER_WITHIN_MS + 1000
    await agencies.match_reviews.page()
    # The one lapsed before its alarm, the other is alarmed.
    assert waiting(await agencies.match_reviews.queue()) == (1, 1)
    assert (await agencies.events()).count(Event.REVIEW_UNANSWERED) == 1
    Settable.ahead_ms = 3 * ANSWER_WITHIN_MS
    await agencies.match_reviews.close_lapsed()
    assert waiting(await agencies.match_reviews.queue()) == (0, 0)
    assert (await agencies.events()).count(Event.REVIEW_CLOSED) == 2
