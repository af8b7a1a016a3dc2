"""An agency's side of reconciliation: digests and the root hash, computed from the messages as reconciliation.proto defines them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from typing import Any

from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from tandem.registry.v1 import reconciliation_pb2, registry_pb2

_KINDS = {
    kind.name.removeprefix("RECORD_KIND_").replace("_", "").lower(): kind.number
    for kind in reconciliation_pb2.RecordKind.DESCRIPTOR.values
}
"""Number of each kind of record by the name of its message in lower case."""
_UNITS = {"lat_deg": 10_000_000, "lon_deg": 10_000_000, "radius_m": 1000}


def listed(
    message: Message,
    end: registry_pb2.EndOrderRequest
    | registry_pb2.EndWearerRequest
    | registry_pb2.EndProtectedPersonRequest
    | registry_pb2.EndTagRequest
    | registry_pb2.EndDeviceRequest
    | None = None,
) -> reconciliation_pb2.ListedRecord:
    """The list entry of a record, as its agency computes it; `end` is the request that ended the record, if any."""
    kind, id_field = _KINDS[message.DESCRIPTOR.name.lower()], message.DESCRIPTOR.fields_by_number[1].name
    lines = list(_lines(message, "", {id_field, "source_version"}))
    if isinstance(end, registry_pb2.EndOrderRequest | registry_pb2.EndWearerRequest):
        lines += _lines(end, "end.", {id_field, "source_version"})
    elif end is not None:
        lines += _lines(end, "", {id_field, "source_version"})
    version = end.source_version if end else message.source_version  # type: ignore[attr-defined]
    text = "".join(f"{path}={value}\n" for path, value in lines)
    return reconciliation_pb2.ListedRecord(
        kind=reconciliation_pb2.RecordKind.ValueType(kind),
        record_id=getattr(message, id_field),
        source_version=version,
        digest=hashlib.sha256(text.encode()).digest(),
    )


def root(records: Iterable[reconciliation_pb2.ListedRecord]) -> bytes:
    """Root hash of a list of records."""
    ordered = sorted(records, key=lambda record: (record.kind, record.record_id.encode()))
    lines = [f"{record.kind} {record.record_id} {record.source_version} {record.digest.hex()}\n" for record in ordered]
    return hashlib.sha256("".join(lines).encode()).digest()


def _lines(message: Message, prefix: str, omitted: set[str]) -> Iterator[tuple[str, str]]:
    fields: list[Any] = sorted(message.DESCRIPTOR.fields, key=lambda field: field.number)
    for field in fields:
        if field.name in omitted:
            continue
        value = getattr(message, field.name)
        if field.is_repeated:
            for n, item in enumerate(value):
                yield from _value(f"{prefix}{field.name}[{n}]", field.name, item)
        elif field.message_type is None or message.HasField(field.name):
            yield from _value(f"{prefix}{field.name}", field.name, value)


def _value(path: str, name: str, value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, Timestamp):
        value = value.seconds * 1000 + value.nanos // 1_000_000
    elif isinstance(value, Message):
        yield from _lines(value, f"{path}.", set())
        return
    elif name in _UNITS:
        value = round(value * _UNITS[name])
    elif isinstance(value, bool):
        value = int(value)
    elif name == "national_id":
        value = value.replace("-", "")
    if value:
        yield path, str(value)
