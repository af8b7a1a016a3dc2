"""TLS of an HTTP port: its certificate, replaced files without a restart, and callers that must prove an identity of the mesh."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path
from typing import NamedTuple, cast

from services.common.observability.telemetry import logger

CERTIFICATE_INTERVAL_S = 60.0
"""Interval at which certificate files are reloaded, seconds."""
MAX_GREETING_BYTES = 4 << 10
"""Bytes after which a greeting counts as whole, so that a peer can't fill the memory with it. Today's browsers send up to 2 KiB."""
_HANDSHAKE, _HEADER_BYTES = 0x16, 5
"""Type of the first record, and length of a record's header (RFC 8446, 5.1)."""


class PortCaller(NamedTuple):
    """The one caller of a port that is closed to all others."""

    spiffe_id: str
    """SPIFFE id that the caller's certificate must have."""
    authority: Path
    """Authorities whose certificates are accepted, PEM."""


def server_context(files: tuple[Path, Path], caller: PortCaller | None) -> ssl.SSLContext:
    """Context of a port with this certificate chain and private key. With a `caller`, its certificate is required."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=caller.authority if caller else None)
    context.minimum_version = ssl.TLSVersion.TLSv1_3 if caller else ssl.TLSVersion.TLSv1_2
    if caller:
        context.verify_mode = ssl.CERT_REQUIRED
    context.load_cert_chain(*files)
    return context


async def renew(context: ssl.SSLContext, files: tuple[Path, Path], caller: PortCaller | None) -> None:
    """Reloads the files regularly, so that new connections use a replaced certificate without a restart."""
    while True:
        await asyncio.sleep(CERTIFICATE_INTERVAL_S)
        try:
            context.load_cert_chain(*files)
            if caller:
                context.load_verify_locations(caller.authority)
        except (OSError, ssl.SSLError) as error:
            logger().error("certificate_unreadable", kind=type(error).__name__)


def may_be_greeting(data: bytes | bytearray) -> bool:
    """Whether the first bytes of a connection may be those of TLS."""
    return data[0] == _HANDSHAKE


def is_whole_greeting(data: bytes | bytearray) -> bool:
    """Whether the first bytes of a connection hold the whole first record of TLS, or are too many to wait for the rest."""
    is_whole = len(data) >= _HEADER_BYTES and len(data) >= _HEADER_BYTES + int.from_bytes(data[3:5])
    return is_whole or len(data) > MAX_GREETING_BYTES


async def secured(
    transport: asyncio.Transport,
    protocol: asyncio.Protocol,
    context: ssl.SSLContext,
    *,
    greeting: bytes,
    within_s: float,
) -> asyncio.Transport | None:
    """Starts TLS on a connection whose first bytes, the `greeting`, have been read. Returns the transport of what TLS protects.

    Returns None if the handshake fails or takes longer than `within_s`; then the connection is closed.
    """
    loop = asyncio.get_running_loop()

    def feed() -> None:
        layer = cast(asyncio.BufferedProtocol, transport.get_protocol())
        memoryview(layer.get_buffer(len(greeting)))[: len(greeting)] = greeting
        layer.buffer_updated(len(greeting))

    # `start_tls` begins the layer by a callback, so its first bytes come by a later one.
    loop.call_soon(loop.call_soon, feed)
    try:
        inner = await loop.start_tls(transport, protocol, context, server_side=True, ssl_handshake_timeout=within_s)
    except OSError:  # as every error of TLS is
        transport.abort()
        return None
    return None if inner is None or inner.is_closing() else inner


def spiffe_ids(transport: asyncio.Transport) -> list[str]:
    """SPIFFE ids of the certificate that the peer of a connection has proven."""
    names = (transport.get_extra_info("peercert") or {}).get("subjectAltName", ())
    return [value for kind, value in names if kind == "URI"]
