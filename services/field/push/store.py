"""Addresses of phones at their push services, by device. No name and no person's id is stored."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field

import sqlalchemy as sa
from sqlalchemy.dialects.sqlite import insert

from services.common.storage.db import Database

metadata = sa.MetaData()
push_addresses = sa.Table(
    "push_addresses",
    metadata,
    sa.Column("device_id", primary_key=True),
    sa.Column("endpoint"),
    sa.Column("p256dh"),
    sa.Column("auth"),
)


@dataclass(frozen=True, slots=True)
class PushAddress:
    """Where and with which keys a phone gets web push (RFC 8030, RFC 8291)."""

    device_id: str
    endpoint: str = field(repr=False)
    """Address at the push service. With it and the server's key, the phone can be woken."""
    p256dh: str = field(repr=False)
    """Public key of the phone's browser, base64url."""
    auth: str = field(repr=False)
    """Secret of the phone's browser, base64url."""


class PushAddresses:
    """The addresses in field's database. All methods raise Unavailable if the database refuses."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def put(self, address: PushAddress) -> None:
        """Stores the address of a device in place of its earlier one."""
        new = insert(push_addresses).values(asdict(address))
        changed = {name: new.excluded[name] for name in ("endpoint", "p256dh", "auth")}
        statement = new.on_conflict_do_update(index_elements=["device_id"], set_=changed)
        await self._database.visit(lambda connection: connection.execute(statement))

    async def of(self, device_id: str) -> PushAddress | None:
        """The address of a device; None if its phone takes no push."""
        query = sa.select(push_addresses).where(push_addresses.c.device_id == device_id)
        row = await self._database.visit(lambda connection: connection.execute(query).first())
        return PushAddress(**row._mapping) if row else None

    async def delete(self, device_id: str, endpoint: str = "") -> None:
        """Deletes the address of a device; with `endpoint` only if it is still that one."""
        same = push_addresses.c.device_id == device_id
        if endpoint:
            same &= push_addresses.c.endpoint == endpoint
        await self._database.visit(lambda connection: connection.execute(sa.delete(push_addresses).where(same)))
