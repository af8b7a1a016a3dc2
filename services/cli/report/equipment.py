"""What each device did during an incident: its reports, and its records of reception and of handling, side by side.

A court asks whether a fault or intent was behind it, and a vendor's record that is silent about that has led to acquittals. The records
are listed by what they are about, since none of them shows a cause: a battery may be left empty, and a strap may break.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from statistics import median
from typing import Any

from services.cli.report import formats
from services.cli.report.facts import DeviceRecord, ReportFacts
from services.cli.report.words import Words
from tandem.common.v1 import alert_pb2

_RECEPTION_EVENTS = ("BATTERY_LOW", "OUT_OF_COVERAGE")
_HANDLING_EVENTS = ("STRAP_OPEN", "CASE_OPEN", "JAMMING_SUSPECTED")
_SILENCES = (alert_pb2.SILENT, alert_pb2.PROTECTED_DEVICE_LOST)
_LATE_MS = 180_000
"""A position that arrived later than this after its time is counted as late, milliseconds."""


def sections(facts: ReportFacts, words: Words) -> list[dict[str, Any]]:
    """What each device did, as the template needs it."""
    return [
        {
            "name": device.device_id,
            "of_wearer": device.of_wearer,
            "owner": f"{words('wearer' if device.of_wearer else 'protected')} {device.subject_id}",
            "rows": list(_rows(device, words)),
            "events": [
                {"time": formats.date_time(event.at_ms), "what": words(event.kind)} for event in device.equipment
            ],
            "reception": list(_reception(device, facts, words)) or [words("none")],
            "handling": list(_handling(device, facts, words)) or [words("none")],
        }
        for device in facts.devices
    ]


def _rows(device: DeviceRecord, words: Words) -> Iterator[list[str]]:
    fixes = device.fixes
    if not fixes:
        yield [words("reports"), words("no_reports")]
        return
    yield [words("reports"), str(len(fixes))]
    yield [
        words("first_last"),
        f"{formats.date_time(fixes[0].time_ms)} – {formats.date_time(fixes[-1].time_ms)}",
    ]
    if len(fixes) > 1:
        gap_ms, from_ms = max((after.time_ms - before.time_ms, before.time_ms) for before, after in pairwise(fixes))
        yield [words("longest_gap"), f"{words.duration(gap_ms)} ({formats.date_time(from_ms)})"]
    yield [words("accuracy"), formats.metres(median(fix.accuracy_m for fix in fixes))]


def _reception(device: DeviceRecord, facts: ReportFacts, words: Words) -> Iterator[str]:
    for event in device.equipment:
        if event.kind in _RECEPTION_EVENTS:
            yield f"{formats.clock_time(event.at_ms)} {words(event.kind)}"
    owner = "" if device.of_wearer else device.subject_id
    for fact in facts.alerts:
        if fact.alert.kind in _SILENCES and fact.alert.outage_id and fact.alert.target_id == owner:
            outage = words.text("여러 장치가 함께 끊긴 통신 장애 중", "during an outage of many devices")
            yield f"{formats.clock_time(fact.at_ms)} {words.alert(fact.alert)}, {outage}"
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
            yield f"{formats.clock_time(event.at_ms)} {words(event.kind)}, {_battery_before(battery, words)}"
        elif event.kind in _HANDLING_EVENTS:
            yield f"{formats.clock_time(event.at_ms)} {words(event.kind)}"
    for fact in facts.alerts:
        if fact.alert.kind == alert_pb2.SPOOFING_SUSPECTED and fact.alert.cause.device_id == device.device_id:
            yield f"{formats.clock_time(fact.at_ms)} {words.alert(fact.alert)}"


def _battery_before(last: str, words: Words) -> str:
    if last == "BATTERY_LOW":
        return words.text("그 전에 배터리 부족 신호 있음", "with a low battery before it")
    if last == "BATTERY_RECOVERED":
        return words.text(
            "그 전의 마지막 배터리 신호는 회복", "with the battery recovered at its last signal before it"
        )
    return words.text("이 묶음에 그 전 배터리 신호 없음", "with no battery signal before it in the bundle")
