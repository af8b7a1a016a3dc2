"""The live page without a mesh: what its browsers get after steps, lists, targets, units and alerts, and after having been away."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from services.console.domain import live_page
from services.console.domain.board import AssignmentCard, IncidentCard, IncidentTimes
from services.console.domain.live_page import TRACK_MS, LivePage

OFFER = AssignmentCard("a-1", "i-1", "police", "P-1", ("O-1",), "OFFERED", "RESPOND", "RING_ENTERED", due_ms=5_000)
NOTICE = replace(OFFER, state="NOTIFIED", demand="NOTIFY", kind="SILENT", due_ms=None)


def card(id_: str, *assignments: AssignmentCard, opened_ms: int = 1_000, ended_ms: int | None = None) -> IncidentCard:
    own = tuple(replace(assignment, incident_id=id_) for assignment in assignments)
    return IncidentCard(id_, opened_ms, ended_ms, own)


def list_incidents(page: LivePage, listed: list[IncidentCard]) -> None:
    """Shows the incidents of a whole list, as the reader of the list does."""
    gone = page.incident_ids - {card.incident_id for card in listed}
    for card in listed:
        page.put_incident(card)
    page.drop_incidents(gone)
    page.regroup()


def ids(rows: list[dict[str, Any]]) -> list[str]:
    return [row["id"] for row in rows]


def test_a_browser_gets_everything_at_first_and_then_only_the_changes() -> None:
    page = LivePage()
    list_incidents(page, [card("i-1", OFFER), card("i-2", OFFER)])
    first = page.since(None)
    assert (first["reset"], ids(first["incidents"])) == (True, ["i-1", "i-2"])
    seen = page.number
    list_incidents(page, [card("i-1", OFFER), card("i-2", replace(OFFER, state="ESCALATED"))])
    later = page.since(seen)
    assert (later["reset"], ids(later["incidents"]), later["gone"]) == (False, ["i-2"], [])
    assert page.since(page.number)["incidents"] == []


def test_an_older_item_that_changes_is_among_the_changes_and_the_newest_of_all_rows() -> None:
    page = LivePage()
    list_incidents(page, [card("i-1", OFFER), card("i-2", OFFER)])
    seen = page.number
    page.put_incident(card("i-1", replace(OFFER, state="ESCALATED")))
    assert ids(page.since(seen)["incidents"]) == ["i-1"]
    assert ids(page.since(None)["incidents"]) == ["i-2", "i-1"]


def test_the_same_list_is_no_change() -> None:
    page = LivePage()
    list_incidents(page, [card("i-1", OFFER)])
    before = page.number
    list_incidents(page, [card("i-1", OFFER)])
    page.regroup()
    assert page.number == before


def test_each_change_notifies_once() -> None:
    notified: list[None] = []
    page = LivePage(lambda: notified.append(None))
    page.put_incident(card("i-1", OFFER))
    page.put_incident(card("i-1", OFFER))
    page.count_change()
    assert len(notified) == page.number == 2


def test_incidents_and_alerts_are_urgent_and_positions_and_units_are_not() -> None:
    urgent: list[int] = []
    page = LivePage(notify_urgent=lambda: urgent.append(page.number))
    page.put_incident(card("i-1", OFFER))
    page.put_incident(card("i-1", OFFER))
    assert urgent == [page.urgent_number] == [1]
    page.put_target("i-1", {"id": "i-1/w-1", "at": [127.0, 37.5, 5.0], "fix": 1_000})
    page.replace_units({"u-1": {"id": "u-1"}})
    page.count_change()
    assert (page.number, page.urgent_number) == (4, 1)
    page.add_alert({"id": "alert-1"})
    page.add_alert({"id": "alert-1"})
    assert urgent == [1, 5] and page.urgent_number == 5


def test_an_incident_that_left_the_list_is_gone_for_a_browser_that_was_away() -> None:
    page = LivePage()
    list_incidents(page, [card("i-1", OFFER), card("i-2", OFFER)])
    seen = page.number
    list_incidents(page, [card("i-2", OFFER)])
    assert page.since(seen)["gone"] == ["i-1"]
    everything = page.since(None)
    assert (ids(everything["incidents"]), everything["gone"]) == (["i-2"], [])


def test_a_browser_that_missed_a_forgotten_removal_gets_everything() -> None:
    page = LivePage()
    page.put_target("i-1", {"id": "kept", "at": None, "fix": None})
    seen = recent = page.number
    for n in range(live_page.MAX_GONE + 1):
        page.put_target("i-2", {"id": f"t-{n}", "at": None, "fix": n})
        recent = page.number
        page.drop_targets("i-2")
    assert page.since(seen)["reset"]
    assert ids(page.since(seen)["targets"]) == ["kept"]
    assert page.since(recent)["gone"] == [f"t-{live_page.MAX_GONE}"]


def test_a_track_has_the_last_ten_minutes_once_and_goes_with_its_incident() -> None:
    page = LivePage()
    for fix_ms in (0, 1, TRACK_MS, TRACK_MS, TRACK_MS + 2):
        page.put_target("i-1", {"id": "i-1/w", "at": [127.0, 37.0 + fix_ms / 1e6, 9.0], "fix": fix_ms or None})
    page.put_target("i-1", {"id": "i-1/o/home", "at": [127.0, 37.0, 20.0], "fix": None})  # a place has no track
    track = page.tracks("i-1")
    assert list(track) == ["i-1/w"] and [point.fix_ms for point in track["i-1/w"]] == [TRACK_MS, TRACK_MS + 2]
    page.drop_targets("i-1")
    assert page.tracks("i-1") == {}


def test_the_rings_of_an_incident_are_those_of_its_alerts() -> None:
    page = LivePage()
    for n, (incident_id, ring) in enumerate(
        [("i-1", 1000.0), ("i-1", 100.0), ("i-1", 1000.0), ("i-2", 600.0), ("i-1", 0)]
    ):
        page.add_alert({"id": f"alert-{n}", "incident": incident_id, "ring": ring})
    assert page.rings("i-1") == [100.0, 1000.0]


def test_an_item_that_came_back_is_not_gone() -> None:
    page = LivePage()
    page.put_target("i-1", {"id": "t", "at": None, "fix": 1})
    seen = page.number
    page.drop_targets("i-1")
    page.put_target("i-1", {"id": "t", "at": None, "fix": 1})
    back = page.since(seen)
    assert (ids(back["targets"]), back["gone"]) == (["t"], [])


def test_a_step_replaces_its_assignment_and_says_when_the_incident_must_be_read() -> None:
    page = LivePage()
    assert page.assign(OFFER), "an unknown incident"
    assert page.since(None)["incidents"] == []
    page.put_incident(card("i-1", OFFER, replace(OFFER, assignment_id="a-2", leg="probation")))
    assert not page.assign(replace(OFFER, state="ACKNOWLEDGED"))
    [row] = page.since(None)["incidents"]
    assert [to["state"] for to in row["legs"]["police"]] == ["ACKNOWLEDGED"]
    assert not page.assign(replace(OFFER, state="CLOSED"))
    assert page.assign(replace(OFFER, assignment_id="a-2", leg="probation", state="STOOD_DOWN")), "it may have ended"


def test_an_own_offer_of_an_unknown_incident_is_shown_before_the_incident_is_read() -> None:
    urgent: list[int] = []
    page = LivePage(notify_urgent=lambda: urgent.append(page.number))
    assert page.assign(replace(OFFER, offered_ms=4_000)), "the other legs are to be read"
    [row] = page.since(None)["incidents"]
    assert (row["id"], row["opened"], row["demand"], row["alarm"]) == ("i-1", 4_000, "RESPOND", True)
    assert urgent == [1]
    page.put_incident(card("i-1", OFFER, replace(OFFER, assignment_id="a-2", leg="probation")))
    [row] = page.since(None)["incidents"]
    assert (row["opened"], len(row["legs"]["probation"])) == (1_000, 1)


@pytest.mark.parametrize(("state", "is_own"), [("OFFERED", False), ("CLOSED", True)])
def test_another_legs_step_and_a_late_one_show_nothing_before_the_incident_is_read(state: str, is_own: bool) -> None:
    page = LivePage()
    assert page.assign(replace(OFFER, offered_ms=4_000, state=state), is_own=is_own)
    assert page.since(None)["incidents"] == []


def test_a_step_that_says_the_times_of_its_incident_needs_no_reading() -> None:
    page = LivePage()
    assert not page.assign(OFFER, IncidentTimes(4_000, None, is_new=True))
    [row] = page.since(None)["incidents"]
    assert (row["id"], row["opened"], row["ended"]) == ("i-1", 4_000, None)
    assert not page.assign(replace(OFFER, leg="probation", assignment_id="a-2"), is_own=False)
    closed = replace(OFFER, state="STOOD_DOWN")
    assert not page.assign(closed, IncidentTimes(4_000, 9_000, is_new=False))
    [row] = page.since(None)["incidents"]
    assert (row["ended"], len(row["legs"]["probation"])) == (9_000, 1)
    assert not page.assign(replace(OFFER, leg="probation", assignment_id="a-2", state="STOOD_DOWN"), is_own=False)


def test_an_incident_that_another_leg_began_or_that_is_older_than_the_page_is_read() -> None:
    page, times = LivePage(), IncidentTimes(4_000, None, is_new=True)
    assert page.assign(replace(OFFER, leg="probation", assignment_id="a-2"), is_own=False)
    assert page.assign(OFFER, times), "the page lacks the other leg's assignment"
    assert page.assign(replace(OFFER, incident_id="i-2"), times._replace(is_new=False)), "it may have more assignments"


def test_a_flood_of_notices_becomes_a_group_when_it_is_regrouped() -> None:
    page = LivePage()
    for n in range(5):
        page.put_incident(card(f"i-{n}", NOTICE))
    seen = page.number
    page.regroup()
    assert {row["group"] for row in page.since(seen)["incidents"]} == {"SILENT"}


def test_the_oldest_ended_incidents_are_dropped_and_open_ones_never() -> None:
    page = LivePage()
    kept = live_page.MAX_INCIDENTS
    ended = [card(f"ended-{n}", NOTICE, opened_ms=n, ended_ms=n + 1) for n in range(2)]
    list_incidents(page, [*ended, *(card(f"open-{n}", NOTICE, opened_ms=0) for n in range(kept - 1))])
    rows = ids(page.since(None)["incidents"])
    assert len(rows) == kept and "ended-0" not in rows and "ended-1" in rows


def test_the_most_urgent_incidents_are_followed_and_among_equals_those_that_are_followed_already() -> None:
    page = LivePage()
    for shown in (
        card("new", OFFER),
        card("followed", OFFER),
        card("grave", replace(OFFER, state="ESCALATED")),
        card("notice", NOTICE),
        card("ended", OFFER, ended_ms=9_000),
    ):
        page.put_incident(shown)
    assert page.responding({"followed"}, 2) == ["grave", "followed"]
    assert page.responding((), 9) == ["grave", "new", "followed"]


def test_units_are_replaced_as_a_whole() -> None:
    page = LivePage()
    page.replace_units({"u-1": {"id": "u-1"}, "u-2": {"id": "u-2"}})
    seen = page.number
    page.replace_units({"u-2": {"id": "u-2", "unknown": True}})
    changed = page.since(seen)
    assert (changed["units"], changed["gone"]) == ([{"id": "u-2", "unknown": True}], ["u-1"])


def test_an_alert_is_shown_once_and_newest_first() -> None:
    page = LivePage()
    for id_ in ("x", "y", "x"):
        page.add_alert({"id": id_})
    assert ids(page.alerts()) == ["y", "x"]
    assert ids(page.since(1)["alerts"]) == ["y"]
    assert ids(page.since(None)["alerts"]) == ["x", "y"]
