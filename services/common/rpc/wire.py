"""Diagnosis of bytes that aren't a valid protobuf message, so that the error names the faulty field."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor

_VARINT, _FIXED64, _DELIMITED, _FIXED32 = 0, 1, 2, 5
_DEPTH_MAX = 100
MAX_FIELDS = 4_000
"""Maximum number of fields that are examined, which takes a few milliseconds and blocks all other calls. After it no field is named."""


class _Broken(Exception):
    """The bytes are truncated, aren't a message at all, or have too many fields for a diagnosis."""


def fault(descriptor: Descriptor, raw: bytes) -> tuple[str, str]:
    """Path of the field that makes `raw` an invalid message of this type, and the reason. The path is empty if no single field is
    faulty."""
    try:
        return _bad_text(descriptor, memoryview(raw), 0, budget=iter(range(MAX_FIELDS))) or "", "isn't text in UTF-8"
    except _Broken:
        return "", "the request isn't a message of this method"


def _bad_text(descriptor: Descriptor, raw: memoryview, depth: int, *, budget: Iterator[int]) -> str | None:
    if depth > _DEPTH_MAX:
        raise _Broken
    seen: dict[int, int] = {}
    at = 0
    while at < len(raw):
        if next(budget, None) is None:
            raise _Broken
        key, at = _varint(raw, at)
        if key & 7 != _DELIMITED:
            at = _skip(raw, at, key & 7)
            continue
        length, at = _varint(raw, at)
        value, at = raw[at : at + length], at + length
        if at > len(raw):
            raise _Broken
        field: Any = descriptor.fields_by_number.get(key >> 3)
        if field is None:
            continue
        place = seen[field.number] = seen.get(field.number, -1) + 1
        path = f"{field.name}[{place}]" if field.is_repeated else str(field.name)
        if field.type == FieldDescriptor.TYPE_STRING:
            try:
                bytes(value).decode()
            except UnicodeDecodeError:
                return path
        elif field.type == FieldDescriptor.TYPE_MESSAGE:
            inside = _bad_text(field.message_type, value, depth + 1, budget=budget)
            if inside is not None:
                return f"{path}.{inside}"
    return None


def _varint(raw: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while at < len(raw) and shift < 70:
        value |= (raw[at] & 0x7F) << shift
        at += 1
        if raw[at - 1] < 0x80:
            return value, at
        shift += 7
    raise _Broken


def _skip(raw: memoryview, at: int, kind: int) -> int:
    if kind == _VARINT:
        return _varint(raw, at)[1]
    if kind == _FIXED64:
        return at + 8
    if kind == _FIXED32:
        return at + 4
    raise _Broken
