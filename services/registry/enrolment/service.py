"""Commands that issue an enrolment code, and exchange it for a device's token, each in one transaction."""

from __future__ import annotations

import hashlib
import secrets
from typing import NamedTuple

from services.common.clock import MeshClock
from services.common.observability.telemetry import logger
from services.common.rpc.errors import FailedPrecondition, NotFound, PermissionDenied
from services.registry.device_tokens.service import DeviceTokens, device_of
from services.registry.domain import Device
from services.registry.enrolment import domain
from services.registry.enrolment.domain import EnrolledDevice, EnrolmentCode
from services.registry.reconciliation.domain import Agency
from services.registry.transactions import Transactions
from services.registry.unit_of_work import UnitOfWork
from services.registry.working_set.working_set import WorkingSet

DEVICE_ENDED = "DEVICE_ENDED"
"""Code of the refusal of a device that is out of service."""


class IssuedCode(NamedTuple):
    """A code, which is shown once, and the end of its validity, milliseconds of mesh time."""

    code: str
    expires_ms: int


class EnrolledPhone(NamedTuple):
    """A phone, and its token, which is shown once."""

    token: str
    phone: EnrolledDevice


class Enrolments:
    """Enrols the phones of protected persons."""

    def __init__(self, transactions: Transactions, tokens: DeviceTokens, clock: MeshClock) -> None:
        self._transactions, self._tokens, self._clock = transactions, tokens, clock

    async def issue(self, device_id: str, valid_for_s: int, *, by: str) -> IssuedCode:
        """Issue a code for a protective device. Only its hash is stored.

        Raises NotFound, PermissionDenied for a tag, FailedPrecondition if the device is out of service.
        """
        code = domain.written([secrets.randbelow(len(domain.ALPHABET)) for _ in range(domain.CODE_LENGTH)])
        now_ms = self._clock.now_ms()
        stored = EnrolmentCode(
            sha256=_hash(domain.parse(code)),
            device_id=device_id,
            expires_ms=now_ms + 1000 * valid_for_s,
            used_ms=None,
            issued_by=by,
        )
        async with self._transactions.changing() as work:
            await self._phone_in_service(work, device_id)
            await work.enrolments.add(stored, now_ms)
        logger().info("enrolment_code_issued", device_id=device_id, by=by)
        return IssuedCode(code, stored.expires_ms)

    async def enrol(self, code: str) -> EnrolledPhone:
        """Exchange a code for a token, and end the device's earlier tokens.

        Raises NotFound if the code is unknown, FailedPrecondition if it was used or has expired, or if the device is out of service.
        """
        sha256, now_ms = _hash(code), self._clock.now_ms()
        async with self._transactions.changing() as work:
            stored = domain.check(await work.enrolments.find(sha256), now_ms)
            phone = await self._phone_in_service(work, stored.device_id)
            if not await work.enrolments.use(sha256, now_ms):
                raise FailedPrecondition("code: was used at this moment by another phone", code="CODE_USED")
            token, command = self._tokens.issuing(Agency.NPA, stored.device_id, keep_older_for_s=0)
            await work.change(command)
        logger().info("phone_enrolled", device_id=stored.device_id)
        return EnrolledPhone(token, phone)

    async def find(self, token: str) -> EnrolledDevice:
        """The phone of a token. Raises NotFound if the token has ended or was never issued, or the device is out of service."""
        async with self._transactions.reading() as work:
            hashed = hashlib.sha256(token.encode()).digest()
            phone = await work.enrolments.phone_of_token(hashed, self._clock.now_ms())
        if phone is None:
            raise NotFound("token: no phone in service has it: enrol the phone by another code")
        return phone

    async def _phone_in_service(self, work: UnitOfWork, device_id: str) -> EnrolledDevice:
        """The device with its person. Raises NotFound, PermissionDenied for a tag, FailedPrecondition if it is out of service."""

        def read(working: WorkingSet) -> EnrolledDevice | None:
            device = device_of(working, Agency.NPA, device_id)
            if not isinstance(device, Device):
                raise PermissionDenied("device_id: is no protective device")
            return EnrolledDevice(device_id, device.person_id) if self._tokens.is_in_service(working, device) else None

        phone = await work.change(read)
        if phone is None:
            raise FailedPrecondition("device_id: this device is out of service", code=DEVICE_ENDED)
        return phone


def _hash(code: str) -> bytes:
    return hashlib.sha256(b"enrolment " + code.encode()).digest()
