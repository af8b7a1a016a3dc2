"""Ids that are hashes of their cause, ids that consist of several parts, the ids of exercises, and the hash that assigns wearers to
partitions. Pure."""

from __future__ import annotations

import hashlib
from typing import NamedTuple

INCIDENT_IDS = "incident-"
"""Prefix of the ids of incidents."""
EXERCISE_IDS = "exercise."
"""Prefix of the ids of synthetic records for exercises. Ids from the agencies must not have this prefix."""
CANARY_IDS = f"{EXERCISE_IDS}canary."
"""Prefix of the ids of a canary's records."""
_FNV_OFFSET = 0x811C9DC5
_FNV_PRIME = 0x01000193


def hash_id(kind: str, *cause: str | int) -> str:
    """Derives an id such as `alert-4f0c...` from its cause: `kind` and 20 hex digits (80 bits). The same cause gives the same id
    everywhere.

    The parts are length-prefixed, so that ("ab", "c") and ("a", "bc") differ.
    """
    texts = [str(part).encode() for part in cause]
    content = b"".join([len(text).to_bytes(4, "big") + text for text in texts])
    return f"{kind}-{hashlib.blake2b(content, digest_size=10, person=kind.encode()[:16]).hexdigest()}"


class PlaceId(NamedTuple):
    """A protected place as the destination of an alert, which is written `order/place`. A person's id has no slash."""

    order_id: str
    place_id: str

    @classmethod
    def parse(cls, subject_id: str) -> PlaceId | None:
        """Parses a destination; None if it isn't a place."""
        order_id, slash, place_id = subject_id.partition("/")
        return cls(order_id, place_id) if slash else None


def partition_of(wearer_id: str, partitions: int) -> int:
    """Partition of a wearer: FNV-1a-32 of the wearer's id modulo `partitions`, as nats-server computes it."""
    value = _FNV_OFFSET
    for byte in wearer_id.encode():
        value = ((value ^ byte) * _FNV_PRIME) & 0xFFFFFFFF
    return value % partitions
