"""Translation of disclosures from the stream to the ledger. Parsers validate."""

from __future__ import annotations

from collections.abc import Mapping

from services.common import fields
from services.common.errors import InvalidField
from services.common.messaging import flow, stored
from services.common.privacy import notices
from services.common.privacy.disclosures import PURPOSES, UNIT, check_disclosure
from services.common.privacy.grounds import Grounds, Purpose, RecordKind, check_grounds, check_notice, is_of_notice
from services.common.rpc.identity import Role, caller_of
from services.registry.domain.disclosure import Deed
from services.registry.domain.ledger import Disclosure
from tandem.registry.v1 import disclosure_pb2

DISCLOSED_FOR: Mapping[str, frozenset[Role.ValueType]] = {
    "geofence": frozenset({Role.ROLE_MOJ_DESK, Role.ROLE_NPA_DESK, Role.ROLE_REVIEWER}),
    "dispatch-probation": frozenset({Role.ROLE_MOJ_DESK, Role.ROLE_REVIEWER}),
    "dispatch-police": frozenset({Role.ROLE_NPA_DESK, Role.ROLE_REVIEWER}),
    "explain": frozenset({Role.ROLE_REVIEWER}),
    "evidence": frozenset({Role.ROLE_MOJ_DESK, Role.ROLE_NPA_DESK, Role.ROLE_REVIEWER, Role.ROLE_OPERATOR}),
}
"""Roles to which each service may disclose data, by its NATS user: the roles that may call the service."""
NOTIFIES = "dispatch-warning"
"""NATS user of the warning leg, which discloses to protected persons alone: by the Ministry's notices."""
SHOWS_HER_MAP = "geofence"
"""NATS user of the evaluators, which disclose to protected persons too: each view of her map is a notice with a location."""
DISCLOSES_TO_OTHERS = frozenset({"evidence"})
"""NATS users that may disclose data to another recipient than the caller: an evidence bundle goes to a court."""


def parse_grounds(msg: disclosure_pb2.Grounds, kind: RecordKind, *, now_ms: int) -> Grounds:
    """Parse the grounds of a disclosure now. Raises InvalidField if they don't allow it."""
    try:
        return check_grounds(msg.legal_basis, PURPOSES.get(msg.purpose), msg.reference, kind=kind, now_ms=now_ms)
    except InvalidField as error:
        raise error.under("grounds") from None


def published_disclosure(subject: str, data: bytes) -> Disclosure:
    """Parse a message of the stream DISCLOSURES. Raises InvalidField if it is unreadable or the publisher may not send it.

    nats-server lets each user publish only under its own name, so the subject proves the publisher. The message must match the subject.
    """
    _, publisher, *_ = (*subject.split("."), "")
    is_notice = publisher == NOTIFIES or (
        publisher == SHOWS_HER_MAP and is_of_notice(stored.disclosure(data).legal_basis)
    )
    if is_notice:
        disclosure = parse_notice(data)
    elif publisher in DISCLOSED_FOR:
        disclosure = parse_disclosure(data)
    else:
        raise InvalidField("subject", "names no user that may publish disclosures")
    if subject != flow.disclosure_subject(publisher, disclosure.disclosure_id):
        raise InvalidField("disclosure_id", "differs from the id in the subject")
    if is_notice:
        return disclosure
    if caller_of(disclosure.who).role not in DISCLOSED_FOR[publisher]:
        raise InvalidField("who", f"has a role to which {publisher} may not disclose")
    to_own_unit = disclosure.recipient.startswith(f"{UNIT}{publisher.removeprefix('dispatch-')}/")
    if disclosure.recipient != disclosure.who and publisher not in DISCLOSES_TO_OTHERS and not to_own_unit:
        raise InvalidField("recipient", f"must equal `who`: {publisher} may disclose only to its caller")
    return disclosure


def parse_disclosure(data: bytes) -> Disclosure:
    """Parse a disclosure that another service made. Raises InvalidField."""
    msg = stored.disclosure(data)
    check_disclosure(msg)
    return Disclosure(
        disclosure_id=msg.disclosure_id,
        at_ms=msg.at_ms,
        deed=(Deed.SHARE_ENDED if msg.HasField("positions") else Deed.SHARED).value,
        who=msg.who,
        legal_basis=msg.legal_basis,
        purpose=msg.purpose,
        reference=msg.reference,
        record_kind=msg.record_kind,
        record_id=msg.record_id,
        order_id=msg.order_id,
        recipient=msg.recipient,
        expires_at_ms=msg.expires_at_ms,
        positions=msg.positions if msg.HasField("positions") else None,
    )


def parse_notice(data: bytes) -> Disclosure:
    """Parse a notice of the Ministry to a protected person, or a location that was given with it. Raises InvalidField.

    The giver is the Ministry's tracking centre (`who`), and the recipient is the person.
    """
    msg = stored.disclosure(data)
    basis = check_notice(msg.legal_basis, msg.reference, now_ms=msg.at_ms)
    expected = {
        "who": (msg.who, notices.TRACKING_CENTRE),
        "purpose": (msg.purpose, Purpose.VICTIM_CONTACT.value),
        "record_kind": (msg.record_kind, RecordKind.WEARER.value),
    }
    for field, (value, needed) in expected.items():
        if value != needed:
            raise InvalidField(field, f"must be {needed} in a notice to a protected person")
    if not notices.is_recipient(msg.recipient):
        raise InvalidField("recipient", "must be a protected person, to whom alone a notice is given")
    return Disclosure(
        disclosure_id=fields.required_id("disclosure_id", msg.disclosure_id),
        at_ms=msg.at_ms,
        deed=Deed.NOTIFIED.value,
        who=msg.who,
        legal_basis=basis.code,
        purpose=msg.purpose,
        reference=msg.reference,
        record_kind=msg.record_kind,
        record_id=fields.required_id("record_id", msg.record_id),
        order_id=fields.required_id("order_id", msg.order_id),
        recipient=msg.recipient,
        expires_at_ms=0,
        positions=None,
    )
