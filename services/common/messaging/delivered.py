"""The type of a message that `services.common.messaging.pull` delivers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from nats.aio.msg import Msg

from services.common.messaging.cursors import StreamCursor

_TOKENS_WITHOUT_DOMAIN = 9
_CONSUMER, _STAMP = 3, 7
"""Indexes of the consumer's name and of the entry's timestamp in a reply subject without a domain."""


@dataclass(frozen=True, slots=True)
class Delivered:
    """A message of a stream, as a consumer delivered it."""

    subject: str
    data: bytes
    stream: str
    sequence: int
    """Sequence of the message in the stream."""
    stamp_ms: int
    """Wall time at which the stream's leader stored the message, milliseconds since 1970 UTC."""
    pending: int
    """Number of messages that were waiting after this one when the server sent it."""
    reply: str
    """Subject for the acknowledgement. It also carries the consumer's name and the exact storage time."""
    headers: Mapping[str, str] | None = None
    stored_at: datetime | None = None
    """Storage time with the client's full precision, microseconds. None if only `stamp_ms` is known."""

    @classmethod
    def of(cls, stream: str, message: Msg) -> Delivered:
        """The message of a stream that a client received from a consumer."""
        meta = message.metadata
        return cls(
            subject=message.subject,
            data=message.data,
            stream=stream,
            sequence=meta.sequence.stream,
            stamp_ms=int(meta.timestamp.timestamp() * 1000),
            pending=meta.num_pending,
            reply=message.reply,
            headers=message.headers,
            stored_at=meta.timestamp,
        )

    @property
    def stamp_us(self) -> int:
        """Wall time at which the stream's leader stored the message, microseconds since 1970 UTC."""
        return self.stamp_ms * 1000 if self.stored_at is None else round(self.stored_at.timestamp() * 1e6)

    @property
    def cursor(self) -> StreamCursor:
        """Identity of this entry, for a reader's position. It is hashed at each access, because most messages don't need it."""
        return StreamCursor.of(self.sequence, int(_token(self.reply, _STAMP)), self.subject, data=self.data)

    @property
    def consumer(self) -> str:
        """Name of the consumer that delivered the message."""
        return _token(self.reply, _CONSUMER)


def _token(reply: str, index: int) -> str:
    """Token of a reply subject: `$JS.ACK.stream.consumer.delivered.sequence.sequence.stamp.pending`. Some servers put domain and
    account before the stream."""
    tokens = reply.split(".")
    return tokens[index if len(tokens) == _TOKENS_WITHOUT_DOMAIN else index + 2]
