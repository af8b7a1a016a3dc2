"""Pure decisions of the console: order and groups of incidents, search, explanations, waterfalls, texts."""

from __future__ import annotations

from dataclasses import replace

from services.common import times
from services.console import translate
from services.console.domain import board, waterfall
from services.console.domain.board import AssignmentCard, IncidentCard, IncidentQuery
from services.console.domain.live_page import FLOOD, ShownIncidents
from services.console.domain.waterfall import TraceSpan
from services.console.pages.texts import ISLAND, TEXTS, Texts
from services.registry.traces.domain.facts import AlertFact, StepFact
from services.registry.traces.domain.spans import STEP_NAME_OF_STATE, spans_of
from tandem.common.v1 import alert_pb2, geometry_pb2, log_pb2
from tandem.dispatch.v1 import dispatch_pb2, evidence_pb2

OFFER = AssignmentCard("a-1", "i-1", "police", "P-1", ("O-1",), "OFFERED", "RESPOND", "RING_ENTERED", due_ms=5_000)
ALERT = AlertFact(
    "alert-1", 0, 10, 0, 1, "RING_ENTERED", "RESPOND", "case-1", ("police",), False, 1_000_000, 1_000_400, 1_001_000, 1_002_000
)  # fmt: skip
STEP = StepFact("police", "assign-1", 1, "OFFERED", False, 1_000_000, 1_003_000, 1_004_000, 1, offer=1)


def incident(
    id_: str, *assignments: AssignmentCard, opened_ms: int = 1_000, ended_ms: int | None = None
) -> IncidentCard:
    return IncidentCard(id_, opened_ms, ended_ms, assignments)


def test_an_amended_account_is_shown_with_its_time_inside_in_both_languages() -> None:
    inside = [alert_pb2.Interval(**{"from": times.to_timestamp(1_000), "to": times.to_timestamp(61_500)})]
    amended = alert_pb2.Alert(alert_id="a-2", kind=alert_pb2.ACCOUNT_AMENDED, amends="a-1", ring_m=100)
    figures_ = alert_pb2.Measure(alert_id="a-2", inside=inside, min_distance_m=30.5)
    copy = evidence_pb2.ReadEvidenceResponse(alerts=[amended], measures=[figures_])
    [shown] = translate.alerts(copy)
    assert (shown["kind"], shown["inside"], shown["least"]) == ("ACCOUNT_AMENDED", [(1_000, 61_500)], 30.5)
    assert Texts("ko")(shown["kind"]) == "접근 기록 정정" and Texts("en")(shown["kind"]) == "Account amended"
    [without_figures] = translate.alerts(evidence_pb2.ReadEvidenceResponse(alerts=[amended]))
    assert without_figures["inside"] == []
    assert shown["replaced_ms"] is None


def test_a_replay_has_the_holes_of_a_place() -> None:
    def corners(*at: tuple[float, float]) -> list[geometry_pb2.Point]:
        return [geometry_pb2.Point(lat_deg=lat_deg, lon_deg=lon_deg) for lat_deg, lon_deg in at]

    outline, yard = (
        corners((37.0, 127.0), (37.0, 127.01), (37.01, 127.0)),
        corners((37.001, 127.001), (37.001, 127.002)),
    )
    polygon = geometry_pb2.Polygon(vertices=outline, holes=[geometry_pb2.Hole(vertices=yard)])
    case = log_pb2.CaseSnapshot(places=[geometry_pb2.Place(place_id="school", polygon=polygon)])
    [place] = translate.replay(evidence_pb2.ReadEvidenceResponse(cases=[case]))["places"]
    assert place["line"] == [[127.0, 37.0], [127.01, 37.0], [127.0, 37.01]]
    assert place["holes"] == [[[127.001, 37.001], [127.002, 37.001]]]


def test_an_account_that_was_amended_is_marked_with_the_time_of_the_valid_one() -> None:
    cleared = alert_pb2.Alert(alert_id="a-1", kind=alert_pb2.RING_CLEARED, decided_at=times.to_timestamp(1_000))
    amended = [
        alert_pb2.Alert(
            alert_id=f"a-{number}",
            kind=alert_pb2.ACCOUNT_AMENDED,
            amends="a-1",
            decided_at=times.to_timestamp(number * 1_000),
        )
        for number in (2, 3)
    ]
    shown = translate.alerts(evidence_pb2.ReadEvidenceResponse(alerts=[cleared, *amended]))
    assert [alert["replaced_ms"] for alert in shown] == [3_000, 3_000, None]


# ── board ──


def test_failing_incidents_come_first_then_waiting_ones_then_those_under_way() -> None:
    incidents = [
        incident(
            "duress",
            replace(
                OFFER, state="ACKNOWLEDGED", flags=frozenset({board.ShownFlag("duress", board.FAILING)}), due_ms=None
            ),
        ),
        incident("escalated", replace(OFFER, state="ESCALATED")),
        incident("soon", replace(OFFER, due_ms=4_000)),
        incident("later", OFFER),
        incident("under-way", replace(OFFER, state="EN_ROUTE", due_ms=None)),
        incident("notified", replace(OFFER, state="NOTIFIED", demand="NOTIFY", due_ms=None)),
        incident("over", replace(OFFER, state="STOOD_DOWN", due_ms=None), ended_ms=9_000),
    ]
    assert [card.incident_id for card in sorted(reversed(incidents), key=board.rank)] == [
        card.incident_id for card in incidents
    ]


def test_the_flags_of_all_assignments_are_shown_and_each_has_its_text() -> None:
    message = dispatch_pb2.Assignment(race=dispatch_pb2.Race(losing=True), absent_legs=[alert_pb2.POLICE])
    message.spoofing_suspected_at.FromMilliseconds(1)
    message.person_flag.flag = dispatch_pb2.NO_RECEIPT
    shown = board.shown(
        incident("i", translate.assignment(message), replace(OFFER, flags=frozenset({board.ShownFlag("x")})))
    )
    assert shown["flags"] == ["absent-police", "losing", "no-receipt", "spoofing", "x"]
    assert shown["level"] == board.FAILING
    known = {*dispatch_pb2.WarningFlag.keys()} - {"WARNING_FLAG_UNSPECIFIED"}
    assert {flag.lower().replace("_", "-") for flag in known} <= translate.FLAGS.keys()
    assert {f"flag_{name}" for name in translate.FLAGS} <= TEXTS.keys()


def test_an_alarm_lasts_until_every_demand_to_respond_is_acknowledged() -> None:
    assert board.is_new_alarm(incident("i", OFFER))
    assert not board.is_new_alarm(incident("i", replace(OFFER, state="ACKNOWLEDGED")))
    assert not board.is_new_alarm(incident("i", replace(OFFER, demand="NOTIFY")))
    assert board.is_new_alarm(incident("i", replace(OFFER, state="ACKNOWLEDGED"), replace(OFFER, leg="probation")))


def test_an_incident_is_over_once_neither_agency_has_anything_left_to_do() -> None:
    over, notice = replace(OFFER, state="STOOD_DOWN"), replace(OFFER, leg="probation", state="NOTIFIED")
    warned = replace(OFFER, leg="warning", state="ACKNOWLEDGED")
    assert board.is_over(incident("i", over, notice, warned, ended_ms=9_000))
    assert not board.is_over(incident("i", over, notice))
    there = replace(OFFER, leg="probation", state="ON_SCENE")
    assert not board.is_over(incident("i", over, there, ended_ms=9_000)), "the other agency is still on the scene"


def test_many_notices_of_one_cause_are_one_group_and_a_response_never_is() -> None:
    notice = replace(OFFER, state="NOTIFIED", demand="NOTIFY", kind="SILENT")
    flood = [incident(f"s-{n}", notice) for n in range(FLOOD)]
    alarms = [incident(f"r-{n}", replace(OFFER, kind="SILENT")) for n in range(FLOOD)]
    shown = ShownIncidents()
    for card in (*flood[1:], *alarms):
        shown.put(card)
    assert shown.regroup() == []
    shown.put(flood[0])
    assert sorted(card.incident_id for card in shown.regroup()) == sorted(card.incident_id for card in flood)
    assert {
        card.incident_id: shown.group_of(card.incident_id) for card in shown if shown.group_of(card.incident_id)
    } == {card.incident_id: "SILENT" for card in flood}
    assert shown.regroup() == [], "nothing has changed"
    # An incident that became an alarm after it was grouped leaves its group at once, and a group of too few ends.
    assert board.shown(flood[0], "SILENT")["group"] == "SILENT"
    assert board.shown(alarms[0], "SILENT")["group"] == ""
    shown.put(incident("s-0", replace(OFFER, kind="SILENT")))
    assert sorted(card.incident_id for card in shown.regroup()) == sorted(card.incident_id for card in flood)
    assert not any(shown.group_of(card.incident_id) for card in shown)


def test_the_state_of_a_leg_is_its_most_urgent_one() -> None:
    assert board.leg_state([OFFER, replace(OFFER, state="ON_SCENE")]) == "OFFERED"
    assert board.leg_state([]) == ""
    states = set(dispatch_pb2.AssignmentState.keys()) - {"ASSIGNMENT_STATE_UNSPECIFIED"}
    assert {state for state in states if board.leg_state([replace(OFFER, state=state)]) != state} == set()


# ── search ──


def test_search_finds_by_time_text_cause_outcome_and_office() -> None:
    wanted = incident(
        "i-1", replace(OFFER, office_id="seoul", close_cause="FALSE_POSITION"), opened_ms=100, ended_ms=200
    )
    other = incident("i-2", replace(OFFER, subject_id="P-2", order_ids=("O-2",), kind="PANIC"), opened_ms=300)
    for question in (
        IncidentQuery(from_ms=50, until_ms=300),
        IncidentQuery(text="P-1"),
        IncidentQuery(cause="RING_ENTERED"),
        IncidentQuery(outcome="FALSE_POSITION"),
        IncidentQuery(outcome="over"),
        IncidentQuery(office="seoul"),
    ):
        assert board.matching([other, wanted], question) == [wanted], question
    assert board.matching([wanted, other], IncidentQuery()) == [other, wanted]


# ── explanation ──


def test_an_explanation_ignores_reports_after_the_decision() -> None:
    points = tuple(waterfall.TrackPoint(1_000 * n, 1_000 * n, 37.0, 127.0, 5.0, n) for n in (1, 2, 3, 10, 12))
    (side,) = waterfall.sides([waterfall.DeviceTrack("tag", "W-1", True, points)], sequence=10, decided_ms=10_500)
    assert [point.sequence for point in side.last] == [2, 3, 10]
    assert side.silence_ms == 7_000
    (mute,) = waterfall.sides([waterfall.DeviceTrack("app", "P-1", False, ())], sequence=10, decided_ms=10_500)
    # Silent for the first 9 of the 10 minutes, and for all 10: what came before them shows that the device was there.
    late = tuple(waterfall.TrackPoint(at_ms, at_ms, 37.0, 127.0, 5.0, n) for n, at_ms in enumerate((0, 1_140_000), 1))
    for points, silence_ms in ((late, 540_000), (late[:1], 600_000), (late[1:], 60_000)):
        track = waterfall.DeviceTrack("tag", "W-1", True, points)
        assert [side.silence_ms for side in waterfall.sides([track], sequence=2, decided_ms=1_200_000)] == [silence_ms]
    assert (mute.last, mute.silence_ms) == ((), None)


# ── waterfall ──


def test_the_replay_reads_each_state_and_its_time_from_the_trace() -> None:
    assert {state: waterfall.STATES[says] for state, says in STEP_NAME_OF_STATE.items()} == {
        state: state for state in STEP_NAME_OF_STATE
    }

    def step(name: str, end_us: int, service: str = "dispatch-police") -> TraceSpan:
        return TraceSpan("t", name, "", service, name, 0, end_us, {"assignment_id": "a-1"})

    spans = [
        step("police on the way", 30),
        step("police offered", 10),
        step("police noted", 20),
        step("alert", 5, "geofence"),
    ]
    assert waterfall.moves(spans) == {"a-1": [(10, "OFFERED"), (30, "EN_ROUTE")]}


def test_an_escalation_has_its_text_in_both_languages() -> None:
    desk_had_it = replace(STEP, number=2, received=True)
    escalated = replace(desk_had_it, number=3, state="ESCALATED", due_us=9_000_000)
    spans = spans_of(
        "incident-1", [ALERT], [STEP, desk_had_it, escalated, replace(escalated, number=4, due_us=10_000_000)]
    )
    names = [
        waterfall.step_name(TraceSpan("t", "s", "", span.service, span.name, 0, 0))
        for span in spans
        if span.service == "dispatch-police"
    ]
    assert [Texts("ko")(name) for name in names] == ["접수 대기", "수신", "다음 순번 요청", "다음 순번 요청"]
    assert [Texts("en")(name) for name in names] == ["Offered", "Received by the desk", "Escalated", "Escalated"]
    assert (
        waterfall.step_name(TraceSpan("t", "s", "", "dispatch-police", "police misses probation", 0, 0))
        == "misses probation"
    )


def test_a_span_is_below_its_parent_and_an_orphan_is_marked() -> None:
    def span(id_: str, parent: str, start: int, end: int, trace: str = "t", name: str = "x") -> TraceSpan:
        return TraceSpan(trace, id_, parent, "ingest", name, start, end)

    spans = [
        span("b", "r", 60, 100),
        span("r", "", 0, 20),
        span("a", "r", 10, 50),
        span("aa", "a", 20, 40),
        span("lost", "nobody", 70, 80),
        span("use", "r", 1_000, 1_000, name="ledger: read"),
        span("else", "", 0, 5, trace="u"),
    ]
    rows = waterfall.rows(spans, "t")
    assert [(row.span.span_id, row.depth, row.orphan) for row in rows] == [
        ("r", 0, False),
        ("a", 1, False),
        ("aa", 2, False),
        ("b", 1, False),
        ("lost", 0, True),
    ]
    assert (rows[1].left, rows[1].width) == (0.1, 0.4)
    assert [use.span_id for use in waterfall.uses(spans)] == ["use"]
    assert [case_version.span_id for case_version in waterfall.case_versions(spans, "t")] == ["else"]
    assert waterfall.rows([], "t") == []


def test_spans_in_a_cycle_give_no_rows() -> None:
    spans = [TraceSpan("t", "a", "b", "ingest", "x", 0, 1), TraceSpan("t", "b", "a", "ingest", "x", 0, 1)]
    assert waterfall.rows(spans, "t") == []


# ── texts ──


def test_every_code_of_the_protos_has_a_text_in_both_languages() -> None:
    codes = {
        *dispatch_pb2.AssignmentState.keys(),
        *alert_pb2.AlertKind.keys(),
        *dispatch_pb2.CloseCause.keys(),
    }
    assert {code for code in codes if not code.endswith("UNSPECIFIED")} - set(TEXTS) == set()
    assert all(korean and english for korean, english in TEXTS.values())
    assert set(ISLAND) <= set(TEXTS)
    assert Texts("ko")("NO_SUCH_CODE") == "NO_SUCH_CODE"
