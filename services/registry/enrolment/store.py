"""Enrolment codes in the database, as one transaction sees them."""

from __future__ import annotations

import sqlalchemy as sa

from services.registry.device_tokens.tables import device_tokens
from services.registry.enrolment.domain import EnrolledDevice, EnrolmentCode
from services.registry.enrolment.tables import enrolment_codes
from services.registry.records.tables import devices
from services.registry.repository import Repository

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
