"""Rows of the registry's ledger for a notice of the Ministry to a protected person, and for a location that goes with it."""

from __future__ import annotations

from typing import NamedTuple

from services.common.privacy import notices
from services.common.privacy.grounds import Purpose, RecordKind
from tandem.common.v1 import ledger_pb2


class GivenNotice(NamedTuple):
    """What the ledger says of a notice: who gets it, about whom, and why."""

    person_id: str
    """Protected person who gets it."""
    wearer_id: str
    order_id: str
    """Order that is breached."""
    incident_id: str
    at_ms: int
    """When it is given, mesh time."""


def row_of(given: GivenNotice, article: str, disclosure_id: str) -> ledger_pb2.Disclosure:
    """The row of a notice, or of the location with it, under an article (code of LEGAL_BASES)."""
    return ledger_pb2.Disclosure(
        disclosure_id=disclosure_id,
        at_ms=given.at_ms,
        who=notices.TRACKING_CENTRE,
        legal_basis=article,
        purpose=Purpose.VICTIM_CONTACT.value,
        reference=given.incident_id,
        record_kind=RecordKind.WEARER.value,
        record_id=given.wearer_id,
        order_id=given.order_id,
        recipient=notices.recipient_id(given.person_id),
    )
