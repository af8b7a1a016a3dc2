"""gRPC service of evidence: the leg's desk or a reviewer reads the copy of an incident's evidence that the leg keeps."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import grpc.aio

from services.common import fields, ids
from services.common.clock import MeshClock
from services.common.messaging.bus import Bus
from services.common.privacy.grounds import Grounds, RecordKind, check_grounds
from services.common.privacy.purposes import PURPOSES
from services.common.rpc import server
from services.common.rpc.errors import InvalidField, NotFound, PermissionDenied, Unavailable
from services.common.rpc.identity import Role
from services.dispatch.domain.leg import Leg
from services.dispatch.evidence import model, reading, view
from services.dispatch.evidence.model import Evidence
from services.dispatch.evidence.reading import EvidenceReading
from services.dispatch.leg.api import admit
from services.dispatch.leg.store import Store
from services.dispatch.publications.disclosures import LegDisclosures
from services.dispatch.roster import tracks
from tandem.common.v1 import ledger_pb2
from tandem.dispatch.v1 import evidence_pb2, evidence_pb2_grpc
from tandem.registry.v1 import disclosure_pb2

PART_BYTES = 64 << 10
"""Size of a part of a download, bytes. A part ends with the line that reaches this size."""
Context = grpc.aio.ServicerContext[Any, Any]


class EvidenceApi(evidence_pb2_grpc.EvidenceServiceServicer):
    """EvidenceService of one leg."""

    def __init__(self, leg: Leg, clock: MeshClock, *, store: Store) -> None:
        self._leg, self._clock, self._store = leg, clock, store
        self._disclosures = LegDisclosures(leg, store)
        self._bus: Bus | None = None
        self._reading: EvidenceReading | None = None

    def connected(self, bus: Bus, source: EvidenceReading | None) -> None:
        """Sets the bus on which disclosures are published, and the source of evidence; None if the leg keeps none."""
        self._bus, self._reading = bus, source

    async def ReadEvidence(
        self, request: evidence_pb2.ReadEvidenceRequest, context: Context
    ) -> evidence_pb2.ReadEvidenceResponse:
        """Returns the evidence of an incident as far as it is known now, after the disclosure is stored."""
        evidence = await self._disclosed(
            "read", request.incident_id, request.grounds, within_s=reading.COLLECTED_WITHIN_S
        )
        response = await asyncio.to_thread(view.view, evidence, self._clock)
        units = await self._store.reading_history(partial(tracks.tracks, incident_id=request.incident_id))
        response.units.extend(view.unit_tracks(units))
        return response

    async def DownloadEvidence(
        self, request: evidence_pb2.DownloadEvidenceRequest, context: Context
    ) -> AsyncIterator[evidence_pb2.DownloadEvidenceResponse]:
        """Streams the evidence of an incident in parts, after the disclosure is stored."""
        evidence = await self._disclosed(
            "download", request.incident_id, request.grounds, within_s=reading.DOWNLOAD_COLLECTED_WITHIN_S
        )
        part = bytearray()
        for line in evidence.to_lines():
            part += line
            if len(part) >= PART_BYTES:
                yield evidence_pb2.DownloadEvidenceResponse(data=bytes(part))
                part.clear()
        if part:
            yield evidence_pb2.DownloadEvidenceResponse(data=bytes(part))

    async def _disclosed(
        self, action: str, incident_id: str, requested: disclosure_pb2.Grounds, *, within_s: float
    ) -> Evidence:
        """Returns the evidence of an incident, after the disclosure is on disk in DISCLOSURES.

        Raises NotFound, InvalidField, PermissionDenied or Unavailable.
        """
        if not self._leg.policy.keeps_evidence:
            raise PermissionDenied(f"the {self._leg} leg keeps no evidence")
        admit(self._leg, Role.ROLE_REVIEWER)
        fields.required_id("incident_id", incident_id)
        now_ms = self._clock.now_ms()
        grounds = self._grounds(requested, incident_id, now_ms)
        if self._reading is None:
            raise Unavailable("the evidence can't be read: no connection to NATS")
        copies = await self._reading.read(incident_id, within_s)
        if not copies:
            raise NotFound("this leg knows no such incident; check incident_id")
        evidence = model.merged(copies)
        await self._record(action, evidence, grounds, now_ms=now_ms)
        return evidence

    def _grounds(self, requested: disclosure_pb2.Grounds, incident_id: str, now_ms: int) -> Grounds:
        kinds = (
            (RecordKind.WEARER, RecordKind.PROTECTED_PERSON)
            if self._leg.policy.may_locate_person
            else (RecordKind.WEARER,)
        )
        try:
            for kind in kinds:
                check_grounds(
                    requested.legal_basis,
                    PURPOSES.get(requested.purpose),
                    requested.reference,
                    kind=kind,
                    now_ms=now_ms,
                )
            return check_grounds(
                requested.legal_basis,
                PURPOSES.get(requested.purpose),
                incident_id,
                kind=RecordKind.WEARER,
                now_ms=now_ms,
            )
        except InvalidField as error:
            raise error.under("grounds") from None

    async def _record(self, action: str, evidence: Evidence, grounds: Grounds, *, now_ms: int) -> None:
        """Stores one disclosure for each pair of an order and a person whose positions the copy holds.

        Raises Unavailable if a disclosure can't be stored.
        """
        if self._bus is None:
            raise Unavailable("the disclosure can't be recorded: no connection to NATS")
        disclosures = [
            _disclosure(action, evidence, grounds, order_id=order_id, kind=kind, record_id=record_id, now_ms=now_ms)
            for order_id in evidence.order_ids
            for kind, record_id in self._shown(evidence)
        ]
        await self._disclosures.record(self._bus, disclosures)

    def _shown(self, evidence: Evidence) -> list[tuple[RecordKind, str]]:
        """Returns kind and id of each person whose positions the copy holds."""
        shown = [(RecordKind.WEARER, evidence.wearer_id)]
        if self._leg.policy.may_locate_person:
            shown += [(RecordKind.PROTECTED_PERSON, person_id) for person_id in evidence.person_ids]
        return shown


def _disclosure(
    action: str,
    evidence: Evidence,
    grounds: Grounds,
    *,
    order_id: str,
    kind: RecordKind,
    record_id: str,
    now_ms: int,
) -> ledger_pb2.Disclosure:
    who = server.caller().spiffe_id
    return ledger_pb2.Disclosure(
        disclosure_id=ids.hash_id(
            "evidence", action, who, evidence.incident_id, order_id, kind.value, record_id, now_ms
        ),
        at_ms=now_ms,
        who=who,
        legal_basis=grounds.legal_basis,
        purpose=grounds.purpose.value,
        reference=evidence.incident_id,
        record_kind=kind.value,
        record_id=record_id,
        order_id=order_id,
        recipient=who,
    )
