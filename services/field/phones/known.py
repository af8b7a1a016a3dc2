"""Owners of phones' tokens, by the registry, remembered for a short time."""

from __future__ import annotations

import hashlib
import time
from typing import NamedTuple

import grpc
import grpc.aio

from services.common.rpc.errors import Unauthenticated, Unavailable
from services.field.mesh import WITHIN_S, FieldMesh
from services.field.phones.sessions import PhoneSession
from tandem.registry.v1 import enrolment_pb2

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
