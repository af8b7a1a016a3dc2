"""Secret keys: their files, the sealing of contacts for the warning leg, and the signing of messages to receivers.

A file of keys has 64 hex digits a line. An appended line becomes the key in use; the lines before it open what they sealed.

The warning leg's public key seals a contact, and only its private key opens it. The scheme is HPKE (RFC 9180) in base mode with X25519,
HKDF-SHA256 and ChaCha20-Poly1305. The person's id is part of HPKE's info, so that a sealed contact can't be moved to another person.

Messages are signed after Standard Webhooks 1.0.0 (https://www.standardwebhooks.com), by symmetric signatures (`v1`) only. A receiver
that knows the secret can verify a message's sender, its integrity and its freshness, with any library of the standard.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite

from services.common.errors import FailedPrecondition, InvalidField
from services.common.storage import stored_files
from tandem.common.v1 import contact_pb2

# ── files of keys ─────────────────────────────────────────────────────────────────────────────────────────────────────

KEY_BYTES = 32


def open_keys(path: Path, advice: str = "") -> tuple[bytes, ...]:
    """Returns the keys of a file, the newest last. The first start makes the file with one key, readable by its owner only.

    Raises FailedPrecondition as `read_keys` does.
    """
    make_key_once(path)
    return read_keys(path, advice)


def make_key_once(path: Path) -> None:
    """Makes a file with one key, and its folder, unless the file exists. Processes that start together make one file."""
    if not path.exists():
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        stored_files.write_once(path, f"{secrets.token_hex(KEY_BYTES)}\n".encode())


def read_keys(path: Path, advice: str = "") -> tuple[bytes, ...]:
    """Returns the keys of a file, the newest last.

    Raises FailedPrecondition if the file can't be read, and, with `advice`, if it has no line or a line that is no key: what an empty
    or short key signs, anybody could sign.
    """
    try:
        return parse_keys(path.read_text("ascii").split())
    except OSError as error:
        raise FailedPrecondition(f"{path} can't be read: {error.strerror}") from error
    except ValueError:
        raise FailedPrecondition(
            f"{path} must hold keys of {2 * KEY_BYTES} hex digits, one a line (example: openssl rand -hex {KEY_BYTES})"
            + (f". {advice}" if advice else "")
        ) from None


def parse_keys(texts: Iterable[str]) -> tuple[bytes, ...]:
    """Parses keys from hex digits. Raises ValueError if a key is malformed, or if there is none."""
    keys = tuple(bytes.fromhex(text) for text in texts)
    if not keys or any(len(key) != KEY_BYTES for key in keys):
        raise ValueError("not keys")
    return keys


# ── contacts that only the warning leg opens ──────────────────────────────────────────────────────────────────────────

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
        stored_files.write(public, text.encode(), 0o644)
    return keys


def public_file(path: Path) -> Path:
    """Path of the file with the public keys that belong to a file of private keys."""
    return path.with_suffix(".pub")


# ── messages to receivers, signed ─────────────────────────────────────────────────────────────────────────────────────

ID_HEADER = "webhook-id"
"""Header with the message's id, which is the same at each attempt: the receiver's key for deduplication."""
TIMESTAMP_HEADER = "webhook-timestamp"
"""Header with the time of this attempt, seconds since 1970 UTC."""
SIGNATURE_HEADER = "webhook-signature"
"""Header with the signatures: `v1,<base64>` for each valid secret, separated by spaces."""
MIN_SECRET_BYTES, MAX_SECRET_BYTES = 24, 64
WINDOW_S = 300
"""Maximum difference between a message's timestamp and the receiver's clock, seconds, as in the libraries of the standard. A greater
difference counts as a replay."""
_PREFIX = "whsec_"


def parse_secret(text: str) -> bytes:
    """Decodes a secret: `whsec_` and the base64 of 24 to 64 bytes. Raises ValueError; the error doesn't contain the secret."""
    try:
        secret = base64.b64decode(text.removeprefix(_PREFIX), validate=True) if text.startswith(_PREFIX) else b""
    except ValueError:
        secret = b""
    if not MIN_SECRET_BYTES <= len(secret) <= MAX_SECRET_BYTES:
        raise ValueError(f"must be {_PREFIX} and the base64 of {MIN_SECRET_BYTES} to {MAX_SECRET_BYTES} bytes")
    return secret


def signed_headers(secrets: Iterable[bytes], message_id: str, timestamp_s: int, *, body: bytes) -> dict[str, str]:
    """Returns the headers that sign a message with each secret. `message_id` must not contain a dot."""
    return {
        ID_HEADER: message_id,
        TIMESTAMP_HEADER: str(timestamp_s),
        SIGNATURE_HEADER: " ".join(_signatures(secrets, message_id, str(timestamp_s), body=body)),
    }


def is_genuine(secrets: Iterable[bytes], headers: Mapping[str, str], body: bytes, *, now_s: float) -> bool:
    """Whether a received message is signed with one of the secrets and is fresh. `headers` must ignore case."""
    message_id, timestamp = headers.get(ID_HEADER, ""), headers.get(TIMESTAMP_HEADER, "")
    if not message_id or not timestamp.isascii() or not timestamp.isdigit() or len(timestamp) > 12:
        return False
    if abs(now_s - int(timestamp)) > WINDOW_S:
        return False
    received = _raw(headers.get(SIGNATURE_HEADER, "")).split()
    expected = [signature.encode() for signature in _signatures(secrets, message_id, timestamp, body=body)]
    return any([hmac.compare_digest(valid, sent) for valid in expected for sent in received])


def _signatures(secrets: Iterable[bytes], message_id: str, timestamp: str, *, body: bytes) -> list[str]:
    signed = _raw(f"{message_id}.{timestamp}.") + body
    macs = (hmac.new(secret, signed, hashlib.sha256).digest() for secret in secrets)
    return [f"v1,{base64.b64encode(mac).decode()}" for mac in macs]


def _raw(header: str) -> bytes:
    """Bytes of a header as it was sent: aiohttp decodes bytes that aren't UTF-8 to lone surrogates."""
    return header.encode(errors="surrogateescape")
