"""Which addresses web push may go to. Pure.

A phone names the address to which the server then posts, so a forged phone could have it post anywhere. Only known push services
are accepted, and of their addresses none within a private network.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from ipaddress import ip_address
from urllib.parse import urlsplit

from services.common.rpc.errors import InvalidField

DEFAULT_PUSH_SERVICES = (
    "fcm.googleapis.com",
    "updates.push.services.mozilla.com",
    "*.push.apple.com",
    "*.notify.windows.com",
)
"""Hosts of the push services of Chrome, Firefox, Safari and Edge."""
MAX_ENDPOINT_LENGTH = 1_024
_NAME = re.compile(r"[a-z0-9-]+(\.[a-z0-9-]+)+")
_HOST = re.compile(rf"(\*\.)?{_NAME.pattern}")
_LOOPBACK = re.compile(r"http://127\.0\.0\.1:[0-9]{1,5}")


def is_push_service(entry: str, *, plain: bool) -> bool:
    """Whether a setting's entry is a host, or with `plain` a loopback address."""
    return bool(_HOST.fullmatch(entry) or (plain and _LOOPBACK.fullmatch(entry)))


def check_endpoint(endpoint: str, services: Iterable[str]) -> str:
    """The address of a phone at its push service. Raises InvalidField unless it is one of `services`."""
    if len(endpoint) > MAX_ENDPOINT_LENGTH or not endpoint.isascii() or any(ord(sign) < 33 for sign in endpoint):
        raise InvalidField("endpoint", f"must be an address of at most {MAX_ENDPOINT_LENGTH} characters")
    try:
        parts = urlsplit(endpoint)
        origin, host, port = f"{parts.scheme}://{parts.netloc}", parts.hostname or "", parts.port
    except ValueError:
        raise InvalidField("endpoint", "is no address") from None
    if origin in services:
        return endpoint  # a loopback address, which the settings accept on loopback only
    is_named = _NAME.fullmatch(host) is not None and any(
        host == entry or (entry[:2] == "*." and host.endswith(entry[1:])) for entry in services
    )
    if parts.scheme != "https" or port not in (None, 443) or "@" in parts.netloc or not is_named:
        raise InvalidField("endpoint", "is no address of a known push service")
    return endpoint


def is_public(address: str) -> bool:
    """Whether an IP address is on the public internet, and not in a private, local or reserved network."""
    parsed = ip_address(address.partition("%")[0])
    mapped = getattr(parsed, "ipv4_mapped", None)
    return (mapped or parsed).is_global and not parsed.is_multicast
