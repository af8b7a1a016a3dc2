"""A reader of the flow table as the contract test sees it: what it is given, and how its answer is seen."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from tandem.common.v1 import log_pb2
from tests.support.stream_readers.mesh import Connection

Message: TypeAlias = tuple[str, bytes]
"""Subject and content."""
Row: TypeAlias = tuple[str, str]
"""Subject of a row of the flow table, and the user who reads it."""

_OTHER_TYPE = log_pb2.LogMetadata(
    partitions=7, clock_rate=3, clock_anchor_ms=5, log_id="not what this is"
).SerializeToString()


async def no_messages(connection: Connection, name: str) -> Sequence[Message]:
    """Nothing to store before."""
    return ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Reader:
    """One reader. `name` of a sound message is unique in the run, and stands in its ids."""

    name: str
    service: str = ""
    """Process that reads all the time; empty where it reads when it is asked, as commands do."""
    rows: tuple[Row, ...]
    """What it reads."""
    sound: Callable[[Connection, str], Awaitable[Sequence[Message]]]
    """Messages that it must act on."""
    took: Callable[[Connection, str], Awaitable[int]]
    """How many effects they had; the same number however often they came."""
    prepare: Callable[[Connection, str], Awaitable[Sequence[Message]]] = no_messages
    """Messages that must have had their effect before, while everything runs."""
    prepared: Callable[[Connection, str], Awaitable[int]] | None = None
    """Whether those had."""
    garbage: tuple[str, ...]
    """Subjects under which it must pass over what it can't use; `{name}` is unique in the run."""
    dead_letter_by: str = ""
    """Name of the reader in DEAD_LETTERS that sets such a message aside, of the first of these subjects."""
    logs: tuple[str, str] = ("", "")
    """Or else: service, and the event of its log that says so. Neither where it answers the caller."""
    only_at_start: bool = False
    """It reads at its start alone."""
    only_garbage: bool = False
    """It looks one message up by its subject, so that only what is in it can trouble it."""
    at_reuse: bool = True
    """A sequence that is used again can be missed by it; else it looks messages up by their subject, or reads all from the first."""
    counts_duplicates: bool = False
    """Of a duplicate it may count two, as is stated where it counts."""
    misplaced: Callable[[Connection, str], Awaitable[Sequence[Message]]] = field(default=no_messages)
    """Sound content under a subject that isn't its own; `took` of that name must stay 0."""


def garbage_for(subject: str) -> list[bytes]:
    """What stands under a subject and is no message of its kind: JSON, random bytes, nothing, another type."""
    return [b"{}", random.Random(subject).randbytes(64), b"", _OTHER_TYPE]
