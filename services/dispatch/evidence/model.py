"""Evidence of one incident, collected for one agency, and its file format. Nothing here decides or folds."""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from services.dispatch.domain.leg import Leg

LEGS = tuple(leg for leg in Leg if leg.policy.keeps_evidence)
"""Legs that collect evidence."""
MARK_SUBJECT = "mark"
"""Subject of a record whose content is left out; only its time stamp counts."""


@dataclass(frozen=True, slots=True)
class StoredMessage:
    """A message of a stream, as the evidence file holds it."""

    stream: str
    sequence: int
    stamp_ms: int
    """Time at which the stream's leader stored the message, wall clock, milliseconds since 1970 UTC."""
    subject: str
    """Subject of the message, or MARK_SUBJECT if all of its content is left out."""
    data: bytes
    """The stored bytes, or the part that remains after redaction."""
    cut: bool = False
    """Whether a part of the message was redacted."""
    premise: bool = False
    """Whether the entry is from before the window. The fold reads it when the window begins."""

    @property
    def sha256(self) -> str:
        """SHA-256 of the stored bytes in hex; empty if they were redacted."""
        return "" if self.cut else hashlib.sha256(self.data).hexdigest()

    def to_line(self) -> bytes:
        """Encodes the record as one line of JSON with sorted keys."""
        fields = {**asdict(self), "data": base64.b64encode(self.data).decode(), "sha256": self.sha256}
        return json.dumps(fields, sort_keys=True, separators=(",", ":")).encode() + b"\n"


def of_line(line: bytes) -> StoredMessage:
    """Decodes a line of `StoredMessage.to_line`. Raises ValueError, KeyError or TypeError if the line isn't one."""
    return of_fields(json.loads(line))


def of_fields(fields: Mapping[str, Any]) -> StoredMessage:
    """Decodes the fields of a line. Raises ValueError with the name of the field if `data` or `sha256` is wrong."""
    try:
        data = base64.b64decode(fields["data"], validate=True)
    except binascii.Error:
        raise ValueError("data: isn't base64") from None
    values = {name: value for name, value in fields.items() if name != "sha256"}
    record = StoredMessage(**{**values, "data": data})
    if record.sha256 != fields["sha256"]:
        raise ValueError("sha256: isn't the hash of its data")
    return record


@dataclass(frozen=True, slots=True)
class Evidence:
    """Evidence that was collected of one incident."""

    incident_id: str
    leg: str
    """Leg of the agency that receives the evidence, one of LEGS."""
    wearer_id: str
    order_ids: tuple[str, ...]
    person_ids: tuple[str, ...]
    """Ids of the protected persons of the wearer's cases."""
    partition: int
    window_stamp_ms: int
    """Earliest time stamp of the enclosed entries, wall clock, milliseconds since 1970 UTC."""
    whole: bool
    """Whether the log still held all of the window."""
    ended: bool
    """Whether the records include the alert that ends the incident."""
    records: tuple[StoredMessage, ...] = field(repr=False)
    """Records, sorted by stream and sequence."""

    def of(self, stream: str) -> list[StoredMessage]:
        """Returns the records of one stream, in the order of the stream."""
        return [record for record in self.records if record.stream == stream]

    def to_bytes(self) -> bytes:
        """Encodes the evidence as a file: a header line, then one line for each record."""
        head = {name: value for name, value in asdict(replace(self, records=())).items() if name != "records"}
        lines = [json.dumps(head, sort_keys=True, separators=(",", ":")).encode() + b"\n"]
        return b"".join(lines + [record.to_line() for record in self.records])


def of_bytes(data: bytes) -> Evidence:
    """Decodes a file of `Evidence.to_bytes`. Raises ValueError, KeyError or TypeError if the file isn't one."""
    head, *lines = data.splitlines()
    fields = json.loads(head)
    fields |= {"order_ids": tuple(fields["order_ids"]), "person_ids": tuple(fields["person_ids"])}
    return Evidence(**fields, records=tuple(of_line(line) for line in lines))


def merged(copies: Sequence[Evidence]) -> Evidence:
    """Merges copies of one incident's evidence, the earliest first, into one."""
    first, last = copies[0], copies[-1]
    if len(copies) == 1:
        return first
    records = {(record.stream, record.sequence): record for record in last.records if not record.premise}
    for earlier in reversed(copies[:-1]):
        records |= {(record.stream, record.sequence): record for record in earlier.records}
    return replace(
        last,
        order_ids=tuple(sorted({*first.order_ids, *last.order_ids})),
        person_ids=tuple(sorted({*first.person_ids, *last.person_ids})),
        window_stamp_ms=first.window_stamp_ms,
        whole=first.whole,
        records=tuple(records[key] for key in sorted(records)),
    )
