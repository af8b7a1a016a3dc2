"""Life cycle of an order: legal maximum durations, warnings about implausible records, extensions, ends and versions. Pure."""

from __future__ import annotations

import calendar
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from enum import Enum

from services.common import times
from services.common.errors import Conflict, FailedPrecondition, InvalidField
from services.registry.domain.records import (
    CLOCKS_DIFFER_MS,
    MAX_EXTENSIONS,
    EndReason,
    Order,
    OrderEnd,
    OrderType,
    Respondent,
)

_KOREA_MS = 9 * 3_600_000
"""Offset of Korean time from UTC, milliseconds. Korea has no summer time, and the law counts periods on its calendar."""
_MONTH_MS = 31 * 86_400_000
_YEAR_MS = 366 * 86_400_000
_CHECK_WEIGHTS = (2, 3, 4, 5, 6, 7, 8, 9, 2, 3, 4, 5)


@dataclass(frozen=True, slots=True)
class Limit:
    """Maximum duration of a type of order."""

    first_months: int
    """Maximum duration when the order is issued, months."""
    extension_months: int = 0
    """Additional duration of each extension, months."""
    extensions: int = 0
    """Maximum number of extensions."""


_THREE_TIMES_THREE = Limit(3, 3, 2)

LIMITS: Mapping[OrderType, Limit | None] = {
    OrderType.STALKING_APPROACH: _THREE_TIMES_THREE,  # Stalking Punishment Act 9(1) item 2
    OrderType.STALKING_TELECOM: _THREE_TIMES_THREE,  # Stalking Punishment Act 9(1) item 3
    OrderType.STALKING_TAG: _THREE_TIMES_THREE,  # Stalking Punishment Act 9(1) item 3-2
    OrderType.POLICE_EMERGENCY: Limit(1),  # Stalking Punishment Act 4
    OrderType.DV_TEMPORARY: Limit(2, 2, 2),  # Domestic Violence Act 29 items 1 to 3
    OrderType.DV_PROTECTION: Limit(12, 2, 12),  # Domestic Violence Act, victim protection order: 3 years in all
    OrderType.STALKING_PROTECTION: _THREE_TIMES_THREE,  # Stalking Punishment Act 17-6
    OrderType.TAG_CONDITION: None,  # Electronic Monitoring Act 9-2(1) item 3: by judgment
    OrderType.STALKING_INTERIM: None,  # Stalking Punishment Act 17-7: until the decision
}
"""Maximum durations by law; None if a judgment or decision sets the duration."""
PROTECTION_FROM_MS = 1_808_319_600_000
"""When Stalking Punishment Act 17-6 and 17-7 come into force (Act 21556): 2027-04-22T00:00:00+09:00."""
IN_FORCE_FROM_MS: Mapping[OrderType, int] = {
    OrderType.STALKING_PROTECTION: PROTECTION_FROM_MS,
    OrderType.STALKING_INTERIM: PROTECTION_FROM_MS,
}
"""When the article of a type comes into force. Types that aren't listed always have been in force."""
WITHOUT_END = frozenset({OrderType.STALKING_INTERIM})
"""Types whose orders may have no end: they are valid until the court decides."""
_DECISIONS = {
    EndReason.COVERED_BY_COURT_ORDER: (
        OrderType.POLICE_EMERGENCY,
        "COVERED_BY_COURT_ORDER applies only to an emergency measure of the police (POLICE_EMERGENCY)",
    ),
    EndReason.DECIDED: (
        OrderType.STALKING_INTERIM,
        "DECIDED applies only to an interim protection order (STALKING_INTERIM)",
    ),
}
"""Reasons by which a court order takes over: the type of order that may end so, and the error for other types."""


class OrderStage(Enum):
    """Stage of an order's life cycle."""

    ISSUED = "ISSUED"
    EXTENDED = "EXTENDED"
    AMENDED = "AMENDED"
    CANCELLED = "CANCELLED"
    LAPSED = "LAPSED"


@dataclass(frozen=True, slots=True)
class ReplacedOrder:
    """An interim protection order from which a deciding order takes over."""

    order_id: str
    source_version: int
    """The agency's version of the ended record."""


@dataclass(frozen=True, slots=True)
class RecordWarning:
    """Possible mistake in a record. The record is stored unchanged."""

    field: str
    reason: str


def stage_of(before: Order | None, order: Order) -> OrderStage:
    """Stage that a new record gives an order, compared with the stored order `before`."""
    if order.end is not None:
        cancelled = order.end.reason in (EndReason.CANCELLED_BY_COURT, EndReason.CANCELLED_BY_POLICE)
        return OrderStage.CANCELLED if cancelled else OrderStage.LAPSED
    if before is None:
        return OrderStage.ISSUED
    lasts_longer = before.valid_until_ms is not None and (
        order.valid_until_ms is None or order.valid_until_ms > before.valid_until_ms
    )
    return OrderStage.EXTENDED if lasts_longer or order.extensions > before.extensions else OrderStage.AMENDED


def ended(order: Order, end: OrderEnd, source_version: int, *, covering: Order | None) -> Order:
    """The order with its early end; `covering` is the stored order that the request names as its replacement.

    Raises InvalidField if the reason doesn't fit the order.
    """
    if end.reason in _DECISIONS:
        order_type, error_text = _DECISIONS[end.reason]
        if order.type is not order_type:
            raise InvalidField("reason", error_text)
        if covering is None:
            raise InvalidField("covering_order_id", "no such order")
        if covering.type in (OrderType.POLICE_EMERGENCY, order_type) or covering.order_id == order.order_id:
            raise InvalidField("covering_order_id", "must be the id of another order that a court issued")
        if end.reason is EndReason.DECIDED:
            _require_takeover(order, end, covering)
    return replace(order, end=end, source_version=source_version)


def _require_takeover(order: Order, end: OrderEnd, covering: Order) -> None:
    """Raises InvalidField unless the deciding order takes over from an interim order without a gap."""
    if not _is_same_person(order.respondent, covering.respondent):
        raise InvalidField("covering_order_id", "must be the id of an order against the same respondent")
    if end.at_ms != covering.valid_from_ms:
        raise InvalidField(
            "ended_at", "must be the valid_from of the covering order, so that it takes over without a gap"
        )
    if end.at_ms <= order.valid_from_ms:
        raise InvalidField("ended_at", "must be later than the valid_from of the interim protection order")


def _is_same_person(respondent: Respondent, other: Respondent) -> bool:
    if respondent.national_id and other.national_id:
        return respondent.national_id == other.national_id
    return (respondent.name, respondent.birth_date) == (other.name, other.birth_date)


def check_type(order: Order) -> None:
    """Raises InvalidField if the law knows no such order: its article isn't in force then, it needs an end, or it has no duty to wear
    a tag."""
    in_force_from_ms = IN_FORCE_FROM_MS.get(order.type, times.MIN_MS) if order.type else times.MIN_MS
    if order.valid_from_ms < in_force_from_ms:
        raise InvalidField(
            "type",
            "this type is in force from 2027-04-22T00:00:00+09:00 (Stalking Punishment Act 17-6 and 17-7), so no order of it can be "
            "valid before",
        )
    if order.valid_until_ms is None and order.type not in WITHOUT_END:
        raise InvalidField(
            "valid_until", "is missing: only an interim protection order (STALKING_INTERIM) may have no end"
        )
    if order.valid_until_ms is not None and order.valid_until_ms <= order.valid_from_ms:
        raise InvalidField("valid_until", "must be later than valid_from")
    if order.fit_by_ms is not None:
        if order.type is not OrderType.STALKING_TAG:
            raise InvalidField("fit_by", "must be absent unless the type is STALKING_TAG")
        if order.fit_by_ms < order.valid_from_ms:
            raise InvalidField("fit_by", "must not be earlier than valid_from")


def duration_warnings(order: Order) -> tuple[RecordWarning, ...]:
    """Warnings about an order's duration; none if the agency states a reason for it."""
    limit = LIMITS[order.type] if order.type else None
    if limit is None or order.duration_reason:
        return ()
    warnings = []
    if order.extensions > limit.extensions:
        reason = f"it may be extended {limit.extensions} times at the most"
        warnings.append(RecordWarning("extensions", f"{reason}; give duration_reason where this is right"))
    months = limit.first_months + min(order.extensions, limit.extensions) * limit.extension_months
    if order.valid_until_ms is not None and order.valid_until_ms > add_months(order.valid_from_ms, months):
        reason = f"lasts longer than the {months} months that the law allows with {order.extensions} extensions"
        warnings.append(RecordWarning("valid_until", f"{reason}; give duration_reason where this is right"))
    return tuple(warnings)


def add_months(moment_ms: int, months: int) -> int:
    """The same day and time on the Korean calendar `months` later, or the last day of that month if it lacks the day."""
    if moment_ms > times.MAX_MS - (months + 1) * _MONTH_MS:
        return times.MAX_MS
    moment = datetime.fromtimestamp(0, UTC) + timedelta(milliseconds=moment_ms + _KOREA_MS)
    years, month = divmod(moment.year * 12 + moment.month - 1 + months, 12)
    day = min(moment.day, calendar.monthrange(years, month + 1)[1])
    later = moment.replace(year=years, month=month + 1, day=day) - datetime.fromtimestamp(0, UTC)
    return later // timedelta(milliseconds=1) - _KOREA_MS


def end_warnings(field: str, end_ms: int, now_ms: int) -> tuple[RecordWarning, ...]:
    """Warning about an end that lies more than a year back: its year may be mistyped, and the time of the data counts from it."""
    if end_ms >= now_ms - _YEAR_MS:
        return ()
    reason = "lies more than a year back: if the year is mistyped, send it with a greater version before the data is destroyed"
    return (RecordWarning(field, reason),)


def check_happened(field: str, end_ms: int, now_ms: int) -> None:
    """Raises InvalidField if a removal or end lies in the future, so that nothing ends before its time."""
    if end_ms > now_ms + CLOCKS_DIFFER_MS:
        raise InvalidField(field, "must not be in the future: send it once it has happened")


def number_warnings(field: str, national_id: str) -> tuple[RecordWarning, ...]:
    """Warning about a wrong check digit. This isn't an error, because numbers since October 2020 have no check digit."""
    if not national_id:
        return ()
    total = sum(int(digit) * weight for digit, weight in zip(national_id, _CHECK_WEIGHTS, strict=False))
    if (11 - total % 11) % 10 == int(national_id[12]):
        return ()
    return (RecordWarning(field, "the check digit fails, which only numbers issued since October 2020 may"),)


@dataclass(frozen=True, slots=True)
class OrderExtension:
    """An extension as the police's clerk states it."""

    order_id: str
    source_version: int
    """The agency's version of the extended record."""
    valid_until_ms: int
    """New end of the order's validity, exclusive, milliseconds since 1970 UTC."""
    duration_reason: str = field(default="", repr=False)
    """Reason why the order lasts longer than its type allows; empty keeps the stored one."""


def extended(order: Order, extension: OrderExtension) -> Order:
    """The order as it is after its extension; the order itself if it has this extension already.

    Raises FailedPrecondition if the order was ended early, has no end, or has no extension left; InvalidField if it wouldn't end later.
    """
    reason = extension.duration_reason or order.duration_reason
    stated = (extension.source_version, extension.valid_until_ms, reason)
    if stated == (order.source_version, order.valid_until_ms, order.duration_reason):
        return order
    if order.end is not None:
        raise FailedPrecondition(
            "order_id: the order was ended early: a greater version of its whole record reopens it"
        )
    if order.valid_until_ms is None:
        raise FailedPrecondition("order_id: the order is valid until the court decides, so it can't be extended")
    if order.extensions >= MAX_EXTENSIONS:
        raise FailedPrecondition(f"order_id: the order was extended {MAX_EXTENSIONS} times, which is the maximum")
    # An older version is stored by nobody, whatever it says: the outcome is SUPERSEDED.
    if extension.source_version > order.source_version and extension.valid_until_ms <= order.valid_until_ms:
        raise InvalidField("valid_until", "must be later than the stored end of the order")
    return replace(
        order,
        valid_until_ms=extension.valid_until_ms,
        extensions=order.extensions + 1,
        duration_reason=reason,
        source_version=extension.source_version,
    )


class PutOutcome(Enum):
    """Result of putting a record."""

    STORED = "STORED"
    UNCHANGED = "UNCHANGED"
    SUPERSEDED = "SUPERSEDED"


def decide_put(stored_version: int | None, stored_digest: bytes | None, version: int, *, digest: bytes) -> PutOutcome:
    """Decide whether to store a record of this version and digest. A stored version of None means that nothing is stored.

    Raises Conflict if the same version is stored with different content.
    """
    if stored_version is None or version > stored_version:
        return PutOutcome.STORED
    if version < stored_version:
        return PutOutcome.SUPERSEDED
    if digest != stored_digest:
        raise Conflict(
            f"version {version} of this record is stored with different content; send a change with a greater version"
        )
    return PutOutcome.UNCHANGED
