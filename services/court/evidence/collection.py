"""Collect the evidence of an incident, from the streams or from the leg's copies of expired entries, and record its disclosure."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from services.client.mesh import MeshConnection
from services.common import build, ids
from services.common.errors import InvalidField, NotFound, PermanentError
from services.common.evidence import collector
from services.common.evidence.collector import EvidenceFiles
from services.common.evidence.incidents import LOOK_BACK_MS
from services.common.evidence.model import Evidence, merged
from services.common.failure import AGED_OUT, MISUSED, CommandFailed, trouble
from services.common.messaging import flow, streams
from services.common.messaging.bus import Bus
from services.common.messaging.streams import LogMetadata
from services.common.privacy.disclosures import check_disclosure
from services.court.evidence import archive, leg_records
from services.court.evidence import bundle as evidence_bundle
from services.court.evidence.bundle import replay
from services.court.evidence.leg_records import Chain, MeshRecords
from services.dispatch.domain.leg import Leg
from tandem.common.v1 import ledger_pb2

NATS_USER = "evidence"
"""NATS user that makes bundles and publishes their disclosures."""


@dataclass(frozen=True, slots=True)
class BundleGrounds:
    """Legal grounds of a bundle, its maker and its recipient."""

    legal_basis: str
    """Legal basis, a code of the registry's closed list."""
    purpose: str
    who: str
    """SPIFFE id of the person who makes the bundle."""
    recipient: str
    """SPIFFE id of the recipient."""


async def make(
    connection: MeshConnection,
    records: MeshRecords,
    incident_id: str,
    *,
    leg: str,
    grounds: BundleGrounds,
    key_file: Path,
) -> bytes:
    """The bundle of an incident. Returns once its disclosure is stored for the ledger. Raises CommandFailed."""
    chains = [chain for name in flow.LEGS if (chain := await _chain(records, name, incident_id))]
    if not chains:
        raise CommandFailed(f"no leg knows {incident_id}", MISUSED)
    # Join the alerts of all legs, as a leg doesn't receive every alert.
    alert_ids = sorted({id_ for chain in chains for id_ in chain.alert_ids(incident_id)})
    try:
        async with connection.nats.bus_for_command(NATS_USER) as (bus, patience):
            log_meta = await streams.read_log_meta(bus)
            patience.reschedule(None)  # no timeout here: reading a long log takes long
            copies = EvidenceFiles(records.evidence_copies(leg)).load(incident_id)
            evidence = await _collected(bus, log_meta, alert_ids, leg=leg, copies=copies)
            now_ms = connection.clock.now_ms()
            about = {
                "made_at_ms": now_ms,
                "made_by": grounds.who,
                "made_for": grounds.recipient,
                "legal_basis": grounds.legal_basis,
                "software": build.software(),
            }
            ground = evidence_bundle.ground_of(evidence, log_meta)
            bundle = evidence_bundle.make_bundle(
                evidence, ground, chains, about=about, key=archive.open_signing_key(key_file)
            )
            for disclosure in _disclosures(evidence, grounds, now_ms):
                subject = flow.disclosure_subject(NATS_USER, disclosure.disclosure_id)
                await bus.publish(subject, disclosure.SerializeToString(), msg_id=disclosure.disclosure_id)
    except PermanentError as error:
        raise CommandFailed(error.reason) from None
    return bundle


def require_new(path: Path) -> None:
    """Raises CommandFailed if a file that is to be written exists: before its disclosure is recorded."""
    if path.exists():
        raise CommandFailed(f"{path}: exists already; name another file")


def write(path: Path, content: bytes) -> None:
    """Writes a bundle or report to a new file, readable by its owner only. Raises CommandFailed if the file exists."""
    try:
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(content)
    except FileExistsError:
        raise CommandFailed(f"{path}: exists already; name another file") from None
    except OSError as error:
        raise CommandFailed(f"{path}: {trouble(error)}") from None


async def _chain(records: MeshRecords, leg: str, incident_id: str) -> Chain | None:
    if url := records.databases[leg]:
        return await leg_records.read_chain_postgres(url, leg, incident_id)
    path = records.sqlite_file(leg)
    return leg_records.read_chain(path, leg, incident_id) if path.exists() else None


async def _collected(
    bus: Bus, log_meta: LogMetadata, alert_ids: list[str], *, leg: str, copies: list[Evidence]
) -> Evidence:
    """Evidence whose refold reproduces the stored alerts, if the mesh still has the needed entries.

    Candidates are the leg's copies, the 2 h before the alerts, and the whole log. If no candidate reproduces the alerts, the first
    one is returned. Raises CommandFailed if there is no candidate.
    """
    candidates = []
    for back_ms in (LOOK_BACK_MS, None):
        try:
            evidence = await collector.collect(
                bus, log_meta, alert_ids, leg=leg, may_locate_person=Leg(leg).policy.may_locate_person, back_ms=back_ms
            )
        except NotFound:
            continue  # the alerts are no longer in the streams
        if evidence.whole and _is_reproduced(evidence, log_meta):
            return evidence
        candidates.append(evidence)
    if copies:
        candidates.insert(0, merged(copies))
    if not candidates:
        raise CommandFailed("neither the streams nor the leg hold the incident's entries any more", AGED_OUT)
    return next((candidate for candidate in candidates if _is_reproduced(candidate, log_meta)), candidates[0])


def _is_reproduced(evidence: Evidence, log_meta: LogMetadata) -> bool:
    return (
        evidence.leg != "police"
        or not replay(evidence_bundle.ground_of(evidence, log_meta), evidence.records).differences
    )


def _disclosures(evidence: Evidence, grounds: BundleGrounds, now_ms: int) -> list[ledger_pb2.Disclosure]:
    """Disclosure records for each person with positions in the bundle and each order. Raises CommandFailed if the grounds don't allow
    the disclosure."""
    subjects = [("WEARER", evidence.wearer_id)]
    if evidence.leg == "police":
        subjects += [("PROTECTED_PERSON", person_id) for person_id in evidence.person_ids]
    rows = [
        ledger_pb2.Disclosure(
            disclosure_id=ids.hash_id("evidence", evidence.incident_id, evidence.leg, order_id, kind, id_, now_ms),
            at_ms=now_ms,
            who=grounds.who,
            legal_basis=grounds.legal_basis,
            purpose=grounds.purpose,
            reference=evidence.incident_id,
            record_kind=kind,
            record_id=id_,
            order_id=order_id,
            recipient=grounds.recipient,
        )
        for order_id in evidence.order_ids
        for kind, id_ in subjects
    ]
    try:
        for row in rows:
            check_disclosure(row)
    except InvalidField as error:
        raise CommandFailed(f"not disclosed: {error}", MISUSED) from None
    return rows
