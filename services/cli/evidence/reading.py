"""The records in a bundle's members, read strictly: of the right stream, in order, each once, with the hash that it states."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping

from google.protobuf.message import DecodeError, Message

from services.cli.evidence.format import RECORD_SHAPE, STREAMED, lines_of, parsed
from services.cli.evidence.tar import CorruptArchive
from services.dispatch.evidence.model import StoredMessage
from tandem.common.v1 import alert_pb2

_MESSAGES: Mapping[str, type[Message]] = {"alerts.jsonl": alert_pb2.Alert, "measures.jsonl": alert_pb2.Measure}
"""What the records of a member hold. An entry of the log may be unreadable: it was parked, and is evidence of that."""


def records(members: Mapping[str, bytes], partition: int) -> list[StoredMessage]:
    """The records of all members. Raises Broken with the first that is none."""
    return [record for name in STREAMED for record in _records(name, members[name], partition)]


def _records(name: str, member: bytes, partition: int) -> list[StoredMessage]:
    stream, found = STREAMED[name](partition), list[StoredMessage]()
    for number, line in enumerate(lines_of(name, member), 1):
        told = parsed(name, line, RECORD_SHAPE, number)
        stated = told.pop("sha256")
        try:
            record = StoredMessage(**{**told, "data": base64.b64decode(told["data"], validate=True)})
        except binascii.Error:
            raise CorruptArchive(name, None, f"line {number}: data: isn't base64") from None
        if record.sha256 != stated:
            raise CorruptArchive(name, None, f"line {number} is no record: its data doesn't have its sha256")
        if record.stream != stream:
            raise CorruptArchive(name, None, f"line {number}: stream: must be {stream}")
        if found and record.sequence <= found[-1].sequence:
            raise CorruptArchive(name, None, f"line {number}: sequence: doesn't come behind that of the line before")
        _check_message(name, number, record)
        found.append(record)
    return found


def _check_message(name: str, number: int, record: StoredMessage) -> None:
    message = _MESSAGES.get(name)
    if message is None:
        return
    try:
        message.FromString(record.data)
    except DecodeError:
        raise CorruptArchive(name, None, f"line {number}: data: is no {message.DESCRIPTOR.name}") from None
