"""Episodes and incidents end in the entry that decides so, whatever the order in which cases arrived or are checked."""

from __future__ import annotations

from services.geofence.domain import codec
from services.geofence.domain.alerts import Alert, DeadLetter
from services.geofence.domain.decisions import AlertDraft, Decisions
from services.geofence.domain.demands import AlertKind, Detection
from services.geofence.domain.entries import Demand, Rules
from tandem.common.v1 import log_pb2
from tests.support.geofence.stories import T0_MS, Story


def silent_under_two_orders() -> Story:
    story = Story()
    story.case(case="2")
    story.case(case="1")
    story.at(0, "phone", 0)
    story.at(0, "tag", 20_000)
    return story


def test_new_rules_decide_on_all_cases_in_one_order_before_and_after_a_checkpoint() -> None:
    story, restored = silent_under_two_orders(), silent_under_two_orders()
    for each_story in (story, restored):
        each_story.tick(700)
        if each_story is restored:
            each_story.state = codec.decode(codec.encode(each_story.state))
        each_story.enter(701, Rules(rules_id="next", silent_notify_after_ms=300_000))
    assert story.outputs == restored.outputs
    assert [alert.case_id for alert in story.of(AlertKind.SILENT) if alert.demand is Demand.NOTIFY] == [
        "case-1",
        "case-2",
    ]


def test_decisions_by_time_under_two_orders_at_one_moment_are_one_incident() -> None:
    story = silent_under_two_orders()
    story.tick(1900)
    emitted = [alert for alert in story.of(AlertKind.SILENT) if alert.demand is Demand.NOTIFY]
    assert len(emitted) == 2 and len({alert.incident_id for alert in emitted}) == 1
    ends = [alert for alert in story.alerts if alert.incident_id == emitted[0].incident_id and alert.incident_ends]
    assert len(ends) == 1 and not story.state.incidents


def test_contact_that_reveals_another_silence_ends_the_incident_it_opens() -> None:
    """His tag is given to somebody else. The first report of her phone then reveals that he isn't heard."""
    story = Story()
    story.case()
    story.at(0, "phone", 0)
    for i in range(40):
        story.at(i * 60, "tag", 20_000)
    assert story.state.cases["case-1"].lost
    other = log_pb2.ProtectedTarget(person_id="q", device_ids=["phone2"])
    story.case(2401, case="2", wearer_id="w2", persons=[other])
    emitted = len(story.alerts)
    story.heard(2402, "phone")
    assert any(alert.demand is Demand.NOTIFY for alert in story.alerts[emitted:])
    assert not story.state.incidents and story.alerts[-1].incident_ends
    story.case(2403, version=2, tag_device_ids=["tag9"])
    story.tick(12_000)


def test_an_incident_that_ends_by_a_defect_gives_a_dead_letter_and_stops_nothing() -> None:
    story = Story()
    story.case()
    state = story.state
    before = Decisions(state, 100, 0)
    before.alert(
        state.cases["case-1"], AlertDraft(Detection.NOT_HEARD_FOR_LONG.alert_type, T0_MS)
    )  # without end_if_quiet
    [opened] = [alert for alert in before.out if isinstance(alert, Alert)]
    after = Decisions(state, 101, 0)
    after.end_if_quiet(state.cases["case-1"])
    dead_letters, over = after.out
    assert dead_letters == DeadLetter(101, "an incident ended without an alert")
    assert isinstance(over, Alert) and over.demand is Demand.RECORD and over.incident_ends
    assert (over.incident_id, over.episode_id) == (opened.incident_id, opened.episode_id)
    assert not state.incidents and not state.cases["case-1"].episode_id
