"""Signed heads of the ledger."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from services.common.privacy.key_files import open_keys
from services.registry.ledger import chain
from services.registry.ledger.chain import LedgerHead


class Signer:
    """Signs heads with Ed25519, so that anybody with the public key can verify them."""

    def __init__(self, key: bytes) -> None:
        self._key = Ed25519PrivateKey.from_private_bytes(key)
        self.public_key = self._key.public_key().public_bytes_raw()

    def sign(self, head: LedgerHead) -> bytes:
        """The signature of a head."""
        return self._key.sign(chain.signed_text(head))


def open_signer(path: Path) -> Signer:
    """Open the signer with the key in this file. A missing file is created with a new key, readable by its owner only.

    The public key is written to `<name>.pub` in the same folder, for verification. A read-only folder must hold both files.
    """
    signer = Signer(open_keys(path)[0])
    public, text = path.with_suffix(".pub"), signer.public_key.hex()
    if not public.exists() or public.read_text() != text:
        public.write_text(text)
    return signer


@dataclass(frozen=True, slots=True)
class SignedHead:
    """A head with its signature."""

    head: LedgerHead
    signature: bytes

    def is_signed_by(self, public_key: bytes) -> bool:
        """Whether the signature is valid for this public key."""
        try:
            Ed25519PublicKey.from_public_bytes(public_key).verify(self.signature, chain.signed_text(self.head))
        except InvalidSignature:
            return False
        return True
