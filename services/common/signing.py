"""The signature of a webhook: who knows the key can tell who sent a message, and that it is unaltered and fresh. Pure."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable

ID_HEADER = "Tandem-Id"
"""The same at each try: the key by which a receiver takes a message once."""
TIMESTAMP_HEADER = "Tandem-Timestamp"
"""When this try was made, seconds since 1970 UTC."""
SIGNATURE_HEADER = "Tandem-Signature"
"""`v1=<hex>` for each key that is valid, commas between them."""


def signatures(keys: Iterable[bytes], timestamp_s: int, delivery_id: str, body: bytes) -> str:
    """The value of SIGNATURE_HEADER: HMAC-SHA256 over `<timestamp>.<id>.<body>` with each key."""
    signed = f"{timestamp_s}.{delivery_id}.".encode() + body
    return ",".join(f"v1={hmac.new(key, signed, hashlib.sha256).hexdigest()}" for key in keys)
