"""The traces of incidents in the database, read completely or up to an earlier moment."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import grpc.aio
import sqlalchemy as sa
from sqlalchemy import Connection

from services.common import fields
from services.common.clock import MeshClock
from services.common.errors import NotFound
from services.common.messaging import flow
from services.common.messaging.streams import LogMetadata
from services.common.observability import spans
from services.common.rpc import server
from services.common.rpc.identity import Role
from services.common.storage import rows as storage
from services.common.storage.rows import RowTarget
from services.registry.domain.disclosure import Deed
from services.registry.ledger import LedgerRepository
from services.registry.tables import alerted_incidents, case_versions, ledger, trace_facts, trace_positions
from services.registry.traces import translate
from services.registry.traces.domain import facts
from services.registry.traces.domain.expected import AwaitedTime, expected_times
from services.registry.traces.domain.facts import AlertFact, CaseVersion, DataUse, Fact, StepFact
from services.registry.traces.domain.spans import OPERATOR, REVIEWER, TraceSpan, shown_to, spans_of
from services.registry.transactions import Transactions
from services.registry.unit_of_work import Repository
from tandem.registry.v1 import trace_pb2, trace_pb2_grpc

_BATCH = (
    RowTarget(trace_facts, changing=()),
    RowTarget(trace_positions, changing=("log_id", "sequence", "trail")),
    RowTarget(alerted_incidents, changing=()),
)
MAX_FACTS = 5_000
"""Maximum number of facts per trace; later facts are omitted. Several days with a warning every 15 s exceed this number."""

MAX_USES = 5_000
"""Maximum number of uses of personal data per trace; later ones are omitted. The ledger has all of them."""


@dataclass(frozen=True, slots=True)
class TraceBatch:
    """Facts from a batch of messages of one stream."""

    stream: str
    log_id: str
    sequence: int
    """Sequence of the last message in the batch."""
    facts: Sequence[tuple[str, Fact]]
    """Incident id and fact, in order."""
    trail: str = ""
    """Trail of the read entries, serialised."""


def add_batch(connection: Connection, batch: TraceBatch) -> None:
    """Store the facts of a batch, the incidents of its alerts, and the progress in its stream. Stored facts stay unchanged."""
    rows = [(incident_id, fact.fact_id, fact.at_us, facts.to_json(fact)) for incident_id, fact in batch.facts]
    position = (batch.stream, batch.log_id, batch.sequence, batch.trail)
    alerted = dict.fromkeys(incident_id for incident_id, fact in batch.facts if isinstance(fact, AlertFact))
    storage.write(connection, _BATCH, [rows, [position], [(incident_id,) for incident_id in alerted]])


class StoredVersion(NamedTuple):
    """A version of a case that was stored in the log."""

    case_id: str
    version: int
    sequence: int
    """Sequence in the log."""


class TraceRepository(Repository):
    """The trace tables as one transaction sees them."""

    async def last_sequence(self, stream: str, log_id: str) -> int:
        """Sequence of the last read message of a stream; 0 if no message of this log was read."""
        return (await self.progress(stream, log_id))[0]

    async def progress(self, stream: str, log_id: str) -> tuple[int, str]:
        """Sequence of the last read message of a stream, and the trail; 0 and empty if nothing of this log was read."""
        rows = await self._rows(sa.select(trace_positions).where(trace_positions.c.stream == stream))
        return (rows[0].sequence, rows[0].trail) if rows and rows[0].log_id == log_id else (0, "")

    async def facts(self, incident_id: str) -> list[Fact]:
        """Stored facts of an incident, earliest first. A result of MAX_FACTS + 1 facts means that later facts are omitted."""
        mine = sa.select(trace_facts.c.fact).where(trace_facts.c.incident_id == incident_id)
        rows = await self._rows(mine.order_by(trace_facts.c.at_us, trace_facts.c.fact_id).limit(MAX_FACTS + 1))
        return [facts.of_json(row.fact) for row in rows]

    async def versions_of(self, case_ids: Collection[str], clock: MeshClock) -> dict[str, list[CaseVersion]]:
        """Versions of cases by case id, in the order in which they were made."""
        versions: dict[str, list[CaseVersion]] = {case_id: [] for case_id in case_ids}
        mine = sa.select(case_versions).where(case_versions.c.case_id.in_(list(case_ids)))
        for row in await self._rows(mine.order_by(case_versions.c.version)):
            made_us, stored_us = clock.to_wall_us(row.version), clock.to_wall_us(row.stored_at_ms)
            versions[row.case_id].append(
                CaseVersion(
                    case_id=row.case_id,
                    version=row.version,
                    made_us=made_us,
                    sequence=row.sequence,
                    stored_us=stored_us,
                )
            )
        return versions

    async def uses(self, incident_id: str, clock: MeshClock) -> list[DataUse]:
        """Rows of the ledger that refer to an incident, earliest first, at most MAX_USES + 1."""
        mine = sa.select(ledger).where(ledger.c.reference == incident_id)
        rows = await self._rows(mine.order_by(ledger.c.sequence).limit(MAX_USES + 1))
        return [
            DataUse(
                sequence=row.sequence,
                at_us=clock.to_wall_us(row.at_ms),
                deed=row.deed,
                who=row.recipient or row.who,
                giver=row.who if row.deed == Deed.NOTIFIED.value else "",
                legal_basis=row.legal_basis,
                purpose=row.purpose,
                record_kind=row.record_kind,
            )
            for row in rows
        ]

    async def note_versions(self, stored: Iterable[StoredVersion], stored_at_ms: int) -> None:
        """Store the sequences and the time at which versions of cases were stored in the log."""
        # An upsert, because a version that the log lost is stored in the log a second time.
        await self._upsert(case_versions, [{**version._asdict(), "stored_at_ms": stored_at_ms} for version in stored])

    async def forget_before(self, at_us: int) -> None:
        """Delete facts that are older than a moment, microseconds since 1970 UTC."""
        await self._connection.execute(sa.delete(trace_facts).where(trace_facts.c.at_us < at_us))


STREAMS = (flow.ALERTS.name, flow.INCIDENTS.name)
"""Streams that the traces are read from."""


@dataclass(frozen=True, slots=True)
class ReadProgress:
    """Progress at one moment: the last read message of each stream, and the last row of the ledger."""

    streams: Mapping[str, int]
    """Sequence of the last read message by stream; 0 if no message was read."""
    ledger: int
    """Sequence of the ledger's last row."""


@dataclass(frozen=True, slots=True)
class IncidentFacts:
    """Stored facts of an incident, with the uses of personal data and the versions of its cases."""

    incident_id: str
    facts: Sequence[Fact]
    uses: Sequence[DataUse]
    case_versions: dict[str, list[CaseVersion]]

    @property
    def alerts(self) -> list[AlertFact]:
        """Facts about the incident's alerts."""
        return [fact for fact in self.facts if isinstance(fact, AlertFact)]

    def expected_times(self) -> list[AwaitedTime]:
        """When each step of the response was expected and when it came."""
        return expected_times(self.incident_id, (fact for fact in self.facts if isinstance(fact, StepFact)))

    @property
    def is_cut(self) -> bool:
        """Whether facts beyond MAX_FACTS or uses beyond MAX_USES were omitted."""
        return len(self.facts) > MAX_FACTS or len(self.uses) > MAX_USES

    def spans(self, until: ReadProgress | None = None) -> list[TraceSpan]:
        """Spans of all facts, the root first, or only of the facts that were read `until` an earlier moment."""
        facts, uses = self.facts, self.uses
        if until is not None:
            facts = [fact for fact in facts if fact.stored <= until.streams[fact.stream]]
            uses = [use for use in uses if use.sequence <= until.ledger]
        return spans_of(
            self.incident_id,
            [fact for fact in facts if isinstance(fact, AlertFact)],
            [fact for fact in facts if isinstance(fact, StepFact)],
            uses=uses,
            case_versions=self.case_versions,
        )


class Traces:
    """Reads the traces of incidents from the registry's database."""

    def __init__(self, transactions: Transactions, log_meta: LogMetadata) -> None:
        self._transactions = transactions
        self._clock = log_meta.clock
        self._log_id = log_meta.log_id

    async def read(self, incident_id: str) -> IncidentFacts:
        """Facts of an incident with at least one alert. Raises NotFound."""
        incident = await self.facts_of(incident_id)
        if not incident.alerts:
            raise NotFound(
                "incident_id: no alert of this incident is known yet; check the id, or retry in a few seconds"
            )
        return incident

    async def facts_of(self, incident_id: str) -> IncidentFacts:
        """Stored facts of an incident; empty if the incident is unknown."""
        async with self._transactions.reading() as work:
            stored = TraceRepository(work.connection)
            facts = await stored.facts(incident_id)
            case_ids = {fact.case_id for fact in facts if isinstance(fact, AlertFact) and fact.case_id}
            return IncidentFacts(
                incident_id=incident_id,
                facts=facts,
                uses=await stored.uses(incident_id, self._clock),
                case_versions=await stored.versions_of(case_ids, self._clock),
            )

    async def progress(self) -> ReadProgress:
        """Current progress in the streams and the ledger."""
        async with self._transactions.reading() as work:
            streams = {
                name: await TraceRepository(work.connection).last_sequence(name, self._log_id) for name in STREAMS
            }
            last = await LedgerRepository(work.connection).last()
        return ReadProgress(streams, last.sequence if last else 0)


_VIEWERS: Mapping[int, str] = {
    Role.ROLE_MOJ_DESK: "probation",
    Role.ROLE_NPA_DESK: "police",
    Role.ROLE_REVIEWER: REVIEWER,
    Role.ROLE_OPERATOR: OPERATOR,
}


class TraceServicer(trace_pb2_grpc.TraceServiceServicer):
    """Returns the spans of a trace that the caller's role may see."""

    def __init__(self, traces: Traces) -> None:
        self._traces = traces

    async def GetTrace(
        self, request: trace_pb2.GetTraceRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> trace_pb2.GetTraceResponse:
        incident_id = fields.required_id("incident_id", request.incident_id)
        incident = await self._traces.read(incident_id)
        viewer = _VIEWERS[server.caller().role]
        expected = [time for time in incident.expected_times() if viewer in time.shows]
        return trace_pb2.GetTraceResponse(
            trace_id=spans.trace_id_of(incident_id),
            spans=translate.spans_to_proto(shown_to(viewer, incident.spans())),
            is_cut=incident.is_cut,
            expected_times=translate.expected_to_proto(expected),
        )
