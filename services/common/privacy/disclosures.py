"""Disclosures as rows of the ledger: their purposes, the row of a notice, and whether a disclosure may go in.

A disclosure's ids, its parties and its legal grounds must allow it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

from services.common import fields
from services.common.errors import InvalidField, Unauthenticated
from services.common.privacy import notices
from services.common.privacy.grounds import Purpose, RecordKind, check_grounds
from services.common.rpc.identity import caller_of
from tandem.common.v1 import ledger_pb2
from tandem.registry.v1 import disclosure_pb2

UNIT = "spiffe://tandem/unit/"
"""Start of the id of a unit on the road, to which its own leg shows the targets of its assignment. It has no role anywhere."""
_UNIT_PATTERN = re.compile(rf"{UNIT}(?:probation|police)/[A-Za-z0-9._-]{{1,64}}")


def check_disclosure(disclosure: ledger_pb2.Disclosure) -> None:
    """Raises InvalidField if the grounds of a disclosure don't allow it, or if an id in it is malformed."""
    try:
        kind = RecordKind(disclosure.record_kind)
    except ValueError:
        raise InvalidField("record_kind", "isn't a kind of record") from None
    purpose = Purpose(disclosure.purpose) if disclosure.purpose in {each.value for each in Purpose} else None
    check_grounds(disclosure.legal_basis, purpose, disclosure.reference, kind=kind, now_ms=disclosure.at_ms)
    fields.required_id("disclosure_id", disclosure.disclosure_id)
    _check_caller("who", disclosure.who)
    fields.required_id("record_id", disclosure.record_id)
    fields.required_id("order_id", disclosure.order_id)
    if not _UNIT_PATTERN.fullmatch(disclosure.recipient):
        _check_caller("recipient", disclosure.recipient)


def _check_caller(field: str, spiffe_id: str) -> None:
    try:
        caller_of(spiffe_id)
    except Unauthenticated as error:
        raise InvalidField(field, error.reason) from None


# ── purposes ──────────────────────────────────────────────────────────────────────────────────────────────────────────

PURPOSES: Mapping[int, Purpose] = {
    value.number: Purpose(value.name.removeprefix("PURPOSE_"))
    for value in disclosure_pb2.DESCRIPTOR.enum_types_by_name["Purpose"].values
    if value.number
}
"""Domain purposes by protobuf enum number. Unspecified and unknown purposes are missing."""


# ── the row of a notice ───────────────────────────────────────────────────────────────────────────────────────────────


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
