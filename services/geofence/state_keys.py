"""Keyed hashes of an evaluator's checkpoints, and of the digests by which two evaluators compare their open rings and incidents.

With a plain hash, an attacker who can write to the disk could replace a checkpoint and name the replacement correctly. An attacker who
can read DIGESTS could test guesses of somebody's position until the hash matches. With a keyed hash both attacks need the key, which is
stored neither on that disk nor in the stream.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence
from pathlib import Path

from services.common.privacy import key_files

_ID_CHARS = 8


class StateKeys:
    """Keys of one mesh's evaluators, the newest last. To change the key, add a line to the file of one evaluator, then of the other."""

    def __init__(self, keys: Sequence[bytes]) -> None:
        if not keys:
            raise ValueError("at least one key is needed")
        self._keys = tuple(keys)

    def checkpoint(self, encoded: bytes) -> str:
        """Hash of a checkpoint with the newest key, hex."""
        return _mac(self._keys[-1], b"checkpoint", encoded)

    def is_checkpoint(self, encoded: bytes, stated: str) -> bool:
        """Whether a hash is that of a checkpoint with any of the keys."""
        return any([hmac.compare_digest(_mac(key, b"checkpoint", encoded), stated) for key in self._keys])

    def digest(self, partition: int, sequence: int, encoded: bytes) -> bytes:
        """Digest of the open rings and incidents after an entry, with the newest key: `id.hash`."""
        return _digest(self._keys[-1], partition, sequence, encoded=encoded).encode()

    def is_same(self, stated: bytes, partition: int, sequence: int, *, encoded: bytes) -> bool | None:
        """Whether another evaluator's digest matches this encoding; None if it was made with an unknown key."""
        for key in self._keys:
            if stated.startswith(f"{_id(key)}.".encode()):
                return hmac.compare_digest(stated, _digest(key, partition, sequence, encoded=encoded).encode())
        return None


def of_secret(secret: str) -> StateKeys:
    """Keys for development, derived from the secret of the development tokens, which all evaluators on one machine share."""
    return StateKeys([hashlib.sha256(b"tandem state\n" + secret.encode()).digest()])


def read(path: Path) -> StateKeys:
    """Reads the keys of a file. Raises FailedPrecondition as `key_files.read_keys` does."""
    return StateKeys(key_files.read_keys(path))


def _digest(key: bytes, partition: int, sequence: int, *, encoded: bytes) -> str:
    # Partition and sequence are part of the hash, so that the digest of one entry can't be replayed as that of another.
    return f"{_id(key)}.{_mac(key, f'digest {partition} {sequence}'.encode(), encoded)}"


def _id(key: bytes) -> str:
    return _mac(key, b"id", b"")[:_ID_CHARS]


def _mac(key: bytes, purpose: bytes, content: bytes) -> str:
    return hmac.new(key, b"tandem state " + purpose + b"\n" + content, hashlib.sha256).hexdigest()
