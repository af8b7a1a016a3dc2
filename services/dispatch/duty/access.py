"""Access of a unit's page to its leg: to its own offers and assignments, and to nothing of other units."""

from __future__ import annotations

import asyncio
import hashlib
import secrets
from collections.abc import AsyncGenerator, Sequence
from functools import partial
from typing import NamedTuple

from sqlalchemy import Connection

from services.common.clock import MeshClock
from services.common.observability.telemetry import logger
from services.common.rpc.errors import FailedPrecondition, NotFound
from services.dispatch.domain.answers import Assure, EndDistress, Progress, RaiseDistress
from services.dispatch.domain.assignment import OVER, AssignmentState
from services.dispatch.domain.incident import Incident
from services.dispatch.domain.leg import Leg
from services.dispatch.domain.roster import RosterOutcome, Status, Unit, UnitReport
from services.dispatch.duty import links, store
from services.dispatch.duty.links import UnitLink
from services.dispatch.leg import translate
from services.dispatch.leg.rows import AssignmentRow
from services.dispatch.leg.service import DeskAnswer, LegService
from services.dispatch.leg.subscriptions import is_no_canary
from services.dispatch.publications.steps import NumberedStep
from services.dispatch.roster import store as roster
from tandem.dispatch.v1 import dispatch_pb2

NOT_YOURS = "OFFERED_ON"
"""Machine-readable reason for refusing the answer of a unit that doesn't have the assignment: as for an answer to an earlier offer."""


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
            unit = links.check_unit(store.require_unit(connection, unit_id), now_ms)
            expires_ms = min(now_ms + 1000 * valid_for_s, unit.shift_until_ms)
            link = UnitLink(
                sha256=_hash("link", code),
                unit_id=unit_id,
                shift_until_ms=unit.shift_until_ms,
                expires_ms=expires_ms,
                used_ms=None,
                issued_by=by,
            )
            store.add_link(connection, link, now_ms)
            return IssuedLink(code, expires_ms)

        issued = await self._leg.store.transaction(work)
        logger().info("unit_link_issued", unit=unit_id, by=by)
        return issued

    async def sign_in(self, code: str) -> SignedInUnit:
        """Exchanges a link for a token, and ends the unit's earlier ones. Raises NotFound, FailedPrecondition."""
        token, now_ms = secrets.token_urlsafe(32), self._clock.now_ms()
        made = await self._leg.store.transaction(
            lambda connection: store.use_link(
                connection, _hash("link", _bounded(code)), _hash("token", token), now_ms=now_ms
            )
        )
        logger().info("unit_signed_in", unit=made.unit_id)
        return SignedInUnit(token, made.unit_id, made.shift_until_ms)

    async def sign_out(self, token: str) -> None:
        """Ends a token."""
        now_ms = self._clock.now_ms()
        await self._leg.store.transaction(
            lambda connection: store.end_sign_in(connection, _hash("token", _bounded(token)), now_ms)
        )

    async def unit(self, token: str) -> Unit:
        """The unit whose page has a token. Raises FailedPrecondition if it has ended."""
        sha256, now_ms = _hash("token", _bounded(token)), self._clock.now_ms()
        return await self._leg.store.transaction(lambda connection: store.unit_of(connection, sha256, now_ms))

    async def duty(self, token: str, shown_ids: Sequence[str]) -> OnDuty:
        """The unit of a token with its assignments. Raises FailedPrecondition if it has ended."""
        unit = await self.unit(token)

        def read(connection: Connection) -> tuple[UnitReport, list[str]]:
            held = roster.engaged(connection).get(unit.unit_id, {})
            return roster.report_of(connection, unit.unit_id), list(held)

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

    async def answer(self, unit: Unit, command: DeskAnswer) -> dispatch_pb2.Assignment:
        """Applies the answer of a unit to its own assignment. Raises NotFound, FailedPrecondition.

        The answer names its offer, and the leg compares it within the transaction, so a unit can't answer for the next one.
        """
        row = await self._leg.store.assignment(command.assignment_id)
        if row is None:
            raise NotFound("assignment_id: is unknown in this leg")
        present = translate.stored_assignment(row)
        if present.choice.unit_id != unit.unit_id:
            raise FailedPrecondition("the assignment is offered to another unit or desk by now", NOT_YOURS)
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
            return list(roster.engaged(connection).get(unit.unit_id, {}))

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
            store.require_unit(connection, unit_id)
            roster.change_distress(connection, unit_id, None)

        raised = await self._leg.store.reading_history(partial(store.raised_by, unit_id=unit_id))
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

    async def changes(self) -> AsyncGenerator[dispatch_pb2.Assignment]:
        """Yields an assignment after each of its steps, this leg's and the others', in the incidents to which a unit was sent.

        At first yields those with an unanswered offer. An incident that only the desk answers is on no unit's page.
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

        async for item in self._leg.follow(0, others=True, new_only=True, wants=concerns_unit):
            yield item.step.assignment if isinstance(item, NumberedStep) else item
            await asyncio.sleep(0)


def _has_unit(incident: Incident) -> bool:
    """Whether a unit has or had the present offer of one of an incident's assignments."""
    assignments = incident.assignments.values()
    return any(assignment.tried or (assignment.choice and assignment.choice.unit_id) for assignment in assignments)


def _is_over(incident: Incident) -> bool:
    return all(assignment.state in OVER for assignment in incident.assignments.values())


def unit_name(leg: Leg, unit_id: str) -> str:
    """Name of a unit as author of a step and as recipient of a disclosure."""
    return f"spiffe://tandem/unit/{leg}/{unit_id}"


def _bounded(secret: str) -> str:
    return secret if len(secret) <= links.MAX_SECRET_CHARS else ""


def _hash(kind: str, secret: str) -> bytes:
    return hashlib.sha256(f"unit {kind} {secret}".encode()).digest()
