"""The report on how an order was kept over a period: its incidents, entries of rings, and the equipment of the wearer.

Courts ask for it: Stalking Punishment Act 17-10 for protection orders, Tag Act 31-4(1) for bail. It holds ids, times and rings, and no
position. Its alerts are collected from a running mesh, once the disclosure is durable for the ledger.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from services.client.mesh import MeshConnection
from services.common import ids, times
from services.common.errors import InvalidField, PermanentError
from services.common.failure import MISUSED, CommandFailed
from services.common.messaging import flow, pull, streams
from services.common.messaging import stored as readers
from services.common.messaging.bus import Bus
from services.common.privacy.disclosures import check_disclosure
from services.court.evidence.collection import NATS_USER, BundleGrounds
from services.court.evidence.leg_records import MeshRecords, open_postgres, open_sqlite
from services.court.report import document
from services.court.report.facts import DecidedAlert
from services.court.report.words import Words, basis_text, metres
from services.dispatch.domain.leg import EVIDENCE_LEGS
from tandem.common.v1 import alert_pb2, exercise_pb2, geometry_pb2, ledger_pb2, log_pb2

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


def compliance_pdf(period: CompliancePeriod, words: Words) -> bytes:
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
    return document.typeset_pdf("compliance", content, words, at_ms=period.made_at_ms)


def of_order(alerts: Sequence[DecidedAlert], order_id: str, *, from_ms: int, until_ms: int) -> list[DecidedAlert]:
    """The alerts of an order that were decided in a period, without exercises."""
    return [
        fact
        for fact in alerts
        if fact.alert.order_id == order_id
        and from_ms <= fact.decided_ms < until_ms
        and fact.alert.exercise == exercise_pb2.EXERCISE_UNSPECIFIED
    ]


def _head(period: CompliancePeriod, words: Words) -> document.Rows:
    rows = [
        [words("order_id"), period.order_id],
        [
            words.text("기간", "Period"),
            f"{times.korean_date_time(period.from_ms)} – {times.korean_date_time(period.until_ms)}",
        ],
        [words.text("작성", "Made"), times.korean_date_time(period.made_at_ms)],
        [words("made_by"), period.made_by],
        [words("made_for"), period.made_for],
        [words("legal_basis"), basis_text(period.legal_basis, words)],
    ]
    return [*rows, *(document.order_rows(period.case, words)[1:] if period.case else ())]


def _gaps(period: CompliancePeriod, words: Words) -> Iterator[str]:
    if period.case is None:
        yield words("no_case")
    if period.from_ms < period.known_from_ms:
        first = times.korean_date_time(period.known_from_ms)
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
            f"기간 중 사건 {len(incident_ids)}건, 출동을 요구하는 접근 {entries}건.",
            f"{len(incident_ids)} incidents and {entries} entries of a ring that demands a response in the period.",
        ),
        words.text(
            "이 문서는 위반 여부를 판단하지 않습니다. 사건마다 별도의 사건 보고서가 있습니다.",
            "This document doesn't decide whether the order was violated. Each incident has a report of its own.",
        ),
    ]


def _counts(period: CompliancePeriod, words: Words) -> document.Rows:
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
        times.korean_date_time(min(fact.at_ms for fact in facts)),
        times.korean_date_time(max(fact.at_ms for fact in facts)),
        metres(min(rings)) if rings else "-",
        words(geometry_pb2.Demand.Name(demand)) if demand else "-",
    ]


def _equipment(period: CompliancePeriod, words: Words) -> list[dict[str, Any]]:
    return [
        {
            "time": times.korean_date_time(fact.at_ms),
            "what": _alert_text(fact, words),
        }
        for fact in period.alerts
        if fact.alert.kind in _EQUIPMENT and fact.alert.demand and not fact.alert.target_id
    ]


LEG_LAG_MS = 600_000
"""Maximum time from the decision of an alert until a leg that was down records it, milliseconds."""


async def collect_period(
    connection: MeshConnection,
    records: MeshRecords,
    order_id: str,
    *,
    from_ms: int,
    until_ms: int,
    grounds: BundleGrounds,
) -> CompliancePeriod:
    """Collects the alerts of an order in a period: those that ALERTS holds, and older ones from the legs' records.

    Raises CommandFailed if the mesh doesn't know the order, or refuses the grounds.
    """
    now_ms = connection.clock.now_ms()
    try:
        async with connection.nats.bus_for_command(NATS_USER) as (bus, patience):
            log_meta = await streams.read_log_meta(bus)
            patience.reschedule(None)  # no timeout here: reading all alerts takes long
            first = (await bus.bounds_of(flow.ALERTS.name)).first
            alerts = [fact async for fact in _alerts(bus)]
            known_from_ms = 0 if first <= 1 else alerts[0].decided_ms if alerts else now_ms
            if known_from_ms:
                kept = {fact.alert.alert_id for fact in alerts}
                older = await read_older_alerts(
                    records, order_id, from_ms=from_ms, before_ms=known_from_ms + LEG_LAG_MS
                )
                alerts = [*(fact for fact in older if fact.alert.alert_id not in kept), *alerts]
            case = await _case(bus, log_meta.partitions, order_id)
            if case is None and all(fact.alert.order_id != order_id for fact in alerts):
                raise CommandFailed(f"--order: the mesh knows no {order_id}", MISUSED)
            named = (fact.alert.wearer_id for fact in alerts if fact.alert.order_id == order_id)
            wearer_id = case.wearer_id if case else next(named)
            await _disclose(bus, order_id, wearer_id, grounds=grounds, now_ms=now_ms)
    except PermanentError as error:
        raise CommandFailed(error.reason) from None
    return CompliancePeriod(
        order_id=order_id,
        from_ms=from_ms,
        until_ms=until_ms,
        case=case,
        alerts=of_order(alerts, order_id, from_ms=from_ms, until_ms=until_ms),
        known_from_ms=known_from_ms,
        made_at_ms=now_ms,
        made_by=grounds.who,
        made_for=grounds.recipient,
        legal_basis=grounds.legal_basis,
    )


async def _alerts(bus: Bus) -> AsyncIterator[DecidedAlert]:
    """All alerts that the mesh holds, in the order in which they were stored. An unreadable message is passed over."""
    bounds = await bus.bounds_of(flow.ALERTS.name)
    async for message in pull.between(bus, flow.ALERTS.name, bounds.first, last=bounds.last):
        try:
            yield DecidedAlert(readers.alert(message.data), None)
        except InvalidField:
            continue


async def _case(bus: Bus, partitions: int, order_id: str) -> log_pb2.CaseSnapshot | None:
    """The newest snapshot of an order's joint case; None if the log holds none."""
    found: log_pb2.CaseSnapshot | None = None
    for partition in range(partitions):
        stream, subject = flow.log_stream(partition), flow.log_subject(partition, "case")
        if await bus.last_of(stream, subject) is None:
            continue
        async for messages in pull.read(bus, stream, 1, subjects=(subject,)):
            for message in messages:
                case = log_pb2.LogEntry.FromString(message.data).case
                if case.order_id == order_id and (found is None or case.version >= found.version):
                    found = case
            if messages[-1].pending == 0:
                break
    return found


async def _disclose(bus: Bus, order_id: str, wearer_id: str, *, grounds: BundleGrounds, now_ms: int) -> None:
    """Stores the disclosure for the ledger. Raises CommandFailed if the grounds don't allow it."""
    row = ledger_pb2.Disclosure(
        disclosure_id=ids.hash_id("compliance", order_id, grounds.recipient, now_ms),
        at_ms=now_ms,
        who=grounds.who,
        legal_basis=grounds.legal_basis,
        purpose=grounds.purpose,
        reference=order_id,
        record_kind="WEARER",
        record_id=wearer_id,
        order_id=order_id,
        recipient=grounds.recipient,
    )
    try:
        check_disclosure(row)
    except InvalidField as error:
        raise CommandFailed(f"not disclosed: {error}", MISUSED) from None
    subject = flow.disclosure_subject(NATS_USER, row.disclosure_id)
    await bus.publish(subject, row.SerializeToString(), msg_id=row.disclosure_id)


_QUERY = """
    SELECT events.incident_id, events.body FROM events JOIN incidents ON incidents.incident_id = events.incident_id
    WHERE events.kind = 'AlertFolded' AND incidents.exercise = 0 AND incidents.opened_ms < {before_ms} AND {has_order}
"""
_SQLITE = _QUERY.format(before_ms="?", has_order="instr(incidents.order_ids, ?) > 0")
_POSTGRES = _QUERY.format(before_ms="$1", has_order="strpos(incidents.order_ids::text, $2) > 0")


async def read_older_alerts(records: MeshRecords, order_id: str, *, from_ms: int, before_ms: int) -> list[DecidedAlert]:
    """The alerts of an order that both agencies' legs recorded from `from_ms` to `before_ms`, mesh time. Exercises are left out.

    Raises CommandFailed if a database can't be read.
    """
    rows: list[tuple[str, str]] = []
    for leg in EVIDENCE_LEGS:
        path = records.sqlite_file(leg)
        if url := records.databases[leg]:
            rows += await _postgres(url, leg, order_id, before_ms=before_ms)
        elif path.exists():
            rows += _sqlite(path, order_id, before_ms)
    return alerts_of_rows(rows, order_id, from_ms=from_ms, before_ms=before_ms)


def alerts_of_rows(
    rows: Iterable[tuple[str, str]], order_id: str, *, from_ms: int, before_ms: int
) -> list[DecidedAlert]:
    """The alerts of an order in rows of an incident's id and an event's body, each once, by time."""
    found: dict[str, DecidedAlert] = {}
    for incident_id, text in rows:
        body = json.loads(text)
        if body["order_id"] == order_id and from_ms <= body["at_ms"] < before_ms:
            found.setdefault(body["alert_id"], DecidedAlert(_alert(incident_id, body), None))
    return sorted(found.values(), key=lambda fact: (fact.decided_ms, fact.alert.alert_id))


def _alert(incident_id: str, body: dict[str, object]) -> alert_pb2.Alert:
    """The alert with the fields that a leg's record has. Its times are the time at which the leg recorded it."""
    alert = alert_pb2.Alert(
        alert_id=str(body["alert_id"]),
        incident_id=incident_id,
        order_id=str(body["order_id"]),
        wearer_id=str(body.get("wearer_id", "")),
        kind=alert_pb2.AlertKind.ValueType(_int_or_zero(body.get("kind"))),
        demand=geometry_pb2.Demand.ValueType(_int_or_zero(body["demand"])),
    )
    ring_m = body.get("ring_m")
    alert.ring_m = ring_m if isinstance(ring_m, float | int) else 0.0
    for at in (alert.at, alert.decided_at):
        at.FromMilliseconds(_int_or_zero(body["at_ms"]))
    return alert


def _int_or_zero(value: object) -> int:
    return value if isinstance(value, int) else 0


def _sqlite(path: Path, order_id: str, before_ms: int) -> list[tuple[str, str]]:
    with open_sqlite(path) as connection:
        return connection.execute(_SQLITE, (before_ms, json.dumps(order_id))).fetchall()


async def _postgres(url: str, leg: str, order_id: str, *, before_ms: int) -> list[tuple[str, str]]:
    async with open_postgres(url, leg) as connection:
        return [tuple(row) for row in await connection.fetch(_POSTGRES, before_ms, json.dumps(order_id))]
