"""Choice of the unit to ask: jurisdiction, shift, status, skills, travel time."""

from __future__ import annotations

from dataclasses import replace

import pytest

from services.common.geometry import LatLon, Polygon, great_circle_m
from services.dispatch.domain.enums import EscalationLevel, Estimate
from services.dispatch.domain.roster import (
    POSITION_MAX_AGE_MS,
    SKILL_WORTH_S,
    Board,
    Choice,
    RosterOutcome,
    Status,
    Travel,
    Trip,
    UnitQuery,
    UnitReport,
    decide_put,
    decide_report,
    next_choice,
    offices_for,
    units_in_reach,
)
from tests.support.dispatch.roster import AT_DAY, SEOUL, TWO_OFFICES, board, office, unit

NOW_MS = 1_000
BUSAN = LatLon(35.1796, 129.0756)


def ask(where: Board, **changes: object) -> Choice | None:
    return next_choice(where, replace(UnitQuery("assign-1", "p1", NOW_MS), **changes))  # type: ignore[arg-type]


def road(seconds: int) -> Travel:
    return Travel(seconds, Estimate.ROAD)


def test_the_unit_with_the_least_travel_time_comes_first_and_the_choice_states_its_facts() -> None:
    where = replace(AT_DAY, travel={Trip("a1", "p1"): road(400), Trip("a2", "p1"): road(200)})
    assert ask(where) == Choice(EscalationLevel.UNIT, "a", "a2", "patrol-car", "", 200, Estimate.ROAD, 2)


def test_a_unit_of_unknown_position_comes_after_a_far_one() -> None:
    where = replace(AT_DAY, travel={Trip("a2", "p1"): road(3_000)})
    chosen = ask(where)
    assert chosen and chosen.unit_id == "a2"
    chosen = ask(AT_DAY)
    assert chosen and (chosen.unit_id, chosen.travel_s, chosen.estimate) == ("a1", None, Estimate.UNKNOWN)


def test_each_escalation_level_gets_one_offer() -> None:
    levels: list[tuple[int, str, str]] = []
    tried: frozenset[str] = frozenset()
    above = 0
    while choice := ask(AT_DAY, above=above, tried=tried):
        levels.append((choice.level, choice.unit_id, choice.desk))
        tried, above = tried | {choice.unit_id}, choice.level
    assert levels == [
        (EscalationLevel.UNIT, "a1", ""),
        (EscalationLevel.NEXT_UNIT, "a2", ""),
        (EscalationLevel.NEXT_OFFICE, "b1", ""),
        (EscalationLevel.SUPERVISOR, "", "supervisor-a"),
        (EscalationLevel.NATIONAL_DESK, "", "national"),
    ]


@pytest.mark.parametrize(
    ("shift_ms", "on_shift"),
    [((0, NOW_MS + 1), True), ((NOW_MS, NOW_MS + 1), True), ((0, NOW_MS), False), ((NOW_MS + 1, 9_999), False)],
)
def test_only_units_on_shift_are_asked(shift_ms: tuple[int, int], on_shift: bool) -> None:
    chosen = ask(board(TWO_OFFICES, [unit("a1", "a", shift_ms=shift_ms)]))
    assert chosen and chosen.level is (EscalationLevel.UNIT if on_shift else EscalationLevel.SUPERVISOR)


def test_units_that_are_off_duty_or_removed_are_not_asked() -> None:
    where = board(TWO_OFFICES, [replace(unit("a1", "a"), removed=True), unit("a2", "a")], status={"a2": Status.OFF})
    chosen = ask(where)
    assert chosen and chosen.level is EscalationLevel.SUPERVISOR


def test_a_free_unit_of_the_next_office_comes_before_a_busy_one_of_the_responsible_office() -> None:
    where = board(TWO_OFFICES, [unit("a1", "a"), unit("b1", "b")], engaged={"a1": {"assign-9": "incident-9"}})
    chosen = ask(where)
    assert chosen and (chosen.level, chosen.unit_id, chosen.busy_in) == (EscalationLevel.NEXT_OFFICE, "b1", "")


def test_where_no_unit_is_free_a_busy_unit_is_asked_and_the_choice_says_so() -> None:
    where = board(
        TWO_OFFICES,
        [unit("a1", "a"), unit("b1", "b")],
        engaged={"a1": {"assign-9": "incident-9"}},
        status={"b1": Status.BUSY},
    )
    first = ask(where)
    assert first and (first.level, first.unit_id, first.busy_in) == (EscalationLevel.UNIT, "a1", "incident-9")
    second = ask(where, above=EscalationLevel.UNIT, tried=frozenset(("a1",)))
    assert second and (second.level, second.unit_id, second.busy) == (EscalationLevel.NEXT_OFFICE, "b1", True)


def test_a_unit_engaged_in_the_same_assignment_is_not_busy() -> None:
    chosen = ask(board(TWO_OFFICES, [unit("a1", "a")], engaged={"a1": {"assign-1": "incident-1"}}))
    assert chosen and chosen.busy_in == ""


def test_the_preferred_skill_outweighs_only_a_limited_travel_time() -> None:
    units = [unit("a1", "a"), unit("a2", "a", skills=["tag-repair"])]
    for extra_s, first in ((SKILL_WORTH_S - 1, "a2"), (SKILL_WORTH_S + 1, "a1")):
        where = board(TWO_OFFICES, units, travel={("a1", "p1"): road(60), ("a2", "p1"): road(60 + extra_s)})
        chosen = ask(where, skill="tag-repair")
        assert chosen and chosen.unit_id == first
    chosen = ask(board(TWO_OFFICES, units[:1]), skill="tag-repair")
    assert chosen and chosen.unit_id == "a1", "a unit without the skill is still asked"


def test_an_office_whose_machine_does_not_respond_is_skipped() -> None:
    chosen = ask(AT_DAY, above=EscalationLevel.UNIT, tried=frozenset(("a1",)), skip_office_id="a")
    assert chosen and (chosen.level, chosen.unit_id) == (EscalationLevel.NEXT_OFFICE, "b1")


def test_an_office_that_names_a_destination_comes_before_one_whose_area_contains_it_and_before_the_rest() -> None:
    rest = office("rest")
    around = office("around", radius_m=5_000)
    named = office("named", subjects=["p1"])
    where = board([rest, around, named], [])
    near = replace(where, positions={"p1": SEOUL, "p2": SEOUL, "p3": BUSAN})
    assert [found.office_id for found in offices_for(near, "p1")] == ["named"]
    assert [found.office_id for found in offices_for(near, "p2")] == ["around"]
    assert [found.office_id for found in offices_for(near, "p3")] == ["rest"]
    assert [found.office_id for found in offices_for(where, "p2")] == ["rest"], "the position is unknown"


def test_offices_that_follow_one_another_in_a_cycle_are_listed_once_and_a_removed_one_is_skipped() -> None:
    ring = [office("a", next_id="b"), replace(office("b", next_id="c", subjects=["x"]), removed=True)]
    ring.append(office("c", next_id="b", subjects=["y"]))
    assert [found.office_id for found in offices_for(board(ring, []), "p1")] == ["a", "c"]


def test_without_a_responsible_office_the_national_desk_is_asked_at_once() -> None:
    where = board([office("a", subjects=["somebody"])], [unit("a1", "a")])
    assert ask(where) == Choice(EscalationLevel.NATIONAL_DESK, "a", desk="national")
    assert units_in_reach(where, "p1") == () and units_in_reach(where, "somebody") == ("a1",)


# ── areas ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_an_area_contains_the_points_inside_its_border() -> None:
    assert great_circle_m(SEOUL, BUSAN) == pytest.approx(325_000, rel=0.01)
    notched = Polygon((LatLon(0, 0), LatLon(0, 4), LatLon(4, 4), LatLon(1, 2), LatLon(4, 0)))
    for lat, lon, inside in ((0.5, 2, True), (2, 2, False), (3, 0.2, True), (-1, 2, False), (2, 5, False)):
        assert notched.contains(LatLon(lat, lon)) == inside


# ── records and reports ──────────────────────────────────────────────────────────────────────────────────────────────


def test_the_greater_version_of_a_record_wins() -> None:
    first = unit("a1", "a")
    assert decide_put(None, first) is RosterOutcome.STORED and decide_put(first, first) is RosterOutcome.UNCHANGED
    assert decide_put(first, replace(first, version=2)) is RosterOutcome.STORED
    assert decide_put(replace(first, version=2), first) is RosterOutcome.SUPERSEDED
    assert decide_put(first, replace(first, office_id="b")) is None


def test_the_later_report_wins_and_without_a_position_it_keeps_the_last_one() -> None:
    first = UnitReport(Status.AVAILABLE, 1_000, SEOUL, 1_000)
    assert decide_report(UnitReport(), first) == (RosterOutcome.STORED, first)
    assert decide_report(first, first) == (RosterOutcome.UNCHANGED, first)
    assert decide_report(first, UnitReport(Status.OFF, 999)) == (RosterOutcome.SUPERSEDED, first)
    outcome, busy = decide_report(first, UnitReport(Status.BUSY, 2_000))
    assert outcome is RosterOutcome.STORED and busy == UnitReport(Status.BUSY, 2_000, SEOUL, 1_000)
    assert busy.place(1_000 + POSITION_MAX_AGE_MS) == SEOUL and busy.place(1_001 + POSITION_MAX_AGE_MS) is None
