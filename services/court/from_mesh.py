"""What a court or a reviewer gets from a running mesh: reports on incidents and orders, explanations of alerts, and stored orders.

Each is a disclosure, which is durable for the ledger before anything is returned.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from services.client import mesh
from services.client.calls import PATIENCE_S
from services.client.mesh import MeshConnection
from services.common.errors import InvalidField, Unauthenticated
from services.common.failure import MISUSED, CommandFailed
from services.common.messaging import flow, pull, streams
from services.common.messaging.bus import Bus
from services.common.privacy.grounds import LEGAL_BASES, Purpose, RecordKind, check_grounds
from services.common.rpc.identity import caller_of
from services.court.evidence import collection as evidence_collection
from services.court.evidence.archive import CorruptArchive
from services.court.evidence.collection import BundleGrounds
from services.court.evidence.leg_records import MeshRecords
from services.court.explain import explanation, refold
from services.court.explain.explanation import Explanation
from services.court.explain.refold import EarlierReport, Refold
from services.court.report import compliance, incident
from services.court.report.words import Words
from services.geofence import translate
from services.geofence.domain.entries import Case
from tandem.common.v1 import alert_pb2, ledger_pb2

EXPLAIN_USER = "explain"
"""NATS user that reads the log, and publishes the disclosures of what it shows."""
REVIEWER_PREFIX = "spiffe://tandem/reviewer/"
"""Beginning of a reviewer's SPIFFE id; the name follows."""


class IncidentReport(NamedTuple):
    """The report on an incident, and the bundle that proves it."""

    pdf: bytes
    bundle: bytes


class ReportBefore(NamedTuple):
    """A report before a decision, and what the decision made of it."""

    sequence: int
    """Sequence of its entry in the log."""
    arrived_ms: int
    """Time of arrival, mesh time, milliseconds since 1970 UTC."""
    device_id: str
    probability: float | None
    """Probability that the wearer was inside the ring, 0 to 1; None if no position could be inside."""
    distance_m: float | None
    held_back_by: str
    """Name of the rule that held the entry back; empty if the ring was entered already."""


class WhyNotEarlier(NamedTuple):
    """The reports before a decision."""

    is_same: bool
    """Whether the refold gives the stored alert again, byte for byte."""
    reports: list[ReportBefore]
    """The newest first."""


async def incident_report(
    records: MeshRecords,
    incident_id: str,
    *,
    leg: str,
    grounds: BundleGrounds,
    language: str,
) -> IncidentReport:
    """Makes the report on an incident from the evidence of a leg. Raises CommandFailed."""
    bundle = await evidence_collection.make(
        mesh.load(records.folder), records, incident_id, leg=leg, grounds=grounds, key_file=records.key
    )
    try:
        return IncidentReport(incident.incident_pdf(bundle, None, Words(language)), bundle)
    except CorruptArchive as broken:
        raise CommandFailed(f"BROKEN {broken}: no report is made of it") from None


async def order_report(
    records: MeshRecords,
    order_id: str,
    *,
    from_ms: int,
    until_ms: int,
    grounds: BundleGrounds,
    language: str,
) -> bytes:
    """Makes the report on how an order was kept in a period, as PDF. Raises CommandFailed."""
    period = await compliance.collect_period(
        mesh.load(records.folder), records, order_id, from_ms=from_ms, until_ms=until_ms, grounds=grounds
    )
    return compliance.compliance_pdf(period, Words(language))


async def why_not_earlier(
    folder: Path, alert_id: str, *, reviewer: str, legal_basis: str, purpose: Purpose
) -> WhyNotEarlier:
    """The reports of the 10 min before an alert, with distances and probabilities. Raises CommandFailed."""
    connection = mesh.load(folder)
    now_ms = connection.clock.now_ms()
    to = checked_reader(reviewer, legal_basis, purpose, now_ms=now_ms, needed_by="--positions")
    explained = await explain(connection, alert_id, to)
    return WhyNotEarlier(not explained.differences, [_before(each) for each in reversed(explained.refold.earlier)])


def _before(earlier: EarlierReport) -> ReportBefore:
    held_back_by, distance_mm, probability = earlier.evaluation
    return ReportBefore(
        sequence=earlier.sequence,
        arrived_ms=earlier.arrived_ms,
        device_id=earlier.device_id,
        probability=probability,
        distance_m=None if distance_mm is None else distance_mm / 1000,
        held_back_by=held_back_by.name if held_back_by else "",
    )


async def incident_alerts(connection: MeshConnection, incident_id: str) -> list[alert_pb2.Alert]:
    """The stored alerts of an incident, in their order. They hold no position. Raises CommandFailed if there is none."""
    async with connection.nats.bus_for_command(EXPLAIN_USER) as (bus, patience):
        bounds = await bus.bounds_of(flow.ALERTS.name)
        patience.reschedule(None)  # 30 days of alerts may take long
        return await refold.alerts_of(bus, incident_id, bounds)


async def explain(
    connection: MeshConnection,
    alert_id: str,
    to: Reader | None,
    *,
    progress: Callable[[int, int], None] = lambda _sequence, _last: None,
) -> Explanation:
    """Explains an alert by a refold of the log. Its positions may be shown only if `to` is given. Raises CommandFailed.

    Calls `progress` with the current and the last sequence.
    """
    async with connection.nats.bus_for_command(EXPLAIN_USER) as (bus, patience):
        stored, log_meta = await refold.find(bus, alert_id)
        patience.reschedule(None)  # no timeout here: refolding a long log takes long
        refolded = await refold.refold(bus, stored, log_meta, progress=progress)
        if to:
            patience.reschedule(asyncio.get_running_loop().time() + PATIENCE_S)
            rows = alert_disclosures(refolded, to, connection.clock.now_ms())
            await store_disclosures(bus, rows)
    return explanation.explain(refolded)


@dataclass(frozen=True, slots=True)
class Reader:
    """The person who reads positions, with the legal basis and purpose."""

    spiffe_id: str
    legal_basis: str
    purpose: Purpose


def reviewer_id(name: str, needed_by: str) -> str:
    """SPIFFE id of a reviewer. Raises CommandFailed if the name can't be in one. `needed_by` says what needs the name."""
    spiffe_id = REVIEWER_PREFIX + name
    try:
        caller_of(spiffe_id)
    except Unauthenticated:
        raise CommandFailed(f"{needed_by} needs --reviewer: a name of a-z, 0-9 and - (example: kim)", MISUSED) from None
    return spiffe_id


def checked_reader(
    name: str,
    legal_basis: str,
    purpose: Purpose,
    *,
    now_ms: int,
    needed_by: str,
    kinds: Sequence[RecordKind] = (RecordKind.WEARER, RecordKind.PROTECTED_PERSON),
) -> Reader:
    """A reader with checked name and grounds. Raises CommandFailed, naming the option that is missing or wrong.

    `needed_by` is the option that makes the grounds necessary, and `kinds` are the kinds of records that are read.
    """
    reader = Reader(reviewer_id(name, needed_by), legal_basis, purpose)
    for kind in kinds:
        try:
            check_grounds(legal_basis, purpose, "", kind=kind, now_ms=now_ms)
        except InvalidField as error:
            option = error.field.replace("_", "-")
            known = ", ".join(basis.code for basis in LEGAL_BASES if kind in basis.kinds)
            example = f" (one of {known})" if error.field == "legal_basis" else ""
            raise CommandFailed(f"{needed_by} needs --{option}: {error.reason}{example}", MISUSED) from None
    return reader


def alert_disclosures(shown: Refold, to: Reader, now_ms: int) -> list[ledger_pb2.Disclosure]:
    """Disclosure records, one for each subject with positions to show, and for the two between whom the figures are."""
    alert = shown.stored.alert
    order_ids: dict[tuple[RecordKind, str], str] = {}
    for case in (shown.before, shown.case):
        if case is None:
            continue
        sides = [(RecordKind.WEARER, case.wearer_id, case.tag_device_ids)]
        sides += [
            (RecordKind.PROTECTED_PERSON, target.target_id, target.device_ids)
            for target in case.targets
            if target.is_person
        ]
        for kind, subject_id, device_ids in sides:
            # A distance may rest on positions that are older than those shown.
            in_figures = kind is RecordKind.WEARER or subject_id == alert.target_id
            if in_figures or any(shown.reports.get(device_id) for device_id in device_ids):
                order_ids[kind, subject_id] = case.order_id
    reference = alert.incident_id or alert.case_id
    return [
        subject_disclosure(kind, subject_id, to, order_id=order_id, reference=reference, now_ms=now_ms)
        for (kind, subject_id), order_id in sorted(order_ids.items(), key=lambda item: (item[0][0].value, item[0][1]))
    ]


def subject_disclosure(
    kind: RecordKind, record_id: str, to: Reader, *, order_id: str, reference: str, now_ms: int
) -> ledger_pb2.Disclosure:
    """Disclosure record for one subject that a person at the command line reads about."""
    return ledger_pb2.Disclosure(
        disclosure_id=f"{EXPLAIN_USER}-{uuid.uuid4().hex}",
        at_ms=now_ms,
        who=to.spiffe_id,
        legal_basis=to.legal_basis,
        purpose=to.purpose.value,
        reference=reference,
        record_kind=kind.value,
        record_id=record_id,
        order_id=order_id,
        recipient=to.spiffe_id,
    )


async def store_disclosures(bus: Bus, disclosures: Sequence[ledger_pb2.Disclosure]) -> None:
    """Stores disclosures in the stream DISCLOSURES, from which the registry fills its ledger. Returns once all are durable."""
    for disclosure in disclosures:
        subject = flow.disclosure_subject(EXPLAIN_USER, disclosure.disclosure_id)
        data, id_ = disclosure.SerializeToString(), disclosure.disclosure_id
        await bus.publish_until_stored(subject, data, msg_id=id_, expected_last=0)


async def read_stored_order(running: MeshConnection, order_id: str, wearer_id: str, *, to: Reader) -> Case:
    """Returns the newest case of an order, once the ledger's rows for the reading are stored. Raises CommandFailed."""
    async with running.nats.bus_for_command(EXPLAIN_USER) as (bus, patience):
        patience.reschedule(None)  # no timeout here: reading the log takes long
        case = await find_stored_order(bus, order_id, wearer_id)
        patience.reschedule(asyncio.get_running_loop().time() + PATIENCE_S)
        await store_disclosures(bus, order_disclosures(case, to, running.clock.now_ms()))
    return case


async def find_stored_order(bus: Bus, order_id: str, wearer_id: str) -> Case:
    """Returns the newest case of an order in the log. Raises CommandFailed if there is none, or several wearers to choose from."""
    log_meta = await streams.read_log_meta(bus)
    newest: dict[str, Case] = {}
    for partition in range(log_meta.partitions):
        stream = flow.log_stream(partition)
        bounds = await bus.bounds_of(stream)
        async for message in pull.between(bus, stream, bounds.first, last=bounds.last):
            if message.subject != flow.log_subject(partition, "case"):
                continue
            try:
                body = translate.stored_body(message.subject, message.data)
            except InvalidField:
                continue  # unreadable: the fold made it a dead letter
            if isinstance(body, Case) and body.order_id == order_id and wearer_id in ("", body.wearer_id):
                newest[body.wearer_id] = body
    if not newest:
        days = flow.LOG.max_age_s // flow.DAY_S
        raise CommandFailed(
            f"the log has no case of the order {order_id}: it restrains no wearer, or its entries are older than {days} days"
        )
    if len(newest) > 1:
        raise CommandFailed(
            f"--order: {order_id} restrains several wearers; choose one by --wearer: {', '.join(newest)}"
        )
    (case,) = newest.values()
    return case


def order_disclosures(case: Case, to: Reader, now_ms: int) -> list[ledger_pb2.Disclosure]:
    """Disclosure records for reading an order and where its persons are protected, one for each subject."""
    subjects = [(RecordKind.ORDER, case.order_id), (RecordKind.WEARER, case.wearer_id)]
    subjects += [(RecordKind.PROTECTED_PERSON, target.target_id) for target in case.targets if target.is_person]
    return [
        subject_disclosure(kind, subject_id, to, order_id=case.order_id, reference=case.order_id, now_ms=now_ms)
        for kind, subject_id in subjects
    ]
