"""Decide whether a new version of a record replaces the stored one. Pure."""

from __future__ import annotations

from enum import Enum

from services.common.rpc.errors import Conflict


class PutOutcome(Enum):
    """Result of putting a record."""

    STORED = "STORED"
    UNCHANGED = "UNCHANGED"
    SUPERSEDED = "SUPERSEDED"


def decide_put(stored_version: int | None, stored_digest: bytes | None, version: int, *, digest: bytes) -> PutOutcome:
    """Decide whether to store a record of this version and digest. A stored version of None means that nothing is stored.

    Raises Conflict if the same version is stored with different content.
    """
    if stored_version is None or version > stored_version:
        return PutOutcome.STORED
    if version < stored_version:
        return PutOutcome.SUPERSEDED
    if digest != stored_digest:
        raise Conflict(
            f"version {version} of this record is stored with different content; send a change with a greater version"
        )
    return PutOutcome.UNCHANGED
