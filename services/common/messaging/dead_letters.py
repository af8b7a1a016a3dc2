"""Dead letters for messages that a reader can't use, and log lines for unusable messages that need no dead letter.

No message ends a reader. A reader uses a message, keeps it as a dead letter, or passes over it. Kept and passed-over messages are
counted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias, TypeVar

from services.common.errors import InvalidField, TandemError
from services.common.messaging import flow
from services.common.messaging.bus import Bus
from services.common.messaging.pull import Delivered
from services.common.observability.telemetry import logger

T = TypeVar("T")
Parse: TypeAlias = Callable[[bytes, str], T | None]
"""Parses the data and the subject of a message. Returns None if the reader doesn't need the message. Raises InvalidField."""


async def parse_or_keep(bus: Bus, reader: str, messages: Sequence[Delivered], *, parse: Parse[T]) -> list[T]:
    """Parses messages, and keeps the unreadable ones as dead letters of a reader."""
    readable, unreadable = _parsed(messages, parse)
    for message, error in unreadable:
        await keep(bus, reader, message.stream, sequence=message.sequence, error=error)
    return readable


def parse_or_pass_over(bus: Bus, reader: str, messages: Sequence[Delivered], *, parse: Parse[T]) -> list[T]:
    """Parses messages, and passes over the unreadable ones, because another reader keeps them as dead letters."""
    readable, unreadable = _parsed(messages, parse)
    for message, error in unreadable:
        pass_over(bus, reader, message.stream, sequence=message.sequence, error=error)
    return readable


def _parsed(messages: Sequence[Delivered], parse: Parse[T]) -> tuple[list[T], list[tuple[Delivered, InvalidField]]]:
    readable: list[T] = []
    unreadable: list[tuple[Delivered, InvalidField]] = []
    for message in messages:
        try:
            parsed = parse(message.data, message.subject)
        except InvalidField as error:
            unreadable.append((message, error))
        else:
            if parsed is not None:
                readable.append(parsed)
    return readable, unreadable


async def keep(bus: Bus, reader: str, stream: str, *, sequence: int, error: TandemError) -> None:
    """Keeps a message as a dead letter of a reader, with the error as the reason. Idempotent."""
    bus.metrics.unusable_messages.labels(stream, reader, "dead_letter").inc()
    subject = flow.dead_letter_subject(reader, stream, sequence)
    await bus.store_dead_letter(subject, stream, sequence, by=reader, reason=str(error))


def pass_over(bus: Bus, reader: str, stream: str, *, sequence: int, error: TandemError) -> None:
    """Counts and logs that a reader ignores a message, if another reader keeps it as a dead letter or nothing is lost with it."""
    bus.metrics.unusable_messages.labels(stream, reader, "passed_over").inc()
    logger().error("message_passed_over", stream=stream, sequence=sequence, reader=reader, reason=str(error))
