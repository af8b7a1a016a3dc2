"""Encryption of personal data at rest: a separate key per record, and keyed hashes that test equality without the value.

The master keys wrap the keys of the records, and are kept in a key ring outside the database. Destroying a record's key destroys the
record, wherever copies of the encrypted bytes are. A rotation rewraps the small keys and doesn't touch the records. The keys of
the hashes are derived from the root key, the first master key that a database had. A rotation doesn't change the root key, so the
database stores the root key, wrapped by the current master key.
"""

from __future__ import annotations

import hmac
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from services.common.errors import FailedPrecondition
from services.common.privacy.secret_keys import KEY_BYTES

_NONCE_BYTES = 12
_RING_ID_CHARS = 16
_ROOT = "root"


class KeyOwner(NamedTuple):
    """Row with encrypted personal data, which has a key of its own."""

    table: str
    record_id: str

    @property
    def text(self) -> str:
        """The owner as text: the key of the row in data_keys, and authenticated with the encrypted data."""
        return f"{self.table}/{self.record_id}"

    @classmethod
    def parse(cls, text: str) -> KeyOwner:
        """The owner from its stored text."""
        table, _, record_id = text.partition("/")
        return cls(table, record_id)


@dataclass(frozen=True, slots=True)
class DataKey:
    """Wrapped key of one record, as the database stores it."""

    ring: str
    """Id of the master key that wraps this key."""
    wrapped: bytes


class Vault:
    """Encrypts and decrypts records, and hashes values for lookups."""

    def __init__(self, keys: Sequence[bytes]) -> None:
        """`keys` are the master keys, oldest first. The last one wraps new keys; the first one is the root key of a new database.

        Raises FailedPrecondition if a key is repeated: then it isn't clear which one is the last.
        """
        if len(set(keys)) < len(keys):
            raise FailedPrecondition("the key ring holds a key twice: remove one of its lines")
        self._ring = {_id_of(key): AESGCM(_derive(key, b"tandem registry: wrap")) for key in keys}
        self.rings = tuple(self._ring)
        """Ids of the master keys in the ring, oldest first."""
        self.current = self.rings[-1]
        """Id of the current master key, which wraps new keys."""
        self._set_root(keys[0])

    def _set_root(self, root: bytes) -> None:
        self._root = root
        self._unkeyed = AESGCM(_derive(root, b"tandem registry: seal"))
        self._index_key = _derive(root, b"tandem registry: index")
        self._digest_key = _derive(root, b"tandem registry: digest")
        self.fingerprint = _derive(root, b"tandem registry: fingerprint")
        """Fingerprint of the root key: equal in two vaults with the same root key. The fingerprint reveals nothing about the key."""

    def wrapped_root(self) -> bytes:
        """The root key as the database stores it: the id of the current master key, then the wrapped root key."""
        wrapped = self._wrap(_ROOT, self._root)
        return wrapped.ring.encode() + wrapped.wrapped

    def open_root(self, wrapped: bytes) -> None:
        """Use the root key of a database. Raises FailedPrecondition if the ring lacks the master key that wrapped the root key."""
        ring = wrapped[:_RING_ID_CHARS].decode()
        self._set_root(self._unwrap(_ROOT, DataKey(ring, wrapped[_RING_ID_CHARS:])))

    def make_key(self, owner: str) -> DataKey:
        """Create a key for the record that `owner` names, wrapped by the current master key."""
        return self._wrap(owner, os.urandom(KEY_BYTES))

    def rewrap(self, owner: str, key: DataKey) -> DataKey:
        """The key of a record, wrapped by the current master key."""
        return self._wrap(owner, self._unwrap(owner, key))

    def _wrap(self, owner: str, plain: bytes) -> DataKey:
        return DataKey(self.current, _encrypt(self._ring[self.current], owner, plain))

    def _unwrap(self, owner: str, key: DataKey) -> bytes:
        if key.ring not in self._ring:
            raise FailedPrecondition(f"the key ring lacks the key {key.ring}: restore its line")
        return _decrypt(self._ring[key.ring], owner, key.wrapped)

    def seal(self, owner: str, plain: bytes, key: DataKey | None = None) -> bytes:
        """Encrypt with AES-256-GCM. Without a `key`, a key derived from the root is used.

        `owner` names the row and is authenticated, so that an encrypted value can't be moved to another row.
        """
        return _encrypt(self._cipher(owner, key), owner, plain)

    def seal_with_new_key(self, owner: str, plain: bytes) -> tuple[DataKey, bytes]:
        """Encrypt as `seal` does, with a new key. Returns the wrapped key and the encrypted value."""
        key = os.urandom(KEY_BYTES)
        return self._wrap(owner, key), _encrypt(AESGCM(key), owner, plain)

    def unseal(self, owner: str, sealed: bytes, key: DataKey | None = None) -> bytes:
        """Decrypt a value that was sealed for this owner with this key.

        Raises cryptography's InvalidTag if the value was altered or moved, FailedPrecondition if the ring lacks the master
        key that wraps `key`.
        """
        return _decrypt(self._cipher(owner, key), owner, sealed)

    def _cipher(self, owner: str, key: DataKey | None) -> AESGCM:
        return self._unkeyed if key is None else AESGCM(self._unwrap(owner, key))

    def index(self, value: str) -> bytes:
        """Keyed hash of a value for lookups of equal values: HMAC-SHA256."""
        return hmac.digest(self._index_key, value.encode(), "sha256")

    def digest(self, content: bytes) -> bytes:
        """Keyed hash of a record. A plain hash would reveal a national number to an attacker who tries all numbers."""
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
