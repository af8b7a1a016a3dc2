"""Life cycle of an order: maximum durations, ends, stages, check digits and the service area."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

import pytest

from services.common import times
from services.common.errors import InvalidField
from services.registry.domain import lifecycle
from services.registry.domain.cases import build_case
from services.registry.domain.lifecycle import OrderStage
from services.registry.domain.records import EndReason, Order, OrderEnd, OrderType
from services.registry.records import places, translate
from services.registry.records.places import AREAS
from tandem.registry.v1 import registry_pb2
from tests.support.registry import records

ORDER = translate.parse_order(records.order())
UNTIL_MS = records.order().valid_until.seconds * 1000


def ms(text: str) -> int:
    """Milliseconds since 1970 UTC of a time in Korea."""
    return round(datetime.fromisoformat(f"{text}+09:00").timestamp() * 1000)


def order(kind: OrderType | None, until: str, extensions: int = 0, start: str = "2026-03-10T09:30:00") -> Order:
    return replace(ORDER, type=kind, valid_from_ms=ms(start), valid_until_ms=ms(until), extensions=extensions)


@pytest.mark.parametrize(
    ("kind", "extensions", "greatest"),
    [
        (OrderType.STALKING_APPROACH, 0, "2026-06-10T09:30:00"),
        (OrderType.STALKING_TELECOM, 1, "2026-09-10T09:30:00"),
        (OrderType.STALKING_TAG, 2, "2026-12-10T09:30:00"),
        (OrderType.POLICE_EMERGENCY, 0, "2026-04-10T09:30:00"),
        (OrderType.DV_TEMPORARY, 0, "2026-05-10T09:30:00"),
        (OrderType.DV_TEMPORARY, 2, "2026-09-10T09:30:00"),
        (OrderType.DV_PROTECTION, 0, "2027-03-10T09:30:00"),
        (OrderType.DV_PROTECTION, 12, "2029-03-10T09:30:00"),
        (OrderType.STALKING_PROTECTION, 2, "2026-12-10T09:30:00"),
    ],
)
def test_the_maximum_duration_is_accepted_and_one_second_more_gives_a_warning(
    kind: OrderType, extensions: int, greatest: str
) -> None:
    longest = order(kind, greatest, extensions)
    assert lifecycle.duration_warnings(longest) == ()
    longer = replace(longest, valid_until_ms=ms(greatest) + 1000)
    (warned,) = lifecycle.duration_warnings(longer)
    assert warned.field == "valid_until"
    assert lifecycle.duration_warnings(replace(longer, duration_reason="the court says so")) == ()


def test_every_type_has_its_limit_and_a_condition_by_judgment_has_none() -> None:
    assert set(lifecycle.LIMITS) == set(OrderType)
    assert lifecycle.duration_warnings(order(OrderType.TAG_CONDITION, "2036-03-10T09:30:00")) == ()
    assert lifecycle.duration_warnings(order(None, "2036-03-10T09:30:00")) == ()


def test_one_extension_too_many_gives_a_warning() -> None:
    warned = lifecycle.duration_warnings(order(OrderType.POLICE_EMERGENCY, "2026-04-10T09:30:00", 1))
    assert [warning.field for warning in warned] == ["extensions"]


@pytest.mark.parametrize(
    ("start", "months", "end"),
    [
        ("2026-01-31T08:00:00", 1, "2026-02-28T08:00:00"),
        ("2027-11-30T23:59:59", 3, "2028-02-29T23:59:59"),
        # In UTC this is the last day of the previous month.
        ("2026-03-01T00:30:00", 1, "2026-04-01T00:30:00"),
    ],
)
def test_months_are_counted_on_the_korean_calendar(start: str, months: int, end: str) -> None:
    assert lifecycle.add_months(ms(start), months) == ms(end)


def test_adding_months_never_exceeds_the_range_of_times() -> None:
    assert lifecycle.add_months(times.MAX_MS, 36) == times.MAX_MS
    assert lifecycle.add_months(times.MIN_MS, 1) > times.MIN_MS


def test_an_order_is_issued_extended_amended_cancelled_and_lapses() -> None:
    assert lifecycle.stage_of(None, ORDER) is OrderStage.ISSUED
    later = replace(ORDER, valid_until_ms=UNTIL_MS + 1)
    assert lifecycle.stage_of(ORDER, later) is OrderStage.EXTENDED
    assert lifecycle.stage_of(ORDER, replace(ORDER, extensions=1)) is OrderStage.EXTENDED
    assert lifecycle.stage_of(later, ORDER) is OrderStage.AMENDED
    stages = {
        EndReason.CANCELLED_BY_COURT: OrderStage.CANCELLED,
        EndReason.CANCELLED_BY_POLICE: OrderStage.CANCELLED,
        EndReason.COVERED_BY_COURT_ORDER: OrderStage.LAPSED,
        EndReason.NON_PROSECUTION: OrderStage.LAPSED,
        EndReason.ACQUITTAL: OrderStage.LAPSED,
        EndReason.DECIDED: OrderStage.LAPSED,
    }
    assert set(stages) == set(EndReason)
    for reason, stage in stages.items():
        assert lifecycle.stage_of(ORDER, replace(ORDER, end=OrderEnd(reason, 5))) is stage


def test_a_court_order_can_cover_only_an_emergency_measure_of_the_police() -> None:
    end = OrderEnd(EndReason.COVERED_BY_COURT_ORDER, ORDER.valid_from_ms + 5, "o-court")
    measure = replace(ORDER, type=OrderType.POLICE_EMERGENCY)
    court = replace(ORDER, order_id="o-court", type=OrderType.STALKING_APPROACH)
    assert lifecycle.ended(measure, end, 9, covering=court) == replace(measure, end=end, source_version=9)
    for before, covering, field in (
        (ORDER, court, "reason"),
        (measure, None, "covering_order_id"),
        (measure, replace(court, type=OrderType.POLICE_EMERGENCY), "covering_order_id"),
    ):
        with pytest.raises(InvalidField) as refusal:
            lifecycle.ended(before, end, 9, covering=covering)
        assert refusal.value.field == field


@pytest.mark.parametrize(
    ("at_ms", "ends_ms"),
    [
        (1_700_000_000_123, 1_700_000_000_123),
        (1_000_000_000_000, 1_600_000_000_001),
        (5_000_000_000_000, 4_000_000_000_000),
    ],
)
def test_an_early_end_is_exact_to_the_millisecond(at_ms: int, ends_ms: int) -> None:
    ended = replace(ORDER, end=OrderEnd(EndReason.ACQUITTAL, at_ms))
    assert ended.ends_ms == ends_ms
    case = build_case(ended, translate.parse_wearer(records.wearer()), (), devices=())
    assert case.valid_until_ms == ends_ms


def test_a_wrong_check_digit_gives_a_warning() -> None:
    # 8*2 + 1*5 + 1*7 + 1*8 + 2*9 + 3*2 + 4*3 + 5*4 + 6*5 = 122; 122 mod 11 = 1; 11 - 1 = 10; its last digit is 0.
    assert [d for d in range(10) if not lifecycle.number_warnings("national_id", f"800101123456{d}")] == [0]
    (warned,) = lifecycle.number_warnings("national_id", "8001011234567")
    assert warned.field == "national_id" and "800101" not in warned.reason
    assert lifecycle.number_warnings("national_id", "") == ()


def test_places_outside_the_service_area_are_rejected_at_their_field() -> None:
    message = records.order()
    message.places.append(records.polygon((38.65, 127.0), (38.65, 127.1), (38.75, 127.05), place_id="school"))
    with pytest.raises(InvalidField) as refusal:
        places.check_area(translate.parse_order(message), AREAS["korea"])
    assert refusal.value.field == "places[1].polygon.vertices[2]"
    places.check_area(translate.parse_order(message), AREAS["world"])
    message = records.order()
    message.places[0].circle.lat_deg, message.places[0].circle.lon_deg = 39.98, 116.3
    with pytest.raises(InvalidField) as refusal:
        places.check_area(translate.parse_order(message), AREAS["korea"])
    assert refusal.value.field == "places[0].circle"


@pytest.mark.parametrize(
    ("lat_deg", "lon_deg"), [(37.5665, 126.978), (33.115, 126.267), (37.2417, 131.8653), (37.966, 124.63)]
)
def test_the_service_area_covers_the_whole_country(lat_deg: float, lon_deg: float) -> None:
    assert AREAS["korea"].holds(lat_deg, lon_deg)


def _end(**changes: object) -> registry_pb2.EndOrderRequest:
    request = registry_pb2.EndOrderRequest(
        order_id="o-1", source_version=2, reason=registry_pb2.END_REASON_NON_PROSECUTION
    )
    request.ended_at.seconds = 1_700_000_000
    request.MergeFrom(registry_pb2.EndOrderRequest(**changes))  # type: ignore[arg-type]
    return request


def test_an_end_is_parsed_or_rejected_at_its_field() -> None:
    assert translate.parse_order_end(_end()) == ("o-1", OrderEnd(EndReason.NON_PROSECUTION, 1_700_000_000_000), 2)
    without = {name: _end() for name in ("order_id", "reason", "ended_at")}
    for name, request in without.items():
        request.ClearField(name)  # type: ignore[arg-type]
    for field, request in (
        *without.items(),
        ("covering_order_id", _end(covering_order_id="o-2")),
        ("covering_order_id", _end(reason=registry_pb2.END_REASON_COVERED_BY_COURT_ORDER)),
        ("source_version", _end(source_version=-1)),
        ("reason", _end(reason=77)),
    ):
        with pytest.raises(InvalidField) as refusal:
            translate.parse_order_end(request)
        assert refusal.value.field == field


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        ("sex", {"sex": 9}),
        ("phone", {"phone": "1" * 41}),
        ("phone", {"phone": "010\n1"}),
        ("address", {"address": "x" * 401}),
    ],
)
def test_an_invalid_personal_field_is_rejected(field: str, changes: dict[str, object]) -> None:
    message = records.wearer()
    message.MergeFrom(registry_pb2.Wearer(**changes))  # type: ignore[arg-type]
    with pytest.raises(InvalidField) as refusal:
        translate.parse_wearer(message)
    assert refusal.value.field == field


def test_a_respondent_may_lack_a_number_and_a_wearer_may_not() -> None:
    assert translate.parse_order(records.order(national_id="")).respondent.national_id == ""
    with pytest.raises(InvalidField):
        translate.parse_wearer(records.wearer(national_id=""))
