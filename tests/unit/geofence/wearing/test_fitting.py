"""Fitting: the duty to be fitted with a tag by the court's time, and to keep one (Tag Act 31-6(2) and (4) item 1)."""

from __future__ import annotations

from typing import Any

import pytest

from services.common.errors import InvalidField
from services.geofence.domain import codec
from services.geofence.domain.demands import AlertKind, Leg
from services.geofence.domain.detectors import wearing
from services.geofence.domain.entries import Demand
from tandem.common.v1 import tag_duty_pb2
from tests.support.geofence.stories import T0_MS, Story

FIT_BY_S = 600
EXCHANGE_S = wearing.EXCHANGE_MS // 1000


def ms(at_s: float) -> int:
    return T0_MS + round(at_s * 1000)


def duty(refused_s: float | None = None, *causes: tuple[float, float]) -> tag_duty_pb2.TagDuty:
    return tag_duty_pb2.TagDuty(
        fit_by_ms=ms(FIT_BY_S),
        refused_at_ms=0 if refused_s is None else ms(refused_s),
        good_causes=[
            tag_duty_pb2.GoodCause(cause_id=f"c-{n}", from_ms=ms(from_s), until_ms=ms(until_s))
            for n, (from_s, until_s) in enumerate(causes)
        ],
    )


class Ordered:
    """A story of a respondent whose order is of item 3-2. Each put is a new snapshot of the case."""

    def __init__(self) -> None:
        self.story = Story()
        self._version = 0

    def put(
        self, at_s: float, *, tags: tuple[str, ...] = (), known: tag_duty_pb2.TagDuty | None = None, **more: Any
    ) -> None:
        self._version += 1
        more = {"version": self._version, "tag_device_ids": tags, "tag_duty": known or duty(), **more}
        self.story.case(at_s, **more)

    def emitted(self) -> list[tuple[str, str, float]]:
        """Kind, demand and second of each alert about the duty."""
        found = self.story.of(AlertKind.NOT_FITTED, AlertKind.TAG_LAPSED)
        return [(alert.kind.value, alert.demand.name, (alert.at_ms - T0_MS) / 1000) for alert in found]


def test_the_police_are_notified_at_the_courts_time_and_go_to_the_respondent() -> None:
    ordered = Ordered()
    ordered.put(0)
    ordered.story.tick(FIT_BY_S - 1)
    assert ordered.emitted() == []
    ordered.story.tick(FIT_BY_S + 30)
    [alert] = ordered.story.of(AlertKind.NOT_FITTED)
    assert (alert.demand, alert.at_ms) == (Demand.NOTIFY, ms(FIT_BY_S))
    assert alert.destinations == ((Leg.PROBATION, "w"), (Leg.POLICE, "w"))
    ordered.put(700, tags=("tag",))
    assert ordered.emitted()[1:] == [("NOT_FITTED", "RECORD", 700)]


def test_a_tag_in_time_gives_no_notice() -> None:
    ordered = Ordered()
    ordered.put(0)
    ordered.put(FIT_BY_S - 1, tags=("tag",))
    ordered.story.tick(FIT_BY_S + 3600)
    assert ordered.emitted() == []


def test_a_refusal_counts_at_once_and_good_cause_withholds_it() -> None:
    ordered = Ordered()
    ordered.put(0)
    ordered.put(100, known=duty(90))
    assert ordered.emitted() == [("NOT_FITTED", "NOTIFY", 100)]
    excused = Ordered()
    excused.put(100, known=duty(90, (50, 400)))
    excused.story.tick(399)
    assert excused.emitted() == []
    excused.story.tick(500)
    assert excused.emitted() == [("NOT_FITTED", "NOTIFY", 400)]


def test_good_cause_that_is_dated_back_ends_the_notice_from_its_record_on() -> None:
    ordered = Ordered()
    ordered.put(0)
    ordered.story.tick(700)
    ordered.put(800, known=duty(None, (-3600, 1000)))
    ordered.story.tick(1200)
    assert ordered.emitted() == [
        ("NOT_FITTED", "NOTIFY", FIT_BY_S),
        ("NOT_FITTED", "RECORD", 800),
        ("NOT_FITTED", "NOTIFY", 1000),
    ]


def test_good_causes_that_adjoin_or_overlap_are_one() -> None:
    ordered = Ordered()
    ordered.put(0, known=duty(None, (100, 700), (650, 900), (900, 1000)))
    ordered.story.tick(2000)
    assert ordered.emitted() == [("NOT_FITTED", "NOTIFY", 1000)]


def test_a_tag_that_ends_in_the_records_alarms_unless_it_is_exchanged() -> None:
    ordered = Ordered()
    ordered.put(0, tags=("tag",))
    ordered.put(100)
    ordered.put(100 + EXCHANGE_S - 1, tags=("new",))
    ordered.story.tick(5000)
    assert ordered.emitted() == []
    ordered.put(5000)
    ordered.story.tick(5000 + EXCHANGE_S)
    ordered.put(6000, tags=("new",))
    assert ordered.emitted() == [
        ("TAG_LAPSED", "NOTIFY", 5000 + EXCHANGE_S),
        ("TAG_LAPSED", "RECORD", 6000),
    ]


@pytest.mark.parametrize("end", ["cancelled", "no duty", "expired"])
def test_the_notice_ends_with_the_order(end: str) -> None:
    ordered = Ordered()
    ordered.put(0, valid_until_ms=ms(900 if end == "expired" else 5000))
    ordered.story.tick(700)
    if end == "cancelled":
        ordered.put(900, valid_until_ms=ms(900))
    elif end == "no duty":
        ordered.put(900, tag_duty=None)
    ordered.story.tick(2000)
    assert ordered.emitted() == [("NOT_FITTED", "NOTIFY", FIT_BY_S), ("NOT_FITTED", "RECORD", 900)]


def test_orders_of_other_types_demand_no_tag() -> None:
    ordered = Ordered()
    ordered.put(0, tag_duty=None)
    ordered.story.tick(5000)
    assert ordered.emitted() == []


def test_the_memory_survives_a_checkpoint_and_a_repeated_snapshot_changes_nothing() -> None:
    ordered = Ordered()
    ordered.put(0, tags=("tag",))
    ordered.put(100)
    ordered.story.tick(100 + EXCHANGE_S)
    ordered.story.state = codec.decode(codec.encode(ordered.story.state))
    assert codec.encode(ordered.story.state) == codec.encode(codec.decode(codec.encode(ordered.story.state)))
    ordered.put(900)
    ordered.put(1000, tags=("tag",))
    assert [demand for _, demand, _ in ordered.emitted()] == ["NOTIFY", "RECORD"]


def test_a_period_that_ends_before_it_begins_is_no_entry() -> None:
    with pytest.raises(InvalidField, match="good_causes: has a period that ends before it begins"):
        Ordered().put(0, known=duty(None, (200, 100)))
    with pytest.raises(InvalidField, match="removals: has a period"):
        Ordered().put(0, removals=[tag_duty_pb2.TagRemoval(from_ms=2, until_ms=1)])
