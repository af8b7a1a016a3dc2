"""Key that signs the console's sessions."""

from __future__ import annotations

import secrets
from pathlib import Path

from services.common.rpc.errors import FailedPrecondition
from services.common.storage import durable

KEY_BYTES = 32
"""Minimum length of the key, in bytes. With an empty key anybody could sign a cookie."""


def open_key(path: Path) -> bytes:
    """Returns the key, which is made at the first start, so that sessions outlive a restart.

    Raises FailedPrecondition where the file is too short.
    """
    if not path.exists():
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        durable.write_once(path, secrets.token_bytes(KEY_BYTES))
    key = path.read_bytes()
    if len(key) < KEY_BYTES:
        raise FailedPrecondition(
            f"{path} holds {len(key)} bytes, and a key of sessions has at least {KEY_BYTES}: "
            "remove the file; the next start makes a new key, and everybody signs in again"
        )
    return key
