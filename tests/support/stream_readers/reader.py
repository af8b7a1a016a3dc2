"""Description of a reader of the flow table for the contract test: its test messages and the check of their effects."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from tandem.common.v1 import log_pb2
from tests.support.stream_readers.mesh import Connection

Message: TypeAlias = tuple[str, bytes]
"""Subject and data of a message."""
Row: TypeAlias = tuple[str, str]
"""Subject of a row of the flow table, and a user that reads it."""

_OTHER_TYPE = log_pb2.LogMetadata(
    partitions=7, clock_rate=3, clock_anchor_ms=5, log_id="not what this is"
).SerializeToString()


async def no_messages(connection: Connection, name: str) -> Sequence[Message]:
    """Default for readers that need no messages."""
    return ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Reader:
    """A reader of streams under test. The callables get a name that is unique in the run and goes into the messages' ids."""

    name: str
    service: str = ""
    """Service that reads continuously. Empty for readers that read on request, such as commands."""
    rows: tuple[Row, ...]
    """Rows of the flow table that the reader reads."""
    valid: Callable[[Connection, str], Awaitable[Sequence[Message]]]
    """Makes messages that the reader must process."""
    effects: Callable[[Connection, str], Awaitable[int]]
    """Counts the effects of the valid messages. The number must not depend on how often they were published."""
    prepare: Callable[[Connection, str], Awaitable[Sequence[Message]]] = no_messages
    """Makes messages that must have had their effect before the valid ones, while all processes run."""
    prepared: Callable[[Connection, str], Awaitable[int]] | None = None
    """Counts the effects of the prepared messages. None if there are none."""
    garbage: tuple[str, ...]
    """Subjects under which the reader must skip unusable messages. `{name}` is replaced by a name that is unique in the run."""
    dead_letter_by: str = ""
    """Reader name in DEAD_LETTERS of the dead letter for garbage under the first of these subjects. Empty if there is none."""
    logs: tuple[str, str] = ("", "")
    """Service and log event that report garbage without a dead letter. Both empty if the reader answers its caller."""
    only_at_start: bool = False
    """Whether the reader reads only at its start."""
    only_garbage: bool = False
    """Whether the reader only looks messages up by their subject, so that only garbage in them can disturb it."""
    at_reuse: bool = True
    """Whether the reader could miss a reused sequence. False if it looks messages up by subject, or reads all from the first."""
    counts_duplicates: bool = False
    """Whether a duplicate may count twice, as the reader's documentation states."""
    misplaced: Callable[[Connection, str], Awaitable[Sequence[Message]]] = field(default=no_messages)
    """Makes messages with valid data under a foreign subject. The count of `effects` for their name must stay 0."""


def garbage_for(subject: str) -> list[bytes]:
    """Data that isn't a valid message for a subject: JSON, random bytes, nothing, and another message type."""
    return [b"{}", random.Random(subject).randbytes(64), b"", _OTHER_TYPE]
