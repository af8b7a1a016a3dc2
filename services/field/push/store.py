"""Addresses of phones at their push services, by device. No name and no person's id is stored."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field

import sqlalchemy as sa
from sqlalchemy.dialects.sqlite import insert

from services.common.observability.telemetry import logger
from services.common.rpc.errors import Unavailable
from services.common.storage.db import Database

metadata = sa.MetaData()
push_addresses = sa.Table(
    "push_addresses",
    metadata,
    sa.Column("device_id", primary_key=True),
    sa.Column("endpoint"),
    sa.Column("p256dh"),
    sa.Column("auth"),
    sa.Column("phone_key"),
)


@dataclass(frozen=True, slots=True)
class PushAddress:
    """Address and keys by which a phone gets web push (RFC 8030, RFC 8291)."""

    device_id: str
    endpoint: str = field(repr=False)
    """Address at the push service. With it and the server's key, the phone can be woken."""
    p256dh: str = field(repr=False)
    """Public key of the phone's browser, base64url."""
    auth: str = field(repr=False)
    """Secret of the phone's browser, base64url."""
    phone_key: str = field(repr=False)
    """Public key of the phone that named the address, as it is in the phone's cookie."""


class PushAddresses:
    """The addresses in field's database. All methods but `delete_earlier` raise Unavailable if the database refuses."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def put(self, address: PushAddress) -> None:
        """Stores the address of a device in place of its earlier one."""
        new = insert(push_addresses).values(asdict(address))
        changed = {name: new.excluded[name] for name in ("endpoint", "p256dh", "auth", "phone_key")}
        statement = new.on_conflict_do_update(index_elements=["device_id"], set_=changed)
        await self._database.visit(lambda connection: connection.execute(statement))

    async def of(self, device_id: str) -> PushAddress | None:
        """The address of a device; None if its phone takes no push."""
        query = sa.select(push_addresses).where(push_addresses.c.device_id == device_id)
        row = await self._database.visit(lambda connection: connection.execute(query).first())
        return PushAddress(**row._mapping) if row else None

    async def delete(self, address: PushAddress) -> None:
        """Deletes an address, unless the device has another one by now."""
        await self._delete(address.device_id, push_addresses.c.endpoint == address.endpoint)

    async def delete_of_phone(self, device_id: str, phone_key: str) -> None:
        """Deletes the address that a phone named for a device. An address that another phone named since stays."""
        await self._delete(device_id, push_addresses.c.phone_key == phone_key)

    async def delete_earlier(self, device_id: str) -> None:
        """Deletes the address of the phone that had a device before. It never fails.

        The code that connects the new phone is used by now. So a database that refuses must not undo that, and the earlier phone may be
        woken in vain.
        """
        try:
            await self._delete(device_id)
        except Unavailable:
            logger().warning("push_address_kept", device_id=device_id)

    async def _delete(self, device_id: str, *also: sa.ColumnElement[bool]) -> None:
        gone = sa.delete(push_addresses).where(push_addresses.c.device_id == device_id, *also)
        await self._database.visit(lambda connection: connection.execute(gone))
