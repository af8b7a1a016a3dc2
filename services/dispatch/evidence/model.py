"""What one incident rests on, as it was gathered for one agency, and how it is kept. Nothing here decides or folds."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace

LEGS = ("probation", "police")
"""Agencies for which evidence is gathered; the warning leg has its chain and nothing that the police's lacks."""
MARK_SUBJECT = "mark"


@dataclass(frozen=True, slots=True)
class StoredMessage:
    """A message of a stream."""

    stream: str
    sequence: int
    stamp_ms: int
    """When the stream's leader stored it, wall clock, milliseconds since 1970 UTC."""
    subject: str
    """MARK_SUBJECT where all of its content is left out: only its stamp counts."""
    data: bytes
    """As stored, or what is left of it."""
    cut: bool = False
    """A part of it is left out."""
    premise: bool = False
    """It stood before the window; the fold takes it as the window begins."""

    @property
    def sha256(self) -> str:
        """Hash of the stored bytes; empty where they were cut."""
        return "" if self.cut else hashlib.sha256(self.data).hexdigest()

    def to_line(self) -> bytes:
        """One line of JSON with sorted keys."""
        told = {**asdict(self), "data": base64.b64encode(self.data).decode(), "sha256": self.sha256}
        return json.dumps(told, sort_keys=True, separators=(",", ":")).encode() + b"\n"


def of_line(line: bytes) -> StoredMessage:
    """The record of `Record.to_line`. Raises ValueError, KeyError or TypeError where it is none."""
    told = json.loads(line)
    stated = told.pop("sha256")
    record = StoredMessage(**{**told, "data": base64.b64decode(told["data"], validate=True)})
    if record.sha256 != stated:
        raise ValueError("its data doesn't have its sha256")
    return record


@dataclass(frozen=True, slots=True)
class Evidence:
    """What was gathered of one incident."""

    incident_id: str
    leg: str
    """For which agency."""
    wearer_id: str
    order_ids: tuple[str, ...]
    person_ids: tuple[str, ...]
    """Protected persons of the cases."""
    partition: int
    window_stamp_ms: int
    """Stamp from which on entries are enclosed, wall clock."""
    whole: bool
    """The log still held all of the window."""
    ended: bool
    """The alert that ends the incident is among them."""
    records: tuple[StoredMessage, ...] = field(repr=False)
    """By stream and sequence."""

    def of(self, stream: str) -> list[StoredMessage]:
        """The records of one stream, in its order."""
        return [record for record in self.records if record.stream == stream]

    def to_bytes(self) -> bytes:
        """As it is kept: a line that says what it is, then a line for each record."""
        head = {name: value for name, value in asdict(replace(self, records=())).items() if name != "records"}
        lines = [json.dumps(head, sort_keys=True, separators=(",", ":")).encode() + b"\n"]
        return b"".join(lines + [record.to_line() for record in self.records])


def of_bytes(data: bytes) -> Evidence:
    """The evidence of `Evidence.to_bytes`. Raises ValueError, KeyError or TypeError where it is none."""
    head, *lines = data.splitlines()
    told = json.loads(head)
    told |= {"order_ids": tuple(told["order_ids"]), "person_ids": tuple(told["person_ids"])}
    return Evidence(**told, records=tuple(of_line(line) for line in lines))


def joined(kept: Sequence[Evidence]) -> Evidence:
    """Evidence of one incident that was gathered at several times, the earliest first, as one."""
    first, last = kept[0], kept[-1]
    if len(kept) == 1:
        return first
    records = {(record.stream, record.sequence): record for record in last.records if not record.premise}
    for earlier in reversed(kept[:-1]):
        records |= {(record.stream, record.sequence): record for record in earlier.records}
    return replace(
        last,
        order_ids=tuple(sorted({*first.order_ids, *last.order_ids})),
        person_ids=tuple(sorted({*first.person_ids, *last.person_ids})),
        window_stamp_ms=first.window_stamp_ms,
        whole=first.whole,
        records=tuple(records[key] for key in sorted(records)),
    )
