"""Rules for personal data: kinds of use, and dates of destruction. Pure."""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from services.common.errors import InvalidField
from services.common.privacy.grounds import RecordKind
from services.registry.domain.records import EndReason, Order, OrderType, Wearer, WearerEndReason

DAY_MS = 86_400_000
KEPT_AFTER_END_MS = (5 * 365 + 2) * DAY_MS
"""How long data is kept after its end, milliseconds: 5 years (Tag Act 31-8(4) item 3). 5 years have at most two leap days."""
CORRECTABLE_MS = 30 * DAY_MS
"""How long an end that is recorded late can be corrected before the data is destroyed, milliseconds."""


class Deed(Enum):
    """Kind of use of personal data, as a row of the ledger states it."""

    READ = "READ"
    SHARED = "SHARED"
    SHARE_ENDED = "SHARE_ENDED"
    """End of a share that lasted for a time."""
    DESTROYED = "DESTROYED"
    NOTIFIED = "NOTIFIED"
    """The Ministry notified a protected person of the wearer, or gave a location with the notice."""


_LAPSED = (EndReason.NON_PROSECUTION, EndReason.ACQUITTAL)
_ARTICLES = {
    OrderType.STALKING_APPROACH: "STALKING_9_1_2",
    OrderType.STALKING_TELECOM: "STALKING_9_1_3",
    OrderType.STALKING_TAG: "STALKING_9_1_3_2",
    OrderType.POLICE_EMERGENCY: "STALKING_4",
    OrderType.DV_TEMPORARY: "DV_29_1",
    OrderType.DV_PROTECTION: "DV_PROTECTION",
    OrderType.STALKING_PROTECTION: "STALKING_17_6",
    OrderType.STALKING_INTERIM: "STALKING_17_7",
    OrderType.TAG_CONDITION: "TAG_9_2_1_3",
}
"""Code of the article on which each type of order rests."""


def article_of(order: Order) -> str:
    """Code of the article on which an order rests; empty if it states no type."""
    return _ARTICLES[order.type] if order.type else ""


def destroy_at_ms(ends_ms: int, recorded_ms: int, *, at_once: bool) -> int:
    """When a record that ended at `ends_ms` is destroyed, milliseconds of mesh time. `recorded_ms` is when the end was recorded.

    At once where the law says so (`ground_fell`, `lapsed`). Otherwise 5 years after the end, but not within 30 days of its recording,
    so that a mistyped year can be corrected while there is something to correct.
    """
    return ends_ms if at_once else max(ends_ms + KEPT_AFTER_END_MS, recorded_ms + CORRECTABLE_MS)


def ground_fell(order: Order) -> bool:
    """Whether an order's record is destroyed at once: an order of item 3-2 that lapsed without prosecution or by an acquittal.

    Tag Act 31-8(4) items 1 and 2 require that of the data of such a tag alone; the order's record joins them with the wearer (our
    reading). No article requires it of orders of another type, or of an order that states no type.
    """
    return order.type is OrderType.STALKING_TAG and order.end is not None and order.end.reason in _LAPSED


def lapsed(wearer: Wearer) -> bool:
    """Whether a wearer's record is destroyed at once: item 3-2 lapsed, or an acquittal (Tag Act 31-8(4) items 1 and 2)."""
    return wearer.end is not None and wearer.end.reason in (WearerEndReason.LAPSED, WearerEndReason.ACQUITTAL)


# ── what a published disclosure names ────────────────────────────────────────────────────────────────────────────────


class NamedRecord(NamedTuple):
    """A record that a disclosure names."""

    field: str
    """Field of the disclosure that names it."""
    kind: RecordKind
    record_id: str


@dataclass(frozen=True, slots=True)
class NamedIds:
    """What a disclosure names."""

    records: tuple[NamedRecord, ...]
    incident_id: str
    """Empty if it names no incident, or one of a canary, which plays no part in the ledger."""


@dataclass(frozen=True, slots=True)
class KnownIds:
    """What the registry knows of the ids that disclosures name."""

    records: Mapping[RecordKind, Container[str]]
    """Ids of records that are stored, or were and are destroyed, by kind."""
    incidents: Container[str] | None
    """Ids of incidents that an alert has opened; None if the alerts aren't read."""


def first_unknown(named: NamedIds, known: KnownIds) -> InvalidField | None:
    """The first thing that a disclosure names and the registry doesn't know; None if it knows all of them."""
    for record in named.records:
        if record.record_id not in known.records.get(record.kind, ()):
            return InvalidField(record.field, f"names no {record.kind.value} that is or was stored")
    if named.incident_id and known.incidents is not None and named.incident_id not in known.incidents:
        return InvalidField("reference", "names no incident that an alert has opened")
    return None
