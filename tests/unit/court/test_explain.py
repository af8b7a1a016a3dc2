"""Explanation of an alert: its refold, its evidence, and the missing reports."""

from __future__ import annotations

import json
from dataclasses import replace
from io import StringIO

import pytest
from rich.console import Console

from services.cli.commands import explain
from services.common import times
from services.common.privacy.grounds import Purpose
from services.court import from_mesh
from services.court.explain import explanation
from services.court.explain.explanation import Explanation
from services.geofence.domain.demands import AlertKind
from services.geofence.domain.entries import FOLD_VERSION
from tandem.common.v1 import exercise_pb2, log_pb2
from tests.support.explained import T0_MS, Log, approach, case_entry, fix, respond
from tests.support.geofence import log

# ── refold ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("rate", [1, 60])
def test_a_refold_reproduces_every_alert_of_a_log(rate: int) -> None:
    story = approach(rate)
    assert {alert.ring_mm for alert in story.alerts} == {2_000_000, 1_000_000, 100_000}
    for alert in story.alerts:
        explained = story.explain(story.stored(alert))
        assert not explained.differences
        assert explained.to_json(positions=False)["again"] == "SAME"


def test_differences_are_named() -> None:
    story = approach()
    alert = respond(story)
    forged = story.stored(replace(alert, late=True, distance_mm=1.0))
    assert [difference.partition(":")[0] for difference in story.explain(forged).differences] == [
        "late",
        "figures.distance_m",
    ]
    without = replace(story.stored(alert), figures=None)
    assert story.explain(without).differences == ["its figures aren't stored"]
    nowhere = story.stored(replace(alert, ordinal=5))
    assert story.explain(nowhere).differences == ["the fold gives no alert there"]
    assert story.explain(nowhere).to_json(positions=False)["again"] == "DIFFERENT"
    longer = story.stored(alert)
    assert story.explain(replace(longer, data=longer.data + b"\xf8\x07\x01")).differences == ["bytes"]


def test_an_unreadable_entry_is_skipped_as_in_the_mesh() -> None:
    story = Log()
    story.add(0, case_entry())
    story.add_bytes(1, b"\xff\xff")
    story.at(2, "d1", 0)
    story.at(3, "t1", 50)
    assert not story.explain(story.stored(respond(story))).differences


# ── evidence ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_explanation_names_entry_report_rules_and_case() -> None:
    story = approach()
    output = story.explain(story.stored(respond(story))).to_json(positions=True)
    # The wearer goes 350 m between the last two reports, and enters the ring after 300 m.
    assert output["figures"]["distance_m"] == pytest.approx(100, abs=0.1)
    assert (output["entry"]["sequence"], output["entry"]["what"]) == (11, "a position")
    assert output["entry"]["decisive"]["report_id"] == f"r{T0_MS + 182_000}"
    assert output["rules"]["rules_id"] == "default" and output["alert"]["fold_version"]
    assert (output["case"]["case_id"], output["case"]["version"]) == ("case-1", 1)
    assert [ring["radius_m"] for ring in output["case"]["rings"]] == [2000, 1000, 100]


def test_an_equipment_event_concerns_the_wearer_and_shows_all_protected_persons() -> None:
    story = Log()
    story.add(0, case_entry())
    story.at(1, "d1", 0)
    story.add(
        9,
        log_pb2.LogEntry(
            equipment=log_pb2.EquipmentReport(
                device_id="t1", report_id="e", event=log_pb2.STRAP_OPEN, event_time_ms=T0_MS + 8_000
            )
        ),
    )
    explained = story.explain(story.stored(respond(story)))
    assert not explained.differences and explained.decisive is None
    assert explanation.what_decided(explained.refold) == "STRAP_OPEN of t1, 2026-09-21T14:13:28.000Z"
    assert [(side.who, side.device_id, side.newest_ms) for side in explained.sides] == [
        ("wearer", "t1", None),
        ("protected", "d1", T0_MS + 1_000),
    ]


def test_a_tick_or_an_amended_case_can_decide() -> None:
    story = Log()
    story.add(0, case_entry(until_s=60, place=True))
    story.at(1, "t1", 20)
    story.add(70, log_pb2.LogEntry(tick=log_pb2.Tick()))
    explained = story.explain(story.stored(story.alerts[-1]))
    assert not explained.differences and explanation.what_decided(explained.refold) == "the passing of time"
    assert "no position shows that the wearer left" in shown_of(explained, False)

    story = Log()
    story.add(0, case_entry(place=True))
    story.at(1, "t1", 20)
    story.add(9, case_entry(version=2))
    cleared = story.alerts[-1]
    assert (cleared.kind.value, cleared.target_id) == ("RING_CLEARED", "home1")
    explained = story.explain(story.stored(cleared))
    assert not explained.differences and explanation.what_decided(explained.refold) == "version 2 of case-1"
    assert explained.refold.target is not None and explained.refold.target.target_id == "home1"
    assert [side.device_id for side in explained.sides] == ["t1"], "a place has no device"
    assert "no position shows that the wearer left" in shown_of(explained, False)


def test_a_ring_that_no_device_measures_any_more_was_not_seen_to_be_left() -> None:
    story = Log()
    story.add(0, log_pb2.LogEntry(fold_version=log_pb2.FoldVersion(version=FOLD_VERSION)))
    story.add(0, case_entry(place=True))
    story.at(1, "t1", 20)
    without_tag = case_entry(version=2, place=True)
    without_tag.case.ClearField("tag_device_ids")
    story.add(9, without_tag)
    story.add(1809, log_pb2.LogEntry(tick=log_pb2.Tick()))
    cleared = story.alerts[-1]
    assert cleared.kind.value == "RING_CLEARED" and cleared.incident_ends
    explained = story.explain(story.stored(cleared))
    assert not explained.differences and explanation.what_decided(explained.refold) == "the passing of time"
    assert "no position shows that the wearer left" in shown_of(explained, False)


def test_a_person_and_a_place_with_the_same_id_are_distinguished() -> None:
    story = Log()
    entry = case_entry(place=True)
    entry.case.places[0].place_id = "p1"
    story.add(0, entry)
    story.at(1, "d1", 5000)
    story.at(2, "t1", 20)
    explained = story.explain(story.stored(respond(story)))
    assert explained.refold.target is not None and not explained.refold.target.is_person
    story.at(3, "d1", 30)
    explained = story.explain(story.stored(story.alerts[-1]))
    assert explained.refold.target is not None and explained.refold.target.is_person


# ── received and missing reports ─────────────────────────────────────────────────────────────────────────────────────


def test_silence_and_age_of_the_newest_position_are_shown_per_side() -> None:
    story = approach()
    explained = story.explain(story.stored(respond(story)))
    wearer_side, protected_side = explained.sides
    assert (wearer_side.who, wearer_side.contacts, wearer_side.silence_ms, wearer_side.newest_ms) == (
        "wearer",
        7,
        30_000,
        T0_MS + 182_000,
    )
    assert [report.time_ms - T0_MS for report in wearer_side.reports] == [62_000, 92_000, 122_000, 152_000, 182_000]
    # The protected person's last report is of second 61; the wearer's report decides at 182.
    assert (protected_side.who, protected_side.contacts, protected_side.silence_ms) == ("protected", 3, 121_000)
    assert explained.to_json(positions=False)["sides"][1]["newest_position_age_s"] == 121


def test_a_contact_without_a_position_ends_a_silence_but_gives_no_position() -> None:
    story = Log()
    story.add(0, case_entry())
    story.at(1, "d1", 0)
    story.add(100, log_pb2.LogEntry(heard=log_pb2.HeardBatch(device_id=["d1"], report_id=["h"])))
    story.at(120, "t1", 50)
    protected_side = story.explain(story.stored(respond(story))).sides[1]
    assert (protected_side.contacts, protected_side.silence_ms, protected_side.newest_ms) == (2, 99_000, T0_MS + 1_000)


def test_a_position_older_than_the_window_appears_as_an_age_only() -> None:
    story = Log()
    story.add(0, case_entry())
    story.at(1, "d1", 0)
    story.add(5_000, log_pb2.LogEntry(tick=log_pb2.Tick()))
    story.at(10_000, "t1", 50)
    explained = story.explain(story.stored(respond(story)))
    protected_side = explained.sides[1]
    assert (protected_side.reports, protected_side.contacts, protected_side.silence_ms) == ([], 0, 600_000)
    assert explained.to_json(positions=False)["sides"][1]["newest_position_age_s"] == 9_999


def test_a_report_that_arrived_after_the_decision_is_listed_once() -> None:
    story = approach()
    story.at(190, "d1", 10, fix_s=150)
    story.at(200, "d1", 10, fix_s=150)  # resent
    story.at(210, "d1", 10, fix_s=205)  # of a time after the decision
    story.at(220, "other", 10, fix_s=150)
    story.at(9_000, "t1", 60, fix_s=100)
    output = story.explain(story.stored(respond(story))).to_json(positions=False)
    later = [(report["device_id"], report["age_s"], report["too_late"]) for report in output["came_later"]]
    assert later == [("d1", 32, False), ("t1", 82, True)]


def test_reports_after_the_decisive_one_in_its_entry_were_not_known() -> None:
    story = Log()
    story.add(0, case_entry())
    story.at(1, "d1", 0)
    story.add(31, log.positions_entry(fix("t1", 30, 50), fix("d1", 29, 900)))
    explained = story.explain(story.stored(respond(story)))
    assert explained.decisive is not None and explained.decisive.index == 0
    assert explained.sides[1].newest_ms == T0_MS + 1_000
    assert [(report.device_id, report.time_ms) for report in explained.later] == [("d1", T0_MS + 29_000)]


def test_a_report_too_late_for_the_fold_is_shown_but_is_not_the_newest() -> None:
    story = Log()
    story.add(0, case_entry())
    story.at(8_000, "d1", 0, fix_s=500)
    story.at(8_001, "t1", 3_000)
    story.add(
        8_002,
        log_pb2.LogEntry(equipment=log_pb2.EquipmentReport(device_id="t1", report_id="e", event=log_pb2.STRAP_OPEN)),
    )
    protected_side = story.explain(story.stored(respond(story))).sides[1]
    assert [explanation.is_too_late(report) for report in protected_side.reports] == [
        True
    ] and protected_side.contacts == 1
    assert protected_side.newest_ms is None


def test_reports_from_before_a_device_changed_hands_are_left_out() -> None:
    story = Log()
    story.add(0, case_entry())
    for i in range(8):
        story.at(10 + 15 * i, "t1", 7_777)
    without = case_entry(version=2)
    del without.case.tag_device_ids[:]
    story.add(140, without)
    others = log.case_entry("2", from_ms=T0_MS, until_ms=T0_MS + 86_400_000)
    others.case.tag_device_ids[:] = ["t1"]
    story.add(141, others)
    story.at(150, "d2", 0)
    story.at(152, "t1", 7_777, fix_s=130)  # a late report of the previous owner
    story.at(155, "t1", 50)
    story.at(170, "t1", 7_777, fix_s=135)
    explained = story.explain(story.stored(respond(story)))
    assert explained.alert.wearer_id == "w2" and not explained.differences
    wearer_side = explained.sides[0]
    assert [report.time_ms - T0_MS for report in wearer_side.reports] == [155_000]
    assert (wearer_side.contacts, wearer_side.silence_ms) == (2, 11_000)
    assert explained.later == []


def test_a_person_without_a_device_is_listed() -> None:
    story = Log()
    entry = case_entry()
    entry.case.persons.add(person_id="child")
    story.add(0, entry)
    story.add(
        1,
        log_pb2.LogEntry(equipment=log_pb2.EquipmentReport(device_id="t1", report_id="e", event=log_pb2.CASE_OPEN)),
    )
    sides = story.explain(story.stored(respond(story))).sides
    assert [(side.subject_id, side.device_id) for side in sides] == [("w1", "t1"), ("p1", "d1"), ("child", "")]


# ── privacy ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_coordinates_are_shown_only_on_request() -> None:
    story = approach()
    story.at(190, "d1", 10, fix_s=150)
    explained = story.explain(story.stored(respond(story)))
    with_them, without = (json.dumps(explained.to_json(positions)) for positions in (True, False))
    assert "37.50" in with_them and '"lat_deg"' in with_them
    assert "37.50" not in without and "_deg" not in without


def shown_of(explained: Explanation, positions: bool) -> str:
    shown = StringIO()
    Console(file=shown, width=160).print(*explain.tables(explained, positions), sep="\n")
    return shown.getvalue()


def test_distances_probabilities_and_times_inside_are_shown_only_on_request() -> None:
    """Three distances and a track lead to an address: a figure needs the grounds that the positions behind it need."""
    story = approach()
    for turn in range(10):
        story.at(212 + 40 * turn, "d1", 0)
        story.at(213 + 40 * turn, "t1", 30 + 400 * turn)
    entered = story.explain(story.stored(respond(story)))
    cleared = story.explain(story.stored(next(alert for alert in story.alerts if alert.kind is AlertKind.RING_CLEARED)))
    for explained in (entered, cleared):
        with_them, without = (explained.to_json(positions) for positions in (True, False))
        assert with_them["figures"] is not None and without["figures"] is None
        assert not {"distance_m", "probability"} & {name for report in without["earlier"] for name in report}
    shown, hidden = shown_of(entered, True), shown_of(entered, False)
    assert "probability inside" in shown and "distance" in shown
    assert "probability inside" not in hidden and "with --positions" in hidden
    assert f"{entered.figures.distance_m:.3f}" in shown and f"{entered.figures.distance_m:.3f}" not in hidden
    assert "no position shows" not in shown_of(cleared, True)
    assert "least distance" in shown_of(cleared, True) and "least distance" not in shown_of(cleared, False)


def test_a_figure_that_differs_is_named_without_its_value() -> None:
    story = approach()
    forged = story.explain(story.stored(replace(respond(story), distance_mm=123_456.0)))
    assert forged.differences == ["figures.distance_m: differs"]


def test_a_distance_is_a_disclosure_of_both_sides_even_where_no_position_is_recent() -> None:
    story = Log()
    story.add(0, case_entry())
    story.at(1, "d1", 0)
    story.add(9_000, log_pb2.LogEntry(tick=log_pb2.Tick()))
    story.at(9_010, "t1", 50)
    explained = story.explain(story.stored(respond(story)))
    assert not explained.refold.reports["d1"]
    to = from_mesh.Reader("spiffe://tandem/reviewer/kim", "STALKING_9_1_3_2", Purpose.AUDIT)
    rows = from_mesh.alert_disclosures(explained.refold, to, T0_MS)
    assert [(row.record_kind, row.record_id) for row in rows] == [("PROTECTED_PERSON", "p1"), ("WEARER", "w1")]


def test_the_end_of_an_event_is_named_as_such() -> None:
    story = Log()
    story.add(0, case_entry())
    story.at(1, "d1", 0)
    for at_s, event in ((9, log_pb2.STRAP_OPEN), (15, log_pb2.STRAP_CLOSED)):
        story.add(
            at_s,
            log_pb2.LogEntry(
                equipment=log_pb2.EquipmentReport(
                    device_id="t1", report_id=f"e{at_s}", event=event, event_time_ms=T0_MS + 1_000 * at_s
                )
            ),
        )
    opened, closed = (alert for alert in story.alerts if alert.kind is AlertKind.TAMPERED)
    named = [explain.alert_in_words(story.stored(alert).alert) for alert in (opened, closed)]
    assert named == ["TAMPERED", "TAMPERED over"]


# ── requests ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_explanation_shows_what_was_asked_of_the_tag_and_when_the_next_position_came() -> None:
    story = Log()
    story.add(0, log_pb2.LogEntry(fold_version=log_pb2.FoldVersion(version=FOLD_VERSION)))
    story.add(0, case_entry())
    for i in range(8):
        story.at(1 + 30 * i, "d1", 0)
        story.at(2 + 30 * i, "t1", 700)
    for i in range(6):
        story.at(250 + 20 * i, "d1", 0)  # the tag's report is overdue from 212 s + 38 s on
    story.at(358, "t1", 50)
    explained = story.explain(story.stored(respond(story)))
    requests = explained.to_json(positions=False)["requests"]
    intervals = [request for request in requests if request["interval_s"] is not None]
    located = [request for request in requests if request["interval_s"] is None]
    assert intervals and all(30 <= request["interval_s"] <= 60 for request in intervals)
    assert {request["device_id"] for request in requests} == {"t1"}
    assert located and located[0]["next_position_at"] == times.to_rfc3339(T0_MS + 358_000)
    console = Console(width=200, record=True, file=StringIO())
    console.print(*explain.tables(explained, positions=False), sep="\n")
    shown = console.export_text()
    assert "the position at once" in shown and f"a report every {intervals[0]['interval_s']} s" in shown


def test_the_explanation_of_an_alert_of_an_exercise_has_no_requests() -> None:
    story = approach(exercise=exercise_pb2.DRILL)
    assert story.explain(story.stored(respond(story))).to_json(positions=False)["requests"] == []
