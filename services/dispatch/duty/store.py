"""Stores the links and sign-ins of units' pages, and units' calls for help, in the leg's database."""

from __future__ import annotations

import json
from dataclasses import asdict

import sqlalchemy as sa

from services.common.rpc.errors import FailedPrecondition, NotFound
from services.dispatch.domain.roster import Unit
from services.dispatch.duty import links
from services.dispatch.duty.domain import DistressRaised
from services.dispatch.duty.links import UnitLink, UnitSignIn
from services.dispatch.leg.chain import STORED_NAMES
from services.dispatch.leg.tables import metadata
from services.dispatch.roster import store as roster

KEPT_MS = 30 * 86_400_000
"""Time for which an expired link is kept, milliseconds, so that its answer is that it has expired, and not that it is unknown."""

_links = sa.Table(
    "unit_links",
    metadata,
    sa.Column("sha256", sa.LargeBinary, primary_key=True),
    sa.Column("unit_id", sa.String, nullable=False, index=True),
    sa.Column("shift_until_ms", sa.BigInteger, nullable=False),
    sa.Column("expires_ms", sa.BigInteger, nullable=False, index=True),
    sa.Column("used_ms", sa.BigInteger),
    sa.Column("issued_by", sa.String, nullable=False),
)
_sign_ins = sa.Table(
    "unit_sign_ins",
    metadata,
    sa.Column("sha256", sa.LargeBinary, primary_key=True),
    sa.Column("unit_id", sa.String, nullable=False, index=True),
    sa.Column("shift_until_ms", sa.BigInteger, nullable=False, index=True),
    sa.Column("ended_ms", sa.BigInteger),
)
_events = metadata.tables["events"]
_RAISED = STORED_NAMES[DistressRaised]
_PAGE = 500


def add_link(connection: sa.Connection, link: UnitLink, now_ms: int) -> None:
    """Stores a link. It ends the unit's earlier links. Links that expired long ago are deleted."""
    earlier = (_links.c.unit_id == link.unit_id) & _links.c.used_ms.is_(None)
    connection.execute(sa.update(_links).where(earlier).values(used_ms=now_ms))
    connection.execute(sa.delete(_links).where(_links.c.expires_ms < now_ms - KEPT_MS))
    connection.execute(sa.insert(_links).values(asdict(link)))


def use_link(connection: sa.Connection, sha256: bytes, token_sha256: bytes, *, now_ms: int) -> UnitSignIn:
    """Exchanges a link for a sign-in, in one transaction, and ends the unit's earlier sign-ins.

    Raises NotFound if the link is unknown, FailedPrecondition if it was used or has expired, or if the unit has no shift any more.
    """
    row = connection.execute(sa.select(_links).where(_links.c.sha256 == sha256)).first()
    link = links.check_link(UnitLink(**row._mapping) if row else None, now_ms)
    links.check_unit(roster.unit(connection, link.unit_id), now_ms)
    unused = (_links.c.sha256 == sha256) & _links.c.used_ms.is_(None)
    if not connection.execute(sa.update(_links).where(unused).values(used_ms=now_ms)).rowcount:
        raise FailedPrecondition("code: was used at this moment by another phone", links.LINK_USED)
    sign_in = UnitSignIn(token_sha256, link.unit_id, link.shift_until_ms)
    earlier = (_sign_ins.c.unit_id == link.unit_id) & _sign_ins.c.ended_ms.is_(None)
    connection.execute(sa.update(_sign_ins).where(earlier).values(ended_ms=now_ms))
    connection.execute(sa.delete(_sign_ins).where(_sign_ins.c.shift_until_ms < now_ms - KEPT_MS))
    connection.execute(sa.insert(_sign_ins).values(asdict(sign_in)))
    return sign_in


def unit_of(connection: sa.Connection, token_sha256: bytes, now_ms: int) -> Unit:
    """The unit whose page has a token. Raises FailedPrecondition if it has ended."""
    row = connection.execute(sa.select(_sign_ins).where(_sign_ins.c.sha256 == token_sha256)).first()
    sign_in = UnitSignIn(**row._mapping) if row else None
    unit = roster.unit(connection, sign_in.unit_id) if sign_in else None

    def has_assignment() -> bool:
        return unit is not None and unit.unit_id in roster.engaged(connection)

    return links.check_sign_in(sign_in, unit, now_ms, has_assignment=has_assignment)


def end_sign_in(connection: sa.Connection, token_sha256: bytes, now_ms: int) -> None:
    """Ends a token. An unknown or ended one stays as it is."""
    current = (_sign_ins.c.sha256 == token_sha256) & _sign_ins.c.ended_ms.is_(None)
    connection.execute(sa.update(_sign_ins).where(current).values(ended_ms=now_ms))


def require_unit(connection: sa.Connection, unit_id: str) -> Unit:
    """A unit of the roster. Raises NotFound if it has none with this id."""
    unit = roster.unit(connection, unit_id)
    if unit is None:
        raise NotFound(f"unit_id: the roster has no unit {unit_id}")
    return unit


def raised_by(connection: sa.Connection, unit_id: str) -> set[str]:
    """Ids of the assignments in which a unit's officer has called for help since the roster shows the call. Raises NotFound."""
    require_unit(connection, unit_id)
    since_ms = roster.report_of(connection, unit_id).distress_ms
    found: set[str] = set()
    if since_ms is None:
        return found
    before: int | None = None
    while rows := connection.execute(_last_events(before)).all():
        for row in rows:
            event = json.loads(row.body)
            if event["at_ms"] < since_ms:
                return found
            if row.kind == _RAISED and event["unit_id"] == unit_id:
                found.add(event["assignment_id"])
        before = rows[-1].id
    return found


def _last_events(before: int | None) -> sa.Select[int, str, str]:
    query = sa.select(_events.c.id, _events.c.kind, _events.c.body).order_by(_events.c.id.desc()).limit(_PAGE)
    return query if before is None else query.where(_events.c.id < before)
