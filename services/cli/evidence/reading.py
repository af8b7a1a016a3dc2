"""Strict reader for the records in a bundle: right stream, ascending order, no duplicates, correct hashes."""

from __future__ import annotations

from collections.abc import Mapping

from google.protobuf.message import DecodeError, Message

from services.cli.evidence.format import RECORD_SHAPE, STREAMED, lines_of, parsed
from services.cli.evidence.tar import CorruptArchive
from services.dispatch.evidence.model import StoredMessage, of_fields
from tandem.common.v1 import alert_pb2

_MESSAGES: Mapping[str, type[Message]] = {"alerts.jsonl": alert_pb2.Alert, "measures.jsonl": alert_pb2.Measure}
"""Message type of a member's records. Log entries aren't parsed: an unreadable entry belongs in the bundle, with its dead letter."""


def records(members: Mapping[str, bytes], partition: int) -> list[StoredMessage]:
    """The records of all members. Raises CorruptArchive at the first invalid record."""
    return [record for name in STREAMED for record in _records(name, members[name], partition)]


def _records(name: str, member: bytes, partition: int) -> list[StoredMessage]:
    stream, messages = STREAMED[name](partition), list[StoredMessage]()
    for number, line in enumerate(lines_of(name, member), 1):
        fields = parsed(name, line, RECORD_SHAPE, line=number)
        try:
            record = of_fields(fields)
        except ValueError as error:
            raise CorruptArchive(name, None, f"line {number}: {error}") from None
        if record.stream != stream:
            raise CorruptArchive(name, None, f"line {number}: stream: must be {stream}")
        if messages and record.sequence <= messages[-1].sequence:
            raise CorruptArchive(name, None, f"line {number}: sequence: must be greater than in the line before")
        _check_message(name, number, record)
        messages.append(record)
    return messages


def _check_message(name: str, number: int, record: StoredMessage) -> None:
    message = _MESSAGES.get(name)
    if message is None:
        return
    try:
        message.FromString(record.data)
    except DecodeError:
        raise CorruptArchive(name, None, f"line {number}: data: isn't a valid {message.DESCRIPTOR.name}") from None
