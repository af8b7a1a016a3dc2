"""Keyed hashes of an evaluator's state: of its checkpoints, and of the digests by which two evaluators compare what is open.

With a plain hash, who can write to the disk could put another state in a checkpoint's place and name it rightly, and who can read
DIGESTS could try out where somebody was until the hash fits. Both need the key, which is kept apart from disk and stream.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence
from pathlib import Path

from services.common.rpc.errors import FailedPrecondition

KEY_BYTES = 32
_ID_CHARS = 8


class StateKeys:
    """The keys of one mesh's evaluators, the newest last. A key is changed by adding a line at both evaluators, one after the other."""

    def __init__(self, keys: Sequence[bytes]) -> None:
        if not keys:
            raise ValueError("at least one key is needed")
        self._keys = tuple(keys)

    def checkpoint(self, encoded: bytes) -> str:
        """The hash of a checkpoint by the newest key, hex."""
        return _mac(self._keys[-1], b"checkpoint", encoded)

    def is_checkpoint(self, encoded: bytes, stated: str) -> bool:
        """Whether a checkpoint has this hash by one of the keys."""
        return any([hmac.compare_digest(_mac(key, b"checkpoint", encoded), stated) for key in self._keys])

    def digest(self, partition: int, sequence: int, encoded: bytes) -> bytes:
        """The digest of what is open after an entry, by the newest key: `id.hash`."""
        return _digest(self._keys[-1], partition, sequence, encoded).encode()

    def is_same(self, stated: bytes, partition: int, sequence: int, encoded: bytes) -> bool | None:
        """Whether another evaluator's digest is of the same; None where it is by a key that isn't known here."""
        for key in self._keys:
            if stated.startswith(f"{_id(key)}.".encode()):
                return hmac.compare_digest(stated, _digest(key, partition, sequence, encoded).encode())
        return None


def of_secret(secret: str) -> StateKeys:
    """Keys for development, from the key of the development tokens; both evaluators of a mesh on one machine have it."""
    return StateKeys([hashlib.sha256(b"tandem state\n" + secret.encode()).digest()])


def read(path: Path) -> StateKeys:
    """The keys in a file, 64 hex digits a line, the newest last. Raises FailedPrecondition where there are none."""
    try:
        keys = [bytes.fromhex(line) for line in path.read_text().split()]
    except (OSError, ValueError):
        keys = []
    if not keys or any(len(key) != KEY_BYTES for key in keys):
        raise FailedPrecondition(f"{path.name} holds no keys of {2 * KEY_BYTES} hex digits, one a line")
    return StateKeys(keys)


def _digest(key: bytes, partition: int, sequence: int, encoded: bytes) -> str:
    # Named by its place, so that the digest of one entry can't be shown again as that of another.
    return f"{_id(key)}.{_mac(key, f'digest {partition} {sequence}'.encode(), encoded)}"


def _id(key: bytes) -> str:
    return _mac(key, b"id", b"")[:_ID_CHARS]


def _mac(key: bytes, what: bytes, content: bytes) -> str:
    return hmac.new(key, b"tandem state " + what + b"\n" + content, hashlib.sha256).hexdigest()
