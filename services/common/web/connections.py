"""Bounds on what one sender may have of a port: open connections, and requests in a time. Pure: the time is an argument.

A connection is a stranger's until one of its requests proves whose it is. Over a bound the earliest connection is closed, not the
newest refused: a caller that sends its whole request at once is served before its turn to be closed comes, even behind an address at
which somebody opens connections without end.
"""

from __future__ import annotations

from collections import OrderedDict
from ipaddress import IPv6Address, IPv6Network, ip_address
from typing import Generic, TypeVar

C = TypeVar("C")
"""Type of a connection."""


class _SourceConnections(Generic[C]):
    """Strangers of one address."""

    def __init__(self) -> None:
        self.cost = 0
        self.waiting: OrderedDict[C, None] = OrderedDict()


class Strangers(Generic[C]):
    """Connections that haven't proven whose they are, each with a cost. Their cost is bounded by address and in total."""

    def __init__(self, max_cost: int, max_source_cost: int) -> None:
        self._max_cost, self._max_source_cost = max_cost, max_source_cost
        self._cost = 0
        self._of: dict[C, tuple[str, int]] = {}
        """Address and cost of each connection."""
        self._sources: dict[str, _SourceConnections[C]] = {}
        self._waiting: OrderedDict[C, None] = OrderedDict()
        """Connections whose peer is awaited, the one that has been awaited longest first. Only these may be closed."""

    def __len__(self) -> int:
        return len(self._of)

    def enter(self, connection: C, source: str, cost: int) -> list[C]:
        """Adds a connection whose peer is awaited. Returns the connections to close, which may be this one."""
        self._of[connection] = (source, 0)
        self._sources.setdefault(source, _SourceConnections())
        return self.weigh(connection, cost)

    def weigh(self, connection: C, cost: int) -> list[C]:
        """Sets the cost of a connection that has got further and whose peer is awaited. It is the last one now.

        Returns the connections to close, which may be this one.
        """
        self.serve(connection)
        self.await_peer(connection)
        name, before = self._of[connection]
        self._of[connection] = (name, cost)
        source = self._sources[name]
        source.cost += cost - before
        self._cost += cost - before
        closed: list[C] = []
        while source.cost > self._max_source_cost and source.waiting:
            closed.append(self._drop_first(source.waiting))
        while self._cost > self._max_cost and self._waiting:
            closed.append(self._drop_first(self._waiting))
        return closed

    def await_peer(self, connection: C) -> None:
        """Notes that a connection waits for its peer from now on, so it may be closed."""
        if connection in self._of:
            self._waiting[connection] = None
            self._sources[self._of[connection][0]].waiting[connection] = None

    def serve(self, connection: C) -> None:
        """Notes that a connection's peer waits for an answer from now on, so it isn't closed."""
        if connection in self._of:
            self._waiting.pop(connection, None)
            self._sources[self._of[connection][0]].waiting.pop(connection, None)

    def leave(self, connection: C) -> None:
        """Removes a connection. Does nothing if it isn't there."""
        if connection not in self._of:
            return
        self.serve(connection)
        name, cost = self._of.pop(connection)
        source = self._sources[name]
        source.cost -= cost
        self._cost -= cost
        if not source.cost:
            del self._sources[name]

    def _drop_first(self, waiting: OrderedDict[C, None]) -> C:
        first = next(iter(waiting))
        self.leave(first)
        return first


class Senders(Generic[C]):
    """Connections that have proven whose they are. Their number is bounded by sender and in total."""

    def __init__(self, most: int, most_each: int) -> None:
        self._most, self._most_each = most, most_each
        self._sender_of: dict[C, str] = {}
        self._by_sender: dict[str, OrderedDict[C, None]] = {}
        """Connections of each sender, by the time of their last request."""
        self._idle: OrderedDict[C, None] = OrderedDict()
        """Connections without a request, the one that has been idle longest first."""

    @property
    def is_over(self) -> bool:
        """Whether there are more connections than the bound, because none was idle that could be closed."""
        return len(self._sender_of) > self._most

    def sender_of(self, connection: C) -> str | None:
        """Sender of a connection; None for a stranger."""
        return self._sender_of.get(connection)

    def enter(self, connection: C, sender: str) -> list[C]:
        """Adds a connection in which a sender's request is being answered. Returns the connections to close, never this one.

        A sender at its bound loses its longest idle connection, or its earliest one. At the total bound the longest idle one is closed;
        if none is idle, none is closed: no sender is refused.
        """
        self.leave(connection)  # a connection may bring requests of one sender after another's
        own = self._by_sender.setdefault(sender, OrderedDict())
        closed: list[C] = []
        if len(own) >= self._most_each:
            closed.append(next((each for each in own if each in self._idle), next(iter(own))))
            self.leave(closed[-1])
        if len(self._sender_of) >= self._most and self._idle:
            closed.append(next(iter(self._idle)))
            self.leave(closed[-1])
        self._sender_of[connection] = sender
        self._by_sender.setdefault(sender, own)[connection] = None
        return closed

    def rest(self, connection: C) -> None:
        """Notes that a connection is without a request from now on."""
        if connection in self._sender_of:
            self._idle[connection] = None
            self._by_sender[self._sender_of[connection]].move_to_end(connection)

    def serve(self, connection: C) -> None:
        """Notes that a request begins on a connection."""
        self._idle.pop(connection, None)

    def leave(self, connection: C) -> None:
        """Removes a connection. Does nothing if it isn't there."""
        sender = self._sender_of.pop(connection, None)
        if sender is None:
            return
        self._idle.pop(connection, None)
        own = self._by_sender[sender]
        del own[connection]
        if not own:
            del self._by_sender[sender]


# ── requests in a time ────────────────────────────────────────────────────────────────────────────────────────────────

SUBSCRIBER_BITS = 64
"""Length of the IPv6 prefix that one subscriber gets (RFC 6177), so that all addresses of a subscriber count as one."""


def source_of(address: str) -> str:
    """Key of an address in a rate limit: the address itself, or the /64 network of an IPv6 address."""
    try:
        parsed = ip_address(address.partition("%")[0])
    except ValueError:
        return address  # a connection that was lost has none
    if not isinstance(parsed, IPv6Address):
        return str(parsed)
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return str(IPv6Network((parsed, SUBSCRIBER_BITS), strict=False))


class RequestLimit:
    """Rate limit per key: `per_s` in the long run and `burst` at once. Generic cell rate algorithm (ITU-T I.371)."""

    def __init__(self, per_s: float, burst: int, max_keys: int = 100_000) -> None:
        self._interval_s = 1 / per_s
        self._ahead_s = burst / per_s
        self._max_keys = max_keys
        self._due_s: dict[str, float] = {}
        """By key: when its next request would be due if its requests so far were spaced evenly, seconds."""
        self._full_until_s = float("-inf")
        """When the first key of a full table ends, seconds. Until then no new key has a place, and nobody looks for one."""

    def wait_s(self, key: str, now_s: float) -> float:
        """Counts a request, and returns 0; or returns the time after which it may be repeated, seconds, and doesn't count it."""
        due_s = max(self._due_s.get(key, now_s), now_s) + self._interval_s
        if due_s > now_s + self._ahead_s:
            return due_s - now_s - self._ahead_s
        if key not in self._due_s and len(self._due_s) >= self._max_keys:
            if now_s >= self._full_until_s:
                self._due_s = {known: due for known, due in self._due_s.items() if due > now_s}
                self._full_until_s = min(self._due_s.values(), default=now_s)
            if len(self._due_s) >= self._max_keys:
                return self._interval_s  # more keys than anybody has phones: an attack, in which known keys go on
        self._due_s[key] = due_s
        return 0.0
