"""Keys that sign the console's cookies."""

from __future__ import annotations

import secrets
from pathlib import Path

from services.common.rpc.errors import FailedPrecondition
from services.common.storage import durable

KEY_BYTES = 32


def open_keys(path: Path) -> tuple[bytes, ...]:
    """Returns the keys of a file of 64 hex digits a line, the newest last. The first start makes the file with one key.

    Raises FailedPrecondition if a line is no key: with an empty or short key, anybody could sign a cookie.
    """
    if not path.exists():
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        durable.write_once(path, f"{secrets.token_hex(KEY_BYTES)}\n".encode())
    try:
        keys = tuple(bytes.fromhex(line) for line in path.read_text("ascii").split())
    except ValueError:
        keys = ()
    if not keys or any(len(key) != KEY_BYTES for key in keys):
        raise FailedPrecondition(
            f"{path} must hold keys of {2 * KEY_BYTES} hex digits, one a line (example: openssl rand -hex {KEY_BYTES}). "
            "Or remove it: the next start makes a new key, and everybody signs in again"
        )
    return keys
