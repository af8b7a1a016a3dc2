"""Addresses of the evaluators. A leg opens a stream to each, since each may have incidents that the others don't have."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from typing import NamedTuple

from services.common.settings import addresses_of


class EvaluatorEndpoint(NamedTuple):
    """An evaluator, as a leg reaches it."""

    address: str
    """Host and port; the host is an IP address unless it can't be resolved."""
    server_name: str
    """Host name in the evaluator's certificate; empty if the settings give an IP address."""


async def resolve(target: str) -> set[EvaluatorEndpoint]:
    """The evaluators behind a gRPC target such as dns:///geofence:7403 or ipv4:127.0.0.1:7403,127.0.0.1:7413.

    Raises OSError if a name can't be resolved.
    """
    found: set[EvaluatorEndpoint] = set()
    for address in addresses_of(target):
        host, _, port = address.rpartition(":")
        if _is_ip(host.strip("[]")):
            found.add(EvaluatorEndpoint(address, ""))
            continue
        loop = asyncio.get_running_loop()
        for *_, where in await loop.getaddrinfo(host, int(port), type=socket.SOCK_STREAM):
            ip = str(where[0])
            found.add(EvaluatorEndpoint(f"[{ip}]:{port}" if ":" in ip else f"{ip}:{port}", host))
    return found


def _is_ip(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
