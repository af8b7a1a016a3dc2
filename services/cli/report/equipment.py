"""What each device did during an incident, and which records speak for a fault and which for intent.

A court needs both: a vendor's record that is silent about fault and intent has led to acquittals. The report concludes neither.
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

_FAULT_EVENTS = ("BATTERY_LOW", "OUT_OF_COVERAGE")
_INTENT_EVENTS = ("STRAP_OPEN", "CASE_OPEN", "JAMMING_SUSPECTED")
_FAULT_ALERTS = (alert_pb2.OUTAGE,)
_INTENT_ALERTS = (alert_pb2.SPOOFING_SUSPECTED,)
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
            "fault": list(_fault(device, facts, words)) or [words("none")],
            "intent": list(_intent(device, facts, words)) or [words("none")],
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


def _fault(device: DeviceRecord, facts: ReportFacts, words: Words) -> Iterator[str]:
    for event in device.equipment:
        if event.kind in _FAULT_EVENTS:
            yield f"{formats.clock_time(event.at_ms)} {words(event.kind)}"
    for fact in facts.alerts:
        if fact.alert.kind in _FAULT_ALERTS:
            yield f"{formats.clock_time(fact.at_ms)} {words.alert(alert_pb2.AlertKind.Name(fact.alert.kind))}"
    vague = sum(fix.accuracy_m >= 100 for fix in device.fixes)
    if vague:
        yield words.text(f"정확도 100 m 이상인 위치 {vague}건", f"{vague} positions with an accuracy of 100 m or more")
    late = sum(fix.arrived_ms - fix.time_ms > _LATE_MS for fix in device.fixes)
    if late:
        yield words.text(f"3분 넘게 늦게 도착한 위치 {late}건", f"{late} positions arrived more than 3 minutes late")


def _intent(device: DeviceRecord, facts: ReportFacts, words: Words) -> Iterator[str]:
    low_battery_ms = [event.at_ms for event in device.equipment if event.kind == "BATTERY_LOW"]
    for event in device.equipment:
        is_announced = any(at_ms <= event.at_ms for at_ms in low_battery_ms)
        if event.kind in _INTENT_EVENTS:
            yield f"{formats.clock_time(event.at_ms)} {words(event.kind)}"
        elif event.kind == "SHUTDOWN" and not is_announced:
            yield f"{formats.clock_time(event.at_ms)} " + words.text(
                "배터리 부족 신호 없이 전원 끔", "switched off without a low battery before"
            )
    if not device.of_wearer:
        return
    for fact in facts.alerts:
        if fact.alert.kind in _INTENT_ALERTS:
            yield f"{formats.clock_time(fact.at_ms)} {words.alert(alert_pb2.AlertKind.Name(fact.alert.kind))}"
    entered = [fact for fact in facts.alerts if fact.alert.kind == alert_pb2.RING_ENTERED]
    radii = list(dict.fromkeys(fact.alert.ring_m for fact in entered))
    if len(radii) > 1:
        inwards = ", ".join(map(formats.metres, radii))
        yield words.text(
            f"거리 기준을 차례로 넘어 접근함: {inwards}", f"approached through one ring after the other: {inwards}"
        )
