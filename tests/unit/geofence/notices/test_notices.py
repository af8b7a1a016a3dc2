"""Notices of the Ministry in the fold, by article: when one is due, when a location may go with it, who must check, when it ends."""

from __future__ import annotations

from dataclasses import replace

import pytest

from services.common.errors import InvalidField, PermissionDenied
from services.common.privacy.grounds import RecordKind
from services.common.privacy.notices import NoticeGround
from services.common.rpc.identity import Role
from services.geofence import translate
from services.geofence.domain import codec, demands, notices, sharing
from services.geofence.domain.alerts import Alert, MinistryNotice
from services.geofence.domain.demands import ACTS, CHECKED_BY, NOTIFIES_PERSONS, Act, AlertKind, Leg
from services.geofence.domain.entries import Demand, Rules
from services.geofence.domain.notices import OPEN_NOTICES
from services.geofence.domain.sharing import PositionQuery, Subject
from tandem.common.v1 import alert_pb2, geometry_pb2, log_pb2, notice_pb2
from tests.support.geofence.stories import T0_MS, Story, circle

JUDGMENT, STALKING = notice_pb2.TAG_15_2, notice_pb2.TAG_31_6_4


def come(story: Story, from_m: float, to_m: float, *, from_s: float, mps: float, every_s: float = 15) -> float:
    """The wearer comes from the north at a speed, and she stays at home. Returns the second after the last report."""
    at_s, metres = from_s, from_m
    step_m = mps * every_s if to_m < from_m else -mps * every_s
    while (metres - to_m) * step_m > 0:
        story.at(at_s, "phone", 0)
        story.at(at_s + 1, "tag", metres)
        at_s, metres = at_s + every_s, metres - step_m
    story.at(at_s, "phone", 0)
    story.at(at_s + 1, "tag", to_m)
    return at_s + every_s


def stay(story: Story, north_m: float, *, from_s: float, until_s: float) -> None:
    for at_s in range(round(from_s), round(until_s), 15):
        story.at(at_s, "phone", 0)
        story.at(at_s + 1, "tag", north_m)


def noticed(story: Story) -> list[tuple[str, Demand, bool, tuple[Leg, ...]]]:
    """Kind, demand, urgency and checks of each alert with a notice."""
    return [(a.kind.value, a.demand, a.notice.gives_location, a.checks) for a in story.alerts if a.notice]


def story_with(ground: notice_pb2.NoticeGround.ValueType, *, police: bool = False, **changes: object) -> Story:
    story = Story()
    story.case(0, "1", notice_ground=ground, police_must_check=police, **changes)
    return story


# ── who is notified, and who checks ──────────────────────────────────────────────────────────────────────────────────


def test_tag_act_15_2_notifies_her_and_decree_13_2_2_has_probation_check() -> None:
    story = story_with(JUDGMENT)
    come(story, 1_300, 20, from_s=1, mps=6)
    entered = [a for a in story.of(AlertKind.RING_ENTERED) if a.demand > Demand.WARN]
    assert [(a.ring_mm, a.checks) for a in entered] == [(1_000_000, (Leg.PROBATION,)), (100_000, (Leg.PROBATION,))]
    assert all(a.notice and a.notice.ground is NoticeGround.JUDGMENT and a.notice.person_ids == ("p",) for a in entered)
    warned = [a for a in story.of(AlertKind.RING_ENTERED) if a.demand is Demand.WARN]
    assert warned and not any(a.notice or a.checks for a in warned)


def test_tag_act_31_6_5_has_the_police_check_the_wearer_and_go_to_her() -> None:
    story = story_with(STALKING, police=True)
    come(story, 1_300, 20, from_s=1, mps=6)
    breach = next(a for a in story.of(AlertKind.RING_ENTERED) if a.ring_mm == 100_000)
    assert breach.checks == (Leg.POLICE,)
    assert (Leg.POLICE, "p") in breach.destinations and (Leg.PROBATION, "w") in breach.destinations
    message = translate.alert_to_proto(breach, 0)
    assert [(to.leg, to.subject_id) for to in message.checks] == [(alert_pb2.POLICE, "w")]


def test_tag_act_31_6_4_items_3_and_4_go_to_the_police_alone() -> None:
    story = story_with(
        STALKING, police=True, persons=[log_pb2.ProtectedTarget(person_id="p")], places=[circle("home", 0, 0, 30)]
    )
    for at_s in range(1, 600, 15):
        story.at(at_s, "tag", 1_300 - at_s)
    (near,) = [a for a in story.of(AlertKind.RING_ENTERED) if a.ring_mm == 1_000_000]
    assert (near.checks, near.notice) == ((Leg.POLICE,), None)
    story.says(601, "tag", "STRAP_OPEN")
    (cut,) = story.of(AlertKind.TAMPERED)
    assert (cut.checks, cut.notice) == ((Leg.POLICE,), None)


def test_decree_23_14_1_ends_at_1_km_of_a_place() -> None:
    wide = [
        geometry_pb2.Ring(radius_m=3000, action=geometry_pb2.NOTIFY),
        geometry_pb2.Ring(radius_m=100, action=geometry_pb2.RESPOND),
    ]
    story = story_with(STALKING, police=True, rings=wide, persons=[], places=[circle("home", 0, 0, 30)])
    for at_s in range(1, 300, 15):
        story.at(at_s, "tag", 3_100 - at_s)
    (entered,) = story.of(AlertKind.RING_ENTERED)
    assert entered.checks == () and entered.notice is None


def test_an_item_3_2_order_without_item_2_has_the_police_check_and_notifies_nobody() -> None:
    story = story_with(notice_pb2.NOTICE_GROUND_UNSPECIFIED, police=True)
    come(story, 1_300, 20, from_s=1, mps=6)
    assert not noticed(story)
    assert {a.checks for a in story.of(AlertKind.RING_ENTERED) if a.demand > Demand.WARN} == {(Leg.POLICE,)}


def test_core_case_without_a_ground_nothing_differs_from_a_case_of_before() -> None:
    bare, before = Story(), Story()
    bare.case()
    before.case(notice_ground=JUDGMENT)
    for story in (bare, before):
        come(story, 1_300, 20, from_s=1, mps=6)
    assert not any(a.notice or a.checks for a in bare.alerts)
    assert [replace(a, notice=None, checks=()) for a in before.alerts] == bare.alerts


def test_a_wearer_who_is_known_to_live_within_a_ring_makes_no_new_notice_and_no_check() -> None:
    story = story_with(JUDGMENT)
    stay(story, 800, from_s=1, until_s=6.2 * 3600)
    at_s = come(story, 800, 3_000, from_s=6.2 * 3600, mps=5)
    stay(story, 3_000, from_s=at_s, until_s=at_s + 300)
    known = len(story.alerts)
    come(story, 3_000, 800, from_s=at_s + 300, mps=1.4)
    entered = [a for a in story.alerts[known:] if a.kind is AlertKind.RING_ENTERED and a.demand is Demand.NOTIFY]
    assert entered and not any(a.notice or a.checks for a in entered)


def test_the_one_table_of_demands_names_every_ground_and_act() -> None:
    assert set(NOTIFIES_PERSONS) == set(CHECKED_BY) == set(NoticeGround)
    assert set(ACTS.values()) | {Act.NEAR_PLACE} == set(Act)
    known = {*demands.DETECTIONS.values(), *demands.EQUIPMENT.values()}
    assert all(key in known or key[0] is AlertKind.RING_ENTERED for key in ACTS)


# ── location ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("rules", "mps", "expected"),
    [
        (Rules(), 1.2, [False, True]),  # 1 km on foot isn't urgent, 100 m is
        (Rules(), 8, [True, True]),  # at speed 1 km is
        (Rules(urgent_closing_mps=9), 8, [False, True]),
        (Rules(urgent_within_mm=1_100_000), 1.2, [True, True]),
        (Rules(urgent_within_mm=20_000), 1.2, [False, False]),
    ],
)
def test_tag_act_16_2_5_a_location_goes_with_a_notice_by_the_rule_of_the_log(
    rules: Rules, mps: float, expected: list[bool]
) -> None:
    story = Story()
    story.enter(0, rules)
    story.case(notice_ground=JUDGMENT)
    come(story, 1_300, 60, from_s=1, mps=mps)
    rings = [a for a in story.of(AlertKind.RING_ENTERED) if a.demand > Demand.WARN]
    assert [a.notice is not None and a.notice.gives_location for a in rings] == expected


def test_the_place_of_the_rule_of_urgency() -> None:
    for limit_mm, expected in ((300_000, False), (1_100_000, True)):
        story = Story()
        story.enter(0, Rules(urgent_place_within_mm=limit_mm))
        story.case(
            notice_ground=JUDGMENT, persons=[log_pb2.ProtectedTarget(person_id="p")], places=[circle("home", 0, 0, 30)]
        )
        for at_s in range(1, 400, 15):
            story.at(at_s, "tag", 1_300 - at_s)
        (near,) = [a for a in story.of(AlertKind.RING_ENTERED) if a.ring_mm == 1_000_000]
        assert near.notice and near.notice.gives_location is expected and near.notice.person_ids == ("p",)


def test_each_update_of_a_location_is_a_new_notice_and_demands_no_new_check() -> None:
    story = story_with(JUDGMENT)
    come(story, 1_300, 150, from_s=1, mps=5)
    changed = story.of(AlertKind.DISTANCE_CHANGED)
    assert changed and all(a.notice and a.notice.gives_location and a.checks == () for a in changed)


def test_the_limits_of_the_rule_go_through_the_log_and_back() -> None:
    rules = Rules("r", urgent_within_mm=700_000, urgent_closing_mps=7, urgent_place_within_mm=90_000)
    assert translate.rules_of(translate.rules_entry(rules).rules) == rules


@pytest.mark.parametrize(
    ("field", "value"), [("urgent_within_m", 2_001), ("urgent_closing_mps", 61), ("urgent_place_within_m", 2_001)]
)
def test_a_limit_out_of_range_is_refused_with_its_field(field: str, value: int) -> None:
    with pytest.raises(InvalidField) as refused:
        translate.check_rules("rules.", log_pb2.Rules(rules_id="r", **{field: value}))
    assert refused.value.field == f"rules.{field}"


@pytest.mark.parametrize("role", [Role.ROLE_MOJ_DESK, Role.ROLE_NPA_DESK])
@pytest.mark.parametrize("code", ["TAG_15_2", "TAG_16_2_5", "TAG_DECREE_13_3", "TAG_31_8_2_5", "TAG_DECREE_23_17"])
def test_no_desk_gets_live_positions_under_an_article_of_a_notice(role: Role.ValueType, code: str) -> None:
    query = PositionQuery(
        incident_id="incident-1",
        order_id="",
        legal_basis=code,
        subject=Subject(RecordKind.WEARER, "w"),
        expires_at_ms=T0_MS + 1_000,
    )
    with pytest.raises(PermissionDenied):
        sharing.check(query, role, T0_MS)


def test_urgency_is_in_the_figures_and_never_in_the_alert_that_probation_reads() -> None:
    """Otherwise each limit of the rule would be one more circle round her."""
    seen: list[list[bytes]] = []
    urgent: list[list[bool]] = []
    for limit_mm in (20_000, 2_000_000):
        story = Story()
        story.enter(0, Rules(urgent_within_mm=limit_mm, urgent_closing_mps=60))
        story.case(notice_ground=JUDGMENT)
        come(story, 1_300, 200, from_s=1, mps=3)
        to_probation = [a for a in story.alerts if (Leg.PROBATION, "w") in a.destinations]
        seen.append([translate.alert_to_proto(a, 0).SerializeToString() for a in to_probation])
        urgent.append([translate.measure_to_proto(a).location_allowed for a in to_probation])
    assert seen[0] == seen[1] and seen[0]
    assert urgent[0] != urgent[1]


# ── the end ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def ended(story: Story) -> list[Alert]:
    return story.of(AlertKind.NOTICE_ENDED)


def test_a_notice_ends_when_the_last_ring_is_cleared_and_the_incident_ends_with_the_ring() -> None:
    story = story_with(JUDGMENT)
    at_s = come(story, 1_300, 700, from_s=1, mps=4)
    at_s = come(story, 700, 2_600, from_s=at_s, mps=4)
    stay(story, 2_600, from_s=at_s, until_s=at_s + 300)
    (end,) = ended(story)
    assert end.notice and end.notice.ended and end.notice.person_ids == ("p",)
    assert (end.destinations, end.demand, end.checks) == (((Leg.WARNING, "p"),), Demand.RECORD, ())
    last = [a for a in story.of(AlertKind.RING_CLEARED) if a.ring_mm == 2_000_000]
    assert [a.incident_ends for a in last] == [True] and not end.incident_ends
    assert end.sequence == last[0].sequence and end.ordinal > last[0].ordinal


def test_an_amendment_that_drops_her_ends_her_notice_alone() -> None:
    two = [log_pb2.ProtectedTarget(person_id=name, device_ids=[f"phone-{name}"]) for name in ("p", "q")]
    story = story_with(JUDGMENT, persons=two)
    for at_s in range(1, 200, 15):
        for device in ("phone-p", "phone-q"):
            story.at(at_s, device, 0)
        story.at(at_s + 1, "tag", 1_300 - 3 * at_s)
    assert {id_ for a in story.alerts if a.notice for id_ in a.notice.person_ids} == {"p", "q"}
    story.case(205, version=2, notice_ground=JUDGMENT, persons=two[1:])
    assert [a.notice.person_ids for a in ended(story) if a.notice] == [("p",)]
    story.case(206, version=3, persons=two[1:])
    assert [a.notice.person_ids for a in ended(story) if a.notice] == [("p",), ("q",)]


def test_no_notice_is_open_without_an_episode_and_checkpoints_keep_open_notices() -> None:
    story = story_with(JUDGMENT)
    at_s = come(story, 1_300, 700, from_s=1, mps=4)
    assert OPEN_NOTICES.of(story.state.cases["case-1"]) == {"p": "TAG_15_2"}
    state = codec.decode(codec.encode(story.state))
    assert OPEN_NOTICES.of(state.cases["case-1"]) == {"p": "TAG_15_2"}
    assert state.cases["case-1"].case == story.state.cases["case-1"].case
    at_s = come(story, 700, 2_600, from_s=at_s, mps=4)
    stay(story, 2_600, from_s=at_s, until_s=at_s + 300)
    assert not story.state.cases["case-1"].episode_id and not OPEN_NOTICES.of(story.state.cases["case-1"])


def test_the_end_of_notices_on_two_grounds_names_the_same_one_before_and_after_a_checkpoint() -> None:
    story = story_with(JUDGMENT)
    case_state = story.state.cases["case-1"]
    OPEN_NOTICES.of(case_state).update({"q": "TAG_15_2", "p": "TAG_31_6_4"})
    restored = codec.decode(codec.encode(story.state)).cases["case-1"]
    ended_of_both = [notices.ended(each) for each in (case_state, restored)]
    assert ended_of_both == [MinistryNotice(NoticeGround.JUDGMENT, ("p", "q"), ended=True)] * 2


def test_an_unknown_ground_of_a_newer_registry_is_no_ground_and_the_order_is_enforced() -> None:
    story = story_with(77)  # type: ignore[arg-type]
    come(story, 1_300, 20, from_s=1, mps=6)
    assert [a.ring_mm for a in story.of(AlertKind.RING_ENTERED)] == [2_000_000, 1_000_000, 100_000]
    assert not any(a.notice for a in story.alerts)
