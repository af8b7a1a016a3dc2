"""Webhook signatures. A receiver with the key can verify a message's sender, its integrity and its freshness. Pure."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable, Mapping

ID_HEADER = "Tandem-Id"
"""Header with the delivery's id, which is the same at each attempt: the receiver's key for deduplication."""
TIMESTAMP_HEADER = "Tandem-Timestamp"
"""Header with the time of this attempt, seconds since 1970 UTC."""
SIGNATURE_HEADER = "Tandem-Signature"
"""Header with the signatures: `v1=<hex>` for each valid key, separated by commas."""


def signatures(keys: Iterable[bytes], timestamp_s: int, delivery_id: str, *, body: bytes) -> str:
    """Value of SIGNATURE_HEADER: an HMAC-SHA256 over `<timestamp>.<id>.<body>` for each key."""
    signed = f"{timestamp_s}.{delivery_id}.".encode() + body
    return ",".join(f"v1={hmac.new(key, signed, hashlib.sha256).hexdigest()}" for key in keys)


WINDOW_S = 300
"""Maximum difference between a message's timestamp and the receiver's clock, seconds. A greater difference counts as a replay."""


def is_genuine(keys: Iterable[bytes], headers: Mapping[str, str], body: bytes, *, now_s: float) -> bool:
    """Whether a received message is signed with one of the keys and is fresh."""
    delivery_id, timestamp = headers.get(ID_HEADER, ""), headers.get(TIMESTAMP_HEADER, "")
    if not delivery_id or not timestamp.isascii() or not timestamp.isdigit() or len(timestamp) > 12:
        return False
    if abs(now_s - int(timestamp)) > WINDOW_S:
        return False
    given = headers.get(SIGNATURE_HEADER, "").split(",")
    wanted = signatures(keys, int(timestamp), delivery_id, body=body).split(",")
    return any([hmac.compare_digest(valid.encode(), sent.encode()) for valid in wanted for sent in given])
