"""Silence: who isn't heard, and which targets a wearer can have reached unseen."""

from __future__ import annotations

import pytest

from services.geofence.domain import codec
from services.geofence.domain.alerts import Alert
from services.geofence.domain.demands import AlertKind, Leg
from services.geofence.domain.entries import Demand, Rules
from tandem.common.v1 import geometry_pb2, log_pb2
from tests.support.geofence.stories import T0_MS, Story, circle

SILENCES = (AlertKind.SILENT, AlertKind.HEARD_AGAIN)
RECORD = Demand.RECORD
NOTIFY = Demand.NOTIFY
RESPOND = Demand.RESPOND
PHONE = log_pb2.ProtectedTarget(person_id="p", device_ids=["phone"])
NO_PHONE = log_pb2.ProtectedTarget(person_id="p")


def emitted(alerts: list[Alert]) -> list[tuple[str, Demand, float]]:
    """Kind, demand and second of each alert."""
    return [(alert.kind.value, alert.demand, (alert.at_ms - T0_MS) / 1000) for alert in alerts]


def apart(metres: float, **changes: object) -> Story:
    """A case, and one position of each side at this distance, at second 0."""
    story = Story()
    story.case(0, "1", **changes)
    story.at(0, "phone", 0)
    story.at(0, "tag", metres)
    return story


def keep_phone(story: Story, from_s: int, to_s: int, north_m: float = 0) -> None:
    """Her phone reports each minute."""
    for at_s in range(from_s, to_s, 60):
        story.at(at_s, "phone", north_m)


# ── SILENT ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_silent_tag_is_recorded_after_three_minutes_and_notified_after_thirty() -> None:
    story = apart(90_000)
    keep_phone(story, 60, 1900)
    assert emitted(story.of(*SILENCES)) == [("SILENT", RECORD, 180), ("SILENT", NOTIFY, 1800)]
    notice = story.of(AlertKind.SILENT)[1]
    assert notice.destinations == ((Leg.PROBATION, "w"),)
    assert notice.incident_opens and notice.incident_ends, "it may last for days, and holds no incident open"
    story.heard(2000, "tag")
    assert emitted(story.of(*SILENCES))[2:] == [("HEARD_AGAIN", RECORD, 2000)]
    story.tick(2300)
    assert emitted(story.of(*SILENCES))[3:] == [("SILENT", RECORD, 2180)], "the next silence is another"


@pytest.mark.parametrize("contact", ["position", "event", "clock wrong", "buffered"])
def test_contact_of_any_sort_ends_a_silence(contact: str) -> None:
    story = apart(90_000)
    story.tick(200)
    match contact:
        case "position":
            story.at(210, "tag", 90_000)
        case "event":
            story.says(210, "tag", "CHARGER_CONNECTED")
        case "clock wrong":
            story.heard(210, "tag")
        case "buffered":
            story.at(210, "tag", 90_000, fix_s=20)
    assert emitted(story.of(*SILENCES)) == [("SILENT", RECORD, 180), ("HEARD_AGAIN", RECORD, 210)]


def test_reports_in_time_emit_no_alert() -> None:
    story = apart(90_000)
    for at_s in range(0, 7200, 170):
        story.at(at_s, "tag", 90_000)
        story.at(at_s, "phone", 0)
    assert not story.alerts


def test_a_tag_that_was_never_heard_is_silent_from_the_beginning_of_its_order() -> None:
    story = Story()
    story.case(0, valid_from_ms=T0_MS + 100_000)
    story.tick(2100)
    assert emitted(story.of(AlertKind.SILENT)) == [("SILENT", RECORD, 280), ("SILENT", NOTIFY, 1900)]
    [near] = story.of(AlertKind.UNKNOWN_NEAR)
    assert emitted([near]) == [("UNKNOWN_NEAR", NOTIFY, 1900)], "a wearer without any position may be anywhere"


def test_an_order_after_a_long_silence_notifies_at_once() -> None:
    story = Story()
    story.at(0, "tag", 400)
    story.case(3000, persons=[NO_PHONE], places=[circle("home", 0, 0, radius_m=20)])
    assert emitted(story.of(AlertKind.SILENT)) == [("SILENT", RECORD, 3000), ("SILENT", NOTIFY, 3000)]
    assert emitted(story.of(AlertKind.UNKNOWN_NEAR)) == [("UNKNOWN_NEAR", RESPOND, 3000)]


def test_a_second_tag_that_is_heard_is_enough() -> None:
    story = Story()
    story.case(0, tag_device_ids=["tag", "spare"])
    story.at(0, "tag", 90_000)
    for at_s in range(0, 2000, 100):
        story.at(at_s, "spare", 90_000)
    assert not story.of(*SILENCES)


def test_the_end_of_an_order_retracts_alerts_of_silence_and_stops_the_wait() -> None:
    story = apart(300, valid_until_ms=T0_MS + 2_000_000)
    story.tick(4000)
    assert (story.alerts[-1].kind, story.alerts[-1].at_ms) == (AlertKind.HEARD_AGAIN, T0_MS + 2_000_000)
    assert emitted(story.of(AlertKind.UNKNOWN_NEAR)) == [
        ("UNKNOWN_NEAR", NOTIFY, 180),
        ("UNKNOWN_NEAR", RESPOND, 190),
        ("UNKNOWN_NEAR", RECORD, 2000),
    ]
    assert not story.state.incidents and not story.state.due


def test_a_tag_whose_record_has_ended_is_not_awaited() -> None:
    story = apart(90_000)
    story.tick(2000)
    story.case(2100, version=2, tag_device_ids=[])
    story.tick(9000)
    assert emitted(story.of(*SILENCES)) == [
        ("SILENT", RECORD, 180),
        ("SILENT", NOTIFY, 1800),
        ("HEARD_AGAIN", RECORD, 3900),
    ], "over half an hour after the record's end, unless another tag shows it sooner"


def test_rules_can_make_a_silence_due() -> None:
    story = apart(90_000)
    story.tick(600)
    story.enter(700, Rules(silent_notify_after_ms=650_000))
    assert emitted(story.of(AlertKind.SILENT)) == [("SILENT", RECORD, 180), ("SILENT", NOTIFY, 650)]


# ── UNKNOWN_NEAR ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_desks_are_notified_when_an_unseen_wearer_can_have_reached_a_place() -> None:
    story = Story()
    story.case(0, persons=[NO_PHONE], places=[circle("home", 0, 0, radius_m=20)])
    story.at(0, "tag", 5000, accuracy_m=50)
    story.tick(345)
    assert not story.of(AlertKind.UNKNOWN_NEAR)
    story.tick(600)
    [near] = story.of(AlertKind.UNKNOWN_NEAR)
    assert (near.demand, near.target_id) == (NOTIFY, "home")
    at_s = (5000 - 20 - 100 - 50) / 14  # ring of 100 m round a place of 20 m; 14 m/s
    assert (near.at_ms - T0_MS) / 1000 == pytest.approx(at_s, abs=0.01)
    assert near.destinations == ((Leg.PROBATION, "w"), (Leg.POLICE, "order-1/home"))
    assert near.incident_ends and near.cause is None
    story.at(700, "tag", 5000)
    assert emitted(story.of(AlertKind.UNKNOWN_NEAR))[1:] == [("UNKNOWN_NEAR", RECORD, 700)]


def test_a_person_may_have_come_towards_the_wearer() -> None:
    story = apart(8000)
    story.tick(470)
    [near] = story.of(AlertKind.UNKNOWN_NEAR)
    # Both have moved for 3 minutes, and the wearer goes on.
    assert (near.at_ms - T0_MS) / 1000 == pytest.approx((8000 - 100 - 10) / 14 - 180, abs=0.01)


def test_her_movement_is_checked_when_she_reports() -> None:
    story = apart(20_000)
    keep_phone(story, 60, 300)
    assert not story.of(AlertKind.UNKNOWN_NEAR)
    story.at(310, "phone", 17_000)
    [near] = story.of(AlertKind.UNKNOWN_NEAR)
    assert emitted([near]) == [("UNKNOWN_NEAR", NOTIFY, 310)]
    assert near.cause is not None and near.cause.device_id == "phone"


@pytest.mark.parametrize(("metres", "demanded"), [(1500, [NOTIFY]), (990, [NOTIFY, RESPOND]), (50, [NOTIFY, RESPOND])])
def test_a_wearer_who_vanishes_within_a_notifying_ring_demands_a_response(
    metres: float, demanded: list[Demand]
) -> None:
    story = apart(metres)
    story.tick(200)
    near = story.of(AlertKind.UNKNOWN_NEAR)
    assert emitted(near) == [("UNKNOWN_NEAR", demand, at_s) for demand, at_s in zip(demanded, (180, 190), strict=False)]
    assert [Leg.WARNING in {leg for leg, _ in alert.destinations} for alert in near] == [False, True][: len(near)]


@pytest.mark.parametrize("sign", ["SHUTDOWN", "JAMMING_SUSPECTED", "STRAP_OPEN", "CASE_OPEN"])
def test_silence_after_a_sign_demands_a_response(sign: str) -> None:
    story = apart(4000)
    story.says(10, "tag", sign)
    story.tick(400)
    assert [alert.demand for alert in story.of(AlertKind.UNKNOWN_NEAR)] == [RESPOND]


def test_a_later_sign_raises_the_demand() -> None:
    story = apart(4000)
    story.tick(400)
    story.says(500, "tag", "SHUTDOWN")
    assert [alert.demand for alert in story.of(AlertKind.UNKNOWN_NEAR)] == [NOTIFY, RESPOND]


def test_a_response_to_an_unseen_wearer_holds_the_incident_until_a_position() -> None:
    story = apart(990)
    story.tick(2000)
    assert {alert.incident_id for alert in story.of(AlertKind.UNKNOWN_NEAR)} == {story.alerts[0].incident_id}
    story.heard(2010, "tag")
    assert len(story.of(AlertKind.UNKNOWN_NEAR)) == 2, "contact doesn't show where the wearer is"
    story.at(2020, "phone", 0)
    story.at(2020, "tag", 60)
    entered, seen = story.of(AlertKind.RING_ENTERED)[-1], story.of(AlertKind.UNKNOWN_NEAR)[-1]
    assert entered.ring_mm == 100_000 and entered.incident_id == seen.incident_id == story.alerts[0].incident_id
    assert not seen.incident_ends


def test_a_tag_that_is_heard_without_a_position_is_unseen() -> None:
    story = apart(4000)
    for at_s in range(10, 600, 60):
        story.heard(at_s, "tag")
    assert not story.of(AlertKind.SILENT)
    assert [alert.demand for alert in story.of(AlertKind.UNKNOWN_NEAR)] == [NOTIFY]


def test_a_late_position_shows_nobody_but_moves_the_reachable_set() -> None:
    story = apart(4000)
    story.tick(300)
    story.at(400, "tag", 4000, fix_s=60)
    assert [alert.demand for alert in story.of(AlertKind.UNKNOWN_NEAR)] == [NOTIFY]
    story.at(500, "tag", 4000, fix_s=450)
    assert [alert.demand for alert in story.of(AlertKind.UNKNOWN_NEAR)] == [NOTIFY, RECORD]


def test_a_target_reachable_only_after_help_is_left_to_probation() -> None:
    story = apart(8000)
    keep_phone(story, 0, 4000)
    assert not story.of(AlertKind.UNKNOWN_NEAR)
    assert [alert.demand for alert in story.of(AlertKind.SILENT)] == [RECORD, NOTIFY]


def test_an_order_without_a_responding_ring_watches_its_innermost() -> None:
    story = apart(6000, rings=[geometry_pb2.Ring(radius_m=500, action=geometry_pb2.NOTIFY)])
    keep_phone(story, 60, 600)
    assert [alert.demand for alert in story.of(AlertKind.UNKNOWN_NEAR)] == [NOTIFY]


def test_an_amendment_that_drops_a_target_retracts_its_alert() -> None:
    story = Story()
    story.case(0, persons=[NO_PHONE], places=[circle("home", 0, 0, radius_m=20)])
    story.at(0, "tag", 900)
    story.tick(200)
    story.case(300, version=2, persons=[NO_PHONE], places=[circle("work", 80_000, 0, radius_m=20)])
    assert [(alert.target_id, alert.demand) for alert in story.of(AlertKind.UNKNOWN_NEAR)] == [
        ("home", NOTIFY),
        ("home", RESPOND),
        ("home", RECORD),
    ]
    assert story.alerts[-1].incident_ends and not story.state.incidents


# ── PROTECTED_DEVICE_LOST ────────────────────────────────────────────────────────────────────────────────────────────


def heard_tag(story: Story, until_s: int, from_s: int = 0) -> None:
    for at_s in range(from_s, until_s, 120):
        story.at(at_s, "tag", 60_000)


def test_a_phone_that_sleeps_too_long_notifies_the_police_once() -> None:
    story = Story()
    story.case()
    story.at(0, "phone", 0)
    heard_tag(story, 9000)
    [lost] = story.alerts
    assert emitted([lost]) == [("PROTECTED_DEVICE_LOST", NOTIFY, 1800)]
    assert lost.destinations == ((Leg.POLICE, "p"),) and lost.incident_ends
    story.heard(9000, "phone")
    assert emitted(story.alerts)[1:] == [("PROTECTED_DEVICE_LOST", RECORD, 9000)]


def test_a_person_without_a_device_notifies_the_police_once() -> None:
    story = Story()
    story.case(0, persons=[NO_PHONE])
    heard_tag(story, 600)
    story.case(600, version=2, persons=[NO_PHONE], places=[circle("home", 0, 0, radius_m=20)])
    heard_tag(story, 4000, 610)
    assert emitted(story.alerts) == [("PROTECTED_DEVICE_LOST", NOTIFY, 1800)]
    story.case(4000, version=3)
    story.at(4010, "phone", 0)
    assert emitted(story.alerts)[1:] == [("PROTECTED_DEVICE_LOST", RECORD, 4000)], "the wait for a new device restarts"


def test_her_last_position_is_still_protected() -> None:
    story = Story()
    story.case(0, places=[circle("home", 0, 50_000, radius_m=20)])
    story.at(0, "phone", 0)
    heard_tag(story, 4000)
    story.at(4000, "tag", 50)
    story.at(4015, "tag", 50)  # he can't have come so fast from the place 50 km away, so it takes a second position
    assert [alert.ring_mm // 1000 for alert in story.of(AlertKind.RING_ENTERED)] == [2000, 1000, 100]


@pytest.mark.parametrize("event", ["DEVICE_REFUSED", "SHUTDOWN"])
def test_an_announced_silence_of_a_phone_notifies_nobody(event: str) -> None:
    story = Story()
    story.case()
    story.says(0, "phone", event)
    heard_tag(story, 4000)
    assert [alert.demand for alert in story.alerts] == [NOTIFY], "the announcement itself"
    story.heard(4000, "phone")
    assert len(story.alerts) == 1, "no alert was emitted that could end"


def test_the_wait_for_a_device_restarts_when_it_changes_hands() -> None:
    story = apart(60_000)
    story.case(1000, version=2, persons=[NO_PHONE])
    story.case(1000, case="2", persons=[log_pb2.ProtectedTarget(person_id="q", device_ids=["phone"])], wearer_id="w2")
    assert "phone" not in story.state.heard_at_ms


def test_a_checkpoint_keeps_the_silent_devices() -> None:
    story = apart(60_000)
    story.tick(2000)
    silent = set(story.state.silent_devices)
    story.state = codec.decode(codec.encode(story.state))
    assert story.state.silent_devices == silent == {"tag", "phone"}
    story.heard(2010, "phone", "tag")
    assert [alert.kind for alert in story.alerts[-2:]] == [AlertKind.PROTECTED_DEVICE_LOST, AlertKind.HEARD_AGAIN]
