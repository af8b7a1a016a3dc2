"""Live sharing of positions: the tables of who may see whom, and the ends of a share."""

from __future__ import annotations

import dataclasses

import pytest

from services.common.errors import FailedPrecondition, InvalidField, PermissionDenied
from services.common.privacy.grounds import LEGAL_BASES, RecordKind
from services.common.rpc.identity import Role
from services.geofence.domain import sharing
from services.geofence.domain.entries import Case, Demand, Ring, Target
from services.geofence.domain.geometry import PERSON, Disc, ecef_mm, lat_lon_deg
from services.geofence.domain.kinematics.fixes import Fix
from services.geofence.domain.kinematics.track import Track
from services.geofence.domain.sharing import End, PositionQuery, PositionShare, Subject
from services.geofence.domain.state import CaseState, OpenIncident, State

NOW_MS = 1_780_000_000_000
HIM, HER = Subject(RecordKind.WEARER, "w"), Subject(RecordKind.PROTECTED_PERSON, "p")
POLICE, PROBATION = Role.ROLE_NPA_DESK, Role.ROLE_MOJ_DESK


def case(order: str = "o", person: str = "p", device: str = "d") -> Case:
    return Case(
        case_id=f"case-{order}",
        version=1,
        order_id=order,
        wearer_id="w",
        tag_device_ids=("t",),
        targets=(Target(person, True, (device,), PERSON),),
        rings=(Ring(100_000, Demand.RESPOND),),
        valid_from_ms=NOW_MS - 1_000_000,
        valid_until_ms=NOW_MS + 1_000_000,
    )


def state(*cases: Case, open_in: str = "case-o") -> State:
    found = State(
        0,
        now_ms=NOW_MS,
        cases={each.case_id: CaseState(each) for each in cases or (case(),)},
    )
    found.incidents["w"] = OpenIncident("i", [open_in])
    return found


def asked(
    subject: Subject = HIM,
    *,
    incident: str = "i",
    order: str = "",
    basis: str = "STALKING_9_1_3_2",
    in_ms: int = 60_000,
) -> PositionQuery:
    return PositionQuery(
        incident_id="" if order else incident,
        order_id=order,
        legal_basis=basis,
        subject=subject,
        expires_at_ms=NOW_MS + in_ms,
    )


def share_of(known: State, position_query: PositionQuery) -> PositionShare | None:
    return sharing.share_of(known, position_query, sharing.incidents_by_id(known))


def allowed(role: Role.ValueType, position_query: PositionQuery) -> bool:
    try:
        sharing.check(position_query, role, NOW_MS)
    except PermissionDenied:
        return False
    return True


def test_only_desks_and_only_the_police_may_ask_for_a_protected_person() -> None:
    for role in Role.values():
        assert allowed(role, asked(HIM)) == (role in (POLICE, PROBATION))
        assert allowed(role, asked(HER)) == (role == POLICE)


def test_each_article_allows_exactly_the_kinds_of_its_table() -> None:
    # During an incident: him, her; under an order alone: him, her.
    expected = {basis.code: (True, True, False, False) for basis in LEGAL_BASES} | {
        "STALKING_9_1_3": (False, False, False, False),
        "TAG_16_2": (True, False, True, False),
        "TAG_16_3_2": (False, False, False, False),
        "TAG_31_8_2": (True, False, True, False),
        "TAG_DECREE_23_10": (True, True, True, False),
    }
    # The recipient of a notice is the protected person, never a desk.
    expected |= {basis.code: (False, False, False, False) for basis in LEGAL_BASES if basis.notice}
    del expected["STALKING_17_6"], expected["STALKING_17_7"]  # not in force yet
    for code, opens in expected.items():
        found = [
            allowed(POLICE, asked(subject, order=order, basis=code)) for order in ("", "o") for subject in (HIM, HER)
        ]
        assert tuple(found) == opens, code


@pytest.mark.parametrize(
    ("position_query", "field"),
    [
        (asked(basis=""), "legal_basis"),
        (asked(basis="BECAUSE"), "legal_basis"),
        (asked(basis="STALKING_17_6"), "legal_basis"),
        (asked(basis="STALKING_17_7"), "legal_basis"),
        (asked(in_ms=0), "expires_at"),
        (asked(in_ms=sharing.MAX_SHARE_MS + 1), "expires_at"),
    ],
)
def test_a_request_without_grounds_names_the_missing_field(position_query: PositionQuery, field: str) -> None:
    with pytest.raises(InvalidField) as rejected:
        sharing.check(position_query, POLICE, NOW_MS)
    assert rejected.value.field == field


def test_each_subject_is_shared_under_the_order_that_names_it() -> None:
    two = state(case(), case("o2", "p2", "d2"))
    two.incidents["w"].case_ids.append("case-o2")
    found = [share_of(two, asked(subject)) for subject in (HIM, HER, Subject(RecordKind.PROTECTED_PERSON, "p2"))]
    assert [position_share and position_share.order_id for position_share in found] == ["o", "o", "o2"]
    assert {position_share and position_share.incident_id for position_share in found} == {"i"}


def test_an_unthreatened_subject_is_not_shared_for_another_incident() -> None:
    other = Subject(RecordKind.PROTECTED_PERSON, "p2")
    two = state(case(), case("o2", "p2", "d2"))
    with pytest.raises(FailedPrecondition):
        share_of(two, asked(other))
    assert share_of(two, asked(incident="another")) is None
    assert share_of(two, asked(order="another")) is None


def test_only_the_police_see_a_protected_place_and_only_during_its_incident() -> None:
    shape = Disc((1_000.0, 2_000.0, 3_000.0), 50_000.0)
    here = state(dataclasses.replace(case(), targets=(*case().targets, Target("home", False, (), shape))))
    home = Subject(RecordKind.ORDER, "o/home")
    for role in Role.values():
        assert allowed(role, asked(home)) == (role == POLICE)
        assert not allowed(role, asked(home, order="o")), "nobody needs it while nobody approaches"
    found = share_of(here, asked(home, basis="TAG_DECREE_23_10"))
    assert found is not None
    seen = sharing.locate(here, found)
    assert (seen.fix, seen.unknown, seen.place) == (None, False, shape) and shape.bounding_ball == (
        shape.centre,
        50_000.0,
    )
    assert sharing.end_of(here, found, NOW_MS) is None
    assert sharing.end_of(state(), found, NOW_MS) is End.WITHDRAWN
    for other in ("o/school", "o2/home", "o"):
        with pytest.raises(FailedPrecondition):
            share_of(here, asked(Subject(RecordKind.ORDER, other)))


def share(subject: Subject = HIM, incident: str = "i") -> PositionShare:
    return PositionShare(subject, "case-o", "o", "w", incident, NOW_MS + 60_000)


def test_a_share_ends_with_its_incident_or_order() -> None:
    for position_share in (share(HIM), share(HER), share(HIM, incident="")):
        assert sharing.end_of(state(), position_share, NOW_MS) is None
        assert sharing.end_of(state(), position_share, NOW_MS + 60_000) is End.EXPIRED
        assert sharing.end_of(state(), position_share, NOW_MS + 1_000_000) is End.ORDER_ENDED
        assert sharing.end_of(state(), position_share, NOW_MS - 1_000_001) is End.ORDER_ENDED
        over = state()
        over.cases["case-o"].ended = True
        assert sharing.end_of(over, position_share, NOW_MS) is End.ORDER_ENDED
        assert sharing.end_of(State(0), position_share, NOW_MS) is End.ORDER_ENDED
    without = state(dataclasses.replace(case(), targets=()))
    assert sharing.end_of(without, share(HER), NOW_MS) is End.WITHDRAWN
    assert sharing.end_of(without, share(HIM), NOW_MS) is None
    untagged = state(dataclasses.replace(case(), tag_device_ids=()))
    assert sharing.end_of(untagged, share(HIM), NOW_MS) is End.WITHDRAWN


def test_an_incident_that_goes_on_for_another_person_ends_her_share_not_his() -> None:
    going_on = state(case(), case("o2", "p2", "d2"), open_in="case-o2")
    assert sharing.end_of(going_on, share(HIM), NOW_MS) is None
    assert sharing.end_of(going_on, share(HER), NOW_MS) is End.INCIDENT_ENDED
    going_on.incidents["w"] = OpenIncident("the next one", ["case-o"])
    assert sharing.end_of(going_on, share(HIM), NOW_MS) is End.INCIDENT_ENDED


def test_a_position_is_known_for_three_minutes() -> None:
    known = state()
    assert sharing.locate(known, share()) == sharing.KnownPosition(None, unknown=True)
    fix = Fix(NOW_MS - 180_000, NOW_MS - 180_000, "r", *ecef_mm(375_000_000, 1_270_000_000), 5_000)
    known.tracks["t"] = Track([fix])
    assert sharing.locate(known, share()) == sharing.KnownPosition(fix, unknown=False)
    known.now_ms += 1
    assert sharing.locate(known, share()) == sharing.KnownPosition(fix, unknown=True)


@pytest.mark.parametrize("lat_e7", [-600_000_001, -1, 0, 337_654_321, 375_000_000, 599_999_999])
@pytest.mark.parametrize("lon_e7", [-1_799_999_999, 0, 1_270_000_001, 1_800_000_000])
def test_coordinates_survive_the_fold_unchanged(lat_e7: int, lon_e7: int) -> None:
    assert lat_lon_deg(ecef_mm(lat_e7, lon_e7)) == pytest.approx((lat_e7 / 1e7, lon_e7 / 1e7), abs=1.1e-7)


def test_time_alone_next_makes_a_position_unknown_or_ends_the_share() -> None:
    known = state()
    expires_ms = NOW_MS + 60_000
    assert sharing.next_change_ms(known, share(), sharing.locate(known, share())) == expires_ms, "nothing to forget"
    fix = Fix(NOW_MS - 179_000, NOW_MS - 179_000, "r", *ecef_mm(375_000_000, 1_270_000_000), 5_000)
    known.tracks["t"] = Track([fix])
    due_ms = sharing.next_change_ms(known, share(), sharing.locate(known, share()))
    assert due_ms == NOW_MS + 1_001
    known.now_ms = due_ms - 1
    assert not sharing.locate(known, share()).unknown
    known.now_ms = due_ms
    assert sharing.locate(known, share()).unknown
    assert sharing.next_change_ms(known, share(), sharing.locate(known, share())) == expires_ms
    brief = state(dataclasses.replace(case(), valid_until_ms=NOW_MS + 5))
    assert sharing.next_change_ms(brief, share(), sharing.locate(brief, share())) == NOW_MS + 5
