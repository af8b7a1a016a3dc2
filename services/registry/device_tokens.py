"""Tokens with which phones report, and the codes by which her phone gets one: issue, exchange and revoke.

Each command is one transaction with the new route of the device.
"""

from __future__ import annotations

import hashlib
import logging
import secrets
from collections.abc import Callable
from typing import Any, NamedTuple

import grpc.aio
import sqlalchemy as sa

from services.common import fields, times
from services.common.clock import MeshClock
from services.common.errors import FailedPrecondition, InvalidField, NotFound, PermissionDenied
from services.common.observability.telemetry import logger
from services.common.rpc import server
from services.common.rpc.identity import Role
from services.common.running import completed
from services.registry.cases.effects import Effects
from services.registry.cases.service import CaseService
from services.registry.domain.device_tokens import (
    ALPHABET,
    CODE_LENGTH,
    MAX_KEEP_OLDER_S,
    DeviceToken,
    EnrolledDevice,
    EnrolmentCode,
    check_code,
    code_valid_for_s,
    parse_code,
    rotated_tokens,
    valid_tokens,
    written_code,
)
from services.registry.domain.reconciliation import Agency
from services.registry.domain.records import Device, Tag
from services.registry.records.kinds import DEVICES, TAGS
from services.registry.tables import device_tokens, devices, enrolment_codes
from services.registry.transactions import Transactions
from services.registry.unit_of_work import Repository, UnitOfWork
from services.registry.working_set.working_set import WorkingSet
from tandem.registry.v1 import device_token_pb2, device_token_pb2_grpc, enrolment_pb2, enrolment_pb2_grpc

TOKEN_BYTES = 32


class DeviceTokens:
    """Issues and revokes the tokens with which devices report directly."""

    def __init__(self, transactions: Transactions, cases: CaseService, clock: MeshClock) -> None:
        self._transactions = transactions
        self._cases = cases
        self._clock = clock

    async def issue(self, agency: Agency, device_id: str, keep_older_for_s: int) -> str:
        """Issue a token. Only its hash is stored.

        Raises NotFound, PermissionDenied if the device belongs to the other agency, FailedPrecondition if it is out of service.
        """
        token, command = self.issuing(agency, device_id, keep_older_for_s)
        await self._transactions.change(command)
        return token

    def issuing(
        self, agency: Agency, device_id: str, keep_older_for_s: int
    ) -> tuple[str, Callable[[WorkingSet], None]]:
        """A new token, and the command that issues it as a part of a transaction. It raises the errors of `issue`."""
        token = secrets.token_urlsafe(TOKEN_BYTES)
        hashed = hashlib.sha256(token.encode()).digest()

        def apply(working: WorkingSet) -> None:
            device = device_of(working, agency, device_id)
            effects = self._cases.begin_routes(working, [device])
            if effects.is_revoked(device):
                raise FailedPrecondition("device_id: this device is out of service, so it can't get a token")
            older = effects.found.tokens.get(device_id, [])
            tokens = rotated_tokens(older, hashed, self._clock.now_ms(), keep_older_for_s=keep_older_for_s)
            self._apply(working, effects, device, tokens=tokens, event="device_token_issued")

        return token, apply

    def is_in_service(self, working: WorkingSet, device: Tag | Device) -> bool:
        """Whether a device may get a token: neither its own record nor that of its wearer or person has ended."""
        return not self._cases.begin_routes(working, [device]).is_revoked(device)

    async def revoke(self, agency: Agency, device_id: str) -> int:
        """Revoke all tokens of a device; returns how many were valid. Raises NotFound, PermissionDenied."""

        def apply(working: WorkingSet) -> int:
            device = device_of(working, agency, device_id)
            effects = self._cases.begin_routes(working, [device])
            valid = valid_tokens(effects.found.tokens.get(device_id, []), self._clock.now_ms())
            self._apply(working, effects, device, tokens=[], event="device_tokens_revoked")
            return len(valid)

        return await self._transactions.change(apply)

    def _apply(
        self, working: WorkingSet, effects: Effects, device: Tag | Device, *, tokens: list[DeviceToken], event: str
    ) -> None:
        effects.tokens[device.device_id] = tokens
        effects.send_route(device)
        effects.log(logging.INFO, event, device_id=device.device_id)
        self._cases.apply(working, effects)


def device_of(working: WorkingSet, agency: Agency, device_id: str) -> Tag | Device:
    """An agency's tag or device. Raises NotFound, PermissionDenied if it belongs to the other agency."""
    tag, device = working.records.find(TAGS, device_id), working.records.find(DEVICES, device_id)
    mine, other = (tag, device) if agency is Agency.MOJ else (device, tag)
    record = mine.open() if mine else None
    if record is None:
        if other:
            raise PermissionDenied("device_id: belongs to the other agency")
        raise NotFound("device_id: no such device")
    return record


_Context = grpc.aio.ServicerContext[Any, Any]


class DeviceTokenServicer(device_token_pb2_grpc.DeviceTokenServiceServicer):
    """Parses requests of the DeviceTokenService, runs the commands and builds the responses."""

    def __init__(self, tokens: DeviceTokens) -> None:
        self._tokens = tokens

    async def IssueDeviceToken(
        self, request: device_token_pb2.IssueDeviceTokenRequest, context: _Context
    ) -> device_token_pb2.IssueDeviceTokenResponse:
        device_id = fields.required_id("device_id", request.device_id)
        if request.keep_older_for_s > MAX_KEEP_OLDER_S:
            raise InvalidField("keep_older_for_s", f"must be from 0 to {MAX_KEEP_OLDER_S}")
        token = await completed(self._tokens.issue(_agency(), device_id, request.keep_older_for_s))
        return device_token_pb2.IssueDeviceTokenResponse(token=token)

    async def RevokeDeviceTokens(
        self, request: device_token_pb2.RevokeDeviceTokensRequest, context: _Context
    ) -> device_token_pb2.RevokeDeviceTokensResponse:
        device_id = fields.required_id("device_id", request.device_id)
        revoked = await completed(self._tokens.revoke(_agency(), device_id))
        return device_token_pb2.RevokeDeviceTokensResponse(revoked=revoked)


def _agency() -> Agency:
    return Agency.MOJ if server.caller().role == Role.ROLE_MOJ_RECORDS else Agency.NPA


KEPT_MS = 30 * 86_400_000
"""Time for which an expired code is kept, milliseconds, so that its answer is that it has expired, and not that it is unknown."""


class EnrolmentRepository(Repository):
    """The enrolment codes as one transaction sees them."""

    async def find(self, sha256: bytes) -> EnrolmentCode | None:
        """The code with a hash; None if there is none."""
        rows = await self._rows(sa.select(enrolment_codes).where(enrolment_codes.c.sha256 == sha256))
        return EnrolmentCode(**rows[0]._mapping) if rows else None

    async def add(self, code: EnrolmentCode, now_ms: int) -> None:
        """Store a code. It ends the device's earlier codes. Codes that expired long ago are deleted."""
        earlier = (enrolment_codes.c.device_id == code.device_id) & enrolment_codes.c.used_ms.is_(None)
        await self._connection.execute(sa.update(enrolment_codes).where(earlier).values(used_ms=now_ms))
        old = enrolment_codes.c.expires_ms < now_ms - KEPT_MS
        await self._connection.execute(sa.delete(enrolment_codes).where(old))
        values = {column.name: getattr(code, column.name) for column in enrolment_codes.c}
        await self._connection.execute(sa.insert(enrolment_codes).values(values))

    async def use(self, sha256: bytes, now_ms: int) -> bool:
        """Mark a code as used; false if another transaction was faster."""
        unused = (enrolment_codes.c.sha256 == sha256) & enrolment_codes.c.used_ms.is_(None)
        marked = await self._connection.execute(sa.update(enrolment_codes).where(unused).values(used_ms=now_ms))
        return marked.rowcount > 0

    async def phone_of_token(self, sha256: bytes, now_ms: int) -> EnrolledDevice | None:
        """The protective device with a valid token of this hash; None if there is none in service."""
        valid = device_tokens.c.valid_until_ms.is_(None) | (device_tokens.c.valid_until_ms > now_ms)
        query = (
            sa.select(devices.c.device_id, devices.c.person_id)
            .select_from(devices.join(device_tokens, device_tokens.c.device_id == devices.c.device_id))
            .where(device_tokens.c.sha256 == sha256, valid, devices.c.removed_at_ms.is_(None))
        )
        rows = await self._rows(query)
        return EnrolledDevice(rows[0].device_id, rows[0].person_id) if rows else None


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
        self._transactions = transactions
        self._tokens = tokens
        self._clock = clock

    async def issue(self, device_id: str, valid_for_s: int, *, by: str) -> IssuedCode:
        """Issue a code for a protective device. Only its hash is stored.

        Raises NotFound, PermissionDenied for a tag, FailedPrecondition if the device is out of service.
        """
        code = written_code([secrets.randbelow(len(ALPHABET)) for _ in range(CODE_LENGTH)])
        now_ms = self._clock.now_ms()
        stored = EnrolmentCode(
            sha256=_hash(parse_code(code)),
            device_id=device_id,
            expires_ms=now_ms + 1000 * valid_for_s,
            used_ms=None,
            issued_by=by,
        )
        async with self._transactions.changing() as work:
            await self._phone_in_service(work, device_id)
            await EnrolmentRepository(work.connection).add(stored, now_ms)
        logger().info("enrolment_code_issued", device_id=device_id, by=by)
        return IssuedCode(code, stored.expires_ms)

    async def enrol(self, code: str) -> EnrolledPhone:
        """Exchange a code for a token, and end the device's earlier tokens.

        Raises NotFound if the code is unknown, FailedPrecondition if it was used or has expired, or if the device is out of service.
        """
        sha256, now_ms = _hash(code), self._clock.now_ms()
        async with self._transactions.changing() as work:
            codes = EnrolmentRepository(work.connection)
            stored = check_code(await codes.find(sha256), now_ms)
            phone = await self._phone_in_service(work, stored.device_id)
            if not await codes.use(sha256, now_ms):
                raise FailedPrecondition("code: was used at this moment by another phone", code="CODE_USED")
            token, command = self._tokens.issuing(Agency.NPA, stored.device_id, keep_older_for_s=0)
            await self._transactions.change_within(work, command)
        logger().info("phone_enrolled", device_id=stored.device_id)
        return EnrolledPhone(token, phone)

    async def find(self, token: str) -> EnrolledDevice:
        """The phone of a token. Raises NotFound if the token has ended or was never issued, or the device is out of service."""
        async with self._transactions.reading() as work:
            hashed = hashlib.sha256(token.encode()).digest()
            phone = await EnrolmentRepository(work.connection).phone_of_token(hashed, self._clock.now_ms())
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

        phone = await self._transactions.change_within(work, read)
        if phone is None:
            raise FailedPrecondition("device_id: this device is out of service", code=DEVICE_ENDED)
        return phone


def _hash(code: str) -> bytes:
    return hashlib.sha256(b"enrolment " + code.encode()).digest()


MAX_TOKEN_LENGTH = 64


class EnrolmentServicer(enrolment_pb2_grpc.EnrolmentServiceServicer):
    """Parses requests of the EnrolmentService, runs the commands and builds the responses."""

    def __init__(self, enrolments: Enrolments) -> None:
        self._enrolments = enrolments

    async def IssueEnrolmentCode(
        self, request: enrolment_pb2.IssueEnrolmentCodeRequest, context: _Context
    ) -> enrolment_pb2.IssueEnrolmentCodeResponse:
        device_id = fields.required_id("device_id", request.device_id)
        valid_for_s = code_valid_for_s(request.valid_for_s)
        issuing = self._enrolments.issue(device_id, valid_for_s, by=server.caller().spiffe_id)
        issued = await completed(issuing)
        return enrolment_pb2.IssueEnrolmentCodeResponse(
            code=issued.code, expires_at=times.to_timestamp(issued.expires_ms)
        )

    async def Enrol(self, request: enrolment_pb2.EnrolRequest, context: _Context) -> enrolment_pb2.EnrolResponse:
        enrolled = await completed(self._enrolments.enrol(parse_code(request.code)))
        return enrolment_pb2.EnrolResponse(token=enrolled.token, **enrolled.phone._asdict())

    async def FindPhone(
        self, request: enrolment_pb2.FindPhoneRequest, context: _Context
    ) -> enrolment_pb2.FindPhoneResponse:
        if not 0 < len(request.token) <= MAX_TOKEN_LENGTH:
            raise InvalidField("token", f"must be 1 to {MAX_TOKEN_LENGTH} characters")
        return enrolment_pb2.FindPhoneResponse(**(await self._enrolments.find(request.token))._asdict())
