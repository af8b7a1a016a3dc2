"""Authorised removals of a tag (Tag Act Decree 10): what an open strap means, and what positions prove meanwhile."""

from __future__ import annotations

from typing import Any

import pytest

from services.common.privacy.grounds import RecordKind
from services.geofence.domain import codec
from services.geofence.domain.demands import AlertKind, Leg
from services.geofence.domain.entries import Demand
from services.geofence.domain.sharing import PositionQuery, Subject, locate, share_of
from tandem.common.v1 import tag_duty_pb2
from tests.support.geofence.stories import T0_MS, Story

FAR_M = 6000
OF_WEARING = (AlertKind.TAMPERED, AlertKind.TAG_REMOVAL, AlertKind.TAG_REMOVED, AlertKind.TAG_REFITTED)


def ms(at_s: float) -> int:
    return T0_MS + round(at_s * 1000)


def removal(from_s: float, until_s: float, name: str = "m-1", tag: str = "tag") -> tag_duty_pb2.TagRemoval:
    return tag_duty_pb2.TagRemoval(removal_id=name, device_id=tag, from_ms=ms(from_s), until_ms=ms(until_s))


class Wearing:
    """A story of a wearer. Each put is a new snapshot of the case."""

    def __init__(self, *, item_3_2: bool = True) -> None:
        self.story = Story()
        self._version = 0
        self._duty = tag_duty_pb2.TagDuty(fit_by_ms=T0_MS) if item_3_2 else None

    def put(self, at_s: float, *known: tag_duty_pb2.TagRemoval, **more: Any) -> None:
        self._version += 1
        self.story.case(at_s, version=self._version, tag_duty=self._duty, removals=known, **more)

    def restart(self) -> None:
        self.story.state = codec.decode(codec.encode(self.story.state))

    def emitted(self) -> list[tuple[str, str, float]]:
        """Kind, demand and second of each alert about the strap and its removal."""
        return [(a.kind.value, a.demand.name, (a.at_ms - T0_MS) / 1000) for a in self.story.of(*OF_WEARING)]


@pytest.mark.parametrize("restarts", [False, True])
def test_a_strap_that_is_open_within_a_removal_alarms_at_its_end(restarts: bool) -> None:
    wearing = Wearing()
    wearing.put(0, removal(100, 1000))
    for at_s, event in ((150, "STRAP_OPEN"), (300, "STRAP_CLOSED"), (400, "STRAP_OPEN")):
        wearing.story.says(at_s, "tag", event)
        if restarts:
            wearing.restart()
    wearing.story.tick(1000)
    wearing.story.says(1100, "tag", "STRAP_CLOSED")
    assert wearing.emitted() == [
        ("TAG_REMOVAL", "NOTIFY", 100),
        ("TAG_REMOVED", "RECORD", 150),
        ("TAG_REFITTED", "RECORD", 300),
        ("TAG_REMOVED", "RECORD", 400),
        ("TAMPERED", "RESPOND", 1000),
        ("TAMPERED", "RECORD", 1100),
    ]
    assert {a.removal_id for a in wearing.story.of(AlertKind.TAG_REMOVED)} == {"m-1"}


def test_the_police_get_removals_under_an_order_of_item_3_2_alone() -> None:
    for item_3_2, demand, legs in (
        (True, Demand.NOTIFY, ((Leg.PROBATION, "w"), (Leg.POLICE, "w"))),
        (False, Demand.RECORD, ((Leg.PROBATION, "w"),)),
    ):
        wearing = Wearing(item_3_2=item_3_2)
        wearing.put(0, removal(100, 1000))
        wearing.story.says(150, "tag", "STRAP_OPEN")
        [begun] = wearing.story.of(AlertKind.TAG_REMOVAL)
        assert (begun.demand, begun.destinations) == (demand, legs)
        [removed] = wearing.story.of(AlertKind.TAG_REMOVED)
        assert (removed.demand, removed.destinations) == (Demand.RECORD, legs)


@pytest.mark.parametrize(("at_s", "event_s"), [(50, 50), (150, 99), (1000, 1000), (1200, 1100)])
def test_a_strap_that_opens_outside_of_it_is_tampering_as_ever(at_s: float, event_s: float) -> None:
    wearing = Wearing()
    wearing.put(0, removal(100, 1000))
    wearing.story.says(at_s, "tag", "STRAP_OPEN", event_s=event_s)
    wearing.story.tick(2000)
    assert ("TAMPERED", "RESPOND", event_s) in wearing.emitted()
    assert not wearing.story.of(AlertKind.TAG_REMOVED)


def test_an_opening_that_is_reported_after_the_end_alarms_at_once() -> None:
    wearing = Wearing()
    wearing.put(0, removal(100, 1000))
    wearing.story.says(1500, "tag", "STRAP_OPEN", event_s=500)
    assert wearing.emitted()[1:] == [("TAG_REMOVED", "RECORD", 500), ("TAMPERED", "RESPOND", 1500)]


@pytest.mark.parametrize(("closed_s", "alarms"), [(900, False), (1100, True)])
def test_an_end_that_comes_before_its_beginning_counts_by_its_time(closed_s: float, alarms: bool) -> None:
    wearing = Wearing()
    wearing.put(0, removal(100, 1000))
    wearing.story.says(1200, "tag", "STRAP_CLOSED", event_s=closed_s)
    wearing.story.says(1201, "tag", "STRAP_OPEN", event_s=500)
    assert bool([each for each in wearing.emitted() if each[:2] == ("TAMPERED", "RESPOND")]) is alarms


def test_another_tag_and_the_case_of_the_tag_are_not_covered() -> None:
    wearing = Wearing()
    wearing.put(0, removal(100, 1000, tag="another"))
    wearing.story.says(150, "tag", "STRAP_OPEN")
    assert ("TAMPERED", "RESPOND", 150) in wearing.emitted()
    opened = Wearing()
    opened.put(0, removal(100, 1000))
    opened.story.says(150, "tag", "CASE_OPEN")
    assert ("TAMPERED", "RESPOND", 150) in opened.emitted()


def test_a_removal_that_is_reported_afterwards_ends_the_tampering() -> None:
    wearing = Wearing()
    wearing.put(0)
    wearing.story.says(100, "tag", "STRAP_OPEN")
    wearing.put(900, removal(50, 5000))
    assert wearing.emitted() == [
        ("TAMPERED", "RESPOND", 100),
        ("TAG_REMOVAL", "NOTIFY", 900),
        ("TAMPERED", "RECORD", 900),
        ("TAG_REMOVED", "RECORD", 900),
    ]
    assert wearing.story.alerts[-1].incident_ends is True
    wearing.story.tick(5000)
    assert wearing.emitted()[-1] == ("TAMPERED", "RESPOND", 5000)


def test_removals_that_adjoin_are_one_and_an_early_end_alarms_then() -> None:
    wearing = Wearing()
    wearing.put(0, removal(100, 1000), removal(1000, 2000, "m-2"))
    wearing.story.says(150, "tag", "STRAP_OPEN")
    wearing.story.tick(1500)
    assert ("TAG_REMOVAL", "NOTIFY", 1000) in wearing.emitted()
    wearing.put(1600, removal(100, 1000), removal(1000, 1600, "m-2"))
    assert [each for each in wearing.emitted() if each[0] == "TAMPERED"] == [("TAMPERED", "RESPOND", 1600)]


def test_an_order_that_comes_later_learns_of_the_strap_by_the_time_of_its_opening() -> None:
    for removed, kinds in (((removal(50, 1000),), ["TAG_REMOVAL", "TAG_REMOVED"]), ((), ["TAMPERED"])):
        wearing = Wearing()
        wearing.put(0, valid_from_ms=ms(500))
        wearing.story.says(100, "tag", "STRAP_OPEN")
        wearing.put(200, *removed, valid_from_ms=ms(500))
        wearing.story.tick(500)
        assert sorted(each[0] for each in wearing.emitted()) == sorted(kinds)


# ── what positions prove ─────────────────────────────────────────────────────────────────────────────────────────────


def near_her(wearing: Wearing, *known: tag_duty_pb2.TagRemoval) -> None:
    """He stands 40 m from her, and the strap is opened at second 120."""
    wearing.put(0, *known)
    for at_s in range(0, 120, 15):
        wearing.story.at(at_s, "phone", 0)
        wearing.story.at(at_s, "tag", 40)
    wearing.story.says(120, "tag", "STRAP_OPEN")


def drive_off(wearing: Wearing, from_s: int, to_s: int) -> None:
    """The tag drives away from her at 10 m/s, up to 6 km, and she stays."""
    for at_s in range(from_s, to_s, 15):
        wearing.story.at(at_s, "phone", 0)
        wearing.story.at(at_s, "tag", min(40 + 10 * (at_s - from_s), FAR_M))


def test_positions_of_a_removed_tag_clear_nothing_until_it_is_refitted() -> None:
    wearing = Wearing()
    near_her(wearing, removal(100, 7200))
    drive_off(wearing, 135, 1200)
    assert not wearing.story.of(AlertKind.RING_CLEARED)
    assert not [a for a in wearing.story.of(AlertKind.DISTANCE_CHANGED) if a.at_ms >= ms(120)]
    wearing.restart()
    wearing.story.says(1200, "tag", "STRAP_CLOSED")
    drive_off(wearing, 1200 - 600, 1230)
    assert not wearing.story.of(AlertKind.RING_CLEARED)  # nothing of before the refitting counts
    for at_s in range(1230, 1400, 15):
        wearing.story.at(at_s, "phone", 0)
        wearing.story.at(at_s, "tag", FAR_M)
    assert [a.ring_mm for a in wearing.story.of(AlertKind.RING_CLEARED)] == [100_000, 1_000_000, 2_000_000]


def test_the_same_way_without_a_removal_clears() -> None:
    wearing = Wearing()
    near_her(wearing)
    drive_off(wearing, 135, 1200)
    assert wearing.story.of(AlertKind.RING_CLEARED)


def test_the_wearer_is_unseen_since_the_opening_and_nobody_is_sent_for_that_until_the_end() -> None:
    wearing = Wearing()
    wearing.put(0, removal(100, 3600))
    for at_s in range(0, 120, 15):
        wearing.story.at(at_s, "phone", 0)
        wearing.story.at(at_s, "tag", 800)
    wearing.story.says(120, "tag", "STRAP_OPEN")
    for at_s in range(135, 3600, 60):
        wearing.story.at(at_s, "phone", 0)
        wearing.story.at(at_s, "tag", FAR_M)
    near = wearing.story.of(AlertKind.UNKNOWN_NEAR)
    [notice] = near  # of the time at which he can have arrived, without any report
    assert notice.demand is Demand.NOTIFY and ms(120) <= notice.at_ms < ms(135)
    wearing.story.tick(3600)
    assert Demand.RESPOND in [a.demand for a in wearing.story.of(AlertKind.TAMPERED)]


def test_an_approach_of_a_removed_tag_still_alarms() -> None:
    wearing = Wearing()
    wearing.put(0, removal(0, 3600))
    wearing.story.at(0, "phone", 0)
    wearing.story.at(0, "tag", FAR_M)
    wearing.story.says(10, "tag", "STRAP_OPEN")
    for at_s in range(15, 300, 15):
        wearing.story.at(at_s, "phone", 0)
        wearing.story.at(at_s, "tag", 30)
    assert 100_000 in [a.ring_mm for a in wearing.story.of(AlertKind.RING_ENTERED)]


def test_probation_is_notified_of_a_long_silence_only_after_the_removal() -> None:
    wearing = Wearing()
    wearing.put(0, removal(100, 7200))
    wearing.story.at(0, "phone", 0)
    wearing.story.at(0, "tag", 60_000)
    wearing.story.says(120, "tag", "STRAP_OPEN")
    wearing.story.says(130, "tag", "SHUTDOWN")
    for at_s in range(200, 7300, 100):
        wearing.story.at(at_s, "phone", 0)
    silent = [(a.demand.name, (a.at_ms - T0_MS) // 1000) for a in wearing.story.of(AlertKind.SILENT)]
    assert silent == [("RECORD", 310), ("NOTIFY", 7200)]


def test_the_live_position_of_a_removed_tag_is_shown_as_unknown() -> None:
    wearing = Wearing()
    wearing.put(0, removal(100, 7200))
    wearing.story.at(110, "tag", 800)
    query = PositionQuery("", "order-1", "TAG_31_8_2", Subject(RecordKind.WEARER, "w"), ms(3600))
    share = share_of(wearing.story.state, query, {})
    assert share is not None and not locate(wearing.story.state, share).unknown
    wearing.story.says(120, "tag", "STRAP_OPEN")
    wearing.story.at(125, "tag", 900)
    assert locate(wearing.story.state, share).unknown
