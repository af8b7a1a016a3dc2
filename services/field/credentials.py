"""Who a request comes from: the proof of the phone's key, its cookie, and the owner of its token.

A proof is a signature by a key that can't leave the phone. A copied cookie is worth nothing without the key, which the browser keeps
and doesn't give out. A copied request is worth nothing either: its nonce is accepted once. A cookie is encrypted. The app's is bound to
the person's id, the device and the phone's own key, a unit page's to the unit, its shift and the key. The registry knows the owner of
a phone's token; its answer is remembered for a short time.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import grpc
import grpc.aio
from cryptography.exceptions import InvalidSignature
from cryptography.fernet import Fernet, InvalidToken, MultiFernet
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from services.common.errors import InvalidField, Unauthenticated, Unavailable
from services.field.mesh import WITHIN_S, FieldMesh
from tandem.registry.v1 import enrolment_pb2

PROOF_HEADER = "X-Proof"
MAX_SKEW_MS = 120_000
"""Maximum difference between the time in a proof and the server's clock, milliseconds. The app sets its clock by the server's."""
USED_INTERVAL_MS = 30_000
"""Proofs are remembered, and forgotten, by intervals of this length, milliseconds."""
POINT_BYTES, SIGNATURE_BYTES = 65, 64
_PROOF = re.compile(r"([0-9]{1,15})\.([A-Za-z0-9_-]{22})\.([A-Za-z0-9_=-]{1,100})", re.ASCII)
"""The time, 16 random bytes in base64url, and the signature."""


def public_key(text: str) -> ec.EllipticCurvePublicKey:
    """The key of a phone. Raises InvalidField unless it is base64url of an uncompressed point on P-256."""
    try:
        point = _decoded(text)
        if len(point) != POINT_BYTES:
            raise ValueError
        return ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), point)
    except ValueError:
        raise InvalidField("key", "must be base64url of an uncompressed point on P-256") from None


class RequestProof(NamedTuple):
    """A parsed proof: `MILLISECONDS.NONCE.SIGNATURE`."""

    at_ms: int
    """When the phone signed, milliseconds since 1970 UTC."""
    nonce: str
    """Random text of the request: a proof with the same one is a repetition."""
    signature: str

    def is_valid(self, key: str, signed: bytes) -> bool:
        """Whether the signature is one by a phone's key over a statement."""
        try:
            signature = _decoded(self.signature)
            if len(signature) != SIGNATURE_BYTES:
                return False
            half = SIGNATURE_BYTES // 2
            pair = (int.from_bytes(signature[:half], "big"), int.from_bytes(signature[half:], "big"))
            public_key(key).verify(encode_dss_signature(*pair), signed, ec.ECDSA(hashes.SHA256()))
        except (InvalidSignature, InvalidField, ValueError):
            return False
        return True


def parse_proof(header: str) -> RequestProof | None:
    """The proof in a header; None if it is malformed."""
    found = _PROOF.fullmatch(header)
    return RequestProof(int(found[1]), found[2], found[3]) if found else None


def statement(method: str, path: str, proof: RequestProof, *, body: bytes) -> bytes:
    """The text that a phone signs: the request with its time, its nonce and the hash of its body."""
    return f"{method}\n{path}\n{proof.at_ms}\n{proof.nonce}\n{hashlib.sha256(body).hexdigest()}".encode()


class UsedProofs:
    """Proofs that this process has accepted, so that nobody can repeat a phone's request within the time of its proof.

    A process that was restarted knows none of the earlier ones. So it refuses a proof from before its start like one of a wrong clock,
    and the app signs again. Several processes would accept a request once each; one runs. Memory is bounded by the phones' rate limits:
    16 bytes for each of at most 480 proofs of an enrolled phone.
    """

    def __init__(self, began_ms: int) -> None:
        self._began_ms = began_ms
        self._used: dict[int, set[bytes]] = {}
        """Hashes of proofs by the interval of their time."""

    def can_judge(self, proof: RequestProof, now_ms: int) -> bool:
        """Whether the time of a proof is one of which this process remembers every proof."""
        return abs(now_ms - proof.at_ms) <= MAX_SKEW_MS and proof.at_ms >= self._began_ms

    def holds(self, proof: RequestProof, key: str) -> bool:
        """Whether a proof of a phone's key was accepted before."""
        return _hash_of(proof, key) in self._used.get(proof.at_ms // USED_INTERVAL_MS, ())

    def add(self, proof: RequestProof, key: str, now_ms: int) -> None:
        """Remembers an accepted proof, and forgets those whose time is over."""
        interval = proof.at_ms // USED_INTERVAL_MS
        if interval not in self._used:
            oldest = (now_ms - MAX_SKEW_MS) // USED_INTERVAL_MS
            self._used = {start: used for start, used in self._used.items() if start >= oldest}
            self._used[interval] = set()
        self._used[interval].add(_hash_of(proof, key))


def _hash_of(proof: RequestProof, key: str) -> bytes:
    return hashlib.blake2b(f"{key}.{proof.nonce}".encode(), digest_size=16).digest()


def _decoded(text: str) -> bytes:
    return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)


class SealedCookies:
    """Seals and opens the contents of cookies. The newest key seals, and all open."""

    def __init__(self, keys: Sequence[bytes], lasts_s: int) -> None:
        self._fernet = MultiFernet([Fernet(base64.urlsafe_b64encode(key)) for key in reversed(keys)])
        self._lasts_s = lasts_s

    def seal(self, content: Mapping[str, str]) -> str:
        """The value of a cookie with this content."""
        return self._fernet.encrypt(json.dumps(content).encode()).decode()

    def open(self, cookie: str) -> dict[str, Any] | None:
        """The content of a cookie; None if the cookie is none of ours or too old."""
        try:
            content = json.loads(self._fernet.decrypt(cookie.encode(), ttl=self._lasts_s))
        except (InvalidToken, ValueError):
            return None
        return content if isinstance(content, dict) else None


PHONE_COOKIE = "app"
PHONE_COOKIE_LASTS_S = 180 * 86_400
"""Lifetime of the cookie, seconds. Then the phone is enrolled again."""


@dataclass(frozen=True, slots=True)
class PhoneSession:
    """An enrolled phone."""

    device_id: str
    person_id: str
    token: str
    """Token of the device. Only field and ingest see it, and the phone has it in encrypted form."""
    key: str
    """Public key of the phone, base64url of the uncompressed point on P-256. Its private key never leaves the phone."""


class PhoneCookies:
    """Seals and opens cookies. The newest key seals, and all open."""

    def __init__(self, keys: Sequence[bytes]) -> None:
        self._sealed = SealedCookies(keys, PHONE_COOKIE_LASTS_S)

    def seal(self, session: PhoneSession) -> str:
        """The value of a phone's cookie."""
        return self._sealed.seal(asdict(session))

    def open(self, cookie: str) -> PhoneSession | None:
        """The phone of a cookie; None if the cookie is none of ours or too old."""
        content = self._sealed.open(cookie)
        try:
            return None if content is None else PhoneSession(**content)
        except TypeError:
            return None


UNIT_COOKIE = "unit"
UNIT_COOKIE_LASTS_S = 2 * 86_400
"""Longest lifetime of the cookie, seconds. The shift ends it sooner."""
UNIT_COOKIE_PURPOSE = "unit page"
"""Part of each cookie, so that no other cookie of field opens as one of a unit."""


@dataclass(frozen=True, slots=True)
class UnitSession:
    """A unit's page on a phone."""

    leg: str
    """Leg that the unit belongs to: probation or police."""
    unit_id: str
    token: str
    """Token of the unit's shift. Only field and the leg see it, and the phone has it in encrypted form."""
    key: str
    """Public key of the phone, base64url of the uncompressed point on P-256. Its private key never leaves the phone."""

    @property
    def device_id(self) -> str:
        """Key of the page among those that are woken. No device's id has a slash."""
        return unit_device_id(self.leg, self.unit_id)


def unit_device_id(leg: str, unit_id: str) -> str:
    """Key of a unit's page among those that are woken."""
    return f"unit/{leg}/{unit_id}"


class UnitCookies:
    """Seals and opens the cookies of units' pages. The newest key seals, and all open."""

    def __init__(self, keys: Sequence[bytes]) -> None:
        self._sealed = SealedCookies(keys, UNIT_COOKIE_LASTS_S)

    def seal(self, session: UnitSession) -> str:
        """The value of a page's cookie."""
        return self._sealed.seal({"purpose": UNIT_COOKIE_PURPOSE, **asdict(session)})

    def open(self, cookie: str) -> UnitSession | None:
        """The page of a cookie; None if the cookie is none of a unit or too old."""
        content = self._sealed.open(cookie)
        if content is None or content.pop("purpose", "") != UNIT_COOKIE_PURPOSE:
            return None
        try:
            return UnitSession(**content)
        except TypeError:
            return None


FRESH_S = 30.0
"""Time for which an answer of the registry counts, seconds: a revoked token ends after this time."""
STALE_S = 900.0
"""Time for which the last answer counts while the registry is away, seconds: an outage mustn't keep notices from her."""
MAX_KNOWN = 100_000


class _Known(NamedTuple):
    phone: tuple[str, str]
    at_s: float


class KnownPhones:
    """Checks that the token of a phone is valid, and is of the device and person in its cookie."""

    def __init__(self, mesh: FieldMesh) -> None:
        self._mesh = mesh
        self._known: dict[bytes, _Known] = {}

    async def check(self, session: PhoneSession, *, is_doubted: bool = False) -> None:
        """Raises Unauthenticated if the phone's token has ended or is somebody else's, Unavailable if nobody can say.

        With `is_doubted`, the registry is asked although its last answer is fresh. That answer still counts while it is away.
        """
        hashed, now_s = hashlib.sha256(session.token.encode()).digest(), time.monotonic()
        known = self._known.get(hashed)
        if is_doubted or known is None or now_s - known.at_s > FRESH_S:
            known = await self._ask(session.token, hashed, known)
        if known.phone != (session.device_id, session.person_id):
            raise Unauthenticated("this phone's token is of another device")

    def forget(self, session: PhoneSession) -> None:
        """Drops what is known of a phone whose token has ended."""
        self._known.pop(hashlib.sha256(session.token.encode()).digest(), None)

    def forget_device(self, device_id: str) -> None:
        """Drops what is known of a device's phones, because another one is enrolled."""
        self._known = {hashed: known for hashed, known in self._known.items() if known.phone[0] != device_id}

    async def _ask(self, token: str, hashed: bytes, known: _Known | None) -> _Known:
        now_s = time.monotonic()
        try:
            found = await self._mesh.enrolments.FindPhone(
                enrolment_pb2.FindPhoneRequest(token=token), metadata=self._mesh.to_registry, timeout=WITHIN_S
            )
        except grpc.aio.AioRpcError as error:
            if error.code() in (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.INVALID_ARGUMENT):
                self._known.pop(hashed, None)
                raise Unauthenticated("this phone's token has ended") from None
            if known is not None and now_s - known.at_s < STALE_S:
                return known
            raise Unavailable("the registry can't say whose phone this is") from None
        self._known.pop(hashed, None)  # it moves to the end: the earliest answer is dropped first
        if len(self._known) >= MAX_KNOWN:
            self._known.pop(next(iter(self._known)))
        self._known[hashed] = _Known((found.device_id, found.person_id), now_s)
        return self._known[hashed]
