"""Presences at home units and beacons: they put off what an unseen wearer causes, never demand anything, and end no response."""

from __future__ import annotations

import pytest

from services.geofence.domain import codec
from services.geofence.domain.alerts import Alert, DeadLetter
from services.geofence.domain.demands import AlertKind
from services.geofence.domain.detectors import presences
from services.geofence.domain.entries import Demand
from tandem.common.v1 import log_pb2, presence_pb2
from tests.support.geofence.stories import T0_MS, Story, unit

HOME_M = 900
BEACON = presence_pb2.PRESENCE_UNIT_KIND_BLUETOOTH_BEACON
NEAR = AlertKind.UNKNOWN_NEAR


def story(*units: presence_pb2.PresenceUnitPlace, **case: object) -> Story:
    """A wearer at home, 900 m from her, whose tag is last seen at second 600; she is at home until second 9000."""
    made = Story()
    made.case(0, "1", **{"presence_units": units or [unit("home", HOME_M)], **case})
    for at_s in range(0, 601, 15):
        made.at(at_s, "tag", HOME_M)
        made.at(at_s, "phone", 0)
    return made


def pass_until(made: Story, until_s: float) -> Story:
    """Lets time pass with reports of her phone."""
    at_s = (made.state.now_ms - T0_MS) / 1000 + 30
    while at_s <= until_s:
        made.at(at_s, "phone", 0)
        at_s += 30
    return made


def near(made: Story) -> list[tuple[float, Demand]]:
    """Second and demand of each UNKNOWN_NEAR."""
    return [((alert.at_ms - T0_MS) / 1000, alert.demand) for alert in made.of(NEAR)]


def reasons(made: Story) -> list[str]:
    """Reasons of the dead letters."""
    return [output.reason for output in made.outputs if isinstance(output, DeadLetter)]


def at_home(made: Story, from_s: int, to_s: int, unit_id: str = "home", every_s: int = 60) -> Story:
    """Presences at a unit each minute, with reports of her phone between them."""
    for at_s in range(from_s, to_s + 1, every_s):
        made.at(at_s, "phone", 0)
        made.present(at_s, unit_id, since_s=from_s)
    return made


def test_without_a_unit_the_desks_are_notified_and_people_are_sent() -> None:
    assert near(pass_until(story(), 1500)) == [(780, Demand.NOTIFY), (1140, Demand.RESPOND)]


def test_a_presence_puts_it_off_for_as_long_as_it_is_repeated() -> None:
    made = at_home(story(), 660, 7200)
    assert near(made) == [] and made.of(AlertKind.SILENT) == []
    made.at(7260, "tag", HOME_M)
    assert near(made) == []


def test_a_home_unit_that_falls_silent_leaves_an_unseen_wearer() -> None:
    made = pass_until(at_home(story(), 660, 3000), 4500)
    assert near(made) == [(3180, Demand.NOTIFY), (3540, Demand.RESPOND)]


def test_a_presence_ends_what_sent_nobody_and_says_by_which_report() -> None:
    made = at_home(pass_until(story(), 900), 930, 1000)
    assert near(made) == [(780, Demand.NOTIFY), (930, Demand.RECORD)]
    assert (made.of(NEAR)[-1].cause.report_id, made.of(NEAR)[-1].cause_of_wearer) == ("p930", True)  # type: ignore[union-attr]


def test_a_presence_ends_no_response() -> None:
    made = at_home(pass_until(story(), 1200), 1230, 3000)
    assert near(made) == [(780, Demand.NOTIFY), (1140, Demand.RESPOND)]
    made.at(3060, "tag", HOME_M)
    assert near(made)[-1] == (3060, Demand.RECORD)


def test_a_presence_clears_no_ring() -> None:
    made = story()
    for at_s, north_m in ((615, 500), (630, 50), (645, 40), (660, 40)):
        made.at(at_s, "tag", north_m)
        made.at(at_s, "phone", 0)
    assert made.entered()[-1] == 100
    at_home(made, 900, 3000)
    assert made.of(AlertKind.RING_CLEARED) == []


def test_a_presence_demands_nothing_that_the_positions_dont() -> None:
    """The tag was last seen 20 km away, from where nobody gets to her in time; then the home unit hears it and falls silent."""
    made = Story()
    made.case(presence_units=[unit("home", HOME_M)])
    for at_s in range(0, 601, 15):
        made.at(at_s, "tag", 20_000)
        made.at(at_s, "phone", 0)
    pass_until(at_home(pass_until(made, 3000), 3030, 4000), 5000)
    assert all(demand is Demand.RECORD for _, demand in near(made))


def test_a_place_within_the_ring_that_demands_a_response_puts_nothing_off() -> None:
    made = story(unit("home", 110))  # its range reaches into the ring of 100 m
    made.at(600, "tag", 150)
    assert near(pass_until(at_home(made, 660, 1500), 1500)) == near(pass_until(_near_door(), 1500)) != []


def _near_door() -> Story:
    made = story(unit("elsewhere", 110))
    made.at(600, "tag", 150)
    return made


def test_a_cut_tag_at_the_home_unit_is_no_presence_of_the_wearer() -> None:
    made = at_home(story(), 660, 900)
    made.says(905, "tag", "STRAP_OPEN")
    assert near(made)[-1][1] is Demand.RESPOND


@pytest.mark.parametrize("event", ["CASE_OPEN", "SHUTDOWN", "JAMMING_SUSPECTED"])
def test_a_unit_that_was_opened_or_switched_off_is_not_believed(event: str) -> None:
    made = at_home(story(), 660, 1500)
    made.says(1510, "home", event)
    assert [demand for _, demand in near(made)] == [Demand.RESPOND]
    ended = {"CASE_OPEN": "CASE_CLOSED", "SHUTDOWN": "STARTED", "JAMMING_SUSPECTED": "JAMMING_OVER"}[event]
    made.says(1600, "home", ended)
    made.present(1610, "home")
    assert made.state.stays["tag"].seen_ms == T0_MS + 1_610_000


def test_a_unit_whose_word_positions_contradict_is_not_believed_for_an_hour() -> None:
    made = story()
    made.at(615, "tag", 1500)
    made.present(620, "home", since_s=0)
    (contradicted,) = [alert for alert in made.alerts if alert.kind is AlertKind.IMPLAUSIBLE]
    assert contradicted.anomaly is not None
    assert (contradicted.anomaly.value, contradicted.demand) == ("PRESENCE", Demand.RECORD)
    assert "tag" not in made.state.stays
    made.at(700, "tag", HOME_M)
    for at_s in (760, 2000, 4000):
        made.present(at_s, "home")
        assert "tag" not in made.state.stays
    made.present(620 + 3600, "home")
    assert "tag" in made.state.stays


def test_a_beacon_in_two_places_at_once_is_believed_at_neither() -> None:
    made = story(unit("home", HOME_M), unit("work", 7_000, kind=BEACON))
    made.present(640, "home")
    made.present(650, "work")
    assert "tag" not in made.state.stays and set(made.state.distrusted_units) == {"home", "work"}
    assert near(pass_until(made, 1500)) == [(780, Demand.NOTIFY), (1140, Demand.RESPOND)]


def test_two_units_of_one_home_are_one_stay() -> None:
    made = story(unit("home", HOME_M), unit("beacon", HOME_M + 20, kind=BEACON))
    for at_s in range(660, 1300, 60):
        made.at(at_s, "phone", 0)
        made.present(at_s, "home" if at_s % 120 else "beacon")
    assert made.state.stays["tag"].since_ms == T0_MS + 660_000


def test_a_beacon_alone_counts_for_20_minutes_after_the_last_position_and_a_home_unit_for_a_night() -> None:
    beacon = at_home(story(unit("beacon", HOME_M, kind=BEACON)), 660, 6000, "beacon")
    assert near(beacon)[0] == (600 + 1200 + 180, Demand.NOTIFY)
    assert near(at_home(story(), 660, 30_000, every_s=150)) == []
    assert presences.MAX_ALONE_MS[1] == 12 * 3_600_000  # type: ignore[index]  # the number of HOME_UNIT


def test_a_unit_that_nobody_registered_is_set_aside_and_says_nothing() -> None:
    made = at_home(story(), 660, 700, "unknown")
    assert reasons(made) == ["1 presences at a unit that no case names for the holder of the device"]
    assert near(pass_until(made, 1500)) == [(780, Demand.NOTIFY), (1140, Demand.RESPOND)]


def test_her_unit_doesnt_show_him() -> None:
    person = log_pb2.ProtectedTarget(person_id="p", device_ids=["phone"], presence_units=[unit("hers", 0)])
    made = story(persons=[person])
    made.present(660, "hers")
    assert reasons(made) == ["1 presences at a unit that no case names for the holder of the device"]
    made.present(670, "hers", "phone")
    assert set(made.state.stays) == {"phone"}


def test_a_presence_from_before_or_after_the_installation_is_set_aside() -> None:
    made = story(unit("home", HOME_M, from_s=700, until_s=800))
    made.present(660, "home")
    made.present(810, "home", seen_s=810)
    assert reasons(made) == ["1 presences from a time in which the unit wasn't installed"] * 2


def test_a_presence_dated_back_counts_for_its_own_time_only() -> None:
    made = pass_until(story(), 1500)
    made.present(1510, "home", seen_s=640, since_s=-9_000)
    assert near(made) == [(780, Demand.NOTIFY), (1140, Demand.RESPOND)]
    assert made.state.stays["tag"].since_ms == T0_MS - 7_200_000 + 640_000
    made.present(8_000, "home", seen_s=700)
    assert reasons(made) == ["1 presences older than 2 h"]


def test_a_presence_of_the_future_counts_as_of_its_arrival() -> None:
    made = story()
    made.present(660, "home", seen_s=760)
    assert made.state.stays["tag"].seen_ms == T0_MS + 660_000


def test_a_claimed_since_ends_at_the_last_position_elsewhere() -> None:
    made = story()
    for at_s, north_m in ((615, 1_050), (630, 1_200), (645, 1_050), (660, HOME_M)):
        made.at(at_s, "tag", north_m)
    made.present(670, "home", since_s=0)
    assert made.state.stays["tag"].since_ms == T0_MS + 645_000


def test_a_wearer_who_left_is_assumed_to_go_on_at_once() -> None:
    """After a report that he left, he may drive: no rest at home delays the response."""
    made = at_home(story(), 660, 1500)
    made.present(1510, "home", left=True)
    pass_until(made, 2500)
    assert near(made) == [(1600, Demand.NOTIFY), (1610, Demand.RESPOND)]


def test_a_resent_or_older_presence_changes_nothing() -> None:
    made = at_home(story(), 660, 900)
    before, outputs = dict(made.state.stays), list(made.outputs)
    made.present(900, "home", since_s=660)
    made.present(900, "home", seen_s=700, since_s=660)
    assert (made.state.stays, made.outputs) == (before, outputs)


def test_her_phone_at_her_beacon_isnt_lost() -> None:
    person = log_pb2.ProtectedTarget(person_id="p", device_ids=["phone"], presence_units=[unit("hers", 0, kind=BEACON)])
    made = story(persons=[person])
    made.present_each_minute(660, 5000, "hers", "phone")
    assert made.of(AlertKind.PROTECTED_DEVICE_LOST) == []


def test_a_tag_that_changes_hands_takes_no_presence_along() -> None:
    made = story()
    made.present(660, "home")
    made.case(700, "2", wearer_id="w2", version=1)
    assert "tag" not in made.state.stays


def test_presences_of_nobody_under_an_order_are_ignored() -> None:
    made = Story()
    made.present(10, "home")
    assert made.outputs == [] and made.state.stays == {} and made.state.heard_at_ms == {"tag": T0_MS + 10_000}


def test_old_presences_are_destroyed_within_hours() -> None:
    made = story()
    made.present(660, "home")
    made.tick(660 + 3 * 3600)
    assert made.state.stays == {}


def test_a_restart_from_a_checkpoint_at_each_entry_changes_nothing() -> None:
    whole, restarted = story(unit("home", HOME_M, interval_s=300)), story(unit("home", HOME_M, interval_s=300))
    for made in (whole, restarted):
        for at_s in range(660, 4000, 60):
            if made is restarted:
                made.state = codec.decode(codec.encode(made.state))
            if at_s % 300 == 0 and at_s < 2000:
                made.present(at_s, "home", since_s=660, left=at_s == 1800)
            made.at(at_s, "phone", 0)
            if at_s == 2400:
                made.at(at_s, "tag", HOME_M)
    assert whole.outputs == restarted.outputs and codec.encode(whole.state) == codec.encode(restarted.state)
    assert [output for output in whole.outputs if isinstance(output, Alert) and output.kind is NEAR]
