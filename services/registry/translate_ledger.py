"""Disclosures between their wire form and the ledger's, and what is disclosed. Parsing is validation."""

from __future__ import annotations

from collections.abc import Mapping

from services.common import fields
from services.common.messaging import flow, stored
from services.common.privacy.grounds import Purpose, RecordKind, check_grounds
from services.common.rpc.errors import InvalidField, Unauthenticated
from services.common.rpc.identity import Role, caller_of
from services.registry.chain import Disclosure
from services.registry.disclosure import Deed
from services.registry.domain import ProtectedPerson, Wearer
from tandem.registry.v1 import registry_pb2

DISCLOSED_FOR: Mapping[str, frozenset[Role.ValueType]] = {
    "geofence": frozenset({Role.ROLE_MOJ_DESK, Role.ROLE_NPA_DESK, Role.ROLE_REVIEWER}),
    "dispatch-probation": frozenset({Role.ROLE_MOJ_DESK, Role.ROLE_REVIEWER}),
    "dispatch-police": frozenset({Role.ROLE_NPA_DESK, Role.ROLE_REVIEWER}),
    "explain": frozenset({Role.ROLE_REVIEWER}),
    "evidence": frozenset({Role.ROLE_MOJ_DESK, Role.ROLE_NPA_DESK, Role.ROLE_REVIEWER, Role.ROLE_OPERATOR}),
}
"""Roles in whose name each user of the server discloses: those that it admits to what it discloses."""
DISCLOSES_TO_OTHERS = frozenset({"evidence"})
"""Users who may hand data to somebody else than the person who asked for it: a bundle goes to a court."""


def published_disclosure(subject: str, data: bytes) -> Disclosure:
    """The disclosure of a message of DISCLOSURES. Raises InvalidField where it can't be read, or isn't its publisher's to make.

    The server lets each user publish under its own name alone, so the subject proves the publisher. The message must agree with it.
    """
    _, by, *_ = (*subject.split("."), "")
    if by not in DISCLOSED_FOR:
        raise InvalidField("subject", "names nobody who discloses")
    disclosure = parse_disclosure(data)
    if subject != flow.disclosure_subject(by, disclosure.disclosure_id):
        raise InvalidField("disclosure_id", "isn't that of the subject")
    if caller_of(disclosure.who).role not in DISCLOSED_FOR[by]:
        raise InvalidField("who", f"is nobody in whose name {by} discloses")
    if disclosure.recipient != disclosure.who and by not in DISCLOSES_TO_OTHERS:
        raise InvalidField("recipient", f"isn't who asked, and {by} discloses to nobody else")
    return disclosure


def parse_disclosure(data: bytes) -> Disclosure:
    """A disclosure that was made elsewhere. Raises InvalidField."""
    msg = stored.disclosure(data)
    try:
        kind = RecordKind(msg.record_kind)
    except ValueError:
        raise InvalidField("record_kind", "isn't a kind of record") from None
    purpose = Purpose(msg.purpose) if msg.purpose in {one.value for one in Purpose} else None
    grounds = check_grounds(msg.legal_basis, purpose, msg.reference, kind, msg.at_ms)
    return Disclosure(
        disclosure_id=fields.required_id("disclosure_id", msg.disclosure_id),
        at_ms=msg.at_ms,
        deed=(Deed.SHARE_ENDED if msg.HasField("positions") else Deed.SHARED).value,
        who=_spiffe_id("who", msg.who),
        legal_basis=grounds.legal_basis,
        purpose=grounds.purpose.value,
        reference=grounds.reference,
        record_kind=kind.value,
        record_id=fields.required_id("record_id", msg.record_id),
        order_id=fields.required_id("order_id", msg.order_id),
        recipient=_spiffe_id("recipient", msg.recipient),
        expires_at_ms=msg.expires_at_ms,
        positions=msg.positions if msg.HasField("positions") else None,
    )


def _spiffe_id(field: str, value: str) -> str:
    try:
        return caller_of(value).spiffe_id
    except Unauthenticated as error:
        raise InvalidField(field, error.reason) from None


def wearer_to_proto(wearer: Wearer, names: frozenset[str]) -> registry_pb2.Wearer:
    """A wearer, of whose personal data only these fields are shown."""
    whole = registry_pb2.Wearer(
        national_id=wearer.national_id,
        name=wearer.name,
        birth_date=wearer.birth_date.isoformat(),
        sex=registry_pb2.Sex.Value(f"SEX_{wearer.sex.value if wearer.sex else 'UNSPECIFIED'}"),
        phone=wearer.phone,
        address=wearer.address,
    )
    shown = registry_pb2.Wearer(wearer_id=wearer.wearer_id, source_version=wearer.source_version)
    for name in names:
        setattr(shown, name, getattr(whole, name))
    return shown


def protected_person_to_proto(person: ProtectedPerson, names: frozenset[str]) -> registry_pb2.ProtectedPerson:
    """A protected person, of whose personal data only these fields are shown."""
    shown = registry_pb2.ProtectedPerson(person_id=person.person_id, source_version=person.source_version)
    if "name" in names:
        shown.name = person.name
    if "relation" in names and person.relation:
        shown.relation = registry_pb2.Relation.Value(f"RELATION_{person.relation.value}")
    return shown
