"""Personal data at rest: records sealed each under a key of its own, and keyed hashes that tell equality without the value.

The keys of the records are wrapped by a ring of keys that stands outside the database. Destroying a record's key destroys
the record, wherever copies of the sealed bytes are; rotating the ring rewraps small keys and leaves the records alone. So it is
with the root, from which the keys of the hashes are derived: the first key that a database had, kept in it wrapped by the ring.
"""

from __future__ import annotations

import fcntl
import hmac
import os
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from services.common.rpc.errors import FailedPrecondition
from services.common.storage import durable

KEY_BYTES = 32
_NONCE_BYTES = 12
_RING_ID_CHARS = 16
_ROOT = "root"


@dataclass(frozen=True, slots=True)
class DataKey:
    """The key of one record, as it stands in the database."""

    ring: str
    """Id of the key of the ring that wraps it."""
    wrapped: bytes


class Vault:
    """Seals and opens records, and hashes what must be found again."""

    def __init__(self, *keys: bytes) -> None:
        """`keys` are the ring, the oldest first; the last one wraps what is new. The first one is the root of a new database."""
        self._ring = {_id_of(key): AESGCM(_derive(key, b"tandem registry: wrap")) for key in keys}
        self.rings = tuple(self._ring)
        """Ids of the keys of the ring, the oldest first."""
        self.current = self.rings[-1]
        """Id of the key that wraps what is new."""
        self._take_root(keys[0])

    def _take_root(self, root: bytes) -> None:
        self._root = root
        self._unkeyed = AESGCM(_derive(root, b"tandem registry: seal"))
        self._index_key = _derive(root, b"tandem registry: index")
        self._digest_key = _derive(root, b"tandem registry: digest")
        self.fingerprint = _derive(root, b"tandem registry: fingerprint")
        """Tells whether two vaults have the same root; of no use to anybody without it."""

    def wrapped_root(self) -> bytes:
        """The root as it stands in the database: id of the ring's current key, and the root wrapped by it."""
        wrapped = self._wrap(_ROOT, self._root)
        return wrapped.ring.encode() + wrapped.wrapped

    def open_root(self, wrapped: bytes) -> None:
        """Takes the root of a database. Raises FailedPrecondition where the ring lacks the key that wrapped it."""
        ring = wrapped[:_RING_ID_CHARS].decode()
        self._take_root(self._unwrap(_ROOT, DataKey(ring, wrapped[_RING_ID_CHARS:])))

    def make_key(self, owner: str) -> DataKey:
        """A new key for the record that `owner` names, wrapped by the current key of the ring."""
        return self._wrap(owner, os.urandom(KEY_BYTES))

    def rewrap(self, owner: str, key: DataKey) -> DataKey:
        """The same key, wrapped by the current key of the ring."""
        return self._wrap(owner, self._unwrap(owner, key))

    def _wrap(self, owner: str, plain: bytes) -> DataKey:
        return DataKey(self.current, _encrypt(self._ring[self.current], owner, plain))

    def _unwrap(self, owner: str, key: DataKey) -> bytes:
        if key.ring not in self._ring:
            raise FailedPrecondition(f"the key ring lacks the key {key.ring}: restore its line")
        return _decrypt(self._ring[key.ring], owner, key.wrapped)

    def seal(self, owner: str, plain: bytes, key: DataKey | None = None) -> bytes:
        """Encrypts with AES-256-GCM, without a key under one that comes from the root.

        `owner` names the row, so that a sealed value can't be moved to another one.
        """
        return _encrypt(self._cipher(owner, key), owner, plain)

    def unseal(self, owner: str, sealed: bytes, key: DataKey | None = None) -> bytes:
        """What was sealed for this owner under this key.

        Raises cryptography's InvalidTag where it was altered or moved, FailedPrecondition where the ring lacks a key.
        """
        return _decrypt(self._cipher(owner, key), owner, sealed)

    def _cipher(self, owner: str, key: DataKey | None) -> AESGCM:
        return self._unkeyed if key is None else AESGCM(self._unwrap(owner, key))

    def index(self, value: str) -> bytes:
        """Keyed hash by which equal values are found: HMAC-SHA256."""
        return hmac.digest(self._index_key, value.encode(), "sha256")

    def digest(self, content: bytes) -> bytes:
        """Keyed hash of a whole record; a plain one would give a national number away to whoever tries them all."""
        return hmac.digest(self._digest_key, content, "sha256")


def _derive(key: bytes, use: bytes) -> bytes:
    return HKDF(algorithm=SHA256(), length=KEY_BYTES, salt=None, info=use).derive(key)


def _id_of(key: bytes) -> str:
    return _derive(key, b"tandem registry: id")[:8].hex()


def _encrypt(cipher: AESGCM, owner: str, plain: bytes) -> bytes:
    nonce = os.urandom(_NONCE_BYTES)
    return nonce + cipher.encrypt(nonce, plain, owner.encode())


def _decrypt(cipher: AESGCM, owner: str, sealed: bytes) -> bytes:
    return cipher.decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], owner.encode())


def parse_keys(texts: Sequence[str]) -> tuple[bytes, ...]:
    """Keys written as hex digits. Raises ValueError where one is no key, where one is there twice, or none."""
    keys = tuple(bytes.fromhex(text) for text in texts)
    if not keys or any(len(key) != KEY_BYTES for key in keys) or len(set(keys)) < len(keys):
        raise ValueError("not a key ring")
    return keys


def read_or_make_keys(path: Path) -> tuple[bytes, ...]:
    """The keys in this file, one a line; where there is none it is made with one key, readable by its owner only.

    A ring is rotated by adding a line; those before it may go once nothing is wrapped by them any more. Raises
    FailedPrecondition where the file holds something else.
    """
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        # Of two processes that start together one makes it and the other waits.
        with path.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not path.exists():
                _make_keys(path)
    try:
        return parse_keys(path.read_text().split())
    except ValueError:
        raise FailedPrecondition(f"{path.name} doesn't hold keys of {2 * KEY_BYTES} hex digits, one a line") from None


def _make_keys(path: Path) -> None:
    durable.write(path, secrets.token_hex(KEY_BYTES).encode())
