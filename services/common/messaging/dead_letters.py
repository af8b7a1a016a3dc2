"""Dead letters for messages that a reader can't use, and log lines for those that don't need one.

No message ends a reader. It uses a message, keeps it as a dead letter, or passes over it. The last two are counted.
"""

from __future__ import annotations

from prometheus_client import Counter

from services.common.messaging import flow
from services.common.messaging.bus import Bus
from services.common.messaging.pull import Delivered
from services.common.observability.telemetry import logger
from services.common.rpc.errors import TandemError

_UNUSABLE = Counter(
    "tandem_unusable_messages",
    "Messages that a reader couldn't use, by stream, reader and outcome: dead_letter (kept in DEAD_LETTERS) or passed_over",
    ["stream", "reader", "outcome"],
)


async def keep(bus: Bus, reader: str, message: Delivered, *, error: TandemError) -> None:
    """Keeps a message as a dead letter of a reader, with the error as the reason. Idempotent."""
    _UNUSABLE.labels(message.stream, reader, "dead_letter").inc()
    subject = flow.dead_letter_subject(reader, message.stream, message.sequence)
    await bus.store_dead_letter(subject, message.stream, message.sequence, by=reader, reason=str(error))


def pass_over(reader: str, stream: str, sequence: int, *, error: TandemError) -> None:
    """Counts and logs that a reader ignores a message, if another reader keeps it as a dead letter or nothing is lost with it."""
    _UNUSABLE.labels(stream, reader, "passed_over").inc()
    logger().error("message_passed_over", stream=stream, sequence=sequence, reader=reader, reason=str(error))
