"""What a desk must not miss: a panic call, a deadline of its own, and an incident that has ended and waits to be closed."""

from __future__ import annotations

from dataclasses import replace

import pytest

from services.common import times
from services.console import translate
from services.console.domain import board, live_page
from services.console.domain.board import AssignmentCard, IncidentCard, ShownFlag
from services.console.domain.live_page import LivePage
from services.console.pages.texts import BAR_ISLAND, TEXTS
from tandem.common.v1 import alert_pb2, subject_pb2
from tandem.dispatch.v1 import dispatch_pb2, following_pb2
from tandem.geofence.v1 import geofence_pb2

OFFER = AssignmentCard("a-1", "i-1", "police", "P-1", ("O-1",), "OFFERED", "RESPOND", "RING_ENTERED", due_ms=5_000)
PROBATION = replace(OFFER, assignment_id="a-2", leg="probation", subject_id="W-1", due_ms=2_000)
WARNED = replace(OFFER, assignment_id="a-3", leg="warning", state="ACKNOWLEDGED", due_ms=None)
CALLED = replace(OFFER, state="EN_ROUTE", panic_ms=4_000, due_ms=None)
ENDED = replace(OFFER, state="STOOD_DOWN", due_ms=None)


def card(id_: str, *assignments: AssignmentCard, opened_ms: int = 1_000, ended_ms: int | None = None) -> IncidentCard:
    return IncidentCard(id_, opened_ms, ended_ms, tuple(replace(each, incident_id=id_) for each in assignments))


# ── panic calls ──


def test_a_panic_call_comes_first_also_within_an_incident_that_is_under_way() -> None:
    losing = replace(OFFER, flags=frozenset({ShownFlag("losing", board.FAILING)}), due_ms=0)
    assert board.rank(card("i-1", CALLED)) < board.rank(card("i-2", losing))
    back = replace(CALLED, panic_withdrawn_ms=4_500)
    assert board.rank(card("i-1", back)).level == board.UNDER_WAY
    assert board.rank(card("i-1", replace(CALLED, state="STOOD_DOWN"), ended_ms=5_000)).level == board.ENDED
    drill = replace(CALLED, exercise=True)
    assert board.rank(card("i-1", drill)).level == board.FAILING, "an exercise never stands before a live call"


@pytest.mark.parametrize(
    ("flags", "warned", "answer", "answered_ms"),
    [
        ((), replace(WARNED, state="OFFERED"), "", None),
        ((), replace(WARNED, acknowledged_ms=4_700), "confirmed", 4_700),
        ((), replace(WARNED, acknowledged_ms=3_900), "earlier", 3_900),
        (("reached",), replace(WARNED, state="OFFERED"), "confirmed", None),
        (("no-receipt",), replace(WARNED, state="OFFERED"), "no-receipt", None),
        (("no-contact",), replace(WARNED, state="OFFERED"), "no-contact", None),
        (("duress",), replace(WARNED, acknowledged_ms=4_700), "duress", None),
    ],
)
def test_a_call_is_shown_with_her_answer(
    flags: tuple[str, ...], warned: AssignmentCard, answer: str, answered_ms: int | None
) -> None:
    flagged = replace(CALLED, flags=frozenset(ShownFlag(name) for name in flags))
    call = board.panic(card("i-1", flagged, warned))
    assert call and (call.called_ms, call.answer, call.answered_ms) == (4_000, answer, answered_ms)
    assert f"panic_{answer or 'no_answer'}" in TEXTS


def test_an_assignment_that_is_over_does_not_hide_that_the_call_was_withdrawn() -> None:
    closed = replace(CALLED, assignment_id="a-9", state="CLOSED", panic_ms=4_100)
    call = board.panic(card("i-1", replace(CALLED, panic_withdrawn_ms=4_500), closed))
    assert call and not call.is_open
    assert board.panic(card("i-1", OFFER)) is None


def test_each_kind_of_news_has_a_sound_of_its_own_and_who_has_no_desk_hears_none() -> None:
    duress = replace(OFFER, flags=frozenset({ShownFlag("duress", board.FAILING)}))
    sounds = [board.sound(card("i-1", each), "police") for each in (CALLED, duress, OFFER)]
    assert sounds == ["panic", "grave", "demand"]
    assert board.sound(card("i-1", CALLED), "") == ""
    assert board.sound(card("i-1", replace(CALLED, panic_withdrawn_ms=4_500)), "police") == ""
    assert board.sound(card("i-1", CALLED, ended_ms=9_000), "police") == ""


def test_a_card_has_the_times_of_the_message() -> None:
    message = dispatch_pb2.Assignment(panic_at=times.to_timestamp(4_000), panic_withdrawn_at=times.to_timestamp(4_500))
    shown = translate.assignment(message)
    assert (shown.panic_ms, shown.panic_withdrawn_ms) == (4_000, 4_500)


# ── the own agency's deadline ──


def test_the_countdown_is_that_of_the_own_agency() -> None:
    both = card("i-1", OFFER, PROBATION)
    due = {leg: board.shown(both, own_leg=leg)["due"] for leg in ("police", "probation", "")}
    assert due == {"police": 5_000, "probation": 2_000, "": 2_000}
    assert board.shown(card("i-1", replace(OFFER, due_ms=None), PROBATION), own_leg="police")["due"] is None


# ── ended, to be closed ──


def test_an_ended_incident_stays_below_the_open_ones_until_the_desk_closes_it() -> None:
    ended, notice = card("i-1", ENDED, ended_ms=9_000), card("i-2", replace(OFFER, state="NOTIFIED", due_ms=None))
    closed = card("i-3", replace(ENDED, state="CLOSED"), ended_ms=9_000)
    assert board.shown(ended, own_leg="police")["unclosed"] and not board.shown(closed, own_leg="police")["unclosed"]
    ranks = [board.rank(each, "police").level for each in (notice, ended, closed)]
    assert ranks == [board.NOTHING_AWAITED, board.UNCLOSED, board.ENDED]


def test_a_notice_a_contact_and_another_agencys_task_need_no_closing() -> None:
    for assignment in (
        replace(ENDED, demand="NOTIFY"),
        replace(ENDED, is_contact=True),
        replace(ENDED, leg="probation"),
    ):
        assert not board.is_unclosed(card("i-1", assignment, ended_ms=9_000), "police")
    assert board.is_unclosed(card("i-1", replace(ENDED, demand="NOTIFY", is_check=True), ended_ms=9_000), "police")
    assert not board.is_unclosed(card("i-1", ENDED, ended_ms=9_000), ""), "a reviewer closes nothing"


def test_an_unclosed_incident_is_not_dropped_for_newer_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_page, "MAX_INCIDENTS", 2)
    page = LivePage(own_leg="police")
    page.put_incident(card("old", ENDED, opened_ms=1, ended_ms=2))
    for n in range(4):
        page.put_incident(card(f"i-{n}", replace(ENDED, state="CLOSED"), opened_ms=10 + n, ended_ms=20))
    page.regroup()
    assert page.incident_ids == {"old", "i-3"}


# ── the bar of every page ──


def test_the_overview_counts_open_and_unclosed_incidents_apart_and_names_the_most_urgent() -> None:
    page = LivePage(own_leg="police")
    assert page.overview() == {"open": 0, "unclosed": 0, "first": None, "alarms": []}
    page.put_incident(card("drill", replace(CALLED, exercise=True)))
    page.put_incident(card("later", OFFER))
    page.put_incident(card("soon", replace(OFFER, due_ms=4_000)))
    page.put_incident(card("ended", ENDED, ended_ms=9_000))
    overview = page.overview()
    assert (overview["open"], overview["unclosed"]) == (3, 1)
    assert overview["first"]["id"] == "soon" and overview["first"]["due"] == 4_000
    page.put_incident(card("called", CALLED))
    overview = page.overview()
    assert overview["first"]["id"] == "called" and overview["first"]["panic"]["called_ms"] == 4_000
    assert [(alarm["id"], alarm["sound"]) for alarm in overview["alarms"]] == [
        ("called", "panic"),
        ("soon", "demand"),
        ("later", "demand"),
        ("drill", "panic"),
    ]
    page.drop_incidents(["called", "soon", "later", "drill", "ended"])
    assert page.overview() == {"open": 0, "unclosed": 0, "first": None, "alarms": []}


def test_the_bar_has_the_text_of_each_kind_of_alert() -> None:
    kinds = {name for name in alert_pb2.AlertKind.keys() if name != "ALERT_KIND_UNSPECIFIED"}  # noqa: SIM118
    assert kinds <= set(BAR_ISLAND)


# ── what a destination is ──


def test_sorts_come_from_the_legs_messages_and_each_has_its_text() -> None:
    kinds = [kind for kind in subject_pb2.SubjectKind.values() if kind]
    sorts = [translate.assignment(dispatch_pb2.Assignment(subject_kind=kind)).sort for kind in kinds]
    assert sorts == ["wearer", "protected", "place", "silent_wearers"] and set(sorts) <= TEXTS.keys()
    assert translate.assignment(dispatch_pb2.Assignment(subject_id="order/place")).sort == "", "an id says nothing"
    target = following_pb2.TargetPosition(subject_id="x1", kind=subject_pb2.WEARER)
    assert translate.target("i-1", target)["sort"] == "wearer"
    assert translate.target("i-1", following_pb2.TargetPosition(subject_id="x1"))["sort"] == ""


def test_an_alert_says_what_it_is_about() -> None:
    def sort(**fields: object) -> str:
        to = [alert_pb2.Destination(leg=alert_pb2.POLICE, subject_id=subject) for subject in ("x2", "order-1/x3")]
        whole = {"order_id": "order-1", "kind": alert_pb2.RING_ENTERED, "destinations": to} | fields
        watched = geofence_pb2.WatchAlertsResponse(alert=alert_pb2.Alert(**whole))  # type: ignore[arg-type]
        return str(translate.alert(watched)["sort"])

    assert [sort(target_id=target) for target in ("", "x2", "x3", "x4")] == ["wearer", "protected", "place", ""]
    assert sort(kind=alert_pb2.OUTAGE) == "silent_wearers"
