"""A message of a stream as `services.common.messaging.pull` hands it over."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from services.common.messaging.cursors import StreamCursor

_TOKENS_WITHOUT_DOMAIN = 9
_CONSUMER, _STAMP = 3, 7
"""Places of a consumer's name and an entry's stamp among them."""


@dataclass(frozen=True, slots=True)
class Delivered:
    """A message of a stream."""

    subject: str
    data: bytes
    stream: str
    sequence: int
    """Its place in the stream."""
    stamp_ms: int
    """When the stream's leader stored it, wall clock, milliseconds since 1970 UTC."""
    pending: int
    """How many more were waiting behind it when it was sent."""
    reply: str
    headers: Mapping[str, str] | None = None
    stored_at: datetime | None = None
    """`stamp_ms`, as exactly as it is known."""

    @property
    def stamp_us(self) -> int:
        """The same, microseconds since 1970 UTC."""
        return self.stamp_ms * 1000 if self.stored_at is None else round(self.stored_at.timestamp() * 1e6)

    @property
    def cursor(self) -> StreamCursor:
        """The identity of this entry: a reader that has dealt with it goes on behind it. Hashed when asked for."""
        return StreamCursor.of(self.sequence, int(_token(self.reply, _STAMP)), self.subject, self.data)

    @property
    def consumer(self) -> str:
        """Name of the consumer that it came by."""
        return _token(self.reply, _CONSUMER)


def _token(reply: str, place: int) -> str:
    """Part of the subject under which a message is acknowledged: `$JS.ACK.stream.consumer.delivered.sequence.sequence.stamp.pending`,
    or with domain and account before the stream."""
    tokens = reply.split(".")
    return tokens[place if len(tokens) == _TOKENS_WITHOUT_DOMAIN else place + 2]
