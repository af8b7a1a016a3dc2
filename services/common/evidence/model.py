"""Evidence of one incident, collected for one agency, and the file format of evidence. Nothing here decides or folds."""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

MARK_SUBJECT = "mark"
"""Subject of a record without content. Such a record is kept only for its time stamp."""


@dataclass(frozen=True, slots=True)
class StoredMessage:
    """A message of a stream, as the evidence file holds it."""

    stream: str
    sequence: int
    stamp_ms: int
    """Time at which the stream's leader stored the message, wall clock, milliseconds since 1970 UTC."""
    subject: str
    """Subject of the message, or MARK_SUBJECT if the record has no content."""
    data: bytes
    """The stored bytes, or the part that remains after redaction."""
    cut: bool = False
    """Whether a part of the message was redacted."""
    premise: bool = False
    """Whether the record is a log entry from before the window. A replay reads these entries before the window's."""

    @property
    def sha256(self) -> str:
        """SHA-256 of the stored bytes in hex; empty if they were redacted."""
        return "" if self.cut else hashlib.sha256(self.data).hexdigest()

    def to_line(self) -> bytes:
        """Encodes the record as one line of JSON with sorted keys."""
        fields = {**asdict(self), "data": base64.b64encode(self.data).decode(), "sha256": self.sha256}
        return json.dumps(fields, sort_keys=True, separators=(",", ":")).encode() + b"\n"


def of_line(line: bytes) -> StoredMessage:
    """Decodes a line that `StoredMessage.to_line` wrote. Raises ValueError, KeyError or TypeError for any other line."""
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
    """The evidence of one incident for one agency."""

    incident_id: str
    leg: str
    """Leg of the agency that receives the evidence, probation or police."""
    wearer_id: str
    order_ids: tuple[str, ...]
    person_ids: tuple[str, ...]
    """Ids of the protected persons of the wearer's cases."""
    partition: int
    window_stamp_ms: int
    """Start of the window, wall clock, milliseconds since 1970 UTC; 0 for the start of the log."""
    whole: bool
    """Whether the log still held all entries of the window."""
    ended: bool
    """Whether the records include the alert that ends the incident."""
    records: tuple[StoredMessage, ...] = field(repr=False)
    """Records, sorted by stream and sequence."""

    def of(self, stream: str) -> list[StoredMessage]:
        """Returns the records of one stream, in the order of the stream."""
        return [record for record in self.records if record.stream == stream]

    def to_lines(self) -> Iterator[bytes]:
        """Encodes the evidence as the lines of a file: a header line, then a line for each record."""
        head = {name: value for name, value in asdict(replace(self, records=())).items() if name != "records"}
        yield json.dumps(head, sort_keys=True, separators=(",", ":")).encode() + b"\n"
        for record in self.records:
            yield record.to_line()

    def to_bytes(self) -> bytes:
        """Encodes the evidence as a file."""
        return b"".join(self.to_lines())


def of_bytes(data: bytes) -> Evidence:
    """Decodes a file that `Evidence.to_bytes` wrote. Raises ValueError, KeyError or TypeError for any other file."""
    head, *lines = data.splitlines()
    fields = json.loads(head)
    fields |= {"order_ids": tuple(fields["order_ids"]), "person_ids": tuple(fields["person_ids"])}
    return Evidence(**fields, records=tuple(of_line(line) for line in lines))


def merged(copies: Sequence[Evidence]) -> Evidence:
    """Merges copies of the evidence of one incident into one. The copies are in the order of time."""
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
