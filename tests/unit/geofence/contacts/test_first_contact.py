"""First contact with the wearer, by stories: where it is made, what it says, and that it changes nothing else."""

from __future__ import annotations

from dataclasses import replace

from services.geofence.domain import codec
from services.geofence.domain.alerts import Alert, ContactPlan, ContactRequest, ContactWithheld
from services.geofence.domain.demands import AlertKind
from services.geofence.domain.detectors.first_contact import CONTACTS, JUST_MS, MAX_CONTACTS_A_DAY
from services.geofence.domain.entries import Demand
from tandem.common.v1 import exercise_pb2, geometry_pb2
from tests.support.geofence.stories import T0_MS, Story, circle

DAY_S = 86_400


def named(place_id: str = "home", north_m: float = 0.0, east_m: float = 0.0) -> geometry_pb2.Place:
    """A place of 30 m that the order names to the wearer."""
    place = circle(place_id, north_m, east_m, 30)
    place.named_to_respondent = True
    return place


def story_of(*places: geometry_pb2.Place, persons: bool = False, **changes: object) -> Story:
    """A story with an order that protects these places, and perhaps the person."""
    story = Story()
    content: dict[str, object] = {"places": places} | ({} if persons else {"persons": []}) | changes
    story.case(0, "1", **content)
    return story


def walk(story: Story, from_m: float, to_m: float, *, begin_s: float = 0, mps: float = 1.4, every_s: int = 30) -> float:
    """The wearer walks along the meridian of the home, and reports. Returns the second at which the wearer is there."""
    north_m, at_s = from_m, begin_s
    step_m = mps * every_s if to_m > from_m else -mps * every_s
    while (to_m - north_m) * step_m > 0:
        story.at(at_s, "tag", north_m)
        north_m, at_s = north_m + step_m, at_s + every_s
    story.at(at_s, "tag", to_m)
    return at_s + every_s


def contacts(story: Story) -> list[Alert]:
    """Alerts that say something about a contact."""
    return [alert for alert in story.alerts if alert.contact]


def plans(story: Story) -> list[ContactPlan]:
    return [alert.contact.plan for alert in contacts(story) if alert.contact]


def messages(story: Story) -> list[ContactRequest]:
    """Messages to the tag."""
    return [output for output in story.outputs if isinstance(output, ContactRequest)]


def test_near_a_named_place_the_tag_tells_the_wearer_at_notify() -> None:
    story = story_of(named())
    walk(story, 1_400, 700)
    [alert] = contacts(story)
    assert (alert.kind, alert.demand, alert.ring_mm) == (AlertKind.RING_ENTERED, Demand.NOTIFY, 1_000_000)
    assert alert.contact and alert.contact.plan is ContactPlan.TAG and alert.contact.device_id == "tag"
    [message] = messages(story)
    assert message.request_id == alert.contact.contact_id and message.device_id == "tag"
    assert message.decided_at_ms == alert.decided_at_ms < message.until_ms


def test_a_wearer_who_leaves_has_turned_back() -> None:
    story = story_of(named())
    walk(story, 1_600, 1_450, begin_s=walk(story, 800, 1_600, begin_s=walk(story, 1_400, 800)))
    entered, left = contacts(story)
    assert left.kind is AlertKind.RING_CLEARED and left.contact and left.contact.plan is ContactPlan.TURNED_BACK
    assert entered.contact and left.contact.contact_id == entered.contact.contact_id


def test_a_wearer_who_came_within_the_ring_of_a_response_has_not_turned_back() -> None:
    story = story_of(named())
    walk(story, 1_600, 1_450, begin_s=walk(story, 60, 1_600, begin_s=walk(story, 1_400, 60)))
    assert plans(story) == [ContactPlan.TAG]


def test_the_response_falls_due_at_the_same_instant_as_without_contact() -> None:
    def decided(place: geometry_pb2.Place) -> list[Alert]:
        story = story_of(place)
        walk(story, 1_600, 1_450, begin_s=walk(story, 0, 1_600, begin_s=walk(story, 1_400, 0)))
        return [replace(alert, contact=None, alert_id="") for alert in story.alerts]

    with_contact, without = decided(named()), decided(circle("home", 0, 0, 30))
    assert [alert.demand for alert in with_contact].count(Demand.RESPOND)
    assert with_contact == without


def test_an_order_with_a_contact_makes_no_other_one_within_ten_minutes() -> None:
    story = story_of(named(), named("school", 0, 300))
    walk(story, 1_400, 700)
    assert plans(story) == [ContactPlan.TAG, ContactPlan.WITHHELD]
    assert contacts(story)[1].contact.withheld is ContactWithheld.JUST_CONTACTED  # type: ignore[union-attr]
    assert len(messages(story)) == 1


def test_the_budget_of_an_order_near_named_places_is_used_up() -> None:
    story = story_of(named(), valid_until_ms=T0_MS + 10 * DAY_S * 1_000)
    at_s = 0.0
    for _ in range(MAX_CONTACTS_A_DAY + 1):
        at_s = walk(story, 1_400, 850, begin_s=at_s)
        at_s = walk(story, 850, 1_400, begin_s=at_s)
        at_s += max(0, JUST_MS / 1000 - 800)
    assert plans(story).count(ContactPlan.TAG) == MAX_CONTACTS_A_DAY == len(messages(story))
    assert ContactPlan.OUT_OF_BUDGET in plans(story)
    after = walk(story, 1_400, 850, begin_s=at_s + DAY_S)
    assert after and plans(story)[-1] is ContactPlan.TAG, "a day later the budget is new"


def test_a_silent_tag_is_not_commanded_and_an_officer_calls() -> None:
    """The exception that allowed the wearer to be near ends while no tag is heard."""
    story = story_of(
        named(),
        encounters=[],
        rings=[geometry_pb2.Ring(radius_m=1_000, action=geometry_pb2.NOTIFY)],
        valid_from_ms=T0_MS + 600_000,
    )
    story.at(0, "tag", 500)
    story.tick(700)
    [alert] = contacts(story)
    assert alert.contact and alert.contact.plan is ContactPlan.CALL and not alert.contact.device_id
    assert not messages(story)


def test_reports_of_a_time_that_is_over_contact_nobody() -> None:
    story = story_of(named())
    story.at(0, "tag", 3_000)
    story.at(1_800, "tag", 500, fix_s=600)
    [alert] = contacts(story)
    assert alert.contact and alert.contact.withheld is ContactWithheld.PAST and not messages(story)


def test_the_way_home_of_a_wearer_who_lives_there_is_no_contact() -> None:
    story = story_of(named())
    at_s = walk(story, 1_400, 700)
    for hour in range(1, 9 * 60):
        story.at(at_s + 60 * hour, "tag", 700)
    at_s = walk(story, 700, 1_800, begin_s=at_s + 9 * 3_600)
    walk(story, 1_800, 700, begin_s=at_s + 600)
    assert plans(story) == [ContactPlan.TAG, ContactPlan.TURNED_BACK, ContactPlan.WITHHELD]
    assert contacts(story)[2].contact.withheld is ContactWithheld.KNOWN_STAY  # type: ignore[union-attr]


def test_an_exercise_and_an_ended_order_contact_nobody() -> None:
    drill = story_of(named(), exercise=exercise_pb2.DRILL)
    walk(drill, 1_400, 700)
    assert drill.alerts and not contacts(drill)
    ended = story_of(named(), valid_until_ms=T0_MS + 200_000)
    walk(ended, 1_600, 700)
    assert not contacts(ended) and not messages(ended)


def test_an_order_that_ends_after_the_contact_does_not_say_that_the_wearer_turned_back() -> None:
    story = story_of(named(), valid_until_ms=T0_MS + 600_000)
    walk(story, 1_400, 700)
    story.tick(700)
    assert plans(story) == [ContactPlan.TAG] and story.alerts[-1].incident_ends


def test_where_no_place_is_named_nobody_is_contacted() -> None:
    """A message near a moving person, or a home whose address is kept from the wearer, would tell that she is there."""
    story = story_of(circle("home", 0, 0, 30), persons=True, valid_until_ms=T0_MS + 40 * DAY_S * 1_000)
    for day in range(1, 16):
        begin_s = day * DAY_S - 11 * 3_600  # noon in Korea
        for n in range(60):
            north_m = 42.0 * abs(n - 30) + 300
            story.at(begin_s + 30 * n, "tag", north_m)
            story.at(begin_s + 30 * n + 1, "phone", 0)
    assert [alert.demand for alert in story.of(AlertKind.RING_ENTERED)].count(Demand.NOTIFY) >= 15
    assert not contacts(story) and not messages(story)


def test_near_a_named_place_she_herself_causes_no_contact() -> None:
    """Whether she is at the named home or not, the wearer gets the same messages."""
    runs = []
    for she_m in (0.0, 40_000.0):
        story = story_of(named(), persons=True)
        at_s = 13 * 3_600.0
        for n in range(30):
            story.at(at_s + 30 * n, "phone", she_m)
            story.at(at_s + 30 * n + 1, "tag", 1_600 - 42 * n)
        runs.append([message.decided_at_ms for message in messages(story)])
    assert len(runs[0]) == 1 and runs[0] == runs[1]


def test_a_checkpoint_keeps_the_contacts() -> None:
    story = story_of(named())
    walk(story, 1_400, 700)
    assert CONTACTS.of(story.state.cases["case-1"]) == [messages(story)[0].decided_at_ms]
    copied = codec.decode(codec.encode(story.state))
    assert codec.encode(copied) == codec.encode(story.state)
