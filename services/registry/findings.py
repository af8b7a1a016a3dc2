"""Findings of reviewers about incidents: who has to act, by when, and what came of it."""

from __future__ import annotations

import asyncio
import contextlib
import json
from dataclasses import dataclass, replace
from datetime import date, datetime, time, timedelta
from functools import partial
from typing import Any

import grpc.aio
import sqlalchemy as sa
from prometheus_client import Gauge

from services.common import fields, times
from services.common.clock import MeshClock
from services.common.errors import Conflict, FailedPrecondition, InvalidField, NotFound, Unavailable
from services.common.observability.telemetry import logger
from services.common.rpc import server
from services.common.running import completed
from services.common.times import KOREA
from services.registry.keys import DataKey, KeyOwner, Vault
from services.registry.records.translate import required_text
from services.registry.tables import data_keys, findings, trace_facts
from services.registry.transactions import Transactions
from tandem.registry.v1 import finding_pb2, finding_pb2_grpc


@dataclass(frozen=True, slots=True)
class Closing:
    """The end of a finding."""

    at_ms: int
    """Mesh time, milliseconds since 1970 UTC."""
    by: str
    """SPIFFE id of the reviewer."""
    outcome: str


@dataclass(frozen=True, slots=True)
class ReviewFinding:
    """What a reviewer found in an incident."""

    finding_id: str
    incident_id: str
    text: str
    owner: str
    """Who has to act."""
    due_on: date
    """Last day to act, by Korea's time."""
    made_by: str
    made_ms: int
    """Mesh time, milliseconds since 1970 UTC."""
    closing: Closing | None = None

    @property
    def due_ms(self) -> int:
        """End of the last day, exclusive, milliseconds since 1970 UTC."""
        return round(1000 * datetime.combine(self.due_on + timedelta(days=1), time(), KOREA).timestamp())

    def is_overdue(self, now_ms: int) -> bool:
        """Whether it is open after its last day."""
        return self.closing is None and now_ms >= self.due_ms

    def says(self, other: ReviewFinding) -> bool:
        """Whether another finding has the same content."""
        return (self.incident_id, self.text, self.owner, self.due_on) == (
            other.incident_id,
            other.text,
            other.owner,
            other.due_on,
        )


def closed_finding(finding: ReviewFinding, closing: Closing) -> ReviewFinding:
    """The closed finding. A repeated closing changes nothing. Raises FailedPrecondition if it has another outcome already."""
    if finding.closing is None:
        return replace(finding, closing=closing)
    if finding.closing.outcome != closing.outcome:
        raise FailedPrecondition("finding_id: this finding is closed with another outcome, which can't be changed")
    return finding


def is_incident_known(connection: sa.Connection, incident_id: str) -> bool:
    """Whether a trace knows an alert of an incident."""
    alerts = (trace_facts.c.incident_id == incident_id) & trace_facts.c.fact_id.like("alert/%")
    return bool(connection.execute(sa.select(sa.exists().where(alerts))).scalar())


def add_finding(connection: sa.Connection, vault: Vault, finding: ReviewFinding) -> None:
    """Add a finding."""
    owner = _owner(finding.finding_id)
    content = json.dumps([finding.text, finding.owner]).encode()
    key, sealed = vault.seal_with_new_key(owner, content)
    stored_key = {"owner": owner, "ring": key.ring, "wrapped": key.wrapped}
    connection.execute(sa.insert(data_keys).values({**stored_key, "destroy_at_ms": None, "destroyed_at_ms": None}))
    values = {
        "finding_id": finding.finding_id,
        "incident_id": finding.incident_id,
        "due_on": finding.due_on,
        "made_by": finding.made_by,
        "made_ms": finding.made_ms,
        "sealed": sealed,
    }
    connection.execute(sa.insert(findings).values(values))


def close_finding(connection: sa.Connection, vault: Vault, finding_id: str, *, closing: Closing) -> None:
    """Store the end of a finding."""
    owner = _owner(finding_id)
    [stored] = connection.execute(sa.select(data_keys).where(data_keys.c.owner == owner)).all()
    sealed = vault.seal(owner, closing.outcome.encode(), DataKey(stored.ring, stored.wrapped))
    values = {"closed_ms": closing.at_ms, "closed_by": closing.by, "sealed_outcome": sealed}
    connection.execute(sa.update(findings).where(findings.c.finding_id == finding_id).values(values))


def find_finding(connection: sa.Connection, vault: Vault, finding_id: str) -> ReviewFinding | None:
    """A finding; None if there is none."""
    found = select_findings(connection, vault, findings.c.finding_id == finding_id, limit=1)
    return found[0] if found else None


def select_findings(
    connection: sa.Connection, vault: Vault, condition: sa.ColumnElement[bool], *, limit: int
) -> list[ReviewFinding]:
    """Findings that meet a condition: the open ones by due day, then the closed ones, newest first."""
    owner = sa.literal(f"{findings.name}/").concat(findings.c.finding_id)
    joined = findings.join(data_keys, data_keys.c.owner == owner)
    statement = (
        sa.select(findings, data_keys.c.ring, data_keys.c.wrapped)
        .select_from(joined)
        .where(condition)
        .order_by(findings.c.closed_ms.is_not(None), sa.case((findings.c.closed_ms.is_(None), findings.c.due_on)))
        .order_by(findings.c.closed_ms.desc(), findings.c.finding_id)
        .limit(limit)
    )
    return [_finding(row, vault) for row in connection.execute(statement)]


def forget_findings_before(connection: sa.Connection, made_ms: int) -> None:
    """Delete findings that were made before a moment, and their keys."""
    _forget(connection, sa.select(findings.c.finding_id).where(findings.c.made_ms < made_ms))


def forget_findings_of_case(connection: sa.Connection, case_id: str) -> None:
    """Delete the findings about the incidents of a joint case whose records are destroyed: their texts may tell of the wearer."""
    alerts = trace_facts.c.fact_id.like("alert/%") & trace_facts.c.fact.contains(f'"{case_id}"', autoescape=True)
    mine = sa.exists().where(trace_facts.c.incident_id == findings.c.incident_id, alerts)
    _forget(connection, sa.select(findings.c.finding_id).where(mine))


def _forget(connection: sa.Connection, old: sa.Select[Any]) -> None:
    ids = list(connection.scalars(old))
    if ids:
        connection.execute(sa.delete(data_keys).where(data_keys.c.owner.in_([_owner(id_) for id_ in ids])))
        connection.execute(sa.delete(findings).where(findings.c.finding_id.in_(ids)))


def _finding(row: sa.Row[Any], vault: Vault) -> ReviewFinding:
    owner, key = _owner(row.finding_id), DataKey(row.ring, row.wrapped)
    text, acts = json.loads(vault.unseal(owner, row.sealed, key))
    closing = None
    if row.closed_ms is not None:
        closing = Closing(row.closed_ms, row.closed_by, vault.unseal(owner, row.sealed_outcome, key).decode())
    return ReviewFinding(
        finding_id=row.finding_id,
        incident_id=row.incident_id,
        text=text,
        owner=acts,
        due_on=row.due_on,
        made_by=row.made_by,
        made_ms=row.made_ms,
        closing=closing,
    )


def _owner(finding_id: str) -> str:
    return KeyOwner(findings.name, finding_id).text


MAX_LISTED = 500
KEPT_MS = 3 * 365 * 86_400_000
"""Retention of a finding since it was entered, milliseconds: as long as that of the traces' facts, which findings are about."""
CHECK_INTERVAL_S = 60.0
"""How often old findings are deleted and overdue ones looked for, seconds of wall time."""


class ReviewFindings:
    """The findings of reviewers."""

    def __init__(self, transactions: Transactions, clock: MeshClock) -> None:
        self._transactions, self._clock = transactions, clock
        self._vault = transactions.vault

    async def put(self, finding: ReviewFinding) -> ReviewFinding:
        """Enter a finding, and return it as stored. A repeated one changes nothing.

        Raises NotFound if no alert of the incident is known, Conflict if the id has other content.
        """

        def apply(connection: sa.Connection) -> ReviewFinding:
            known = find_finding(connection, self._vault, finding.finding_id)
            if known is not None:
                if not known.says(finding):
                    raise Conflict("finding_id: this id is stored with different content; findings can't be changed")
                return known
            if not is_incident_known(connection, finding.incident_id):
                raise NotFound("incident_id: no alert of this incident is known; check the id")
            add_finding(connection, self._vault, finding)
            return finding

        return await self._transactions.database.visit(apply)

    async def close(self, finding_id: str, closing: Closing) -> ReviewFinding:
        """Close a finding. A repeated closing changes nothing. Raises NotFound, FailedPrecondition."""

        def apply(connection: sa.Connection) -> ReviewFinding:
            known = find_finding(connection, self._vault, finding_id)
            if known is None:
                raise NotFound("finding_id: no such finding")
            after = closed_finding(known, closing)
            if after is not known:
                close_finding(connection, self._vault, finding_id, closing=closing)
            return after

        return await self._transactions.database.visit(apply)

    async def listed(self, incident_id: str = "", *, only_open: bool = False) -> tuple[list[ReviewFinding], bool]:
        """Findings in their order, at most MAX_LISTED, and whether there are more."""
        condition = sa.true() if not incident_id else findings.c.incident_id == incident_id
        if only_open:
            condition = sa.and_(condition, findings.c.closed_ms.is_(None))
        read = partial(select_findings, vault=self._vault, condition=condition, limit=MAX_LISTED + 1)
        found = await self._transactions.database.visit(read)
        return found[:MAX_LISTED], len(found) > MAX_LISTED

    async def overdue(self) -> list[ReviewFinding]:
        """The overdue findings, at most MAX_LISTED, the longest overdue first."""
        now_ms = self._clock.now_ms()
        found, _ = await self.listed(only_open=True)
        return [finding for finding in found if finding.is_overdue(now_ms)]

    async def forget_old(self) -> None:
        """Delete the findings that were entered more than KEPT_MS ago."""
        made_ms = self._clock.now_ms() - KEPT_MS
        await self._transactions.database.visit(partial(forget_findings_before, made_ms=made_ms))


class FindingWatch:
    """Deletes old findings, counts the overdue ones, and logs each of them once."""

    def __init__(self, service: ReviewFindings, overdue: Gauge) -> None:
        self._service, self._overdue = service, overdue
        self._logged: set[str] = set()

    async def run(self) -> None:
        """Check the findings until cancelled."""
        while True:
            with contextlib.suppress(
                Unavailable
            ):  # logged by the database layer; the next check finds the same findings
                await self.check()
            await asyncio.sleep(CHECK_INTERVAL_S)

    async def check(self) -> None:
        """Delete old findings, and look for overdue ones, once."""
        await self._service.forget_old()
        overdue = {finding.finding_id: finding for finding in await self._service.overdue()}
        self._overdue.set(len(overdue))
        for finding_id in sorted(overdue.keys() - self._logged):
            logger().warning("finding_overdue", finding_id=finding_id, incident_id=overdue[finding_id].incident_id)
        self._logged = set(overdue)


TEXT_MAX_CHARS = 500
OWNER_MAX_CHARS = 100
LATEST_YEAR = 2100
"""Last year in which a finding may be due. The end of a day of the year 9999 is no time that Python can hold."""
_Context = grpc.aio.ServicerContext[Any, Any]


class FindingServicer(finding_pb2_grpc.FindingServiceServicer):
    """Parses requests of the FindingService, runs the commands and builds the responses."""

    def __init__(self, findings: ReviewFindings, clock: MeshClock) -> None:
        self._findings, self._clock = findings, clock

    async def PutFinding(
        self, request: finding_pb2.PutFindingRequest, context: _Context
    ) -> finding_pb2.PutFindingResponse:
        finding = ReviewFinding(
            finding_id=fields.required_id("finding_id", request.finding_id),
            incident_id=fields.required_id("incident_id", request.incident_id),
            text=required_text("text", request.text, TEXT_MAX_CHARS),
            owner=required_text("owner", request.owner, OWNER_MAX_CHARS),
            due_on=_day("due_on", request.due_on),
            made_by=server.caller().spiffe_id,
            made_ms=self._clock.now_ms(),
        )
        stored = await completed(self._findings.put(finding))
        return finding_pb2.PutFindingResponse(finding=self._to_proto(stored))

    async def CloseFinding(
        self, request: finding_pb2.CloseFindingRequest, context: _Context
    ) -> finding_pb2.CloseFindingResponse:
        finding_id = fields.required_id("finding_id", request.finding_id)
        outcome = required_text("outcome", request.outcome, TEXT_MAX_CHARS)
        closing = Closing(self._clock.now_ms(), server.caller().spiffe_id, outcome)
        stored = await completed(self._findings.close(finding_id, closing))
        return finding_pb2.CloseFindingResponse(finding=self._to_proto(stored))

    async def ListFindings(
        self, request: finding_pb2.ListFindingsRequest, context: _Context
    ) -> finding_pb2.ListFindingsResponse:
        incident_id = fields.required_id("incident_id", request.incident_id) if request.incident_id else ""
        found, is_cut = await self._findings.listed(incident_id, only_open=request.only_open)
        return finding_pb2.ListFindingsResponse(findings=map(self._to_proto, found), is_cut=is_cut)

    def _to_proto(self, finding: ReviewFinding) -> finding_pb2.ReviewFinding:
        closing = finding.closing
        return finding_pb2.ReviewFinding(
            finding_id=finding.finding_id,
            incident_id=finding.incident_id,
            text=finding.text,
            owner=finding.owner,
            due_on=finding.due_on.isoformat(),
            made_by=finding.made_by,
            made_at=times.to_timestamp(finding.made_ms),
            closed_by=closing.by if closing else "",
            closed_at=times.to_timestamp(closing.at_ms) if closing else None,
            outcome=closing.outcome if closing else "",
            overdue=finding.is_overdue(self._clock.now_ms()),
        )


def _day(field: str, text: str) -> date:
    """A day such as 2027-03-01, until the end of LATEST_YEAR. Raises InvalidField."""
    try:
        day = date.fromisoformat(text)
    except ValueError:
        day = None
    if day is None or day.isoformat() != text or day.year > LATEST_YEAR:
        raise InvalidField(field, f"must be a day until {LATEST_YEAR}-12-31 (example: 2027-03-01)")
    return day
