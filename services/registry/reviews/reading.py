"""Reads both records of a review for a person who has to decide it: a disclosure, with a row of the ledger for each record."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import sqlalchemy as sa

from services.common.clock import MeshClock
from services.common.errors import InvalidField
from services.common.privacy.grounds import Purpose, RecordKind, check_grounds
from services.common.rpc.identity import Caller
from services.registry.disclosure.service import DisclosedRecord, Disclosures
from services.registry.domain.cases import MatchPair
from services.registry.domain.disclosure import article_of
from services.registry.domain.reviews import (
    Consequences,
    Decision,
    Event,
    MatchEvidence,
    PairHistoryEntry,
    Related,
    Review,
    ReviewedField,
    ReviewState,
    agreements_from_json,
    changed_agreements,
    consequences_of,
    reviewed_fields,
)
from services.registry.keys import DataKey, Vault
from services.registry.records.kinds import DEVICES, ORDERS, TAGS, WEARERS
from services.registry.reviews.service import decision_owner, pair_of
from services.registry.tables import cases, data_keys, match_events, review_comparisons, review_decisions, reviews
from services.registry.working_set.working_set import WorkingSet

HISTORY_MAX = 200
"""Maximum number of entries of each kind in a history; the newest are kept."""
_DECIDING = (Event.CONFIRMED, Event.REJECTED, Event.UNDONE)
"""Events that the decisions tell with more detail."""


@dataclass(frozen=True, slots=True)
class ReviewWithRecords:
    """A review with both records, as one role may see them."""

    review: Review
    fields: list[ReviewedField]
    history: list[PairHistoryEntry]
    consequences: Consequences


class ReviewReading:
    """Reads reviews with their records."""

    def __init__(self, disclosures: Disclosures, vault: Vault, clock: MeshClock) -> None:
        self._disclosures = disclosures
        self._vault = vault
        self._clock = clock

    async def read(self, who: Caller, legal_basis: str, case_id: str) -> tuple[ReviewWithRecords, list[str]]:
        """A review with both records, and the ids of the rows in the ledger. Raises InvalidField, NotFound.

        The legal basis must be the order's own article. For an order without a type, any article that allows to read both records.
        """
        now_ms = self._clock.now_ms()
        check_grounds(legal_basis, Purpose.MATCH_REVIEW, case_id, kind=RecordKind.WEARER, now_ms=now_ms)
        grounds = check_grounds(legal_basis, Purpose.MATCH_REVIEW, case_id, kind=RecordKind.ORDER, now_ms=now_ms)

        def reading(connection: sa.Connection) -> tuple[ReviewWithRecords, list[DisclosedRecord]]:
            working = WorkingSet(connection, self._vault)
            pair, review = pair_of(working, case_id)
            article = article_of(pair.order)
            if article and legal_basis != article:
                raise InvalidField("legal_basis", f"must be {article}, the article of the order")
            read = ReviewWithRecords(
                review=review,
                fields=reviewed_fields(
                    pair.order,
                    pair.wearer,
                    of_respondent=ORDERS.shows[who.role],
                    of_wearer=WEARERS.shows[who.role],
                ),
                history=_history(connection, self._vault, case_id),
                consequences=consequences_of(review, pair.order, _related(connection, working, pair, now_ms=now_ms)),
            )
            disclosed = [
                DisclosedRecord(ORDERS, pair.order.order_id),
                DisclosedRecord(WEARERS, pair.wearer.wearer_id),
            ]
            return read, disclosed

        return await self._disclosures.disclose(reading, who, grounds)


def _related(connection: sa.Connection, working: WorkingSet, pair: MatchPair, *, now_ms: int) -> Related:
    order_id = pair.order.order_id
    wearer_id = pair.wearer.wearer_id
    case_id = pair.case_id
    persons = pair.order.protected_person_ids
    equipped = {device.person_id for device in working.records.owned(DEVICES, persons) if device.removed_at_ms is None}
    in_force = sa.or_(cases.c.valid_until_ms.is_(None), cases.c.valid_until_ms > now_ms)
    held = sa.and_(cases.c.case_id != case_id, cases.c.withdrawn_at_ms.is_(None), in_force)
    waiting = sa.and_(
        reviews.c.case_id != case_id,
        reviews.c.state == ReviewState.OPEN.value,
        sa.or_(reviews.c.order_id == order_id, reviews.c.wearer_id == wearer_id),
    )

    def count(table: sa.Table, *conditions: sa.ColumnElement[bool]) -> int:
        return connection.scalar(sa.select(sa.func.count()).select_from(table).where(*conditions)) or 0

    return Related(
        tags=sum(tag.removed_at_ms is None for tag in working.records.owned(TAGS, [wearer_id])),
        persons_without_device=len(set(persons) - equipped),
        other_orders_of_wearer=count(cases, held, cases.c.wearer_id == wearer_id),
        other_wearers_of_order=count(cases, held, cases.c.order_id == order_id),
        other_open_reviews=count(reviews, waiting),
    )


def _history(connection: sa.Connection, vault: Vault, case_id: str) -> list[PairHistoryEntry]:
    """What happened to a pair, oldest first. Of the same moment, comparisons come first, then decisions, then events."""
    entries = [
        *_comparisons(connection, case_id),
        *_decisions(connection, vault, case_id),
        *_events(connection, case_id),
    ]
    return sorted(entries, key=attrgetter("at_ms"))


def _newest(connection: sa.Connection, number: sa.Column[Any], case_id: str) -> list[sa.Row[Any]]:
    """The newest rows of a pair, oldest first, in the table that the column `number` orders."""
    table = number.table
    statement = sa.select(table).where(table.c.case_id == case_id).order_by(number.desc()).limit(HISTORY_MAX)
    return list(reversed(connection.execute(statement).all()))


def _events(connection: sa.Connection, case_id: str) -> Iterator[PairHistoryEntry]:
    for row in _newest(connection, match_events.c.sequence, case_id):
        if (event := Event(row.event)) not in _DECIDING:
            yield PairHistoryEntry(at_ms=row.at_ms, event=event)


def _decisions(connection: sa.Connection, vault: Vault, case_id: str) -> Iterator[PairHistoryEntry]:
    rows = _newest(connection, review_decisions.c.id, case_id)
    owners = [decision_owner(case_id, row.at_ms).text for row in rows]
    keyed = connection.execute(sa.select(data_keys).where(data_keys.c.owner.in_(owners))).all()
    keys = {key.owner: DataKey(key.ring, key.wrapped) for key in keyed}
    for row, owner in zip(rows, owners, strict=True):
        reason = vault.unseal(owner, row.sealed_reason, keys[owner]).decode()
        yield PairHistoryEntry(
            at_ms=row.at_ms, decision=Decision(row.decision), decided_by=row.decided_by, reason=reason
        )


def _comparisons(connection: sa.Connection, case_id: str) -> Iterator[PairHistoryEntry]:
    rows = _newest(connection, review_comparisons.c.id, case_id)
    before: MatchEvidence | None = None
    for row in rows:
        after = MatchEvidence(b"", row.weight_bits, agreements_from_json(row.agreements))
        yield PairHistoryEntry(
            at_ms=row.at_ms,
            order_version=row.order_version,
            wearer_version=row.wearer_version,
            evidence=changed_agreements(before, after),
        )
        before = after
