"""Access of a unit's page to its leg: to its own offers and assignments, and to nothing of other units.

The links and sign-ins of units' pages, and units' calls for help, are stored in the leg's database.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import secrets
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import asdict
from functools import partial
from typing import NamedTuple

import sqlalchemy as sa
from sqlalchemy import Connection

from services.common.clock import MeshClock
from services.common.errors import FailedPrecondition, NotFound
from services.common.observability.telemetry import logger
from services.dispatch.domain.answers import (
    AssignmentHolder,
    Assure,
    EndDistress,
    Progress,
    RaiseDistress,
    holder,
    not_this_unit,
)
from services.dispatch.domain.assignment import OVER, AssignmentState
from services.dispatch.domain.events import DistressRaised
from services.dispatch.domain.incident import Incident
from services.dispatch.domain.leg import Leg
from services.dispatch.domain.roster import RosterOutcome, Status, Unit, UnitReport
from services.dispatch.duty import links
from services.dispatch.duty.links import UnitLink, UnitSignIn
from services.dispatch.leg import roster, translate
from services.dispatch.leg.chain import STORED_NAMES
from services.dispatch.leg.feed import is_no_canary
from services.dispatch.leg.service import DeskAnswer, LegService
from services.dispatch.leg.tables import AssignmentRow, events, metadata
from services.dispatch.leg.translate import NumberedStep
from tandem.dispatch.v1 import dispatch_pb2


class IssuedLink(NamedTuple):
    """The code of a link, which is shown once, and the end of its validity, mesh time."""

    code: str
    expires_ms: int


class SignedInUnit(NamedTuple):
    """A token, which is shown once, its unit, and the end of the shift, mesh time."""

    token: str
    unit_id: str
    shift_until_ms: int


class OnDuty(NamedTuple):
    """A unit with its last report and the rows of assignments: those that it has, and those that its page shows.

    Other units may have some of those that the page shows by now.
    """

    unit: Unit
    report: UnitReport
    rows: Sequence[AssignmentRow]


class UnitAccess:
    """Sign-in and answers of the units of one leg. All methods raise Unavailable if the leg's database refuses."""

    def __init__(self, leg: LegService, clock: MeshClock) -> None:
        self._leg, self._clock = leg, clock

    async def issue(self, unit_id: str, valid_for_s: int, *, by: str) -> IssuedLink:
        """Issues a link for the present shift of a unit. Raises NotFound, FailedPrecondition if the unit can't sign in."""
        code, now_ms = f"{self._leg.name}.{secrets.token_urlsafe(32)}", self._clock.now_ms()

        def work(connection: Connection) -> IssuedLink:
            unit = links.check_unit(_require_unit(connection, unit_id), now_ms)
            expires_ms = min(now_ms + 1000 * valid_for_s, unit.shift_until_ms)
            link = UnitLink(
                sha256=_hash("link", code),
                unit_id=unit_id,
                shift_until_ms=unit.shift_until_ms,
                expires_ms=expires_ms,
                used_ms=None,
                issued_by=by,
            )
            _add_link(connection, link, now_ms)
            return IssuedLink(code, expires_ms)

        issued = await self._leg.store.transaction(work)
        logger().info("unit_link_issued", unit=unit_id, by=by)
        return issued

    async def sign_in(self, code: str) -> SignedInUnit:
        """Exchanges a link for a token, and ends the unit's earlier ones. Raises NotFound, FailedPrecondition."""
        token, now_ms = secrets.token_urlsafe(32), self._clock.now_ms()
        made = await self._leg.store.transaction(
            lambda connection: _use_link(
                connection, _hash("link", _bounded(code)), _hash("token", token), now_ms=now_ms
            )
        )
        logger().info("unit_signed_in", unit=made.unit_id)
        return SignedInUnit(token, made.unit_id, made.shift_until_ms)

    async def sign_out(self, token: str) -> None:
        """Ends a token."""
        now_ms = self._clock.now_ms()
        await self._leg.store.transaction(
            lambda connection: _end_sign_in(connection, _hash("token", _bounded(token)), now_ms)
        )

    async def unit(self, token: str) -> Unit:
        """The unit whose page has a token. Raises FailedPrecondition if it has ended."""
        sha256, now_ms = _hash("token", _bounded(token)), self._clock.now_ms()
        return await self._leg.store.transaction(lambda connection: _signed_in_unit(connection, sha256, now_ms))

    async def duty(self, token: str, shown_ids: Sequence[str]) -> OnDuty:
        """The unit of a token with its assignments. Raises FailedPrecondition if it has ended."""
        unit = await self.unit(token)

        def read(connection: Connection) -> tuple[UnitReport, list[str]]:
            held = roster.read_engaged(connection).get(unit.unit_id, {})
            return roster.read_report(connection, unit.unit_id), list(held)

        report, held = await self._leg.store.transaction(read)
        rows = await self._leg.store.assignments(list(dict.fromkeys([*held, *shown_ids])))
        return OnDuty(unit, report, list(rows.values()))

    def now_ms(self) -> int:
        """Mesh time."""
        return self._clock.now_ms()

    async def report(self, unit: Unit, report: UnitReport) -> RosterOutcome:
        """Stores the report of a unit about itself."""
        leaving = [unit.unit_id] if report.status is Status.OFF else []
        return await self._leg.change_roster(
            lambda connection: roster.report_unit(connection, unit.unit_id, report), leaving
        )

    async def answer(self, unit: Unit, command: DeskAnswer, offer_number: int) -> dispatch_pb2.Assignment:
        """Applies the answer of a unit to its own offer or assignment. Raises NotFound, FailedPrecondition: it says who has it instead.

        The answer names the unit's offer, and the leg compares it within the transaction, so a unit can't answer for another one.
        """
        row = await self._leg.store.assignment(command.assignment_id)
        if row is None:
            raise NotFound("assignment_id: is unknown in this leg")
        present = translate.stored_assignment(row)
        offer = offer_to(present, unit.unit_id)
        if offer is None or offer.offer_number != offer_number or not _is_open_or_accepted(offer):
            raise not_this_unit(holder_of(present))
        if isinstance(command, Progress) and present.state == dispatch_pb2.ACKNOWLEDGED:
            await self._order_to_go(command)
        return await self._leg.answer(command)

    async def _order_to_go(self, command: Progress) -> None:
        """Records DISPATCHED before EN_ROUTE: who accepts on the road has no desk that orders it to go."""
        if command.state is AssignmentState.EN_ROUTE:
            dispatched = Progress(
                command.assignment_id, command.by, AssignmentState.DISPATCHED, offer_number=command.offer_number
            )
            await self._leg.answer(dispatched)

    async def raise_distress(self, token: str) -> bool:
        """Alarms the unit's own desk, and by each assignment of the unit the other desk. Returns whether it has an assignment."""
        unit, now_ms = await self.unit(token), self._clock.now_ms()
        by = unit_name(self._leg.name, unit.unit_id)

        def work(connection: Connection) -> list[str]:
            roster.change_distress(connection, unit.unit_id, now_ms)
            return list(roster.read_engaged(connection).get(unit.unit_id, {}))

        held = await self._leg.change_roster(work)
        logger().critical("officer_in_distress", unit=unit.unit_id, assignments=len(held))
        raised = [await self._raised(RaiseDistress(assignment_id, by, unit.unit_id)) for assignment_id in held]
        return any(raised)

    async def _raised(self, command: RaiseDistress) -> bool:
        try:
            await self._leg.answer(command)
        except FailedPrecondition:
            return False  # it went to another unit at this moment
        return True

    async def end_distress(self, unit_id: str, by: str) -> None:
        """Ends the call for help of a unit, also in assignments and incidents that are over by now. Raises NotFound."""

        def work(connection: Connection) -> None:
            _require_unit(connection, unit_id)
            roster.change_distress(connection, unit_id, None)

        raised = await self._leg.store.reading_history(partial(_raised_by, unit_id=unit_id))
        for incident in await self._leg.record.open_incidents():
            raised |= {id_ for id_, each in incident.assignments.items() if each.distress_unit_id == unit_id}
        for assignment_id in sorted(raised):
            await self._leg.answer(EndDistress(assignment_id, by, unit_id))
        # The roster comes last: if a step before fails, the desk still sees the call and ends it once more.
        await self._leg.change_roster(work)
        logger().info("distress_ended", unit=unit_id, by=by)

    async def assure(self, assignment_id: str, by: str, offer_number: int) -> dispatch_pb2.Assignment:
        """Records for a unit that it goes on. Raises NotFound, FailedPrecondition."""
        return await self._leg.answer(Assure(assignment_id, by, offer_number))

    async def changes(self, by: str) -> AsyncGenerator[dispatch_pb2.Assignment]:
        """Yields an assignment after each of its steps, this leg's and the others', in the incidents to which a unit was sent.

        At first yields those with an unanswered offer. An incident that only the desk answers is on no unit's page. `by` is the SPIFFE
        id of the caller.
        """
        record = self._leg.record
        with_units = {incident.incident_id for incident in await record.open_incidents() if _has_unit(incident)}

        def concerns_unit(assignment: dispatch_pb2.Assignment) -> bool:
            incident_id = assignment.incident_id
            known = record.memory.known.get(incident_id)
            if known and _has_unit(known.incident):
                with_units.add(incident_id)
            concerned = known is None or incident_id in with_units
            if known and _is_over(known.incident):
                with_units.discard(incident_id)
            return concerned and is_no_canary(assignment)

        async with aclosing(self._leg.follow(0, others=True, new_only=True, wants=concerns_unit, desk=by)) as items:
            async for item in items:
                yield item.step.assignment if isinstance(item, NumberedStep) else item
                await asyncio.sleep(0)


def _has_unit(incident: Incident) -> bool:
    """Whether a unit was asked for one of an incident's assignments."""
    return any(assignment.unit_offers for assignment in incident.assignments.values())


def _is_over(incident: Incident) -> bool:
    return all(assignment.state in OVER for assignment in incident.assignments.values())


def unit_name(leg: Leg, unit_id: str) -> str:
    """Name of a unit as author of a step and as recipient of a disclosure."""
    return f"spiffe://tandem/unit/{leg}/{unit_id}"


def _bounded(secret: str) -> str:
    return secret if len(secret) <= links.MAX_SECRET_CHARS else ""


def _hash(kind: str, secret: str) -> bytes:
    return hashlib.sha256(f"unit {kind} {secret}".encode()).digest()


EXPIRED_KEPT_MS = 30 * 86_400_000
"""Time for which an expired link or sign-in is kept, milliseconds, so that the answer is that it expired, not that it is unknown."""

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
_RAISED = STORED_NAMES[DistressRaised]
_PAGE = 500


def _add_link(connection: sa.Connection, link: UnitLink, now_ms: int) -> None:
    """Stores a link. It ends the unit's earlier links. Links that expired long ago are deleted."""
    earlier = (_links.c.unit_id == link.unit_id) & _links.c.used_ms.is_(None)
    connection.execute(sa.update(_links).where(earlier).values(used_ms=now_ms))
    connection.execute(sa.delete(_links).where(_links.c.expires_ms < now_ms - EXPIRED_KEPT_MS))
    connection.execute(sa.insert(_links).values(asdict(link)))


def _use_link(connection: sa.Connection, sha256: bytes, token_sha256: bytes, *, now_ms: int) -> UnitSignIn:
    """Exchanges a link for a sign-in, in one transaction, and ends the unit's earlier sign-ins.

    Raises NotFound if the link is unknown, FailedPrecondition if it was used or has expired, or if the unit has no shift any more.
    """
    row = connection.execute(sa.select(_links).where(_links.c.sha256 == sha256)).first()
    link = links.check_link(UnitLink(**row._mapping) if row else None, now_ms)
    links.check_unit(roster.read_unit(connection, link.unit_id), now_ms)
    unused = (_links.c.sha256 == sha256) & _links.c.used_ms.is_(None)
    if not connection.execute(sa.update(_links).where(unused).values(used_ms=now_ms)).rowcount:
        raise FailedPrecondition("code: was used at this moment by another phone", links.LINK_USED)
    sign_in = UnitSignIn(token_sha256, link.unit_id, link.shift_until_ms)
    earlier = (_sign_ins.c.unit_id == link.unit_id) & _sign_ins.c.ended_ms.is_(None)
    connection.execute(sa.update(_sign_ins).where(earlier).values(ended_ms=now_ms))
    connection.execute(sa.delete(_sign_ins).where(_sign_ins.c.shift_until_ms < now_ms - EXPIRED_KEPT_MS))
    connection.execute(sa.insert(_sign_ins).values(asdict(sign_in)))
    return sign_in


def _signed_in_unit(connection: sa.Connection, token_sha256: bytes, now_ms: int) -> Unit:
    """The unit whose page has a token. Raises FailedPrecondition if it has ended."""
    row = connection.execute(sa.select(_sign_ins).where(_sign_ins.c.sha256 == token_sha256)).first()
    sign_in = UnitSignIn(**row._mapping) if row else None
    unit = roster.read_unit(connection, sign_in.unit_id) if sign_in else None

    def has_assignment() -> bool:
        return unit is not None and unit.unit_id in roster.read_engaged(connection)

    return links.check_sign_in(sign_in, unit, now_ms, has_assignment=has_assignment)


def _end_sign_in(connection: sa.Connection, token_sha256: bytes, now_ms: int) -> None:
    """Ends a token. An unknown or ended one stays as it is."""
    current = (_sign_ins.c.sha256 == token_sha256) & _sign_ins.c.ended_ms.is_(None)
    connection.execute(sa.update(_sign_ins).where(current).values(ended_ms=now_ms))


def _require_unit(connection: sa.Connection, unit_id: str) -> Unit:
    """A unit of the roster. Raises NotFound if it has none with this id."""
    unit = roster.read_unit(connection, unit_id)
    if unit is None:
        raise NotFound(f"unit_id: the roster has no unit {unit_id}")
    return unit


def _raised_by(connection: sa.Connection, unit_id: str) -> set[str]:
    """Ids of the assignments in which a unit's officer has called for help since the roster shows the call. Raises NotFound."""
    _require_unit(connection, unit_id)
    since_ms = roster.read_report(connection, unit_id).distress_ms
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
    query = sa.select(events.c.id, events.c.kind, events.c.body).order_by(events.c.id.desc()).limit(_PAGE)
    return query if before is None else query.where(events.c.id < before)


def offer_to(assignment: dispatch_pb2.Assignment, unit_id: str) -> dispatch_pb2.UnitOffer | None:
    """The last offer to a unit; None if it wasn't asked."""
    return next((offer for offer in assignment.unit_offers if offer.choice.unit_id == unit_id), None)


def holder_of(assignment: dispatch_pb2.Assignment) -> AssignmentHolder:
    """Who has an assignment, for a unit that hasn't."""
    state = AssignmentState(assignment.state)
    return holder(state, bool(assignment.choice.unit_id or assignment.radio_unit))


def assignment_for_unit(assignment: dispatch_pb2.Assignment) -> dispatch_pb2.Assignment:
    """The assignment for a unit's page, without the offers to other units."""
    shown = dispatch_pb2.Assignment()
    shown.CopyFrom(assignment)
    shown.ClearField("unit_offers")
    return shown


def _is_open_or_accepted(offer: dispatch_pb2.UnitOffer) -> bool:
    """Whether the unit of an offer may still answer for the assignment."""
    return offer.state in (dispatch_pb2.UNIT_ASKED, dispatch_pb2.UNIT_ACCEPTED)
