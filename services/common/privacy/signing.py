"""Webhook signatures after Standard Webhooks 1.0.0 (https://www.standardwebhooks.com), symmetric signatures (`v1`) only. Pure.

A receiver that knows the secret can verify a message's sender, its integrity and its freshness, with any library of the standard.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Iterable, Mapping

ID_HEADER = "webhook-id"
"""Header with the message's id, which is the same at each attempt: the receiver's key for deduplication."""
TIMESTAMP_HEADER = "webhook-timestamp"
"""Header with the time of this attempt, seconds since 1970 UTC."""
SIGNATURE_HEADER = "webhook-signature"
"""Header with the signatures: `v1,<base64>` for each valid secret, separated by spaces."""
MIN_SECRET_BYTES, MAX_SECRET_BYTES = 24, 64
WINDOW_S = 300
"""Maximum difference between a message's timestamp and the receiver's clock, seconds, as in the libraries of the standard. A greater
difference counts as a replay."""
_PREFIX = "whsec_"


def parse_secret(text: str) -> bytes:
    """Decodes a secret: `whsec_` and the base64 of 24 to 64 bytes. Raises ValueError; the error doesn't contain the secret."""
    try:
        secret = base64.b64decode(text.removeprefix(_PREFIX), validate=True) if text.startswith(_PREFIX) else b""
    except ValueError:
        secret = b""
    if not MIN_SECRET_BYTES <= len(secret) <= MAX_SECRET_BYTES:
        raise ValueError(f"must be {_PREFIX} and the base64 of {MIN_SECRET_BYTES} to {MAX_SECRET_BYTES} bytes")
    return secret


def signed_headers(secrets: Iterable[bytes], message_id: str, timestamp_s: int, *, body: bytes) -> dict[str, str]:
    """Returns the headers that sign a message with each secret. `message_id` must not contain a dot."""
    return {
        ID_HEADER: message_id,
        TIMESTAMP_HEADER: str(timestamp_s),
        SIGNATURE_HEADER: " ".join(_signatures(secrets, message_id, str(timestamp_s), body=body)),
    }


def is_genuine(secrets: Iterable[bytes], headers: Mapping[str, str], body: bytes, *, now_s: float) -> bool:
    """Whether a received message is signed with one of the secrets and is fresh. `headers` must ignore case."""
    message_id, timestamp = headers.get(ID_HEADER, ""), headers.get(TIMESTAMP_HEADER, "")
    if not message_id or not timestamp.isascii() or not timestamp.isdigit() or len(timestamp) > 12:
        return False
    if abs(now_s - int(timestamp)) > WINDOW_S:
        return False
    received = _raw(headers.get(SIGNATURE_HEADER, "")).split()
    expected = [signature.encode() for signature in _signatures(secrets, message_id, timestamp, body=body)]
    return any([hmac.compare_digest(valid, sent) for valid in expected for sent in received])


def _signatures(secrets: Iterable[bytes], message_id: str, timestamp: str, *, body: bytes) -> list[str]:
    signed = _raw(f"{message_id}.{timestamp}.") + body
    macs = (hmac.new(secret, signed, hashlib.sha256).digest() for secret in secrets)
    return [f"v1,{base64.b64encode(mac).decode()}" for mac in macs]


def _raw(header: str) -> bytes:
    """Bytes of a header as it was sent: aiohttp decodes bytes that aren't UTF-8 to lone surrogates."""
    return header.encode(errors="surrogateescape")
