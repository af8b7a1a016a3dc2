"""The report on one incident, made of a verified evidence bundle alone: its course, the reports before the decision, and its devices.

A court asks of each device whether a fault or intent was behind it, and a vendor's record that is silent about that has led to
acquittals. The records are listed by what they are about, since none of them shows a cause: a battery may be left empty, and a strap
may break.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from itertools import groupby, pairwise
from statistics import median
from typing import Any, NamedTuple

from services.common import times
from services.common.clock import MeshClock
from services.common.evidence.model import MARK_SUBJECT, StoredMessage
from services.common.messaging import flow
from services.common.messaging.delivered import Delivered
from services.common.messaging.streams import LogMetadata
from services.court.evidence import bundle
from services.court.evidence.bundle import Verified
from services.court.explain.refold import EarlierReport, Refold, StoredAlert
from services.court.report import document
from services.court.report import facts as report_facts
from services.court.report.document import alert_text, named_fields
from services.court.report.facts import DecidedAlert, DeviceRecord, LegStep, ReportFacts
from services.court.report.maps import maps
from services.court.report.words import Words, clock_time, metres, percent, to_minute
from tandem.common.v1 import alert_pb2, geometry_pb2, log_pb2

_TITLES = ("summary", "order", "course", "maps", "decision", "devices", "answers", "authenticity")


def incident_pdf(data: bytes, public_key: bytes | None, words: Words) -> bytes:
    """The PDF of the incident in a bundle. Raises CorruptArchive, with the place, if a byte of the bundle was altered."""
    verified = bundle.verify_bundle(data, public_key)
    facts = report_facts.of_bundle(verified)
    content = {
        "title": words("title"),
        "exercise": words("exercise") if document.is_exercise(facts) else "",
        "titles": {name: words(name) for name in _TITLES},
        "head": document.head(facts, words),
        "notes": [words("ids_only"), words("times")],
        "summary": document.summary(facts, words),
        "orders": [document.order_rows(case, words) for case in facts.cases],
        "no_case": words("no_case"),
        "course": course(facts, words),
        "about_maps": words("about_maps"),
        "maps": [map_._asdict() for map_ in maps(facts, words)],
        "about_probability": words("about_probability"),
        "decisions": document.decisions(facts, words),
        "earlier": rows_of_reports(reports_before(verified, facts.decisive), words),
        "earlier_titles": [words(name) for name in ("why_not_earlier", "at", "device", "probability", "held_back_by")],
        "devices": device_sections(facts, words),
        "no_conclusion": words("no_conclusion"),
        "device_titles": [words("reception_records"), words("handling_records"), words("events")],
        "answers": document.answers(facts, words),
        "answer_titles": [
            words(name) for name in ("agency", "subject", "answer", "answered_by", "answered_at", "after_offer")
        ],
        "none": words("none"),
        "authenticity": document.authenticity(facts, words, bundle_sha256=hashlib.sha256(data).hexdigest()),
        "verify": document.how_to_verify(words),
    }
    return document.typeset_pdf("incident", content, words, at_ms=facts.manifest["made_at_ms"])


LOOK_BACK_MS = 600_000
"""Equipment events are listed from this time before the incident on, milliseconds."""


class Moment(NamedTuple):
    """A line of the course."""

    at_ms: int
    who: str
    what: str
    is_grave: bool = False
    """The line is emphasised: a response was demanded, or something was late or missing."""


def course(facts: ReportFacts, words: Words) -> list[dict[str, Any]]:
    """The course as minutes, each with its lines, as the template needs them."""
    moments = sorted(
        # At the same moment, an event of a device comes before the decision that follows from it, and a step after it.
        [*_equipment(facts, words), *_alerts(facts, words), *_steps(facts, words)],
        key=lambda moment: moment.at_ms,
    )
    return [
        {
            "minute": minute,
            "lines": [
                {
                    "time": clock_time(moment.at_ms),
                    "who": moment.who,
                    "what": moment.what,
                    "grave": moment.is_grave,
                }
                for moment in lines
            ],
        }
        for minute, lines in groupby(moments, key=lambda moment: to_minute(moment.at_ms))
    ]


def _alerts(facts: ReportFacts, words: Words) -> Iterator[Moment]:
    for fact in facts.alerts:
        text = alert_text(fact, words)
        if fact.at_ms != fact.decided_ms:
            moment = clock_time(fact.at_ms)
            text += words.text(f" (해당 시각 {moment})", f" (of {moment})")
        is_grave = fact.alert.demand == geometry_pb2.RESPOND
        yield Moment(fact.decided_ms, words("fold"), text, is_grave=is_grave)


def _equipment(facts: ReportFacts, words: Words) -> Iterator[Moment]:
    from_ms = facts.began_ms - LOOK_BACK_MS
    for device in facts.devices:
        owner = words("wearer" if device.of_wearer else "protected")
        for event in device.equipment:
            if from_ms <= event.at_ms <= facts.last_ms:
                yield Moment(event.at_ms, words("device"), f"{owner}, {device.device_id}: {words(event.kind)}")


def _steps(facts: ReportFacts, words: Words) -> Iterator[Moment]:
    for step in facts.steps:
        is_grave = step.kind in ("LegAbsent", "StepsLost", "NobodyAvailable", "Escalated", "Rejected")
        yield Moment(step.at_ms, words(step.leg), step_text(step, words), is_grave=is_grave)


def step_text(step: LegStep, words: Words) -> str:
    """A step in words: what happened, about whom, by whom, and the details that its leg may show."""
    parts = [words.step_of(step.leg, step.kind)]
    if step.subject_id:
        parts.append(step.subject_id)
    if step.kind == "SentByRadio":
        # Nothing but the officer's entry shows that this unit was sent, so the document says what it is.
        entry = words.text(f"입력자 {step.by}", f"entered by {step.by}")
        return f"{', '.join(parts)}: {step.body.get('unit_name')}, {entry}"
    parts += _details(step, words)
    if step.by:
        parts.append(words.text(f"처리자 {step.by}", f"by {step.by}"))
    return ", ".join(parts)


def _details(step: LegStep, words: Words) -> Iterator[str]:
    body: Mapping[str, Any] = step.body
    if step.unit:
        yield words.text(f"출동팀 {step.unit}", f"unit {step.unit}")
    elif step.kind == "Acknowledged" and step.leg in flow.AGENCY_LEGS:
        yield words.text("상황실이 접수", "by the desk itself")
    yield from named_fields(step, words)
    if step.kind == "Raced":
        yield words("wearer_first" if body.get("losing") else "responder_first")
    if step.kind in ("LegAbsent", "LegReturned") and body.get("leg") in flow.LEGS:
        yield words(body["leg"])
    if step.kind == "SceneShared" and not body.get("one_scene"):
        yield words.text("해제", "no longer")
    if step.kind == "TravelEstimated" and isinstance(travel_s := body.get("travel_s"), int):
        yield words.text(f"이동 {travel_s}초", f"{travel_s} s on the way")
    if step.kind == "Rejected" and body.get("reason"):
        yield words.text(f"사유: {body['reason']}", f"reason: {body['reason']}")


SHOWN_REPORTS = 12
"""Number of reports shown: the last ones before the decision."""
_TICK = log_pb2.LogEntry(tick=log_pb2.Tick()).SerializeToString()


def reports_before(verified: Verified, decisive: DecidedAlert | None) -> list[EarlierReport]:
    """The evaluated reports of both sides before the first demand to respond. Empty if the bundle can't be refolded, or if that demand
    isn't the entry of a ring."""
    if decisive is None or verified.replay is None:
        return []
    manifest, alert = verified.manifest, decisive.alert
    clock, log = manifest["clock"], manifest["log"]
    log_meta = LogMetadata(log["partition"] + 1, MeshClock(clock["rate"], clock["anchor_ms"]), log["log_id"])
    entries = [record for record in verified.records if record.stream == flow.log_stream(log["partition"])]
    refold = Refold(StoredAlert(alert, alert.SerializeToString(), None), log_meta, entries[0].sequence)
    for record in entries:
        if record.sequence <= alert.sequence:
            refold.fold(_delivered(record, log["partition"], log["window_stamp_ms"]))
    return refold.earlier[-SHOWN_REPORTS:]


def rows_of_reports(found: list[EarlierReport], words: Words) -> list[list[str]]:
    """Rows of the reports: arrival, device, probability, and what held the entry back."""
    return [
        [
            clock_time(report.arrived_ms),
            report.device_id,
            "-" if report.evaluation.p is None else percent(report.evaluation.p),
            words.held_back(report.evaluation.held_back_by),
        ]
        for report in found
    ]


def _delivered(record: StoredMessage, partition: int, window_stamp_ms: int) -> Delivered:
    """A record as the log's reader would get it. A record without content only makes time pass."""
    subject, data = record.subject, record.data
    if subject == MARK_SUBJECT:
        subject, data = flow.log_subject(partition, "tick"), _TICK
    stamp_ms = window_stamp_ms if record.premise else record.stamp_ms
    return Delivered(
        subject=subject,
        data=data,
        stream=record.stream,
        sequence=record.sequence,
        stamp_ms=stamp_ms,
        pending=0,
        reply="",
    )


_RECEPTION_EVENTS = ("BATTERY_LOW", "OUT_OF_COVERAGE")
_HANDLING_EVENTS = ("STRAP_OPEN", "CASE_OPEN", "JAMMING_SUSPECTED")
_SILENCES = (alert_pb2.SILENT, alert_pb2.PROTECTED_DEVICE_LOST)
_LATE_MS = 180_000
"""A position that arrived later than this after its time is counted as late, milliseconds."""


def device_sections(facts: ReportFacts, words: Words) -> list[dict[str, Any]]:
    """What each device did, as the template needs it."""
    return [
        {
            "name": device.device_id,
            "of_wearer": device.of_wearer,
            "owner": f"{words('wearer' if device.of_wearer else 'protected')} {device.subject_id}",
            "rows": list(_report_rows(device, words)),
            "events": [
                {"time": times.korean_date_time(event.at_ms), "what": words(event.kind)} for event in device.equipment
            ],
            "reception": list(_reception(device, facts, words)) or [words("none")],
            "handling": list(_handling(device, facts, words)) or [words("none")],
        }
        for device in facts.devices
    ]


def _report_rows(device: DeviceRecord, words: Words) -> Iterator[list[str]]:
    fixes = device.fixes
    if not fixes:
        yield [words("reports"), words("no_reports")]
        return
    yield [words("reports"), str(len(fixes))]
    yield [
        words("first_last"),
        f"{times.korean_date_time(fixes[0].time_ms)} – {times.korean_date_time(fixes[-1].time_ms)}",
    ]
    if len(fixes) > 1:
        gap_ms, from_ms = max((after.time_ms - before.time_ms, before.time_ms) for before, after in pairwise(fixes))
        yield [words("longest_gap"), f"{words.duration(gap_ms)} ({times.korean_date_time(from_ms)})"]
    yield [words("accuracy"), metres(median(fix.accuracy_m for fix in fixes))]


def _reception(device: DeviceRecord, facts: ReportFacts, words: Words) -> Iterator[str]:
    for event in device.equipment:
        if event.kind in _RECEPTION_EVENTS:
            yield f"{clock_time(event.at_ms)} {words(event.kind)}"
    owner = "" if device.of_wearer else device.subject_id
    for fact in facts.alerts:
        if fact.alert.kind in _SILENCES and fact.alert.outage_id and fact.alert.target_id == owner:
            outage = words.text("여러 장치가 함께 끊긴 통신 장애 중", "during an outage of many devices")
            yield f"{clock_time(fact.at_ms)} {words.alert(fact.alert)}, {outage}"
    vague = sum(fix.accuracy_m >= 100 for fix in device.fixes)
    if vague:
        yield words.text(f"정확도 100 m 이상인 위치 {vague}건", f"{vague} positions with an accuracy of 100 m or more")
    late = sum(fix.arrived_ms - fix.time_ms > _LATE_MS for fix in device.fixes)
    if late:
        yield words.text(f"3분 넘게 늦게 도착한 위치 {late}건", f"{late} positions arrived more than 3 minutes late")


def _handling(device: DeviceRecord, facts: ReportFacts, words: Words) -> Iterator[str]:
    battery = ""
    for event in device.equipment:
        if event.kind in ("BATTERY_LOW", "BATTERY_RECOVERED"):
            battery = event.kind
        elif event.kind == "SHUTDOWN":
            yield f"{clock_time(event.at_ms)} {words(event.kind)}, {_battery_before(battery, words)}"
        elif event.kind in _HANDLING_EVENTS:
            yield f"{clock_time(event.at_ms)} {words(event.kind)}"
    for fact in facts.alerts:
        if fact.alert.kind == alert_pb2.SPOOFING_SUSPECTED and fact.alert.cause.device_id == device.device_id:
            yield f"{clock_time(fact.at_ms)} {words.alert(fact.alert)}"


def _battery_before(last: str, words: Words) -> str:
    if last == "BATTERY_LOW":
        return words.text("그 전에 배터리 부족 신호 있음", "with a low battery before it")
    if last == "BATTERY_RECOVERED":
        return words.text(
            "그 전의 마지막 배터리 신호는 회복", "with the battery recovered at its last signal before it"
        )
    return words.text("이 묶음에 그 전 배터리 신호 없음", "with no battery signal before it in the bundle")
