"""The log of requests for CCTV in the database, as one transaction sees it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import sqlalchemy as sa

from services.registry.cctv.domain import CctvEntry, CctvGround, CctvRequest, CctvStep
from services.registry.cctv.tables import cctv_entries, cctv_requests
from services.registry.keys.store import KeyOwner
from services.registry.keys.tables import data_keys
from services.registry.keys.vault import DataKey, Vault

_DONE = (CctvStep.DECLINED.value, CctvStep.WEARER_NOTIFIED.value)


def owner_of(request_id: str, step: CctvStep) -> KeyOwner:
    """Owner of the key that encrypts the text of an entry."""
    return KeyOwner(cctv_entries.name, f"{request_id}/{step.value}")


def digest_of(connection: sa.Connection, request_id: str) -> bytes | None:
    """Keyed digest of what the caller sent with a request; None if there is no such request."""
    found = sa.select(cctv_requests.c.digest).where(cctv_requests.c.request_id == request_id)
    digest = connection.execute(found).scalar()
    return None if digest is None else bytes(digest)


def add_request(connection: sa.Connection, vault: Vault, request: CctvRequest, *, digest: bytes) -> None:
    """Add a request with its first entry."""
    values = {
        "request_id": request.request_id,
        "wearer_id": request.wearer_id,
        "ground": request.ground.value,
        "government": request.government,
        "digest": digest,
    }
    connection.execute(sa.insert(cctv_requests).values(values))
    add_entry(connection, vault, request)


def add_entry(connection: sa.Connection, vault: Vault, request: CctvRequest) -> None:
    """Add the last entry of a request."""
    entry = request.last
    owner = owner_of(request.request_id, entry.step).text
    key, sealed = vault.seal_with_new_key(owner, entry.text.encode())
    stored_key = {"owner": owner, "ring": key.ring, "wrapped": key.wrapped}
    connection.execute(sa.insert(data_keys).values({**stored_key, "destroy_at_ms": None, "destroyed_at_ms": None}))
    values = {
        "request_id": request.request_id,
        "step": entry.step.value,
        "number": len(request.entries),
        "at_ms": entry.at_ms,
        "recorded_ms": entry.recorded_ms,
        "recorded_by": entry.recorded_by,
        "sealed_text": sealed,
    }
    connection.execute(sa.insert(cctv_entries).values(values))


def find(connection: sa.Connection, request_id: str) -> CctvRequest | None:
    """A request without the texts of its entries; None if there is none."""
    found = select(connection, cctv_requests.c.request_id == request_id)
    return found[0] if found else None


def unfinished(connection: sa.Connection, after_id: str = "") -> list[CctvRequest]:
    """Requests for which a step is still due, in the order in which they were made; with an id, those made after this one."""
    done = sa.exists().where(cctv_entries.c.request_id == cctv_requests.c.request_id, cctv_entries.c.step.in_(_DONE))
    return select(connection, sa.and_(~done, after(connection, after_id)))


def after(connection: sa.Connection, request_id: str) -> sa.ColumnElement[bool]:
    """Condition for requests that were made after another one. An empty id means all requests, an unknown id none."""
    if not request_id:
        return sa.true()
    found = sa.select(cctv_requests.c.sequence).where(cctv_requests.c.request_id == request_id)
    sequence = connection.execute(found).scalar()
    return sa.false() if sequence is None else cctv_requests.c.sequence > sequence


def select(
    connection: sa.Connection,
    condition: sa.ColumnElement[bool],
    *,
    limit: int | None = None,
    vault: Vault | None = None,
) -> list[CctvRequest]:
    """Requests that meet a condition, in the order in which they were made. With a vault also the texts of their entries."""
    rows = connection.execute(
        sa.select(cctv_requests).where(condition).order_by(cctv_requests.c.sequence).limit(limit)
    ).all()
    entries = _entries(connection, [row.request_id for row in rows], vault)
    return [
        CctvRequest(
            request_id=row.request_id,
            wearer_id=row.wearer_id,
            ground=CctvGround(row.ground),
            government=row.government,
            entries=tuple(entries[row.request_id]),
        )
        for row in rows
    ]


def _entries(
    connection: sa.Connection, request_ids: Sequence[str], vault: Vault | None
) -> Mapping[str, list[CctvEntry]]:
    owner = (
        sa.literal(f"{cctv_entries.name}/").concat(cctv_entries.c.request_id).concat("/").concat(cctv_entries.c.step)
    )
    joined = cctv_entries.outerjoin(data_keys, data_keys.c.owner == owner)
    statement = (
        sa.select(cctv_entries, data_keys.c.ring, data_keys.c.wrapped)
        .select_from(joined)
        .where(cctv_entries.c.request_id.in_(request_ids))
        .order_by(cctv_entries.c.number)
    )
    found: dict[str, list[CctvEntry]] = {request_id: [] for request_id in request_ids}
    for row in connection.execute(statement):
        found[row.request_id].append(
            CctvEntry(
                step=CctvStep(row.step),
                at_ms=row.at_ms,
                recorded_ms=row.recorded_ms,
                recorded_by=row.recorded_by,
                text=_text(row, vault),
            )
        )
    return found


def _text(row: sa.Row[Any], vault: Vault | None) -> str:
    if vault is None or row.ring is None:
        return ""
    owner = owner_of(row.request_id, CctvStep(row.step)).text
    return vault.unseal(owner, row.sealed_text, DataKey(row.ring, row.wrapped)).decode()


def key_owners(connection: sa.Connection, wearer_id: str) -> Iterable[str]:
    """Owners of the keys that encrypt the texts about a wearer, as text."""
    requests = select(connection, cctv_requests.c.wearer_id == wearer_id)
    return [owner_of(request.request_id, entry.step).text for request in requests for entry in request.entries]
