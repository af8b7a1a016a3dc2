"""Disclosure records for positions and figures that `tandem explain` prints: they are stored before anything of them is shown."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass

from services.cli.explain.refold import Refold
from services.cli.failure import MISUSED, CommandFailed
from services.common.messaging import flow
from services.common.messaging.bus import Bus
from services.common.privacy.grounds import LEGAL_BASES, Purpose, RecordKind, check_grounds
from services.common.rpc.errors import InvalidField, Unauthenticated
from services.common.rpc.identity import caller_of
from tandem.common.v1 import ledger_pb2

BY = "explain"
PREFIX = "spiffe://tandem/reviewer/"
"""Beginning of a reviewer's SPIFFE id; the name follows."""


@dataclass(frozen=True, slots=True)
class Reader:
    """The person who reads positions, with the legal basis and purpose."""

    spiffe_id: str
    legal_basis: str
    purpose: Purpose


def reviewer_id(name: str, needed_by: str) -> str:
    """SPIFFE id of a reviewer. Raises CommandFailed if the name can't be in one. `needed_by` says what needs the name."""
    spiffe_id = PREFIX + name
    try:
        caller_of(spiffe_id)
    except Unauthenticated:
        raise CommandFailed(f"{needed_by} needs --reviewer: a name of a-z, 0-9 and - (example: kim)", MISUSED) from None
    return spiffe_id


def reader(
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


def disclosures(shown: Refold, to: Reader, now_ms: int) -> list[ledger_pb2.Disclosure]:
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
        disclosure(kind, subject_id, to, order_id=order_id, reference=reference, now_ms=now_ms)
        for (kind, subject_id), order_id in sorted(order_ids.items(), key=lambda item: (item[0][0].value, item[0][1]))
    ]


def disclosure(
    kind: RecordKind, record_id: str, to: Reader, *, order_id: str, reference: str, now_ms: int
) -> ledger_pb2.Disclosure:
    """Disclosure record for one subject that a person at the command line reads about."""
    return ledger_pb2.Disclosure(
        disclosure_id=f"{BY}-{uuid.uuid4().hex}",
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


async def record(bus: Bus, disclosures: Sequence[ledger_pb2.Disclosure]) -> None:
    """Stores disclosures in the stream DISCLOSURES, from which the registry fills its ledger. Returns once all are durable."""
    for disclosure in disclosures:
        subject = flow.disclosure_subject(BY, disclosure.disclosure_id)
        data, id_ = disclosure.SerializeToString(), disclosure.disclosure_id
        await bus.publish_until_stored(subject, data, msg_id=id_, expected_last=0)
