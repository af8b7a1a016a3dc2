"""One stream of the in-memory JetStream: stored messages, duplicate window, expected sequences and limits. Pure."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

SECOND_NS = 1_000_000_000
MSG_ID, EXPECTED_LAST = "Nats-Msg-Id", "Nats-Expected-Last-Subject-Sequence"
_OVERHEAD = 22
"""Bytes that a stored message takes besides subject, headers and data: length, sequence, stamp, subject's length and checksum."""
_HEADER_OVERHEAD = 4
MAX_MATCHES = 10_000
"""Number of subjects that were compared last whose comparisons are kept: each message is compared for each consumer."""

DEFAULTS: Mapping[str, Any] = {
    "retention": "limits",
    "discard": "old",
    "max_consumers": -1,
    "max_msgs": -1,
    "max_bytes": -1,
    "max_age": 0,
    "max_msg_size": -1,
    "max_msgs_per_subject": -1,
    "duplicate_window": 120 * SECOND_NS,
}
"""What the server adds to a configuration."""


class Stored(NamedTuple):
    """A stored message."""

    sequence: int
    subject: str
    headers: bytes
    """Headers as they are sent, or nothing."""
    data: bytes
    stored_at_ns: int


class Refused(Exception):
    """An error answer of JetStream."""

    def __init__(self, code: int, err_code: int, description: str) -> None:
        super().__init__(description)
        self.code = code
        self.err_code = err_code
        self.description = description


@dataclass(frozen=True, slots=True)
class Ack:
    """The answer to a publish."""

    sequence: int
    duplicate: bool


@lru_cache(maxsize=MAX_MATCHES)
def matches(pattern: str, subject: str) -> bool:
    """Whether a subject matches a pattern with the wildcards * and >."""
    if pattern == subject:
        return True
    wanted, given = pattern.split("."), subject.split(".")
    for i, token in enumerate(wanted):
        if token == ">":
            return len(given) > i
        if i >= len(given) or token not in ("*", given[i]):
            return False
    return len(wanted) == len(given)


class MemoryStream:
    """A stream in memory with the semantics of a file stream that syncs each message."""

    def __init__(self, config: Mapping[str, Any], created_ns: int) -> None:
        self.given = dict(config)
        self.config = {**DEFAULTS, **config}
        self.created_ns = created_ns
        self.name = str(config["name"])
        self.subjects = tuple(config.get("subjects") or ())
        self.messages: OrderedDict[int, Stored] = OrderedDict()
        self.last_sequence = 0
        self.first_sequence = 0
        self.bytes = 0
        self.last_stored_ns = 0
        self.on_stored: list[Callable[[Stored], None]] = []
        self.on_dropped: list[Callable[[Stored], None]] = []
        self._last_of: dict[str, int] = {}
        self._ids: OrderedDict[str, tuple[int, int]] = OrderedDict()
        """Sequence and time of each Msg-Id in the duplicate window, oldest first."""

    def publish(self, subject: str, headers: Mapping[str, str], raw: bytes, *, data: bytes, now_ns: int) -> Ack:
        """Stores a message. Raises Refused."""
        self.expire(now_ns)
        expected = headers.get(EXPECTED_LAST)
        if expected is not None:
            last = self._last_of.get(subject, 0)
            if int(expected) != last:
                raise Refused(400, 10071, f"wrong last sequence: {last}")
        msg_id = headers.get(MSG_ID)
        if msg_id is not None and msg_id in self._ids:
            return Ack(self._ids[msg_id][0], duplicate=True)
        self._make_space(subject, raw, data)
        stored = Stored(self.last_sequence + 1, subject, raw, data, max(now_ns, self.last_stored_ns))
        self._keep(stored)
        if msg_id is not None:
            self._ids[msg_id] = (stored.sequence, now_ns)
        for notify in self.on_stored:
            notify(stored)
        return Ack(stored.sequence, duplicate=False)

    def _make_space(self, subject: str, raw: bytes, data: bytes) -> None:
        size, limit = self._size(subject, raw, data), int(self.config["max_bytes"])
        if limit < 0:
            return
        if self.config["discard"] == "new":
            # A full stream only accepts what replaces a larger message of its subject.
            previous = self._last_of.get(subject) if self._keeps_last_only else None
            replaced = self.messages[previous] if previous else None
            freed = self._size(subject, replaced.headers, replaced.data) if replaced else 0
            if self.bytes + size > limit and freed < size:
                raise Refused(503, 10077, "maximum bytes exceeded")
            return
        if size > limit:
            raise Refused(503, 10077, "message size exceeds maximum allowed")

    @property
    def _keeps_last_only(self) -> bool:
        return int(self.config["max_msgs_per_subject"]) == 1

    def _keep(self, stored: Stored) -> None:
        if self._keeps_last_only and (previous := self._last_of.get(stored.subject)):
            self._drop(previous)
        self.messages[stored.sequence] = stored
        self.last_sequence, self.last_stored_ns = stored.sequence, stored.stored_at_ns
        self.bytes += self._size(stored.subject, stored.headers, stored.data)
        self._last_of[stored.subject] = stored.sequence
        limit = int(self.config["max_bytes"])
        while 0 <= limit < self.bytes:  # only a stream that discards old messages can get here
            self._drop(next(iter(self.messages)))
        self.first_sequence = next(iter(self.messages))

    def _drop(self, sequence: int) -> None:
        dropped = self.messages.pop(sequence)
        self.bytes -= self._size(dropped.subject, dropped.headers, dropped.data)
        if self._last_of.get(dropped.subject) == sequence:
            del self._last_of[dropped.subject]
        self.first_sequence = next(iter(self.messages), self.last_sequence + 1)
        for notify in self.on_dropped:
            notify(dropped)

    @staticmethod
    def _size(subject: str, raw: bytes, data: bytes) -> int:
        return _OVERHEAD + len(subject) + (_HEADER_OVERHEAD + len(raw) if raw else 0) + len(data) + 8

    def expire(self, now_ns: int) -> None:
        """Removes messages that are older than the stream keeps them, and ids that have left the duplicate window."""
        if max_age_ns := int(self.config["max_age"]):
            while self.messages and next(iter(self.messages.values())).stored_at_ns < now_ns - max_age_ns:
                self._drop(next(iter(self.messages)))
        window_ns = int(self.config["duplicate_window"])
        while self._ids and next(iter(self._ids.values()))[1] < now_ns - window_ns:
            self._ids.popitem(last=False)

    def tear(self, count: int) -> list[Stored]:
        """Loses the newest messages, as after a torn tail. Their sequences are used again."""
        torn = []
        for _ in range(min(count, len(self.messages))):
            sequence = next(reversed(self.messages))
            torn.append(self.messages[sequence])
            self._drop(sequence)
            self.last_sequence = sequence - 1
        lost = {stored.sequence for stored in torn}
        for msg_id in [msg_id for msg_id, (sequence, _) in self._ids.items() if sequence in lost]:
            del self._ids[msg_id]
        self._last_of = {stored.subject: stored.sequence for stored in self.messages.values()}
        self.first_sequence = next(iter(self.messages), self.last_sequence + 1)
        self.last_stored_ns = max((stored.stored_at_ns for stored in self.messages.values()), default=0)
        return torn

    def get(self, sequence: int) -> Stored:
        """The message at a sequence. Raises Refused."""
        if sequence not in self.messages:
            raise Refused(404, 10037, "no message found")
        return self.messages[sequence]

    def last_by_subject(self, pattern: str) -> Stored:
        """The last message on a subject, which may have wildcards. Raises Refused."""
        if pattern in self._last_of:
            return self.messages[self._last_of[pattern]]
        if "*" in pattern or ">" in pattern:
            for stored in reversed(self.messages.values()):
                if matches(pattern, stored.subject):
                    return stored
        raise Refused(404, 10037, "no message found")

    def after(self, sequence: int) -> Iterator[Stored]:
        """Messages from a sequence on, oldest first."""
        if sequence <= self.first_sequence:
            yield from self.messages.values()
            return
        for number in range(sequence, self.last_sequence + 1):
            if (stored := self.messages.get(number)) is not None:
                yield stored
