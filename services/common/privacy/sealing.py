"""Encryption of protected persons' contacts for the warning leg. The leg's public key seals a contact, and only its private key opens
the contact.

The scheme is HPKE (RFC 9180) in base mode with X25519, HKDF-SHA256 and ChaCha20-Poly1305. The person's id is part of HPKE's info,
so that a sealed contact can't be moved to another person.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite

from services.common.privacy.key_files import open_keys
from services.common.rpc.errors import FailedPrecondition, InvalidField
from services.common.storage import durable
from tandem.common.v1 import contact_pb2

PADDED_TO = 1024
"""Size to which a contact is padded before sealing, bytes. Otherwise the length would reveal whether it is a phone number or an email
address."""
_SUITE = Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.CHACHA20_POLY1305)
_LENGTH_BYTES = 2


def seal(contact: contact_pb2.Contact, person_id: str, key: X25519PublicKey) -> bytes:
    """Seals a person's contact for the warning leg, as it is stored in the log."""
    plain = contact.SerializeToString()
    padded = (len(plain).to_bytes(_LENGTH_BYTES, "big") + plain).ljust(PADDED_TO, b"\0")
    return _SUITE.encrypt(padded, key, info=_info(person_id))


def unseal(sealed: bytes, person_id: str, keys: Sequence[X25519PrivateKey]) -> contact_pb2.Contact:
    """Opens a person's sealed contact with the first private key that fits. Raises InvalidField if none fits."""
    for key in keys:
        try:
            padded = _SUITE.decrypt(sealed, key, info=_info(person_id))
        except (InvalidTag, ValueError):
            continue
        length = int.from_bytes(padded[:_LENGTH_BYTES], "big")
        return contact_pb2.Contact.FromString(padded[_LENGTH_BYTES : _LENGTH_BYTES + length])
    raise InvalidField("sealed_contact", "isn't sealed for this person and a key of this leg")


def _info(person_id: str) -> bytes:
    return b"tandem contact\n" + person_id.encode()


def read_public_key(path: Path) -> X25519PublicKey:
    """Reads the newest public key from a file of hex digits, which is its last line. Raises OSError, and FailedPrecondition if it isn't
    a key."""
    try:
        return X25519PublicKey.from_public_bytes(bytes.fromhex(path.read_text().split()[-1]))
    except (ValueError, IndexError):
        raise FailedPrecondition(
            f"{path} holds no public key of the warning leg: its last line must have 64 hex digits"
        ) from None


def open_private_keys(path: Path) -> tuple[X25519PrivateKey, ...]:
    """Reads private keys from a file of hex digits, one per line, oldest first. At the first start it creates the file, private to
    its owner.

    The public keys are written to a file with the suffix .pub in the same folder. To change the key, add a line and give the new
    public key to the registry. Remove the older line once each case has been sent again. Raises FailedPrecondition if the file is
    damaged.
    """
    path.parent.mkdir(parents=True, exist_ok=True)  # the registry may read the public keys in it
    keys = tuple(X25519PrivateKey.from_private_bytes(key) for key in open_keys(path))
    public, text = public_file(path), "".join(f"{key.public_key().public_bytes_raw().hex()}\n" for key in keys)
    if not public.exists() or public.read_text() != text:
        durable.write(public, text.encode(), 0o644)
    return keys


def public_file(path: Path) -> Path:
    """Path of the file with the public keys that belong to a file of private keys."""
    return path.with_suffix(".pub")
