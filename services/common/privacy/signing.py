"""The signature of a webhook: who knows the key can tell who sent a message, and that it is unaltered and fresh. Pure."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable, Mapping

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


WINDOW_S = 300
"""What is older, or from the future, is a replay."""


def is_genuine(keys: Iterable[bytes], headers: Mapping[str, str], body: bytes, now_s: float) -> bool:
    """Whether a message that came in is signed with one of the keys and is fresh."""
    delivery_id, timestamp = headers.get(ID_HEADER, ""), headers.get(TIMESTAMP_HEADER, "")
    if not delivery_id or not timestamp.isascii() or not timestamp.isdigit() or len(timestamp) > 12:
        return False
    if abs(now_s - int(timestamp)) > WINDOW_S:
        return False
    given = headers.get(SIGNATURE_HEADER, "").split(",")
    wanted = signatures(keys, int(timestamp), delivery_id, body).split(",")
    return any([hmac.compare_digest(one.encode(), other.encode()) for one in wanted for other in given])
