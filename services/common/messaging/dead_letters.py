"""Dead letters for messages that a reader can't use, and log lines for those that don't need one.

No message ends a reader. It uses a message, keeps it as a dead letter, or passes over it. The last two are counted.
"""

from __future__ import annotations

from services.common.messaging import flow
from services.common.messaging.bus import Bus
from services.common.messaging.pull import Delivered
from services.common.observability.telemetry import logger
from services.common.rpc.errors import TandemError


async def keep(bus: Bus, reader: str, message: Delivered, *, error: TandemError) -> None:
    """Keeps a message as a dead letter of a reader, with the error as the reason. Idempotent."""
    bus.metrics.unusable_messages.labels(message.stream, reader, "dead_letter").inc()
    subject = flow.dead_letter_subject(reader, message.stream, message.sequence)
    await bus.store_dead_letter(subject, message.stream, message.sequence, by=reader, reason=str(error))


def pass_over(bus: Bus, reader: str, stream: str, *, sequence: int, error: TandemError) -> None:
    """Counts and logs that a reader ignores a message, if another reader keeps it as a dead letter or nothing is lost with it."""
    bus.metrics.unusable_messages.labels(stream, reader, "passed_over").inc()
    logger().error("message_passed_over", stream=stream, sequence=sequence, reader=reader, reason=str(error))
