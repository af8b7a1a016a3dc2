"""Equipment events, and contact with devices."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.common.errors import InvalidField
from services.geofence import translate
from services.geofence.domain import codec, demands, state
from services.geofence.domain.alerts import Alert, AnomalyKind, DeadLetter
from services.geofence.domain.demands import AlertKind, Leg
from services.geofence.domain.entries import FOLD_VERSION, Demand, EquipmentKind
from tandem.common.v1 import alert_pb2, log_pb2
from tests.support.geofence.stories import T0_MS, Story

WEARER = (Leg.PROBATION, "w")
PERSON = (Leg.POLICE, "p")


def reports_of(device_id: str, *events: str) -> Story:
    """A case, and a device that reports an event each minute."""
    story = Story()
    story.case()
    for i, event in enumerate(events):
        story.says(60 * i, device_id, event)
    return story


def emitted(alerts: Sequence[Alert]) -> list[tuple[AlertKind, Demand]]:
    return [(alert.kind, alert.demand) for alert in alerts]


def in_order(events: Iterable[EquipmentKind]) -> list[EquipmentKind]:
    return sorted(events, key=lambda event: event.value)


def restarted(story: Story) -> None:
    story.state = codec.decode(codec.encode(story.state))


# ── the table ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_each_event_of_the_protos_is_in_the_table_of_demands() -> None:
    assert {kind.value for kind in EquipmentKind} == set(log_pb2.EquipmentKind.keys()) - {"EQUIPMENT_KIND_UNSPECIFIED"}
    assert demands.EQUIPMENT.keys() | demands.WITHOUT_ALERT == set(EquipmentKind)
    assert not demands.EQUIPMENT.keys() & demands.WITHOUT_ALERT
    assert {kind.value for kind in AlertKind} == set(alert_pb2.AlertKind.keys()) - {"ALERT_KIND_UNSPECIFIED"}


def test_a_demand_is_active_until_its_end_which_is_for_the_record() -> None:
    demanding = {event for event, (_, demand) in demands.EQUIPMENT.items() if demand > Demand.RECORD}
    assert demanding == demands.ACTIVE_UNTIL_ENDED
    for end, beginning in demands.ENDS.items():
        assert demands.EQUIPMENT[end] == (demands.EQUIPMENT[beginning][0], Demand.RECORD)


@pytest.mark.parametrize("event", in_order(demands.OF_TAGS ^ demands.OF_PERSONS))
def test_an_event_that_a_device_cannot_report_is_a_dead_letter(event: EquipmentKind) -> None:
    wrong_device = "phone" if event in demands.OF_TAGS else "tag"
    story = reports_of(wrong_device, event.value)
    assert story.outputs == [DeadLetter(story.state.sequence, f"{event.value} from a device that can't say so")]


@pytest.mark.parametrize("event", in_order(demands.WITHOUT_ALERT))
@pytest.mark.parametrize("device_id", ["tag", "phone"])
def test_an_event_without_an_alert_counts_only_as_contact(device_id: str, event: EquipmentKind) -> None:
    story = reports_of(device_id, event.value)
    assert not story.outputs
    assert story.state.heard_at_ms == {device_id: T0_MS}


# ── notices ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("device_id", "event", "kind", "destinations"),
    [
        ("tag", "JAMMING_SUSPECTED", AlertKind.JAMMED, (WEARER, PERSON)),
        ("tag", "SHUTDOWN", AlertKind.DEVICE_OFF, (WEARER, PERSON)),
        ("phone", "JAMMING_SUSPECTED", AlertKind.JAMMED, (PERSON,)),
        ("phone", "SHUTDOWN", AlertKind.DEVICE_OFF, (PERSON,)),
        ("phone", "DEVICE_REFUSED", AlertKind.PROTECTED_DEVICE_LOST, (PERSON,)),
    ],
)
def test_a_faulty_device_notifies_the_desks_and_warns_nobody(
    device_id: str, event: str, kind: AlertKind, destinations: tuple[tuple[Leg, str], ...]
) -> None:
    [notice] = reports_of(device_id, event).alerts
    assert (notice.kind, notice.demand) == (kind, Demand.NOTIFY)
    assert notice.destinations == destinations
    assert notice.target_id == ("p" if device_id == "phone" else "")
    assert notice.incident_opens and notice.incident_ends, "it may last for months, and holds no incident open"


@pytest.mark.parametrize(
    ("event", "end"),
    [("JAMMING_SUSPECTED", "JAMMING_OVER"), ("SHUTDOWN", "STARTED"), ("DEVICE_REFUSED", "DEVICE_ACCEPTED")],
)
def test_a_notice_is_given_once_until_its_end(event: str, end: str) -> None:
    story = reports_of("phone", event, event, event, end, event)
    notify, record = Demand.NOTIFY, Demand.RECORD
    first, over, repeated = story.of(demands.EQUIPMENT[EquipmentKind(event)][0])
    assert [first.demand, over.demand, repeated.demand] == [notify, record, notify]
    assert first.incident_id != repeated.incident_id
    assert over.incident_id == ""


def test_a_notice_joins_the_open_incident() -> None:
    story = Story()
    story.case()
    story.at(0, "phone", 0)
    story.at(1, "tag", 50)
    story.says(2, "tag", "SHUTDOWN")
    assert len({a.incident_id for a in story.alerts}) == 1
    assert not any(a.incident_ends for a in story.alerts), "the rings hold it open"


def test_a_tag_that_is_off_under_three_orders_is_one_incident() -> None:
    story = Story()
    for case in ("1", "2", "3"):
        story.case(case=case)
    story.says(5, "tag", "SHUTDOWN")
    assert [a.order_id for a in story.alerts] == ["order-1", "order-2", "order-3"]
    assert len({a.incident_id for a in story.alerts}) == 1
    assert [a.incident_ends for a in story.alerts] == [False, False, True]
    assert not story.state.incidents


def test_a_later_order_gets_the_active_notice_and_an_amendment_does_not_repeat_it() -> None:
    story = Story()
    story.says(5, "phone", "DEVICE_REFUSED")
    story.case(60)
    story.case(70, version=2)
    [notice] = story.alerts
    assert (notice.kind, notice.at_ms, notice.incident_ends) == (AlertKind.PROTECTED_DEVICE_LOST, T0_MS + 60_000, True)


def test_an_order_that_begins_by_time_alone_leaves_no_incident_open_for_a_notice() -> None:
    story = Story()
    story.case(valid_from_ms=T0_MS + 50_000)
    story.says(5, "tag", "SHUTDOWN")
    story.tick(60)
    [notice] = story.alerts
    assert notice.at_ms == T0_MS + 50_000 and notice.incident_ends
    assert not story.state.incidents


def test_the_end_of_an_order_retracts_a_notice_for_the_record() -> None:
    story = Story()
    story.case(valid_until_ms=T0_MS + 100_000)
    story.says(5, "phone", "DEVICE_REFUSED")
    story.tick(200)
    lost = AlertKind.PROTECTED_DEVICE_LOST
    assert emitted(story.alerts) == [(lost, Demand.NOTIFY), (lost, Demand.RECORD)]
    assert not story.state.cases["case-1"].raised


def test_a_cut_strap_holds_the_incident_open_after_jamming_ends() -> None:
    story = reports_of("tag", "STRAP_OPEN", "JAMMING_SUSPECTED", "JAMMING_OVER")
    assert not any(a.incident_ends for a in story.alerts)
    story.says(600, "tag", "STRAP_CLOSED")
    assert story.alerts[-1].incident_ends


# ── contact ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_contact_counts_from_a_reports_arrival_whatever_its_content() -> None:
    story = Story()
    story.case()
    heard = story.state.heard_at_ms
    story.heard(10, "tag", "phone")
    assert heard == {"tag": T0_MS + 10_000, "phone": T0_MS + 10_000}
    story.at(20, "tag", 5000)
    story.says(30, "phone", "CHARGER_CONNECTED")
    assert heard == {"tag": T0_MS + 20_000, "phone": T0_MS + 30_000}
    story.at(9000, "tag", 5000, fix_s=100)
    assert isinstance(story.outputs[-1], DeadLetter), "too old to be used, but still contact"
    assert heard["tag"] == T0_MS + 9_000_000


def test_contact_alone_gives_a_device_no_position() -> None:
    story = Story()
    story.case()
    story.at(0, "phone", 0)
    story.at(0, "tag", 50)
    entered = list(story.outputs)
    for t in range(10, 600, 10):
        story.heard(t, "tag", "phone")
    assert [alert for alert in story.alerts if alert not in entered] == story.of(
        AlertKind.UNKNOWN_NEAR, AlertKind.IMPLAUSIBLE
    )
    assert {alert.anomaly for alert in story.of(AlertKind.IMPLAUSIBLE)} == {AnomalyKind.CLOCK}
    assert {device: len(track.fixes) for device, track in story.state.tracks.items()} == {"phone": 1, "tag": 1}


def test_a_buffered_batch_folds_like_single_reports() -> None:
    batch = log_pb2.PositionBatch(
        device_id=["tag"], report_id=["r"], fix_time_ms=[T0_MS], lat_e7=[1], lon_e7=[1], accuracy_mm=[5]
    )
    live = translate.entry_body(log_pb2.LogEntry(positions=batch).SerializeToString())
    batch.backfilled = True
    assert translate.entry_body(log_pb2.LogEntry(positions=batch).SerializeToString()) == live


def test_columns_of_unequal_length_are_rejected() -> None:
    entry = log_pb2.LogEntry(heard=log_pb2.HeardBatch(device_id=["tag", "phone"], report_id=["r"]))
    with pytest.raises(InvalidField, match="columns of unequal length"):
        translate.entry_body(entry.SerializeToString())


# ── resent ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_memory_of_reports_is_bounded_and_a_resent_one_counts_once() -> None:
    story = Story()
    story.case()
    for i in range(3 * state.MAX_EQUIPMENT_REPORTS):
        story.says(i / 10, "tag", "BATTERY_LOW", report_id=f"e{i}")
    assert len(story.state.equipment_reports["tag"]) == state.MAX_EQUIPMENT_REPORTS
    restarted(story)
    alerts = len(story.alerts)
    for i in range(2 * state.MAX_EQUIPMENT_REPORTS, 3 * state.MAX_EQUIPMENT_REPORTS):
        story.says(400, "tag", "BATTERY_LOW", report_id=f"e{i}")
    assert len(story.alerts) == alerts


def test_events_are_forgotten_after_two_hours() -> None:
    story = Story()
    story.case()
    story.says(0, "tag", "BATTERY_LOW", report_id="first")
    story.says(7199, "tag", "BATTERY_LOW", report_id="first")
    story.says(7199, "tag", "BATTERY_LOW", report_id="second")
    assert len(story.of(AlertKind.LOW_BATTERY)) == 2
    story.says(7201, "tag", "BATTERY_LOW", report_id="third")
    assert list(story.state.equipment_reports["tag"]) == ["second", "third"]


# ── random lives ─────────────────────────────────────────────────────────────────────────────────────────────────────


def life(seed: int, splits: set[int]) -> Story:
    """A hundred reports of all sorts, some of them resent, with a restart before each of `splits`."""
    rng = random.Random(seed)
    story = Story(clear_after_s=10)
    for i in range(100):
        if i in splits:
            restarted(story)
        at_s, device_id = i * 150.0, rng.choice(("tag", "phone"))
        match rng.randrange(5):
            case 0:
                story.case(at_s, version=i + 1, valid_from_ms=T0_MS + rng.randrange(15_000_000))
            case 1:
                story.heard(at_s, device_id, "phone")
            case 2:
                event = rng.choice([kind.value for kind in EquipmentKind])
                story.says(at_s, device_id, event, f"e{rng.randrange(40)}", at_s - rng.randrange(300))
            case _:
                story.at(at_s, device_id, rng.uniform(-900, 900), fix_s=at_s - rng.choice((0, 0, 200, 9000)))
    return story


@given(st.integers(0, 10_000), st.sets(st.integers(0, 99), max_size=12))
@settings(max_examples=60, deadline=None)
def test_restarts_anywhere_between_positions_events_and_contacts_change_nothing(seed: int, splits: set[int]) -> None:
    whole, story = life(seed, set()), life(seed, splits)
    assert story.outputs == whole.outputs
    assert codec.encode(story.state) == codec.encode(whole.state)


def test_a_checkpoint_of_another_version_of_the_fold_is_not_read() -> None:
    encoded = codec.encode(Story().state)
    next_version = FOLD_VERSION + 1
    later = encoded.replace(f'"fold_version":{FOLD_VERSION}'.encode(), f'"fold_version":{next_version}'.encode())
    assert later != encoded
    with pytest.raises(codec.UnreadableState, match=f"fold version {next_version}, this is {FOLD_VERSION}"):
        codec.decode(later)


@pytest.mark.parametrize(
    ("beginnings", "end"),
    [
        ((("phone", "PANIC_BUTTON"),), ("watch", "PANIC_CANCELLED")),
        ((("tag", "STRAP_OPEN"), ("tag", "CASE_OPEN")), ("tag", "STRAP_CLOSED")),
        ((("tag", "STRAP_OPEN"),), ("wrist-tag", "STRAP_CLOSED")),
    ],
)
def test_the_end_of_one_of_several_events_is_no_end_of_the_threat(
    beginnings: tuple[tuple[str, str], ...], end: tuple[str, str]
) -> None:
    """The legs read RECORD as the end of a threat, so an alert that ends nothing goes to nobody."""
    story = Story()
    person = log_pb2.ProtectedTarget(person_id="p", device_ids=["phone", "watch"])
    story.case(tag_device_ids=["tag", "wrist-tag"], persons=[person])
    for i, (device_id, event) in enumerate(beginnings):
        story.says(60 * i, device_id, event)
    story.says(300, *end)
    *_, ended = story.alerts
    assert (ended.demand, ended.destinations, ended.incident_ends) == (Demand.RECORD, (), False)
    for i, (device_id, event) in enumerate(beginnings):
        closing = next(closing for closing, begun in demands.ENDS.items() if begun.value == event)
        story.says(400 + 60 * i, device_id, closing.value)
    assert story.alerts[-1].destinations and story.alerts[-1].incident_ends


def panicked(story: Story) -> list[tuple[bool, tuple[str, ...]]]:
    """Whether each panic alert is silent, and the legs to which it goes."""
    return [(alert.silent, tuple(leg.value for leg, _ in alert.destinations)) for alert in story.of(AlertKind.PANIC)]


def test_a_panic_goes_to_the_desks_and_not_to_herself_and_says_whether_it_is_silent() -> None:
    story = Story()
    story.case(tag_device_ids=["tag"], persons=[log_pb2.ProtectedTarget(person_id="p", device_ids=["phone"])])
    for at_s, silent in ((10, False), (20, True), (30, False)):
        story.says(at_s, "phone", "PANIC_BUTTON", silent=silent)
    desks = ("PROBATION", "POLICE")
    assert panicked(story) == [(False, desks), (True, desks), (False, desks)]


def test_a_silent_panic_of_before_its_order_is_silent_under_the_order_too() -> None:
    story = Story()
    person = log_pb2.ProtectedTarget(person_id="p", device_ids=["phone"])
    story.case(tag_device_ids=["tag"], persons=[person])
    story.says(10, "phone", "PANIC_BUTTON", silent=True)
    restarted(story)
    story.case(20, "2", wearer_id="w2", tag_device_ids=["tag-2"], persons=[person])
    assert [silent for silent, _ in panicked(story)] == [True, True]
