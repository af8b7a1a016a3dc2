"""Joint cases and reviews in memory, and the wearers whom joint cases keep away from a person."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from sqlalchemy import Connection

from services.registry.cases.domain import StoredCase
from services.registry.cases.store import CaseUpdate
from services.registry.reviews import agreements
from services.registry.reviews.domain import MatchEvidence, Review, ReviewState
from services.registry.reviews.tables import reviews
from services.registry.working_set.cached_rows import CachedRows, Lookup
from services.registry.working_set.records import RecordRows

_FIRST_NEW_SEQUENCE = 1 << 62
"""Sequence of the first new case in memory, greater than all sequences in the database. The database numbers the new cases later."""


class SentCase(NamedTuple):
    """A changed joint case with its last snapshot."""

    case: StoredCase
    valid_until_ms: int | None
    entry: bytes
    """Snapshot, serialised as a log entry."""
    sent_day: int
    """Day of mesh time on which the snapshot is sent."""


class CaseRows:
    """The joint cases as one transaction sees them."""

    def __init__(self, connection: Connection, records: RecordRows) -> None:
        self._records = records
        self.rows = CachedRows[str, StoredCase](
            connection,
            "SELECT sequence, case_id, order_id, wearer_id, version, matched_at_ms, withdrawn_at_ms FROM cases WHERE",
            key=Lookup("case_id"),
            key_of=lambda case: case.case_id,
            parse=_stored_case,
            lookups={
                "order_id": (Lookup("order_id"), lambda case: case.order_id),
                "wearer_id": (Lookup("wearer_id"), lambda case: case.wearer_id),
            },
        )
        self.sent: dict[str, SentCase] = {}
        """Changed cases with their last snapshots, by case id."""
        self._new = itertools.count(_FIRST_NEW_SEQUENCE)

    def find(self, case_id: str) -> StoredCase | None:
        """A joint case by its id; None if there is none."""
        return self.rows.get((case_id,)).get(case_id)

    def of_wearers(self, wearer_ids: Collection[str]) -> list[StoredCase]:
        """Joint cases of these wearers, in the order of matching."""
        return sorted(self.rows.by("wearer_id", wearer_ids), key=lambda case: case.sequence)

    def of_orders(self, order_ids: Collection[str]) -> list[StoredCase]:
        """Joint cases of these orders, in the order of matching."""
        return sorted(self.rows.by("order_id", order_ids), key=lambda case: case.sequence)

    def of_person(self, person_id: str) -> list[StoredCase]:
        """Joint cases whose order protects a person, in the order of matching."""
        return self.of_orders([row.order_id for row in self._records.persons.by("person_id", (person_id,))])

    def kept_away(self, person_ids: Collection[str], *, without: Collection[str]) -> dict[str, set[str]]:
        """Ids of the wearers whom joint cases keep away from these persons, by person id.

        Withdrawn cases don't count, nor do the cases with the ids `without`.
        """
        named = self._records.persons.by("person_id", person_ids)
        cases: dict[str, list[StoredCase]] = defaultdict(list)
        for case in self.rows.by("order_id", {row.order_id for row in named}):
            cases[case.order_id].append(case)
        found: dict[str, set[str]] = defaultdict(set)
        for order_id, person_id in named:
            for case in cases.get(order_id, ()):
                if case.withdrawn_at_ms is None and case.case_id not in without:
                    found[person_id].add(case.wearer_id)
        return found

    def put(self, updates: Iterable[CaseUpdate], entries: Mapping[str, bytes], day: int) -> None:
        """Put joint cases. `entries` are their snapshots by case id, and `day` is the day of mesh time on which they are sent."""
        for update in updates:
            case = replace(update.case, sequence=next(self._new)) if update.is_new else update.case
            self.rows.put(case)
            entry = entries[case.case_id]
            self.sent[case.case_id] = SentCase(case, update.valid_until_ms, entry, sent_day=day)


class ReviewRows:
    """The reviews as one transaction sees them."""

    def __init__(self, connection: Connection) -> None:
        self.rows = CachedRows[str, Review](
            connection,
            f"SELECT {', '.join(reviews.c.keys())} FROM reviews WHERE",  # noqa: S608  # names of the code's own table
            key=Lookup("case_id"),
            key_of=lambda review: review.case_id,
            parse=_review,
            lookups={
                "order_id": (Lookup("order_id"), lambda review: review.order_id),
                "wearer_id": (Lookup("wearer_id"), lambda review: review.wearer_id),
            },
        )

    def some(self, case_ids: Iterable[str]) -> dict[str, Review]:
        """Reviews by case id. Cases without a review are omitted."""
        return self.rows.get(case_ids)

    def of_wearer(self, wearer_id: str) -> list[Review]:
        """Reviews of a wearer."""
        return self.rows.by("wearer_id", (wearer_id,))

    def of_order(self, order_id: str) -> list[Review]:
        """Reviews of an order."""
        return self.rows.by("order_id", (order_id,))

    def put(self, changed: Iterable[Review]) -> None:
        """Put reviews. A review replaces the review of the same case."""
        for review in changed:
            self.rows.put(review)


def _stored_case(row: Sequence[Any]) -> StoredCase:
    sequence, case_id, order_id, wearer_id, version, matched_at_ms, withdrawn_at_ms = row
    return StoredCase(
        sequence=sequence,
        case_id=case_id,
        order_id=order_id,
        wearer_id=wearer_id,
        version=version,
        matched_at_ms=matched_at_ms,
        withdrawn_at_ms=withdrawn_at_ms,
    )


def _review(row: Sequence[Any]) -> Review:
    values = dict(zip(reviews.c.keys(), row, strict=True))
    evidence = MatchEvidence(bytes(values["evidence"]), values["weight_bits"], agreements.parse(values["agreements"]))
    return Review(
        case_id=values["case_id"],
        order_id=values["order_id"],
        wearer_id=values["wearer_id"],
        state=ReviewState(values["state"]),
        enforced=bool(values["enforced"]),
        evidence=evidence,
        since_ms=values["since_ms"],
        decided_by=values["decided_by"],
        paged_at_ms=values["paged_at_ms"],
        legal_basis=values["legal_basis"],
    )
