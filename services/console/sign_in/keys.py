"""The key of the console's sessions."""

from __future__ import annotations

import secrets
from pathlib import Path

from services.common.rpc.errors import FailedPrecondition
from services.common.storage import durable

KEY_BYTES = 32
"""At least; of a key of none anybody could sign a cookie."""


def open_key(path: Path) -> bytes:
    """The key, made at the first start: sessions outlive a restart. Raises FailedPrecondition where the file holds too little."""
    if not path.exists():
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        durable.write_once(path, secrets.token_bytes(KEY_BYTES))
    key = path.read_bytes()
    if len(key) < KEY_BYTES:
        raise FailedPrecondition(
            f"{path} holds {len(key)} bytes, and a key of sessions has at least {KEY_BYTES}: "
            "take it out, and the next start makes a new one; everybody signs in again"
        )
    return key
