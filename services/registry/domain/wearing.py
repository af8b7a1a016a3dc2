"""Records of officers about the wearing of tags: what may be recorded, and the periods that follow for a joint case. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import Enum
from typing import assert_never

from services.common import times
from services.common.errors import FailedPrecondition, InvalidField
from services.registry.domain.records import CLOCKS_DIFFER_MS

FIT_WITHIN_MS = 86_400_000
"""Time for the fitting of a tag if the record of the order doesn't give the court's time."""
MAX_GOOD_CAUSE_MS = 30 * 86_400_000
"""Longest time ahead for which good cause may be recorded. A longer cause is recorded once more."""
MAX_REMOVAL_MS = 92 * 86_400_000
"""Longest authorised removal: 3 months, as for a journey abroad (Tag Act Decree 12(5))."""
MAX_AFTERWARDS_MS = 86_400_000
"""How far back a removal may begin that is reported afterwards (Decree 10(1), proviso: without delay)."""
KEPT_IN_CASES_MS = 86_400_000
"""How long a period stays in the snapshots of the joint cases after its end: a strap may report its opening late."""


@dataclass(frozen=True, slots=True)
class Period:
    """A period that an officer recorded: good cause for a missing tag, or an authorised removal of a tag."""

    record_id: str
    from_ms: int
    until_ms: int
    """Exclusive end, milliseconds since 1970 UTC."""
    device_id: str = ""
    """The tag that may be removed; empty for good cause."""


@dataclass(frozen=True, slots=True)
class WearingDuty:
    """The duty of the respondent of an order of item 3-2 to be fitted with a tag, and to wear it."""

    fit_by_ms: int
    refused_ms: int | None
    """When the respondent refused to be fitted; None if no refusal is recorded."""
    good_causes: tuple[Period, ...]
    """In ascending order."""


class TagRecordKind(Enum):
    """Kinds of record about a tag."""

    REFUSAL = "REFUSAL"
    GOOD_CAUSE = "GOOD_CAUSE"
    REMOVAL = "REMOVAL"


@dataclass(frozen=True, slots=True, kw_only=True)
class TagRecord:
    """A record about a tag, without its reason, which is stored encrypted."""

    record_id: str
    kind: TagRecordKind
    wearer_id: str
    order_id: str = ""
    """Order of item 3-2; empty for a removal."""
    device_id: str = ""
    """Tag that may be removed; empty for other kinds."""
    from_ms: int
    """Start; for a refusal, when it happened. Milliseconds since 1970 UTC."""
    until_ms: int | None = None
    """Exclusive end; None for a refusal."""
    allowed_by: str = ""
    """Who allowed the removal."""
    afterwards: bool = False
    """Whether a removal was reported afterwards, because there was no time for an approval."""
    recorded_by: str
    """SPIFFE id of the caller who recorded it."""
    recorded_ms: int
    """When it was recorded, mesh time."""
    ended_ms: int | None = None
    """When a removal ended early; None if it didn't."""
    ended_by: str = ""

    @property
    def end_ms(self) -> int | None:
        """The exclusive end, early or not; None for a refusal."""
        return self.until_ms if self.ended_ms is None else self.ended_ms

    @property
    def period(self) -> Period | None:
        """The period of good cause or of a removal; None for a refusal, and for a removal that was cancelled before it began."""
        if self.end_ms is None or self.end_ms <= self.from_ms:
            return None
        return Period(record_id=self.record_id, from_ms=self.from_ms, until_ms=self.end_ms, device_id=self.device_id)


# ── checks ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def check_tag_record(record: TagRecord) -> None:
    """Checks the times of a new record against the moment at which it is recorded. Raises InvalidField."""
    match record.kind:
        case TagRecordKind.REFUSAL:
            if record.from_ms > record.recorded_ms + CLOCKS_DIFFER_MS:
                raise InvalidField("refused_at", "must not be in the future")
        case TagRecordKind.GOOD_CAUSE:
            _check_end(record, MAX_GOOD_CAUSE_MS, since_ms=record.recorded_ms, limit="30 days from now")
        case TagRecordKind.REMOVAL:
            _check_start(record)
            _check_end(record, MAX_REMOVAL_MS, since_ms=record.from_ms, limit="92 days after from")
        case _:
            assert_never(record.kind)


def _check_start(record: TagRecord) -> None:
    back_ms = record.recorded_ms - record.from_ms
    if record.afterwards and back_ms > MAX_AFTERWARDS_MS:
        raise InvalidField(
            "from", "must be at most 24 hours in the past: a removal is reported without delay (Decree 10(1))"
        )
    if not record.afterwards and back_ms > CLOCKS_DIFFER_MS:
        raise InvalidField(
            "from",
            "is in the past, and a removal can't be dated back: leave it out to begin now, or set afterwards if there was no time for "
            "an approval (Decree 10(1), proviso)",
        )
    if back_ms < -MAX_REMOVAL_MS:
        raise InvalidField("from", "must be at most 92 days ahead")


def _check_end(record: TagRecord, greatest_ms: int, *, since_ms: int, limit: str) -> None:
    until_ms = record.until_ms
    if until_ms is None:
        raise InvalidField("until", "is missing")
    if until_ms <= record.from_ms:
        raise InvalidField("until", "must be later than from (example: from 10:00, until 12:00)")
    if until_ms <= record.recorded_ms:
        raise InvalidField("until", "must be in the future: what is over needs no permission")
    if until_ms > since_ms + greatest_ms:
        raise InvalidField("until", f"must be at most {limit}")


def check_overlaps(record: TagRecord, others: Iterable[TagRecord]) -> None:
    """Raises InvalidField if a removal overlaps another one of the same tag."""
    for other in others:
        period = other.period if other.device_id == record.device_id else None
        if period and record.until_ms and record.from_ms < period.until_ms and period.from_ms < record.until_ms:
            raise InvalidField(
                "from",
                f"overlaps the removal {period.record_id}, {times.to_rfc3339(period.from_ms)} until "
                f"{times.to_rfc3339(period.until_ms)}: begin at its end, or end it first",
            )


def ended_removal(record: TagRecord, ended_ms: int, by: str, *, now_ms: int) -> TagRecord:
    """A removal with its early end. Raises InvalidField or FailedPrecondition.

    The end can't be dated back: until it was recorded, an open strap was judged by the permission.
    """
    if record.kind is not TagRecordKind.REMOVAL:
        raise InvalidField("record_id", "must be the id of a removal")
    if record.ended_ms is not None:
        raise FailedPrecondition("record_id: this removal has another early end already")
    if record.until_ms is not None and ended_ms > record.until_ms:
        raise InvalidField("ended_at", "must not be later than the end of the removal; allow another one instead")
    if ended_ms > now_ms + CLOCKS_DIFFER_MS:
        raise InvalidField("ended_at", "must not be in the future")
    if record.until_ms is not None and record.until_ms <= now_ms:
        raise FailedPrecondition("record_id: this removal is over, so it can't end early any more")
    if ended_ms < now_ms - CLOCKS_DIFFER_MS:
        raise InvalidField(
            "ended_at",
            "is in the past, and the end of a removal can't be dated back, as the permission counted until now: send the present time",
        )
    if record.from_ms < now_ms and ended_ms <= record.from_ms:
        raise InvalidField("ended_at", "must be later than from, as the removal has begun: send the present time")
    return replace(record, ended_ms=ended_ms, ended_by=by)


# ── what follows for a joint case ────────────────────────────────────────────────────────────────────────────────────


def periods_of(records: Iterable[TagRecord], kind: TagRecordKind, now_ms: int) -> tuple[Period, ...]:
    """The periods of the records of a kind that last, are ahead, or ended within a day, in ascending order."""
    periods = (record.period for record in records if record.kind is kind)
    kept = (period for period in periods if period and period.until_ms > now_ms - KEPT_IN_CASES_MS)
    return tuple(sorted(kept, key=lambda period: (period.from_ms, period.record_id)))
