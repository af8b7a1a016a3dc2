"""The report on how an order was kept over a period: its incidents, entries of rings, and the equipment of the wearer.

Courts ask for it: Stalking Punishment Act 17-10 for protection orders, Tag Act 31-4(1) for bail. It holds ids, times and rings, and no
position.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from services.cli.report import document, formats, sections
from services.cli.report.bases import basis_text
from services.cli.report.facts import DecidedAlert
from services.cli.report.words import Words
from tandem.common.v1 import alert_pb2, exercise_pb2, geometry_pb2, log_pb2

_EQUIPMENT = (
    alert_pb2.TAMPERED,
    alert_pb2.JAMMED,
    alert_pb2.DEVICE_OFF,
    alert_pb2.LOW_BATTERY,
    alert_pb2.SILENT,
    alert_pb2.HEARD_AGAIN,
    alert_pb2.SPOOFING_SUSPECTED,
)


@dataclass(frozen=True, slots=True)
class CompliancePeriod:
    """An order and a period, with all alerts of the order in the period."""

    order_id: str
    from_ms: int
    until_ms: int
    """Exclusive end of the period, mesh time."""
    case: log_pb2.CaseSnapshot | None
    """Newest snapshot of the order's joint case; None if the log holds none."""
    alerts: Sequence[DecidedAlert]
    """Alerts of the order decided in the period, exercises left out, in the order of the log."""
    known_from_ms: int
    """Time of the first alert that the stream still holds, of any order; those before it are from the legs' records. 0 if none has aged
    out."""
    made_at_ms: int
    made_by: str
    made_for: str
    legal_basis: str


def pdf(period: CompliancePeriod, words: Words) -> bytes:
    """The report as PDF. The same alerts and language give the same bytes."""
    content = {
        "title": words.text("명령 이행 보고서", "Report on compliance with an order"),
        "titles": {
            "summary": words("summary"),
            "counts": words.text("경보의 수", "Alerts by kind"),
            "incidents": words.text("사건", "Incidents"),
            "equipment": words("devices"),
        },
        "head": _head(period, words),
        "notes": [words("ids_only"), words("times"), *_gaps(period, words)],
        "summary": _summary(period, words),
        "counts": _counts(period, words),
        "incident_titles": [
            words("incident"),
            words.text("처음", "First"),
            words.text("마지막", "Last"),
            words.text("가장 안쪽 기준", "Innermost ring"),
            words.text("요구 조치", "Demand"),
        ],
        "incidents": _incidents(period, words),
        "equipment": _equipment(period, words),
        "none": words("none"),
    }
    return document.pdf("compliance", content, words, at_ms=period.made_at_ms)


def of_order(alerts: Sequence[DecidedAlert], order_id: str, *, from_ms: int, until_ms: int) -> list[DecidedAlert]:
    """The alerts of an order that were decided in a period, without exercises."""
    return [
        fact
        for fact in alerts
        if fact.alert.order_id == order_id
        and from_ms <= fact.decided_ms < until_ms
        and fact.alert.exercise == exercise_pb2.EXERCISE_UNSPECIFIED
    ]


def _head(period: CompliancePeriod, words: Words) -> sections.Rows:
    rows = [
        [words("order_id"), period.order_id],
        [
            words.text("기간", "Period"),
            f"{formats.date_time(period.from_ms)} – {formats.date_time(period.until_ms)}",
        ],
        [words.text("작성", "Made"), formats.date_time(period.made_at_ms)],
        [words("made_by"), period.made_by],
        [words("made_for"), period.made_for],
        [words("legal_basis"), basis_text(period.legal_basis, words)],
    ]
    return [*rows, *(sections.order_rows(period.case, words)[1:] if period.case else ())]


def _gaps(period: CompliancePeriod, words: Words) -> Iterator[str]:
    if period.case is None:
        yield words("no_case")
    if period.from_ms < period.known_from_ms:
        first = formats.date_time(period.known_from_ms)
        yield words.text(
            f"주의: {first} 이전은 양 기관의 조치 기록에서 옮긴 것으로, 기관에 통보되거나 출동을 요구한 경보만 있습니다. "
            "그중 장비 경보가 누구의 장치에 관한 것인지는 남아 있지 않습니다.",
            f"ATTENTION: before {first} only alerts that notified an agency or demanded a response remain, from the legs' records. "
            "They don't say whose device an alert about equipment is about.",
        )


def _summary(period: CompliancePeriod, words: Words) -> list[str]:
    incident_ids = {fact.alert.incident_id for fact in period.alerts if fact.alert.incident_id}
    entries = sum(
        fact.alert.kind == alert_pb2.RING_ENTERED and fact.alert.demand == geometry_pb2.RESPOND
        for fact in period.alerts
    )
    return [
        words.text(
            f"기간 중 사건 {len(incident_ids)}건, 출동을 요구하는 거리 안 진입 {entries}건.",
            f"{len(incident_ids)} incidents and {entries} entries of a ring that demands a response in the period.",
        ),
        words.text(
            "이 문서는 위반 여부를 판단하지 않습니다. 사건마다 별도의 사건 보고서가 있습니다.",
            "This document doesn't decide whether the order was violated. Each incident has a report of its own.",
        ),
    ]


def _counts(period: CompliancePeriod, words: Words) -> sections.Rows:
    counts = Counter(
        (fact.alert.kind, fact.alert.demand, _alert_text(fact, words)) for fact in period.alerts if fact.alert.demand
    )
    return [[text, str(count)] for (_, _, text), count in sorted(counts.items())]


def _alert_text(fact: DecidedAlert, words: Words) -> str:
    """An alert in words: its kind, and what it demanded."""
    return f"{words.alert(fact.alert)} → {words(geometry_pb2.Demand.Name(fact.alert.demand))}"


def _incidents(period: CompliancePeriod, words: Words) -> list[list[str]]:
    by_incident: dict[str, list[DecidedAlert]] = {}
    for fact in period.alerts:
        if fact.alert.incident_id:
            by_incident.setdefault(fact.alert.incident_id, []).append(fact)
    return [_incident(incident_id, facts, words) for incident_id, facts in by_incident.items()]


def _incident(incident_id: str, facts: Sequence[DecidedAlert], words: Words) -> list[str]:
    rings = [fact.alert.ring_m for fact in facts if fact.alert.kind == alert_pb2.RING_ENTERED and fact.alert.ring_m]
    demand = max(fact.alert.demand for fact in facts)
    return [
        incident_id,
        formats.date_time(min(fact.at_ms for fact in facts)),
        formats.date_time(max(fact.at_ms for fact in facts)),
        formats.metres(min(rings)) if rings else "-",
        words(geometry_pb2.Demand.Name(demand)) if demand else "-",
    ]


def _equipment(period: CompliancePeriod, words: Words) -> list[dict[str, Any]]:
    return [
        {
            "time": formats.date_time(fact.at_ms),
            "what": _alert_text(fact, words),
        }
        for fact in period.alerts
        if fact.alert.kind in _EQUIPMENT and fact.alert.demand and not fact.alert.target_id
    ]
