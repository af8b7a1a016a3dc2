"""`tandem report` on an incident: what the document says, that it is the same each time, and that a damaged bundle is refused."""

from __future__ import annotations

import hashlib
import io
import json
import sys
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterable
from dataclasses import replace
from enum import IntEnum
from pathlib import Path

import pytest
from pypdf import PdfReader

from services.cli.__main__ import main
from services.common.alert_phases import AlertPhase
from services.court.evidence import bundle as evidence_bundle
from services.court.evidence.leg_records import Shown
from services.court.report import document, facts, incident, maps
from services.court.report.words import WORDS, Words
from services.dispatch.domain.assignment import PROGRESS, AssignmentState
from services.dispatch.domain.enums import (
    CloseCause,
    ContactPlan,
    ContactState,
    Demand,
    EscalationReason,
    WarningFlag,
)
from services.dispatch.domain.events import EVENTS, NotedResult, NoteKind
from services.dispatch.leg import chain
from tandem.common.v1 import alert_pb2, geometry_pb2, log_pb2
from tests.support.approach import BEGAN_MS, approach_bundle
from tests.support.bundles import bundle
from tests.support.dispatch.incidents import Story, alert
from tests.support.dispatch.roster import AT_DAY
from tests.support.geofence.log import case_entry

Report = Callable[..., tuple[int, str, str]]
KOREAN, ENGLISH = Words("ko"), Words("en")


@pytest.fixture
def report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Report:
    """Runs the command: exit code, standard output, standard error. The document is `report.pdf` in the test's folder."""

    def run(content: bytes, *options: str) -> tuple[int, str, str]:
        path = tmp_path / "bundle.tar"
        path.write_bytes(content)
        command = ["tandem", "report", "--bundle", str(path), "--out", str(tmp_path / "report.pdf"), *options]
        monkeypatch.setattr(sys, "argv", command)
        with pytest.raises(SystemExit) as ended:
            main()
        printed = capsys.readouterr()
        return int(ended.value.code or 0), printed.out, printed.err

    return run


def text_of(document: bytes) -> str:
    """The text of a PDF, without line breaks and the spaces of no width at which long ids may break."""
    pages = PdfReader(io.BytesIO(document)).pages
    return " ".join(" ".join(page.extract_text() for page in pages).replace("\u200b", "").split())


def test_a_judge_reads_who_when_where_and_why_in_korean() -> None:
    text = text_of(incident.incident_pdf(approach_bundle(), None, KOREAN))
    for words in (
        "접근금지 명령 사건 보고서",
        "스토킹처벌법 제9조제1항제3호의2",
        "위반 여부를 판단하지 않습니다",
        "order-1",
        "w1",
        "p1",
        "100 m (출동)",
        "기준 안에 있을 확률",
        "접수 대기",
        "요청, 8.0초 뒤 접수",
        "현장 도착",
        "위반 확인",
        "바이트 단위로 같음을 확인했습니다",
    ):
        assert words in text, words
    assert "출동 지령" not in text, "an offer is no order to go, and the desk reported none"


def test_the_same_report_in_english() -> None:
    text = text_of(incident.incident_pdf(approach_bundle(), None, ENGLISH))
    assert "accepted 8.0 s later" in text and "breach confirmed" in text and "Probability of being inside" in text
    assert not any("\uac00" <= char <= "\ud7a3" for char in text)


def test_the_same_bundle_gives_the_same_bytes_on_each_python() -> None:
    made = incident.incident_pdf(approach_bundle(), None, KOREAN)
    assert made == incident.incident_pdf(approach_bundle(), None, KOREAN)
    assert hashlib.sha256(made).hexdigest() == GOLDEN


GOLDEN = "6166d2d98b19eb11d87a30988638514909cbdfdb96d862b167904b485871b3a6"
"""SHA-256 of the document. Both Pythons of the suite give it. A change of the report, of the fold's version or of the typesetter
changes it, and then the new one is put here."""


def test_each_altered_byte_of_a_bundle_is_refused_with_its_place(report: Report, tmp_path: Path) -> None:
    whole = approach_bundle()
    for offset in range(600, len(whole), len(whole) // 40):
        damaged = bytearray(whole)
        damaged[offset] ^= 1
        code, out, error = report(bytes(damaged))
        assert (code, out) == (1, "") and error.startswith("BROKEN ") and error.endswith("no report is made of it\n")
        assert not (tmp_path / "report.pdf").exists()


def test_a_foreign_key_is_refused(report: Report, tmp_path: Path) -> None:
    key = tmp_path / "evidence.pub"
    key.write_text("00" * 32)
    code, _, error = report(approach_bundle(), "--public-key", str(key))
    assert code == 1 and "signature.json" in error


def test_a_document_is_never_overwritten(report: Report) -> None:
    assert report(approach_bundle())[0] == 0
    code, _, error = report(approach_bundle())
    assert code == 1 and error.endswith("report.pdf: exists already; name another file\n")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--language", "jp"), "--language: must be one of ko, en (example: ko)"),
        (("--order", "order-1"), "name one of these: INCIDENT, --bundle FILE, or --order ID with --from and --until"),
    ],
)
def test_a_wrong_option_is_named(report: Report, options: tuple[str, ...], said: str) -> None:
    assert report(bundle(), *options) == (2, "", said + "\n")


def test_an_incident_without_alerts_and_order_says_so() -> None:
    text = text_of(incident.incident_pdf(bundle(), None, ENGLISH))
    assert "No decision demanded a response." in text and "The bundle holds no record of an order." in text
    assert "the incident had not ended when the bundle was made" in text


def test_probation_reads_no_position_of_the_protected_person() -> None:
    verified = evidence_bundle.verify_bundle(approach_bundle("probation"), None)
    text = text_of(incident.incident_pdf(approach_bundle("probation"), None, ENGLISH))
    assert verified.replay is None and "use the bundle for the police" in text
    assert "Least distance" not in text and "Probability of being inside" not in text


def records_of_the_tag(*events: tuple[int, str]) -> tuple[list[str], list[str]]:
    """Records of the tag's reception, and of its handling, without their times."""
    found = facts.of_bundle(evidence_bundle.verify_bundle(approach_bundle(equipment=events), None))
    tag = next(section for section in incident.device_sections(found, ENGLISH) if section["name"] == "t1")
    return [line.partition(" ")[2] for line in tag["reception"]], [line.partition(" ")[2] for line in tag["handling"]]


def test_records_of_reception_and_of_handling_state_what_was_recorded_and_no_cause() -> None:
    reception, handling = records_of_the_tag((20, "BATTERY_LOW"), (30, "SHUTDOWN"), (40, "STRAP_OPEN"))
    assert reception == ["battery low"]
    assert handling == ["switched off, with a low battery before it", "strap opened or cut"]
    without = "switched off, with no battery signal before it in the bundle"
    assert records_of_the_tag((30, "SHUTDOWN"))[1] == [without]
    recovered = (20, "BATTERY_LOW"), (25, "BATTERY_RECOVERED"), (30, "SHUTDOWN")
    assert records_of_the_tag(*recovered)[1] == [
        "switched off, with the battery recovered at its last signal before it"
    ]


def test_who_walks_through_the_rings_has_no_record_of_handling() -> None:
    assert records_of_the_tag()[1] == [""]  # "none"
    text = text_of(incident.incident_pdf(approach_bundle(), None, ENGLISH))
    assert "intent." in text and "for intent" not in text and "one ring after the other" not in text
    assert "고의를 가리키는" not in text_of(incident.incident_pdf(approach_bundle(), None, KOREAN))


def test_the_end_of_an_event_is_not_stated_as_another_event() -> None:
    events = ((20, "JAMMING_SUSPECTED"), (40, "JAMMING_OVER"))
    text = text_of(incident.incident_pdf(approach_bundle(equipment=events), None, ENGLISH))
    assert "jamming suspected → notify" in text
    assert "jamming suspected: over → record" in text and "jamming suspected → record" not in text


def test_each_destination_has_a_sentence_of_its_own_about_its_answer() -> None:
    found = facts.of_bundle(evidence_bundle.verify_bundle(approach_bundle(), None))
    (offer,) = [step for step in found.steps if step.leg == "police" and step.kind == "Offered"]
    home = offer._replace(subject_id="order-1/home1", body={**offer.body, "assignment_id": "assign-home"})
    said = document.summary(replace(found, steps=[*found.steps, home]), ENGLISH)
    assert any("p1, offered at" in line and "accepted 8.0 s later" in line for line in said)
    assert any("order-1/home1, offered at" in line and "no acceptance in the bundle" in line for line in said)


def test_an_answer_names_its_state_and_its_cause() -> None:
    found = facts.of_bundle(evidence_bundle.verify_bundle(approach_bundle(), None))
    answers = [row[2] for row in document.answers(found, ENGLISH) if row[0] == "police"]
    assert answers == ["accepted", "progress, on scene", "closed, breach confirmed"]


def chained(story: Story) -> list[facts.LegStep]:
    """The steps of a story as a document has them: from the events of its chain."""
    head, events = chain.ChainHead(), []
    for event in story.events:
        link = chain.write(head, "incident-1", event)
        head = chain.ChainHead(link.id, link.hash)
        events.append(Shown("police", link.id, "incident-1", link.kind, json.loads(link.body)))
    verified = evidence_bundle.verify_bundle(approach_bundle(), None)
    return facts._steps(replace(verified, events=events))


def test_the_document_says_who_was_asked_who_accepted_and_what_only_an_officer_entered() -> None:
    story = Story("police", AT_DAY)
    story.fold(alert(5, Demand.RESPOND, "p1"))
    story.pass_time(10_000)
    story.accept_at_desk("p1", "spiffe://npa/desk/console/kim")
    story.send("p1", "a2", "spiffe://npa/desk/console/kim")
    story.accept("p1", "a1")
    story.reject("p1")
    story.radio("p1", "순찰 12호", "spiffe://npa/desk/console/lee")
    steps = chained(story)
    said = [incident.step_text(step, ENGLISH) for step in steps]
    assert "accepted, p1, by the desk itself, by spiffe://npa/desk/console/kim" in said
    assert "another unit asked as well, p1, unit a2, by spiffe://npa/desk/console/kim" in said
    assert "accepted, p1, unit a1, by unit/a1" in said, "it was asked first, and others since"
    assert "sent by radio, p1: 순찰 12호, entered by spiffe://npa/desk/console/lee" in said
    found = replace(facts.of_bundle(evidence_bundle.verify_bundle(approach_bundle(), None)), steps=steps)
    assert any("Unit a1 accepted 10.0 s later." in line for line in document.summary(found, ENGLISH))
    assert any("10.0초 뒤 출동팀 a1 수락." in line for line in document.summary(found, KOREAN))
    answers = {row[2]: row[5] for row in document.answers(found, ENGLISH)}
    assert answers["accepted, unit a1"] == "10.0 s", "since its own offer"
    by_radio = [step for step in steps if step.unit == "" and step.kind != "Acknowledged"]
    assert any(
        "Sent by radio 10.0 s later: 순찰 12호, entered by spiffe://npa/desk/console/lee." in line
        for line in document.summary(replace(found, steps=[*by_radio, steps[0]]), ENGLISH)
    )
    nobody = [step for step in steps if step.kind == "Offered"]
    assert any(
        "no record that anybody was sent" in line for line in document.summary(replace(found, steps=nobody), ENGLISH)
    )


def test_the_maps_show_each_position_of_the_incident() -> None:
    found = facts.of_bundle(evidence_bundle.verify_bundle(approach_bundle(), None))
    overview, decided = maps.maps(found, ENGLISH)
    tag = next(device for device in found.devices if device.of_wearer)
    assert overview.svg.count('r="1.8"') == sum(len(device.fixes) for device in found.devices)
    assert found.decisive is not None and tag.fixes
    assert "When the response was decided" in decided.caption and "100 m" in decided.svg


@pytest.mark.parametrize("anchor", ["start", "end"])
@pytest.mark.parametrize(("x", "y"), [(0, 0), (maps.WIDTH, 0), (0, maps.HEIGHT), (maps.WIDTH, maps.HEIGHT)])
def test_a_label_of_a_map_keeps_off_its_legend_north_arrow_and_scale(x: int, y: int, anchor: str) -> None:
    label = ET.fromstring(maps._label(x, y, "피해자 12:48:21", colour="#000000", anchor=anchor))  # noqa: S314  # our own
    width = 3 * maps.WIDE_POINTS + 9 * maps.NARROW_POINTS
    left = float(label.attrib["x"]) - (width if anchor == "end" else 0)
    top, bottom = float(label.attrib["y"]) - 11, float(label.attrib["y"])
    assert left >= 4 and left + width <= maps.WIDTH - maps.MARGIN
    assert left >= maps.LEGEND_WIDTH or top >= maps.LEGEND_HEIGHT - 11
    assert bottom <= maps.HEIGHT - 25


def test_positions_more_than_three_minutes_apart_are_not_joined() -> None:
    found = facts.of_bundle(evidence_bundle.verify_bundle(approach_bundle(), None))
    tag = next(device for device in found.devices if device.of_wearer)
    parts = [fix._replace(time_ms=fix.time_ms + (600_000 if n > 9 else 0)) for n, fix in enumerate(tag.fixes)]
    assert [len(part) for part in maps._without_gaps(parts)] == [10, len(parts) - 10]
    assert list(maps._without_gaps(parts[:1])) == [] and list(maps._without_gaps(tag.fixes)) == [tag.fixes]


def test_the_document_says_why_the_response_was_not_decided_earlier() -> None:
    verified = evidence_bundle.verify_bundle(approach_bundle(), None)
    found = incident.reports_before(verified, facts.of_bundle(verified).decisive)
    assert found and all(report.evaluation.held_back_by for report in found)
    text = text_of(incident.incident_pdf(approach_bundle(), None, ENGLISH))
    assert "Why the response wasn't decided earlier" in text
    assert "the probability of being inside was below 1 %" in text


def test_an_amended_account_replaces_the_first_one_and_prolongs_nothing() -> None:
    """The position next to her came after the ring was cleared: the first account's least distance is no longer stated as valid."""
    bundle_ = approach_bundle(late_turns=(13, 14))
    found = facts.of_bundle(evidence_bundle.verify_bundle(bundle_, None))
    amended = next(
        fact for fact in found.amendments.values() if (fact.alert.target_id, fact.alert.ring_m) == ("p1", 100)
    )
    first = next(fact for fact in found.alerts if fact.alert.alert_id == amended.alert.amends)
    assert found.amended_by(first) is amended and found.amended_by(amended) is None
    assert len(found.amendments) == 6 and found.last_ms < amended.decided_ms
    text = text_of(incident.incident_pdf(bundle_, None, KOREAN))
    for words in (
        f"늦게 도착한 위치 보고로 접근 기록 {len(found.amendments)}건이 정정되었습니다",
        "정정됨 (유효하지 않음)",
        "정정한 기록",
        "접근 기록 정정",
        "보고된 위치로 계산한 가장 가까운 거리: 피해자 p1까지 30 m, 보호장소 home1까지 0 m.",
    ):
        assert words in text, words


def test_the_least_distance_is_not_that_of_a_superseded_account() -> None:
    found = facts.of_bundle(evidence_bundle.verify_bundle(approach_bundle(late_turns=(13, 14)), None))
    for fact in found.alerts:
        if fact.measure is not None and fact.alert.alert_id in found.amendments:
            fact.measure.min_distance_m = 1.0  # as if a first account had put him nearer
    assert any("30 m from protected person p1" in sentence.lower() for sentence in document.summary(found, ENGLISH))


def without_tag() -> log_pb2.LogEntry:
    """A snapshot of the case after the record of its last tag has ended."""
    entry = case_entry(version=2, place=True)
    entry.case.ClearField("tag_device_ids")
    return entry


def without_phone() -> log_pb2.LogEntry:
    """A snapshot of the case after the record of her last device has ended."""
    entry = case_entry(version=2, place=True)
    entry.case.persons[0].ClearField("device_ids")
    return entry


ENDS_BY_TIME = case_entry(version=2, place=True, until_ms=BEGAN_MS + 90_000)
ENDED_BEFORE = case_entry(version=2, place=True, until_ms=BEGAN_MS + 60_000)


@pytest.mark.parametrize("snapshot", [ENDS_BY_TIME, ENDED_BEFORE])
@pytest.mark.parametrize("words", [KOREAN, ENGLISH])
def test_a_ring_that_a_record_clears_is_no_confirmed_departure(snapshot: log_pb2.LogEntry, words: Words) -> None:
    """The order ends while he is within 100 m of her."""
    bundle_ = approach_bundle(last_snapshot=snapshot)
    found = facts.of_bundle(evidence_bundle.verify_bundle(bundle_, None))
    cleared = [fact for fact in found.alerts if fact.alert.kind == alert_pb2.RING_CLEARED]
    assert len(cleared) == 6 and all(fact.without_departure for fact in cleared)
    text = text_of(incident.incident_pdf(bundle_, None, words))
    assert words("RING_UNWATCHED") in text and f"{words('RING_CLEARED')}, " not in text
    lines = [document.alert_text(fact, words) for fact in cleared]
    assert not any(
        words.text("거리 1", "distance 1") in line or words.text("거리 2", "distance 2") in line for line in lines
    )


@pytest.mark.parametrize(("snapshot", "count"), [(without_tag(), 6), (without_phone(), 3)])
def test_a_ring_that_clears_half_an_hour_after_the_end_of_a_device_is_no_confirmed_departure(
    snapshot: log_pb2.LogEntry, count: int
) -> None:
    bundle_ = approach_bundle(last_snapshot=snapshot, ticks_after_s=1_900)
    found = facts.of_bundle(evidence_bundle.verify_bundle(bundle_, None))
    cleared = [fact for fact in found.alerts if fact.alert.kind == alert_pb2.RING_CLEARED]
    assert len(cleared) == count and all(fact.without_departure for fact in cleared)
    assert not any(fact.measure is None or fact.measure.HasField("distance_m") for fact in cleared)


@pytest.mark.parametrize("words", [KOREAN, ENGLISH])
def test_tampering_that_ends_with_no_tag_left_is_not_said_to_be_over(words: Words) -> None:
    bundle_ = approach_bundle(equipment=((20, "STRAP_OPEN"),), last_snapshot=without_tag(), ticks_after_s=1_900)
    found = facts.of_bundle(evidence_bundle.verify_bundle(bundle_, None))
    [ended] = [
        fact
        for fact in found.alerts
        if fact.alert.kind == alert_pb2.TAMPERED and fact.alert.demand == geometry_pb2.RECORD
    ]
    assert ended.alert.unconfirmed and not ended.without_departure
    text = text_of(incident.incident_pdf(bundle_, None, words))
    assert f"{words('TAMPERED')}: {words('phase_UNCONFIRMED')}" in text
    assert f"{words('TAMPERED')}: {words('phase_OVER')}" not in text


def test_a_ring_that_reports_clear_is_a_departure() -> None:
    found = facts.of_bundle(evidence_bundle.verify_bundle(approach_bundle(late_turns=(13, 14)), None))
    cleared = [fact for fact in found.alerts if fact.alert.kind == alert_pb2.RING_CLEARED]
    assert cleared and not any(fact.without_departure for fact in cleared)


def test_late_evidence_of_hours_before_begins_no_incident() -> None:
    found = facts.of_bundle(evidence_bundle.verify_bundle(approach_bundle(), None))
    late = alert_pb2.Alert(kind=alert_pb2.LATE_EVIDENCE)
    late.at.FromMilliseconds(found.began_ms - 3 * 3_600_000)
    late.decided_at.FromMilliseconds(found.began_ms + 60_000)
    assert replace(found, alerts=[facts.DecidedAlert(late, None), *found.alerts]).began_ms == found.began_ms


def test_each_number_and_name_of_a_bundle_has_its_words() -> None:
    """A judge reads words, not names of the code."""
    steps = {kind.stored_name for kind in EVENTS.values()} - {"AlertFolded", "AlertWasMissing"}
    named = {*alert_pb2.AlertKind.keys(), *log_pb2.EquipmentKind.keys(), *steps}
    named |= {f"anomaly_{name}" for name in alert_pb2.AnomalyKind.keys()}  # noqa: SIM118  # no dict
    named |= {f"phase_{phase.value}" for phase in AlertPhase if phase is not AlertPhase.BEGUN}
    numbers: dict[str, Iterable[IntEnum]] = {
        "state": [state for state in PROGRESS if state is not AssignmentState.ACKNOWLEDGED],
        "cause": CloseCause,
        "flag": WarningFlag,
        "reason": [reason for reason in EscalationReason if reason],
        "plan": ContactPlan,
        "contact": ContactState,
        "note": NoteKind,
        "result": [result for result in NotedResult if result],
    }
    named |= {f"{name}_{int(number)}" for name, known in numbers.items() for number in known}
    missing = {name for name in named if not name.endswith("_UNSPECIFIED")} - WORDS.keys()
    assert missing == set()


def test_a_log_that_has_aged_out_in_part_is_stated() -> None:
    lost = "사건 전 기록의 일부가 이미 보존기간이 지나 없습니다"
    assert lost in text_of(incident.incident_pdf(bundle(whole=False), None, KOREAN))
    assert lost not in text_of(incident.incident_pdf(bundle(), None, KOREAN))
