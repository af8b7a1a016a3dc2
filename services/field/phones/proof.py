"""Proof that a request comes from the phone that was enrolled: a signature by a key that can't leave the phone.

A copied cookie is worth nothing without the key, which the browser keeps and doesn't give out.
"""

from __future__ import annotations

import base64
import hashlib

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from services.common.rpc.errors import InvalidField

HEADER = "X-Proof"
MAX_SKEW_MS = 120_000
"""Maximum difference between the time in a proof and the server's clock, milliseconds. The app sets its clock by the server's."""
POINT_BYTES, SIGNATURE_BYTES = 65, 64


def public_key(text: str) -> ec.EllipticCurvePublicKey:
    """The key of a phone. Raises InvalidField unless it is base64url of an uncompressed point on P-256."""
    try:
        point = _decoded(text)
        if len(point) != POINT_BYTES:
            raise ValueError
        return ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), point)
    except ValueError:
        raise InvalidField("key", "must be base64url of an uncompressed point on P-256") from None


def statement(method: str, path: str, at_ms: int, *, body: bytes) -> bytes:
    """The text that a phone signs: the request with its time and the hash of its body."""
    return f"{method}\n{path}\n{at_ms}\n{hashlib.sha256(body).hexdigest()}".encode()


def time_of(header: str) -> int | None:
    """The time in a proof, milliseconds since 1970 UTC; None if the header is malformed."""
    text, _, _ = header.partition(".")
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 15 else None


def is_valid(header: str, key: str, signed: bytes) -> bool:
    """Whether a proof `MILLISECONDS.SIGNATURE` is a signature by a phone's key over a statement."""
    try:
        signature = _decoded(header.partition(".")[2])
        if len(signature) != SIGNATURE_BYTES:
            return False
        half = SIGNATURE_BYTES // 2
        pair = (int.from_bytes(signature[:half], "big"), int.from_bytes(signature[half:], "big"))
        public_key(key).verify(encode_dss_signature(*pair), signed, ec.ECDSA(hashes.SHA256()))
    except (InvalidSignature, InvalidField, ValueError):
        return False
    return True


def _decoded(text: str) -> bytes:
    return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
