"""Rate limits of requests by address, by phone or by another key. Pure: the time is an argument."""

from __future__ import annotations

from ipaddress import IPv6Address, IPv6Network, ip_address

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
        self._interval_s, self._ahead_s, self._max_keys = 1 / per_s, burst / per_s, max_keys
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
