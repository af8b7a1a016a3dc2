"""Personal data at rest: encrypted records, and keyed hashes that tell equality without telling the value."""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from pathlib import Path

from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from services.common.errors import FailedPrecondition

KEY_BYTES = 32
_NONCE_BYTES = 12


class Vault:
    """Seals and opens records, and hashes what must be found again; each under a key of its own, derived from one."""

    def __init__(self, key: bytes) -> None:
        self._cipher = AESGCM(_derive(key, b"tandem registry: seal"))
        self._index_key = _derive(key, b"tandem registry: index")
        self._digest_key = _derive(key, b"tandem registry: digest")
        self.fingerprint = _derive(key, b"tandem registry: fingerprint")
        """Tells whether two vaults have the same key; of no use to anybody without it."""

    def seal(self, owner: str, plain: bytes) -> bytes:
        """Encrypts with AES-256-GCM. `owner` names the row, so that a sealed value can't be moved to another one."""
        nonce = os.urandom(_NONCE_BYTES)
        return nonce + self._cipher.encrypt(nonce, plain, owner.encode())

    def unseal(self, owner: str, sealed: bytes) -> bytes:
        """What was sealed for this owner. Raises cryptography's InvalidTag where it was altered or moved."""
        return self._cipher.decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], owner.encode())

    def index(self, value: str) -> bytes:
        """Keyed hash by which equal values are found: HMAC-SHA256."""
        return hmac.new(self._index_key, value.encode(), hashlib.sha256).digest()

    def digest(self, content: bytes) -> bytes:
        """Keyed hash of a whole record; a plain one would give a national number away to whoever tries them all."""
        return hmac.new(self._digest_key, content, hashlib.sha256).digest()


def _derive(key: bytes, use: bytes) -> bytes:
    return HKDF(algorithm=SHA256(), length=KEY_BYTES, salt=None, info=use).derive(key)


def read_or_make_key(path: Path) -> bytes:
    """The key in this file, which is made where there is none, readable by its owner only.

    Raises FailedPrecondition where the file holds something else.
    """
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        # Written whole under another name first: a crash must not leave half a key behind.
        draft = path.with_suffix(".draft")
        draft.unlink(missing_ok=True)
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(secrets.token_hex(KEY_BYTES))
            file.flush()
            os.fsync(file.fileno())
        draft.rename(path)
    try:
        key = bytes.fromhex(path.read_text().strip())
    except ValueError:
        key = b""
    if len(key) != KEY_BYTES:
        raise FailedPrecondition(f"{path.name} doesn't hold a key of {2 * KEY_BYTES} hex digits")
    return key
