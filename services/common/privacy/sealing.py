"""Contacts of protected persons, sealed for the warning leg alone: who has the public key seals, who has the private one opens.

HPKE (RFC 9180) in base mode with X25519, HKDF-SHA256 and ChaCha20-Poly1305. The person's id is in the info, so that what was
sealed for one person can't be moved to another.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite

from services.common.rpc.errors import FailedPrecondition, InvalidField
from services.common.storage import durable
from tandem.common.v1 import contact_pb2

PADDED_TO = 1024
"""Bytes of a contact before it is sealed: its length would tell a telephone number from a mail address."""
_SUITE = Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.CHACHA20_POLY1305)
_LENGTH_BYTES = 2


def seal(contact: contact_pb2.Contact, person_id: str, key: X25519PublicKey) -> bytes:
    """A contact as it stands in the log."""
    plain = contact.SerializeToString()
    padded = (len(plain).to_bytes(_LENGTH_BYTES, "big") + plain).ljust(PADDED_TO, b"\0")
    return _SUITE.encrypt(padded, key, info=_info(person_id))


def unseal(sealed: bytes, person_id: str, keys: Sequence[X25519PrivateKey]) -> contact_pb2.Contact:
    """The contact, by whichever of the keys opens it. Raises InvalidField where none does."""
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
    """The newest public key in a file of hex digits, the last line. Raises FailedPrecondition where it is none."""
    try:
        return X25519PublicKey.from_public_bytes(bytes.fromhex(path.read_text().split()[-1]))
    except (OSError, ValueError, IndexError):
        raise FailedPrecondition(f"{path.name} holds no public key of the warning leg") from None


def open_private_keys(path: Path) -> tuple[X25519PrivateKey, ...]:
    """The private keys in a file, hex digits, one a line, the oldest first; made at the first start, for its owner only.

    Beside it stand the public ones, in a file that ends in .pub. A key is changed by adding a line and telling the registry of the
    new public one; the older line may go once each case has been sent again. Raises FailedPrecondition where it is damaged.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        durable.write_once(path, f"{X25519PrivateKey.generate().private_bytes_raw().hex()}\n".encode())
    try:
        keys = tuple(X25519PrivateKey.from_private_bytes(bytes.fromhex(line)) for line in path.read_text().split())
    except ValueError:
        keys = ()
    if not keys:
        raise FailedPrecondition(f"{path.name} holds no private keys of 64 hex digits, one a line")
    public, text = public_file(path), "".join(f"{key.public_key().public_bytes_raw().hex()}\n" for key in keys)
    if not public.exists() or public.read_text() != text:
        durable.write(public, text.encode(), 0o644)
    return keys


def public_file(path: Path) -> Path:
    """Where the public keys stand that belong to a file of private ones."""
    return path.with_suffix(".pub")
