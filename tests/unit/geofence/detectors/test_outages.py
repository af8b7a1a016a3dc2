"""An outage gives the desks one notice for all silences; each demand to respond stays as it is."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from services.dispatch.domain.leg import Leg as DispatchLeg
from services.dispatch.leg import translate as dispatch_translate
from services.geofence import translate
from services.geofence.domain import codec, fold
from services.geofence.domain.alerts import Alert
from services.geofence.domain.demands import AlertKind, Leg
from services.geofence.domain.entries import Demand, Entry, Tick
from tandem.common.v1 import exercise_pb2, log_pb2
from tests.support.geofence.stories import T0_MS, Story

RECORD = Demand.RECORD
NOTIFY = Demand.NOTIFY
RESPOND = Demand.RESPOND
FAR_M = 60_000


def country(wearers: int) -> Story:
    """This many orders, each with a tag and a phone."""
    story = Story()
    for n in range(wearers):
        person = log_pb2.ProtectedTarget(person_id=f"p{n}", device_ids=[f"phone{n}"])
        story.case(0, str(n), wearer_id=f"w{n}", tag_device_ids=[f"tag{n}"], persons=[person])
    return story


def report(story: Story, at_s: float, wearers: range, away_m: float = FAR_M, phones: bool = True) -> None:
    """The tags of these wearers report, and the phones of the persons protected from them."""
    for n in wearers:
        story.at(at_s, f"tag{n}", away_m)
        if phones:
            story.at(at_s, f"phone{n}", 0)


def touching(story: Story) -> list[tuple[str, Demand]]:
    return [(alert.kind.value, alert.demand) for alert in story.alerts if alert.demand >= NOTIFY]


def outages(story: Story) -> list[tuple[Demand, float, int, int]]:
    found = story.of(AlertKind.OUTAGE)
    return [(alert.demand, (alert.at_ms - T0_MS) / 1000, alert.outage_silent, alert.outage_watched) for alert in found]


def test_an_outage_is_one_notice_and_each_silence_is_recorded_under_it() -> None:
    story = country(30)
    report(story, 1, range(30))
    story.tick(4000)
    assert outages(story) == [(NOTIFY, 181, 10, 30)]
    assert touching(story) == [("OUTAGE", NOTIFY)]
    [notice] = story.of(AlertKind.OUTAGE)
    assert notice.destinations == ((Leg.PROBATION, notice.outage_id), (Leg.POLICE, notice.outage_id))
    assert notice.incident_opens and notice.incident_ends and not story.state.incidents
    long = [alert for alert in story.alerts if alert.at_ms > T0_MS + 1_700_000]
    assert {alert.kind for alert in long} == {AlertKind.SILENT, AlertKind.PROTECTED_DEVICE_LOST} and len(long) == 60
    assert {(alert.outage_id, alert.demand, alert.destinations) for alert in long} == {(notice.outage_id, RECORD, ())}


def test_the_legs_can_read_the_notice() -> None:
    story = country(12)
    report(story, 1, range(12))
    story.tick(300)
    [notice] = story.of(AlertKind.OUTAGE)
    message = translate.alert_to_proto(notice, 0)
    assert (message.outage_silent, message.outage_watched) == (10, 12)
    for leg, concerned in ((DispatchLeg.PROBATION, True), (DispatchLeg.POLICE, True), (DispatchLeg.WARNING, False)):
        read = dispatch_translate.alert(message.SerializeToString(), leg)
        assert read is not None and read.ends and read.incident_id == notice.incident_id
        assert read.subject_ids == ((notice.outage_id,) if concerned else ())


def test_an_outage_leaves_demands_to_respond_alone() -> None:
    story = country(30)
    report(story, 1, range(29))
    report(story, 1, range(29, 30), away_m=700)
    story.says(2, "tag3", "STRAP_OPEN")
    story.at(3, "tag3", 4000)
    story.tick(4000)
    assert touching(story)[-3:] == [("OUTAGE", NOTIFY), ("UNKNOWN_NEAR", RESPOND), ("UNKNOWN_NEAR", RESPOND)]
    for alert in story.of(AlertKind.UNKNOWN_NEAR):
        legs = {Leg.PROBATION, Leg.POLICE, Leg.WARNING} if alert.demand is RESPOND else set()
        assert {leg for leg, _ in alert.destinations} == legs, "a notice is covered by the outage's notice"


def test_wearers_still_silent_after_the_outage_are_notified() -> None:
    story = country(30)
    report(story, 1, range(30))
    story.tick(4000)
    report(story, 4001, range(25))
    assert outages(story)[1:] == []
    report(story, 4002, range(25, 26))
    assert outages(story)[1:] == [(RECORD, 4002, 30, 30)]
    assert touching(story) == [("OUTAGE", NOTIFY)], "phones report more rarely than tags, and have 3 minutes"
    for at_s in range(4100, 4500, 100):
        report(story, at_s, range(27))
    emitted = [alert for alert in story.alerts if alert.demand is NOTIFY and alert.kind is not AlertKind.OUTAGE]
    assert [(alert.wearer_id, alert.kind.value, alert.decided_at_ms - T0_MS) for alert in emitted] == [
        (f"w{n}", kind, 4_182_000) for n in (27, 28, 29) for kind in ("PROTECTED_DEVICE_LOST", "SILENT")
    ]
    assert not any(alert.outage_id for alert in emitted)


def test_few_silent_wearers_are_no_outage_whatever_their_share() -> None:
    story = country(9)
    report(story, 1, range(9))
    story.tick(2000)
    assert not story.of(AlertKind.OUTAGE) and len(touching(story)) == 18


def test_an_outage_needs_a_tenth_silent_within_three_minutes() -> None:
    for silent, found in ((19, 0), (20, 1)):
        story = country(200)
        report(story, 1, range(200))
        for at_s in (150, 300, 450):
            report(story, at_s, range(silent, 200))
        assert len(story.of(AlertKind.OUTAGE)) == found
    story = country(200)
    for n in range(40):
        report(story, 1 + 20 * n, range(n, n + 1))  # two hundred seconds for ten of them
    assert not story.of(AlertKind.OUTAGE)


def test_a_silence_from_before_the_outage_gets_its_own_notice() -> None:
    story = country(30)
    report(story, 1, range(1), phones=False)
    for at_s in range(1, 1500, 120):
        report(story, at_s, range(1, 30))
        story.at(at_s, "phone0", 0)
    story.tick(4000)
    assert touching(story) == [("OUTAGE", NOTIFY), ("SILENT", NOTIFY)] or touching(story) == [
        ("SILENT", NOTIFY),
        ("OUTAGE", NOTIFY),
    ]
    assert next(alert for alert in story.of(AlertKind.SILENT) if alert.demand is NOTIFY).wearer_id == "w0"


def test_tags_that_were_never_heard_are_no_outage() -> None:
    story = country(30)
    for at_s in range(60, 421, 60):
        story.tick(at_s)
    assert len(story.of(AlertKind.SILENT)) == 30 and not story.of(AlertKind.OUTAGE)


def test_a_device_without_a_position_notifies_during_an_outage_too() -> None:
    story = country(30)
    report(story, 1, range(29))
    report(story, 1, range(29, 30), away_m=3000)
    for at_s in range(30, 600, 60):
        story.heard(at_s, "tag29")
    assert touching(story) == [("OUTAGE", NOTIFY), ("UNKNOWN_NEAR", NOTIFY), ("IMPLAUSIBLE", NOTIFY)]


# ── nothing came from anybody ────────────────────────────────────────────────────────────────────────────────────────


def tick_alone(story: Story, at_s: float) -> list[Alert]:
    """Folds the first entry after a stop of the log, during which no evaluator could enter a tick either."""
    entry = Entry(story.state.sequence + 1, T0_MS + round(at_s * 1000), Tick())
    found = fold.step(story.state, entry)
    story.outputs += found
    return [alert for alert in found if isinstance(alert, Alert)]


def test_a_log_that_stood_still_is_an_outage_from_its_last_entry_on() -> None:
    story = country(30)
    report(story, 1, range(29))
    report(story, 1, range(29, 30), away_m=3000)
    found = tick_alone(story, 2400)
    assert [(alert.kind, alert.at_ms, alert.decided_at_ms, alert.outage_silent, alert.late) for alert in found[:1]] == [
        (AlertKind.OUTAGE, T0_MS + 181_000, T0_MS + 2_400_000, 30, True)
    ]
    assert touching(story) == [("OUTAGE", NOTIFY)]
    report(story, 2401, range(30))
    assert outages(story)[1][0] is RECORD and story.state.outage is None
    for at_s in range(2430, 2700, 60):
        report(story, at_s, range(30))
    assert touching(story) == [("OUTAGE", NOTIFY)] and not story.state.grouped


def test_a_log_that_stood_still_for_under_three_minutes_is_no_outage() -> None:
    story = country(30)
    report(story, 1, range(30))
    assert not tick_alone(story, 180)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 700)), min_size=3, max_size=14), st.integers(0, 13))
@settings(max_examples=25, deadline=None)
def test_a_restart_anywhere_changes_nothing(steps: list[tuple[int, int]], split: int) -> None:
    whole, story = country(12), country(12)
    at_s = 1
    for i, (what, wait_s) in enumerate(steps):
        if i >= split:
            story.state = codec.decode(codec.encode(story.state))
        for each_story in (whole, story):
            report(each_story, at_s, (range(12), range(6), range(3, 11), range(0))[what], phones=wait_s % 2 == 0)
            each_story.tick(at_s + wait_s)
        at_s += wait_s
    assert story.outputs == whole.outputs
    assert codec.encode(story.state) == codec.encode(whole.state)


def test_an_exercise_is_no_part_of_an_outage() -> None:
    story = country(9)
    for n in range(9, 30):
        person = log_pb2.ProtectedTarget(person_id=f"p{n}", device_ids=[f"phone{n}"])
        exercise = exercise_pb2.CANARY if n % 2 else exercise_pb2.DRILL
        story.case(*(0, str(n)), wearer_id=f"w{n}", tag_device_ids=[f"tag{n}"], persons=[person], exercise=exercise)
    report(story, 1, range(30))
    story.tick(300)
    assert outages(story) == []
    assert len(story.state.watched) == 9
    assert codec.decode(codec.encode(story.state)).watched == story.state.watched


def test_a_wearer_heard_before_the_outage_began_is_no_part_of_it() -> None:
    """Ten wearers who fall silent one after another, each for ten seconds, are ten silences.

    A later silence gets its own notice.
    """
    story = country(10)
    for n in range(10):
        report(story, 1 + 15 * n, range(n, n + 1))
    for n in range(10):
        report(story, 191 + 15 * n, range(n, n + 1))
    assert not story.of(AlertKind.OUTAGE) and not story.state.silences
    for at_s in range(400, 4000, 60):
        report(story, at_s, range(9))
        story.at(at_s, "phone9", 0)
    assert touching(story) == [("SILENT", NOTIFY)]


def test_an_outage_ends_when_the_silent_wearers_come_back_not_the_others() -> None:
    story = country(12)
    report(story, 1, range(2))
    report(story, 20, range(2, 12))
    report(story, 185, range(2))  # silent at 181 s, and back before the tenth falls silent
    report(story, 210, range(2))
    assert outages(story) == [(NOTIFY, 200, 10, 12)]
    assert story.state.outage is not None and set(story.state.outage.members) == {f"case-{n}" for n in range(2, 12)}
    report(story, 300, range(12))
    assert story.state.outage is None


def test_a_case_that_ends_is_no_longer_silent() -> None:
    story = country(10)
    report(story, 1, range(10))
    story.at(15, "tag9", FAR_M)
    story.tick(190)
    assert len(story.state.silences) == 9
    person = log_pb2.ProtectedTarget(person_id="p0", device_ids=["phone0"])
    ended = {"version": 2, "valid_until_ms": T0_MS + 191_000}
    story.case(192, "0", wearer_id="w0", tag_device_ids=["tag0"], persons=[person], **ended)
    story.tick(200)
    assert not story.of(AlertKind.OUTAGE) and "case-0" not in story.state.silences
